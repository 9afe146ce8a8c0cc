"""The documentation is true: its code and commands run, and its reference has every public name."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

import tercet

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def blocks(text):
    """(language, text) of each block that is run, in order."""
    return BLOCK.findall(text)


def commands(block):
    """(command, what it is said to print) of a console block."""
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, flags=re.MULTILINE)


def said(text):
    """Output without what differs from run to run: the seconds, and blanks at line ends."""
    text = re.sub(r"(seconds\s+│\s+)[\d.]+", r"\1…", text)
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders of the digits of scikit-learn, twelve images each."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("docs") / "photos"
    digits = load_digits()
    for name in range(10):
        (folder / str(name)).mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == name][:12]):
            cv2.imwrite(str(folder / str(name) / f"{number}.png"), image * 15)
    return folder


class Model(torch.nn.Module):
    """What a reader has: images in, embeddings of unit length out."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3 * 8 * 8, 8)

    def forward(self, images):
        return torch.nn.functional.normalize(self.layer(images.flatten(1)))


def run(command, folder):
    words = shlex.split(command)
    if words[0] == "tercet":
        words[:1] = [sys.executable, "-m", "tercet"]
    elif words[0] == "python":
        words[0] = sys.executable
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if blocks((DOCS / page).read_text())])
def test_the_code_of_a_page_runs(page, photos, tmp_path, monkeypatch):
    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"model": Model(), "transform": lambda image: image}
    for language, text in blocks((DOCS / page).read_text()):
        if language == "python":
            exec(compile(text, page, "exec"), names)
        for command, expected in commands(text) if language == "console" else ():
            printed = run(command, tmp_path)
            if expected:
                assert said(printed) == said(expected), command


def test_a_wrong_block_is_seen():
    text = "```python\nx = 1\nassert x == 2\n```\n```console\n$ a b\nout\n$ c\n```\n```text\n$ d\n```\n"
    (code, shell) = blocks(text)
    with pytest.raises(AssertionError):
        exec(code[1], {})
    assert commands(shell[1]) == [("a b", "out\n"), ("c", "")]


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_each_public_name_once():
    tool = loaded("docs_pages")
    pages = tool.public_names(tool.STUB.read_text())
    found = [name for names in pages.values() for name in names]
    assert sorted(found) == sorted(name for name in tercet.__all__ if name != "__version__")
    assert all(
        f"::: tercet.{name}\n" in tool.page_text(page, names)
        for page, names in pages.items()
        for name in names
    )
    with pytest.raises(ValueError, match=r"Odd of nowhere\.files: add its folder to one page"):
        tool.public_names("from .nowhere.files import Odd as Odd\n")


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert sorted(re.findall(r": ([\w/-]+\.md)$", navigation, flags=re.MULTILINE)) == sorted(
        [*PAGES, *(f"reference/{page}.md" for page in loaded("docs_pages").PAGES)]
    )
