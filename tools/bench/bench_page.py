"""How soon a page of 100,000 images opens, and how evenly its map is moved, in Chromium from a file.

    python tools/bench/bench_page.py [--images 100000]

Both with WebGL, computed by the processor, and without it. The map needs neither: points are written into the
pixels of a canvas. Frames are those of the browser while the map is dragged; 16.7 ms are 60 a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import tercet

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.reports.browser import PROGRAM, WITH_WEBGL, WITHOUT_WEBGL, Browser

CLASSES = 200
FRAMES = """(() => {
    let last = performance.now();
    window.frames_seen = [];
    const tick = (now) => { frames_seen.push(now - last); last = now; requestAnimationFrame(tick); };
    requestAnimationFrame(tick);
})()"""


def write_page(page: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, n)
    x = rng.normal(size=(CLASSES, 8))[labels] + 0.6 * rng.normal(size=(n, 8))
    paths = [f"class {label}/{row:06d}.jpg" for row, label in enumerate(labels.tolist())]
    names = [f"class {label}" for label in range(CLASSES)]
    catalog = tercet.Catalog(paths, labels, names, root=page.parent)
    triplets = tercet.RandomTriplets(labels)[:n]
    tercet.inspect(page, x.astype(np.float32), catalog=catalog, mined=triplets, k=5)


def measured(page: Path, folder: Path, flags: tuple[str, ...]) -> list[float]:
    """Milliseconds until the page is loaded, until its map is drawn, and quantiles of the frames."""
    with Browser(folder, flags) as browser:
        browser.open(page)
        loaded = browser.run("performance.getEntriesByType('navigation')[0].loadEventEnd")
        drawn = """new Promise((done) => {
            const start = performance.now();
            show('map');
            requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
        })"""
        first = browser.run(drawn)
        browser.run(FRAMES)
        browser.pointer("mousePressed", 640, 500, button="left", buttons=1)
        for step in range(80):
            browser.pointer("mouseMoved", 640 + 3 * step, 500 + step, button="left", buttons=1)
            browser.run("new Promise(requestAnimationFrame)")
        frames = browser.run("frames_seen")[1:]
    return [loaded, first, *np.quantile(frames, (0.5, 0.95, 1))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    asked = parser.parse_args()
    if PROGRAM is None:
        sys.exit("expected Chromium, found none: apt-get install chromium")
    table = Table("ms", "page loaded", "map drawn", "frame, median", "95 %", "longest")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Path(folder, "page.html")
        write_page(page, asked.images)
        for name, flags in (("without WebGL", WITHOUT_WEBGL), ("with WebGL", WITH_WEBGL)):
            table.add_row(name, *(f"{value:,.1f}" for value in measured(page, Path(folder, name), flags)))
    Console().print(table)


if __name__ == "__main__":
    main()
