"""Arrays of a block come back as they were, or not at all; embeddings of any kind come back from a file."""

import os

import numpy as np
import pytest
import torch

from tercet.offline.block_files import as_file, chunks_of, read_block, write_block


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.float32, np.float64])
def test_arrays_come_back(tmp_path, kind):
    arrays = [np.arange(12, dtype=kind).reshape(3, 4), np.zeros((3, 0), kind), np.ones(0, np.float32)]
    write_block(tmp_path / "x.block", "x", arrays)
    found = read_block(tmp_path / "x.block", "x")
    for one, other in zip(arrays, found, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert np.array_equal(one, other)


def test_any_byte_that_is_changed_or_cut_is_noticed(tmp_path):
    file = tmp_path / "x.block"
    write_block(file, "x", [np.arange(3)])
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert read_block(file, "x") is None
        file.write_bytes(whole[:place])
        assert read_block(file, "x") is None
    file.write_bytes(whole)
    assert read_block(file, "y") is None
    assert read_block(tmp_path / "y.block", "x") is None
    assert read_block(tmp_path, "x") is None


@pytest.mark.parametrize("kind", ["map", "view", "array", "half", "bfloat16", "by columns"])
def test_embeddings_of_any_kind_are_opened_elsewhere(tmp_path, kind):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float16).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    opened = np.load(tmp_path / "x.npy", mmap_mode="r")
    given = {
        "map": opened,
        "view": opened[5:],
        "array": x,
        "half": torch.from_numpy(x).half(),
        "bfloat16": torch.from_numpy(x).bfloat16(),
        "by columns": np.asfortranarray(x),
    }[kind]
    (tmp_path / "work").mkdir()
    file = as_file(given, tmp_path / "work")
    assert (file.path == str(tmp_path / "x.npy")) == (kind == "map")
    expected = given.float().numpy() if isinstance(given, torch.Tensor) else given
    assert np.array_equal(file.opened(), expected)
    assert as_file(given, tmp_path / "work") == file
    assert b"".join(chunks_of(given)) == b"".join(chunks_of(given))


def test_a_file_that_was_changed_is_refused(tmp_path):
    file = as_file(np.eye(3), tmp_path)
    os.utime(file.path, (1, 1))
    with pytest.raises(ValueError, match="expected a file that stays as it is while it is mined"):
        file.opened()


def test_chunks_are_the_bytes_of_the_numbers():
    x = np.random.default_rng(0).normal(size=(70, 5))
    assert b"".join(chunks_of(x)) == x.tobytes()
    assert b"".join(chunks_of(x.T)) == np.ascontiguousarray(x.T).tobytes()
    assert b"".join(chunks_of(torch.from_numpy(x))) == x.tobytes()
