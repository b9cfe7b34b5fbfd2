"""Tests the bytes of whole files, which docs/export.md tables."""

import file_sizes
from export_tables import deployed_table, exports_table
from file_sizes import DIGITS, LINEAR, NETWORKS, Network, file_bytes
from record_files import RESULTS

from mcn_jax.layers.formats import FLOAT32, SMALLEST
from mcn_jax.workdirs.files import read_json

BY_TITLE = {network.title: network for network in NETWORKS}
CIFAR10 = BY_TITLE["CIFAR-10, 20 layers, 8-8-16-32 maps, one dense layer"]
MNIST = BY_TITLE["MNIST at 28x28, 5-10-20-40 maps, one dense layer"]
SIMPLE = Network("", DIGITS, LINEAR)


def ratio(network):
    """Returns how much smaller the smallest file is than the one with float32 filters."""
    float32, small = (
        sum(file_bytes(network, quantized=quantized, formats=formats).values())
        for quantized, formats in ((False, FLOAT32), (True, SMALLEST))
    )
    return float32 / small


def test_whole_files_are_many_times_smaller():
    assert ratio(CIFAR10) > 25
    assert ratio(MNIST) > 17.5
    assert ratio(SIMPLE) > 13


def test_the_parts_of_a_file():
    """The stem has 3 maps of 4 planes. Each stage has six layers with the maps of its width."""
    small = file_bytes(CIFAR10, quantized=True, formats=SMALLEST)
    pairs = [(3, 8), *[(8, 8)] * 6, (8, 16), *[(16, 16)] * 5, (16, 32), *[(32, 32)] * 5]
    assert small["filters"] == sum(9 * 4 * before * maps for before, maps in pairs) // 8
    assert small["centers"] == 19 * 2 * 4
    assert small["M-filters"] == 19 * 36 * 2
    # A batch norm comes before each of the 18 layers of blocks and before the head.
    channels = 4 * (sum(before for before, _ in pairs[1:]) + 32)
    assert small["batch norm"] == 2 * 2 * channels
    assert small["dense layers"] == 128 * 10 + 2 * 4 * 10
    assert small["header"] < 1200
    plain = file_bytes(CIFAR10, quantized=True, formats=FLOAT32)
    assert plain["M-filters"] == 2 * small["M-filters"]
    assert plain["batch norm"] == 2 * small["batch norm"]
    assert plain["dense layers"] == 4 * (128 * 10 + 10)


def test_a_deeper_network_has_no_longer_header():
    headers = [
        file_bytes(
            CIFAR10._replace(fields=CIFAR10.fields | {"model.depth": depth}),
            quantized=True,
            formats=SMALLEST,
        )["header"]
        for depth in (26, 56)
    ]
    assert headers[1] - headers[0] < 20


def test_every_network_has_a_row():
    lines = file_sizes.file_sizes_table().splitlines()
    assert len(lines) == 2 + len(NETWORKS)
    for line, network in zip(lines[2:], NETWORKS, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == network.title
        small = file_bytes(network, quantized=True, formats=SMALLEST)
        assert cells[3].startswith(f"{sum(small.values()):,} (")
        assert cells[-1] == f"{small['header']:,}"
        assert len({cell.count("x") for cell in cells[2:4]}) == 1


def test_recorded_files_have_the_bytes_of_the_present_format():
    """What a record shows of its file is what an export writes now, apart from the header."""
    networks = {"digits_linear": SIMPLE, "digits_dense": NETWORKS[-1], "mnist_linear": MNIST}
    for name, network in networks.items():
        for suffix, formats in {"": FLOAT32, "_small": SMALLEST}.items():
            record = read_json(RESULTS / "exports" / f"{name}{suffix}.json")
            expected = file_bytes(network, quantized=True, formats=formats)
            found = {part: sizes["bytes"] for part, sizes in record["parts"].items()}
            assert abs(found.pop("header") - expected.pop("header")) < 100
            assert found == expected


def test_every_export_has_a_row():
    lines = exports_table().splitlines()[2:]
    paths = sorted((RESULTS / "exports").glob("*.json"))
    first = [path for path in paths if "_seed" not in path.stem]
    assert len(lines) == len(first)
    for line, path in zip(lines, first, strict=True):
        assert ("`--small`" in line) == path.stem.endswith("_small")
        assert f"{read_json(path)['model.safetensors']['bytes']:,}" in line
        seeds = [path, *path.parent.glob(f"{path.stem}_seed?.json")]
        assert f" | {len(seeds)} | " in line


def test_every_export_with_a_page_has_a_row():
    lines = deployed_table().splitlines()[2:]
    records = [read_json(path) for path in sorted((RESULTS / "exports").glob("*.json"))]
    with_page = [record for record in records if "model.html" in record]
    assert len(lines) == len(with_page) >= 2
    for line, record in zip(lines, with_page, strict=True):
        assert not record["savings"]  # written with --small
        assert f" | {record['model.html']['bytes']:,} | " in line
