"""Manifests are published as sets: whole for every reader, whoever is killed, and of one split."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from functools import partial

import pyarrow as pa
import pytest

from tercet.data.catalog.catalog import Catalog
from tercet.data.catalog.split import train_validation_split
from tercet.data.io.atomic import atomically_together, remove_leftovers
from tercet.data.io.journal import JOURNAL, pending_names
from tercet.data.manifests import reading
from tercet.data.manifests.formats import FORMATS, TEXT_FORMATS
from tercet.data.manifests.manifest import read_manifest
from tercet.data.manifests.provenance import sidecar
from tercet.data.manifests.writing import ManifestPart, write_manifest, write_manifests
from tercet.data.triplets.random import RandomTriplets
from tests.contracts.killing import killed_at
from tests.helpers import contents, names, refusal_of

PATHS = [f"{label}/{n}.png" for label in ("ant", "bee", "cat") for n in range(20)]
CATALOG = Catalog(PATHS, [n // 20 for n in range(60)], ["ant", "bee", "cat"])


def of_seed(seed):
    return RandomTriplets(CATALOG.labels, 1, 1, seed)


def rows(sequence):
    return [column.tolist() for column in sequence[:]]


def seed_of(read):
    return read.provenance["parameters"]["seed"]


def split_parts(target, seed):
    """The parts of a split, as the command makes them."""
    parts = []
    for name, chosen in zip(
        ("train", "validation"), train_validation_split(CATALOG.labels, 0.25, seed), strict=True
    ):
        images = CATALOG.select(chosen)
        law = {"by": "image", "fraction": 0.25, "seed": seed, "of": CATALOG.fingerprint}
        path = target if name == "train" else target.with_suffix(f".validation{target.suffix}")
        triplets = RandomTriplets(images.labels, 1, 1, seed)
        parts.append(ManifestPart(path, triplets, images, {"split": {"part": name, **law}}))
    return parts


# Killed


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_split_killed_at_any_renaming_is_seen_whole_and_the_same_command_ends_well(tmp_path, overwrite):
    """Nothing, or the old split, or the new one; then the next run gives the bytes of an unbroken one."""
    (tmp_path / "whole").mkdir()
    write_manifests(split_parts(tmp_path / "whole" / "t.csv", 1))
    whole = contents(tmp_path / "whole")
    for step in range(1, 40):
        folder = tmp_path / str(step)
        folder.mkdir()
        target = folder / "t.csv"
        if overwrite:
            write_manifests(split_parts(target, 0))
        code = killed_at(step, lambda to=target: write_manifests(split_parts(to, 1), overwrite=overwrite))
        if not overwrite and not pending_names(folder) and code:
            assert not target.exists() or names(folder)[-4:] == sorted(whole)
        else:
            seeds = [
                read_manifest(path).provenance["split"]["seed"]
                for path in (target, folder / "t.validation.csv")
            ]
            assert seeds in ([0, 0], [1, 1])
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if overwrite or pending_names(folder) or not target.exists():
            write_manifests(split_parts(target, 1), overwrite=overwrite)
        else:  # the killed run was through, but for the removing of its journal
            assert "it exists" in refusal_of(write_manifests, split_parts(target, 1))
        assert contents(folder) == whole
    assert code == 0
    assert step > 8


@pytest.mark.parametrize("suffix", TEXT_FORMATS)
def test_a_text_manifest_killed_between_it_and_its_json_is_written_by_the_same_command(tmp_path, suffix):
    """`t.csv` alone under its final name was taken for another program's, and the second run was refused."""
    target = tmp_path / f"t{suffix}"
    for step in range(1, 40):
        killed_at(step, lambda: write_manifest(target, of_seed(0), CATALOG))
        if target.exists() and not sidecar(target).exists():
            break
        write_manifest(target, of_seed(0), CATALOG, overwrite=True)
        target.unlink()
        sidecar(target).unlink()
    else:
        pytest.fail("no kill between the two renamings")
    assert rows(read_manifest(target)) == rows(of_seed(0))  # through the journal
    assert read_manifest(target).provenance["strategy"] == "random"
    write_manifest(target, of_seed(0), CATALOG)
    assert names(tmp_path) == sorted([target.name, sidecar(target).name])


def test_another_run_in_the_folder_removes_what_a_killed_one_left(tmp_path):
    for step in range(1, 40):
        killed_at(step, lambda: write_manifest(tmp_path / "t.csv", of_seed(0), CATALOG))
        if pending_names(tmp_path):
            break
    CATALOG.write(tmp_path / "catalog.csv")
    assert names(tmp_path) == ["catalog.csv"]


# Read while it is overwritten


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_reader_during_an_overwrite_sees_one_run(tmp_path, monkeypatch, suffix):
    """The files are replaced before or after one of the reader's openings, each in turn."""
    target = tmp_path / f"t{suffix}"
    wanted = {seed: rows(of_seed(seed)) for seed in (0, 1)}
    openings = [getattr(reading, name) for name in ("open_arrow", "open_plain", "read_sidecar", "read_paths")]
    seen = []
    for moment in range(1, 2 * len(openings) + 1):
        write_manifest(target, of_seed(0), CATALOG, overwrite=True)
        left = [moment]

        def overwritten(to=target, left=left):
            left[0] -= 1
            if not left[0]:
                write_manifest(to, of_seed(1), CATALOG, overwrite=True)

        def opened(real, *args, between=overwritten):
            between()
            result = real(*args)
            between()
            return result

        with monkeypatch.context() as patch:
            for real in openings:
                patch.setattr(reading, real.__name__, partial(opened, real))
            read = read_manifest(target)
        seen.append(seed_of(read))
        assert rows(read) == wanted[seen[-1]]
    assert 1 in seen
    assert rows(read_manifest(target)) == wanted[1 if left[0] <= 0 else 0]


@pytest.mark.parametrize("suffix", [".csv", ".arrow", ".parquet"])
def test_readers_beside_a_run_that_overwrites_see_one_run(tmp_path, suffix):
    target = tmp_path / f"t{suffix}"
    wanted = {seed: rows(of_seed(seed)) for seed in range(8)}
    write_manifest(target, of_seed(0), CATALOG)
    done = threading.Event()

    def write():
        for seed in range(1, 8):
            write_manifest(target, of_seed(seed), CATALOG, overwrite=True)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = []
    while not (done.is_set() and len(seen) > 3):
        read = read_manifest(target)
        seen.append(seed_of(read))
        assert rows(read) == wanted[seen[-1]]
    thread.join()
    assert seen == sorted(seen)
    assert seed_of(read_manifest(target)) == 7


def test_a_file_that_is_replaced_all_the_time_is_refused(tmp_path, monkeypatch):
    write_manifest(tmp_path / "t.csv", of_seed(0), CATALOG)

    def replaced(*given):
        shutil.copy(tmp_path / "t.csv", tmp_path / "copy")
        os.replace(tmp_path / "copy", tmp_path / "t.csv")
        return real(*given)

    real = reading.read_paths
    monkeypatch.setattr(reading, "read_paths", replaced)
    assert "expected a file that stays as it is while it is read" in refusal_of(
        read_manifest, tmp_path / "t.csv"
    )


@pytest.mark.parametrize("late", ["open_plain", "read_sidecar"])
def test_a_set_that_gets_its_names_while_it_is_read_is_read_again(tmp_path, monkeypatch, late):
    """Renamed, a file is the same, and no longer where the journal had it: it must not pass for missing."""
    for step in range(1, 40):
        write_manifest(tmp_path / "t.csv", of_seed(0), CATALOG, overwrite=True)
        killed_at(step, lambda: write_manifest(tmp_path / "t.csv", of_seed(1), CATALOG, overwrite=True))
        if len(pending_names(tmp_path)) == 2 and all(
            (tmp_path / name).exists() for name in pending_names(tmp_path).values()
        ):
            break
    real = getattr(reading, late)

    def settled_first(*args):
        remove_leftovers(tmp_path)
        return real(*args)

    monkeypatch.setattr(reading, late, settled_first)
    assert seed_of(read_manifest(tmp_path / "t.csv")) == 1
    assert names(tmp_path) == ["t.csv", "t.csv.json"]


# Two runs side by side


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kept", ["train", "validation"])
def test_parts_of_two_splits_beside_each_other_are_refused(tmp_path, suffix, kept):
    """Of seeds 0 and 1, images for training would be among those for validation."""
    files = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        files.append(split_parts(tmp_path / str(seed) / f"t{suffix}", seed))
        write_manifests(files[-1])
    for part in files[1]:
        if part.provenance["split"]["part"] != kept:
            for name in {part.path, sidecar(part.path)}:
                if name.exists():
                    shutil.copy(name, tmp_path / "0")
    target, validation = (part.path for part in files[0])
    seeds = ("1", "0") if kept == "train" else ("0", "1")
    for path, other, (here, there) in ((target, validation, seeds[::-1]), (validation, target, seeds)):
        said = refusal_of(read_manifest, path)
        assert f"expected the split of {other.name} beside it" in said
        assert "images of one may be in the other; write both with one command" in said
        assert f"that is of seed {there}, this of seed {here}" in said
    validation.unlink()
    assert read_manifest(target).provenance["split"]["part"] == "train"  # alone it shares nothing


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_part_of_a_split_is_not_replaced_by_all_images(tmp_path, suffix):
    target = tmp_path / f"t{suffix}"
    write_manifests(split_parts(target, 0))
    before = contents(tmp_path)
    said = refusal_of(write_manifest, target, of_seed(0), CATALOG, overwrite=True)
    assert (
        f"expected the split of t.validation{suffix} beside it; that is of a split, and this is not" in said
    )
    assert contents(tmp_path) == before
    write_manifests(split_parts(target, 1), overwrite=True)
    assert read_manifest(target).provenance["split"]["seed"] == 1


def test_a_manifest_of_another_program_beside_a_part_is_let_be(tmp_path):
    write_manifests(split_parts(tmp_path / "t.csv", 0))
    sidecar(tmp_path / "t.validation.csv").unlink()
    assert read_manifest(tmp_path / "t.csv").provenance["split"]["part"] == "train"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_damaged_part_beside_it_does_not_condemn_a_manifest(tmp_path, monkeypatch, suffix):
    """It is refused where it is read; a changed seed in it does not make it the part of another split."""
    target, validation = (part.path for part in split_parts(tmp_path / f"t{suffix}", 0))
    write_manifests(split_parts(target, 0))
    where = sidecar(validation) if suffix in TEXT_FORMATS else validation
    content = where.read_bytes()
    changed = re.sub(rb'("split": \{[^}]*"seed": )0', rb"\g<1>7", content)
    assert changed != content
    where.write_bytes(changed)
    assert len(read_manifest(target)) > 0

    def damaged(*_):
        raise pa.ArrowNotImplementedError("of a type that a flipped bit made")

    monkeypatch.setattr("tercet.data.manifests.provenance._record", damaged)
    assert len(read_manifest(target)) > 0
    write_manifest(target, of_seed(0), CATALOG, overwrite=True)


# A folder in the way


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("made", ["t", "json", "validation"])
def test_a_folder_at_a_name_of_the_set_is_refused_before_anything_is_written(
    tmp_path, suffix, overwrite, made
):
    if made == "json" and suffix not in TEXT_FORMATS:
        return
    folder = {"t": f"t{suffix}", "json": f"t{suffix}.json", "validation": f"t.validation{suffix}"}[made]
    (tmp_path / folder).mkdir()
    said = refusal_of(write_manifests, split_parts(tmp_path / f"t{suffix}", 0), overwrite=overwrite)
    assert "folder" in said
    assert names(tmp_path) == [folder]


@pytest.mark.parametrize("overwrite", ["no", "", 1, None])
def test_overwrite_is_a_flag(tmp_path, monkeypatch, overwrite):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    write_manifest(tmp_path / "t.csv", of_seed(0), CATALOG)
    before = contents(tmp_path)
    for write in (
        lambda: write_manifest(tmp_path / "t.csv", of_seed(1), CATALOG, overwrite=overwrite),
        lambda: CATALOG.write(tmp_path / "t.csv", overwrite=overwrite),
    ):
        assert "expected True or False" in refusal_of(write)
    assert contents(tmp_path) == before


def test_two_runs_at_once_one_is_refused(tmp_path):
    """Both looked when nothing was there; the second to finish must not replace the first."""
    target = tmp_path / "t.csv"

    class Slow:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            write_manifest(target, of_seed(0), CATALOG)
            return of_seed(1)[index]

    with pytest.raises(FileExistsError, match="another run has written it meanwhile"):
        write_manifest(target, Slow(), CATALOG)
    assert rows(read_manifest(target)) == rows(of_seed(0))
    assert names(tmp_path) == ["t.csv", "t.csv.json"]


# Links that others planted


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_link_at_the_name_of_a_manifest_or_its_json_is_not_followed(tmp_path, suffix):
    (tmp_path / "f").mkdir()
    target, victim = tmp_path / "f" / f"t{suffix}", tmp_path / "victim"
    victim.write_text("precious")
    for name in (target, sidecar(target)):
        name.symlink_to(victim)
    assert "it exists" in refusal_of(write_manifest, target, of_seed(0), CATALOG)
    write_manifest(target, of_seed(0), CATALOG, overwrite=True)
    assert victim.read_text() == "precious"
    assert not target.is_symlink()


def test_a_journal_that_others_planted_leads_nowhere_else(tmp_path):
    """A reader opens no link for the temporary file that a journal lists."""
    write_manifest(tmp_path / "t.csv", of_seed(0), CATALOG)
    folder = tmp_path / "f"
    folder.mkdir()
    code = 0
    for step in range(1, 40):
        code = killed_at(step, lambda: write_manifest(folder / "t.csv", of_seed(1), CATALOG))
        if pending_names(folder):
            break
    assert code == -signal.SIGKILL
    for name, temporary in pending_names(folder).items():
        (folder / temporary).unlink()
        (folder / temporary).symlink_to(tmp_path / name)
        (folder / name).unlink(missing_ok=True)
    assert json.loads((folder / JOURNAL).read_text())["order"] == "new"
    assert "expected an existing file" in refusal_of(read_manifest, folder / "t.csv")
    with atomically_together([folder / "other"]) as (file,):
        file.write_text("")
    assert names(folder) == ["other"]
    assert rows(read_manifest(tmp_path / "t.csv")) == rows(of_seed(0))
