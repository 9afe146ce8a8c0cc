"""The page in Chromium, from a file, with WebGL and without: what a person does works, without an error."""

import time

import numpy as np
import pytest

from tercet import Catalog, embed, read_verdicts, scan_folder
from tercet.reports.page import inspect
from tests.helpers import picture
from tests.reports.browser import PROGRAM, WITH_WEBGL, WITHOUT_WEBGL, Browser

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium"
)

NASTY = "<script>window.hacked=1</script>\"'`<img src=x onerror=window.hacked=1>\x1b[2J\u202e"
SETTLED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture(scope="module", params=[WITHOUT_WEBGL, WITH_WEBGL], ids=["without WebGL", "with WebGL"])
def browser(request, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser"), request.param) as opened:
        yield opened


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Embeddings of 48 pictures of four classes, two of them with the label of another class."""
    monkeypatch.chdir(tmp_path)
    for row in range(48):
        picture(tmp_path / "photos" / "abcd"[row % 4] / f"{row:02d} #1%.png", row)
    catalog = scan_folder("photos")
    rng = np.random.default_rng(0)
    kinds = catalog.labels.copy()
    kinds[[0, 1]] = 1
    x = (rng.normal(size=(4, 8))[kinds] * 3 + 0.3 * rng.normal(size=(48, 8))).astype(np.float32)

    def model(images):
        import torch

        return torch.from_numpy(x[: len(images)])

    embed(model, catalog, "x.npy", size=4, batch_size=48, workers=0)
    return tmp_path


@pytest.fixture
def page(here, browser, tercet):
    code, _, err = tercet("inspect", "x.npy", "-o", "page.html", "--quiet", "--suspects", "suspects.csv")
    assert code == 0, err
    browser.said.clear()
    browser.size(1280, 900)
    browser.open(here / "page.html")
    browser.run("localStorage.clear()")
    browser.open(here / "page.html")
    yield browser
    assert browser.said == []


def cards(browser):
    return browser.run("document.querySelectorAll('.card').length")


def test_each_view_shows_something(page):
    tabs = page.run("VIEWS.map((view) => view.id)")
    assert tabs == [
        *("triplets", "positives", "negatives", "suspects"),
        *("map", "classes", "confusion", "similarities", "provenance"),
    ]
    for tab in tabs:
        page.run(f"document.querySelector('[data-tab={tab}]').click()")
        page.run(SETTLED)
        assert page.run("document.querySelector('main').textContent.length") > 50
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run("document.querySelector('[aria-selected=true]').dataset.tab") == tab
    page.size(390, 844, 2, mobile=True)
    for tab in tabs:
        page.run(f"show('{tab}')")
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), tab


def test_thumbnails_of_galleries_are_carried_and_others_come_from_their_files(page, here):
    shown = page.run("getComputedStyle(document.querySelector('.card .shot')).backgroundImage")
    assert shown.startswith('url("data:image/webp;base64,')
    loaded = """new Promise((good, bad) => {
        const i = new Image(); i.onload = () => good(i.width); i.onerror = bad; i.src = address(%d);
    })"""
    assert [page.run(loaded % row) for row in (0, 47)] == [32, 32]
    page.run("document.querySelector('.card .shot').click()")
    page.run("new Promise(done => setTimeout(done, 200))")
    assert page.run("document.querySelector('#full').open")
    assert page.run("document.querySelector('#full img').naturalWidth") == 32
    page.key("Escape")
    assert not page.run("document.querySelector('#full').open")


def test_sorting_and_filtering(page):
    page.run("show('negatives')")
    scores = "state.cards.map(([item]) => item.score)"
    page.run("$('sort').value = 'farthest first'; $('sort').dispatchEvent(new Event('change'))")
    found = page.run(scores)
    assert found == sorted(found)
    page.run("$('sort').value = 'nearest first'; $('sort').dispatchEvent(new Event('change'))")
    assert page.run(scores) == sorted(found, reverse=True)
    every = cards(page)
    page.run("$('class').value = 'c'; $('class').dispatchEvent(new Event('change'))")
    assert 0 < cards(page) < every
    kept = page.run(
        "state.cards.every(([item]) => [item.image, item.other].some((row) => DATA.labels[row] === 2))"
    )
    assert kept
    page.run("$('class').value = ''; $('class').dispatchEvent(new Event('change'))")
    assert cards(page) == every
    page.run("show('classes')")
    images = (
        "[...document.querySelectorAll('tbody tr td:last-child')].map((cell) => parseFloat(cell.textContent))"
    )
    assert page.run(images) == sorted(page.run(images), reverse=True)
    page.run("document.querySelector('th:last-child button').click()")
    assert page.run(images) == sorted(page.run(images))


def test_marks_by_keys_are_exported_and_change_what_is_mined(page, here, tercet):
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(here))
    page.run("show('suspects')")
    page.key("j")
    first = page.run("state.cards[0][0].image")
    page.key("x")
    page.key("ArrowRight")
    page.key("s")
    page.key("d")  # another word in its place
    page.key("k")
    assert page.run("document.querySelector('[aria-current] [aria-pressed=true]').textContent") == "skip"
    page.run("show('negatives')")
    free = "state.cards.find(([item]) => !marks.has(pairOf(item)))"
    page.run(f"{free}[1].querySelector('.marks .duplicate').click()")
    assert page.run("$('count').textContent") == "3"
    page.open(here / "page.html")
    assert page.run("$('count').textContent") == "3"  # kept where the browser allows it
    page.key("e")
    deadline = time.monotonic() + 20
    while not (files := list(here.glob("verdicts*.csv"))) and time.monotonic() < deadline:
        page.run("new Promise(done => setTimeout(done, 50))")
    catalog = scan_folder("photos")
    said = read_verdicts(files[0], catalog)
    assert said.verdict == ["skip", "different", "duplicate"]
    assert said.image[0] == first
    suspects = read_verdicts("suspects.csv", catalog)
    pairs = [list(zip(table.image, table.other, strict=True)) for table in (said, suspects)]
    assert {*pairs[0][:2]} <= {*pairs[1]}
    counts = {}
    for name, more in (("without", []), ("with", ["--verdicts", files[0]])):
        code, out, err = tercet("mine", "x.npy", f"{name}.parquet", *more)
        assert code == 0, err
        counts[name] = out
    assert "a person's verdict" in counts["with"]
    assert "a person's verdict" not in counts["without"]
    page.run("document.querySelector('#tabs button').focus()")
    page.key("0")


def test_the_map_is_moved_hovered_and_clicked(page):
    page.run("show('map')")
    page.run("new Promise(done => setTimeout(done, 300))")
    painted = """(() => {
        const c = document.querySelector('.map canvas');
        const all = c.getContext('2d').getImageData(0, 0, c.width, c.height);
        return all.data.filter((v, i) => i % 4 === 3 && v).length;
    })()"""
    assert page.run(painted) > 48
    at = page.run("""(() => { const box = document.querySelector('.map canvas').getBoundingClientRect();
        return [box.left + (DATA.map.x[5] - mapView.left) * mapView.scale / devicePixelRatio,
            box.top + (DATA.map.y[5] - mapView.top) * mapView.scale / devicePixelRatio]; })()""")
    page.pointer("mouseMoved", *at)
    assert not page.run("$('tip').hidden")
    assert page.run("$('tip').textContent").endswith("#1%.png")
    for kind in ("mousePressed", "mouseReleased"):
        page.pointer(kind, *at, button="left", clickCount=1)
    assert page.run("$('full').open")
    page.run("$('full').close()")
    before = page.run("[mapView.left, mapView.scale]")
    page.pointer("mousePressed", 640, 500, button="left", buttons=1)
    page.pointer("mouseMoved", 700, 520, button="left", buttons=1)
    page.pointer("mouseReleased", 700, 520, button="left")
    page.pointer("mouseWheel", 640, 500, deltaX=0, deltaY=-300)
    page.run(SETTLED)
    after = page.run("[mapView.left, mapView.scale]")
    assert after[1] > before[1]
    assert after[0] != before[0]


def test_the_grid_finds_the_nearest_point(page):
    found = page.run("""(() => {
        let seed = 1;
        const draw = () => (seed = (seed * 16807) % 2147483647) % 65536;
        const x = Uint16Array.from({ length: 500 }, draw), y = Uint16Array.from({ length: 500 }, draw);
        const grid = gridOf(x, y, Uint32Array.from(x.keys()));
        return Array.from({ length: 300 }, () => {
            const [px, py, reach] = [draw(), draw(), 200 + draw() / 8];
            let least = Infinity;
            for (let i = 0; i < 500; i++) least = Math.min(least, Math.hypot(x[i] - px, y[i] - py));
            const row = nearestPoint(grid, x, y, px, py, reach);
            return row < 0 ? least > reach : Math.abs(Math.hypot(x[row] - px, y[row] - py) - least) < 1e-9;
        });
    })()""")
    assert len(found) == 300
    assert all(found)


def test_names_do_nothing(browser, tmp_path):
    names = [f"{NASTY}/{row}.png" for row in range(12)]
    catalog = Catalog(names, [0, 1] * 6, [f"a{NASTY}", f"b{NASTY}"], root=tmp_path)
    inspect(
        tmp_path / "page.html", np.random.default_rng(0).normal(size=(12, 3)), catalog=catalog, title=NASTY
    )
    browser.open(tmp_path / "page.html")
    for tab in browser.run("VIEWS.map((view) => view.id)"):
        browser.run(f"show('{tab}')")
        browser.run("new Promise(done => setTimeout(done, 100))")
        assert browser.run("typeof window.hacked") == "undefined"
        assert browser.run("document.querySelectorAll('main script, main img[onerror]').length") == 0
    browser.run("show('triplets'); openFull(0)")
    text = browser.run("document.body.innerText")
    assert "\\u{1b}[2J\\u{202e}" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    # Only the files of the images are missing, as there are none.
    assert all("ERR_FILE_NOT_FOUND" in line for line in browser.said), browser.said
    browser.said.clear()
