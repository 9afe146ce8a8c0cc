import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from tercet.offline.filters import Reason
from tercet.offline.hard_negatives import mine_hard_triplets
from tercet.offline.selection import as_strategy, selection_order
from tercet.offline.verdicts import Verdicts, suspected_labels
from tercet.pairwise.budget import override
from tests.helpers import unchecked
from tests.oracles import hard_negatives as oracle


def whole(n, d=2, seed=0, most=5):
    """Points of small whole numbers: many ties and duplicates, and squared distances that are exact."""
    return np.random.default_rng(seed).integers(0, most, (n, d)).astype(np.float32)


def clustered(n=240, classes=24, d=16, noise=0.7, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centers = rng.normal(size=(classes, d))
    return (centers[labels] + noise * rng.normal(size=(n, d))).astype(np.float32), labels


def squared(x):
    return ((x[:, None].astype(np.float64) - x[None]) ** 2).sum(2).tolist()


def mined(x, labels, **options):
    return mine_hard_triplets(x, labels, distance="squared_euclidean", **options)


def by_pair(found):
    """{(a, p): (negatives, reserve)} without the −1 of short lists."""
    rows = zip(found.anchor.tolist(), found.positive.tolist(), found.negatives, found.reserve, strict=True)
    return {(a, p): (n[n >= 0].tolist(), r[r >= 0].tolist()) for a, p, n, r in rows}


def check_whole(found, labels):
    """What every result must keep, whatever the options."""
    report, triplets = found.report, found.triplets
    labels = np.asarray(labels)
    assert sum(report.counts.values()) == report.pairs * report.rows
    assert min(report.counts.values()) >= 0
    assert report.counts[Reason.CHOSEN] == report.triplets == len(found)
    assert triplets.count == len(found)
    assert (labels[triplets.anchor] == labels[triplets.positive]).all()
    assert (labels[triplets.anchor] != labels[triplets.negative]).all()
    assert (triplets.anchor != triplets.positive).all()
    for row in np.concatenate([found.negatives, found.reserve], axis=1):
        there = row[row >= 0]
        assert len(set(there.tolist())) == len(there)  # no row twice for a pair
    assert np.array_equal(np.isnan(found.scores), found.negatives < 0)


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "negatives": st.integers(1, 4),
        "reserve": st.integers(0, 3),
        "positives": st.sampled_from(["all", "hardest", "easiest", 1, 2, 9]),
        "ranks": st.sampled_from([(1, 100), (1, 1), (2, 4), (3, 6), (50, 60)]),
        "margin": st.sampled_from([0, 1, 2.5]),
        "relative_margin": st.sampled_from([0, 0.5, 1]),
        "reference": st.sampled_from(["own", "min", "mean", "max"]),
        "max_score": st.sampled_from([-1, -2, 0]),
        "min_score": st.sampled_from([-20, -8, -4]),
        "per_class": st.integers(1, 2),
        "semi_hard": st.booleans(),
    },
)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 14),
    st.integers(1, 4),
    st.integers(0, 10**6),
    OPTIONS,
    st.booleans(),
    st.booleans(),
    st.sampled_from([(1 << 20, 1 << 20), (1, 1), (300, 150)]),
)
def test_equals_the_loop(n, classes, seed, options, with_groups, with_ids, sizes):
    rng = np.random.default_rng(seed)
    x, labels = whole(n, seed=seed), rng.integers(0, classes, n)
    more = {
        "groups": rng.integers(0, 3, n) if with_groups else None,
        "ids": rng.integers(0, n, n) if with_ids else None,
    }
    for name in ("negatives", "reserve"):
        if name in options:
            options[name] = min(options[name], max(1, n - 1))
    if options.get("min_score", -100) > options.get("max_score", 100):
        options.pop("min_score")
    expected, counts = oracle.mine(squared(x), labels.tolist(), **options, **more)
    semi_hard = options.pop("semi_hard", False)
    with override(found_candidates=sizes[0], judged_candidates=sizes[1]):
        found = mined(x, labels, strategy="semi-hard" if semi_hard else "hardest", **options, **more)
    assert by_pair(found) == expected
    assert Counter({r.name: c for r, c in found.report.counts.items() if c}) == counts
    check_whole(found, labels)


def test_scores_and_ranks_are_those_of_the_rows():
    x, labels = clustered()
    found = mine_hard_triplets(x, labels, negatives=3, reserve=2, ranks=(4, 30))
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    cosine = unit @ unit.T
    for rows, scores, ranks in (
        (found.negatives, found.scores, found.ranks),
        (found.reserve, found.reserve_scores, found.reserve_ranks),
    ):
        assert np.allclose(scores, cosine[found.anchor[:, None], rows], atol=1e-5)
        nearer = (cosine[found.anchor][:, None, :] > cosine[found.anchor[:, None], rows][..., None]) & (
            labels[None, None] != labels[found.anchor][:, None, None]
        )
        assert np.array_equal(ranks, nearer.sum(2) + 1)
    assert np.allclose(found.positive_score, cosine[found.anchor, found.positive], atol=1e-5)


@pytest.mark.parametrize("strategy", ["random", "softmax", "simans"])
def test_random_orders_choose_allowed_candidates_alone_and_repeat(strategy):
    x, labels = clustered()
    options = {"strategy": strategy, "negatives": 4, "reserve": 3, "ranks": (3, 40), "margin": 0.05}
    found = mine_hard_triplets(x, labels, **options)
    check_whole(found, labels)
    assert ((found.ranks[found.negatives >= 0] >= 3) & (found.ranks[found.negatives >= 0] <= 40)).all()
    own = np.broadcast_to(found.positive_score[:, None], found.scores.shape)
    there = found.negatives >= 0
    assert (found.scores[there] <= own[there] - 0.05 + 1e-6).all()
    again = mine_hard_triplets(x, labels, **options)
    assert np.array_equal(found.negatives, again.negatives)
    other = mine_hard_triplets(x, labels, **options, seed=1)
    assert not np.array_equal(found.negatives, other.negatives)
    some = mine_hard_triplets(x, labels, **options, anchors=[7, 3, 3])  # each pair by itself
    assert np.array_equal(some.negatives, found.negatives[np.isin(found.anchor, [3, 7])])


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        (("random", None, None, None), lambda s, p: np.ones_like(s)),
        (("softmax", 2.0, None, None), lambda s, p: np.exp(s / 2.0)),
        (("simans", None, 0.5, -1.0), lambda s, p: np.exp(-0.5 * (s - p + 1.0) ** 2)),
    ],
)
def test_random_orders_have_their_density(options, weight):
    """The first choice of 4,000 anchors among five candidates, by a chi-square of four degrees of freedom."""
    t, own = 4000, -2.0
    scores = np.array([-1.0, -1.5, -2.5, -3.0, -4.0])
    rows = np.broadcast_to(np.arange(10, 15), (t, 5))
    order = selection_order(
        as_strategy(*options, seed=0),
        np.arange(t),
        np.zeros(t, dtype=np.int64),
        rows,
        np.broadcast_to(scores, (t, 5)),
        np.full(t, own),
        np.ones((t, 5), dtype=bool),
    )
    share = weight(scores, own)
    expected = t * share / share.sum()
    chi = ((np.bincount(order[:, 0], minlength=5) - expected) ** 2 / expected).sum()
    assert chi < 23.5  # p = 0.0001


def test_a_share_is_drawn_from_the_whole_collection():
    x, labels = clustered(n=600, classes=60)
    found = mine_hard_triplets(x, labels, negatives=4, uniform=0.5, ranks=(1, 10))
    check_whole(found, labels)
    drawn = found.ranks == 0
    # a half, less the few that are among the ten candidates
    assert 0.45 < drawn.mean() < 0.52
    assert found.report.drawn >= drawn.sum()
    far = found.negatives[drawn]
    counts = np.bincount(far, minlength=600)
    assert counts.min() > 0
    assert counts.std() < 2 * math.sqrt(counts.mean())


def short_case():
    """One anchor of many with nothing allowed: all others of its class are farther than any other class."""
    x = np.array([[0.0], [5.0], [1.0], [1.1], [9.0], [9.1]])
    return x, [0, 0, 1, 1, 2, 2]


def test_short_pairs_are_kept_dropped_relaxed_filled_or_refused():
    x, labels = short_case()
    options = {"negatives": 2, "distance": "euclidean", "max_score": -3.5}
    kept = mine_hard_triplets(x, labels, **options)
    assert kept.negatives[0].tolist() == [4, 5]
    assert kept.negatives[1].tolist() == [3, 2]
    narrow = {**options, "ranks": (1, 2)}
    kept = mine_hard_triplets(x, labels, **narrow)
    assert kept.negatives[0].tolist() == [-1, -1]
    assert kept.report.short == sum((row < 0).any() for row in kept.negatives)
    check_whole(kept, labels)
    dropped = mine_hard_triplets(x, labels, **narrow, on_short="drop")
    assert 0 not in dropped.anchor.tolist()
    assert dropped.report.counts[Reason.SHORT_PAIR] == kept.report.short * 6
    check_whole(dropped, labels)
    relaxed = mine_hard_triplets(x, labels, **narrow, on_short="relax")
    assert relaxed.negatives[0].tolist() == [3, 2]  # the farther of the refused first
    assert relaxed.report.relaxed
    check_whole(relaxed, labels)
    filled = mine_hard_triplets(x, labels, **narrow, on_short="random")
    assert sorted(filled.negatives[0].tolist()) == [4, 5]  # not the two that were refused
    assert filled.ranks[0].tolist() == [0, 0]
    check_whole(filled, labels)
    with pytest.raises(
        ValueError, match=r"on_short='error'\): expected 2 negatives for each pair, and \d pairs"
    ):
        mine_hard_triplets(x, labels, **narrow, on_short="error")


def test_a_quantile_of_positive_scores_is_one_number_for_every_model():
    x, labels = clustered()
    found = mine_hard_triplets(x, labels, max_quantile=0.05, negatives=3)
    bound = np.quantile(mine_hard_triplets(x, labels).positive_score.astype(np.float64), 0.05)
    assert np.nanmax(found.scores) <= bound
    assert found.report.counts[Reason.QUANTILE] > 0


def test_a_second_opinion_refuses_what_it_finds_nearer_than_the_positive():
    x, labels = clustered()
    teacher = np.random.default_rng(1).normal(size=x.shape)
    unit = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    found = mine_hard_triplets(x, labels, teacher=teacher, teacher_margin=0.1, negatives=2)
    check_whole(found, labels)
    a, p, n = found.triplets
    score = lambda i, j: (unit[i] * unit[j]).sum(1)  # noqa: E731
    assert (score(a, n) <= score(a, p) - 0.1 + 1e-9).all()
    by_function = mine_hard_triplets(x, labels, teacher=score, teacher_margin=0.1, negatives=2)
    assert np.array_equal(found.negatives, by_function.negatives)
    with unchecked(), pytest.raises(ValueError, match=r"^mine_hard_triplets\(teacher="):
        mine_hard_triplets(x, labels, teacher=lambda i, j: np.zeros(3))


def test_at_most_so_many_of_a_class_or_cluster():
    x, labels = clustered(classes=6)
    found = mine_hard_triplets(x, labels, negatives=4, per_class=1)
    for row in found.negatives:
        assert len(set(labels[row[row >= 0]])) == (row >= 0).sum()
    few = mine_hard_triplets(x, labels, negatives=4, per_class=1, clusters=3, ranks=(1, 240))
    assert (few.negatives >= 0).sum(1).max() <= 3
    with pytest.raises(ValueError, match=r"clusters=3\): expected per_class="):
        mine_hard_triplets(x, labels, clusters=3)


def test_rows_without_an_embedding_are_never_used():
    x, labels = clustered()
    x[[3, 50]] = math.nan
    found = mine_hard_triplets(x, labels, negatives=5, uniform=0.3, on_short="random")
    check_whole(found, labels)
    used = np.concatenate([found.anchor, found.positive, found.negatives.ravel()])
    assert not np.isin(used, [3, 50]).any()
    assert (found.report.unusable, found.report.rows) == (2, 238)


def test_duplicates_of_the_anchor_are_never_negatives():
    x, labels = clustered()
    x[1::2] = x[::2]  # each image again, in another class
    for options in (
        {},
        {"on_short": "random", "negatives": 40},
        {"uniform": 1.0},
        {"on_short": "relax", "margin": 9.0},
    ):
        found = mine_hard_triplets(x, labels, anchors=range(0, 240, 20), positives="easiest", **options)
        a, _, n = found.triplets
        assert not (x[a] == x[n]).all(1).any()
        check_whole(found, labels)


def test_nothing_to_mine_is_an_empty_result():
    for x, labels in (
        (np.ones((1, 2), np.float32), [0]),
        (whole(4), [0, 1, 2, 3]),  # no positive
        (whole(4), [0, 0, 0, 0]),  # no negative
        (np.full((4, 2), math.nan, np.float32), [0, 0, 1, 1]),
    ):
        found = mined(x, labels)
        assert len(found) == 0
        check_whole(found, labels)
        assert str(found.report)


def test_collapsed_embeddings_give_no_triplets_and_say_why():
    found = mined(np.ones((12, 3), np.float32), np.arange(12) % 3)
    assert len(found) == 0
    assert found.report.counts[Reason.DUPLICATE] == 12 * 3 * 8


@pytest.mark.parametrize("kind", ["memmap", "half", "tensor", "double"])
def test_every_kind_of_matrix_gives_the_same(kind, tmp_path):
    x, labels = clustered()
    x = x.astype(np.float16).astype(np.float32)
    expected = mine_hard_triplets(x, labels, negatives=2)
    np.save(tmp_path / "x.npy", x)
    same = {
        "memmap": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "half": x.astype(np.float16),
        "tensor": torch.from_numpy(x).requires_grad_(),
        "double": x.astype(np.float64),
    }[kind]
    assert np.array_equal(mine_hard_triplets(same, labels, negatives=2).negatives, expected.negatives)


def test_the_report_is_a_table_and_json():
    x, labels = clustered()
    report = mine_hard_triplets(x, labels, margin=0.1).report
    assert "within margin of the positive" in str(report)
    assert json.loads(json.dumps(report.as_dict()))["counts"]["chosen"] == report.triplets


def with_wrong_labels(count=10):
    x, labels = clustered(n=600, classes=60)
    wrong = np.random.default_rng(2).choice(600, count, replace=False)
    given = labels.copy()
    given[wrong] = (given[wrong] + 11) % 60
    return x, given, wrong


def test_planted_wrong_labels_are_among_the_first_suspects():
    x, given, wrong = with_wrong_labels()
    found = suspected_labels(x, given)
    assert np.isin(found.image[:20], wrong).sum() >= 8
    assert (np.diff(found.doubt) <= 0).all()
    assert (given[found.image] != given[found.other]).all()


@pytest.mark.parametrize("seed", range(4))
def test_planted_wrong_labels_of_digits_are_among_the_first_twenty_suspects(seed):
    """Ten of 1,797 real images; their embeddings are their pixels."""
    x, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(labels), 10, replace=False)
    given = labels.copy()
    given[wrong] = (given[wrong] + rng.integers(1, 10, 10)) % 10
    found = suspected_labels(x.astype(np.float32), given)
    assert np.isin(found.image[:20], wrong).sum() >= 8
    shuffled = rng.permutation(found.image)[:20]
    assert np.isin(shuffled, wrong).sum() < 10  # the order is what puts them first


def test_suspects_are_not_mined_against_the_class_that_they_look_like():
    x, given, _ = with_wrong_labels()
    found = mine_hard_triplets(x, given, suspects=10 / 600, negatives=5)
    check_whole(found, given)
    assert len(found.suspects.image) == 10
    assert found.report.counts[Reason.SUSPECT] > 0
    a, _, n = found.triplets
    for image, other in zip(found.suspects.image, found.suspects.other, strict=True):
        assert not ((a == image) & (given[n] == given[other])).any()
        assert not ((n == image) & (given[a] == given[other])).any()


def test_verdicts_are_kept():
    x, given, _ = with_wrong_labels()
    found = suspected_labels(x, given)
    words = ["same", "duplicate", "skip", "different", "?"]
    first = Verdicts(*(column[:5] for column in found[:4]), words)
    mined_again = mine_hard_triplets(x, given, verdicts=first, suspects=1.0, negatives=20)
    check_whole(mined_again, given)
    a, p, n = mined_again.triplets
    image, other = first.image, first.other
    assert not ((a == image[0]) & (given[n] == given[other[0]])).any()
    assert not (((a == image[1]) & (n == other[1])) | ((a == other[1]) & (n == image[1]))).any()
    assert not np.isin(image[2], np.concatenate([a, p, n]))
    assert not np.isin(image[:4], mined_again.suspects.image).any()  # a person has spoken of these
    assert image[4] in mined_again.suspects.image  # of this one nobody has: it stays set aside
    assert mined_again.report.counts[Reason.VERDICT] > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"negatives": 0}, r"negatives=0\): expected a whole number"),
        ({"negatives": 240}, r"negatives=240\): expected a whole number"),
        ({"strategy": "hard"}, r"strategy='hard'\): expected one of|strategy='hard'\): expected"),
        ({"ranks": (5, 2)}, r"ranks=\(5, 2\)\): expected two ranks"),
        ({"ranks": 5}, r"ranks=5\): expected two ranks"),
        ({"positives": "nearest"}, r"positives='nearest'\): expected 'all', 'hardest', 'easiest'"),
        ({"margin": -0.1}, r"margin=-0.1\)"),
        ({"margin": math.nan}, r"margin=nan\)"),
        ({"max_quantile": 1.5}, r"max_quantile=1.5\)"),
        ({"min_score": 0.5, "max_score": 0.1}, r"min_score=0.5\): expected at most max_score=0.1"),
        ({"uniform": 2}, r"uniform=2\)"),
        ({"on_short": "pad"}, r"on_short='pad'\)"),
        ({"temperature": 0.1}, r"temperature=0.1\): expected None: it is an option of strategy='softmax'"),
        ({"group_negatives": True}, r"group_negatives=True\): expected groups="),
        ({"groups": [1, 2]}, r"groups='?2 values'?\)"),
        ({"anchors": [999]}, r"anchors=999\): expected rows from 0 to 239"),
        ({"verdicts": "x.csv"}, r"verdicts='?str'?\): expected Verdicts"),
        ({"teacher": np.zeros((3, 2))}, r"teacher='?3 rows'?\)"),
        ({"seed": -1}, r"seed=-1\)"),
        ({"suspects": -1}, r"suspects=-1\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, sentence):
    x, labels = clustered()
    with unchecked(), pytest.raises(ValueError, match=rf"^mine_hard_triplets\({sentence}"):
        mine_hard_triplets(x, labels, **options)


def test_embeddings_without_labels_or_of_another_number_are_refused():
    x, labels = clustered()
    with pytest.raises(ValueError, match=r"mine_hard_triplets\(labels=None\): expected one label"):
        mine_hard_triplets(x)
    with pytest.raises(ValueError, match=r"mine_hard_triplets\(labels="):
        mine_hard_triplets(x, labels[:-1])
    with pytest.raises(ValueError, match=r"mine_hard_triplets\(embeddings="):
        mine_hard_triplets(x.astype(np.int64), labels)
