"""Facts in JSON that are missing, of another type or nested give a reading, or a sentence with the file.

The facts of a file of ours are changed before they get their checksum, as another program might write them.
Which fields are changed, and to what, follows from a seed.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jaxtyping
import numpy as np
import pytest

from tercet.data.catalog.catalog import Catalog
from tercet.data.io.checked_json import to_json, with_checksum
from tercet.data.manifests import writing as manifest_writing
from tercet.data.manifests.manifest import read_manifest
from tercet.data.manifests.writing import write_manifest
from tercet.data.samplers.pk import PKSampler
from tercet.data.samplers.shuffled import ShuffledSampler
from tercet.data.shards import tar_index
from tercet.data.shards.index import ShardIndex
from tercet.data.shards.writing import write_shards
from tercet.data.triplets.pairs import RandomPairs
from tercet.data.triplets.random import RandomTriplets
from tests.contracts.bounds import bounded

N = 8
CAMERAS = {"camera": np.arange(N) % 2}
CATALOG = Catalog([f"{n // 2}/{n}.png" for n in range(N)], np.arange(N) // 2, [*"abcd"], CAMERAS)
DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP]
ODD: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**70,
    1.5,
    "",
    "a",
    "x" * 2000,
    "\x1b[2J\n",
    "\u202e",
    "../x",
    "/x",
]
ODD += [
    [],
    {},
    [None],
    [[0]],
    {"a": 1},
    [0] * N,
    ["a"] * N,
    [1.5] * N,
    [2**70] * N,
    ["a", 0],
    DEEP,
    {"": {"": {}}},
]


def changed(facts: Any, draw: random.Random) -> Any:
    """The facts with one to three fields that are gone, new, or of another value, at any depth."""
    facts = copy.deepcopy(facts)
    for _ in range(draw.choice((1, 1, 2, 3))):
        holder = facts
        while True:
            places = sorted(holder) if isinstance(holder, dict) else range(len(holder))
            if not places:
                break
            place = draw.choice(list(places))
            inner = holder[place]
            if isinstance(inner, (dict, list)) and inner and draw.random() < 0.6:
                holder = inner
                continue
            action = draw.random()
            if action < 0.3:
                del holder[place]
            elif action < 0.9 or not isinstance(holder, dict):
                holder[place] = copy.deepcopy(draw.choice(ODD))
            else:
                holder[str(draw.choice(ODD))[:20]] = holder.pop(place)
            break
    return facts


class File(NamedTuple):
    """A file with facts: how it is written with changed ones, and all that can be read of it."""

    write: Callable[[Callable[[Any], Any]], Any]
    read: Callable[[], Any]
    names: tuple[str, ...]  # one of them stands in the sentence


def _manifest(name: str, sequence: Any, catalog: bool = False) -> File:
    def write(change: Callable[[Any], Any]) -> None:
        def json_of(facts: Any, indent: Any = None) -> str:
            return to_json(facts if catalog else change(facts), indent)

        images = manifest_writing.recorded_catalog
        with (
            mock.patch.object(manifest_writing, "to_json", json_of),
            mock.patch.object(
                manifest_writing,
                "recorded_catalog",
                lambda one: change(images(one)) if catalog else images(one),
            ),
        ):
            write_manifest(name, sequence, CATALOG, overwrite=True)

    def read() -> Any:
        found = read_manifest(name)
        images = found.catalog
        return (
            found[:],
            repr(found),
            images.fingerprint,
            images.groups,
            [images.file(row) for row in range(len(images))],
        )

    return File(write, read, (name,))


def _index() -> File:
    def write(change: Callable[[Any], Any]) -> None:
        def dumps(facts: Any, **options: Any) -> str:
            return json.dumps(change(facts) if isinstance(facts, dict) else facts, **options)

        shutil.rmtree("indexed", ignore_errors=True)
        fake = SimpleNamespace(dumps=dumps, loads=json.loads)
        with (
            mock.patch.object(tar_index, "json", fake),
            contextlib.suppress(ValueError),
        ):  # it reads what it wrote
            write_shards("indexed", CATALOG, k=2, workers=1)

    return File(write, lambda: _opened("indexed"), ("indexed", "train-000000.tar"))


def _info() -> File:
    write_shards("informed", CATALOG, k=2, workers=1)
    source = Path("informed/info.json")
    facts = json.loads(source.read_text())

    def write(change: Callable[[Any], Any]) -> None:
        told = change(facts)
        parts = told.get("tercet")
        if isinstance(parts, dict):  # with the checksum that the changed facts would have
            told["tercet"] = {
                name: with_checksum(part) if isinstance(part, dict) else part for name, part in parts.items()
            }
        source.write_text(json.dumps(told))

    return File(write, lambda: _opened("informed"), ("informed", "info.json"))


def _opened(folder: str) -> Any:
    index = ShardIndex(folder)
    return index.read(range(len(index))), index.labels, index.classes, index.catalog.groups, index.fingerprint


def _state(sampler: Any) -> File:
    held: list[Any] = []

    def write(change: Callable[[Any], Any]) -> None:
        told = change(sampler.state_at(0, 1))
        held[:] = [with_checksum(told) if isinstance(told, dict) else told]

    return File(write, lambda: sampler.load_state_dict(held[0]), (type(sampler).__name__,))


FILES: dict[str, Callable[[], File]] = {
    "csv": lambda: _manifest("t.csv", RandomTriplets(CATALOG.labels)),
    "pairs in txt": lambda: _manifest("t.txt", RandomPairs(CATALOG.labels)),
    "parquet": lambda: _manifest("t.parquet", RandomTriplets(CATALOG.labels)),
    "arrow": lambda: _manifest("t.arrow", RandomTriplets(CATALOG.labels)),
    "catalog of jsonl": lambda: _manifest("t.jsonl", RandomTriplets(CATALOG.labels), catalog=True),
    "catalog of parquet": lambda: _manifest("u.parquet", RandomTriplets(CATALOG.labels), catalog=True),
    "catalog of arrow": lambda: _manifest("u.arrow", RandomTriplets(CATALOG.labels), catalog=True),
    "index": _index,
    "info.json": _info,
    "state of PKSampler": lambda: _state(PKSampler(CATALOG.labels, 2, 2)),
    "state of ShuffledSampler": lambda: _state(ShuffledSampler(N)),
}


def fault(file: File) -> str:
    """What the reading of a file does wrong; empty where it is right."""
    try:
        with bounded():
            file.read()
    except Exception as error:
        said = str(error)
        ours = isinstance(error, (TypeError, ValueError, OSError)) and any(
            name in said for name in file.names
        )
        return "" if ours and said.isprintable() else f"{type(error).__name__}: {said[:200]!r}"
    return ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cases", [15, pytest.param(500, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("name", FILES)
def test_changed_facts_give_a_reading_or_a_sentence_with_the_file(name, cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for path in CATALOG.paths:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(b"P5 1 1 255 a")
    file = FILES[name]()
    file.write(copy.deepcopy)
    assert not fault(file)
    draw = random.Random(name)
    wrong = []
    for case in range(cases):
        told: list[Any] = []

        def change(facts: Any, told: list[Any] = told) -> Any:
            told.append(changed(facts, draw))
            return told[-1]

        file.write(change)
        if found := fault(file):
            wrong.append(f"{case}: {found} of {str(told)[:300]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("epoch"), "KeyError"),
        (ValueError("bad"), "ValueError: 'bad'"),
        (ValueError("t.csv\x1b"), "ValueError"),
    ],
)
def test_the_checker_sees_a_foreign_error(error, said):
    def read():
        raise error

    assert fault(File(print, read, ("t.csv",))).startswith(said)


def test_fields_are_changed_at_every_depth():
    facts = {"a": {"b": [1, {"c": 2}]}, "d": 3}
    draw = random.Random(0)
    found = [changed(facts, draw) for _ in range(300)]
    assert facts == {"a": {"b": [1, {"c": 2}]}, "d": 3}
    assert any("d" not in one for one in found)
    assert any(one.get("a", {}) == {} for one in found if isinstance(one.get("a"), dict))
    deep = [
        one["a"]["b"]
        for one in found
        if isinstance(one.get("a"), dict) and isinstance(one["a"].get("b"), list)
    ]
    assert any(len(inner) > 1 and isinstance(inner[1], dict) and inner[1].get("c", 2) != 2 for inner in deep)
