import numpy as np
import pytest

from tercet.data.catalog.catalog import Catalog
from tercet.offline.verdict_table import read_verdicts, write_verdicts
from tercet.offline.verdicts import SetAside, Verdicts, set_aside


def collection():
    names = ["a/1.jpg", 'a/=2,"x".jpg', "b/1.jpg", "b/2.jpg"]
    return Catalog(names, [0, 0, 1, 1], ["a", "b"])


def suspects(*words):
    n = len(words)
    return Verdicts(np.arange(n), np.arange(n)[::-1] % 4, np.full(n, 0.5), np.full(n, 0.25), list(words))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_that_is_read_back_says_the_same(tmp_path, suffix):
    catalog, path = collection(), tmp_path / f"suspects{suffix}"
    words = ["?", "same", "different", "skip"]
    write_verdicts(path, suspects(*words), catalog)
    found = read_verdicts(path, catalog)
    assert found.verdict == words
    for name in ("image", "other", "score", "own_score"):
        assert np.array_equal(getattr(found, name), getattr(suspects(*words), name))
    with pytest.raises(ValueError, match=r"write_verdicts\(path="):
        write_verdicts(path, suspects("?"), catalog)
    write_verdicts(path, suspects("?"), catalog, overwrite=True)
    assert read_verdicts(path, catalog).verdict == ["?"]


def test_an_edited_table_is_read_in_another_order_and_with_sloppy_words(tmp_path):
    catalog, path = collection(), tmp_path / "suspects.csv"
    path.write_text("verdict,image,other,own_score,score,note\n Same ,b/1.jpg,a/1.jpg,0.1,0.9,sure\n")
    found = read_verdicts(path, catalog)
    assert (found.verdict, found.image.tolist(), found.other.tolist()) == (["same"], [2], [0])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("c/1.jpg,a/1.jpg,1,0,same", r"images of the catalog, and 'c/1.jpg' is none; 1 images of its column"),
        ("a/1.jpg,b/1.jpg,1,0,maybe", r"read_verdicts\(verdict='maybe'\)"),
        ("a/1.jpg,b/1.jpg,high,0,same", r"read_verdicts\(path="),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, line, sentence):
    path = tmp_path / "suspects.csv"
    path.write_text(f"image,other,score,own_score,verdict\n{line}\n")
    with pytest.raises(ValueError, match=sentence):
        read_verdicts(path, collection())


def test_what_is_set_aside_holds_in_both_directions():
    classes = np.array([0, 0, 1, 1, 2, 2])
    found = Verdicts(
        np.array([0, 4, 2]), np.array([2, 1, 5]), np.zeros(3), np.zeros(3), ["same", "duplicate", "skip"]
    )
    aside = set_aside(found, classes)
    table = np.array([[bool(aside(np.array([i]), np.array([j]))[0]) for j in range(6)] for i in range(6)])
    expected = np.zeros((6, 6), dtype=bool)
    expected[0, [2, 3]] = expected[[2, 3], 0] = True
    expected[4, 1] = expected[1, 4] = True
    expected[2] = expected[:, 2] = True
    assert np.array_equal(table, expected)
    assert aside
    assert not SetAside(classes, np.array([], dtype=int), np.array([], dtype=int))
