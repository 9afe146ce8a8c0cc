import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tercet.core.indices import References
from tercet.data.catalog.scan import scan_folder
from tercet.metrics.clustering import clustering
from tercet.metrics.geometry import geometry
from tercet.metrics.graded import ndcg
from tercet.metrics.intervals import class_intervals, class_sums
from tercet.metrics.pooled import global_average_precision, pooled
from tercet.metrics.precision import map_at_r, mean_average_precision
from tercet.metrics.protocol import opened
from tercet.metrics.retrieval import cmc, precision_at_k, recall_at_k
from tercet.metrics.verification import verification
from tercet.offline.embed import embed
from tercet.offline.embeddings import read_embeddings
from tercet.reports.evaluation import evaluate
from tercet.reports.families import FIGURES
from tests.helpers import picture, points, refusal_of, unchecked
from tests.oracles.figures import compared_pairs

X, LABELS = points(120, 6) + 2 * points(12, 6, seed=1).repeat_interleave(10, 0), torch.arange(120) // 10


def test_each_figure_is_that_of_its_own_function():
    found = evaluate(X, LABELS, (1, 5), figures=("retrieval", "ranking", "verification"))
    assert found["Recall@5"] == recall_at_k(X, LABELS, 5)
    assert found["MAP@R"] == map_at_r(X, LABELS)
    assert found["Precision@5"] == precision_at_k(X, LABELS, 5)
    assert found["MAP, trapezoid"] == mean_average_precision(X, LABELS, rule="trapezoid")
    assert found["mAP@5 over min(k, R)"] == mean_average_precision(X, LABELS, 5, over="min(k, R)")
    assert found["ROC-AUC"] == verification(X, LABELS).auc


def test_all_families_at_once():
    labels = [f"class {v}" for v in (torch.arange(120) // 20).tolist()]
    found = evaluate(X, labels, 1, figures=FIGURES)
    assert found["AMI"] == clustering(X, labels).ami
    assert found["hubness"] == geometry(X, labels).hubness
    assert found.curves["cmc"] == pytest.approx(cmc(X, labels, 50))
    assert 0 < found["5-way 1-shot accuracy"] <= 1
    assert 0 <= found["overlap of similarities"] <= 1
    assert found["P(negative ≥ positive)"] == pytest.approx(1 - found["ROC-AUC"], abs=1e-4)
    said = str(found)
    assert "k-means, 6 clusters, best of 10 restarts" in said
    assert "few-shot: 600 episodes" in said
    assert "positive and" in said


def test_intervals_are_of_classes_and_printed():
    found = evaluate(X, LABELS, 1)
    sums, counts = class_sums(recall_at_k(X, LABELS).values, LABELS.numpy())
    expected = class_intervals(sums[:, None], counts[:, None])[0]
    assert found.intervals["Recall@1"] == pytest.approx(expected)
    assert f"Recall@1     {found['Recall@1']:.3f} {expected}" in str(found)
    assert found.intervals["Recall@1"].low <= found["Recall@1"] <= found.intervals["Recall@1"].high
    pairs = evaluate(X, LABELS, figures="verification")
    assert pairs.intervals["ROC-AUC"].low <= pairs["ROC-AUC"] <= pairs.intervals["ROC-AUC"].high


def test_every_figure_has_an_interval_that_holds_it_or_says_why_it_has_none():
    labels = torch.arange(120) // 20
    found = evaluate(X, labels, 1, figures=FIGURES)
    assert list(found.intervals) == list(found)
    for name, value in found.items():
        assert found.intervals[name].low <= value <= found.intervals[name].high, name
    said = found.notes()
    assert said[-2] == "intervals: 95 %, classes drawn with replacement"
    assert said[-1].startswith("intervals of GAP, ROC-AUC, EER, TAR@FAR=0.1")
    assert said[-1].endswith("5-way 1-shot accuracy: 95 %, jackknife over classes")
    found = evaluate(X[:40], LABELS[:40] // 4, 1, figures=("retrieval", "verification"))
    assert found["Recall@1"] == evaluate(X[:40], [0] * 40, 1)["Recall@1"]
    assert math.isnan(found["ROC-AUC"])
    assert "no interval of Recall@1, R-precision, MAP@R, ROC-AUC, EER" in found.notes()[-1]


def test_ndcg_and_gap_are_those_of_their_functions():
    found = evaluate(X, LABELS, (1, 5), figures=("ndcg", "gap"), distance="cosine")
    assert list(found) == ["nDCG@1", "nDCG@5", "GAP"]
    assert found["nDCG@5"] == ndcg(X, LABELS, 5, distance="cosine")
    assert found["GAP"] == global_average_precision(X, LABELS, distance="cosine")
    assert found.intervals["nDCG@5"].low < found["nDCG@5"] < found.intervals["nDCG@5"].high
    names = [f"c{each}" for each in LABELS.tolist()]
    rule = {"ignore": "c3", "distractors": "c1", "groups": torch.arange(120) % 2}
    found = evaluate(X, names, 5, figures=("ndcg", "gap"), **rule)
    assert found["nDCG@5"] == ndcg(X, names, 5, **rule)
    assert found["GAP"] == global_average_precision(X, names, **rule)
    assert found.intervals["GAP"].low < found["GAP"] < found.intervals["GAP"].high


def test_graded_relevance_takes_rows_of_labels_which_are_classes_too():
    rows = torch.stack([LABELS // 4, LABELS], 1)
    for gain in ("linear", "exponential"):
        found = evaluate(X, rows, 5, figures=("retrieval", "ndcg"), relevance="depth", gain=gain)
        assert found["nDCG@5"] == ndcg(X, rows, 5, relevance="depth", gain=gain)
        assert found["nDCG@5"] != evaluate(X, LABELS, 5, figures="ndcg", gain=gain)["nDCG@5"]
        assert found["Recall@5"] == recall_at_k(X, LABELS, 5)
        assert found.intervals["Recall@5"] == evaluate(X, LABELS, 5).intervals["Recall@5"]
    assert found.choices["relevance"] == "depth"
    ref = References(X[60:], rows[60:])
    found = evaluate(X[:60], rows[:60], 5, figures=("retrieval", "ndcg"), relevance="depth", ref=ref)
    assert found["nDCG@5"] == ndcg(X[:60], rows[:60], 5, relevance="depth", ref=ref)
    assert found["Recall@5"].left_out == 60  # classes of the queries are none of the gallery
    assert "figures=" in refusal_of(evaluate, X, rows, relevance="depth")
    said = refusal_of(evaluate, X, rows, figures="ndcg", relevance="depth", ignore=3)
    assert said.startswith("evaluate(ignore=3): expected None beside relevance=")


def weighted_gap(distance, right, asks, weight):
    """GAP of queries that are asked so many times each, one after the other; without ties."""
    total, ahead, rank = 0.0, 0.0, 0.0
    for q in np.argsort(distance):
        rank += weight[q]
        ahead += weight[q] * right[q]
        total += weight[q] * right[q] * ahead / rank
    return total / (weight * asks).sum()


def test_the_interval_of_gap_comes_from_queries_that_are_asked_more_often():
    rows, columns = slice(0, 120, 2), slice(1, 120, 2)  # of two images the nearest are no ties then
    x, y, labels, theirs = X[rows], X[columns], LABELS[rows].clone(), LABELS[columns]
    labels[:4] = torch.arange(100, 104)  # nothing to find
    ref = References(y, theirs)
    score, growth = pooled(opened("t", x, labels, None, ref, *[None] * 4, "skip", "euclidean", None))
    distance, nearest = (each.numpy() for each in torch.cdist(x.double(), y.double()).min(1))
    right = (theirs[nearest] == labels).numpy().astype(float)
    asks = np.array([bool((theirs == label).any()) for label in labels])
    assert score == pytest.approx(weighted_gap(distance, right, asks, np.ones(60)))
    for q in range(60):
        sides = []
        for step in (1e-5, -1e-5):
            weight = np.ones(60)
            weight[q] += step
            sides.append(weighted_gap(distance, right, asks, weight))
        assert growth[q] == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-8)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """24 pictures of four classes, of which one does not decode."""
    for row in range(24):
        picture(tmp_path / "photos" / "abcd"[row % 4] / f"{row:02d}.png", row)
    (tmp_path / "photos" / "d" / "23.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    return scan_folder("photos")


def brightness(images):
    return images.flatten(2).sort(2).values[:, :, ::7].flatten(1)


def test_a_model_and_a_catalog_give_what_embed_and_its_array_give(photos):
    how = {"size": 8, "batch_size": 5}
    found = evaluate(brightness, None, (1, 3), catalog=photos, embedding=how)
    stored = embed(brightness, photos, "photos.npy", **how)
    kept = np.setdiff1d(np.arange(24), stored.unreadable)
    names = np.array(photos.classes)[photos.labels[kept]]
    expected = evaluate(torch.from_numpy(stored.array[kept]), names, (1, 3))
    assert len(kept) == 23
    assert dict(found) == dict(expected)
    assert found.intervals == expected.intervals
    assert "1 images left out: they do not decode" in str(found)
    assert dict(evaluate(read_embeddings("photos.npy"), k=(1, 3))) == dict(expected)
    assert [file.name for file in Path().iterdir() if file.suffix == ".npy"] == ["photos.npy"]
    kept_too = evaluate(brightness, None, (1, 3), catalog=photos, embedding=how, out="again.npy")
    assert dict(kept_too) == dict(expected)
    assert read_embeddings("again.npy").array[kept].tolist() == stored.array[kept].tolist()


def test_columns_of_the_catalog_and_own_labels_lose_the_same_rows(photos):
    camera = np.array([f"c{row % 3}" for row in range(24)], dtype=object)
    with_camera = replace(photos, groups={"camera": camera})
    how, ids = {"size": 8}, torch.arange(24)
    found = evaluate(brightness, None, 1, catalog=with_camera, embedding=how, groups="camera", ids=ids)
    stored = embed(brightness, photos, "photos.npy", **how)
    kept = np.setdiff1d(np.arange(24), stored.unreadable)
    array, labels = torch.from_numpy(stored.array[kept]), photos.labels[kept]
    assert dict(found) == dict(evaluate(array, labels, 1, groups=camera[kept].astype(str)))
    ref = References(array, labels, torch.from_numpy(kept))
    found = evaluate(stored, photos.labels, 1, ref=ref, ids=ids, groups=(camera, camera[kept].astype(str)))
    assert dict(found) == dict(evaluate(array, labels, 1, groups=camera[kept].astype(str)))
    assert "one of the catalog's columns: none" in refusal_of(evaluate, stored, k=1, groups="camera")
    assert "24, one for each image" in refusal_of(evaluate, stored, photos.labels[:5])


def test_models_and_embeddings_are_not_mixed_up(photos):
    assert "a Catalog or a ShardIndex beside a model" in refusal_of(evaluate, brightness)
    assert "pass a model as the first argument" in refusal_of(evaluate, X, LABELS, catalog=photos)
    assert "None beside embeddings" in refusal_of(evaluate, X, LABELS, out="x.npy")
    assert "one label for each embedding" in refusal_of(evaluate, X)
    with unchecked():
        said = refusal_of(evaluate, brightness, catalog=photos, embedding=["size"])
    assert "options of embed by name" in said


def test_another_seed_is_another_interval_and_the_same_seed_the_same():
    a, b, c = (evaluate(X, LABELS, 1, seed=seed).intervals for seed in (0, 0, 1))
    assert a == b != c


def test_classes_groups_and_sizes():
    cameras = torch.arange(120) % 3
    found = evaluate(X, LABELS, 1)
    values = found.of_rows("MAP@R")
    assert found.macro("MAP@R") == pytest.approx(values.mean())  # classes of one size
    assert found.by_group("MAP@R", cameras)[2][0] == pytest.approx(values[cameras == 2].mean())
    worst = next(iter(found.by_class("MAP@R").values()))[0]
    assert found.worst("MAP@R", 0.1) == worst
    assert list(found.by_size("MAP@R")) == ["9–16"]
    assert "name='MAP'" in refusal_of(found.macro, "MAP")


def test_two_models_are_compared_over_the_same_classes():
    good, bad = evaluate(X, LABELS, 1), evaluate(X + 2 * points(120, 6, seed=9), LABELS, 1)
    one = good.compare(bad)["Recall@1"]
    assert one.value == pytest.approx(good["Recall@1"] - bad["Recall@1"])
    assert one.interval.low > 0
    assert one.p < 0.01
    assert "other rows or classes" in refusal_of(good.compare, evaluate(X[:60], LABELS[:60], 1))


def test_json_holds_figures_intervals_counts_and_choices():
    labels = LABELS.clone()
    labels[:3] = torch.arange(100, 103)
    found = json.loads(evaluate(X, labels, (1, 200), groups=[0] * 120, exclude="group").to_json())
    assert found["figures"]["Recall@1"]["value"] is None  # nothing of another group
    assert found["figures"]["Recall@1"]["left_out"] == 120
    assert found["choices"]["exclude"] == "group"
    found = json.loads(evaluate(X, labels, (1, 200), distance="cosine").to_json())
    figure = found["figures"]["Recall@200"]
    assert (figure["queries"], figure["left_out"], figure["clipped"]) == (117, 3, 120)
    assert figure["interval"] == [1.0, 1.0]
    assert found["choices"]["distance"] == "cosine"
    assert any("3 left out" in note for note in found["notes"])


def test_a_gallery_and_its_protocol():
    ref = References(X[60:], LABELS[60:] - 6)
    found = evaluate(X[:60] - 1, LABELS[:60], 1, ref=ref, groups=([0] * 60, [1] * 60), ignore=5)
    assert found["Recall@1"].queries == 50
    assert found.choices["gallery"] == "60 references"


def test_figures_of_pairs_know_the_gallery_and_its_protocol():
    ref = References(X[60:], LABELS[60:] - 6)
    cameras, rule = (torch.arange(60) % 2, torch.arange(60) % 3), {"ignore": 5, "distractors": 4}
    found = evaluate(
        X[:60], LABELS[:60], figures=("verification", "similarities"), ref=ref, groups=cameras, **rule
    )
    x, y = X[:60].double(), X[60:].double()
    similar = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T
    positive, negative = compared_pairs(
        LABELS[:60].tolist(), (LABELS[60:] - 6).tolist(), None, cameras, None, [5], [4]
    )
    sides = [[float(similar[pair]) for pair in side] for side in (positive, negative)]
    wins = sum((p > n) + (p == n) / 2 for p in sides[0] for n in sides[1])
    assert found["ROC-AUC"] == pytest.approx(wins / len(positive) / len(negative), rel=1e-5)
    assert f"{len(positive):,} positive and {len(negative):,} negative pairs" in str(found)
    both = [np.histogram(side, 100, (-1, 1))[0] / len(side) for side in sides]
    assert found["overlap of similarities"] == pytest.approx(np.minimum(*both).sum(), abs=1e-9)
    assert found["ROC-AUC"] != evaluate(X[:60], LABELS[:60], figures="verification")["ROC-AUC"]


def test_figures_of_one_set_refuse_what_only_a_search_knows():
    given = {
        "ref": References(X, LABELS),
        "groups": [0] * 120,
        "distractors": 3,
        "ids": torch.arange(120),
    }
    for family in ("clustering", "geometry", "few-shot"):
        for argument, value in given.items():
            said = refusal_of(evaluate, X, LABELS, figures=("retrieval", family), **{argument: value})
            assert said.startswith(f"evaluate({argument}=")
            assert f'None beside figures="{family}"' in said
            assert "in a call of its own" in said


def test_figures_of_one_set_leave_junk_out():
    labels = torch.arange(120) // 20
    kept = labels != 2
    families = ("clustering", "geometry", "few-shot", "verification", "similarities")
    for junk, names in ((2, labels), ("c2", [f"c{each}" for each in labels.tolist()])):
        found = evaluate(X, names, figures=families, ignore=junk)
        alone = evaluate(X[kept], labels[kept], figures=families)
        assert found == pytest.approx(dict(alone))


def test_unknown_families_are_refused():
    assert "did you mean 'ranking'" in refusal_of(evaluate, X, LABELS, figures="rankin")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_curves_are_drawn_and_not_drawn_over(tmp_path, suffix):
    found = evaluate(X, LABELS, figures=("retrieval", "curves", "verification", "similarities"))
    target = tmp_path / f"curves{suffix}"
    found.plot(target)
    assert target.stat().st_size > 5000
    assert "curves" in refusal_of(found.plot, target)
    found.plot(target, overwrite=True)
    assert "evaluate with figures=" in refusal_of(evaluate(X, LABELS).plot, tmp_path / "none.png")


def test_collapsed_embeddings_say_so():
    found = evaluate(torch.ones(20, 3), torch.arange(20) // 2, 1)
    assert found["Recall@1"] == pytest.approx(1 / 19)
    assert "Recall@1 of 100.0% of them depends on ties" in str(found)
    assert not math.isnan(found.intervals["Recall@1"].low)


@pytest.mark.campaign
@pytest.mark.parametrize("classes", [40, 100])
def test_intervals_of_figures_without_each_class_hold_their_mean_over_data_sets(classes):
    """Of 200 data sets; NMI, for instance, is meant as its mean over data sets of so many classes."""
    families = ("gap", "verification", "similarities", "clustering", "geometry", "few-shot")
    values, intervals = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        labels = np.repeat(np.arange(classes), rng.integers(16, 28, classes))
        spread = rng.uniform(0.5, 1.2, classes)[labels, None]
        centres = 1.2 * rng.normal(size=(classes, 8))[labels]
        x = torch.from_numpy(centres + spread * rng.normal(size=(len(labels), 8))).float()
        found = evaluate(x, labels, 1, figures=families, seed=seed)
        values.append(dict(found))
        if seed < 200:
            intervals.append(found.intervals)
    for name in set(intervals[0]) - {"tied rows", "rows of NaN"}:
        truth = np.mean([each[name] for each in values])
        held = sum(each[name].low <= truth <= each[name].high for each in intervals)
        assert held >= 180, (name, held)  # 95 % of 200, less 3.3 standard deviations
