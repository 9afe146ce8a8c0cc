"""Yields of streams: measured with the stage on samples split as webdataset splits them, and predicted."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tercet.data.shards.layouts import by_class, mixed
from tercet.data.streams.pk_stage import pk_batched
from tercet.data.streams.yield_prediction import StreamYield, predict_yield


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """So many samples come that the checks of annotations would take most of the time."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


def measured(labels, shards, p, k, workers=1, ranks=1, **keywords):
    """The share of samples in batches and the samples before the first, by counting what the stage gives."""
    order = list(range(len(shards)))
    random.Random(7).shuffle(order)
    used, firsts = set(), []
    for rank in range(ranks):
        for worker in range(workers):
            mine = order[rank::ranks][worker::workers]
            rows = [row for shard in mine for row in shards[shard].tolist()]
            came = 0

            def stream(rows=rows):
                nonlocal came
                for row in rows:
                    came += 1
                    yield {"__key__": str(row), "cls": int(labels[row]), "row": row}

            for place, batch in enumerate(pk_batched(p, k, seed=worker, **keywords)(stream())):
                assert len(batch) == p * k
                assert len({sample["cls"] for sample in batch}) == p
                used |= {sample["row"] for sample in batch}
                if not place:
                    firsts.append(came)
    return len(used) / len(labels), np.mean(firsts) if firsts else None


IDENTITIES = np.arange(11_318 * 5) // 5
FEW = np.repeat(np.arange(600), np.arange(600) % 9 + 2)  # classes of 2 to 10 images


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_the_layout_by_class_of_11318_identities_gives_four_fifths_and_more(workers):
    shards = by_class(IDENTITIES, 4, 1000, 0)
    share, first = measured(IDENTITIES, shards, 32, 4, workers)
    told = predict_yield(IDENTITIES, 32, 4, images_per_shard=1000, workers=workers)
    assert share >= 0.8
    assert abs(told.share - share) <= 0.05
    assert told.first_batch == pytest.approx(first, rel=0.2)


def test_images_in_groups_of_k_are_used_whole_from_a_buffer_of_256():
    labels = np.arange(11_318 * 4) // 4
    shards = [np.concatenate(random.Random(1).sample(np.split(np.arange(len(labels)), 11_318), 11_318))]
    share, _ = measured(labels, shards, 32, 4, buffer=256, on_short="drop")
    assert round(share, 2) == 1
    told = predict_yield(labels, 32, 4, buffer=256, on_short="drop")
    assert abs(told.share - share) <= 0.05
    assert told.held == 256


@pytest.mark.parametrize("layout", ["by_class", "mixed"])
@pytest.mark.parametrize("on_short", ["repeat", "drop"])
@pytest.mark.parametrize(("workers", "ranks", "buffer"), [(1, 1, 64), (3, 1, 256), (2, 2, None)])
def test_the_prediction_is_within_5_percent_of_what_is_measured(layout, on_short, workers, ranks, buffer):
    shards = by_class(FEW, 4, 200, 5) if layout == "by_class" else mixed(len(FEW), 200, 5)
    keywords = {"buffer": buffer, "on_short": on_short}
    share, _ = measured(FEW, shards, 8, 4, workers, ranks, **keywords)
    at = {"layout": layout, "workers": workers, "ranks": ranks, "images_per_shard": 200, "least": 0}
    told = predict_yield(FEW, 8, 4, **at, **keywords)
    assert abs(told.share - share) <= 0.05


def test_samples_split_across_workers_leave_no_batch_with_k_of_a_class():
    # The fault: one image of an identity in each of four shards, so that each worker gets one of it.
    labels = np.tile(np.arange(1000), 4)
    shards = np.split(np.arange(4000), 4)
    assert measured(labels, shards, 8, 4, workers=4)[0] == 0
    said = "predict_yield(layout='stored', buffer=128, workers=4): 0.00 of the samples would end in"
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        predict_yield(labels, 8, 4, layout="stored", images_per_shard=1000, workers=4)
    assert str(caught.value).startswith(said)
    assert 'write the shards with layout="by_class" (' in str(caught.value)
    assert predict_yield(labels, 8, 4, images_per_shard=1000, workers=4).share > 0.9


def test_the_advice_holds():
    labels = np.arange(4000) // 5
    asked = {"layout": "mixed", "images_per_shard": 250, "on_short": "drop"}
    with pytest.raises(ValueError, match=r"raise buffer to 2048 \(0\.\d\d\)") as caught:
        predict_yield(labels, 8, 4, **asked, buffer=32)
    promised = float(str(caught.value).split("raise buffer to 2048 (")[1][:4])
    share, _ = measured(labels, mixed(len(labels), 250, 3), 8, 4, buffer=2048, on_short="drop")
    assert abs(share - promised) <= 0.05


def test_a_remedy_that_would_be_refused_is_not_advised():
    # By class the 4 classes make fewer shards than there are workers.
    labels = np.arange(400) // 100
    with pytest.raises(ValueError, match=r"^predict_yield\(layout='mixed'.*lower p or k$"):
        predict_yield(labels, 8, 4, layout="mixed", images_per_shard=20, workers=8)


def test_where_nothing_helps_the_sentence_says_so():
    with pytest.raises(ValueError, match=r"too few classes have 4 images for that; lower p or k$"):
        predict_yield(np.arange(200), 8, 4)


def test_memory_is_what_the_workers_of_a_rank_hold():
    told = predict_yield(FEW, 8, 4, buffer=100, workers=3, ranks=2, images_per_shard=200, image_bytes=7)
    assert isinstance(told, StreamYield)
    assert told.held == 100
    assert told.memory == 3 * 100 * 7
    assert told.batches > len(FEW) // 32


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"layout": "by_clas"}, "did you mean 'by_class'?"),
        ({"workers": 9, "images_per_shard": 400}, "expected at most 9 shards / 2 ranks"),
        (
            {"ranks": 99},
            "predict_yield(ranks=99): expected at most as many as shards, and there are 1; lower",
        ),
        ({"ranks": 99}, "lower ranks or images_per_shard"),
        ({"least": 2}, "predict_yield(least=2): expected a finite number from 0 to 1"),
        ({"buffer": 3}, "predict_yield(buffer=3): expected at least p · k = 32 images"),
        ({"image_bytes": -1}, "predict_yield(image_bytes=-1)"),
    ],
)
def test_bad_arguments_get_a_sentence(keywords, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        predict_yield(FEW, 8, 4, **{"ranks": 2, **keywords})
    assert said in str(caught.value)


def test_the_old_name_of_the_layout_predicts_the_same():
    setting = {"p": 8, "k": 4, "images_per_shard": 200}
    with pytest.warns(DeprecationWarning, match="'identity' is now called 'by_class'"):
        old = predict_yield(FEW, layout="identity", **setting)
    assert old == predict_yield(FEW, layout="by_class", **setting) == predict_yield(FEW, **setting)
