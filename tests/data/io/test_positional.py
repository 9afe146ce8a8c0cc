"""A file open at offsets: what is read, what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest

from tercet.data.io.positional import Handle


@pytest.fixture
def handle(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(100)))
    return Handle("read", "path", tmp_path / "file", "a file to read")


def test_ranges_are_read_alone_and_together(handle):
    handle.announce([(0, 10), (90, 20)])
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
        Handle("read", "path", tmp_path / "gone", "a file to read")
