"""`mine_hard_triplets`: hard negatives of a whole collection, chosen by rank and score, all accounted for."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tercet.core.checks import Refusal, as_bool, as_choice, as_float, as_int, as_seed, border
from tercet.neighbors.nearest_search import as_backend
from tercet.offline.engines import as_engine, collection_search
from tercet.offline.filters import Reason, as_limits
from tercet.offline.mined_triplets import MinedTriplets
from tercet.offline.mining_inputs import (
    as_anchors,
    as_teacher,
    as_window,
    cluster_codes,
    codes_of,
    matrix_of,
    scorer,
    usable_rows,
)
from tercet.offline.mining_plan import plan_mining, searched_at_once
from tercet.offline.mining_report import Account
from tercet.offline.mining_steps import blocks_of, joined, mined_block, pairs_of
from tercet.offline.pair_mining import SHORT, PairMiner, Rules
from tercet.offline.positives import as_positives
from tercet.offline.random_negatives import Forbidden
from tercet.offline.seen_scores import SeenScores
from tercet.offline.selection import as_strategy
from tercet.offline.verdicts import (
    SetAside,
    Verdicts,
    as_verdicts,
    find_suspects,
    no_verdicts,
    set_aside,
    undecided,
)
from tercet.pairwise.distances import Distance, as_distance

__all__ = ["mine_hard_triplets"]


@torch.no_grad()
def mine_hard_triplets(
    embeddings: Any,
    labels: Any = None,
    *,
    negatives: int = 1,
    positives: str | int = "all",
    strategy: str = "hardest",
    ranks: tuple[int, int] = (1, 100),
    margin: float | None = None,
    relative_margin: float | None = None,
    reference: str = "own",
    max_score: float | None = None,
    min_score: float | None = None,
    max_quantile: float | None = None,
    per_class: int | None = None,
    clusters: int | None = None,
    teacher: Any = None,
    teacher_margin: float = 0.0,
    suspects: float = 0.0,
    verdicts: Verdicts | None = None,
    uniform: float = 0.0,
    reserve: int = 0,
    on_short: str = "keep",
    anchors: Any = None,
    groups: Any = None,
    ids: Any = None,
    group_negatives: bool = False,
    temperature: float | None = None,
    sharpness: float | None = None,
    shift: float | None = None,
    distance: Distance | str = "cosine",
    seed: int = 0,
    memory: int | None = None,
    backend: str = "exact",
    min_recall: float | None = None,
    work: str | Path | None = None,
    engine: str = "local",
    processes: int | None = None,
    progress: bool = False,
) -> MinedTriplets:
    """Hard negatives for every anchor and positive of a collection, from the nearest rows of other classes.

    Rows of other classes are ordered by (distance, row). Those in the window are candidates; filters refuse
    some; the strategy chooses among the rest. A score is 1 − D under "cosine", else −D. No anchor,
    positive, row of the anchor's class or image, or duplicate of the anchor is ever a negative.

    Args:
        embeddings: [n, d]: numpy, a memory map, a tensor, or `Embeddings`. Rows of NaN are left out.
        labels: [n] whole numbers or strings; None for those of `Embeddings`.
        negatives: how many for each pair, fewer than the rows of the collection.
        positives: "all" of the anchor's class, its "hardest" (farthest), "easiest" (nearest), or k for the
            k-th nearest (the farthest of a class with fewer).
        strategy: "hardest"; "semi-hard", the hardest that is farther than the positive; "random" in the
            window; "softmax" of score / `temperature`; "simans" with density exp(−a (s_n − s_p − b)²).
        ranks: (first, last) of the window, counted from 1 among all rows of other classes, before any filter.
        margin: a negative's score is at most the reference's, less this.
        relative_margin: at most s − |s| · this of the reference's score s: 0.05 is 95 % of a positive score.
        reference: the "own" positive's score, or the "min", "mean" or "max" of the anchor's positives.
        max_score: at most this.
        min_score: at least this.
        max_quantile: at most this quantile of the scores of all positive pairs, so that one number fits
            every model: 0.05 keeps candidates that are farther than 95 % of positives.
        per_class: at most so many negatives of one class for a pair.
        clusters: count `per_class` by this many k-means clusters of the collection (scikit-learn) instead.
        teacher: a second opinion: embeddings [n, e] compared by cosine, or a function of (rows, rows) that
            gives scores [t]. A negative that it scores above the positive, less `teacher_margin`, is refused.
        teacher_margin: see `teacher`.
        suspects: the share of images that may be set aside as wrongly labelled, the most doubtful first, as
            by `suspected_labels`: not mined against the class that they look like.
        verdicts: what a person said of suspects. "same" sets the image aside for that class, "duplicate" the
            pair, "skip" the image; "different" is not suspected again, "?" is not decided yet.
        uniform: the share of negatives that are drawn from all rows of other classes instead.
        reserve: how many further candidates are listed for each pair.
        on_short: what becomes of a pair with too few negatives: "keep" it with fewer, "drop" it, "relax" the
            filters for it, the farthest first, fill it at "random" from the collection, or "error".
        anchors: rows that are anchors; None for all.
        groups: [n] camera, session or family of each image: positives are of another group than the anchor,
            and so are negatives.
        ids: [n] which image each row is: rows of one image are not mined against each other.
        group_negatives: negatives may be of the anchor's group, as in re-identification.
        temperature: of "softmax"; None for 0.05.
        sharpness: a of "simans"; None for 100.
        shift: b of "simans"; None for 0.
        distance: a `Distance` or its name.
        seed: of everything that is drawn.
        memory: bytes of the search above the inputs, as for `nearest`, in each process.
        backend: how candidates are searched, as for `nearest`. An index of FAISS finds most of the nearest
            rows, not all, and ranks are among those that it finds; distances and exclusions are exact.
        min_recall: of FAISS, as for `nearest`: the least measured share of the candidates.
        work: a folder in which the exact search is kept block by block, so that it goes on after a kill, and
            is not repeated where only filters, strategies or verdicts change. It may be deleted afterwards.
        engine: who searches the blocks: "local", this process and others beside it; "ranks", every process
            that torchrun or a SLURM array starts, each of which returns the result; or "ray", tasks of Ray.
            All need a work folder that they can reach, and all give the same bits.
        processes: how many, of "local" (1 if not given) and of "ray" (as many as it has processors).
        progress: tell what the run takes, on standard error, and show a bar of the exact search.

    Returns:
        `MinedTriplets`; its `triplets` go into `write_manifest`, its `report` is printed.

    Raises:
        ValueError: arguments out of range or that do not fit, embeddings that are not finite, less memory
            than the search takes, a recall that is not reached, or pairs with too few negatives under
            `on_short="error"`.

    Example:
        >>> x = np.array([[0.0], [1.0], [1.2], [3.0], [9.0], [9.5]])
        >>> mined = mine_hard_triplets(x, list("aabbcc"), margin=1.0, distance="euclidean")
        >>> mined.triplets.negative.tolist()
        [3, 3, 4, 0, 3, 3]
        >>> mined.report.counts[Reason.MARGIN]
        5

    Reference:
        Xiong et al., "Approximate nearest neighbor negative contrastive learning", 2021;
        Zhou et al., "SimANS: simple ambiguous negatives sampling for dense text retrieval", 2022;
        Moreira et al., "NV-Retriever", 2024, for bounds by the positive's score.
    """
    with border("mine_hard_triplets"):
        x, given_labels = matrix_of(embeddings, labels)
        n = len(x)
        codes = codes_of("labels", given_labels, n)
        family = None if groups is None else codes_of("groups", groups, n)
        image = None if ids is None else codes_of("ids", ids, n)
        if as_bool(None, "group_negatives", group_negatives) and family is None:
            raise Refusal("group_negatives", True, "groups=, of which they may be")
        metric = as_distance(None, distance)
        first_rank, depth = as_window(ranks)
        depth = min(depth, n)  # there are no more
        backend, _ = as_backend(backend, min_recall)
        if memory is not None:
            memory = as_int(None, "memory", memory, minimum=1)
        seed = as_seed(None, seed)
        limits = as_limits(
            max_score=max_score,
            max_quantile=max_quantile,
            min_score=min_score,
            semi_hard=strategy == "semi-hard",
            margin=margin,
            relative_margin=relative_margin,
            reference=reference,
        )
        rules = Rules(
            limits=limits,
            first_rank=first_rank,
            strategy=as_strategy(strategy, temperature, sharpness, shift, seed),
            negatives=as_int(None, "negatives", negatives, 1, max(1, n - 1)),
            reserve=as_int(None, "reserve", reserve, 0, max(1, n - 1)),
            uniform=as_float(None, "uniform", uniform, 0, 1),
            on_short=as_choice(None, "on_short", on_short, SHORT),
            per_class=None if per_class is None else as_int(None, "per_class", per_class, minimum=1),
            teacher_margin=as_float(None, "teacher_margin", teacher_margin),
        )
        second = as_teacher(teacher, n)
        if clusters is not None and per_class is None:
            raise Refusal("clusters", clusters, "per_class=, the number of negatives of one cluster")
        chosen_positives = as_positives(positives)
        asked = as_anchors(anchors, n)
        said = no_verdicts() if verdicts is None else as_verdicts(verdicts, n)
        share = as_float(None, "suspects", suspects, 0, 1)
        usable = usable_rows(x)
        kinds = codes if clusters is None else cluster_codes(x, usable, clusters, seed)
        classes = np.where(usable, codes, -1)
        plan = plan_mining(
            x,
            classes,
            asked,
            metric,
            depth=depth,
            every_positive=chosen_positives == "all",
            slots=rules.negatives + rules.reserve,
            memory=memory,
            backend=backend,
        )
        executor = as_engine(work, engine, processes)
        search = {"distance": metric, "memory": memory, "backend": backend, "min_recall": min_recall}
        search["engine"] = executor
        if as_bool(None, "progress", progress):
            print(plan, file=sys.stderr)
            search["progress"] = backend == "exact"
        doubtful = no_verdicts()
        if share:
            doubtful = undecided(find_suspects(x, codes, family, image, **search), said, math.ceil(share * n))
        both = {
            Reason.VERDICT: set_aside(said, codes),
            Reason.SUSPECT: SetAside(codes, doubtful.image, doubtful.other),
        }
        aside = {reason: found for reason, found in both.items() if found}
        score_of = scorer(x, metric)
        pairs, bound = pairs_of(classes, asked, said, (family, image), chosen_positives, limits, score_of)
        columns = {"group": None if group_negatives else family, "id": image}
        apart = {name: column for name, column in columns.items() if column is not None}
        same = list(apart.values())
        miner = PairMiner(
            rules=rules,
            bound=bound,
            kinds=kinds,
            teacher=second,
            set_aside=aside,
            forbidden=Forbidden(classes, same, list(aside.values())),
            measure=score_of,
        )
        search |= {f"{name}s": column for name, column in apart.items()}
        at_once = searched_at_once(depth, memory)
        anchors, is_cosine = np.unique(pairs.anchor), metric is as_distance(None, "cosine")
        candidates = collection_search(
            x,
            k=depth,
            rows=anchors,
            labels=codes,
            exclude=["class", *apart],
            at_once=at_once,
            **search,
        )
        account, seen = Account(classes, same), SeenScores(pairs.own, len(anchors), depth)
        parts, done = [], 0
        for block in blocks_of(pairs, at_once):
            some = slice(done, done + len(np.unique(block.anchor)))
            parts.append(mined_block(miner, block, candidates.found(some), is_cosine, account, seen))
            done = some.stop
        facts = {"backend": backend, "recall": candidates.recall, "plan": plan}
        return joined(parts, pairs, rules, account, n, len(asked), doubtful, seen, **facts)
