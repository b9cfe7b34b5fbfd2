"""Preparation of splits larger than memory, for which TFDS would need TensorFlow.

TFDS shuffles the examples of a split by a hash of their keys. Beyond 1,000 MiB it spreads them over
a thousand temporary files, which it writes with TensorFlow. Importing this module replaces these
with ordinary Python files; the order of the examples stays the same.
"""

import struct
from collections.abc import Iterator

from tensorflow_datasets.core import shuffle

HEADER = struct.Struct("=16sQ")  # hashed key, and size in bytes of the example that follows


class Bucket(shuffle._Bucket):
    """Temporary file for the examples of a range of hashed keys."""

    def add(self, key: int, data: bytes) -> None:
        """Appends a serialized example; the key has 128 bits."""
        # Opened each time, because systems allow a process only about a thousand open files.
        with self._path.open("ab") as file:
            file.write(HEADER.pack(key.to_bytes(16, "big"), len(data)))
            file.write(data)
        self._length += 1
        self._size += len(data)

    def read_values(self) -> Iterator[tuple[int, bytes]]:
        """Yields (key, example) in the order of their addition."""
        if not len(self):
            return
        with self._path.open("rb") as file:
            while header := file.read(HEADER.size):
                key, size = HEADER.unpack(header)
                yield int.from_bytes(key, "big"), file.read(size)

    def del_file(self) -> None:
        """Removes the file."""
        self._path.unlink(missing_ok=True)


shuffle._Bucket = Bucket
