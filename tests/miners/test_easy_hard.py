"""Every combination of choices by a loop, the miners that are cases of it, and refusals."""

from itertools import product

import pytest
import torch

from tercet.core.indices import References
from tercet.miners.batch_all import BatchAll
from tercet.miners.easy_hard import EasyHard
from tercet.miners.hard import BatchHard, EasyPositive, HardestN, SemiHard
from tests.contracts.miners import BATCHES, check_equal, check_tile_invariant, check_valid
from tests.helpers import points, unchecked
from tests.oracles import triplets as reference

CHOICES = ["easy", "semi_hard", "hard", "all"]
PAIRS = [(p, n) for p, n in product(CHOICES, CHOICES) if p != "semi_hard" or n not in ("semi_hard", "all")]
RANGES = [(None, None), ((0.4, 1.3), (0.3, 2.1)), ((None, 1.0), (0.9, None))]
SOME = ["P ≠ K, shuffled", "uneven positives per anchor", "one class only", "two identical images", "ties"]
NAMED = {
    "batch hard": (EasyHard("hard", "hard"), BatchHard()),
    "three hardest": (EasyHard("hard", "hard", negative_k=3), HardestN(3)),
    "easy positive": (EasyHard(), EasyPositive()),
    "easy positive, hard": (EasyHard("easy", "hard"), EasyPositive("hard")),
    "semi-hard": (EasyHard("all", "semi_hard", margin=0.2), SemiHard()),
    "semi-hard, unbounded": (EasyHard("all", "semi_hard"), SemiHard(None)),
    "all": (EasyHard("all", "all"), BatchAll()),
    "all, drawn": (EasyHard("all", "all", max_count=5, seed=3), BatchAll(max_count=5, seed=3)),
}
# Which no named miner searches, though it gives the same.
FREE = {"positive_range": (None, 1e9)}


def every_option(positives, negatives):
    for (kp, kn), (pr, nr) in [*product([(1, 1)], RANGES), ((2, 3), RANGES[2]), ((50, 50), RANGES[0])]:
        for margin in (None, 0.5) if "semi_hard" in (positives, negatives) else (None,):
            yield {
                "positives": positives,
                "negatives": negatives,
                "positive_k": 1 if positives == "all" else kp,
                "negative_k": 1 if negatives == "all" else kn,
                "margin": margin,
                "positive_range": pr,
                "negative_range": nr,
            }


@pytest.mark.parametrize(("positives", "negatives"), PAIRS)
@pytest.mark.usefixtures("width")
def test_every_combination_of_choices_equals_the_loop(positives, negatives):
    for options in every_option(positives, negatives):
        for name in SOME:
            x, labels = BATCHES[name]
            mined = EasyHard(**options)(x, labels)
            check_valid(mined, labels)
            d = reference.distances("euclidean", x)
            check_equal(mined, reference.easy_hard(d, *reference.relation(labels), **options))
        x, labels = BATCHES["uneven positives per anchor"]
        check_tile_invariant(lambda height: EasyHard(**options, tile_rows=height)(x, labels), (3,))  # noqa: B023


@pytest.mark.parametrize(("positives", "negatives"), PAIRS)
def test_references_are_chosen_from(positives, negatives):
    x, labels = BATCHES["P ≠ K, shuffled"]
    ref = References(points(9, 6, seed=5), torch.arange(9) % 4, torch.arange(9))
    ids = torch.arange(15)
    sides = reference.relation(labels, ref.labels, ids, ref.ids)
    d = reference.distances("euclidean", x, ref.embeddings)
    for options in every_option(positives, negatives):
        mined = EasyHard(**options)(x, labels, ids=ids, ref=ref)
        check_equal(mined, reference.easy_hard(d, *sides, **options))


@pytest.mark.parametrize("name", NAMED)
def test_other_miners_are_cases_of_it(name):
    ours, named = NAMED[name]
    for x, labels in BATCHES.values():
        for u, v in zip(ours(x, labels), named(x, labels), strict=True):
            assert torch.equal(u, v)


@pytest.mark.parametrize("name", [name for name in NAMED if name != "all, drawn"])
def test_its_own_search_finds_what_those_find(name):
    ours, named = NAMED[name]
    for x, labels in BATCHES.values():
        options = {key: value for key, value in vars(ours).items() if key != "positive_range"}
        for u, v in zip(EasyHard(**options, **FREE)(x, labels), named(x, labels), strict=True):
            assert torch.equal(u, v)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"positives": "semihard"}, r"positives='semihard'.*did you mean 'semi_hard'\?"),
        ({"negatives": "some"}, r"negatives='some'\): expected"),
        (
            {"positives": "semi_hard"},
            r"negatives='semi_hard'\): expected \"easy\" or \"hard\" with positives=\"semi_hard\", which",
        ),
        ({"positives": "semi_hard", "negatives": "all"}, r"negatives='all'\): expected \"easy\" or \"hard\""),
        (
            {"positives": "all", "positive_k": 2},
            r"positive_k=2\): expected 1 with positives=\"all\"; leave one",
        ),
        (
            {"negatives": "all", "negative_k": 2},
            r"negative_k=2\): expected 1 with negatives=\"all\"; leave one",
        ),
        ({"negative_k": 0}, r"negative_k=0\): expected a whole number of at least 1"),
        (
            {"negatives": "hard", "margin": 0.1},
            r"margin=0.1\): expected None without a side that is \"semi_hard\"",
        ),
        ({"margin": -0.1}, r"margin=-0.1\): expected .* at least 0"),
        ({"positive_range": 1.0}, r"positive_range=1.0\): expected \(low, high\), each a distance or None"),
        ({"positive_range": (1, 2, 3)}, r"positive_range=\(1, 2, 3\)\): expected \(low, high\), each"),
        (
            {"negative_range": (2, 1)},
            r"negative_range=\(2, 1\)\): expected \(low, high\) with low at most high",
        ),
        ({"negative_range": ("a", 1)}, r"negative_range='a'\): expected"),
    ],
)
def test_choices_that_mean_nothing_are_refused(options, text):
    with pytest.raises(ValueError, match=rf"^EasyHard\({text}"), unchecked():
        EasyHard(**options)
