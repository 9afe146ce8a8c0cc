import math

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    Subset,
    TensorDataset,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from tercet.losses.triplet import TripletMargin
from tercet.metrics.mining_stats import describe
from tercet.miners.batch_all import BatchAll
from tercet.miners.hard import BatchHard, SemiHard
from tercet.training.loader import MinedBatch, MiningLoader


def data(n=12, rows=False):
    images = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, torch.arange(n) % 3, *([torch.arange(n)] if rows else []))


def linear():
    model = torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5]]))
    return model


def test_batches_are_embedded_mined_and_described():
    model, miner = linear(), SemiHard(margin=0.5, distance="cosine")
    loader = MiningLoader(DataLoader(data(), 6), model, miner)
    assert len(loader) == 2
    batches = list(loader)
    for batch, (images, labels) in zip(batches, DataLoader(data(), 6), strict=True):
        assert isinstance(batch, MinedBatch)
        assert torch.equal(batch.embeddings, model(images))
        assert torch.equal(batch.labels, labels)
        expected = miner(model(images), labels)
        assert all(torch.equal(u, v) for u, v in zip(batch.mined, expected, strict=True))
        assert batch.stats == describe(model(images), labels, expected, margin=0.5, distance="cosine")
    assert len(batches) == 2


def test_the_embeddings_carry_the_model_s_graph():
    model = linear()
    for embeddings, labels, mined, _ in MiningLoader(DataLoader(data(), 6), model, BatchHard()):
        TripletMargin(margin=1.0)(embeddings, labels, mined).backward()
    assert model.weight.grad.abs().sum() > 0


def test_rows_become_ids():
    repeated = torch.utils.data.Subset(data(rows=True), [0, 0, 3, 1, 1, 4])
    (batch,) = MiningLoader(DataLoader(repeated, 6), linear(), BatchHard())
    meets = set(zip(batch.mined.anchor.tolist(), batch.mined.positive.tolist(), strict=True))
    assert meets == {(0, 2), (1, 2), (2, 0), (3, 5), (4, 5), (5, 3)}


def test_stats_are_left_away_on_request():
    assert next(iter(MiningLoader(DataLoader(data(), 6), linear(), BatchHard(), describe=False))).stats == {}


def test_images_and_labels_are_moved_to_the_device():
    seen = []

    def model(images):
        seen.append(images.device.type)
        return torch.ones(len(images), 2)

    (batch,) = MiningLoader([(torch.ones(2, 3), torch.arange(2))], model, BatchHard(), device="cpu")
    assert (seen, batch.labels.device.type) == (["cpu"], "cpu")
    moved = MiningLoader([], model, BatchHard(), device="meta")._moved(torch.ones(2))
    assert moved.device.type == "meta"


def test_any_callable_mines():
    ask = lambda embeddings, labels, *, ids=None: (ids, ids, ids)  # noqa: E731
    (batch,) = MiningLoader(DataLoader(data(2, rows=True), 2), linear(), ask)
    assert batch.mined[0].tolist() == [0, 1]
    assert batch.stats["mined"] == 2


class Epochs:
    """A batch sampler that knows its epoch."""

    epoch = None

    def __iter__(self):
        return iter([[0, 1], [2, 3]])

    def __len__(self):
        return 2

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_set_epoch_reaches_the_loader_or_else_its_sampler():
    sampler = Epochs()
    MiningLoader(DataLoader(data(), batch_sampler=sampler), linear(), BatchHard()).set_epoch(3)
    assert sampler.epoch == 3
    MiningLoader(sampler, linear(), BatchHard()).set_epoch(4)
    assert sampler.epoch == 4
    with pytest.raises(
        ValueError, match=r"MiningLoader\(loader='DataLoader'\): expected something with set_epoch"
    ):
        MiningLoader(DataLoader(data()), linear(), BatchHard()).set_epoch(1)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata beside torch 2.13
def test_the_loader_s_state_resumes_in_mid_epoch():
    make = lambda: MiningLoader(StatefulDataLoader(data(), 4), linear(), BatchHard())  # noqa: E731
    whole = [batch.labels for batch in make()]
    first = make()
    batches = iter(first)
    next(batches)
    state = first.state_dict()
    second = make()
    second.load_state_dict(state)
    rest = [batch.labels for batch in second]
    assert len(rest) == 2
    assert all(torch.equal(u, v) for u, v in zip(rest, whole[1:], strict=True))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata beside torch 2.13
def test_a_miner_that_draws_draws_anew_each_step_and_resumes_with_the_draws_to_come():
    make = lambda: MiningLoader(  # noqa: E731
        StatefulDataLoader(data(), 4), linear(), BatchAll(max_count=2), describe=False
    )
    drawn = lambda loaded: [torch.stack(batch.mined).tolist() for batch in loaded]  # noqa: E731
    first = make()
    epochs = [drawn(first) for _ in range(8)]
    assert any(epoch != epochs[0] for epoch in epochs)
    second = make()
    batches = iter(second)
    next(batches)
    state = second.state_dict()
    third = make()
    third.load_state_dict(state)
    assert drawn(third) == epochs[0][1:]
    assert drawn(third) == epochs[1]


def test_a_state_of_something_else_is_refused():
    text = r"load_state_dict\(state=\['epoch'\]\): expected what state_dict\(\) gave"
    with pytest.raises(ValueError, match=text):
        MiningLoader(StatefulDataLoader(data(), 4), linear(), BatchHard()).load_state_dict({"epoch": 1})


def test_a_plain_loader_has_no_state_to_give():
    plain = MiningLoader(DataLoader(data()), linear(), BatchHard())
    for call, method in (
        (plain.state_dict, "state_dict"),
        (lambda: plain.load_state_dict({}), "load_state_dict"),
    ):
        text = (
            rf"MiningLoader\(loader='DataLoader'\): expected a loader with {method}; use torchdata's Stateful"
        )
        with pytest.raises(ValueError, match=text):
            call()


@pytest.mark.parametrize("batch", [torch.ones(2, 3), (torch.ones(2, 3),), {"images": 1}, 3])
def test_batches_of_another_form_are_refused(batch):
    with pytest.raises(
        ValueError, match=r"MiningLoader\(batch=.*: expected \(images, labels\) or \(images, labels, rows"
    ):
        next(iter(MiningLoader([batch], linear(), BatchHard())))


def test_the_epoch_reaches_a_sampler_and_datasets_that_are_wrapped():
    class Told(TensorDataset):
        def set_epoch(self, epoch):
            self.epoch = epoch

    one, other = Told(torch.zeros(4, 1)), Told(torch.zeros(4, 1))
    dataset = ConcatDataset([Subset(one, [0, 1]), other])
    sampler = DistributedSampler(dataset, 2, 0)
    loader = DataLoader(dataset, batch_sampler=BatchSampler(sampler, 2, False))
    MiningLoader(loader, linear(), BatchHard()).set_epoch(3)
    assert [sampler.epoch, one.epoch, other.epoch] == [3, 3, 3]


def test_the_epoch_reaches_the_sampler_and_the_dataset():
    class Told:
        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter(())

    loader = Told()
    loader.batch_sampler, loader.dataset = Told(), Told()
    MiningLoader(loader, linear(), BatchHard()).set_epoch(3)
    assert [part.epoch for part in (loader, loader.batch_sampler, loader.dataset)] == [3, 3, 3]


def test_the_active_share_is_that_of_a_margin_somebody_set():
    active = lambda miner, **options: next(  # noqa: E731
        iter(MiningLoader(DataLoader(data(), 6), linear(), miner, **options))
    ).stats["active"]
    assert math.isnan(active(BatchHard()))
    assert active(BatchHard(), margin=1e6) == 1
    assert active(BatchAll(margin=0.5)) == 1
