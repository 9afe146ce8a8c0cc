"""README is true: its code prints what it says, and its figures are those of the results page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def figures(text):
    """Each named figure of a table that `evaluate` prints."""
    return {
        name: float(value) for name, value in re.findall(r"^(\S+) +(\d\.\d{3}) \[", text, flags=re.MULTILINE)
    }


def test_the_training_step_prints_what_the_readme_says(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    digits = "import pathlib, quickstart; quickstart.write_digits(pathlib.Path('out/quickstart/digits'))\n"
    environment = {"PYTHONPATH": str(ROOT / "examples"), "NO_ALBUMENTATIONS_UPDATE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", digits + code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (shown,) = [
        block for block in re.findall(r"^```text\n(.*?)^```", README, re.M | re.S) if "R-precision" in block
    ]
    # Training amplifies rounding, so a machine has its own figures.
    assert figures(done.stdout) == pytest.approx(figures(shown), abs=0.04)
    assert len(figures(shown)) == 3


@pytest.mark.parametrize(
    ("target", "part"), [("quickstart", "examples/quickstart.py"), ("test", "-m pytest")]
)
def test_make_runs_what_the_other_tests_run(target, part):
    command = ["make", target, "--dry-run", "--always-make"]
    assert part in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


COLUMNS = ["case", "N", "K", "D", "ms", "product", "MiB", "peer", "peer ms", "faster", "peer MiB", "less"]
RESULTS = (ROOT / "tools/bench/RESULTS.md").read_text()


def of_case(case, n, peer):
    """A row of the results page, by column."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in RESULTS.splitlines()
        if line.startswith(f"| {case} | {n} | 8 | 128 |")
    ]
    (found,) = [cells for cells in rows if cells[7] == peer]
    return dict(zip(COLUMNS, found, strict=True))


def test_the_figures_are_those_of_the_results_page():
    hard, hinge = of_case("batch hard", 8192, "PML"), of_case("hinge, all triplets", 1024, "PML")
    large = of_case("hinge, all triplets", 8192, "PML")
    assert large["peer ms"] == "over 8 GiB at N = 8192"
    (nearest,) = [line for line in RESULTS.splitlines() if line.startswith("| 100,000 | tercet |")]
    share, mib = [cell.strip() for cell in nearest.strip("|").split("|")][3:5]
    said = [
        f"takes {hard['product']} × the bare matrix product: {hard['faster']} × as fast as",
        f"1/{hard['less']} of its memory",
        f"{hinge['faster']} × as fast as there, in 1/{hinge['less']} of the memory",
        f"at 8,192 rows it takes {large['MiB']} MiB",
        f"in {share} × the time of the product, {mib} MiB",
    ]
    text = " ".join(README.split())
    assert not [words for words in said if words not in text]


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)|(?:src|srcset)=\"([^\"]+)\"", README)
    paths = [first or second for first, second in targets]
    assert len(paths) > 20
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_readme_is_at_most_130_lines():
    assert len(README.splitlines()) <= 130
