"""`inspect`: one HTML file in which one sees what is hard and what is wrong, and says so."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

import numpy as np

from tercet.core.checks import Refusal, as_bool, as_choice, as_int, as_string, border, escaped, label_codes
from tercet.data.io.atomic import atomically, fresh_target
from tercet.data.io.images import decode_image, read_image
from tercet.offline.mining_inputs import matrix_of
from tercet.offline.verdict_table import as_catalog
from tercet.offline.verdicts import UNDECIDED, Verdicts, as_verdicts
from tercet.reports.analysis import analysed, counts_of, triplets_of, views_of
from tercet.reports.atlas import write_atlas
from tercet.reports.map import LAYOUTS
from tercet.reports.page_data import filter_view, provenance_view, triplet_galleries
from tercet.reports.sprites import COLUMNS, sprites
from tercet.reports.suspects import DISTANCES, class_names, mask_of

__all__ = ["inspect"]

_SCRIPTS = ("page.js", "map.js", "views.js")


def inspect(
    path: str | Path,
    embeddings: Any = None,
    labels: Any = None,
    *,
    mined: Any = None,
    catalog: Any = None,
    test: Any = None,
    verdicts: Any = None,
    images: Any = None,
    most: int = 120,
    k: int = 10,
    layout: str = "pca",
    thumbnail: int = 96,
    embed_all: bool = False,
    title: str = "",
    distance: str = "cosine",
    atlas: str | Path | None = None,
    memory: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> None:
    """Write a page of a collection: what is hard, what is suspect, and a map, in one HTML file.

    It has galleries of the hardest triplets, positives and negatives and of suspects; how hard each class is
    and which are confused; histograms of similarities; what each filter of mining refused; where all comes
    from; and a map. Cards are marked by keys (same, different, duplicate, skip), and the marks exported as a
    table that `read_verdicts` and `tercet mine --verdicts` read. The page needs no network and no server.

    Args:
        path: the page, ending in .html.
        embeddings: [n, d]: numpy, a memory map, a tensor, or `Embeddings`; None to show the triplets of a
            manifest alone.
        labels: [n] whole numbers or strings; None for those of `Embeddings` or of the catalog.
        mined: the triplets: `MinedTriplets`, a `Manifest` or `Triplets` of catalog rows; None for the
            farthest positive and the nearest negative of each image.
        catalog: the images; None for that of `Embeddings` or of the manifest.
        test: which images are test images, for leaks: bool [n], or row numbers.
        verdicts: `Verdicts` that are marked already.
        images: a `ShardIndex`, which images are read from; or a function of a row that gives its image,
            uint8 [h, w, 3]; None reads the catalog's files.
        most: how many cards a gallery has.
        k: neighbours of each image in the graph that suspects and confusion come from.
        layout: "pca", or "tsne" with `pip install "tercet[report]"`.
        thumbnail: pixels of a thumbnail.
        embed_all: carry a thumbnail of every image; else of those in galleries, and others are read from
            their files, by paths relative to the page; images of shards are seen as thumbnails alone.
        title: of the page.
        distance: "cosine", "euclidean" or "squared_euclidean".
        atlas: also write a table for Embedding Atlas: .parquet with x, y, image, class and neighbors.
        memory: bytes of each search above the inputs, as for `nearest`.
        overwrite: replace existing files.
        progress: show progress bars.

    Raises:
        ValueError: no embeddings and no triplets, another suffix, an existing file, or what does not fit.

    Example:
        >>> from tercet.data.catalog.catalog import Catalog
        >>> x = np.random.default_rng(0).normal(size=(6, 4))
        >>> catalog = Catalog([f"{i}.png" for i in range(6)], [0, 0, 0, 1, 1, 1], ["ant", "bee"])
        >>> inspect("page.html", x, catalog=catalog)
        >>> Path("page.html").read_text().startswith("<!doctype html>")
        True
    """
    with border("inspect"):
        overwrite = as_bool(None, "overwrite", overwrite)
        target = fresh_target(path, overwrite, (".html",))
        table = None if atlas is None else fresh_target(atlas, overwrite, (".parquet",))
        most, k = as_int(None, "most", most, 1, 2000), as_int(None, "k", k, 1)
        layout = as_choice(None, "layout", layout, LAYOUTS)
        thumbnail = as_int(None, "thumbnail", thumbnail, 8, 512)
        distance = as_choice(None, "distance", distance, DISTANCES)
        embed_all = as_bool(None, "embed_all", embed_all)
        title = as_string(None, "title", title)
        if embeddings is None and mined is None:
            raise Refusal("embeddings", None, "embeddings, or mined= triplets")
        for source in (embeddings, mined, images):
            catalog = getattr(source, "catalog", None) if catalog is None else catalog
        catalog = as_catalog(catalog)
        n = len(catalog)
        read = _reader(images, catalog)
        said = None if verdicts is None else as_verdicts(verdicts, n)
        rows = None if mined is None else triplets_of(mined, n)
        tested = mask_of(test, n)
        facts: dict[str, Any] = {"images": n, "catalog": catalog.fingerprint}
        facts |= {"distance": distance, "layout": layout, "neighbours": k}
        origin = {"Page": facts, "Triplets": getattr(mined, "provenance", {})}
        origin["Embeddings"] = getattr(embeddings, "facts", {})
        if embeddings is None:
            if table is not None:
                raise Refusal("atlas", str(atlas), "embeddings, which its places are of")
            assert rows is not None
            names, codes, found = list(catalog.classes), catalog.labels, None
            data: dict[str, Any] = {"galleries": triplet_galleries(rows, most)}
            counts = counts_of(mined)
            data["filters"] = filter_view(counts) if counts else None
        else:
            given = getattr(embeddings, "labels", catalog.labels) if labels is None else labels
            x, given = matrix_of(embeddings, given)
            codes, values = label_codes(None, given)
            for argument, count in (("embeddings", len(x)), ("labels", len(codes))):
                if count != n:
                    raise Refusal(argument, f"{count} rows", f"one for each of the {n} images")
            names = class_names(values, catalog if labels is None else None)
            found = analysed(x, codes, k, distance, {"memory": memory, "progress": progress})
            data = views_of(found, names, rows, counts_of(mined), catalog, tested, most, layout)
    shown = np.arange(n) if embed_all else _rows_shown(data["galleries"])
    thumbs = sprites(shown, n, read, thumbnail)
    data |= {"id": hashlib.sha256(f"{catalog.fingerprint} {title}".encode()).hexdigest()[:16]}
    data |= {"classes": names, "labels": codes.tolist(), "paths": catalog.paths.tolist()}
    data |= {
        "root": None if _of_shards(images) else _way(catalog.root, target.parent),
        "columns": COLUMNS,
        "marks": _marked(said),
    }
    data["cells"] = thumbs.cell.tolist() if len(shown) == n else {int(i): int(thumbs.cell[i]) for i in shown}
    if thumbs.failed:
        origin["Images that do not decode"] = {catalog.paths[row]: why for row, why in thumbs.failed}
    data["provenance"] = provenance_view(origin)
    lead = f"{n:,} images of {len(names):,} classes"
    with atomically(target, overwrite) as unfinished:
        unfinished.write_text(_rendered(title or "What mining sees", lead, data, thumbs.sheets), "utf-8")
    if table is not None and found is not None:
        write_atlas(table, found, data, catalog, read, thumbnail, overwrite)


def _of_shards(images: Any) -> bool:
    return hasattr(images, "tars") and hasattr(images, "read")


def _reader(images: Any, catalog: Any) -> Callable[[int], np.ndarray]:
    """Gives the image of a row; threads may call it."""
    if images is None:
        return lambda row: read_image(catalog.file(row))
    if not _of_shards(images):
        function: Any = images
        if not callable(images):
            raise Refusal("images", images, "a ShardIndex, or a function of a row that gives its image")
        return function
    if images.catalog.paths.tolist() != catalog.paths.tolist():
        raise Refusal("images", images, "shards of the images of the catalog, in its order")
    alone = Lock()

    def read(row: int) -> np.ndarray:
        with alone:
            (content,) = images.read([row])
        return decode_image(content, catalog.paths[row])

    return read


def _rendered(title: str, lead: str, data: dict[str, Any], sheets: Sequence[str]) -> str:
    """The page as text. Jinja escapes every name; styles and scripts are our own files."""
    import jinja2
    from markupsafe import Markup

    templates = files("tercet.reports") / "templates"
    script = "".join((templates / name).read_text("utf-8") for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    world = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    world.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return world.from_string((templates / "page.html").read_text("utf-8")).render(
        title=escaped(title),
        lead=lead,
        version=version("tercet"),
        style=Markup((templates / "page.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=Markup(digest),
        sheets=[Markup(sheet) for sheet in sheets],
        data=data,
    )


def _rows_shown(galleries: Mapping[str, Any]) -> np.ndarray:
    """The images of all cards, each once."""
    items = [item for view in galleries.values() for item in view["items"]]
    found = {item[name] for item in items for name in ("image", "positive", "other") if name in item}
    return np.array(sorted(found), dtype=np.int64)


def _marked(said: Verdicts | None) -> list[tuple[str, str]]:
    """The marks that a page begins with: a pair of rows and a word."""
    if said is None:
        return []
    lines = zip(said.image.tolist(), said.other.tolist(), said.verdict, strict=True)
    return [(f"{image},{other}", word) for image, other, word in lines if word != UNDECIDED]


def _way(root: Path, folder: Path) -> str:
    """The address of a folder as seen from another, ending in a slash."""
    way = os.path.relpath(os.path.realpath(root), os.path.realpath(folder)).replace(os.sep, "/")
    return quote(os.fsencode(way)) + "/"
