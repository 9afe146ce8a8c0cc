"""`Remining`: rounds are mined with the weights of their step, and a resumed run gives the same triplets."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import tercet
from tercet.core.randomness import derive_key
from tercet.offline.hard_negatives import mine_hard_triplets
from tercet.offline.remining_rounds import read_round, rows_of_turn
from tercet.offline.stale_negatives import pairs_of
from tests.helpers import refusal_of, unchecked
from tests.oracles import remining as oracle

torch.set_num_threads(1)
N, EVERY = 90, 6
MINING = {"positives": "easiest", "negatives": 2, "ranks": (1, 30), "reserve": 3}


def as_given(image):
    return image.astype(np.float32) / 255


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """Ninety digits of scikit-learn, of six classes."""
    from sklearn.datasets import load_digits

    digits, top = load_digits(), tmp_path_factory.mktemp("digits")
    rows = np.flatnonzero(digits.target < 6)[:N]
    for number, row in enumerate(rows.tolist()):
        file = top / str(digits.target[row]) / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), (digits.images[row] * 15).astype(np.uint8))
    return tercet.scan_folder(top)


def linear():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(3 * 64, 4))


class Run:
    """A loop with a linear model, and what it was trained on at each step."""

    def __init__(self, catalog, folder, *, workers=0, rate=0.3, mining=MINING, **options):
        self.catalog, self.model, self.workers = catalog, linear(), workers
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=0.5)
        options = {"every": EVERY, "embedding": {"transform": as_given, "batch_size": 16}, **options}
        self.remining = tercet.Remining(self.model, catalog, folder, mining=mining, **options)
        self.seen, self.weights, self.states = [], {}, {}

    def loader(self, triplets):
        dataset = tercet.TripletDataset(triplets, as_given, catalog=self.catalog)
        sampler = tercet.AnchorSampler(triplets, anchors=20, seed=3)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=self.workers)

    def train(self, steps):
        """Goes on up to `steps`; keeps states and weights of each step."""
        head = tercet.TripletMargin(margin=0.3)
        self.keep()
        for images, triplets, labels, rows in self.remining.batches(self.loader, steps):
            loss = head(self.model(images), labels, triplets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.seen.append([rows[corner].tolist() for corner in triplets])
            self.keep()
        return self

    def keep(self):
        step = self.remining.step
        self.weights[step] = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.states[step] = {
            "remining": json.loads(json.dumps(self.remining.state_dict())),
            "model": self.weights[step],
            "optimizer": {
                "param_groups": self.optimizer.state_dict()["param_groups"],
                "state": {
                    key: {name: value.clone() for name, value in facts.items() if value is not None}
                    for key, facts in self.optimizer.state_dict()["state"].items()
                },
            },
            "generator": torch.get_rng_state(),
        }

    def resume(self, state):
        self.remining.load_state_dict(state["remining"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generator"])
        return self


def listed(triplets):
    return set(zip(*(corner.tolist() for corner in triplets), strict=True))


def drift_of(folder):
    rows = [json.loads(line) for line in (folder / "drift.jsonl").read_text().splitlines()]
    return [{name: fact for name, fact in row.items() if name != "seconds"} for row in rows]


def embedded(catalog, weights, folder):
    """Embeddings by weights of a step, in a place of their own."""
    model = linear()
    model.load_state_dict(weights)
    out = folder / "check.npy"
    return np.array(
        tercet.embed(model, catalog, out, transform=as_given, batch_size=16, overwrite=True).array
    )


def scores_of(table, distance):
    """A function (row, row) that gives a score, in float64."""
    x = table.astype(np.float64)

    def score(a, b):
        if distance == "euclidean":
            return -float(np.linalg.norm(x[a] - x[b]))
        return float(x[a] @ x[b] / np.linalg.norm(x[a]) / np.linalg.norm(x[b]))

    return score


def remined(x, catalog, number, rows=None, **options):
    seed = derive_key("remining", 0, number)
    return pairs_of(mine_hard_triplets(x, catalog.labels, anchors=rows, seed=seed, **MINING | options))


# ── what a round is ──────────────────────────────────────────────────────────────────────────────────────


def test_each_round_is_mined_with_the_weights_of_its_step_and_trained_on_from_there(catalog, tmp_path):
    run = Run(catalog, tmp_path / "rounds").train(3 * EVERY)
    for number in range(3):
        expected = remined(embedded(catalog, run.weights[number * EVERY], tmp_path), catalog, number)
        found = read_round(tmp_path / "rounds" / f"00000{number}.npz")
        assert repr(found.pairs) == repr(expected)
        whole = listed(expected.triplets)
        steps = run.seen[number * EVERY : (number + 1) * EVERY]
        drawn = [each for step in steps for each in zip(*step, strict=True)]
        assert set(drawn) <= whole
        assert len(drawn) > len(whole)  # more than a pass over the list
        assert set(Counter(drawn).values()) == {1, 2}
        manifest = tercet.read_manifest(tmp_path / "rounds" / f"00000{number}.parquet", root=catalog.root)
        assert listed(manifest.triplets) == whole
        assert manifest.provenance["mining"]["triplets"] == len(manifest)
    assert len({str(run.seen[at]) for at in range(len(run.seen))}) == len(run.seen)
    x = embedded(catalog, run.weights[2 * EVERY], tmp_path)
    seed = derive_key("remining", 0, 2)
    assert run.remining.report == str(mine_hard_triplets(x, catalog.labels, seed=seed, **MINING).report)
    assert Run(catalog, tmp_path / "other").remining.report == ""
    assert run.model[1].training  # modes are as before


def test_parts_take_each_row_once_a_cycle_and_other_rows_in_another():
    for n, parts in ((10, 3), (7, 7), (5, 1)):
        assert rows_of_turn(n, parts, 0, 0).tolist() == list(range(n))
        cycles = [
            [rows_of_turn(n, parts, 1 + cycle * parts + part, 0) for part in range(parts)]
            for cycle in range(3)
        ]
        for turns in cycles:
            assert sorted(np.concatenate(turns).tolist()) == list(range(n))
            assert {len(rows) for rows in turns} <= {n // parts, -(-n // parts)}
    assert str(cycles[0]) == str(cycles[1])
    first, second = rows_of_turn(100, 4, 1, 0), rows_of_turn(100, 4, 5, 0)
    assert first.tolist() != second.tolist()
    assert first.tolist() != rows_of_turn(100, 4, 1, 1).tolist()


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_a_part_is_mined_anew_and_stale_negatives_of_the_others_are_replaced_as_by_the_loop(
    catalog, tmp_path, distance
):
    mining = {**MINING, "distance": distance, "uniform": 0.2}
    folder = tmp_path / "rounds"
    run = Run(catalog, folder, parts=3, mining=mining, rate=1.0, keep=9).train(5 * EVERY)
    table, old, counts = None, None, []
    for number in range(5):
        x = embedded(catalog, run.weights[number * EVERY], tmp_path)
        rows = rows_of_turn(N, 3, number, 0)
        table = x if table is None else table.copy()
        table[rows] = x[rows]
        np.testing.assert_array_equal(np.load(folder / f"00000{number}.table.npy"), table)
        new = oracle.as_lists(remined(table, catalog, number, rows, distance=distance, uniform=0.2))
        row = run.remining.drift[number]
        if old is not None:
            score_now = scores_of(table, distance)
            others = {pair: lists for pair, lists in old.items() if pair[0] not in rows}
            kept, taken, lacking = oracle.replaced(others, score_now, 1.15)
            new |= kept
            stale, change, changed = oracle.drift(old, new, score_now, 1.15)
            assert (row["replaced"], row["unreplaced"]) == (taken, lacking)
            assert (row["stale"], row["changed"]) == pytest.approx((stale, changed))
            assert row["score_change"] == pytest.approx(change, abs=1e-5)
            counts.append(taken)
        found = oracle.as_lists(read_round(folder / f"00000{number}.npz").pairs)
        assert list(found) == sorted(found, key=lambda pair: pair[0])
        assert repr(dict(sorted(found.items()))) == repr(dict(sorted(new.items())))
        assert row["triplets"] == sum(len(negatives) for negatives, _ in new.values())
        assert row["mined_anchors"] == len(rows)
        assert (row["round"], row["step"], row["from_step"]) == (number, number * EVERY, number * EVERY)
        old = found
    assert min(counts) > 0  # so the rule was at work


def test_anchors_that_are_asked_for_are_the_only_ones(catalog, tmp_path):
    asked = [3, 40, 41, 77]
    run = Run(catalog, tmp_path / "rounds", parts=2, mining={**MINING, "anchors": asked}).train(2 * EVERY)
    for number in (0, 1):
        assert set(read_round(tmp_path / "rounds" / f"00000{number}.npz").pairs.anchor.tolist()) == set(asked)
    assert {a for step in run.seen for a in step[0]} == set(asked)


def test_another_seed_draws_other_random_negatives_and_each_round_too(catalog, tmp_path):
    mining = {**MINING, "uniform": 1.0}
    found = {}
    for seed in (0, 1):
        Run(catalog, tmp_path / str(seed), seed=seed, mining=mining, rate=0.0).train(2 * EVERY)
        for number in range(2):
            found[seed, number] = read_round(tmp_path / str(seed) / f"00000{number}.npz").pairs.negatives
    values = list(found.values())
    assert all(not np.array_equal(one, other) for i, one in enumerate(values) for other in values[:i])


# ── resume ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def unbroken(catalog, tmp_path_factory):
    """A run of three rounds in parts, and its folder."""
    folder = tmp_path_factory.mktemp("unbroken") / "rounds"
    torch.manual_seed(0)
    return Run(catalog, folder, parts=2, keep=9).train(3 * EVERY), folder


@pytest.mark.parametrize(
    ("stop", "workers"), [(0, 0), (1, 0), (EVERY, 0), (EVERY + 4, 2), (2 * EVERY + 5, 0)]
)
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(catalog, tmp_path, unbroken, stop, workers):
    whole, whole_folder = unbroken
    folder = tmp_path / "rounds"
    torch.manual_seed(0)
    # The run that breaks has gone on beyond its last state, as runs do.
    broken = Run(catalog, folder, parts=2, keep=9, workers=workers).train(3 * EVERY)
    again = Run(catalog, folder, parts=2, keep=9, workers=workers).resume(broken.states[stop])
    again.train(3 * EVERY)
    assert again.seen == whole.seen[stop:]
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, whole.weights[3 * EVERY][name])
    assert drift_of(folder) == drift_of(whole_folder)
    assert [row["round"] for row in again.remining.drift] == [0, 1, 2]
    for number in range(3):
        assert (
            read_round(folder / f"00000{number}.npz").checksum
            == read_round(whole_folder / f"00000{number}.npz").checksum
        )


def test_embeddings_of_old_rounds_are_removed_and_a_state_of_then_is_refused(catalog, tmp_path):
    folder = tmp_path / "rounds"
    run = Run(catalog, folder, parts=2, keep=2).train(4 * EVERY)
    assert sorted(file.name for file in folder.glob("*.table.npy")) == [
        "000002.table.npy",
        "000003.table.npy",
    ]
    Run(catalog, folder, parts=2, keep=2).resume(run.states[2 * EVERY + 2])
    again = Run(catalog, folder, parts=2, keep=2).resume(run.states[EVERY + 2])
    said = refusal_of(again.train, 2 * EVERY + 1)
    assert "000001.table.npy" in said
    assert "keep=" in said
    whole = Run(catalog, tmp_path / "all").train(3 * EVERY)
    assert not list((tmp_path / "all").glob("*.table.npy"))  # nothing goes on from them
    assert whole.remining.step == 3 * EVERY


def test_states_of_other_settings_other_folders_or_with_changes_are_refused(catalog, tmp_path):
    run = Run(catalog, tmp_path / "rounds").train(EVERY)
    state = run.states[EVERY]["remining"]
    for options, named in (
        ({"seed": 1}, "state['seed']"),
        ({"every": 7}, "state['every']"),
        ({"parts": 2}, "state['parts']"),
        ({"beside": "wait"}, "state['beside']"),
        ({"mining": {**MINING, "negatives": 1}}, "state['options']"),
    ):
        other = Run(catalog, tmp_path / "rounds", **options)
        assert named in refusal_of(other.remining.load_state_dict, state)
    load = Run(catalog, tmp_path / "rounds").remining.load_state_dict
    for wrong in ({**state, "step": 3}, {}, None, {**state, "more": 1}, {**state, "settings": None}):
        assert "what state_dict() gave" in refusal_of(load, wrong)
    elsewhere = Run(catalog, tmp_path / "elsewhere")
    assert "the folder of the rounds belongs to the state" in refusal_of(
        elsewhere.remining.load_state_dict, state
    )
    Run(catalog, tmp_path / "elsewhere", mining={**MINING, "ranks": (2, 30)}).train(EVERY)
    assert "the triplets of the state" in refusal_of(elsewhere.remining.load_state_dict, state)


def test_a_damaged_round_is_refused(catalog, tmp_path):
    run = Run(catalog, tmp_path / "rounds").train(EVERY)
    place = tmp_path / "rounds" / "000000.npz"
    content = place.read_bytes()
    load, state = Run(catalog, tmp_path / "rounds").remining.load_state_dict, run.states[EVERY]["remining"]
    said = []
    for at in np.random.default_rng(0).integers(0, len(content), 60).tolist():
        place.write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
        try:
            load(state)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 40  # the others hit a time or an attribute of the archive
    assert all("000000.npz" in text for text in said)
    place.write_bytes(content[: len(content) // 2])
    assert "damaged" in refusal_of(load, state)


def test_a_folder_with_rounds_is_refused_or_begun_anew(catalog, tmp_path):
    Run(catalog, tmp_path / "rounds").train(2 * EVERY)
    said = refusal_of(Run(catalog, tmp_path / "rounds").train, EVERY)
    assert "holds 2 rounds" in said
    assert "overwrite=True" in said
    Run(catalog, tmp_path / "rounds", overwrite=True).train(EVERY)
    assert [row["round"] for row in drift_of(tmp_path / "rounds")] == [0]
    assert sorted(file.name for file in (tmp_path / "rounds").glob("0*")) == ["000000.npz", "000000.parquet"]


# ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────


def test_workers_change_nothing_and_the_global_generator_is_not_asked(catalog, tmp_path):
    torch.manual_seed(5)
    alone = Run(catalog, tmp_path / "alone").train(2 * EVERY)
    torch.manual_seed(5)
    two = Run(catalog, tmp_path / "two", workers=2).train(2 * EVERY)
    assert two.seen == alone.seen
    assert all(
        torch.equal(value, alone.model.state_dict()[name]) for name, value in two.model.state_dict().items()
    )
    state = torch.get_rng_state()
    list(Run(catalog, tmp_path / "three").remining.batches(alone.loader, 2 * EVERY))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_epoch_ends_at_a_multiple_of_its_steps(catalog, tmp_path):
    run = Run(catalog, tmp_path / "rounds")
    batches = run.remining.batches(run.loader)
    assert len(batches) == EVERY
    iterator = iter(batches)
    next(iterator), next(iterator)
    assert run.remining.step == 2
    assert len(list(batches)) == EVERY - 2
    assert len(list(batches)) == EVERY
    assert len(list(run.remining.batches(run.loader, 5))) == 3
    assert run.remining.step == 15


def rows_loader(run, batch_size=7):
    def loader(triplets):
        dataset = tercet.TripletDataset(triplets, as_given)
        return DataLoader(dataset, batch_size, sampler=tercet.ShuffledSampler(dataset))

    return loader


def test_a_sampler_of_rows_resumes_too(catalog, tmp_path):
    def rows(run, steps):
        return [
            [batch.rows[corner].tolist() for corner in batch.triplets]
            for batch in run.remining.batches(rows_loader(run), steps)
        ]

    whole = Run(catalog, tmp_path / "rounds", every=40)
    found = rows(whole, 40)
    stopped = Run(catalog, tmp_path / "again", every=40)
    iterator = iter(stopped.remining.batches(rows_loader(stopped), 40))
    for _ in range(29):  # in the second pass
        next(iterator)
    again = Run(catalog, tmp_path / "again", every=40)
    again.remining.load_state_dict(stopped.remining.state_dict())
    assert rows(again, 40) == found[29:]


def test_loaders_that_cannot_start_at_any_step_are_refused(catalog, tmp_path):
    run = Run(catalog, tmp_path / "rounds")

    def shuffled(triplets):
        return DataLoader(tercet.TripletDataset(triplets, as_given), 4, shuffle=True)

    said = refusal_of(list, run.remining.batches(shuffled))
    assert "Remining.batches(loader='DataLoader'): expected a DataLoader whose sampler can start" in said
    assert "Remining.batches(loader='int')" in refusal_of(list, run.remining.batches(lambda triplets: 3))

    class Nothing(list):
        def set_epoch(self, epoch, step): ...

    assert "at least one batch" in refusal_of(list, run.remining.batches(lambda triplets: Nothing()))


def test_options_are_refused_when_it_is_made(catalog, tmp_path):
    make = tercet.Remining
    folder, model = tmp_path / "rounds", linear()
    for options, said in (
        ({"embedding": {"out": "x.npy"}}, "Remining(embedding='out'): expected"),
        ({"embedding": {"worker": 2}}, "workers"),
        ({"mining": {"seed": 2}}, "Remining(mining='seed')"),
        ({"mining": 3}, "a dict of options of mine_hard_triplets"),
        ({"stale": 1.0}, "stale=1.0"),
        ({"parts": N + 1}, "parts="),
        ({"beside": "now"}, "beside='now'"),
        ({"every": 0}, "every=0"),
    ):
        with unchecked():
            assert said in refusal_of(make, model, catalog, folder, **{"every": 2, **options})
    with unchecked():
        assert "model=3" in refusal_of(make, 3, catalog, folder, every=2)
        assert "whose weights" in refusal_of(make, lambda x: x, catalog, folder, every=2, beside="wait")
        assert "data=3" in refusal_of(make, model, 3, folder, every=2)
    index = tercet.write_shards(tmp_path / "shards", catalog, images_per_shard=40)
    assert "parts=2" in refusal_of(make, model, index, folder, every=2, parts=2)
    empty = Run(catalog, folder, mining={"max_score": -5.0})
    assert "options that leave a triplet" in refusal_of(empty.train, EVERY)


def test_shards_are_mined_as_the_images_are(catalog, tmp_path):
    index = tercet.write_shards(tmp_path / "shards", catalog, images_per_shard=40)
    for data, name in ((catalog, "images"), (index, "tars")):
        run = Run(data, tmp_path / name)
        list(run.remining.batches(run.loader))
    one, other = (read_round(tmp_path / name / "000000.npz") for name in ("images", "tars"))
    assert one.checksum == other.checksum


# ── beside training ──────────────────────────────────────────────────────────────────────────────────────


def serve(catalog, folder, steps, options):
    other = Run(catalog, folder, **options)
    with torch.no_grad():
        other.model[2].weight.zero_()  # its own weights are of no account
    other.remining.serve(steps)


def served(*given):
    """A process that mines beside this one."""
    process = multiprocessing.get_context("spawn").Process(target=serve, args=given)
    process.start()
    return process


@pytest.mark.parametrize("parts", [1, 2])
def test_beside_training_each_round_is_trained_on_one_round_later_and_resumes(catalog, tmp_path, parts):
    options = {"beside": "wait", "parts": parts, "patience": 60.0, "keep": 9}
    folder = tmp_path / "rounds"
    process = served(catalog, folder, 4 * EVERY, options)
    torch.manual_seed(0)
    run = Run(catalog, folder, **options).train(4 * EVERY)
    process.join()
    assert process.exitcode == 0
    taken = [(row["round"], row["step"], row["from_step"]) for row in run.remining.drift]
    assert taken == [(0, 0, 0), (1, EVERY, 2 * EVERY), (2, 2 * EVERY, 3 * EVERY)]
    for number in range(3):
        pairs = read_round(folder / f"00000{number}.npz").pairs
        first = 0 if number == 0 else (number + 1) * EVERY
        drawn = {each for step in run.seen[first : (number + 2) * EVERY] for each in zip(*step, strict=True)}
        assert drawn <= listed(pairs.triplets)
        if parts == 1:
            x = embedded(catalog, run.weights[number * EVERY], tmp_path)
            assert repr(pairs) == repr(remined(x, catalog, number))
    again = Run(catalog, folder, **options).resume(run.states[2 * EVERY - 2])
    process = served(catalog, folder, 4 * EVERY, options)
    again.train(4 * EVERY)
    process.join()
    assert again.seen == run.seen[2 * EVERY - 2 :]
    assert all(
        torch.equal(value, run.weights[4 * EVERY][name]) for name, value in again.model.state_dict().items()
    )


def test_the_newest_round_is_taken_up_at_the_next_batch_and_nobody_waits_for_it(catalog, tmp_path):
    folder, options = tmp_path / "rounds", {"beside": "newest", "patience": 60.0}
    run = Run(catalog, folder, **options)
    process = served(catalog, folder, EVERY, options)  # it mines round 0 alone
    for _ in run.remining.batches(run.loader, 5 * EVERY):
        if run.remining.step == 3 * EVERY + 2:  # the weights of rounds 1, 2 and 3 wait
            assert sorted(file.name for file in folder.glob("*.pt")) == [
                f"00000{number}.weights.pt" for number in (1, 2, 3)
            ]
            serve(catalog, folder, 5 * EVERY, options)
    process.join()
    taken = [(row["round"], row["step"], row["from_step"]) for row in run.remining.drift]
    assert taken == [(0, 0, 0), (3, 3 * EVERY, 3 * EVERY + 2)]
    assert run.remining.step == 5 * EVERY
    assert sorted(file.name for file in folder.glob("*.pt")) == ["000004.weights.pt"]


def test_a_loop_whose_process_beside_is_missing_says_so(catalog, tmp_path):
    run = Run(catalog, tmp_path / "rounds", beside="wait", patience=0.0)
    with pytest.raises(TimeoutError, match=r"patience=0\): no round 0 in .*serve\(\)"):
        run.train(EVERY)
    assert "beside=None" in refusal_of(Run(catalog, tmp_path / "x").remining.serve)


def test_weights_of_another_model_are_refused(catalog, tmp_path):
    run = Run(catalog, tmp_path / "rounds", beside="wait", patience=0.0)
    with pytest.raises(TimeoutError):
        run.train(EVERY)
    other = tercet.Remining(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 3)),
        catalog,
        tmp_path / "rounds",
        every=EVERY,
        beside="wait",
    )
    assert "expected the model of the training process" in refusal_of(other.serve, EVERY)
