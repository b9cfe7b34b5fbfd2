"""Names the revision of a source tree that has been copied without its git repository."""

import hashlib
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
PARTS = ("mcn_jax", "configs", "launch", "benchmarks")
SUFFIXES = (".py", ".sh", ".json", ".tsv", ".txt")


def source_sha256() -> str:
    """Returns the SHA-256 of the names and contents of all source files that a stage may use."""
    digest = hashlib.sha256()
    for part in PARTS:
        for file in sorted((ROOT / part).rglob("*")):
            if file.suffix in SUFFIXES and file.is_file():
                digest.update(f"{file.relative_to(ROOT)}\n".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def revision_in(load: pathlib.Path) -> str | None:
    """Returns the revision that a load names, if it was made from this source tree."""
    path = load / "revision"
    if not path.is_file():
        return None
    revision, _, sha256 = path.read_text().strip().partition(" ")
    return revision if sha256 == source_sha256() else None


def write_revision(load: pathlib.Path, revision: str | None) -> None:
    """Writes the revision of this source tree into a load."""
    (load / "revision").write_text(f"{revision or 'unknown'} {source_sha256()}\n")
