"""A flipped bit or a cut anywhere in a file that tercet wrote: right data or a sentence, never other rows.

Each kind of file is one function that writes it and one that reads it back as plain values. A chunk of cases
is read in a process of its own, so that a crash is one failed case and not the end of the run.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import random
import shutil
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tercet.data.catalog.catalog import Catalog
from tercet.data.catalog.table import read_catalog
from tercet.data.io.tables import write_columns
from tercet.data.manifests.formats import FORMATS, TEXT_FORMATS
from tercet.data.manifests.manifest import read_manifest
from tercet.data.manifests.writing import write_manifest
from tercet.data.samplers.pk import PKSampler
from tercet.data.shards.index import ShardIndex
from tercet.data.shards.writing import write_shards
from tercet.data.streams.pk_stream import PKStream
from tercet.data.triplets.pairs import RandomPairs
from tercet.data.triplets.random import RandomTriplets
from tercet.data.triplets.relevance import TableRelevance
from tercet.offline.embed import embed
from tercet.offline.embeddings import read_embeddings

N = 40
CATALOG = Catalog(
    [f"class {n // 4}/é {n}.png" for n in range(N)],
    np.arange(N) // 4,
    [f"class {n}" for n in range(N // 4)],
    {"camera": np.arange(N) % 3, "day": np.array([f"day {n % 5}" for n in range(N)], dtype=object)},
)


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        write: into an empty folder.
        read: what the folder says, as values that compare.
        files: which files of the folder are damaged.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: str


def _manifest(suffix: str, sequence: Any) -> Kind:
    def read(folder: Path) -> Any:
        found = read_manifest(folder / f"t{suffix}", root="x")
        rows = [column.tolist() for column in found[:]]
        return found.kind, rows, found.provenance, found.catalog.fingerprint

    files = f"t{suffix}*" if suffix in TEXT_FORMATS else f"t{suffix}"
    return Kind(lambda folder: write_manifest(folder / f"t{suffix}", sequence, CATALOG), read, files)


def _table(write: Callable[[Path], None], read: Callable[[Path], Any]) -> Kind:
    return Kind(lambda folder: write(folder / "t.parquet"), lambda folder: read(folder / "t.parquet"), "*")


def _relevance(path: Path) -> Any:
    table = TableRelevance.read(path)
    return table.of(np.arange(N), np.arange(N)).tolist()


SMALL = Catalog(
    [f"c{n // 4}/{n}.pgm" for n in range(8)], np.arange(8) // 4, ["c0", "c1"], {"day": np.arange(8)}
)


def _write_shards(folder: Path) -> None:
    for number, name in enumerate(SMALL.paths):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "photos" / name).write_bytes(b"P5 2 1 255 " + bytes([number, 255 - number]))
    write_shards(folder / "shards", replace(SMALL, root=folder / "photos"), images_per_shard=4, workers=1)
    shutil.rmtree(folder / "photos")


def _read_at_random(folder: Path) -> Any:
    index = ShardIndex(folder / "shards")
    groups = {name: values.tolist() for name, values in index.groups.items()}
    rows = index.paths.tolist(), index.labels.tolist(), index.classes, groups
    return rows, index.read(range(len(index)))


def _read_through(folder: Path) -> Any:
    stream = PKStream(folder / "shards", 2, 2, return_keys=True)
    return [(images.tolist(), labels.tolist(), keys) for images, labels, keys in stream]


def _state(sampler: Any) -> Kind:
    def read(folder: Path) -> Any:
        try:
            state = json.loads((folder / "state.json").read_text("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:  # the user's own reading
            raise ValueError("no JSON") from error
        other = copy.deepcopy(sampler)
        other.load_state_dict(state)
        return other.state_dict(), [list(map(list, other)) for _ in range(2)]

    state = json.dumps(sampler.state_at(3, 2))
    return Kind(lambda folder: (folder / "state.json").write_text(state), read, "*")


def _mean(images: Any) -> Any:
    return images.mean((2, 3))


def _embed(folder: Path) -> None:
    catalog = replace(SMALL, root=folder / "photos")
    for number, name in enumerate(SMALL.paths):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "photos" / name).write_bytes(b"P5 2 1 255 " + bytes([number, 255 - number]))
    embed(_mean, catalog, folder / "e.npy", size=2)


def _embedded(folder: Path) -> Any:
    found = read_embeddings(folder / "e.npy")
    return found.array.tobytes(), found.catalog.fingerprint, found.facts


SHARD_FILES = ("*.tar", "*.index.parquet", "info.json")
PAIRS = {"i": np.arange(N - 1), "j": np.arange(1, N), "r": np.linspace(0, 1, N - 1)}
KINDS = {
    "catalog.parquet": _table(
        lambda path: replace(CATALOG, root=path.parent).write(path),
        lambda path: read_catalog(path).fingerprint,
    ),
    "relevance.parquet": _table(lambda path: write_columns(PAIRS, path), _relevance),
    **{f"embeddings, {files}": Kind(_embed, _embedded, files) for files in ("e.*", "e.npy.json", "e.cat*")},
    "state.json": _state(PKSampler(CATALOG.labels, p=5, k=2, seed=3)),
    **{f"shards, {files}": Kind(_write_shards, _read_at_random, files) for files in SHARD_FILES},
    **{f"stream, {files}": Kind(_write_shards, _read_through, files) for files in SHARD_FILES},
    **{f"triplets{suffix}": _manifest(suffix, RandomTriplets(CATALOG.labels, 2, 2)) for suffix in FORMATS},
    **{f"pairs{suffix}": _manifest(suffix, RandomPairs(CATALOG.labels, 2, 2)) for suffix in FORMATS},
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one bit flipped or, one time in eight, cut short."""
    place = rng.randrange(len(content))
    if rng.randrange(8) == 0:
        return content[:place]
    changed = bytearray(content)
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _outcome(kind: Kind, folder: Path, right: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = kind.read(folder)
        except (ValueError, TypeError, OSError) as error:
            ours = type(error) in (ValueError, TypeError) or isinstance(error, OSError)
            return "sentence" if ours and "\n" not in str(error) else f"raw: {error!r}"
        except BaseException:
            return f"raw: {traceback.format_exc(limit=-3)}"
    return "right" if found == right else f"wrong: {found!r}"


def _chunk(name: str, folder: Path, seeds: range, told: Any) -> None:
    """In a process of its own: the outcome of each seed, one after another."""
    kind = KINDS[name]
    right = kind.read(folder)
    files = sorted(file for file in folder.rglob(kind.files) if file.is_file())
    contents = [file.read_bytes() for file in files]
    for seed in seeds:
        rng = random.Random(seed)
        number = rng.choices(range(len(files)), [len(content) for content in contents])[0]
        files[number].write_bytes(damaged(contents[number], rng))
        told.send(f"{files[number].name} {seed}: {_outcome(kind, folder, right)}")
        files[number].write_bytes(contents[number])


def outcomes(name: str, folder: Path, seeds: range) -> list[str]:
    """The outcome of each seed; a crash is one, and those after it are made by another process."""
    found: list[str] = []
    context = multiprocessing.get_context("fork")
    while len(found) < len(seeds):
        place = folder.with_name(f"copy {len(found)}")
        shutil.copytree(folder, place)
        receive, told = context.Pipe(duplex=False)
        process = context.Process(target=_chunk, args=(name, place, seeds[len(found) :], told))
        process.start()
        told.close()
        try:
            while True:
                found.append(receive.recv())
        except EOFError:
            process.join()
        if process.exitcode:
            found.append(f"seed {seeds[len(found)]}: crash: exit code {process.exitcode}")
        shutil.rmtree(place)
    return found


@pytest.mark.parametrize("cases", [6, pytest.param(1_000, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_or_a_cut_gives_right_data_or_a_sentence(tmp_path, name, cases):
    folder = tmp_path / "whole"
    folder.mkdir()
    KINDS[name].write(folder)
    found = outcomes(name, folder, range(cases))
    counts = Counter(one.partition(": ")[2].partition(":")[0] for one in found)
    print(name, dict(counts))
    bad = [one for one in found if not one.endswith((": right", ": sentence"))]
    assert not bad, bad[0]
    assert counts["sentence"] > 0
