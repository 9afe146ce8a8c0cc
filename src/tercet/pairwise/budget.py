"""Sizes that depend on the device: how much is computed at once, and which of two exact ways is faster.

No size changes what a miner finds; a loss may change by rounding. The CPU's sizes were chosen by timing the
miners and heads of `tools/bench`. The accelerator's follow from its free memory and from the costs of a
launch and a host read; where none is named, they are the CPU's and wait for a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

__all__ = ["Budget", "accelerator", "budget", "override"]

_UNLIMITED = 2**62


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The sizes for one kind of device.

    Example:
        >>> budget(torch.device("cpu")).tile_bytes
        8388608
    """

    tile_bytes: int
    """The distances of one tile, in bytes; what is computed from them takes up to fifteen times as much.
    CPU: 8 MiB, so that a tile stays in the cache. Accelerator: a 64th of the free memory, so that a tile with
    all that is computed from it takes a quarter; at least 256 MiB."""

    block_bytes: int
    """The rank keys of one block of rows, where several tables of that size are alive: a quarter of a tile.
    Blocks in class order have one such table, and `tile_bytes`."""

    numpy_numbers: int
    """Tables of at most so many numbers are masked by numpy, whose call costs a fifth of torch's; larger ones
    use all of torch's threads. CPU: where both take the same time. Accelerator: none."""

    counted_numbers: int
    """In tables of at most so many numbers those close to a row's least are counted before they are looked
    for: mostly there are none. CPU: 256 × 256, above which the count takes as long as the look."""

    direct_numbers: int
    """Batches of at most so many distances are searched by exact distances alone. CPU: none, since rank keys
    are faster. Accelerator: 256 × 256, where the fewer launches outweigh the slower differences."""

    measured_more: int
    """Columns measured by differences beyond the k that are asked for, where shapes are fixed: with so many,
    hardly a row of real data stays ambiguous."""

    listed_positives: int
    """Rows that have more positives are searched by passes over tables, even where the host knows them: each
    positive that is listed is measured by differences."""

    masked_numbers: int
    """Larger tables are masked in parts of so many numbers, so that a part stays in the cache between passes.
    CPU: 2 MiB of float32. Accelerator: never, since each part is a launch."""

    class_order_rows: int
    """Batches of more rows are searched in class order, which keeps positives in a narrow block of columns.
    Below that, sorting costs more than it saves."""

    argmin_columns: int
    """Tables of at most so many columns give the nearest column by an arg-minimum; wider ones by a shortlist,
    which reads the table once and finds further candidates at the same time."""

    argmin_numbers: int
    """Differences of rank keys and bounds that are made at once where a nearest column above a bound is
    looked for. CPU: 1 MiB of float32, which stay in the cache between passes."""

    copied_numbers: int
    """Where all bounds together have at most so many candidates, each bound gets a copy of its row, masked
    below it: fewer calls. CPU: where both ways take as long, between N = 128 and 256 of K = 4."""

    topk_numbers: int
    """Tables of at most so many numbers give the positives of a row by one topk; in larger ones their places
    take less time than a pass. CPU: 256 × 256, where both take as long."""

    class_order_blocks: int
    """A batch in class order is cut into at least so many blocks of rows: a block's positives lie in as many
    columns as it has rows, more or less, so higher blocks look at more columns that are no positives."""

    product_rows: int
    """Blocks in class order are not cut lower than this for that reason. CPU: products of fewer rows are
    slow. Accelerator: each block costs a host read."""

    longer_shortlist: int
    """A shortlist that leaves a row ambiguous is followed by one so many times as long."""

    shortlist_share: int
    """The longer shortlist is skipped where it is more than one column in so many: then the whole row is
    compared exactly at once, as it is after a longer shortlist that leaves it ambiguous."""

    sampled_share: int
    """The least keys of rows are looked for below a limit that one key in so many promises; 0 for by groups
    alone. CPU: with 4 and 16 the sample and what is below the limit take longer together. Accelerator: 0,
    since what is below the limit has no fixed shape."""

    sampled_columns: int
    """A sample of more keys of a row promises hardly more."""

    key_tile_rows: int
    """Rows of a tile of keys of which only the least are kept: tiles of fewer rows read all columns more
    often. CPU: with 256 the products take a tenth longer."""

    key_tile_numbers: int
    """Keys of such a tile: on a processor 2 MiB, which stay in the cache until they have been compared."""

    sorted_bounds: int
    """Where rows have more bounds than this on average, their rank keys are sorted once and each bound is
    found by bisection; fewer bounds take a pass over the keys each."""

    dense_share: int
    """Where more than one entry in so many is compared exactly, the whole table is: a listed pair costs about
    so many times as much as a pair of a table."""

    gathered_numbers: int
    """Numbers gathered at once for single pairs of rows. It bounds memory; on a CPU it fits the cache."""

    gathered_keys: int
    """Rank keys gathered at once where rows are repeated, one for each (anchor, positive)."""

    summed_numbers: int
    """Squared differences, or terms of a row times a matrix, made at once before they are summed. CPU: 1 MiB
    of float32, which stays in the cache. Accelerator: 16 MiB, enough to fill it."""

    difference_numbers: int
    """Heads measure tables of at most so many differences (rows · columns · dimensions) by differences alone,
    and make so many at once for their gradient. CPU: none, since products are faster. Accelerator: 128 MiB of
    float32, where no shape depends on how many pairs are near, so nothing is read."""

    near_columns: int
    """Columns of a row beyond its positives that heads measure by differences in larger tables, where shapes
    are fixed: hardly a negative of real data is so near that a product has lost its digits."""

    near_columns_unknown: int
    """The same for all columns of a row together, where the host does not know how many positives there
    are."""

    head_tile_numbers: int
    """The distances of one tile of a head that streams: several passes go over each tile, and beyond the
    cache each takes several times as long. CPU: 4 MiB of float32. Accelerator: no limit but `tile_bytes`."""

    head_tile_rows: int
    """Tiles of heads are not cut lower than this for that reason: products of fewer rows are slow."""

    one_graph_numbers: int
    """Lists of mined tuples whose features are at most so many numbers are differentiated as one autograd
    graph, which has fewer calls; longer lists are accumulated in chunks, in bounded memory. CPU: 512 KiB of
    float32. Accelerator: 64 MiB."""

    table_numbers: int
    """Shorter lists, by the numbers of their features, are measured pair by pair: setting up a table of
    products costs more."""

    table_share: int
    """A list is measured by a table of products if that has at most so many entries to each listed pair: an
    entry of a product costs about so many times less than a listed pair."""

    table_tuples: int
    """So many tuples of a list are taken at once where a table serves them. Accelerator: more, since the
    table of all rows is computed for each such part."""

    swap_triplets: int
    """Triplets of one tile of all triplets with `swap`; their graph takes a dozen times as much memory."""

    traced_numbers: int
    """Triplets [n, n, n] up to which `torch.compile` traces the soft margin and `swap` of all of them; larger
    batches stay outside its graph. CPU: N = 128. Accelerator: N = 322, 128 MiB of float32."""

    traced_distances: int
    """Distances [n, n] up to which `torch.compile` traces a miner, which measures all of them by differences;
    larger batches stay outside its graph."""

    positive_passes: int
    """Up to so many positives an anchor, the hinge takes one pass over the negatives for each positive; more
    positives are searched in sorted order, which costs about as much as so many passes."""

    collected_tuples: int
    """Found tuples are copied into blocks of at least so many: small tensors kept between large temporaries
    fragment the allocator. CPU and accelerator: 512 KiB a column."""

    mark_bytes: int
    """Whether two lists share a pair is looked up in a table of marks of at most so many bytes to each listed
    pair; larger tables cost more than sorting the shorter list."""

    free_mark_bytes: int
    """A table of marks of so many bytes more is always made: it costs less than the calls of a sort."""

    found_candidates: int
    """Offline mining searches so many anchors at once as have so many candidates in all, 128 MiB: each search
    reads the whole collection, so few long ones cost less than many short ones."""

    work_anchors: int
    """Anchors of a block of a search that processes share: a block takes seconds, so a process that dies
    costs little, and few blocks are left at the end for which some wait."""

    work_columns: int
    """Columns of such a block. Candidates of each block are kept, so fewer columns take more of the disk."""

    judged_candidates: int
    """Offline mining judges so many candidates of pairs at once; they take some 100 bytes each meanwhile."""


_CPU = Budget(
    tile_bytes=8 * 2**20,
    block_bytes=2 * 2**20,
    numpy_numbers=2**19,
    counted_numbers=1 << 16,
    direct_numbers=0,
    measured_more=7,
    listed_positives=32,
    masked_numbers=2**19,
    class_order_rows=512,
    argmin_columns=512,
    argmin_numbers=2**18,
    copied_numbers=2**16,
    topk_numbers=2**16,
    class_order_blocks=8,
    product_rows=256,
    longer_shortlist=8,
    shortlist_share=4,
    sampled_share=8,
    sampled_columns=2**10,
    key_tile_rows=512,
    key_tile_numbers=2**19,
    sorted_bounds=32,
    dense_share=8,
    gathered_numbers=2**20,
    gathered_keys=2**20,
    summed_numbers=2**18,
    difference_numbers=0,
    near_columns=8,
    near_columns_unknown=32,
    head_tile_numbers=2**20,
    head_tile_rows=64,
    one_graph_numbers=2**17,
    table_numbers=2**18,
    table_share=8,
    table_tuples=2**15,
    swap_triplets=2**16,
    traced_numbers=2**21,
    traced_distances=2**16,
    positive_passes=32,
    collected_tuples=2**16,
    mark_bytes=64,
    free_mark_bytes=2**16,
    found_candidates=11 * 2**20,
    work_anchors=2**14,
    work_columns=2**18,
    judged_candidates=2**21,
)


def accelerator(free_bytes: int) -> Budget:
    """The sizes for a device with so much free memory.

    Example:
        >>> accelerator(64 * 2**30).tile_bytes // 2**20
        1024
    """
    tile_bytes = max(256 * 2**20, free_bytes // 64)
    return replace(
        _CPU,
        tile_bytes=tile_bytes,
        block_bytes=tile_bytes // 4,
        numpy_numbers=0,
        counted_numbers=0,
        direct_numbers=2**16,
        masked_numbers=_UNLIMITED,
        product_rows=4096,
        argmin_columns=_UNLIMITED,
        sampled_share=0,
        gathered_numbers=2**24,
        gathered_keys=2**24,
        summed_numbers=2**22,
        difference_numbers=2**25,
        traced_numbers=2**25,
        one_graph_numbers=2**24,
        table_tuples=2**22,
        head_tile_numbers=_UNLIMITED,
    )


_known: dict[torch.device, Budget] = {torch.device("cpu"): _CPU}
_overridden: dict[str, int] = {}


def budget(device: torch.device) -> Budget:
    """The sizes for a device; an accelerator's free memory is asked for once in a process.

    Example:
        >>> budget(torch.device("cpu")) is budget(torch.zeros(1).device)
        True
    """
    found = _known.get(device)
    return _ask(device) if found is None else found


def _ask(device: torch.device) -> Budget:
    sizes = _CPU if device.type == "cpu" else accelerator(_free_bytes(device))
    _known[device] = replace(sizes, **_overridden)
    return _known[device]


def _free_bytes(device: torch.device) -> int:
    """What the driver has left and what torch's allocator holds unused; 0 where neither tells."""
    module = getattr(torch, device.type, None)
    if module is None or not hasattr(module, "mem_get_info"):
        return 0
    return module.mem_get_info(device)[0] + module.memory_reserved(device) - module.memory_allocated(device)


@contextmanager
def override(**sizes: int) -> Iterator[None]:
    """Other sizes on every device in the block, for tests and measurements; for the whole process.

    Args:
        sizes: fields of `Budget` by name.

    Example:
        >>> with override(tile_bytes=4096):
        ...     print(budget(torch.device("cpu")).tile_bytes)
        4096
    """
    before, named = dict(_known), dict(_overridden)
    _overridden.update(sizes)
    for device, found in before.items():
        _known[device] = replace(found, **sizes)
    try:
        yield
    finally:
        _known.clear()
        _known.update(before)
        _overridden.clear()
        _overridden.update(named)
