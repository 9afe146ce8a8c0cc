"""Manifests whose facts lie or are odd: one sentence with the file, soon, and without gigabytes."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tercet import Catalog, RandomTriplets, read_manifest, write_manifest

CATALOG = Catalog([f"c{n // 4}/{n}.png" for n in range(8)], np.arange(8) // 4, ["c0", "c1"])
RECORD = {"classes": ["a"], "paths": ["x"], "labels": [0], "groups": {}}


def sentence(path):
    with pytest.raises(ValueError, match=r"^read_manifest\(path=.*\): expected [^\n]*$") as raised:
        _ = read_manifest(path)[:], read_manifest(path).catalog
    assert type(raised.value) is ValueError
    assert len(str(raised.value)) < 600
    return str(raised.value)


def compressed(record):
    text = record if isinstance(record, bytes) else json.dumps(record).encode()
    return base64.b64encode(zlib.compress(text)).decode()


def rewritten(tmp_path, suffix, **changes):
    """A manifest that another program wrote again, with other metadata and so without a checksum."""
    target = tmp_path / f"t{suffix}"
    write_manifest(target, RandomTriplets(CATALOG.labels, 1, 1), CATALOG)
    with pa.OSFile(str(target)) as source:
        table = pq.read_table(source) if suffix == ".parquet" else pa.ipc.open_file(source).read_all()
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    table = table.replace_schema_metadata(
        {key: text for key, text in {**metadata, **changes}.items() if text is not None}
    )
    with pa.OSFile(str(target), "wb") as sink:
        if suffix == ".parquet":
            pq.write_table(table, sink)
        else:
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
    return target


def without_checksum(tmp_path, **changes):
    """The provenance of such a manifest with other fields."""
    write_manifest(tmp_path / "p.csv", RandomTriplets(CATALOG.labels, 1, 1), CATALOG)
    facts = json.loads((tmp_path / "p.csv.json").read_text("utf-8"))
    for name in ("crc32", "sha256", "tercet.catalog"):
        del facts[name]
    return json.dumps(facts | changes)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", 3),
        ("kind", "x"),
        ("counts", None),
        ("counts", {"triplets": "x"}),
        ("counts", {"triplets": -1}),
        ("counts", {"triplets": True}),
        ("counts", {"triplets": 2**70}),
        ("counts", {}),
        ("catalog", []),
        ("catalog", {"fingerprint": 3}),
        ("catalog", {"images": "many"}),
        ("strategy", {}),
        ("path_prefix", 7),
        ("parameters", 3),
    ],
)
def test_odd_provenance_is_one_sentence(tmp_path, suffix, name, value):
    target = rewritten(tmp_path, suffix, tercet=without_checksum(tmp_path, **{name: value}))
    assert f"in its field '{name}" in sentence(target)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "brackets nested too deep"),
        ('{"counts": {"triplets": ' + "9" * 5_000 + "}}", "a number of thousands of digits"),
        ("[]", "it has a list"),
        ("", "as JSON"),
    ],
    ids=["brackets", "digits", "list", "empty"],
)
def test_provenance_that_is_no_object_is_one_sentence(tmp_path, suffix, text, words):
    assert words in sentence(rewritten(tmp_path, suffix, tercet=text))


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [2**63]},
        {"labels": [-1]},
        {"labels": [1]},
        {"labels": ["0"]},
        {"labels": [0.0]},
        {"labels": None},
        {"labels": [0, 0]},
        {"paths": [3]},
        {"paths": "x"},
        {"paths": ["x", "y"]},
        {"classes": {}},
        {"classes": ["a", "a"]},
        {"groups": []},
        {"groups": {"g": [None]}},
        {"groups": {"g": [2**70]}},
        {"groups": {"g": [[]]}},
        {"groups": {"g": ["x", 1]}},
        {"groups": {"path": ["x"]}},
    ],
    ids=str,
)
def test_an_odd_catalog_is_one_sentence(tmp_path, change):
    said = sentence(rewritten(tmp_path, ".parquet", **{"tercet.catalog": compressed(RECORD | change)}))
    assert said.count("read_manifest(") == 1


@pytest.mark.parametrize(
    "text",
    [None, "", "é", "AAAA", compressed(b"[" * 100_000), compressed(b"\xff"), compressed(RECORD)[:-8]],
    ids=["none", "empty", "no base64", "no zlib", "brackets", "no text", "cut"],
)
def test_a_catalog_that_is_none_is_one_sentence(tmp_path, text):
    assert "its catalog" in sentence(rewritten(tmp_path, ".parquet", **{"tercet.catalog": text}))


def test_another_catalog_in_a_file_without_a_checksum_is_noticed(tmp_path):
    paths = [f"d/{n}.png" for n in range(8)]
    other = {"classes": CATALOG.classes, "paths": CATALOG.paths.tolist(), "labels": [1] * 8, "groups": {}}
    for record in (other, other | {"labels": CATALOG.labels.tolist(), "paths": paths}):
        target = rewritten(tmp_path, ".parquet", **{"tercet.catalog": compressed(record)})
        assert "expected the catalog it was written with" in sentence(target)
        target.unlink()


def test_a_catalog_that_unpacks_to_4_gib_is_refused_without_unpacking_it(tmp_path):
    packing = zlib.compressobj(9)
    head = packing.compress(b"") + packing.flush(zlib.Z_FULL_FLUSH)
    block = packing.compress(bytes(1 << 24)) + packing.flush(zlib.Z_FULL_FLUSH)  # the same wherever it stands
    packed = head + 256 * block
    target = rewritten(tmp_path, ".parquet", **{"tercet.catalog": base64.b64encode(packed).decode()})
    tracemalloc.start()
    try:
        assert "it unpacks to more than 67,141,632 bytes" in sentence(target)
        assert tracemalloc.get_traced_memory()[1] < 300_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt"])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"sha256": ' * 100_000, '{"a": ' + "9" * 5_000 + "}"])
def test_odd_json_beside_a_text_manifest_is_one_sentence(tmp_path, suffix, content):
    write_manifest(tmp_path / f"t{suffix}", RandomTriplets(CATALOG.labels, 1, 1), CATALOG)
    (tmp_path / f"t{suffix}.json").write_text(content)
    assert f"t{suffix}.json'): expected its provenance as JSON" in sentence(tmp_path / f"t{suffix}")


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"first": "a", "second": "b", "same": 9223372036854775808}',
        '{"first": "a", "second": "b", "same": ' + "9" * 5_000 + "}",
        '{"first": "a", "second": "b", "same": -1}',
        '{"first": "a", "second": "b", "same": 1e400}',
    ],
    ids=["lists", "objects", "2^63", "digits", "-1", "1e400"],
)
def test_odd_lines_of_another_program_are_one_sentence(tmp_path, line):
    (tmp_path / "t.jsonl").write_text(line + "\n")
    sentence(tmp_path / "t.jsonl")


@pytest.mark.parametrize("number", ["9223372036854775808", "-1", "2", "9" * 5_000, "1e400", "0.5", "nan"])
@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_odd_numbers_of_another_program_are_one_sentence(tmp_path, suffix, number):
    header = "first,second,same\n" if suffix == ".csv" else ""
    (tmp_path / f"t{suffix}").write_text(f"{header}a,b,{number}\na,b,1\n")
    if suffix == ".txt":
        assert read_manifest(tmp_path / "t.txt").kind == "triplets"  # the third is a path like any other
    else:
        sentence(tmp_path / "t.csv")


@pytest.mark.parametrize(("suffix", "magic"), [(".parquet", b"PAR1"), (".arrow", b"ARROW1")])
def test_a_header_of_2_gib_in_a_file_of_zeros_is_refused_unread(tmp_path, suffix, magic):
    with open(tmp_path / f"t{suffix}", "wb") as file:
        file.write(magic.ljust(8, b"\0") + b"\xff\xff\xff\xff" + (1 << 30).to_bytes(4, "little"))
        file.truncate(1 << 40)
        file.seek(-4 - len(magic), 2)
        file.write((2**31 - 1).to_bytes(4, "little") + magic)
    sentence(tmp_path / f"t{suffix}")
