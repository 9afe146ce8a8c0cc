"""Batches by anchor: each triplet once, few images, and the loss of one triplet at a time."""

import copy
import json
import math
import pickle
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tercet.core.indices import LabeledPairs, Triplets
from tercet.data.catalog.scan import scan_folder
from tercet.data.datasets.triplet_dataset import PairDataset, TripletDataset
from tercet.data.manifests.manifest import read_manifest
from tercet.data.manifests.writing import write_manifest
from tercet.data.samplers.by_anchor import AnchorSampler
from tercet.data.samplers.shuffled import ShuffledSampler
from tercet.data.triplets.deep_ranking import DeepRankingTriplets
from tercet.data.triplets.pairs import RandomPairs
from tercet.data.triplets.random import RandomTriplets
from tercet.data.triplets.relevance import FunctionRelevance
from tercet.losses.triplet import TripletMargin
from tests.helpers import plain, unchecked

torch.set_num_threads(1)
stateful = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata's own
LABELS = np.arange(60) % 6  # ten of each


def of_anchors(anchors):
    """Triplets of these anchors; what else they hold is of no matter to a sampler."""
    anchors = np.array(anchors, dtype=np.int64)
    return Triplets(anchors, anchors + 1, anchors + 2)


def steps_of(samplers, epoch):
    """[step][rank] batches."""
    return [
        [plain([sampler.batch(epoch, step)])[0] for sampler in samplers] for step in range(len(samplers[0]))
    ]


def faults(steps, anchors, labels, most, per_class, epoch, again=0):
    """What is wrong with an epoch, given as [step][rank] batches of (number, epoch, view), by counting.

    `again` is how many of the last batches are the first ones once more.
    """
    batches = [(step, batch) for step, ranks in enumerate(steps) for batch in ranks]
    batches, repeated = batches[: len(batches) - again], batches[len(batches) - again :]
    found, seen, together = [], Counter(), Counter()
    for (_, first), (step, batch) in zip(batches, repeated, strict=False):  # only the first ones recur
        if batch != [(number, epoch, 1) for number, _, _ in first]:
            found.append(f"step {step}: not a batch once more")
    for step, batch in batches:
        numbers = [number for number, _, _ in batch]
        seen.update(numbers)
        together.update(runs(batch, anchors, labels))
        if any((its_epoch, view) != (epoch, 0) for _, its_epoch, view in batch):
            found.append(f"step {step}: another epoch or view")
        here = {int(anchors[number]) for number in numbers}
        if not 1 <= len(here) <= most:
            found.append(f"step {step}: {len(here)} anchors")
        if sum(anchors[a] != anchors[b] for a, b in pairwise(numbers)) > len(here) - 1:
            found.append(f"step {step}: an anchor's triplets are apart")
        if set(numbers) != {number for number, anchor in enumerate(anchors.tolist()) if anchor in here}:
            found.append(f"step {step}: not all triplets of its anchors")
    if sorted(seen.elements()) != list(range(len(anchors))):
        found.append("not each triplet once")
    for label, bundles in together.items():
        if bundles > -(-len({a for a in anchors.tolist() if labels[a] == label}) // per_class):
            found.append(f"class {label}: torn apart")
    return found


def runs(batch, anchors, labels):
    """The classes of the anchors of a batch, one for each run of anchors of a class."""
    classes = [labels[anchors[number]] for number, _, _ in batch]
    return [b for a, b in pairwise([None, *classes]) if a != b]


def ranks_of(triplets, world_size, **options):
    return [AnchorSampler(triplets, rank=r, world_size=world_size, **options) for r in range(world_size)]


@st.composite
def cases(draw):
    anchors = np.array(draw(st.lists(st.integers(0, 25), min_size=1, max_size=60)))
    labels = np.array(draw(st.lists(st.integers(0, 3), min_size=26, max_size=26)))
    per_class = draw(st.integers(1, 4))
    sizes = Counter(labels[anchor] for anchor in set(anchors.tolist()))
    bundles = sum(-(-size // per_class) for size in sizes.values())
    world_size = draw(st.integers(1, min(3, bundles)))
    options = {
        "anchors": per_class * draw(st.integers(1, 4)),
        "per_class": per_class,
        "seed": draw(st.integers(0, 9)),
    }
    return anchors, labels, options, world_size, bundles


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 3))
def test_every_law_holds_on_any_triplets(case, epoch):
    anchors, labels, options, world_size, bundles = case
    samplers = ranks_of(of_anchors(anchors), world_size, labels=labels, **options)
    each = options["anchors"] // options["per_class"]
    steps = steps_of(samplers, epoch)
    assert {len(sampler) for sampler in samplers} == {math.ceil(bundles / each / world_size)} == {len(steps)}
    again = max(0, len(steps) * world_size - bundles)
    assert again == 0 or each == 1
    classes = labels if options["per_class"] > 1 else np.arange(26)
    assert not faults(steps, anchors, classes, options["anchors"], options["per_class"], epoch, again)


GOOD = [[[(0, 2, 0), (2, 2, 0), (1, 2, 0)]], [[(3, 2, 0)]]]  # anchors 5, 6, 5, 7 of classes 0, 0, 1


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (GOOD, []),
        ([*GOOD, []], []),
        ([GOOD[0]], ["not each triplet once"]),
        ([*GOOD, GOOD[1]], ["not each triplet once", "class 1: torn apart"]),
        ([[[(0, 2, 0), (2, 2, 0), (1, 2, 1)]], GOOD[1]], ["step 0: another epoch or view"]),
        ([[[(0, 2, 0), (1, 2, 0), (2, 2, 0)]], GOOD[1]], ["step 0: an anchor's triplets are apart"]),
        ([[[*GOOD[0][0], (3, 2, 0)]]], ["step 0: 3 anchors"]),
        (
            [[[(0, 2, 0), (1, 2, 0)]], [[(2, 2, 0)]], GOOD[1]],
            [
                "step 0: not all triplets of its anchors",
                "step 1: not all triplets of its anchors",
                "class 0: torn apart",
            ],
        ),
    ],
)
def test_the_checker_names_every_fault(spoilt, said):
    assert faults(spoilt, np.array([5, 6, 5, 7]), [9, 9, 9, 9, 9, 0, 0, 1], 2, 2, 2) == said


def test_the_checker_sees_what_comes_once_more():
    classes = [9, 9, 9, 9, 9, 0, 0, 1]
    for view, said in ((1, []), (0, ["step 2: not a batch once more"])):
        again = [[(number, 2, view) for number in (0, 2, 1)]]
        assert faults([*GOOD, again], np.array([5, 6, 5, 7]), classes, 2, 2, 2, again=1) == said


def test_batches_have_about_equally_many_triplets():
    # As many triplets as the anchor says: from 1 to 64, in batches of 8 that on average have 260.
    sampler = AnchorSampler(of_anchors(np.repeat(np.arange(64), np.arange(1, 65))), 8)
    for _ in range(3):
        sizes = [len(batch) for batch in sampler]
        assert max(sizes) - min(sizes) <= 63
        assert sum(sizes) == 64 * 65 // 2


def test_any_two_anchors_meet_about_equally_often():
    sampler, together = AnchorSampler(of_anchors(range(12)), 3), Counter()
    epochs = 400
    for epoch in range(epochs):
        for step in range(len(sampler)):
            numbers = sorted(map(int, sampler.batch(epoch, step)))
            together.update((a, b) for a in numbers for b in numbers if a < b)
    expected = epochs * 2 / 11  # each of the 66 pairs; its standard deviation is about 7.7
    assert len(together) == 66
    assert all(abs(count - expected) < 5 * 7.7 for count in together.values())


def test_epochs_and_seeds_differ_and_iterating_gives_the_batches():
    triplets = RandomTriplets(LABELS, 3, 2)
    sampler = AnchorSampler(triplets, 8)
    first, second = plain(sampler), plain(sampler)
    assert first == plain(sampler.batch(0, step) for step in range(len(sampler)))
    assert second == plain(sampler.batch(1, step) for step in range(len(sampler)))
    assert [[n for n, *_ in b] for b in first] != [[n for n, *_ in b] for b in second]
    assert plain(AnchorSampler(triplets, 8)) == first != plain(AnchorSampler(triplets, 8, seed=1))


def test_a_manifest_brings_its_labels_and_sequences_give_what_their_lists_give(catalog, tmp_path):
    triplets = RandomTriplets(catalog.labels, 3, 2, seed=1)
    write_manifest(tmp_path / "t.parquet", triplets, catalog)
    manifest = read_manifest(tmp_path / "t.parquet")
    expected = plain(AnchorSampler(triplets, 4, per_class=2, labels=catalog.labels))
    for same in (manifest, triplets[:], Triplets(*map(torch.from_numpy, triplets[:]))):
        labels = None if same is manifest else [f"class {label}" for label in catalog.labels]
        assert plain(AnchorSampler(same, 4, per_class=2, labels=labels)) == expected


def test_reading_in_parts_changes_nothing(monkeypatch):
    triplets = RandomTriplets(LABELS, 3, 2)
    expected = plain(AnchorSampler(triplets, 8))
    monkeypatch.setattr("tercet.data.samplers.by_anchor.READ", 7)
    assert plain(AnchorSampler(triplets, 8)) == expected


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────


def images_per_triplet(triplets, batches):
    rows = [np.unique(np.stack(triplets[np.array(batch)])).size for batch in batches]
    return sum(rows) / sum(len(batch) for batch in batches)


def test_ten_positives_and_five_negatives_take_1_22_images_a_triplet():
    labels = np.arange(20_000) // 20
    triplets = RandomTriplets(labels, 10, 5, seed=0)
    taken = {}
    for per_class in (1, 4, 16):
        sampler = AnchorSampler(triplets, 16, per_class=per_class, labels=labels)
        taken[per_class] = images_per_triplet(triplets, [sampler.batch(0, step) for step in range(20)])
    assert 1.15 < taken[1] <= 1.22
    assert taken[4] < taken[1] - 0.1
    assert taken[16] < taken[4] - 0.02  # 20 images of a class and 800 negatives for 800 triplets
    shuffled = np.array(list(islice(ShuffledSampler(len(triplets)), 800 * 20))).reshape(20, -1)
    assert images_per_triplet(triplets, shuffled) > 2.8


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    import cv2

    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, label in enumerate(np.arange(30) % 3):
        (root / str(label)).mkdir(exist_ok=True)
        image = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        (root / str(label) / f"{number}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return scan_folder(root)


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 4)
    )


@pytest.mark.parametrize("kind", ["random", "deep ranking"])
@pytest.mark.parametrize("per_class", [1, 2])
def test_the_loss_and_its_gradient_are_those_of_three_images_a_triplet(catalog, kind, per_class):
    triplets = RandomTriplets(catalog.labels, 4, 3)
    if kind == "deep ranking":
        relevance = FunctionRelevance(lambda i, j: 1 / (1 + abs(i - j)))
        triplets = DeepRankingTriplets(catalog.labels, relevance, count=300, gap=0.05)
    sampler = AnchorSampler(triplets, 4, per_class=per_class, labels=catalog.labels)
    # "sum", since a mean over batches would also depend on which triplets share a batch
    head = TripletMargin(margin=1.0, distance="squared_euclidean", reduction="sum")
    sums, grads, embedded = [], [], []
    for layout in ("unique", "interleaved"):
        net, count, total = model(), 0, 0.0
        dataset = TripletDataset(triplets, catalog=catalog, layout=layout)
        for images, mined, labels, _ in DataLoader(dataset, batch_sampler=sampler):
            loss = head(net(images), labels, mined)
            loss.backward()
            total, count = total + loss.item(), count + len(images)
        sampler.set_epoch(0)
        sums.append(total)
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        embedded.append(count)
    assert sums[0] > 100
    assert math.isclose(*sums, rel_tol=1e-6)
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-5 * float(grads[0].abs().max()))
    assert embedded[1] == 3 * len(triplets)
    assert embedded[0] < 0.5 * embedded[1]


# ── a bound on the images of a batch ─────────────────────────────────────────────────────────────────────


def bounded_faults(steps, rows, most, anchors, epoch, again=0):
    """What is wrong with an epoch under `images=`, given as [step][rank] batches, by counting.

    `again` is how many of the last batches are the first ones once more.
    """
    batches = [batch for ranks in steps for batch in ranks]
    batches, repeated = batches[: len(batches) - again], batches[len(batches) - again :]
    found = []
    for first, batch in zip(batches, repeated, strict=False):  # only the first ones recur
        if batch != [(number, epoch, 1) for number, _, _ in first]:
            found.append("not a batch once more")
    for step, batch in enumerate(batches):
        here = rows[[number for number, _, _ in batch]]
        if not 1 <= np.unique(here).size <= most:
            found.append(f"batch {step}: {np.unique(here).size} images")
        if np.unique(here[:, 0]).size > anchors:
            found.append(f"batch {step}: {np.unique(here[:, 0]).size} anchors")
        if any((its_epoch, view) != (epoch, 0) for _, its_epoch, view in batch):
            found.append(f"batch {step}: another epoch or view")
    if sorted(number for batch in batches for number, _, _ in batch) != list(range(len(rows))):
        found.append("not each triplet once")
    return found


@st.composite
def bounded_cases(draw):
    width = draw(st.sampled_from([2, 3]))
    rows = draw(
        st.lists(st.lists(st.integers(0, 25), min_size=width, max_size=width), min_size=1, max_size=60)
    )
    rows = np.array(rows)
    per_class = draw(st.integers(1, 3))
    options = {
        "anchors": per_class * draw(st.integers(1, 5)),
        "per_class": per_class,
        "images": draw(st.integers(width, 14)),
        "labels": draw(st.lists(st.integers(0, 3), min_size=26, max_size=26)),
        "seed": draw(st.integers(0, 9)),
    }
    return rows, options, draw(st.integers(1, 3))


def sequence_of(rows):
    """Triplets of these rows; of two columns, pairs."""
    if rows.shape[1] == 2:
        return LabeledPairs(rows[:, 0], rows[:, 1], np.arange(len(rows)) % 2 == 0)
    return Triplets(*rows.T)


@settings(max_examples=60, deadline=None)
@given(bounded_cases(), st.integers(0, 3))
def test_no_batch_has_more_images_than_the_bound_and_each_triplet_comes_once(case, epoch):
    rows, options, world_size = case
    bundles = AnchorSampler(sequence_of(rows), **options)._bundles
    world_size = min(world_size, bundles)
    samplers = ranks_of(sequence_of(rows), world_size, **options)
    steps = steps_of(samplers, epoch)
    assert {len(sampler) for sampler in samplers} == {len(steps)}
    again = max(0, len(steps) * world_size - bundles)
    assert again < world_size
    assert not bounded_faults(steps, rows, options["images"], options["anchors"], epoch, again)


def test_the_checker_of_bounds_names_every_fault():
    rows = np.array([[0, 1, 2], [0, 1, 3], [4, 5, 6]])
    good = [[[(0, 2, 0), (1, 2, 0)]], [[(2, 2, 0)]]]
    assert not bounded_faults(good, rows, 4, 1, 2)
    assert bounded_faults(good, rows, 3, 1, 2) == ["batch 0: 4 images"]
    joined = [[[(0, 2, 0), (1, 2, 0), (2, 2, 0)]]]
    assert bounded_faults(joined, rows, 7, 1, 2) == ["batch 0: 2 anchors"]
    assert bounded_faults(good[:1], rows, 4, 1, 2) == ["not each triplet once"]
    assert bounded_faults([[[(0, 2, 0), (1, 1, 0)]], good[1]], rows, 4, 1, 2) == [
        "batch 0: another epoch or view"
    ]
    assert bounded_faults([*good, good[1]], rows, 4, 1, 2, again=1) == ["not a batch once more"]


def test_case_ten_by_ten_triplets_no_longer_make_a_batch_of_a_thousand_images():
    triplets = RandomTriplets(np.arange(1000) // 20, 10, 10, seed=0)
    rows = np.stack(triplets[:], axis=1)

    def images(sampler):
        return [np.unique(rows[np.array(sampler.batch(0, step))]).size for step in range(len(sampler))]

    assert max(images(AnchorSampler(triplets, 16))) > 700
    for most in (256, 64):  # an anchor has about 110, so that 64 divides it
        bounded = AnchorSampler(triplets, 16, images=most)
        sizes = images(bounded)
        assert max(sizes) <= most
        assert np.mean(sizes) > 0.6 * most  # few batches, and full ones
        seen = [int(number) for numbers in bounded for number in numbers]
        assert sorted(seen) == list(range(len(triplets)))


def test_a_bound_that_none_exceeds_changes_nothing():
    triplets = RandomTriplets(LABELS, 3, 2)
    bounded, free = AnchorSampler(triplets, 8, images=1000), AnchorSampler(triplets, 8)
    assert len(bounded) == len(free)
    assert {len(batch) for batch in bounded} == {len(batch) for batch in free}


def test_bounded_batches_meet_anew_each_epoch_and_by_the_seed():
    triplets = RandomTriplets(LABELS, 3, 2)
    sampler = AnchorSampler(triplets, 8, images=40)
    first, second = plain(sampler), plain(sampler)
    assert first == plain(sampler.batch(0, step) for step in range(len(sampler)))
    sets = [{frozenset(n for n, *_ in batch) for batch in epoch} for epoch in (first, second)]
    assert len(sets[0] & sets[1]) < len(sampler) / 4
    assert plain(AnchorSampler(triplets, 8, images=40)) == first
    assert plain(AnchorSampler(triplets, 8, images=40, seed=1)) != first


def test_a_bounded_rank_resumes_where_it_was():
    triplets = RandomTriplets(LABELS, 3, 2)
    options = {"anchors": 6, "per_class": 2, "labels": LABELS, "images": 20, "rank": 1, "world_size": 2}
    replay = plain(AnchorSampler(triplets, **options))
    for stop in (0, 1, len(replay) - 1, len(replay)):
        other = AnchorSampler(triplets, **options)
        other.load_state_dict(json.loads(json.dumps(AnchorSampler(triplets, **options).state_at(0, stop))))
        assert plain(other)[: len(replay) - stop] == replay[stop:]


def test_a_bounded_state_is_refused_where_other_images_divide_the_triplets_otherwise():
    anchor, other = np.zeros(9, dtype=np.int64), np.arange(1, 10)
    one = AnchorSampler(Triplets(anchor, other, other + 9), 2, images=9)
    another = AnchorSampler(Triplets(anchor, other, np.full(9, 19)), 2, images=9)
    with pytest.raises(ValueError, match="the state was saved with parts="):
        another.load_state_dict(one.state_at(0, 0))


def test_reading_in_parts_divides_alike(monkeypatch):
    triplets = RandomTriplets(LABELS, 3, 2)
    options = {"images": 12, "per_class": 2, "labels": LABELS}
    expected = plain(AnchorSampler(triplets, 8, **options))
    monkeypatch.setattr("tercet.data.samplers.by_anchor.READ", 7)
    assert plain(AnchorSampler(triplets, 8, **options)) == expected


def test_a_state_of_0_1_without_the_bound_is_taken():
    sampler = AnchorSampler(RandomTriplets(LABELS), 8)
    assert "images" not in sampler.state_dict()["settings"]


@pytest.mark.parametrize("kind", ["sequence", "columns", "manifest"])
def test_pairs_come_by_their_first_image(catalog, tmp_path, kind):
    pairs = RandomPairs(catalog.labels, 3, 4, seed=1)
    if kind == "manifest":
        write_manifest(tmp_path / "p.parquet", pairs, catalog)
    given = {"sequence": pairs, "columns": pairs[:]}.get(kind) or read_manifest(tmp_path / "p.parquet")
    sampler = AnchorSampler(given, 4, images=20)
    first = pairs[:].first
    dataset = PairDataset(pairs, catalog=catalog)
    seen = []
    for numbers in plain(sampler):
        numbers = [number for number, *_ in numbers]
        assert len(set(first[numbers])) <= 4
        assert len(dataset[numbers].images) <= 20
        seen += numbers
    assert sorted(seen) == list(range(len(pairs)))


# ── ranks, positions and states ──────────────────────────────────────────────────────────────────────────


def test_a_rank_resumes_where_it_was():
    triplets = RandomTriplets(LABELS, 3, 2)
    for rank in range(2):
        options = {"anchors": 6, "per_class": 2, "labels": LABELS, "rank": rank, "world_size": 2}
        whole = AnchorSampler(triplets, **options)
        replay = plain(whole) + plain(whole)
        for stop in range(len(whole) + 1):
            sampler = AnchorSampler(triplets, **options)
            running = iter(sampler)
            seen = plain(next(running) for _ in range(stop))
            state = json.loads(json.dumps(sampler.state_dict()))
            other = AnchorSampler(triplets, **options)
            other.load_state_dict(state)
            assert seen + plain(other) + plain(other) == replay
            moved = AnchorSampler(triplets, **options)
            moved.set_epoch(0, stop)
            assert plain(moved) == replay[stop : len(whole)]


def test_copies_go_on_from_the_same_place():
    sampler = AnchorSampler(RandomTriplets(LABELS), 8)
    sampler.set_epoch(3, 1)
    expected = plain(copy.deepcopy(sampler))
    assert plain(pickle.loads(pickle.dumps(sampler))) == expected
    assert len(expected) == len(sampler) - 1


@pytest.mark.parametrize(
    "other",
    [
        {"anchors": 4},
        {"per_class": 2},
        {"seed": 1},
        {"world_size": 2},
        {"labels": LABELS[::-1], "per_class": 4},
        {"images": 50},
    ],
)
def test_a_state_is_for_the_same_settings(other):
    triplets, options = RandomTriplets(LABELS), {"anchors": 8, "per_class": 4, "labels": LABELS}
    state = AnchorSampler(triplets, **options).state_dict()
    swapped = other.get("labels")
    if swapped is not None:
        other = {**other, "labels": np.where(LABELS == 0, 1, np.where(LABELS == 1, 0, LABELS // 2))}
    with pytest.raises(ValueError, match=r"AnchorSampler.load_state_dict: the state was saved with"):
        AnchorSampler(triplets, **{**options, **other}).load_state_dict(state)
    with pytest.raises(ValueError, match=r"load_state_dict: the state was saved with triplets="):
        AnchorSampler(RandomTriplets(LABELS, 2), **options).load_state_dict(state)


@stateful
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_stateful_loader_resumes_with_prefetching_workers(catalog, workers, stop):
    triplets = RandomTriplets(catalog.labels, 2, 2)

    def loader():
        sampler = AnchorSampler(triplets, 6, per_class=2, labels=catalog.labels)
        return StatefulDataLoader(
            TripletDataset(triplets, catalog=catalog), batch_sampler=sampler, num_workers=workers
        )

    whole = [batch.rows[batch.triplets.anchor].tolist() for batch in loader()]
    first, second = loader(), loader()
    running = iter(first)
    seen = [next(running) for _ in range(stop)]
    second.load_state_dict(first.state_dict())
    rest = [*seen, *second]
    assert [batch.rows[batch.triplets.anchor].tolist() for batch in rest] == whole


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────

REFUSED = [
    ({"anchors": 0}, r"anchors=0\): expected a whole number of at least 1"),
    ({"per_class": 0}, r"per_class=0\): expected a whole number of at least 1"),
    ({"anchors": 6, "per_class": 4}, r"anchors=6\): expected a multiple of per_class=4"),
    (
        {"per_class": 2},
        r"labels=None\): expected the class of each image, .*; only a Manifest brings its own",
    ),
    ({"per_class": 2, "labels": [0] * 9}, r"labels='9 labels'\): expected one for each image, as .* row 59"),
    ({"per_class": 2, "labels": [0.5] * 60}, r"labels='float64'\): expected whole numbers or strings"),
    ({"triplets": of_anchors([])}, r"triplets=Triplets\(.*\): expected at least one triplet"),
    ({"triplets": of_anchors([-1, 0]), "per_class": 2, "labels": LABELS}, r"labels='60 labels'.* row -1"),
    ({"triplets": 3}, r"triplets='int'\): expected a Manifest or another sequence of triplets"),
    ({"world_size": 61}, r"world_size=61\): expected at most 60, as there are so many bundles of anchors"),
    (
        {"triplets": {0: 1}},
        r"triplets='dict'\): expected a Manifest or another sequence of triplets or pairs",
    ),
    ({"triplets": np.zeros((4, 3))}, r"triplets='ndarray of ndarray'\): expected a Manifest or another"),
    ({"triplets": of_anchors([0, 2**62]), "images": 9}, r"triplets='row \d+'\): expected row numbers of a"),
    ({"images": 2}, r"images=2\): expected a whole number of at least 3"),
    ({"images": 12.5}, r"images=12.5\): expected a whole number of at least 3"),
    ({"triplets": RandomPairs(LABELS), "images": 1}, r"images=1\): expected a whole number of at least 2"),
    ({"world_size": 61, "images": 9}, r"world_size=61\): expected at most 60, as there are so many bundles"),
    ({"rank": 2}, r"rank=2\): expected a whole number from 0 to 0"),
    ({"seed": -1}, r"seed=-1\): expected a whole number of at least 0"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_makes_no_sense_is_refused(options, said):
    with unchecked(), pytest.raises(ValueError, match=r"AnchorSampler\(" + said):
        AnchorSampler(**{"triplets": RandomTriplets(LABELS), **options})


def test_steps_and_epochs_that_do_not_exist():
    sampler = AnchorSampler(RandomTriplets(LABELS), 8)
    for call, said in (
        (lambda: sampler.batch(0, 8), r"AnchorSampler.batch\(step=8\): expected a whole number from 0 to 7"),
        (lambda: sampler.batch(-1, 0), r"AnchorSampler.batch\(epoch=-1\): expected a whole number of at"),
        (lambda: sampler.set_epoch(0, 9), r"AnchorSampler.set_epoch\(step=9\): expected .* from 0 to 8"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_the_same_seed_gives_the_same_batches_on_every_machine():
    sampler = AnchorSampler(of_anchors([0, 1, 2, 3, 4, 5, 6, 7, 0, 1]), 4, per_class=2, labels=[0, 1] * 4)
    assert [list(map(int, sampler.batch(0, step))) for step in range(2)] == [
        [0, 8, 4, 3, 7],
        [2, 6, 1, 9, 5],
    ]


@pytest.mark.parametrize(
    "triplets",
    [
        [(0, 1, 2)],
        Triplets([0.7, 0.2], [1, 1], [2, 2]),
        Triplets([0, 1], [1], [2, 2]),
    ],
    ids=["a list", "floats", "unequal columns"],
)
def test_what_are_no_triplets_is_refused(triplets):
    with unchecked(), pytest.raises(ValueError, match=r"AnchorSampler\(triplets=.*\): expected"):
        AnchorSampler(triplets)
