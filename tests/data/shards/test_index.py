"""Reading from tar shards by offset: right bytes, tars that have changed, workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tercet.core.randomness import KeyedRow
from tercet.data.catalog.catalog import Catalog
from tercet.data.catalog.scan import scan_folder
from tercet.data.datasets.image_dataset import ImageDataset
from tercet.data.io.checked_json import with_checksum
from tercet.data.samplers.pk import PKSampler
from tercet.data.shards import index as index_module
from tercet.data.shards.index import ShardIndex
from tercet.data.shards.writing import write_shards
from tercet.data.streams.pk_stream import PKStream
from tercet.data.triplets.random import RandomTriplets
from tests.helpers import flip, photos, refusal_of


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A catalog and the folder of its shards; tests that change one copy it."""
    top = tmp_path_factory.mktemp("written")
    catalog = photos(top / "photos", sizes=(9, 7, 1, 8, 5))
    write_shards(top / "out", catalog, images_per_shard=6)
    return catalog, top / "out"


@pytest.fixture
def copied(written, tmp_path):
    shutil.copytree(written[1], tmp_path / "copy")
    return tmp_path / "copy"


def contents(catalog, rows):
    return [catalog.file(int(row)).read_bytes() for row in rows]


# Shards of our own


def test_the_index_is_the_catalog_in_its_order(written):
    catalog, folder = written
    index = ShardIndex(folder)
    assert index.catalog == catalog
    assert index.catalog.fingerprint == catalog.fingerprint
    assert len(index) == len(catalog)
    assert index.labels.tolist() == catalog.labels.tolist()
    assert index.classes == catalog.classes
    assert index.paths.tolist() == catalog.paths.tolist()
    assert index.groups["parent"].tolist() == catalog.groups["parent"].tolist()
    assert index.file(3).parent in index.tars
    assert repr(index) == f"ShardIndex({len(catalog)} images, 5 classes, {len(index.tars)} tars)"


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_rows_come_in_the_order_asked_whatever_is_coalesced(written, data):
    catalog, folder = written
    index = ShardIndex(folder)
    rows = data.draw(st.lists(st.integers(-len(catalog), len(catalog) - 1), max_size=40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "GAP", data.draw(st.sampled_from([-1, 0, 2000, 1 << 14])))
        patch.setattr(index_module, "RUN", data.draw(st.sampled_from([1, 4000, 1 << 24])))
        patch.setattr(index_module, "AHEAD", data.draw(st.sampled_from([0, 5000, 1 << 27])))
        assert index.read(rows) == contents(catalog, [row % len(catalog) for row in rows])


def test_neighbours_are_read_at_once_and_repeats_once(written, monkeypatch):
    catalog, folder = written
    index, reads, real = ShardIndex(folder), [], index_module.PositionalFile.pread
    monkeypatch.setattr(
        index_module.PositionalFile, "pread", lambda self, *args: (reads.append(args), real(self, *args))[1]
    )
    rows = np.flatnonzero(index._shard == 0)
    index.read(rows[:1])  # opens the tar, and compares a few headers
    reads.clear()
    assert index.read([*rows, *rows[::-1]]) == contents(catalog, [*rows, *rows[::-1]])
    assert len(reads) == 1
    monkeypatch.setattr(index_module, "GAP", -1)
    reads.clear()
    index.read(rows[::-1])
    assert len(reads) == len(rows)
    assert [start for start, _ in reads] == sorted(start for start, _ in reads)


def test_a_sampler_reads_its_classes_as_from_the_folder(written):
    catalog, folder = written
    index = ShardIndex(folder)
    with pytest.warns(UserWarning, match="left out 1 class"):
        sampler = PKSampler(index.labels, p=3, k=4, seed=1)
    with pytest.warns(UserWarning, match="left out 1 class"):
        same = PKSampler(catalog.labels, p=3, k=4, seed=1)
    for batch, rows in zip(sampler, same, strict=True):
        assert isinstance(batch[0], KeyedRow)
        assert batch == rows
        assert index.read(batch) == contents(catalog, rows)
        assert len({catalog.paths[row].rpartition("/")[0] for row in batch}) == 3
    triplets = RandomTriplets(index.labels)[:5]
    assert index.read(triplets.positive) == contents(catalog, triplets.positive)


def test_a_part_of_the_shards_keeps_its_classes_by_name(written):
    catalog, folder = written
    whole = ShardIndex(folder)
    index = ShardIndex([whole.tars[1]])
    rows = [row for row in range(len(whole)) if whole.file(row).parent == whole.tars[1]]
    assert index.paths.tolist() == catalog.paths[rows].tolist()
    named = [index.classes[label] for label in index.labels]
    assert named == [catalog.classes[label] for label in catalog.labels[rows]]
    assert index.read(range(len(index))) == contents(catalog, rows)


def test_rows_outside_are_refused(written):
    index = ShardIndex(written[1])
    for rows in ([len(index)], [-len(index) - 1], [0.5], ["a"]):
        with pytest.raises(IndexError, match=r"^ShardIndex.read: expected"):
            index.read(rows)
    assert index.read([]) == []


# Workers, threads, open files


def _read_in_process(index, rows, queue):
    queue.put((os.getpid(), index.read(rows)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes_read_in_parallel(written, method):
    catalog, folder = written
    index = ShardIndex(folder, max_open=1)
    index.read([0])  # what is open here must not disturb the others
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    parts = [list(range(start, len(index), 3)) for start in range(3)]
    index._lock.acquire()  # as a thread of the parent may hold it when the children are made
    try:
        workers = [
            context.Process(target=_read_in_process, args=(index, part, queue), daemon=True) for part in parts
        ]
        for worker in workers:
            worker.start()
        found = [queue.get(timeout=120) for _ in workers]
        for worker in workers:
            worker.join()
    finally:
        index._lock.release()
    assert len({process for process, _ in found}) == 3
    assert sorted(read for _, read in found) == sorted(contents(catalog, part) for part in parts)


def test_a_pickle_carries_no_handles(written):
    catalog, folder = written
    index = ShardIndex(folder)
    index.read([0, 1])
    copy = pickle.loads(pickle.dumps(index))
    assert copy._files == {}
    assert copy.catalog == catalog
    assert copy.read([5, 2]) == contents(catalog, [5, 2])


def open_files(folder):
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return sum(os.path.exists(link) and os.readlink(link).startswith(str(folder)) for link in links)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files by /proc")
def test_files_are_opened_late_and_at_most_so_many_at_a_time(copied, monkeypatch):
    index, most, real = ShardIndex(copied, max_open=2), [0], index_module.PositionalFile.pread

    def counting(self, *args):
        most.append(open_files(copied))
        return real(self, *args)

    monkeypatch.setattr(index_module.PositionalFile, "pread", counting)
    assert len(index.tars) > 3
    assert open_files(copied) == 0
    index.read(np.flatnonzero(index._shard == 0))
    assert open_files(copied) == 1
    index.read(range(len(index)))
    assert open_files(copied) == max(most) == 2
    del index
    assert open_files(copied) == 0


def test_threads_share_an_index_while_files_are_closed_under_them(written):
    catalog, folder = written
    index, wrong = ShardIndex(folder, max_open=1), []

    def work(seed):
        draw = np.random.default_rng(seed)
        for _ in range(60):
            rows = draw.integers(0, len(index), 8).tolist()
            if index.read(rows) != contents(catalog, rows):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Tars that have changed


@pytest.mark.parametrize(
    ("place", "said"), [(0, "its content is another"), (-512, "another header stands in its place")]
)
def test_a_changed_byte_is_noticed_where_it_is_read(copied, written, place, said):
    index = ShardIndex(copied)
    index.read([4])
    flip(index.file(4).parent, int(index._offset[4]) + place)
    message = refusal_of(index.read, [0, 4])
    assert f"{index.file(4).parent}: expected {index.file(4).name} as it was indexed, but {said}" in message
    assert "the tar has changed; restore it, or write the shards again" in message
    assert index.read([0, 3]) == contents(written[0], [0, 3])


@pytest.mark.parametrize("change", [lambda file: file.write(b"x"), lambda file: file.truncate(5120)])
def test_another_size_is_noticed_when_the_index_is_opened_and_when_the_file_is(copied, change):
    index = ShardIndex(copied)
    with open(index.tars[0], "ab") as file:
        change(file)
    row = int(np.flatnonzero(index._shard == 0)[0])
    for said in (refusal_of(index.read, [row]), refusal_of(ShardIndex, copied)):
        assert "bytes, as when it was indexed; it has changed to " in said
        assert said.endswith("; restore it, or write the shards again with overwrite=True or --overwrite")


def test_a_tar_changed_after_it_was_indexed(tmp_path):
    # As large as before, and with the same names: two images have changed places.
    for row in range(12):
        file = tmp_path / "photos" / str(row // 4) / f"{row}.pgm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"P5 2 1 255 " + bytes([row, 255]))
    index = write_shards(tmp_path / "shards", scan_folder(tmp_path / "photos"))
    loader = DataLoader(ImageDataset(index), batch_sampler=PKSampler(index.labels, 3, 4))
    assert sum(len(images) for images, _ in loader) == 12
    (tar,) = index.tars
    one, other = (int(index._offset[row]) for row in (1, 9))
    whole = bytearray(tar.read_bytes())
    whole[one : one + 13], whole[other : other + 13] = whole[other : other + 13], whole[one : one + 13]
    tar.write_bytes(whole)
    for opened in (index, ShardIndex(tmp_path / "shards")):  # neither gives an image with another's label
        dataset = ImageDataset(opened)
        loader = DataLoader(dataset, batch_sampler=PKSampler(index.labels, 3, 4))
        assert "the tar has changed; restore it, or write the shards again" in refusal_of(list, loader)


def test_a_tar_cut_while_it_is_open_gives_no_half_sample(copied):
    index = ShardIndex(copied)
    row = int(np.flatnonzero(index._shard == 0)[np.argmax(index._offset[index._shard == 0])])
    index.read([row])
    os.truncate(index.tars[0], int(index._offset[row]) + 1)
    assert "but the file ends before it" in refusal_of(index.read, [row])


def test_what_is_missing_is_named(copied, tmp_path):
    index = ShardIndex(copied)
    index.tars[1].unlink()
    row = int(np.flatnonzero(index._shard == 1)[0])
    assert "expected a tar to read; No such file" in refusal_of(index.read, [row])
    assert "every tar that" in refusal_of(ShardIndex, copied)
    (copied / "info.json").unlink()
    said = refusal_of(ShardIndex, copied)
    assert "the writing was interrupted; run write_shards again" in said
    assert "or shards were copied here: copy their info.json too" in said
    assert "an existing tar" in refusal_of(ShardIndex, [tmp_path / "no.tar"])
    assert "a folder with .tar files" in refusal_of(ShardIndex, tmp_path)
    assert "a folder of shards, a tar, or a list" in refusal_of(ShardIndex, 3)
    assert "a folder of shards, a tar, or a list" in refusal_of(ShardIndex, [])
    assert "a folder of shards, a tar, or a list" in refusal_of(ShardIndex, [3])
    (tmp_path / "a.tar").mkdir()
    assert "expected an existing tar; it is a folder" in refusal_of(ShardIndex, tmp_path)
    assert "expected an existing tar; it is a folder" in refusal_of(ShardIndex, [tmp_path / "a.tar"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image": 3}, 'ShardIndex(image=3): expected the extension of a member, such as "jpg"'),
        ({"image": "."}, "ShardIndex(image='.')"),
        ({"image": "json:image"}, "ShardIndex(image='json:image')"),
        ({"label": 3}, 'ShardIndex(label=3): expected the extension of a member, such as "cls", or a field'),
        ({"label": "json:"}, "ShardIndex(label='json:')"),
        ({"write_index": "no"}, "ShardIndex(write_index='no'): expected True or False"),
        ({"progress": "no"}, "ShardIndex(progress='no'): expected True or False"),
    ],
)
def test_options_of_another_kind_are_refused(copied, options, said, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    assert said in refusal_of(ShardIndex, copied, **options)


@pytest.mark.parametrize("reader", [ShardIndex, lambda source, **options: PKStream(source, 2, 2, **options)])
def test_an_unfinished_split_beside_a_finished_one_is_not_passed_over(copied, written, tmp_path, reader):
    write_shards(copied, written[0], split="val")
    info = json.loads((copied / "info.json").read_text())
    del info["splits"]["train"], info["tercet"]["train"]
    (copied / "info.json").write_text(json.dumps(info))
    said = refusal_of(reader, copied)
    assert "(split=None): expected a split, since info.json in " in said
    assert "train-000000.tar; 'train' was interrupted; pass split='val', or run write_shards again" in said
    assert reader(copied, split="val")
    for file in copied.glob("train-*.index.parquet"):  # then they may be anyone's
        file.write_bytes(b"PAR1")
    assert reader(copied)


def test_shards_and_info_of_two_runs_are_refused(copied, written, tmp_path):
    write_shards(tmp_path / "other", written[0], images_per_shard=6, seed=1)
    for name in ("train-000000.tar", "train-000000.index.parquet"):
        shutil.copy(tmp_path / "other" / name, copied / name)
    assert "shards and info.json of one run" in refusal_of(ShardIndex, copied)


@pytest.mark.parametrize(
    "text",
    [
        *["", "{", '{"splits": 3}', '{"splits": {"train": {}}}', "[]", "{}", '{"splits": {}}'],
        *['{"splits": {"train": {"filenames": "a.tar"}}}', '{"splits": {"train": {"filenames": [1]}}}'],
        '{"splits": {"train": {"filenames": []}, "val": 3}}',
    ],
)
def test_a_damaged_info_is_refused(copied, text):
    (copied / "info.json").write_text(text)
    said = refusal_of(ShardIndex, copied)
    assert "expected splits with their filenames; pass a list of tars to do without" in said


def test_classes_keep_their_numbers_whichever_way_the_tars_are_passed(written, tmp_path):
    catalog = written[0].select(np.isin(written[0].labels, [2, 3, 4]))
    folder = tmp_path / "out"
    index = write_shards(folder, catalog, images_per_shard=6)
    assert set(index.labels.tolist()) == {2, 3, 4}
    for tars in (folder, index.tars, index.tars[::-1]):
        found = ShardIndex(tars)
        assert found.catalog == catalog
    part = ShardIndex(index.tars[1])
    assert part.classes == catalog.classes
    assert part.labels.tolist() == [catalog.labels[catalog.paths == path][0] for path in part.paths]

    # another program's info.json lists them too
    listed = {"splits": {"train": {"filenames": [tar.name for tar in index.tars]}}}
    ours = (folder / "info.json").read_text()
    (folder / "info.json").write_text(json.dumps(listed))
    for tars in (folder, index.tars):
        said = refusal_of(ShardIndex, tars)
        assert "expected the info.json that was written with it in its folder: it numbers the cl" in said
    (folder / "info.json").write_text(ours)

    write_shards(folder, written[0].select(np.isin(written[0].labels, [0, 1])), split="val")
    two = ShardIndex(sorted(folder.glob("*.tar")))
    assert two.classes == catalog.classes
    assert set(two.labels.tolist()) == {0, 1, 2, 3, 4}
    renamed = type(catalog)(catalog.paths, catalog.labels, list("edcba"), root=catalog.root)
    write_shards(folder, renamed, split="other")
    assert "shards of one list of classes" in refusal_of(ShardIndex, sorted(folder.glob("*.tar")))
    (folder / "train-000000.index.parquet").unlink()
    assert "expected the index of write_shards beside it" in refusal_of(ShardIndex, index.tars)


def test_a_folder_may_be_called_like_an_address(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("run:3")
    write_shards("run:3/out", written[0])
    assert ShardIndex("run:3/out").catalog == written[0]


@pytest.mark.parametrize("damage", [b"", b"PAR1 and no more", None])
def test_a_damaged_index_is_refused(copied, damage):
    file = copied / "train-000000.index.parquet"
    file.write_bytes(file.read_bytes()[:-9] if damage is None else damage)
    said = refusal_of(ShardIndex, copied)
    assert "restore it, or write the shards again with overwrite=True" in said
    assert "beside a tar of another program delete it, and the tar is scanned instead" in said


def test_the_index_of_written_shards_is_not_overwritten_by_a_scan(copied):
    before = (copied / "train-000000.index.parquet").read_bytes()
    tar = copied / "train-000000.tar"
    for keep in (True, False):
        for option in ({"label": "cls"}, {"image": "jpg"}):
            said = refusal_of(ShardIndex, tar, **option, write_index=keep)
            assert "image and label are for tars of other programs; leave it out" in said
    assert "write the shards again" not in refusal_of(ShardIndex, copied, image="jpg")
    assert len(ShardIndex(tar, write_index=True))
    assert (copied / "train-000000.index.parquet").read_bytes() == before


def test_a_class_that_info_json_does_not_list_is_refused(tmp_path):
    catalog = Catalog(["a/1.png", "b/1.png"], [0, 1], ["a", "b"], root=tmp_path)
    for path in catalog.paths:
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_bytes(b"P5 1 1 255 a")
    write_shards(tmp_path / "shards", catalog, k=2)
    info = tmp_path / "shards" / "info.json"
    facts = json.loads(info.read_text())
    run = {name: fact for name, fact in facts["tercet"]["train"].items() if name != "crc32"}
    facts["tercet"]["train"] = with_checksum({**run, "classes": ["a", "c"]})
    info.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"expected shards of the classes that info.json lists, and 'b' is"):
        ShardIndex(tmp_path / "shards")
