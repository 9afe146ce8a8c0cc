"""A file open at offsets, plain or .npy: what is read, and what is refused with a sentence."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest

from tercet.core.checks import border
from tercet.data.io.positional import NpyFile, PositionalFile
from tercet.data.triplets.relevance import TeacherRelevance


@pytest.fixture
def handle(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(100)))
    return PositionalFile(tmp_path / "file", "a file to read")


def test_ranges_are_read_alone_and_together(handle):
    handle.prefetch([(0, 10), (90, 20)])
    assert handle.size == 100
    assert bytes(handle.pread(3, 4)) == bytes([3, 4, 5, 6])
    assert handle.gather([(5, 2), (0, 1), (98, 2)]) == bytes([5, 6, 0, 98, 99])


def test_less_comes_where_the_file_ends(handle):
    assert bytes(handle.pread(98, 10)) == bytes([98, 99])
    assert handle.gather([(98, 10), (200, 5)]) == bytes([98, 99])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_that_would_close_another_file_is_refused(handle, copied):
    with pytest.raises(TypeError, match="an open file cannot be copied or sent to another process"):
        copied(handle)


def test_no_such_file(tmp_path):
    with pytest.raises(ValueError, match=r"expected a file to read; No such file"):
        PositionalFile(tmp_path / "gone", "a file to read")


# .npy files


X = np.random.default_rng(0).normal(size=(50, 7))


def opened(path):
    with border("TeacherRelevance", "embeddings"):
        return NpyFile(path)


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int8, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_rows_are_those_of_numpy(tmp_path, kind, order, version):
    array = np.asarray(X * 10).astype(kind, order=order)
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array(file, array, version)
    found = opened(tmp_path / "x.npy")
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    for rows in (slice(0, 50), slice(3, 4), slice(40, 90), slice(5, 5)):
        np.testing.assert_array_equal(found[rows], array[rows])


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_cut_while_it_is_read_is_a_sentence_and_no_signal(tmp_path, order):
    np.save(tmp_path / "x.npy", np.asarray(np.tile(X, (1000, 1)), order=order))
    found = opened(tmp_path / "x.npy")
    found[0:10]
    os.truncate(tmp_path / "x.npy", 10_000)
    with (
        pytest.raises(
            ValueError, match=r"x\.npy'\): expected the file as it was; it was cut short or written"
        ),
        border("TeacherRelevance", "embeddings"),
    ):
        found[40_000:40_010]


def test_a_file_cut_short_before_is_a_sentence(tmp_path):
    np.save(tmp_path / "x.npy", X)
    os.truncate(tmp_path / "x.npy", 1000)
    with pytest.raises(ValueError, match=r"expected 2,800 bytes of numbers, as its header tells; it has 872"):
        TeacherRelevance(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[" * 9000,
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 2), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (True, 2), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1, %d), }" % 2**70,
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (0, 3), }",
        b"{'descr': 'x', 'fortran_order': False, 'shape': (1, 2), }",
        b"{'descr': " + b"9" * 5000 + b", 'fortran_order': False, 'shape': (1, 2), }",
    ],
)
def test_an_odd_header_is_a_sentence(tmp_path, header):
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"^TeacherRelevance\(embeddings='.*x\.npy'\): expected ") as caught:
        opened(tmp_path / "x.npy")
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_the_header_is_rows_or_a_sentence(tmp_path):
    np.save(tmp_path / "x.npy", X)
    content = (tmp_path / "x.npy").read_bytes()
    for bit in range(8 * 128):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "x.npy").write_bytes(changed)
        try:
            found = opened(tmp_path / "x.npy")
            with border("TeacherRelevance", "embeddings"):
                assert found[: found.shape[0]].shape == found.shape
        except ValueError as error:
            assert type(error) is ValueError  # noqa: PT017
