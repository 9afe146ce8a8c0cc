"""`Remining` under Lightning, whose loader its batches are, and on two ranks."""

from __future__ import annotations

import datetime
import importlib.util
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.utils.data import DataLoader

import tercet
from tercet.offline.remining_rounds import read_round
from tests.offline.test_remining import EVERY, Run, as_given, catalog, drift_of, listed

__all__ = ["catalog"]
STOP = EVERY + 4

if importlib.util.find_spec("lightning"):
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        """The model of a run."""

        def __init__(self, run):
            super().__init__()
            self.run, self.net, self.head = run, run.model, tercet.TripletMargin(margin=0.3)

        def training_step(self, batch, _):
            images, triplets, labels, rows = batch
            self.run.seen.append([rows[corner].tolist() for corner in triplets])
            return self.head(self.net(images), labels, triplets)

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.3, momentum=0.5)


needs_lightning = pytest.mark.skipif(
    not importlib.util.find_spec("lightning"), reason="needs lightning, of the extra of that name"
)


def fitted(catalog, top, name, resume=None, loader=None, **options):
    """A run that Lightning has trained for three rounds, in epochs of `EVERY` batches."""
    run = Run(catalog, top / name, parts=2, keep=9)
    run.model[1].p = 0.0  # Lightning does not keep torch's generator
    saving = ModelCheckpoint(top / name, "{step}", save_top_k=-1, every_n_train_steps=1)
    logger = CSVLogger(top, name="log", version=name)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=3 * EVERY,
        callbacks=[run.remining.callback(), saving],
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and folders
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer.fit(Module(run), loader or run.remining.batches(run.loader), ckpt_path=resume)
    return run


@needs_lightning
def test_lightning_trains_on_rounds_logs_their_drift_and_resumes_in_the_middle(catalog, tmp_path):
    run = fitted(catalog, tmp_path, "whole")
    assert len(run.seen) == run.remining.step == 3 * EVERY
    for number in range(3):
        whole = listed(read_round(tmp_path / "whole" / f"00000{number}.npz").pairs.triplets)
        steps = run.seen[number * EVERY : (number + 1) * EVERY]
        assert {each for step in steps for each in zip(*step, strict=True)} <= whole
    log = (tmp_path / "log/whole/metrics.csv").read_text().splitlines()
    columns = log[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in log[1:]]
    logged = [(int(row["step"]), float(row["remining/stale"])) for row in rows if row["remining/stale"]]
    drift = drift_of(tmp_path / "whole")
    assert [step for step, _ in logged] == [row["from_step"] for row in drift[1:]] == [EVERY, 2 * EVERY]
    assert [stale for _, stale in logged] == pytest.approx([row["stale"] for row in drift[1:]])
    again = fitted(catalog, tmp_path, "whole", tmp_path / "whole" / f"step={STOP}.ckpt")
    assert again.seen == run.seen[STOP:]
    assert drift_of(tmp_path / "whole") == drift
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name])


@needs_lightning
def test_the_callback_refuses_a_trainer_with_another_loader(catalog, tmp_path):
    with pytest.raises(
        ValueError, match=r"Remining.callback\(loader='DataLoader'\): expected its own batches"
    ):
        fitted(catalog, tmp_path, "wrong", loader=DataLoader([torch.zeros(1)] * 4))


# ── ranks ────────────────────────────────────────────────────────────────────────────────────────────────


class RankRun(Run):
    """A run of a rank, which takes its part of each step."""

    def loader(self, triplets):
        ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
        sampler = tercet.AnchorSampler(triplets, anchors=10, seed=3, **ranks)
        dataset = tercet.TripletDataset(triplets, as_given)
        return DataLoader(dataset, batch_sampler=sampler)


def rank_of_two(r, catalog, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=r,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )
    run = RankRun(catalog, folder / "rounds", parts=2)
    wrapped = torch.nn.parallel.DistributedDataParallel(run.model)
    run.remining = tercet.Remining(
        wrapped,
        catalog,
        folder / "rounds",
        every=EVERY,
        parts=2,
        mining={"positives": "easiest", "reserve": 2},
        embedding={"transform": as_given},
    )
    run.model = wrapped
    run.train(2 * EVERY)
    said = ""
    try:  # what the first rank is refused, the other is too
        list(tercet.Remining(wrapped, catalog, folder / "rounds", every=EVERY).batches(run.loader))
    except ValueError as error:
        said = str(error)
    torch.save((run.seen, run.remining.state_dict(), said, wrapped.module.state_dict()), folder / f"{r}.pt")
    dist.destroy_process_group()


def test_the_first_rank_mines_and_each_takes_its_part(catalog, tmp_path):
    torch.multiprocessing.spawn(rank_of_two, (catalog, tmp_path), nprocs=2)
    one, other = (torch.load(tmp_path / f"{r}.pt", weights_only=False) for r in range(2))
    assert one[1] == other[1]
    assert all(torch.equal(value, other[3][name]) for name, value in one[3].items())
    for number in range(2):
        whole = listed(read_round(tmp_path / "rounds" / f"00000{number}.npz").pairs.triplets)
        at = slice(number * EVERY, number * EVERY + 4)  # a pass over 90 anchors, 10 a rank
        parts = [{each for step in seen[at] for each in zip(*step, strict=True)} for seen, *_ in (one, other)]
        assert parts[0] | parts[1] <= whole
        assert not parts[0] & parts[1]
    assert "holds 2 rounds" in one[2]
    assert one[2] == other[2]
