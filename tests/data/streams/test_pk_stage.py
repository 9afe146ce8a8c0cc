"""Stages of a webdataset pipeline, on tars written here and broken here."""

from __future__ import annotations

import gc
import pickle
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
import webdataset

from tercet.data.streams.deep_ranking_stage import deep_ranking_batched
from tercet.data.streams.pk_stage import pk_batched
from tercet.data.streams.samples import label_of
from tests.helpers import Continue, refusal_of, samples_of, write_samples

# webdataset leaves it to the collector to close its tars.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def exactly(batch, p, k):
    counts = Counter(sample["cls"] for sample in batch)
    return len(counts) == p and set(counts.values()) == {k}


def test_the_stage_composes_with_webdataset(tmp_path):
    tars = [
        write_samples(tmp_path / f"{t}.tar", samples_of([t * 10 + n // 5 for n in range(50)]))
        for t in range(3)
    ]
    data = webdataset.WebDataset(tars, shardshuffle=False).compose(pk_batched(4, 4)).map(len)
    assert set(data) == {16}
    stage = pk_batched(4, 4, seed=3)
    batches = list(webdataset.WebDataset(tars, shardshuffle=False).compose(stage))
    assert all(exactly(batch, 4, 4) for batch in batches)
    seen = {(sample["__url__"], sample["__key__"]) for batch in batches for sample in batch}
    assert len(seen) > 0.9 * 150
    again = list(webdataset.WebDataset(tars, shardshuffle=False).compose(pickle.loads(pickle.dumps(stage))))
    assert again == batches
    other = list(webdataset.WebDataset(tars[::-1], shardshuffle=False).compose(stage))
    assert other != batches


def test_a_repeated_sample_says_its_view():
    batches = list(pk_batched(1, 4)(samples_of([0, 0, 0])))
    (batch,) = batches
    assert len({sample["__key__"] for sample in batch}) == 3
    assert Counter(sample.get("__view__", 0) for sample in batch) == {0: 3, 1: 1}


def test_a_truncated_tar_yields_half_a_sample(tmp_path):
    path = tmp_path / "cut.tar"
    write_samples(path, samples_of([n // 4 for n in range(16)]))
    cut = path.read_bytes()[: 15 * 2048 + 1024]  # of the last sample the image is there, the label is not
    path.write_bytes(cut)
    half = list(webdataset.WebDataset(str(path), shardshuffle=False))[-1]
    assert "jpg" in half
    assert "cls" not in half
    stage = pk_batched(2, 4, on_short="drop")
    said = refusal_of(list, webdataset.WebDataset(str(path), shardshuffle=False).compose(stage))
    assert "half a sample ends a truncated tar" in said
    handler = Continue()
    stage = pk_batched(2, 4, handler=handler)
    batches = list(webdataset.WebDataset(str(path), shardshuffle=False).compose(stage))
    assert len(handler.told) == 1
    assert len(batches) == 2
    assert all(exactly(batch, 2, 4) for batch in batches)


def failing(bad):
    def decode(sample):
        if sample["__key__"] in bad:
            raise ValueError(f"cannot decode {sample['__key__']}")
        return {"cls": sample["cls"], "key": sample["__key__"], "view": sample["__view__"]}

    return decode


@pytest.mark.parametrize("on_short", ["repeat", "drop"])
def test_one_bad_sample_shifts_no_batch_out_of_p_times_k(on_short):
    stream = samples_of([n // 6 for n in range(120)])
    clean = list(pk_batched(4, 4, on_short=on_short, decode=failing(()))(stream))
    bad = {"000013", "000014", "000077"}
    handler = Continue()
    batches = list(pk_batched(4, 4, on_short=on_short, decode=failing(bad), handler=handler)(stream))
    assert len(batches) == len(clean)
    assert handler.told
    assert all(exactly(batch, 4, 4) for batch in batches)
    for before, after in zip(clean, batches, strict=True):
        for old, new in zip(before, after, strict=True):  # only what stands in for a bad one differs
            assert new["cls"] == old["cls"]
            assert new == old or old["key"] in bad or new["view"] < 0
    assert not {sample["key"] for batch in batches for sample in batch} & bad
    # No sample twice with one view in a batch, so no augmentation twice.
    for batch in batches:
        assert len({(sample["key"], sample["view"]) for sample in batch}) == 16


def test_a_class_that_fails_whole_is_replaced_by_another():
    stream = samples_of([n // 4 for n in range(40)])
    bad = {f"{n:06}" for n in range(8, 12)}
    stage = pk_batched(2, 4, buffer=32, decode=failing(bad), handler=Continue())
    batches = list(stage(stream))
    assert len(batches) == 5
    assert all(exactly(batch, 2, 4) for batch in batches[:-1])
    assert all(sample["cls"] != b"2" for batch in batches for sample in batch)


def test_a_batch_that_nothing_can_stand_in_for_is_passed_over():
    # Each batch takes all that the buffer holds, so that of the first one nothing is left.
    stream = samples_of([n // 2 for n in range(12)])
    handler = Continue()
    stage = pk_batched(2, 2, buffer=4, decode=failing({"000000"}), handler=handler)
    batches = list(stage(stream))
    assert [{sample["cls"] for sample in batch} for batch in batches] == [{b"2", b"3"}, {b"4", b"5"}]
    assert all(exactly(batch, 2, 2) for batch in batches)
    assert handler.told == [
        "cannot decode 000000",
        "pk_batched(p=2, k=2): a batch is passed over, as too many samples fail in decode: neither class 0 "
        "nor another that is left in the buffer has 2 that do not; repair them",
    ]
    with pytest.raises(ValueError, match="cannot decode 000000"):
        list(pk_batched(2, 2, buffer=4, decode=failing({"000000"}))(stream))
    ending = pk_batched(
        2, 2, buffer=4, decode=failing({"000000"}), handler=lambda error: "cannot" in str(error)
    )
    assert not list(ending(stream))


def test_an_image_does_not_stand_in_for_its_class_mate_alone():
    # Of b or c one is drawn with a; the other is left, and keeps a beside it to fill up the class again.
    stream = [{"__key__": key, "cls": b"0"} for key in "abc"]
    for seed in range(20):
        stage = pk_batched(1, 2, decode=failing({"b", "c"}), handler=Continue(), seed=seed, buffer=3)
        assert not list(stage(stream))
    stage = pk_batched(1, 2, decode=failing({"c"}), handler=Continue(), buffer=3)
    assert [{sample["key"] for sample in batch} for batch in stage(stream)] == [{"a", "b"}]


def test_handlers_are_webdatasets_own():
    stream = samples_of([n // 4 for n in range(40)])
    del stream[21]["cls"]
    with pytest.raises(ValueError, match="000021"):
        list(pk_batched(2, 4, buffer=8)(stream))
    with pytest.raises(ValueError, match="000021"):
        list(pk_batched(2, 4, handler=webdataset.reraise_exception)(stream))
    assert len(list(pk_batched(2, 4, handler=webdataset.ignore_and_continue)(stream))) == 5
    assert len(list(pk_batched(2, 4, handler=webdataset.ignore_and_stop)(stream))) == 2
    decode = failing({"000021"})
    stopped = list(pk_batched(2, 4, buffer=8, decode=decode, handler=webdataset.ignore_and_stop)(stream[:21]))
    assert len(stopped) == 2
    whole = samples_of([n // 4 for n in range(40)])
    stopped = list(pk_batched(2, 4, buffer=8, decode=decode, handler=webdataset.ignore_and_stop)(whole))
    assert len(stopped) == 2


def test_labels_come_from_a_field_or_a_function():
    assert label_of({"json": b'{"a": 1}'}, "json") == '{"a": 1}'
    assert label_of({"cls": 7}, "cls") == 7
    assert label_of({"json": b'{"a": 1}'}, "json:a") == label_of({"json": {"a": 1}}, "json:a") == 1
    for content, said in [
        (b"{", "JSONDecodeError"),
        (b'{"b": 1}', "KeyError: 'a'"),
        (b'{"a": 1.5}', "it is 1.5"),
    ]:
        told = refusal_of(label_of, {"__key__": "x", "json": content}, "json:a")
        assert "sample 'x' of None: expected a whole number or a name as 'json:a'; " in told
        assert said in told
    assert "has no field 'json', only cls" in refusal_of(label_of, {"cls": b"1"}, "json:a")
    assert "UnicodeDecodeError" in refusal_of(label_of, {"cls": b"\xff"}, "cls")
    stream = [{"__key__": "x/1"}, {"__key__": "x/2"}, {"__key__": "y/3"}, {"__key__": "y/4"}]
    (batch,) = pk_batched(2, 2, label=lambda sample: sample["__key__"][0])(stream)
    assert sorted(sample["__key__"] for sample in batch) == ["x/1", "x/2", "y/3", "y/4"]


@pytest.mark.parametrize("field", ["cls", lambda sample: sample["cls"]])
def test_whole_numbers_of_any_type_are_one_class(field):
    stream = [{"__key__": f"{n}", "cls": 0} for n in range(12)]
    values = [np.int32(7), torch.tensor(7), 7, "7", b"7", np.array(7)] * 2
    for sample, value in zip(stream, values, strict=True):
        sample["cls"] = value
        assert label_of(sample, field) == 7
    assert len(list(pk_batched(1, 4, label=field)(stream))) == 3


@pytest.mark.parametrize("field", ["cls", lambda sample: sample["cls"]])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "it is None"),
        (float("nan"), "it is nan"),
        (torch.tensor(1.5), "it is Tensor"),
        ([1, 2], "it is list"),
        (True, "it is bool"),
        (2.0, "it is 2.0"),
    ],
)
def test_a_label_that_is_no_class_gets_a_sentence(field, value, shown):
    stream = [{"__key__": f"{n}", "cls": value} for n in range(8)]
    said = refusal_of(list, pk_batched(1, 4, label=field)(stream))
    assert said.startswith("sample '0' of None: expected a whole number or a name as ")
    assert shown in said
    assert "convert it with int() or str()" in said
    handler = Continue()
    assert not list(pk_batched(1, 4, label=field, handler=handler)(stream))
    assert len(handler.told) == 8


def test_a_number_too_large_for_int64_is_a_name():
    assert label_of({"json": b'{"id": 99999999999999999999}'}, "json:id") == "9" * 20
    assert label_of({"cls": b"-9223372036854775808"}, "cls") == -(1 << 63)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (pk_batched(2, 2, handler=Continue()), "pk_batched"),
        (deep_ranking_batched(2, len, capacity=2, handler=Continue()), "deep_ranking_batched"),
    ],
)
def test_a_stage_after_to_tuple_is_told_where_it_belongs(tmp_path, stage, name):
    tar = write_samples(tmp_path / "0.tar", samples_of([0, 0, 1, 1]))
    data = webdataset.WebDataset(tar, shardshuffle=False).to_tuple("jpg", "cls").compose(stage)
    assert refusal_of(list, data) == (
        f"{name}(samples='tuple'): expected raw samples, which are dicts; "
        "put this stage before decode() and to_tuple()"
    )
    del data
    with warnings.catch_warnings():  # webdataset leaves the tar open where a stage raises
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"p": 0}, "pk_batched(p=0): expected a whole number of at least 1"),
        ({"on_short": "droop"}, "did you mean 'drop'?"),
        ({"decode": 3}, "pk_batched(decode=3): expected a function or None"),
        ({"handler": 3}, "pk_batched(handler=3): expected a function or None"),
        ({"label": 3}, "pk_batched(label=3): expected the name of a field or a function of a sample"),
        ({"seed": -1}, "pk_batched(seed=-1): expected a whole number of at least 0"),
    ],
)
def test_bad_arguments_get_a_sentence(keywords, said, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    assert said in refusal_of(pk_batched, **{"p": 2, "k": 2, **keywords})


def test_names_that_int_would_merge_are_classes_of_their_own():
    names = [b"10", b"010", b"1_0", b"+10"]
    assert [label_of({"cls": name}, "cls") for name in names] == [10, "010", "1_0", "+10"]
