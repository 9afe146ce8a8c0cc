#!/usr/bin/env python
"""What share of a stream ends in P×K batches: predicted by `predict_yield`, and counted from real tars.

    python tools/bench/bench_yield.py [--quick] [--folder .] [--markdown tools/bench/RESULTS.md]

11,318 identities × 5 images, as in Stanford Online Products' training half, P = 32, K = 4, one-pixel images,
shards of 1000. Streams are webdataset's with `pk_batched`, its own split of the shards over worker processes,
and `PKStream` with as many lanes. A sample counts once, however often it stands in a batch.

The limits: the layout "by_class" gives 0.80 with 1, 4 and 16 workers; images written in groups of K give 1.00
from a buffer of 256; the prediction is within 0.05. With on_short="drop" four of five images can be used.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations makes no network call

import numpy as np
import webdataset as wds
from page import table, told, write_section
from torch.utils.data import DataLoader

from tercet.data.catalog.catalog import Catalog
from tercet.data.catalog.scan import scan_folder
from tercet.data.shards.writing import write_shards
from tercet.data.streams.pk_stage import pk_batched
from tercet.data.streams.pk_stream import PKStream
from tercet.data.streams.yield_prediction import predict_yield

FULL, QUICK = (11_318, 1_000), (2_000, 200)  # identities, and images of a shard
P, K = 32, 4
WITHIN = 0.05


class Case(NamedTuple):
    """A stream: of which shards, by how many workers, and what is asked of its yield."""

    images: int  # of an identity
    layout: str
    workers: int = 1
    on_short: str = "repeat"
    buffer: int | None = None
    stream: str = "webdataset"
    least: float | None = None


CASES = [
    *[Case(5, "by_class", workers, least=0.8) for workers in (1, 4, 16)],
    *[Case(5, "by_class", workers, stream="PKStream", least=0.8) for workers in (1, 4, 16)],
    *[Case(5, "by_class", workers, "drop") for workers in (1, 4, 16)],
    *[Case(5, "by_class", 4, on_short, 256) for on_short in ("repeat", "drop")],
    *[Case(4, "by_class", 1, on_short, 256, least=1.0) for on_short in ("repeat", "drop", "error")],
    *[Case(4, "by_class", 4, "drop", 256, stream) for stream in ("webdataset", "PKStream")],
    *[Case(5, "mixed", 1, on_short) for on_short in ("repeat", "drop")],
]


def made(folder: Path, identities: int, images: int) -> Catalog:
    """Class folders of pictures of one pixel."""
    for number in range(identities):
        here = folder / f"{number:05d}"
        here.mkdir(parents=True)
        for image in range(images):
            (here / f"{image}.pgm").write_bytes(b"P5 1 1 255 " + bytes([number % 256]))
    return scan_folder(folder)


def names(batches: Iterable[list[dict[str, Any]]]) -> Iterator[list[str]]:
    """The keys of each batch, which is all that goes from the workers to the main process."""
    for batch in batches:
        yield [sample["__key__"] for sample in batch]


def measured(case: Case, tars: list[Path], labels: np.ndarray, per_shard: int) -> tuple[float, float]:
    """The share of samples in batches of one epoch, as predicted and as counted."""
    batches: Iterable[list[str]]
    if case.stream == "PKStream":
        setting: dict[str, Any] = {"on_short": case.on_short, "buffer": case.buffer, "return_keys": True}
        stream = PKStream(tars, P, K, lanes=case.workers, **setting)
        assert stream.predicted is not None
        predicted = stream.predicted.share
        loader = DataLoader(stream, batch_size=None, num_workers=case.workers)
        batches = (keys for _, _, keys in loader)
    else:
        setting = {"layout": case.layout, "images_per_shard": per_shard, "workers": case.workers}
        setting |= {"on_short": case.on_short, "buffer": case.buffer, "least": 0}
        predicted = predict_yield(labels, P, K, **setting).share
        stage = pk_batched(P, K, on_short=case.on_short, buffer=case.buffer)
        urls = [str(tar) for tar in tars]
        stream = wds.WebDataset(urls, shardshuffle=len(urls), seed=0).compose(stage, names)
        batches = DataLoader(stream, batch_size=None, num_workers=case.workers)
    used: set[str] = set()
    for keys in batches:
        if len(keys) != P * K:
            raise SystemExit(f"a batch of {len(keys)}")
        used.update(keys)
    return predicted, len(used) / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description="Yields of streams, predicted and counted.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]:,} identities")
    parser.add_argument("--folder", type=Path, help="where to put the files; by default the system's own")
    parser.add_argument("--markdown", type=Path, help="the results page to write the section of")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    identities, per_shard = QUICK if options.quick else FULL
    heads = ["images", "layout", "stream", "workers", "on_short", "buffer"]
    heads += ["predicted", "counted", "apart", "asked"]
    lines, missed = [], 0
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        top = Path(place)
        catalogs = {images: made(top / str(images), identities, images) for images in (4, 5)}
        shards = {
            key: write_shards(
                top / "-".join(map(str, key)), catalogs[key[0]], layout=key[1], images_per_shard=per_shard
            ).tars
            for key in dict.fromkeys(case[:2] for case in CASES)
        }
        print("".join(f"{head:>11}" for head in heads))
        for case in CASES:
            labels = catalogs[case.images].labels
            predicted, share = measured(case, shards[case[:2]], labels, per_shard)
            apart = abs(predicted - share)
            good = apart <= WITHIN and (case.least is None or round(share, 2) >= case.least)
            missed += not good
            asked = "" if case.least is None else f"{case.least:.2f}"
            shown = [f"{identities:,} × {case.images}", case.layout, case.stream, str(case.workers)]
            shown += [case.on_short, str(case.buffer or 4 * P * K), f"{predicted:.3f}", f"{share:.3f}"]
            lines.append([*shown, f"{apart:.3f}", asked if good else f"{asked} missed"])
            print("".join(f"{field:>11}" for field in lines[-1]), flush=True)
    if options.markdown:
        command = shlex.join(["python", "tools/bench/bench_yield.py", *sys.argv[1:]])
        text = [
            "## Yield of streams",
            f"{told()} Regenerate with `{command}`. The share of samples that end in batches of P = {P} "
            f"classes × K = {K}, in one epoch of shards of {per_shard:,} images, read by worker processes: "
            "predicted by `predict_yield` or `PKStream.predicted`, and counted from the batches. Images of "
            'an identity lie in groups of at least K side by side ("by_class") or anywhere ("mixed"). Asked '
            f"is a prediction within {WITHIN}, and the share of the last column. Groups of 5 give 0.80 at "
            "most where what is short of K is dropped; what fewer than P classes leave over at the end of a "
            "worker is in no batch; lanes of more shards than others leave some unread.",
            table(heads, lines, left=3),
        ]
        write_section(options.markdown, "yield", "\n\n".join(text))
    print(f"{missed} of {len(CASES)} missed what is asked")


if __name__ == "__main__":
    main()
