"""Models by name and by file, told by their content; and programs that were exported for one batch size."""

from __future__ import annotations

import warnings
import zipfile

import pytest
import torch
from torch import nn

from tercet.core.checks import border
from tercet.offline.model_files import load_model
from tests.helpers import refusal_of

CPU = torch.device("cpu")


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


IMAGES = torch.arange(5 * 3 * 6 * 6.0).reshape(5, 3, 6, 6) / 100


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(source):
    with border("embed"):
        return load_model(source, CPU)


def scripted(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network()), path)


def exported(path, count=2, dynamic=False):
    shapes = ({0: torch.export.Dim("n")},) if dynamic else None
    torch.export.save(torch.export.export(network(), (IMAGES[:count],), dynamic_shapes=shapes), path)


@pytest.mark.parametrize("name", ["m.pt", "m.pt2", "m.bin"])
@pytest.mark.parametrize(
    "write", [scripted, exported, lambda path: exported(path, 4), lambda path: exported(path, 2, True)]
)
def test_files_by_content_and_not_by_suffix(here, write, name):
    if write is not scripted and not name.endswith("pt2"):
        write("m.pt2")  # torch.export.save wants the suffix
        (here / "m.pt2").rename(here / name)
    else:
        write(name)
    model = load(name)
    for count in (1, 2, 5):
        with torch.no_grad():
            torch.testing.assert_close(model(IMAGES[:count]), network()(IMAGES[:count]))


def test_a_function_of_a_module_in_the_working_directory(here):
    (here / "models_of_mine.py").write_text(
        "from torch import nn\nclass Zoo:\n    small = staticmethod(lambda: nn.Linear(2, 1))\n"
        "def none(): return 3\ndef wants(x): return x\ndef fails(): raise OSError('no weights\\nhere')\n"
    )
    assert isinstance(load("models_of_mine:Zoo.small"), nn.Linear)
    for name, said in {
        "none": "it returns int",
        "wants": "TypeError: wants() missing 1 required positional argument: 'x'",
        "fails": "OSError: no weights",
        "nosuch": "AttributeError: module 'models_of_mine' has no attribute 'nosuch'",
    }.items():
        found = refusal_of(load, f"models_of_mine:{name}")
        assert found.startswith(
            f"embed(model='models_of_mine:{name}'): expected package.module:factory, a func"
        )
        assert found.endswith(said)


def test_nothing_in_the_working_directory_hides_an_installed_module(here):
    (here / "colorsys.py").write_text("raise SystemExit('hidden')")
    assert refusal_of(load, "colorsys:nosuch").endswith("module 'colorsys' has no attribute 'nosuch'")


@pytest.mark.parametrize(
    "source", ["", "nosuch.pt", "no such:thing", "a.b", "os.path", "pipe:touch ran", "\0"]
)
def test_no_file_and_no_name(here, source):
    found = refusal_of(load, source)
    assert (
        "expected package.module:factory, a function that returns the model, or an existing model file"
        in found
    )


def test_files_of_something_else(here):
    torch.save(network().state_dict(), "weights.pt")
    assert refusal_of(load, "weights.pt").endswith(
        "expected a file of TorchScript, or a program of torch.export; weights are no model: give "
        "package.module:factory, a function that makes it and loads them"
    )
    torch.save(network(), "pickled.pt")
    assert "weights are no model" in refusal_of(load, "pickled.pt")
    (here / "text.pt").write_text("no zip")
    assert refusal_of(load, "text.pt").endswith("File is not a zip file")
    (here / "folder").mkdir()
    assert "expected a file of TorchScript, or a program of torch.export" in refusal_of(load, "folder")
    scripted("whole.pt")
    with zipfile.ZipFile("whole.pt") as whole, zipfile.ZipFile("damaged.pt", "w") as damaged:
        for name in whole.namelist():
            damaged.writestr(name, whole.read(name)[:-9] if name.endswith("data.pkl") else whole.read(name))
    assert "expected a whole file of TorchScript" in refusal_of(load, "damaged.pt")


def test_a_program_of_two_inputs(here):
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b

    torch.export.save(torch.export.export(Two(), (IMAGES, IMAGES)), "two.pt2")
    assert refusal_of(load, "two.pt2").endswith("it takes 2 inputs, and one is given, the images")
