"""The recipes for several ranks, run as the guide says: two processes, each with its part of every step."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/ranks.md").read_text()
RECIPES = ["torchrun", "lightning", "accelerate"]
P, K, EPOCHS, COUNT = 5, 8, 2, 1797


def needs(name):
    if name != "torchrun" and importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}, of the extra of that name: pip install '.[{name}]'")


def command_of(name):
    """What the guide tells to type."""
    (command,) = re.findall(rf"`((?:torchrun|python) [^`]*examples/ranks_{name}\.py)`", GUIDE)
    return command


def typed(command, folder):
    """Its output, with the programs of this environment, from a folder with the examples."""
    if not (folder / "examples").exists():
        (folder / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = shlex.split(command)
    words[0] = str(Path(sys.executable).parent / words[0])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def labels_of_digits():
    from sklearn.datasets import load_digits

    return sorted(load_digits().target.tolist())  # the rows of class folders, one folder after the other


def faults(ranks, labels):
    """What is wrong with [rank][step] batches of rows, by plain counting."""
    found = []
    if len({len(steps) for steps in ranks}) > 1:
        return [f"steps {[len(steps) for steps in ranks]}"]
    for number, batches in enumerate(zip(*ranks, strict=True)):
        classes = [Counter(labels[row] for row in batch) for batch in batches]
        if any(sorted(counts.values()) != [K] * P for counts in classes):
            found.append(f"step {number}: not P×K")
        if len(set().union(*classes)) != P * len(ranks):
            found.append(f"step {number}: the ranks share classes")
    steps = len(ranks[0]) // EPOCHS
    for first in range(0, len(ranks[0]), steps):
        seen = {row for part in ranks for batch in part[first : first + steps] for row in batch}
        found += [f"{len(seen)} images from step {first} on"] * (len(seen) < len(labels))
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the ranks of a recipe saw, run once."""
    known = {}

    def of(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            code, printed = typed(command_of(name), folder)
            assert code == 0, printed
            assert all(f"rank {rank} of 2: " in printed for rank in range(2))
            files = [folder / f"out/ranks/rank{rank}.pt" for rank in range(2)]
            known[name] = [torch.load(file, weights_only=True) for file in files]
        return known[name]

    return of


@pytest.mark.parametrize("name", RECIPES)
def test_ranks_have_p_times_k_of_other_classes_cover_every_image_and_learn_alike(name, results):
    needs(name)
    ranks = results(name)
    assert not faults([seen["rows"] for seen in ranks], labels_of_digits())
    epochs = [
        str(seen["rows"][first : first + len(seen["rows"]) // EPOCHS])
        for seen in ranks
        for first in (0, len(seen["rows"]) // EPOCHS)
    ]
    assert len(set(epochs)) == len(epochs)
    for seen in ranks:
        assert seen["losses"][-1] < 0.7 * seen["losses"][0]
    one, other = (seen["weights"] for seen in ranks)
    learnt = [key for key in one if "running" not in key and "num_batches" not in key]  # of each rank its own
    assert len(learnt) > 8
    assert all(torch.equal(one[key], other[key]) for key in learnt)


@pytest.mark.parametrize("name", RECIPES[1:])
def test_recipes_train_on_the_same_batches_to_the_same_losses(name, results):
    needs(name)
    for seen, own in zip(results(name), results("torchrun"), strict=True):
        assert seen["rows"] == own["rows"]
        assert seen["losses"] == pytest.approx(own["losses"], rel=1e-3)


def test_the_check_of_recipes_names_every_fault(results):
    rows = [seen["rows"] for seen in results("torchrun")]
    labels = labels_of_digits()
    assert len(labels) == COUNT
    assert not faults(rows, labels)
    assert faults([rows[0], rows[1][:-1]], labels) == ["steps [46, 45]"]
    assert "step 0: the ranks share classes" in faults([rows[0], rows[0]], labels)
    assert "step 0: not P×K" in faults([[rows[0][0][1:], *rows[0][1:]], rows[1]], labels)
    assert any("images from step 23 on" in fault for fault in faults([rows[0], rows[0]], labels))


# The settings that the guide warns of.

LIGHTNING = """
import lightning, torch, ranks_lightning, tercet
from pathlib import Path
from torch.utils.data import DataLoader

class Shuffled(ranks_lightning.Embedding):
    def train_dataloader(self):
        dataset = tercet.ImageDataset(tercet.scan_folder(self.root), return_rows=True)
        return DataLoader(dataset, 64, sampler=tercet.ShuffledSampler(dataset))

if __name__ == "__main__":
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer = lightning.Trainer(strategy="ddp", accelerator="cpu", devices=2, max_steps=1, **quiet)
    trainer.fit(Shuffled(Path("digits")))
    print("sampler:", type(trainer.train_dataloader.sampler).__name__)
    trainer = lightning.Trainer(strategy="ddp", accelerator="cpu", devices=2, max_steps=1, **quiet)
    trainer.fit(ranks_lightning.Embedding(Path("digits")))
"""


def test_lightning_by_default_replaces_shuffled_sampler_and_refuses_pk_sampler(tmp_path):
    needs("lightning")
    (tmp_path / "wrong.py").write_text(f"import sys\nsys.path.insert(0, 'examples')\n{LIGHTNING}")
    code, printed = typed("python wrong.py", tmp_path)
    assert code != 0
    assert "sampler: DistributedSampler" in printed
    assert re.search(
        r"can't inject a \(distributed\) sampler.*Trainer\(use_distributed_sampler=False\)", printed
    )


ACCELERATE = """
import json
import accelerate, tercet
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

accelerate.PartialState(cpu=True)
labels = [n % 10 for n in range(400)]

def parts(even):
    for rank in range(2):
        sampler = tercet.PKSampler(labels, p=5, k=8, rank=rank, world_size=2)
        loader = DataLoader(list(range(400)), batch_sampler=sampler)
        shard = prepare_data_loader(
            loader, num_processes=2, process_index=rank, put_on_device=False, even_batches=even
        )
        yield [batch.tolist() for batch in shard], len(sampler)

print(json.dumps([list(parts(even)) for even in (True, False)]))
"""


def test_accelerate_takes_only_some_batches_of_a_loader_that_it_prepares(tmp_path):
    needs("accelerate")
    (tmp_path / "wrong.py").write_text(ACCELERATE)
    code, printed = typed("python wrong.py", tmp_path)
    assert code == 0, printed
    for found in json.loads(printed.strip().splitlines()[-1]):
        assert len(found) == 2
        for batches, steps in found:
            assert len(batches) <= -(-steps // 2)
        assert len({row for batches, _ in found for batch in batches for row in batch}) < 300


def test_accelerate_launch_on_a_cpu_starts_one_process(tmp_path):
    needs("accelerate")
    command = "accelerate launch --cpu --num_processes 2 --num_machines 1 alone.py"
    (tmp_path / "alone.py").write_text("from accelerate import PartialState\nprint(PartialState(cpu=True))\n")
    code, printed = typed(command, tmp_path)
    assert code == 0, printed
    assert "Num processes: 1" in printed


def test_the_guide_names_what_each_recipe_presumes():
    section = GUIDE.partition("\n## ")[0]
    said = ["rank=", "world_size=", "use_distributed_sampler=False", "prepare", "cpu=True"]
    places = [section.find(words) for words in said]
    assert min(places) >= 0, dict(zip(said, places, strict=True))
    assert [name for name in RECIPES if f"ranks_{name}.py" in section] == RECIPES
