"""The package as it is installed: a wheel made from the sdist, away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """What a command prints that succeeds."""
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder, folder=ROOT)
    (sdist,) = folder.glob("tercet-*.tar.gz")
    with tarfile.open(sdist) as packed:
        packed.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, folder=source)
    (found,) = folder.glob("tercet-*.whl")
    return found


def test_a_wheel_from_the_sdist_holds_the_package_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"tercet/__init__.pyi", "tercet/py.typed", "tercet/cli/app.py"} <= set(names)
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "tercet").rglob("*.py")}
    assert sources <= set(names)
    examples = {f"tercet/examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    assert examples <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tercet"}


def test_the_wheel_imports_and_tells_its_version_in_an_empty_folder(wheel, tmp_path):
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(installed)
    place = {"PYTHONPATH": str(installed), "NO_ALBUMENTATIONS_UPDATE": "1", "EAGER_IMPORT": "1"}
    file = run(sys.executable, "-c", "import tercet; print(tercet.__file__)", folder=empty, **place)
    assert Path(file.strip()) == installed / "tercet/__init__.py"
    version = wheel.name.split("-")[1]
    assert (
        run(sys.executable, "-m", "tercet.cli", "--version", folder=empty, **place) == f"tercet {version}\n"
    )
    (entry,) = installed.glob("tercet-*.dist-info/entry_points.txt")
    assert "tercet = tercet.cli.app:main" in entry.read_text("utf-8")
    assert list(empty.iterdir()) == []
