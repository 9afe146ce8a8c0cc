"""`Monitor.callback` under Lightning: figures in its loggers, state in its checkpoints."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import tercet
from tests.helpers import points

if importlib.util.find_spec("lightning"):
    import lightning
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        """A linear model, whose training step returns what the monitor looks at, or the loss alone."""

        def __init__(self, whole=True):
            super().__init__()
            self.net, self.head, self.whole = torch.nn.Linear(4, 3), tercet.TripletMargin(margin=0.2), whole

        def training_step(self, batch, _):
            images, labels = batch
            embeddings = self.net(images)
            mined = tercet.BatchHard()(embeddings, labels)
            loss = self.head(embeddings, labels, mined)
            found = {"loss": loss, "embeddings": embeddings, "labels": labels, "mined": mined}
            return found if self.whole else loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)


def fitted(top, monitor, epochs=1, whole=True, resume=None):
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[monitor.callback()],
        logger=CSVLogger(top, name="log", version=f"{epochs}"),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    loader = DataLoader(TensorDataset(points(32), torch.arange(32) % 2), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and folders
        trainer.fit(Module(whole), loader, ckpt_path=resume)
        trainer.save_checkpoint(top / "checkpoint.ckpt")
    return trainer


@pytest.mark.skipif(
    not importlib.util.find_spec("lightning"), reason="needs lightning, of the extra of that name"
)
def test_lightning_logs_the_figures_resumes_and_refuses_a_step_that_hides_its_embeddings(tmp_path):
    monitor = tercet.Monitor(tmp_path / "run.csv", every=2)
    fitted(tmp_path, monitor)
    assert monitor.step == 4
    header, *logged = (tmp_path / "log/1/metrics.csv").read_text().splitlines()
    assert {"mining/active", "mining/collapse", "mining/loss", "mining/norm", "step"} <= set(
        header.split(",")
    )
    assert len(logged) == 2

    resumed = tercet.Monitor(tmp_path / "run.csv", every=2)
    fitted(tmp_path, resumed, epochs=2, resume=tmp_path / "checkpoint.ckpt")
    assert resumed.step == 8
    steps = [line.split(",")[0] for line in (tmp_path / "run.csv").read_text().splitlines()]
    assert steps == ["step", "0", "2", "4", "6"]

    with pytest.raises(ValueError, match=r"^Monitor.callback\(training_step='Tensor of|^Monitor.callback"):
        fitted(tmp_path, tercet.Monitor(), whole=False)
