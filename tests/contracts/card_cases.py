"""Programs that run on the pretended card, each in a process of its own, and print what they found as JSON.

python -m tests.contracts.card_cases census
python -m tests.contracts.card_cases matrix 7      # each seventh comparison
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import tercet
from tercet.pairwise import differences
from tercet.pairwise.budget import override
from tests import pretended_card as card

N_OF_MINERS, N_OF_HEADS = (64, 512, 2048), (64, 512, 2048)

MINERS: dict[str, Callable[[], Any]] = {
    "BatchAll": lambda: tercet.BatchAll(),
    "BatchAll, margin": lambda: tercet.BatchAll(margin=0.2),
    "BatchAll, max_count": lambda: tercet.BatchAll(max_count=1000),
    "BatchHard": lambda: tercet.BatchHard(),
    "SemiHard": lambda: tercet.SemiHard(margin=0.2),
    "SemiHard, all": lambda: tercet.SemiHard(margin=0.2, negatives="all"),
    "SemiHard, easiest": lambda: tercet.SemiHard(margin=0.2, fallback="easiest"),
    "EasyPositive": lambda: tercet.EasyPositive(),
    "EasyPositive, hard": lambda: tercet.EasyPositive("hard"),
    "EasyHard": lambda: tercet.EasyHard(negative_k=2),
    "EasyHard, easy negatives": lambda: tercet.EasyHard("hard", "easy"),
    "EasyHard, semi-hard positives": lambda: tercet.EasyHard("semi_hard", "hard"),
    "EasyHard, ranges": lambda: tercet.EasyHard(
        "hard", "hard", positive_range=(1.0, 1.35), negative_range=(1.2, 1.5)
    ),
    "EasyHard, all": lambda: tercet.EasyHard("hard", "all"),
    "HardestN": lambda: tercet.HardestN(k=3),
    "DistanceWeighted": lambda: tercet.DistanceWeighted(),
    "MultiSimilarityMiner": lambda: tercet.MultiSimilarityMiner(),
    "PairMargin": lambda: tercet.PairMargin(1.2, 1.4),
    "HDC": lambda: tercet.HDC(0.2),
    "UniformHistogram": lambda: tercet.UniformHistogram(),
    "AngularMiner": lambda: tercet.AngularMiner(0.5),
}
HEADS: dict[str, Callable[[int], Any]] = {
    "TripletMargin": lambda classes: tercet.TripletMargin(0.2),
    "TripletMargin, soft": lambda classes: tercet.TripletMargin(soft=True),
    "TripletMargin, swap": lambda classes: tercet.TripletMargin(0.2, swap=True),
    "Contrastive": lambda classes: tercet.Contrastive(),
    "MarginLoss": lambda classes: tercet.MarginLoss(),
    "MultiSimilarity": lambda classes: tercet.MultiSimilarity(),
    "Circle": lambda classes: tercet.Circle(),
    "LiftedStructure": lambda classes: tercet.LiftedStructure(),
    "NCA": lambda classes: tercet.NCA(),
    "GeneralizedLifted": lambda classes: tercet.GeneralizedLifted(),
    "RankedList": lambda classes: tercet.RankedList(),
    "TupletMargin": lambda classes: tercet.TupletMargin(),
    "Angular": lambda classes: tercet.Angular(),
    "IntraPairVariance": lambda classes: tercet.IntraPairVariance(),
    "VICReg": lambda classes: tercet.VICReg(),
    "Sum": lambda classes: tercet.Sum([tercet.TripletMargin(), tercet.Contrastive()]),
    "SmoothAP": lambda classes: tercet.SmoothAP(),
    "RecallSurrogate": lambda classes: tercet.RecallSurrogate(),
    "NPair": lambda classes: tercet.NPair(),
    "InfoNCE": lambda classes: tercet.InfoNCE(),
    "SupCon": lambda classes: tercet.SupCon(),
    "Histogram": lambda classes: tercet.Histogram(),
    "DynamicSoftMargin": lambda classes: tercet.DynamicSoftMargin(),
    "FastAP": lambda classes: tercet.FastAP(),
    "ProxyNCA": lambda classes: tercet.ProxyNCA(classes, 128),
    "ProxyAnchor": lambda classes: tercet.ProxyAnchor(classes, 128),
    "NormalizedSoftmax": lambda classes: tercet.NormalizedSoftmax(classes, 128),
    "ArcFace": lambda classes: tercet.ArcFace(classes, 128),
    "CosFace": lambda classes: tercet.CosFace(classes, 128),
    "SoftTriple": lambda classes: tercet.SoftTriple(classes, 128),
    "SubCenterArcFace": lambda classes: tercet.SubCenterArcFace(classes, 128),
    "SphereFace": lambda classes: tercet.SphereFace(classes, 128),
    "AdaFace": lambda classes: tercet.AdaFace(classes, 128),
    "CurricularFace": lambda classes: tercet.CurricularFace(classes, 128),
    "P2SGrad": lambda classes: tercet.P2SGrad(classes, 128),
}
PROXIED = tuple(HEADS)[list(HEADS).index("ProxyNCA") :]


MINED: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "BatchHard, TripletMargin": (lambda: tercet.BatchHard(), lambda: tercet.TripletMargin(0.4)),
    "BatchHard, swap": (lambda: tercet.BatchHard(), lambda: tercet.TripletMargin(0.4, swap=True)),
    "BatchHard, soft": (lambda: tercet.BatchHard(), lambda: tercet.TripletMargin(soft=True)),
    "SemiHard, TripletMargin": (
        lambda: tercet.SemiHard(None, fallback="easiest"),
        lambda: tercet.TripletMargin(0.4),
    ),
    "SemiHard all, TripletMargin": (
        lambda: tercet.SemiHard(negatives="all"),
        lambda: tercet.TripletMargin(0.4),
    ),
    "SemiHard all, Contrastive": (lambda: tercet.SemiHard(negatives="all"), lambda: tercet.Contrastive()),
    "BatchHard, MarginLoss": (lambda: tercet.BatchHard(), lambda: tercet.MarginLoss()),
    "BatchHard, LiftedStructure": (lambda: tercet.BatchHard(), lambda: tercet.LiftedStructure()),
    "BatchHard, NPair": (lambda: tercet.BatchHard(), lambda: tercet.NPair()),
    "BatchHard, Histogram": (lambda: tercet.BatchHard(), lambda: tercet.Histogram()),
    "PairMargin, Contrastive": (lambda: tercet.PairMargin(1.2, 1.4), lambda: tercet.Contrastive()),
    "PairMargin, InfoNCE": (lambda: tercet.PairMargin(1.2, 1.4), lambda: tercet.InfoNCE()),
    "MultiSimilarity": (lambda: tercet.MultiSimilarityMiner(), lambda: tercet.MultiSimilarity()),
    "MultiSimilarity, TripletMargin": (
        lambda: tercet.MultiSimilarityMiner(),
        lambda: tercet.TripletMargin(0.4),
    ),
}
LARGE = {"difference_numbers": 0, "dense_share": 0}
"""Sizes with which small tables are measured as large ones are: by products, and a few columns of each row by
differences."""
LONG = {**LARGE, "one_graph_numbers": 0, "table_numbers": 2**14, "table_tuples": 2**12, "tile_bytes": 2**18}
"""Sizes with which a list is long for 512 rows: in several parts, of several tiles."""


def batch(n: int, dim: int = 128, k: int = 4) -> tuple[Tensor, Tensor]:
    """Unit vectors [n, dim], k of a class about a common direction, in no order."""
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) // k
    x = torch.randn(n, dim, generator=generator)
    x += 0.7 * torch.randn(n // k + 1, dim, generator=generator)[labels]
    order = torch.randperm(n, generator=generator)
    return torch.nn.functional.normalize(x)[order], labels[order]


def alike(found: Any, expected: Any) -> bool:
    """Whether integers are equal and floats close, by the size of their tensor, tensor by tensor."""

    def close(a: Tensor, b: Tensor) -> bool:
        if not a.is_floating_point():
            return torch.equal(a, b)
        largest = max(1.0, float(b.abs().amax())) if b.numel() else 1.0
        return torch.allclose(a, b, rtol=1e-4, atol=2e-6 * largest)

    return len(found) == len(expected) and all(map(close, found, expected))


def mined(
    make: Callable[[], Any], x: Tensor, labels: Tensor, on_host: bool = False, **more: Any
) -> tuple[card.Census, bool]:
    """What a miner asks of the card, and whether it finds what it finds on the processor.

    `on_host` leaves the labels where a loader left them.
    """
    miner = make()
    a, others = card.up(x), card.up(more)
    b = labels if on_host else card.up(labels)
    with card.census() as log:
        found = miner(a, b, **others)
    # A card adds a row's numbers in another order than a processor, so near ties of inexact numbers may fall
    # the other way. Here the processor takes the card's order, and results have to be equal.
    with mock.patch.object(differences, "row_sums", _sums_of_the_card):
        expected = miner(x, labels, **more)
    return log, alike(card.down(tuple(found)), tuple(expected))


def _sums_of_the_card(numbers: Tensor) -> Tensor:
    with card.census():
        return card.down(_ROW_SUMS(card.up(numbers)))


_ROW_SUMS = differences.row_sums


def trained(
    make: Callable[[], Any],
    x: Tensor,
    labels: Tensor,
    listed: Any = None,
    on_host: bool = False,
    sizes: dict[str, int] | None = None,
) -> tuple[card.Census, bool]:
    """What a head asks of the card with its backward, and whether loss and gradients are the processor's.

    `on_host` leaves the labels where a loader left them; `sizes` are other ones of the card's budget.
    """

    def result(device: str) -> tuple[card.Census, list[Tensor]]:
        tensors = x.clone().requires_grad_(), labels, listed
        with card.census():
            torch.manual_seed(0)
            head = make().to(card.CARD if device == "card" else "cpu")
        if device == "card":
            tensors = card.up(tensors)
            tensors = (tensors[0], labels, tensors[2]) if on_host else tensors
        with card.census() as log, override(**(sizes or {}) if device == "card" else {}):
            loss = head(*tensors)
            loss.sum().backward()
        gradients = [tensors[0].grad, *(parameter.grad for parameter in head.parameters())]
        return log, card.down([loss.detach(), *gradients])

    log, found = result("card")
    _, expected = result("cpu")
    if alike(found, expected):
        return log, True
    # A hinge's gradient jumps where a product and a difference fall on two sides of the margin. So the loss
    # has to be the same, and its gradient that of the processor where it measures by differences too.
    with override(difference_numbers=2**25):
        _, by_differences = result("cpu")
    return log, alike(found[:1], expected[:1]) and alike(found, by_differences)


def census() -> dict[str, Any]:
    """{name: {N: [reads, operations, same]}} of every miner and head."""
    found: dict[str, Any] = {}
    for n in N_OF_MINERS:
        x, labels = batch(n)
        for name, make in MINERS.items():
            log, same = mined(make, x, labels, on_host=True)
            found.setdefault(name, {})[n] = [log.reads, log.operations, same, log.places()]
    for n in N_OF_HEADS:
        x, labels = batch(n)
        for name, make in HEADS.items():
            log, same = trained(lambda make=make, n=n: make(n // 4), x, labels, on_host=True)
            found.setdefault(name, {})[n] = [log.reads, log.operations, same, log.places()]
    return found


def mined_and_trained(
    make: tuple[Callable[[], Any], Callable[[], Any]], x: Tensor, labels: Tensor, sizes: dict[str, int]
) -> tuple[card.Census, bool]:
    """What a miner, a head and its backward ask of the card together, and whether all is the processor's."""

    def result(x: Tensor, head: Any) -> list[Tensor]:
        loss = head(x, labels, make[0]()(x, labels))
        loss.backward()
        return card.down([loss.detach(), x.grad])

    with card.census():
        head = make[1]().to(card.CARD)
    leaf = card.up(x.clone().requires_grad_())
    with card.census() as log, override(**sizes):
        found = result(leaf, head)
    return log, alike(found, result(x.clone().requires_grad_(), make[1]()))


def lists() -> dict[str, Any]:
    """{name: [[reads, operations, same, places] at 64 rows, at 512, with a long list]} of miner and head."""
    found: dict[str, Any] = {}
    for n, sizes in ((64, {}), (512, {}), (512, LONG)):
        x, labels = batch(n)
        for name, make in MINED.items():
            log, same = mined_and_trained(make, x, labels, sizes)
            found.setdefault(name, []).append([log.reads, log.operations, same, log.places()])
    return found


def batches() -> dict[str, tuple[Tensor, Tensor]]:
    """Batches that are hard on a search: ties, duplicates, rows alone, nothing at all."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for n in (24, 300, 700):
        found[f"random {n}"] = batch(n, 16)
        grid = torch.randint(0, 3, (n, 4), generator=generator).float()
        found[f"grid {n}"] = grid, torch.arange(n) % (n // 4)
    x, labels = batch(300, 16)
    twice = torch.cat([x[:150], x[:150]])
    return (
        found
        | {
            "twice": (twice, labels),
            "sixty times": (
                x[:5].repeat(60, 1),
                labels,
            ),  # more equal rows than a fixed number of near columns
            "collapsed": (x * 1e-4 + 1, labels),
            "equal": (torch.ones(20, 8), torch.arange(20) % 5),
            "uneven": (x, torch.randint(0, 100, (300,), generator=generator)),
            "uneven, none alone": (x[:299], torch.arange(100).repeat_interleave(2 + torch.arange(100) % 3)),
            "one class": (x[:12], torch.zeros(12, dtype=torch.int64)),
            "all alone": (x[:12], torch.arange(12)),
            "one row": (torch.ones(1, 4), torch.zeros(1, dtype=torch.int64)),
            "empty": (torch.ones(0, 4), torch.zeros(0, dtype=torch.int64)),
        }
    )


IN_FLOAT64 = ("DistanceWeighted", "AngularMiner")
RULES: list[tuple[str, dict[str, Any]]] = [
    ("BatchAll", {}),
    ("BatchAll", {"margin": 0.3}),
    ("BatchAll", {"margin": 0.3, "max_count": 50}),
    ("BatchHard", {}),
    ("BatchHard", {"max_count": 5}),
    ("BatchHard", {"complete": True}),
    ("SemiHard", {}),
    ("SemiHard", {"margin": None}),
    ("SemiHard", {"negatives": "all"}),
    ("SemiHard", {"fallback": "easiest"}),
    ("EasyPositive", {}),
    ("EasyPositive", {"negative": "hard"}),
    ("EasyHard", {}),
    ("EasyHard", {"positives": "semi_hard", "negatives": "easy", "negative_k": 2, "margin": 0.4}),
    ("EasyHard", {"positives": "hard", "negative_k": 2, "margin": 0.4}),
    (
        "EasyHard",
        {
            "positives": "all",
            "negatives": "hard",
            "positive_range": (0.5, 1.5),
            "negative_range": (0.3, None),
        },
    ),
    ("EasyHard", {"positive_k": 2, "negatives": "all", "negative_range": (None, 1.2)}),
    ("HardestN", {}),
    ("HardestN", {"k": 3, "skip": 1}),
    ("MultiSimilarityMiner", {}),
    ("PairMargin", {}),
    ("BatchAll", {"margin": -0.1}),
    ("HDC", {"share": 0.3}),
    ("UniformHistogram", {"bins": 7, "neg_per_bin": 3}),
    ("AngularMiner", {"angle": 0.6}),
    ("DistanceWeighted", {}),
    ("DistanceWeighted", {"max_count": 5}),
]


def minings() -> Iterator[tuple[str, Callable[[], Any], Tensor, Tensor, dict[str, Any]]]:
    """Every rule over batches, distances, relations, ids, references and precisions, by a name."""
    for name, options in RULES:
        kind = getattr(tercet, name)
        own = name in IN_FLOAT64  # they have one distance
        title = f"{name} {options}"
        for words, (x, labels) in batches().items():
            for distance in (
                ("cosine",) if own else ("euclidean", "squared_euclidean", "cosine", "dot", "hamming")
            ):
                more = {} if own else {"distance": distance}
                yield (
                    f"{title}, {words}, {distance}",
                    lambda k=kind, m=more, o=options: k(**o, **m),
                    x,
                    labels,
                    {},
                )
        for words in ("grid 24", "grid 700"):
            x, labels = batches()[words]
            rows = torch.arange(len(x))
            ids, several = rows % (5 * len(x) // 6), torch.stack([labels, rows % 3], 1)
            ref = tercet.References(x.flip(0), labels.flip(0), ids.flip(0))
            make = lambda k=kind, o=options: k(**o)  # noqa: E731
            yield f"{title}, {words}, ids", make, x, labels, {"ids": ids}
            yield f"{title}, {words}, references", make, x, labels, {"ids": ids, "ref": ref}
            plain = tercet.References(ref.embeddings, ref.labels)
            yield f"{title}, {words}, references without ids", make, x, labels, {"ref": plain}
            for relation in (
                tercet.SharedLabel(),
                tercet.CrossGroup(),
                tercet.Graded(0.6, 0.4, "depth"),
                tercet.Ignore("same"),
            ):
                related = lambda k=kind, o=options, r=relation: k(**o, relation=r)  # noqa: E731
                marks = several.clamp(max=1) if isinstance(relation, tercet.SharedLabel) else several
                yield f"{title}, {words}, {relation}", related, x, marks, {}
            for dtype in (torch.bfloat16, torch.float16, torch.float64):
                yield f"{title}, {words}, {dtype}", make, x.to(dtype), labels, {}


ALWAYS = (  # once found wrong
    "BatchHard {'complete': True}, empty, euclidean",
    "SemiHard {'negatives': 'all'}, collapsed, euclidean",
)


def matrix(every: int = 1) -> dict[str, Any]:
    """How many comparisons of every mining and head on hard batches were made, and those that differ."""
    tried, differ = 0, []
    for number, (title, make, x, labels, more) in enumerate(minings()):
        if number % every and title not in ALWAYS:
            continue
        try:
            make()(x, labels, **more)
        except ValueError:
            continue  # refused on the processor too
        for on_host in (False, True):  # then searches of fewer launches
            tried += 1
            try:
                _, same = mined(make, x, labels, on_host=on_host, **more)
            except Exception as error:
                same, title = False, f"{title}: {type(error).__name__}: {str(error).splitlines()[0]}"
            if not same:
                differ.append(f"{title}, labels on the {'host' if on_host else 'card'}")
    for number, (words, name, listed) in enumerate(product(batches(), HEADS, (False, True))):
        x, labels = batches()[words]
        if number % every or (listed and name in PROXIED):
            continue
        x = torch.nn.functional.pad(x, (0, 128 - x.shape[1])) if name in PROXIED else x
        make = lambda name=name, labels=labels: HEADS[name](max(2, len(labels)))  # noqa: E731
        tuples = tuple(tercet.BatchHard()(x, labels)) if listed else None
        try:
            make()(x, labels, tuples)
        except ValueError:
            continue
        for sizes in ({}, LARGE):
            tried += 1
            try:
                _, same = trained(make, x, labels, tuples, number % 2 == 1, sizes)
            except Exception as error:
                same, words = False, f"{words}: {type(error).__name__}: {str(error).splitlines()[0]}"
            if not same:
                differ.append(f"{name}, {words}, {'a list' if listed else 'no list'}, {sizes}")
    return {"tried": tried, "differ": differ}


def rounded(every: int = 1) -> dict[str, Any]:
    """Minings whose keys are products of rounded factors, which the miner is told of, or is not.

    {precision: [how many were told, those of them that differ, those that differ where nobody was told]}
    """
    found = {}
    some = {**batches(), "of a class": batch(512), "near": (batch(512)[0] * 1e-2 + 1, batch(512)[1])}
    for precision, bits in {"tf32": 10, "bf16": 7}.items():
        differ: dict[bool, list[str]] = {True: [], False: []}
        tried = 0
        large = [words for words, (x, _) in some.items() if len(x) > 256]  # others are measured outright
        for number, (name, words, told) in enumerate(product(MINERS, large, (True, False))):
            if number // 2 % every:
                continue
            x, labels = some[words]
            # The lowest of all settings holds for the card.
            torch.backends.mkldnn.matmul.fp32_precision = precision if told else "none"
            with card.rounded_factors(bits):
                a, b = card.up(x), labels
                with card.census():
                    result = card.down(tuple(MINERS[name]()(a, b)))
            torch.backends.mkldnn.matmul.fp32_precision = "none"
            with mock.patch.object(differences, "row_sums", _sums_of_the_card):
                expected = tuple(MINERS[name]()(x, labels))
            tried += told
            if not alike(result, expected):
                differ[told].append(f"{name}, {words}")
        found[precision] = [tried, differ[True], differ[False]]
    return found


def single(every: int = 1) -> dict[str, Any]:
    """Everything on a card without float64, as Apple's MPS: how many were tried, and those that differ."""
    with card.without_float64():
        found = matrix(every)
        refused = [title for title in found["differ"] if "expected a device with float64" in title]
        # Embeddings of float64 cannot be on such a device.
        differ = [title for title in found["differ"] if title not in refused and "float64" not in title]
        tried = found["tried"]
        for n, (name, make) in product((64, 512), {**MINERS, **HEADS}.items()):
            x, labels = batch(n)
            if name in IN_FLOAT64:
                continue
            count = lambda m=make, k=n // 4: m(k)  # noqa: E731
            same = mined(make, x, labels)[1] if name in MINERS else trained(count, x, labels)[1]
            tried += 1
            differ += [] if same else [f"{name}, N = {n}"]
        x, labels = batch(300, 16)
        generator = torch.Generator().manual_seed(0)
        metric = tercet.Mahalanobis(torch.randn(16, 8, generator=generator))
        codes = torch.randint(0, 3, (300, 16), generator=generator)
        tuples = tercet.BatchHard()(x, labels)
        calls = {
            "Mahalanobis": lambda x, y, t, c: tercet.BatchHard(distance=metric.to(x.device))(x, y),
            "codes": lambda x, y, t, c: tercet.BatchHard(distance="hamming")(c, y),
            "a list": lambda x, y, t, c: [tercet.Contrastive()(x, y, t)],
            "recall_at_k": lambda x, y, t, c: torch.tensor([tercet.recall_at_k(x, y)]),
            "map_at_r": lambda x, y, t, c: torch.tensor([tercet.map_at_r(x, y)]),
            "evaluate": lambda x, y, t, c: torch.tensor([*tercet.evaluate(x, y).values()]),
            "nearest": lambda x, y, t, c: [torch.as_tensor(tercet.nearest(x, k=3).rows)],
            "describe": lambda x, y, t, c: torch.tensor([*tercet.describe(x, y, t).values()]),
        }
        for name, call in calls.items():
            with card.census():
                result = card.down(tuple(call(*card.up((x, labels, tuple(tuples), codes)))))
                metric.to("cpu")
            tried += 1
            differ += [] if alike(result, tuple(call(x, labels, tuple(tuples), codes))) else [name]
        with card.census():
            try:
                tercet.BatchHard(distance="hamming")(card.up(codes + 2**24), card.up(labels))
                said = ""
            except ValueError as error:
                said = str(error)
    return {"tried": tried, "differ": differ, "refused": refused, "large codes": said}


def steps() -> dict[str, Any]:
    """{name: [reads, operations, places]} of parts of a training step at N = 512, with labels on the host."""
    x, labels = batch(512)
    a, ids = card.up(x), torch.arange(512)
    with card.census():
        memory = tercet.CrossBatchMemory(2048, 128).to(card.CARD)
        named = tercet.CrossBatchMemory(2048, 128).to(card.CARD)
        for _ in range(2):
            memory.update(a, labels)
            named.update(a, labels, ids)
    miner, head = tercet.BatchHard(), tercet.TripletMargin(0.2)

    def with_memory() -> None:
        columns = memory.columns()
        leaf = a.detach().requires_grad_()
        head(leaf, labels, miner(leaf, labels, ref=columns), ref=columns).backward()
        memory.update(leaf, labels)

    def with_memory_and_batch() -> None:
        leaf = a.detach().requires_grad_()
        own, given = tercet.gather(leaf, labels)
        columns = memory.columns(given)
        head(leaf, labels, miner(leaf, labels, ids=own, ref=columns), ref=columns).backward()
        memory.update(*given)

    def plain() -> None:
        leaf = a.detach().requires_grad_()
        head(leaf, labels, miner(leaf, labels)).backward()

    def shared() -> None:
        leaf = a.detach().requires_grad_()
        pairwise = miner.pairwise(leaf, labels)
        head(pairwise, mined=miner(pairwise)).backward()

    def shared_by_head_first() -> None:
        leaf = a.detach().requires_grad_()
        pairwise = miner.pairwise(leaf, labels)
        (head(pairwise) + head(pairwise, mined=miner(pairwise))).backward()

    def complete(rows: int) -> None:
        order = labels.argsort(stable=True)[:rows]
        tercet.BatchHard(complete=True)(card.up(x[order]), card.up(labels[order]))

    def loaded(rows: int, miner: Any = miner) -> None:
        order = labels.argsort(stable=True)[:rows]  # whole classes
        batches = [(x[order], labels[order])]
        found = next(iter(tercet.MiningLoader(batches, torch.nn.Identity(), miner, device=card.CARD)))
        assert found.labels.device == card.CARD
        tuples = card.down(tuple(found.mined))
        expected = tercet.describe(*batches[0], tuples, margin=None)
        assert dict(found.stats) == pytest.approx(expected, nan_ok=True)

    def cached(**more: Any) -> None:
        tercet.cached_backward(model, chunks, head, **more)

    with card.census():
        model = torch.nn.Linear(128, 128).to(card.CARD)
        chunks = list(zip(a.split(256), labels.split(256), strict=True))
    found = {}
    for name, call in {
        "memory.update": lambda: memory.update(a, labels),
        "memory.update with ids": lambda: named.update(a, labels, ids),
        "memory.columns": lambda: memory.columns(),
        "memory, mined and trained": with_memory,
        "memory and batch, mined and trained": with_memory_and_batch,
        "mined and trained": plain,
        "mined and trained, one look": shared,
        "trained on all, mined and trained, one look": shared_by_head_first,
        "complete batches, labels on the card": lambda: complete(512),
        "complete batches, labels on the card, 256 rows": lambda: complete(256),
        "MiningLoader with describe": lambda: loaded(512),
        "MiningLoader with describe, 256 rows": lambda: loaded(256),
        "cached_backward": lambda: cached(miner=miner),
        "cached_backward, all triplets": lambda: cached(),
    }.items():
        with card.census() as log:
            call()
        found[name] = [log.reads, log.operations, log.places()]
    return found


def deterministic() -> dict[str, Any]:
    """{name: [running sums that CUDA refuses, same]} where torch is told to be deterministic."""
    x, labels = batch(64)
    found = {}
    torch.use_deterministic_algorithms(True)
    for name in ("TripletMargin", "TripletMargin, swap", "Histogram", "FastAP", "LiftedStructure"):
        log, same = trained(lambda name=name: HEADS[name](16), x, labels, None, True, {"positive_passes": 0})
        found[name] = [sum(event.op == "cumsum" for event in log.events), same]
    torch.use_deterministic_algorithms(False)
    log, _ = trained(lambda: HEADS["FastAP"](16), x, labels)
    return found | {"FastAP, otherwise": [sum(event.op == "cumsum" for event in log.events), True]}


def planted() -> dict[str, str]:
    """What the card says to faults that somebody might make, by their names."""
    x, labels = batch(16)

    def caught(call: Callable[[], Any]) -> str:
        try:
            return f"passed: {call()}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    a = card.up(x)
    found = {}
    with card.census():
        found["mixed"] = caught(lambda: a + x)
        found["mixed in place"] = caught(lambda: x.add_(a))
        found["mixed index"] = caught(lambda: x[card.up(labels)])
        found["numpy"] = caught(lambda: a.numpy())
        with card.without_float64():
            found["float64"] = caught(lambda: a.double())
            found["float64 made"] = caught(lambda: torch.zeros(2, dtype=torch.float64, device=card.CARD))
    for name, call in {
        "item": lambda: a[0, 0].item(),
        "bool": lambda: bool(a.any()),
        "tolist": lambda: a[0].tolist(),
        "nonzero": lambda: (a > 0).nonzero(),
        "mask": lambda: a[a > 0],
        "down": lambda: a.cpu(),
        "up": lambda: x.to(card.CARD),
        "up, not waiting": lambda: x.to(card.CARD, non_blocking=True),
        "down, not waiting": lambda: torch.empty(16, 128).copy_(a, non_blocking=True),
        "number up": lambda: torch.tensor(3.0, device=card.CARD),
        "repeat": lambda: card.up(labels).repeat_interleave(card.up(labels)),
        "repeat, known": lambda: card.up(labels).repeat_interleave(
            card.up(labels), output_size=int(labels.sum())
        ),
        "mask filled": lambda: a.masked_fill(a > 0, 1.0),
        "product": lambda: a @ a.T,
        "view": lambda: a.T[1:],
    }.items():
        with card.census() as log:
            call()
        found[name] = f"{log.reads} reads, {log.operations} operations"
    spoiled = x.clone()
    spoiled[3, 5] = torch.nan
    with card.census() as log:
        found["NaN, read with the result"] = caught(lambda: MINERS["SemiHard"]()(card.up(spoiled), labels))
        before = log.reads
        MINERS["BatchHard"]()(card.up(spoiled), labels)
        found["NaN, nothing read"] = f"{log.reads - before} reads"
        found["NaN, at the next call"] = caught(lambda: MINERS["EasyPositive"]()(a, labels))
        alone = card.up(labels.index_fill(0, labels[:1], 9))
        found["a row alone, nothing read"] = caught(lambda: tercet.BatchHard(complete=True)(a, alone).count)
        found["a row alone, at the next call"] = caught(lambda: MINERS["EasyPositive"]()(a, labels))
        found["NaN, once"] = caught(lambda: len(MINERS["EasyPositive"]()(a, labels)))
    with card.census() as log:
        for time in ("now", "never", "later"):
            head = tercet.Contrastive(check_finite=time)
            found[f"head, NaN {time}"] = caught(
                lambda head=head: bool(head(card.up(spoiled), labels).cpu() > 0)
            )
        found["head, NaN, at the next call"] = caught(lambda: HEADS["InfoNCE"](4)(a, labels))
        found["head, NaN, once"] = caught(lambda: HEADS["InfoNCE"](4)(a, labels).ndim)
        for time in ("now", "never", "later"):
            beta = tercet.MarginLoss(num_classes=3, check_finite=time).to(card.CARD)
            proxies = tercet.ArcFace(3, 128, check_finite=time).to(card.CARD)
            for name, head in {"MarginLoss": beta, "ArcFace": proxies}.items():
                far = card.up(labels)
                found[f"{name}, class 3 {time}"] = caught(lambda head=head, far=far: head(a, far).ndim)
                found[f"{name}, next call after {time}"] = caught(lambda: HEADS["Circle"](4)(a, labels).ndim)
        found["ArcFace, class 3 on the host"] = caught(lambda: proxies(a, labels).ndim)
    with card.census() as log:
        related, numbers = tercet.Contrastive(relation=tercet.SharedLabel()), torch.stack([labels] * 2, 1)
        before = log.reads
        first = caught(lambda: related(a, card.up(numbers)).ndim)
        found["numbers of labels"] = f"{first}, {log.reads - before} reads"
        found["numbers of labels, at the next call"] = caught(lambda: HEADS["Circle"](4)(a, labels).ndim)
        found["numbers of labels on the host"] = caught(lambda: related(a, numbers).ndim)
    with card.census() as log:
        own = torch.Generator().manual_seed(0)  # one that no second pass can set back
        model = torch.nn.Linear(128, 128).to(card.CARD)
        model.register_forward_hook(lambda m, i, out: out + card.up(torch.rand(8, 128, generator=own)))
        chunks = [(card.up(x[:8]), labels[:8])]
        before = log.reads
        first = caught(lambda: tercet.cached_backward(model, chunks, HEADS["Contrastive"](4)).loss.ndim)
        found["cached_backward, other embeddings"] = f"{first}, {log.reads - before} reads"
        found["cached_backward, at the next call"] = caught(lambda: MINERS["BatchHard"]()(a, labels))
        memory = tercet.CrossBatchMemory(32, 128).to(card.CARD)
        for words, ids in {
            "mixed": card.up(labels - 1),
            "other": card.up(labels),
            "right": -1 - labels,
        }.items():
            columns = lambda i=ids: memory.columns(tercet.References(a, labels, i)).ids.ndim  # noqa: E731
            found[f"memory, {words} ids"] = caught(columns)
            found[f"memory, after {words} ids"] = caught(lambda: HEADS["Circle"](4)(a, labels).ndim)
            memory.update(a, labels)
        tuples = tercet.BatchHard()(a, labels)
        for name, far in {"NaN": card.up(spoiled), "numbers": a}.items():
            found[f"describe, {name}"] = caught(
                lambda far=far: sorted(tercet.describe(far, labels, tuples).items())
            )
        expected = sorted(tercet.describe(x, labels, card.down(tuple(tuples))).items())
        found["describe, on the processor"] = f"passed: {expected}"
    said = []
    for name, make in HEADS.items():
        with card.census():
            torch.manual_seed(0)
            head = make(8).to(card.CARD)
            first = caught(lambda head=head: head(card.up(spoiled), labels))
            second = caught(lambda head=head: head(card.up(x), labels))
        said.append(name if "nan" not in first or "an earlier call" not in second else "")
    found["heads that take NaN"] = " ".join(filter(None, said))
    wrong = MINERS["BatchHard"]()
    with card.census():
        tuples = card.down(tuple(wrong(a, card.up(labels))))
    tuples[1][0] += 1
    found["wrong result"] = str(alike(tuples, tuple(wrong(x, labels))))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    card.register()
    every = (census, deterministic, lists, matrix, planted, rounded, single, steps)
    programs = {each.__name__: each for each in every}
    print(json.dumps(programs[sys.argv[1]](*map(int, sys.argv[2:]))))
    sys.stdout.flush()
    os._exit(0)  # the card's autograd thread has no way to end
