"""Deep Ranking's triplets from a stream of samples."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import webdataset

from tercet.data.streams.deep_ranking_stage import deep_ranking_batched
from tests.helpers import Continue, refusal_of, samples_of, write_samples

# webdataset leaves it to the collector to close its tars.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def vector(sample):
    return np.frombuffer(sample["emb"], dtype=np.float32)


def embedded(n, classes=3):
    rows = np.random.default_rng(0).random((n, 8), dtype=np.float32)
    labels = [place % classes for place in range(n)]
    return [{**sample, "emb": row.tobytes()} for sample, row in zip(samples_of(labels), rows, strict=True)]


def test_triplets_of_a_stream_are_of_samples_that_came(tmp_path):
    tar = write_samples(tmp_path / "0.tar", embedded(200))
    stage = deep_ranking_batched(16, vector, capacity=4, every=20, warmup=100, cap=0.5, out_of_class=0.5)
    batches = list(webdataset.WebDataset(tar, shardshuffle=False).compose(stage))
    assert len(batches) == 6
    for place, (samples, (anchor, positive, negative)) in enumerate(batches):
        assert max(sample["__key__"] for sample in samples) < f"{100 + 20 * place:06}"
        assert len({sample["__key__"] for sample in samples}) == len(samples) <= 12
        assert len(anchor) <= 16
        assert set(np.concatenate([anchor, positive, negative])) == set(range(len(samples)))
        for a, p, n in zip(anchor, positive, negative, strict=True):
            assert samples[a]["cls"] == samples[p]["cls"]
            assert len({a, p, n}) == 3
    again = list(webdataset.WebDataset(tar, shardshuffle=False).compose(pickle.loads(pickle.dumps(stage))))
    assert [str(batch) for batch in again] == [str(batch) for batch in batches]
    classes = {
        samples[a]["cls"] != samples[n]["cls"]
        for samples, triplets in batches
        for a, n in zip(triplets.anchor, triplets.negative, strict=True)
    }
    assert classes == {True, False}


def test_triplets_do_not_depend_on_where_the_shards_lie(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    tar = write_samples(tmp_path / "a" / "0.tar", embedded(100))
    monkeypatch.chdir(tmp_path)
    stage = deep_ranking_batched(16, vector, capacity=4, warmup=80)

    def drawn(url):
        batches = stage(webdataset.WebDataset(url, shardshuffle=False))
        return [([sample["__key__"] for sample in samples], str(drawn)) for samples, drawn in batches]

    assert drawn(tar) == drawn("a/0.tar") == drawn("./a/0.tar") == drawn(f"file:{tar}")


def test_samples_of_two_shards_of_one_name_stay_apart():
    rows = embedded(80, classes=2)
    one, two = ([{**sample, "__url__": f"{folder}/0.tar"} for sample in rows] for folder in "ab")
    two = [{**sample, "cls": b"%d" % (int(sample["cls"]) + 2)} for sample in two]
    stage = deep_ranking_batched(64, vector, capacity=8, every=160, out_of_class=1)
    ((samples, _),) = stage(one + two)
    assert {sample["cls"] for sample in samples} == {b"0", b"1", b"2", b"3"}


def test_a_sample_without_features_goes_to_the_handler():
    stream = embedded(60)
    del stream[10]["emb"], stream[11]["cls"]
    handler = Continue()
    assert list(deep_ranking_batched(4, vector, capacity=2, warmup=40, handler=handler)(stream))
    assert len(handler.told) == 2
    handler = Continue(False)
    assert not list(deep_ranking_batched(4, vector, capacity=2, warmup=40, handler=handler)(stream))
    with pytest.raises(KeyError, match="emb"):
        list(deep_ranking_batched(4, vector, capacity=2, warmup=40)(stream))


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"count": 0}, "deep_ranking_batched(count=0): expected a whole number of at least 1"),
        ({"every": 0}, "deep_ranking_batched(every=0)"),
        ({"warmup": -1}, "deep_ranking_batched(warmup=-1)"),
        ({"features": 1}, "deep_ranking_batched(features=1): expected a function of a sample"),
        ({"label": 1}, "deep_ranking_batched(label=1)"),
        ({"handler": 1}, "deep_ranking_batched(handler=1)"),
        ({"capacity": 1}, "ReservoirTriplets(capacity=1)"),
    ],
)
def test_bad_arguments_of_the_triplet_stage_get_a_sentence(keywords, said, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    assert said in refusal_of(
        deep_ranking_batched, **{"count": 2, "features": vector, "capacity": 2, **keywords}
    )
