"""`Monitor`: what it logs and where, its alarms on runs that are ill and on a healthy one, and its resume."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import warnings
from pathlib import Path

import pytest
import torch
from rich.console import Console
from sklearn.datasets import load_digits

import tercet
from tests.helpers import points, refusal_of, unchecked

LABELS = torch.arange(8) // 2
HARD = tercet.BatchHard()
ROOT = Path(__file__).parents[2]


def said(call, *args, **options):
    """What a call warned of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call(*args, **options)
    assert all(issubclass(one.category, tercet.Monitor.Alarm) for one in found)
    assert all(issubclass(one.category, UserWarning) for one in found)
    return [str(one.message) for one in found]


def shown(monitor, x, steps=1):
    """The monitor is shown these embeddings, with their hardest triplets."""
    for _ in range(steps):
        monitor(x, LABELS, HARD(x, LABELS))


def one_point(n=8):
    """Unit vectors that are almost one."""
    return torch.nn.functional.normalize(torch.ones(n, 4) + 1e-3 * points(n))


def lines(path):
    with path.open() as file:
        return list(csv.DictReader(file))


# ── what is logged ───────────────────────────────────────────────────────────────────────────────────────


def test_the_figures_are_those_of_describe_with_step_loss_and_norm():
    x, rows = points(8), []
    mined = HARD(x, LABELS)
    monitor = tercet.Monitor(rows.append, every=3, margin=0.5, distance="cosine")
    returned = [monitor(x, LABELS, mined, loss=torch.tensor([0.25])) for _ in range(7)]
    assert [row["step"] for row in rows] == [0, 3, 6]
    assert [bool(figures) for figures in returned] == [True, False, False] * 2 + [True]
    norm = torch.linalg.vector_norm(x.double(), dim=1).mean().item()
    of_batch = tercet.describe(x, LABELS, mined, margin=0.5, distance="cosine")
    assert rows[1] == returned[3] == {"step": 3, "loss": 0.25, **of_batch, "norm": pytest.approx(norm)}


class Untouchable:
    """It fails where it is looked at."""

    def __getattribute__(self, name):
        raise AssertionError(f"its {name} was looked at")


def test_a_step_that_is_not_logged_is_not_looked_at():
    monitor = tercet.Monitor(every=2)
    monitor(points(8), LABELS)
    with unchecked():
        monitor(Untouchable(), Untouchable(), Untouchable(), loss=Untouchable(), ref=Untouchable())
    assert monitor.step == 2
    with unchecked(), pytest.raises(AssertionError, match="was looked at"):
        monitor(Untouchable(), LABELS)


def test_without_mined_tuples_what_they_are_is_nan_and_no_alarm(recwarn):
    monitor = tercet.Monitor(every=1)
    for _ in range(9):
        figures = monitor(points(8), LABELS)
    assert {name for name, value in figures.items() if math.isnan(value)} == {
        *("loss", "mined", "anchors", "d_ap", "d_an", "active")
    }
    assert not recwarn.list


@pytest.mark.parametrize("loss", [0.5, torch.tensor(0.5, requires_grad=True), torch.tensor([[0.5]])])
def test_a_loss_is_a_number_or_a_tensor_of_one(loss):
    assert tercet.Monitor()(points(8), LABELS, loss=loss)["loss"] == 0.5
    assert math.isnan(tercet.Monitor()(points(8), LABELS, loss=math.nan)["loss"])
    refused = refusal_of(tercet.Monitor(), points(8), LABELS, loss=torch.ones(2))
    assert refused.endswith("expected a number, or a tensor of one")


def test_a_writer_gets_scalars_and_no_nan():
    class Writer:
        def __init__(self):
            self.got = []

        def add_scalar(self, name, value, step):
            self.got.append((name, value, step))

    writer = Writer()
    monitor = tercet.Monitor(writer, every=2)
    shown(monitor, points(8), steps=3)
    names = ["rows", "classes", "mined", "anchors", "d_ap", "d_an", "active", "collapse", "norm"]
    assert [(name, step) for name, _, step in writer.got] == [
        (f"mining/{n}", s) for s in (0, 2) for n in names
    ]
    assert all(isinstance(value, float) for _, value, _ in writer.got)


def test_a_table_shows_the_last_eight_steps_and_the_alarms():
    text = io.StringIO()
    monitor = tercet.Monitor(every=1, table=Console(file=text, width=80), collapse=0.9, patience=10)
    assert said(shown, monitor, one_point(), steps=10)
    monitor.close()
    printed = text.getvalue().splitlines()
    assert printed[0].split()[:3] == ["step", "loss", "mined"]
    assert [line.split()[0] for line in printed[1:9]] == [str(step) for step in range(2, 10)]
    assert printed[9].strip() == "alarm: collapse"
    assert "…" not in text.getvalue(), "it fits a terminal"
    assert text.getvalue().endswith("\n")


# ── alarms ───────────────────────────────────────────────────────────────────────────────────────────────


def test_collapse_is_told_once_with_figure_threshold_and_remedy_until_it_is_over():
    monitor = tercet.Monitor(every=1, patience=3)
    assert not said(shown, monitor, one_point(), steps=2)
    assert monitor.alarms == []
    (sentence,) = said(shown, monitor, one_point())
    assert sentence == (
        "Monitor: collapse is 1, above 0.95, at step 2, the last of 3 logged steps in a row: all embeddings "
        "become one point; mine with SemiHard instead of BatchHard or take TripletMargin(soft=True), lower "
        "the learning rate, give embeddings unit length"
    )
    assert monitor.alarms == ["collapse"]
    assert not said(shown, monitor, one_point(), steps=9)
    assert not said(shown, monitor, points(8))
    assert monitor.alarms == []
    assert len(said(shown, monitor, one_point(), steps=9)) == 1


def test_nothing_left_to_learn_is_told():
    apart = 100 * torch.eye(4).repeat_interleave(2, 0) + 0.01 * points(8)
    (sentence,) = said(shown, tercet.Monitor(every=1), apart, steps=3)
    assert sentence.startswith("Monitor: active is 0, below 0.01, at step 2, the last of 3 logged")
    assert "take a harder miner, a larger batch, super-labels, CrossBatchMemory, or" in sentence
    nothing = [torch.zeros(0, dtype=torch.int64)] * 3
    monitor = tercet.Monitor(every=1, patience=1)
    (sentence,) = said(monitor, points(8), LABELS, nothing)
    assert sentence.startswith(
        "Monitor: mined is 0, at step 0: no tuple is left to learn from; take a harder"
    )
    assert monitor.alarms == ["inactive"]
    # Where embeddings have collapsed, a harder miner is no remedy.
    (sentence,) = said(tercet.Monitor(patience=1), one_point(), LABELS, nothing)
    assert "collapse" in sentence


@pytest.mark.parametrize(
    ("factor", "fact"), [(101, "more than 100: embeddings explode"), (1 / 101, "less than")]
)
def test_a_norm_that_explodes_or_vanishes_is_told_at_once(factor, fact):
    monitor = tercet.Monitor(every=1)
    assert not said(shown, monitor, points(8))
    assert not said(shown, monitor, points(8) * factor**0.9)
    (sentence,) = said(shown, monitor, points(8) * factor)
    assert sentence.startswith("Monitor: norm is ")
    assert fact.partition(":")[0] in sentence
    assert sentence.endswith("lower the learning rate, clip gradients, give embeddings unit length")


def test_alarms_that_are_none_are_not_given_and_an_error_filter_stops_the_run():
    monitor = tercet.Monitor(every=1, collapse=None, active=None, growth=None, patience=1)
    nothing = [torch.zeros(0, dtype=torch.int64)] * 3
    for factor in (1, 1e4):
        assert not said(monitor, one_point() * factor, LABELS, nothing)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", tercet.Monitor.Alarm)
        with pytest.raises(tercet.Monitor.Alarm, match=r"^Monitor: collapse is 1"):
            shown(tercet.Monitor(rows.append, patience=1), one_point())
    assert len(rows) == 1, "it is logged before it is told"


def small_net():
    """The network of the quickstart."""
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "examples" / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SmallNet()


def trained(monitor, miner, optimizer, steps, **options):
    """The quickstart's network after some steps on the digits 0 to 6."""
    digits = load_digits()
    seen = digits.target < 7
    images = torch.tensor(digits.images[seen] / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    labels = torch.tensor(digits.target[seen])
    sampler = tercet.PKSampler(labels, p=7, k=8, seed=0)
    torch.manual_seed(0)
    model, head = small_net(), tercet.TripletMargin(margin=0.2)
    stepped = optimizer(model.parameters(), **options)
    for step in range(steps):
        rows = torch.as_tensor(sampler.batch(*divmod(step, len(sampler))))
        embeddings = model(images[rows])
        mined = miner(embeddings, labels[rows])
        loss = head(embeddings, labels[rows], mined)
        monitor(embeddings, labels[rows], mined, loss=loss)
        stepped.zero_grad()
        loss.backward()
        stepped.step()


def test_a_run_that_collapses_is_told_and_a_healthy_one_is_not():
    ill, healthy = [], []
    sentences = said(trained, tercet.Monitor(ill.append, every=5), HARD, torch.optim.SGD, 21, lr=10.0)
    assert len(sentences) == 1
    assert "SemiHard instead of BatchHard" in sentences[0]
    assert ill[-1]["loss"] > 0.2 * 0.9, "it stays at the margin"
    monitor = tercet.Monitor(healthy.append, every=5)
    assert not said(trained, monitor, tercet.SemiHard(margin=0.2), torch.optim.AdamW, 41, lr=4e-3)
    assert healthy[-1]["loss"] < healthy[0]["loss"]


# ── the file, and resuming ───────────────────────────────────────────────────────────────────────────────


def test_a_csv_has_a_line_each_logged_step_with_the_exact_figures(tmp_path):
    monitor = tercet.Monitor(tmp_path / "run.csv", every=2)
    returned = []
    for step in range(5):
        x = points(8, seed=step)
        returned.append(monitor(x, LABELS, HARD(x, LABELS), loss=0.1 * step))
        assert (tmp_path / "run.csv").read_text().endswith("\n"), "it is on the disk, whole"
    written = [{name: float(text) for name, text in line.items()} for line in lines(tmp_path / "run.csv")]
    assert written == [figures for figures in returned if figures]


def test_a_resumed_run_has_the_file_and_the_alarms_of_an_unbroken_one(tmp_path):
    def run(name, start=0, stop=9, state=None):
        monitor = tercet.Monitor(tmp_path / name, every=1, patience=4)
        if state is not None:
            monitor.load_state_dict(state)
        sentences = []
        for step in range(start, stop):
            x = points(8, seed=step) if step < 3 else one_point()
            sentences += said(shown, monitor, x)
            if step == 4:
                state = monitor.state_dict()
        return sentences, state

    whole, _ = run("whole.csv")
    before, state = run("resumed.csv", stop=6)  # it is killed after its checkpoint of step 5
    with (tmp_path / "resumed.csv").open("ab") as file:
        file.write(b"6,0.5,8")  # in the middle of a line
    after, _ = run("resumed.csv", start=5, state=state)
    assert before + after == whole
    assert len(whole) == 1
    assert (tmp_path / "resumed.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_a_file_that_exists_is_refused_unless_it_is_overwritten_or_gone_on_with(tmp_path):
    path = tmp_path / "run.csv"
    shown(tercet.Monitor(path, every=1), points(8), steps=3)
    kept = path.read_text()
    refused = refusal_of(tercet.Monitor(path), points(8), LABELS)
    assert (
        "expected a new file; it exists; overwrite=True replaces it, load_state_dict(state) goes" in refused
    )
    assert path.read_text() == kept
    shown(tercet.Monitor(path, overwrite=True), points(8))
    assert [line["step"] for line in lines(path)] == ["0"]


def test_a_file_of_something_else_is_not_gone_on_with(tmp_path):
    path, state = tmp_path / "run.csv", tercet.Monitor().state_dict()
    path.write_text("a,b\n1,2\n")
    assert "expected the columns step, loss, " in refusal_of(tercet.Monitor(path).load_state_dict, state)
    path.unlink()
    shown(tercet.Monitor(path), points(8))
    with path.open("a") as file:
        file.write("what,is,this\n")
    kept = path.read_text()
    assert "line 3" in refusal_of(tercet.Monitor(path).load_state_dict, state)
    assert path.read_text() == kept


def test_a_state_that_was_changed_is_refused():
    monitor = tercet.Monitor(every=1)
    shown(monitor, points(8), steps=3)
    for state in ({}, None, {**monitor.state_dict(), "step": 1}):
        assert "what state_dict() gave, unchanged" in refusal_of(monitor.load_state_dict, state)
    assert monitor.step == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"to": "run.txt"}, "its name ending in .csv"),
        ({"to": "no/such/run.csv"}, "an existing folder to write in"),
        ({"to": 3}, "a path that ends in .csv, an object with add_scalar, a callable, or None"),
        ({"every": 0}, "a whole number of at least 1"),
        ({"growth": 1}, "a finite number above 1"),
        ({"collapse": 2}, "a finite number from 0 to 1"),
        ({"table": "yes"}, "True or False"),
    ],
)
def test_odd_options_are_refused(options, text):
    (name,) = options
    refused = refusal_of(tercet.Monitor, **options)
    assert refused.startswith(f"Monitor({name}=")
    assert text in refused


def test_other_ranks_count_steps_only(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monitor = tercet.Monitor(tmp_path / "run.csv", every=1)
    with unchecked():
        assert monitor(Untouchable(), Untouchable()) == {}
    assert monitor.step == 1
    assert not (tmp_path / "run.csv").exists()
