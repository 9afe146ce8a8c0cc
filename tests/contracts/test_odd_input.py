"""Input that raised an error of torch, numpy or Python, or was taken though it is nonsense, by name."""

from __future__ import annotations

import re

import jaxtyping
import numpy as np
import pytest
import torch

import tercet
from tests.contracts.fuzz_values import Unreadable, nested, quantized

X, Y = torch.eye(4), torch.tensor([0, 0, 1, 1])
MINED = tuple(torch.tensor([row]) for row in (0, 1, 2))
META, SEVERAL = torch.tensor(3, device="meta"), torch.ones(2).bool()
HARD, HEAD = tercet.BatchHard(), tercet.Contrastive()
CATALOG = tercet.Catalog(["a/1.png", "b/1.png"], [0, 1], ["a", "b"])
LOADER = [(X, Y)]
MODEL = torch.nn.Identity()


def nests() -> torch.Tensor:
    """A nested tensor."""
    return torch.nested.nested_tensor([torch.ones(4)] * 4, layout=torch.jagged)


READERS = [(tercet.scan_folder, "root"), (tercet.read_catalog, "path"), (tercet.read_manifest, "path")]
DATA = "expected a dense tensor with data"
CASES = {
    # tensors without data
    "sparse labels": (lambda: HARD(X, Y.to_sparse()), rf"BatchHard\(labels=.*sparse.*{DATA}"),
    "quantized labels": (lambda: HARD(X, quantized(4)), rf"BatchHard\(labels=.*quint8.*{DATA}"),
    "nested labels": (
        lambda: HARD(X, nests()),
        r"BatchHard\(labels='torch.float32'\): expected a tensor of whole",
    ),
    "labels on meta": (lambda: HARD(X, Y.to("meta")), rf"BatchHard\(labels=.*meta.*{DATA}"),
    "labels with gradient": (
        lambda: HARD(X, Y.float().requires_grad_()),
        r"BatchHard\(labels='torch.float32'",
    ),
    "sparse ids": (lambda: HARD(X, Y, ids=Y.to_sparse()), rf"BatchHard\(ids=.*{DATA}"),
    "nested embeddings": (lambda: HARD(nests(), Y), rf"BatchHard\(embeddings='a nested tensor'\): {DATA}"),
    "quantized embeddings": (lambda: HEAD(quantized(4, 4), Y), rf"Contrastive\(embeddings=.*quint8.*{DATA}"),
    "sparse labels of references": (
        lambda: HEAD(X, Y, ref=tercet.References(X, Y.to_sparse())),
        rf"Contrastive\(ref.labels=.*{DATA}",
    ),
    "whole numbers as references of a similarity": (
        lambda: tercet.SupCon()(X, Y, ref=tercet.References(X.long(), Y)),
        r"SupCon\(ref.embeddings='torch.int64'\): expected floating-point embeddings",
    ),
    "whole numbers as references of a miner": (
        lambda: tercet.MultiSimilarityMiner()(X, Y, ref=tercet.References(X.long(), Y)),
        r"MultiSimilarityMiner\(ref.embeddings='torch.int64'\): expected floating-point embeddings",
    ),
    "sparse mined rows": (
        lambda: HEAD(X, mined=[MINED[0].to_sparse()] * 3),
        r"Contrastive\(mined=.*expected dense tensors with data",
    ),
    "quantized mined rows": (lambda: tercet.describe(X, Y, [quantized(1)] * 3), r"describe\(mined=.*quint8"),
    "mined without a length": (lambda: HEAD(X, mined=Unreadable()), r"Contrastive\(mined=<Unreadable>\)"),
    "labels of a metric on meta": (lambda: tercet.map_at_r(X, [META] * 4), r"map_at_r\(labels="),
    "groups of strings and numbers": (
        lambda: tercet.score_at_top_k(X, MINED, 1, groups=["a", 1, "a", 1]),
        r"score_at_top_k\(groups='int and str'\): expected all whole numbers or all strings",
    ),
    "triplets of a metric that are strings": (
        lambda: tercet.similarity_precision(X, ("a", "b", "c")),
        r"similarity_precision\(triplets='str, str, str'\)",
    ),
    "embeddings of a memory on meta": (
        lambda: tercet.CrossBatchMemory(4, 4).update(X.to_sparse(), Y),
        rf"CrossBatchMemory.update\(embeddings=.*{DATA}",
    ),
    "class numbers that are nested": (
        lambda: tercet.ProxyNCA(4, 4)(X, nests()),
        r"ProxyNCA\(labels='torch.float32'\)",
    ),
    # arrays
    "labels with a gradient in a sampler": (
        lambda: tercet.PKSampler(torch.ones(4, requires_grad=True), 2, 2),
        r"PKSampler\(labels='<Tensor>'\): expected whole numbers or strings",
    ),
    "super-labels on meta": (
        lambda: tercet.PKSampler(Y, 2, 2, super_labels=Y.to("meta")),
        r"PKSampler\(super_labels='<Tensor>'\)",
    ),
    "row numbers that numpy makes no array of": (
        lambda: tercet.TableRelevance(Unreadable(), [0], [0.5]),
        r"TableRelevance\(i='<Unreadable>'\): expected row numbers",
    ),
    # numbers
    "a seed without data": (
        lambda: tercet.BatchHard(seed=META),
        r"BatchHard\(seed=tensor\(.*meta.*a whole number",
    ),
    "a margin without data": (
        lambda: tercet.TripletMargin(torch.tensor(0.5, device="meta")),
        r"TripletMargin\(margin=tensor\(.*a finite number",
    ),
    "a step of 5,000 digits": (
        lambda: HARD(X, Y, step=10**5000),
        r"BatchHard\(step=<int>\): expected a whole number from",
    ),
    "a k of 2⁶⁴": (
        lambda: tercet.HardestN(2**64),
        r"HardestN\(k=18446744073709551616\): expected a whole number from 1",
    ),
    "a batch of 2³¹ images a class": (
        lambda: tercet.PKSampler(Y, 2, 2**31),
        r"PKSampler\(p, k='2 · 2147483648'\)",
    ),
    "an epoch of 2⁴⁰ steps": (
        lambda: tercet.PKSampler(Y, 2, 2, epoch_length=2**40),
        r"PKSampler\(epoch_length=1099511627776\): expected at most",
    ),
    "2⁶² classes": (
        lambda: tercet.ArcFace(2**62, 4),
        r"ArcFace\(num_classes, dim='4611686018427387904 × 4'\)",
    ),
    "a memory of 2⁶²": (
        lambda: tercet.CrossBatchMemory(2**62, 4),
        r"CrossBatchMemory\(size, dim, label_columns=",
    ),
    "2⁶² features": (lambda: tercet.EmbeddingHead(2**62, 4), r"EmbeddingHead\(in_features, out_features="),
    "2⁶² interleaved": (lambda: tercet.Triplets.interleaved(2**62), r"Triplets.interleaved\(count="),
    "shards of 2⁶² images": (
        lambda: tercet.predict_yield(np.arange(16) // 4, 2, 2, images_per_shard=2**62),
        "",
    ),
    "2³¹ views": (
        lambda: tercet.ImageDataset(CATALOG, views=2**31),
        r"ImageDataset\(views=2147483648\): expected at most",
    ),
    # flags
    "a flag of two": (
        lambda: tercet.ProxyNCA(4, 4, plus_plus=SEVERAL),
        r"ProxyNCA\(plus_plus=.*True or False",
    ),
    "normalize='False'": (
        lambda: tercet.EmbeddingHead(4, 2, normalize="False"),
        r"EmbeddingHead\(normalize='False'\)",
    ),
    "return_rows=1": (lambda: tercet.ImageDataset(CATALOG, return_rows=1), r"ImageDataset\(return_rows=1\)"),
    "describe='no'": (
        lambda: tercet.MiningLoader(LOADER, MODEL, HARD, describe="no"),
        r"MiningLoader\(describe='no'\)",
    ),
    "symmetric='no'": (
        lambda: tercet.TableRelevance([0], [1], [0.5], symmetric="no"),
        r"TableRelevance\(symmetric='no'\)",
    ),
    "verify=0": (
        lambda: tercet.scan_folder(".", verify=0),
        r"scan_folder\(verify=0\): expected True or False",
    ),
    "progress='no'": (lambda: tercet.read_catalog("t.csv", progress="no"), r"read_catalog\(progress='no'\)"),
    # paths and names
    **{
        f"{call.__name__} of {value!r}": (
            lambda call=call, value=value: call(value),
            rf"{call.__name__}\({name}=",
        )
        for call, name in READERS
        for value in (3, b"a.csv", "a\0.csv", ["a"])
    },
    "a root of a manifest that is a number": (
        lambda: tercet.read_manifest("t.txt", root=3),
        r"read_manifest\(root=3\): expected a path",
    ),
    "a target with a zero": (
        lambda: CATALOG.write("a\0.csv"),
        r"Catalog.write\(path='a\\x00.csv'\): expected a path",
    ),
    "a target that is not UTF-8": (
        lambda: CATALOG.write("\udcff.csv"),
        r"Catalog.write\(path='\\udcff.csv'\): expected a name that is text in UTF-8",
    ),
    "a folder of shards that is not UTF-8": (
        lambda: tercet.write_shards("\udcff", CATALOG),
        r"write_shards\(folder='\\udcff'\): expected a name that is text in UTF-8",
    ),
    "nested embeddings of a memory": (
        lambda: tercet.CrossBatchMemory(4, 4).update(nests(), Y),
        rf"CrossBatchMemory.update\(embeddings='a nested tensor'\): {DATA}",
    ),
    "a folder of shards with a zero": (
        lambda: tercet.write_shards("\0", CATALOG),
        r"write_shards\(folder='\\x00'\)",
    ),
    "suffixes that are numbers": (
        lambda: tercet.scan_folder(".", suffixes=3),
        r"scan_folder\(suffixes=3\): expected strings",
    ),
    "groups that are numbers": (
        lambda: tercet.read_catalog("t.csv", groups=[3]),
        r"read_catalog\(groups=\[3\]\)",
    ),
    "a column without a name": (
        lambda: tercet.read_catalog("t.csv", path_column=3),
        r"read_catalog\(path_column=3\)",
    ),
    "a split that is a list": (
        lambda: tercet.ShardIndex(".", split=[]),
        r"ShardIndex\(split=\[\]\): expected a string",
    ),
    # catalogs and sequences
    "one string for classes": (lambda: tercet.Catalog(["a"], [0], "a"), r"Catalog\(classes='a'\)"),
    "classes in classes": (lambda: tercet.Catalog(["a"], [0], nested(2000)), r"Catalog\(classes=<list>\)"),
    "paths that are no strings": (lambda: tercet.Catalog([3], [0], ["a"]), r"Catalog\(paths="),
    "groups that are no dict": (
        lambda: tercet.Catalog(["a"], [0], ["a"], groups=None),
        r"Catalog\(groups=None\)",
    ),
    "nothing left out but a number": (
        lambda: tercet.Catalog(["a"], [0], ["a"], left_out=3),
        r"Catalog\(left_out=3\)",
    ),
    "a flag of a catalog": (
        lambda: tercet.Catalog(["a"], [0], ["a"], outside_root="no"),
        r"Catalog\(outside_root='no'\): expected True or False",
    ),
    "a buffer of 2⁶² images": (
        lambda: tercet.predict_yield(np.arange(64) // 8, 2, 2, images_per_shard=3, buffer=2**62),
        "",
    ),
    "a row that is None": (lambda: CATALOG.file(None), r"Catalog.file: expected a row number, got None"),
    "a row of 2⁷⁰": (lambda: CATALOG.file(2**70), r"Catalog.file: expected a row from 0 to 1, got 1180"),
    "a slice from 'a'": (
        lambda: tercet.RandomTriplets(Y)["a":],
        r"expected a whole number, a slice or whole numbers",
    ),
    "an index without data": (
        lambda: tercet.RandomTriplets(Y)[META],
        r"expected a whole number, a slice or whole",
    ),
    "pairs that are a number": (lambda: tercet.LabeledPairs.of(3), r"LabeledPairs.of\(pairs=3\)"),
    "triplets that are a dict": (lambda: tercet.AnchorSampler({"a": 1}), r"AnchorSampler\(triplets="),
    "a length of a 0-d array": (
        lambda: tercet.ShuffledSampler(np.array(2.5)),
        r"ShuffledSampler\(n=array\(2.5\)\)",
    ),
    "a length of text": (lambda: tercet.ShuffledSampler("12"), r"ShuffledSampler\(n='12'\)"),
    "k of a 0-d tensor": (
        lambda: tercet.recall_at_k(X, Y, torch.tensor(2.5)),
        r"recall_at_k\(k=tensor\(2.5000\)\)",
    ),
    "a manifest that is True": (
        lambda: tercet.TripletDataset(True, catalog=CATALOG),
        r"TripletDataset\(manifest='bool'\)",
    ),
    # around the loop
    "a device of no kind": (
        lambda: tercet.MiningLoader(LOADER, MODEL, HARD, device="abc"),
        r"MiningLoader\(device='abc'\): expected a device, such as",
    ),
    "a device that is a function": (
        lambda: tercet.cached_backward(MODEL, LOADER, HEAD, device=print),
        r"cached_backward\(device=<built-in function print>\)",
    ),
    "a loader that is a number": (
        lambda: tercet.MiningLoader(3, MODEL, HARD),
        r"MiningLoader\(loader='int'\)",
    ),
    "a miner that is a tensor": (
        lambda: tercet.cached_backward(MODEL, LOADER, HEAD, miner=X),
        r"cached_backward\(miner=tensor",
    ),
    "a backward that is a number": (
        lambda: tercet.cached_backward(MODEL, LOADER, HEAD, backward=3),
        r"cached_backward\(backward=3\)",
    ),
    "references without ids for columns": (
        lambda: tercet.cached_backward(torch.nn.Linear(4, 2), LOADER, HEAD, ref=lambda *given: 3),
        r"cached_backward\(ref=3\): expected a function that gives \(ids, references\)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_odd_input_is_refused_by_a_sentence_that_names_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    (tmp_path / "a").mkdir()
    for text in ("t.csv", "t.txt"):
        (tmp_path / text).write_text("path,label\na/1.png,a\n")
    call, said = CASES[name]
    if not said:
        assert call()
        return
    with pytest.raises((ValueError, TypeError, IndexError), match=f"^{said}") as caught:
        call()
    assert str(caught.value).isprintable()
    assert not re.search(r"\n", str(caught.value))


@pytest.mark.parametrize("triplets", [None, 3, Unreadable()], ids=["None", "3", "Unreadable"])
def test_a_manifest_of_no_triplets_is_refused(triplets, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"^write_manifest\(triplets=.*: expected Triplets, LabeledPairs"):
        tercet.write_manifest(tmp_path / "t.csv", triplets, CATALOG)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [{"progress": 1}, {"path_prefix": 3}, {"provenance": 3}, {"overwrite": "no"}], ids=str
)
def test_odd_options_of_a_manifest_are_refused(options, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    ((name, _),) = options.items()
    with pytest.raises(ValueError, match=rf"^write_manifest\({name}="):
        tercet.write_manifest(tmp_path / "t.csv", tercet.Triplets([0], [0], [1]), CATALOG, **options)
    assert not list(tmp_path.iterdir())


def test_a_row_that_is_a_whole_number_of_any_kind_is_taken(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for row in (1, -1, np.int8(1), np.array(1), torch.tensor(1), True):
        assert str(CATALOG.file(row)) == "b/1.png"
