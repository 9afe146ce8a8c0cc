"""What `evaluate` is given instead of an array: embeddings of files, or a model and the images to embed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tercet.core.checks import Refusal, border, refusal
from tercet.offline.embed import embed
from tercet.offline.embeddings import Embeddings

__all__ = ["Rows", "rows_of"]

CALLER = "evaluate"


class Rows(NamedTuple):
    """What is evaluated.

    Args:
        embeddings: [n, d].
        labels: [n].
        ids: [n], or None.
        groups: [n], or that beside the groups of the references, or None.
        notes: lines for the table.
    """

    embeddings: Any
    labels: Any
    ids: Any
    groups: Any
    notes: list[str]


def rows_of(
    given: Any, labels: Any, catalog: Any, out: Any, embedding: Any, ids: Any, groups: Any, pair: bool
) -> Rows:
    """Embeddings and labels, embedded first where a model is given; images that do not decode are left out.

    Args:
        given: an array or tensor; `Embeddings`; or a model, with `catalog`.
        labels: [n]; None for the classes of the catalog.
        catalog: the images of a model.
        out: where the embeddings of a model are kept; None for a folder that is removed.
        embedding: options of `embed`, by name.
        ids: [n], or None.
        groups: [n], the name of a column of the catalog, or None; beside those of the references in a pair.
        pair: whether there are references.

    Raises:
        ValueError: a model without catalog, a catalog without model, or no labels.
    """
    with border(CALLER):
        if isinstance(given, nn.Module) or (callable(given) and not isinstance(given, (Tensor, np.ndarray))):
            if catalog is None:
                raise Refusal("catalog", None, "a Catalog or a ShardIndex beside a model")
            return _left(_embedded(given, catalog, out, embedding), labels, ids, groups, pair)
        for name, value in (("catalog", catalog), ("out", out), ("embedding", embedding)):
            if value is not None:
                raise Refusal(name, value, "None beside embeddings", "pass a model as the first argument")
        if isinstance(given, Embeddings):
            return _left(given, labels, ids, groups, pair)
        if labels is None:
            raise Refusal("labels", None, "one label for each embedding")
    return Rows(given, labels, ids, groups, [])


def _embedded(model: Any, catalog: Any, out: Any, embedding: Any) -> Embeddings:
    if embedding is not None and not isinstance(embedding, Mapping):
        raise Refusal("embedding", embedding, 'options of embed by name, such as {"size": 224}')
    options = dict(embedding or {})
    with tempfile.TemporaryDirectory(prefix="tercet-") as folder:
        found = embed(model, catalog, Path(folder, "embeddings.npy") if out is None else out, **options)
        return Embeddings(np.array(found.array), found.catalog, found.facts) if out is None else found


def _left(found: Embeddings, labels: Any, ids: Any, groups: Any, pair: bool) -> Rows:
    """The rows that decode; labels and groups by their names in the catalog."""
    n = len(found)
    kept = np.ones(n, bool)
    kept[found.unreadable] = False
    if labels is None:
        labels = np.asarray(found.catalog.classes, dtype=object)[found.labels].astype(str)
    pair = pair and isinstance(groups, (tuple, list)) and len(groups) == 2
    own = groups[0] if pair else groups
    if isinstance(own, str):
        if own not in found.catalog.groups:
            columns = ", ".join(found.catalog.groups) or "none"
            raise Refusal("groups", own, f"values, or one of the catalog's columns: {columns}")
        own = found.catalog.groups[own]
    own = _some("groups", own, kept)
    notes = [] if kept.all() else [f"{int((~kept).sum()):,} images left out: they do not decode"]
    array = torch.from_numpy(np.array(found.array[kept], dtype=np.float32))
    return Rows(
        array,
        _some("labels", labels, kept),
        _some("ids", ids, kept),
        (own, groups[1]) if pair else own,
        notes,
    )


def _some(argument: str, values: Any, kept: np.ndarray) -> Any:
    """The values of the rows that are kept."""
    if values is None:
        return None
    if len(values) != len(kept):
        raise refusal(None, argument, f"{len(values)} values", f"{len(kept)}, one for each image")
    if isinstance(values, Tensor):
        return values[torch.from_numpy(kept).to(values.device)]
    return np.asarray(values)[kept]
