"""One round of re-mining: embed, mine, replace stale negatives, and measure what has changed."""

from __future__ import annotations

import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from tercet.core.checks import Refusal
from tercet.core.randomness import derive_key, permute
from tercet.data.catalog.catalog import Catalog
from tercet.data.io.atomic import atomically
from tercet.data.io.checked_json import JsonRecord, to_json
from tercet.data.io.positional import open_plain
from tercet.data.manifests.columns import InMemoryColumns
from tercet.data.manifests.manifest import Manifest
from tercet.data.manifests.writing import write_manifest
from tercet.offline.embed import embed
from tercet.offline.hard_negatives import mine_hard_triplets
from tercet.offline.mining_inputs import scorer
from tercet.offline.remining_folder import RoundFolder
from tercet.offline.stale_negatives import (
    MinedPairs,
    is_stale,
    joined,
    pairs_of,
    replace_stale,
    scores_now,
)
from tercet.pairwise.distances import as_distance

__all__ = ["Round", "RoundMiner", "read_round", "rows_of_turn", "write_round"]


class Round(NamedTuple):
    """What a round gave.

    Args:
        number: of the round; weights of step `number` · `every` were embedded.
        turn: how many rounds were mined before it: another number where rounds were left out.
        pairs: the pairs, as they are trained on.
        facts: under "drift" the row of the drift log, under "mining" and "report" what mining counted.
    """

    number: int
    turn: int
    pairs: MinedPairs
    facts: dict[str, Any]

    @property
    def checksum(self) -> int:
        """A CRC of all pairs."""
        total = 0
        for column in self.pairs:
            total = zlib.crc32(np.ascontiguousarray(column).tobytes(), total)
        return total

    def manifest(self, catalog: Catalog) -> Manifest:
        """The triplets of the round as a manifest in memory."""
        return Manifest(InMemoryColumns(self.pairs.triplets), catalog, {"strategy": "remining", **self.facts})


def write_round(folder: RoundFolder, found: Round, catalog: Catalog) -> None:
    """Write a round: first its triplets as a manifest for others, then what makes it complete.

    Args:
        folder: where to.
        found: the round.
        catalog: the images.
    """
    # Without the seconds, so that the same round has the same bytes.
    drift = {name: fact for name, fact in found.facts["drift"].items() if name != "seconds"}
    provenance = {"strategy": "remining", "drift": drift, "mining": found.facts["mining"]}
    manifest = folder.file(found.number, "manifest")
    write_manifest(manifest, found.pairs.triplets, catalog, overwrite=True, provenance=provenance)
    facts = to_json({"number": found.number, "turn": found.turn, "facts": found.facts})
    with atomically(folder.file(found.number, "round")) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, facts=np.frombuffer(facts.encode(), np.uint8), **found.pairs._asdict())


def read_round(place: Path) -> Round:
    """The round that `write_round` has written.

    Args:
        place: the file.

    Raises:
        ValueError: it is missing, damaged or of something else.
    """
    try:
        with open_plain(place) as file, np.load(file, allow_pickle=False) as arrays:
            pairs = MinedPairs(*(arrays[name] for name in MinedPairs._fields))
            content = arrays["facts"].tobytes()
    except FileNotFoundError as error:
        hint = "the folder of the rounds belongs to the state"
        raise Refusal("folder", str(place), "a round of re-mining", hint) from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Refusal("folder", str(place), "a round as it was written", f"it is damaged: {error}") from error
    record = JsonRecord(content, place, "facts of a round")
    return Round(record.integer("number"), record.integer("turn"), pairs, record.part("facts").fields)


def rows_of_turn(n: int, parts: int, turn: int, seed: int) -> Int64[np.ndarray, " r"]:
    """The rows that a turn embeds and mines: all in turn 0, then one part after the other.

    A cycle of `parts` turns has each row once; every cycle divides the rows anew.

    Args:
        n: rows of the collection.
        parts: into how many it is divided.
        turn: from 0.
        seed: of the division.

    Example:
        >>> turns = [rows_of_turn(5, 2, turn, seed=0) for turn in range(3)]
        >>> turns[0].tolist(), sorted(np.concatenate(turns[1:]).tolist())
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """
    if parts == 1 or turn == 0:
        return np.arange(n)
    cycle, part = divmod(turn - 1, parts)
    places = np.arange(part * n // parts, (part + 1) * n // parts)
    return np.sort(permute(places, n, derive_key("remining part", seed, cycle)))


class RoundMiner(NamedTuple):
    """Makes rounds.

    Args:
        model: the model; its weights are those of the moment.
        data: a `Catalog` or a `ShardIndex`.
        catalog: the images.
        folder: where embeddings and tables lie.
        parts: into how many parts the collection is divided.
        stale: the factor of `is_stale`.
        seed: of all that is drawn.
        embedding: options of `embed`.
        mining: options of `mine_hard_triplets`.
    """

    model: Any
    data: Any
    catalog: Catalog
    folder: RoundFolder
    parts: int
    stale: float
    seed: int
    embedding: Mapping[str, Any]
    mining: Mapping[str, Any]

    def mine(self, number: int, step: int, before: Round | None) -> Round:
        """The round of a number, and its table of embeddings where later rounds need it.

        Args:
            number: of the round.
            step: at which the weights are.
            before: the round before it; None for the first.

        Raises:
            ValueError: options that do not fit, no triplet at all, or no table of the round before.
        """
        started = time.perf_counter()
        turn = 0 if before is None else before.turn + 1
        rows = rows_of_turn(len(self.catalog), self.parts, turn, self.seed)
        x = self._embedded(rows, number, before)
        options = dict(self.mining)
        anchors = options.pop("anchors", None)
        asked = rows if anchors is None else np.intersect1d(rows, anchors)
        mined = mine_hard_triplets(
            x,
            self.catalog.labels,
            anchors=asked,
            seed=derive_key("remining", self.seed, number),
            **options,
        )
        pairs, facts = pairs_of(mined), {"stale": None, "score_change": None, "replaced": 0, "unreplaced": 0}
        changed = None
        if before is not None:
            metric = as_distance("mine_hard_triplets", options.get("distance", "cosine"))
            now = scores_now(before.pairs, scorer(x, metric))
            stale = is_stale(before.pairs, now, self.stale)
            hard = (before.pairs.ranks > 0) & np.isfinite(now)
            if hard.any():
                facts["stale"] = float(stale[hard].mean())
                facts["score_change"] = float((now - before.pairs.scores)[hard].mean(dtype=np.float64))
            kept = ~np.isin(before.pairs.anchor, rows)
            others, replaced = replace_stale(before.pairs.select(kept), stale[kept])
            facts["replaced"] = int(replaced.sum())
            facts["unreplaced"] = int(stale[kept].sum()) - facts["replaced"]
            pairs = joined(others, pairs)
            changed = _share_changed(before.pairs, pairs, len(self.catalog))
        if not len(pairs.triplets.anchor):
            hint = f"all candidates of {mined.report.pairs} pairs are refused; on_short='random' draws some"
            raise Refusal("mining", dict(self.mining), "options that leave a triplet", hint)
        row = {
            "round": number,
            "step": step,
            "triplets": pairs.triplets.count,
            "mined_anchors": len(np.unique(mined.anchor)),
            "changed": changed,
            **facts,
            "seconds": round(time.perf_counter() - started, 3),
        }
        told = {"mining": mined.report.as_dict(), "report": str(mined.report)}
        return Round(number, turn, pairs, {"drift": row, **told})

    def _embedded(self, rows: Int64[np.ndarray, " r"], number: int, before: Round | None) -> Any:
        """The newest embedding of each image: of this round for the rows, of earlier ones for the others."""
        whole = len(rows) == len(self.catalog)
        data = self.data if whole else self.data.select(rows)
        out = self.folder.path / "embeddings.npy"
        found = embed(self.model, data, out, overwrite=True, **self.embedding)
        if self.parts == 1:
            return found.array
        if whole:
            table = np.array(found.array)
        else:
            assert before is not None  # turn 0 is whole
            place = self.folder.file(before.number, "table")
            if not place.exists():
                hint = "a larger keep= holds on to more of them"
                raise Refusal("folder", str(place), "the embeddings that the round goes on from", hint)
            table = np.load(place)
            table[rows] = found.array
        with atomically(self.folder.file(number, "table")) as unfinished, open(unfinished, "wb") as file:
            np.save(file, table)
        return table


def _share_changed(before: MinedPairs, after: MinedPairs, n: int) -> float:
    """The share of (anchor, negative) that were not there before."""
    old, new = (pairs.triplets.anchor * n + pairs.triplets.negative for pairs in (before, after))
    return float(1 - np.isin(new, old).mean()) if len(new) else 0.0
