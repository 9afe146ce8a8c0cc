"""Links that somebody planted at names that a run writes to, locks or marks: none is followed.

Each of the names was followed once: the file that the link led to was emptied, written over or made.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading

import pytest

from tercet.data.catalog.catalog import Catalog
from tercet.data.io.journal import JOURNAL
from tercet.data.shards.index import ShardIndex
from tercet.data.shards.writing import write_shards

RUN = f"{os.getpid()}-{threading.main_thread().ident}"  # what temporary names of this process had in them


@pytest.fixture
def catalog(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for row in range(3):
        (photos / f"{row}.jpg").write_bytes(b"image")
    return Catalog([f"{row}.jpg" for row in range(3)], [0, 0, 1], ["a", "b"], root=photos)


@pytest.fixture
def tars(tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "s.tar", "w") as tar:
        for suffix in ("jpg", "cls"):
            member = tarfile.TarInfo(f"0.{suffix}")
            member.size = 1
            tar.addfile(member, io.BytesIO(b"1"))
    return folder


def planted(folder, names, victim):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).symlink_to(victim)


def tried(work):
    """The sentence of a refusal, "" where there was none."""
    try:
        work()
    except (OSError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize(
    "names",
    [
        [f".c.csv.{RUN}.unfinished"],
        [JOURNAL],
        ["c.csv"],
    ],
)
def test_links_where_a_table_is_written(catalog, tmp_path, names, present):
    victim = tmp_path / "victim"
    if present:
        victim.write_text("precious")
    planted(tmp_path / "out", names, victim)
    said = tried(lambda: catalog.write(tmp_path / "out" / "c.csv", overwrite=True))
    assert victim.exists() == present
    assert not present or victim.read_text() == "precious"
    assert bool(said) == (names == [JOURNAL])
    assert not said or "expected a file that tercet made there, or none" in said


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize(
    ("names", "refused"),
    [
        ([".train.lock", ".info.json.lock"], False),  # what locks were called
        ([".train.tercet.lock"], True),
        ([".info.json.tercet.lock"], True),
        ([".train.overwriting"], True),
        ([JOURNAL], True),
        (["train-000000.tar"], True),
        (["train-000000.index.parquet"], True),
        ([f".info.json.{RUN}.unfinished"], False),
        (["info.json"], True),
    ],
)
def test_links_where_shards_are_written(catalog, tmp_path, names, refused, present):
    victim = tmp_path / "victim"
    if present:
        victim.write_text("precious")
    planted(tmp_path / "out", names, victim)
    said = tried(lambda: write_shards(tmp_path / "out", catalog, workers=1))
    assert victim.exists() == present
    assert not present or victim.read_text() == "precious"
    if present or "json" not in names[0]:
        assert bool(said) == refused, said


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize(
    "name",
    [f".s.index.parquet.{RUN}.unfinished", "s.index.parquet", JOURNAL],
    ids=["temporary", "index", "journal"],
)
def test_links_where_an_index_is_kept(tars, tmp_path, name, present):
    victim = tmp_path / "victim"
    if present:
        victim.write_text("precious")
    planted(tars, [name], victim)
    tried(lambda: ShardIndex(tars, write_index=True))
    assert victim.exists() == present
    assert not present or victim.read_text() == "precious"


def test_indexing_removes_what_a_killed_run_left(tars):
    (tars / ".s.index.parquet.0123456789abcdef.unfinished").write_bytes(b"half")
    ShardIndex(tars, write_index=True)
    assert sorted(file.name for file in tars.iterdir()) == ["s.index.parquet", "s.tar"]
    (tars / JOURNAL).touch()  # of a run that was killed when its last index had its name
    ShardIndex(tars, write_index=True)
    assert sorted(file.name for file in tars.iterdir()) == ["s.index.parquet", "s.tar"]
