"""Two processes against one: every scenario runs in a single pair of them, which writes down what it saw."""

import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tercet.core.indices import References
from tercet.losses.histogram import FastAP, Histogram
from tercet.losses.listwise import NCA, InfoNCE, NPair, SupCon
from tercet.losses.margin import MarginLoss
from tercet.losses.pair import Contrastive
from tercet.losses.pair_weighting import Circle, LiftedStructure, MultiSimilarity
from tercet.losses.proxy import ProxyAnchor, ProxyNCA, SoftTriple
from tercet.losses.ranked_list import RankedList
from tercet.losses.ranking import SmoothAP
from tercet.losses.softmax import ArcFace, CosFace, NormalizedSoftmax
from tercet.losses.triplet import TripletMargin
from tercet.miners.batch_all import BatchAll
from tercet.miners.hard import BatchHard
from tercet.pairwise.relations import CrossGroup
from tercet.training.distributed import gather, rank, world_size
from tercet.training.gradient_cache import cached_backward
from tercet.training.memory import CrossBatchMemory
from tests.helpers import unchecked

WORLD = 2
IMAGES = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(12) // 2 % 3
IDS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 4, 9])  # images 0, 1 and 4 come on both ranks

HEADS = {
    "triplet": lambda **more: TripletMargin(1.0, **more),
    "swap": lambda **more: TripletMargin(1.0, swap=True, **more),
    "contrastive": lambda **more: Contrastive(3.0, **more),
}
SUMMED = {
    "NCA": NCA,
    "SmoothAP": SmoothAP,
    "ranked list": RankedList,
    "InfoNCE": InfoNCE,
    "SupCon": SupCon,
    "multi-similarity": MultiSimilarity,
    "circle": Circle,
    "margin loss": MarginLoss,
    "margin loss, β a class": lambda **more: MarginLoss(num_classes=3, **more),
}
HEADS |= SUMMED
UNSUMMED = {
    "lifted": LiftedStructure,
    "N-pair": NPair,
    "histogram": lambda reduction: Histogram(),
    "margin loss with ν": lambda **more: MarginLoss(nu=0.1, **more),
}
EQUAL_COUNTS = {  # means that DDP averages to that of one process, where the ranks' rows are alike
    "triplet": lambda: TripletMargin(1.0, reduction="mean"),
    "contrastive": lambda: Contrastive(3.0, reduction="mean"),
    "margin loss with ν": lambda: MarginLoss(nu=0.1, reduction="mean"),
    **{kind.__name__: kind for kind in (InfoNCE, SupCon, MultiSimilarity, Circle, FastAP)},
}
MEANS = {
    "triplet": lambda: TripletMargin(1.0),
    "contrastive": lambda: Contrastive(3.0),
    "margin loss with ν": lambda: MarginLoss(nu=0.1),
    **{kind.__name__: kind for kind in (InfoNCE, SupCon, MultiSimilarity, Circle)},
    **{kind.__name__: kind for kind in (LiftedStructure, NPair, Histogram, FastAP)},
    **{
        kind.__name__: lambda kind=kind: kind(3, 3).double()
        for kind in (ProxyNCA, ProxyAnchor, SoftTriple, NormalizedSoftmax, ArcFace, CosFace)
    },
}
MINERS = {"none": None, "hard": BatchHard(), "all": BatchAll(margin=1.0)}
SPLITS = {"even": [6, 6], "uneven": [7, 5], "an empty rank": [12, 0]}
SCENARIOS = [(head, miner, "uneven", False) for head in SUMMED for miner in ("none", "all")] + [
    (head, miner, split, ids)
    for head in ("triplet", "swap", "contrastive")
    for miner in MINERS
    for split, ids in (("even", False), ("uneven", True), ("uneven", False), ("an empty rank", False))
]
UNLIKE = {
    "ids": lambda r: (torch.ones(2, 3), torch.arange(2), torch.arange(2) if r else None),
    "dimension": lambda r: (torch.ones(2, 3 + r), torch.arange(2), None),
    "precision": lambda r: (torch.ones(2, 3, dtype=torch.float64 if r else None), torch.arange(2), None),
    "graph": lambda r: (torch.ones(2, 3, requires_grad=bool(r)), torch.arange(2), None),
    "labels": lambda r: (torch.ones(2, 3), torch.ones(2, 2).long() if r else torch.arange(2), None),
}


def network():
    """A small model with fixed weights."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight.copy_(torch.sin(torch.arange(weight.numel()) * 1.7 + i).view_as(weight))
    return model


def gradients(*modules):
    return [weight.grad.clone() for module in modules for weight in module.parameters()]


def one_process(head, miner, ids=None):
    model = network()
    x = model(IMAGES)
    loss = loss_of(x, LABELS, head, miner, ids, None)
    loss.backward()
    return loss.detach(), gradients(model, head)


def loss_of(x, labels, head, miner, ids, ref):
    if miner is None:
        return head(x, labels, ids=ids, ref=ref)
    return head(x, labels, miner(x, labels, ids=ids, ref=ref), ref=ref)


def own_rows(r, split):
    start = sum(split[:r])
    return slice(start, start + split[r])


def sums(r, head, miner, split, ids):
    """A rank's summed loss, with columns of all ranks, and its gradients without DDP."""
    rows, model = own_rows(r, SPLITS[split]), network()
    x, labels = model(IMAGES[rows]), LABELS[rows]
    row_ids, ref = gather(x, labels, IDS[rows] if ids else None)
    head = HEADS[head](reduction="sum")
    loss = loss_of(x, labels, head, MINERS[miner], row_ids, ref)
    loss.backward()
    return loss.detach(), gradients(model, head)


def whole_batch(r, make):
    """The loss of all ranks' rows, computed on each, and the gradients that DDP would average."""
    rows, model, head = own_rows(r, SPLITS["uneven"]), network(), make()
    _, ref = gather(model(IMAGES[rows]), LABELS[rows])
    loss = head(ref.embeddings, ref.labels, ids=ref.ids)
    loss.backward()
    return loss.detach(), gradients(model, head)


def mean(r, make):
    """A rank's mean loss, with columns of all ranks, and its gradients without DDP."""
    rows, model, head = own_rows(r, SPLITS["even"]), network(), make()
    x = model(IMAGES[rows])
    ids, ref = gather(x, LABELS[rows])
    loss = head(x, LABELS[rows], ids=ids, ref=ref)
    loss.backward()
    return loss.detach(), gradients(model, head)


def no_sum(r, make, columns):
    """What a head whose loss is no sum over anchors says of columns of all ranks."""
    rows = own_rows(r, SPLITS["uneven"])
    ids, ref = gather(IMAGES[rows], LABELS[rows])
    try:
        make(reduction="sum")(IMAGES[rows], LABELS[rows], ids=ids, ref=columns(ref))
    except ValueError as error:
        return str(error)


def under_ddp(r, split, weigh):
    """Gradients that DDP has averaged, of a loss over columns of all ranks."""
    rows, model = own_rows(r, SPLITS[split]), network()
    parallel, labels = DistributedDataParallel(model), LABELS[rows]
    x = parallel(IMAGES[rows])
    ids, ref = gather(x, labels)
    weigh(x, labels, ids, ref).backward()
    return gradients(model)


def mean_over_all(x, labels, ids, ref):
    count = torch.tensor(BatchAll(margin=1.0)(x, labels, ids=ids, ref=ref).count)
    dist.all_reduce(count)
    return TripletMargin(1.0, reduction="sum")(x, labels, ids=ids, ref=ref) * world_size() / count


def chunks_of(r):
    """Two chunks a rank, of 4 and 3 rows and of 3 and 2: rows 0 to 6 and 7 to 11."""
    rows = own_rows(r, SPLITS["uneven"])
    return list(zip(IMAGES[rows].split(4 - r), LABELS[rows].split(4 - r), strict=True))


def cached(r):
    """A step in chunks under DDP; then one whose buffers differ until the first forward shares rank 0's."""
    inner, norm = network(), nn.BatchNorm1d(4, affine=False, dtype=torch.float64).eval()
    model, head = DistributedDataParallel(nn.Sequential(norm, inner)), TripletMargin(1.0, reduction="sum")
    scaled = lambda loss: (loss * world_size()).backward()  # noqa: E731
    step = cached_backward(model, chunks_of(r), head, miner=BatchHard(), ref=gather, backward=scaled)
    grads = gradients(inner)
    norm.train().running_mean.fill_(r)
    cached_backward(model, chunks_of(r), head, ref=gather)
    buffers = norm.running_mean.clone(), norm.num_batches_tracked.clone()
    return {"loss": step.loss, "grads": grads, "columns": len(step.ref.embeddings), "buffers": buffers}


def remembered(r):
    """A memory that takes in what was gathered, two steps long."""
    memory, known = CrossBatchMemory(9, 4), CrossBatchMemory(9, 4)
    for step in (0, 6):
        mine = slice(step, step + 4) if r == 0 else slice(step + 4, step + 6)
        memory.update(*gather(IMAGES[mine], LABELS[mine])[1])
        known.update(*gather(IMAGES[mine], LABELS[mine], torch.arange(12)[mine])[1])
    return memory.state_dict(), list(known.columns())


def refused(r):
    said = {}
    for name, make in UNLIKE.items():
        try:
            gather(*make(r))
        except ValueError as error:
            said[name] = str(error)
    return said


CAMERAS = torch.stack([LABELS, torch.arange(12) % 4 // 2], dim=1)  # identity and camera


def other_camera(r):
    """Hardest triplets across cameras, the anchors as rows of all."""
    rows = own_rows(r, SPLITS["uneven"])
    ids, ref = gather(IMAGES[rows], CAMERAS[rows])
    mined = BatchHard(relation=CrossGroup())(IMAGES[rows], CAMERAS[rows], ids=ids, ref=ref)
    return mined._replace(anchor=mined.anchor + rows.start)


def half(r, dtype):
    """The gradient of Σ columns · weights, whose terms on the two ranks add up to 3 · 2⁻⁷."""
    x = torch.ones(1 + r, 2, dtype=dtype, requires_grad=True)
    _, ref = gather(x, torch.zeros(1 + r).bool())
    (ref.embeddings * (1 + r) * 2**-7).sum().backward()
    return ref.embeddings.dtype, ref.labels.tolist(), x.grad


def differentiated_twice(r):
    """What a gradient penalty over gathered columns says."""
    x = torch.ones(2, 3, requires_grad=True)
    _, ref = gather(x, torch.zeros(2).bool())
    try:
        torch.autograd.grad(ref.embeddings.square().sum(), x, create_graph=True)
    except ValueError as error:
        return str(error)


def worker(r, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=r,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=120),
    )
    weigh = {
        "sum": lambda x, y, ids, ref: TripletMargin(reduction="sum")(x, y, ids=ids, ref=ref) * world_size(),
        "mean": lambda x, y, ids, ref: TripletMargin(reduction="mean")(x, y, ids=ids, ref=ref),
    }
    x = IMAGES[own_rows(r, SPLITS["uneven"])]
    row_ids, ref = gather(x, LABELS[: len(x)])
    seen = {
        "rank": (rank(), world_size()),
        "columns": (row_ids, ref.embeddings, ref.ids),
        "cameras": other_camera(r),
        "sums": [sums(r, *scenario) for scenario in SCENARIOS],
        "whole": {name: whole_batch(r, make) for name, make in MEANS.items()},
        "mean": {name: mean(r, make) for name, make in EQUAL_COUNTS.items()},
        "no sum": {
            name: [no_sum(r, make, columns) for columns in (lambda ref: ref, CrossBatchMemory(9, 4).columns)]
            for name, make in UNSUMMED.items()
        },
        "ddp sum": under_ddp(r, "uneven", weigh["sum"]),
        "ddp mean": under_ddp(r, "even", weigh["mean"]),
        "ddp mean_active": under_ddp(r, "uneven", mean_over_all),
        "cached": cached(r),
        "memory": remembered(r),
        "refused": refused(r),
        "twice": differentiated_twice(r),
        "half": [half(r, dtype) for dtype in (torch.float16, torch.bfloat16)],
    }
    torch.save(seen, f"{folder}/{r}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(WORLD)]


def check_adds_up(parts, whole):
    """The ranks' losses and gradients, added up, are those of one process."""
    (loss, grads), losses = whole, [part[0] for part in parts]
    torch.testing.assert_close(sum(losses), loss)
    assert loss.item() > 0
    for own, *others in zip(grads, *(part[1] for part in parts), strict=True):
        torch.testing.assert_close(sum(others), own)


def check_same(grads, expected):
    for grad, own in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, own)


def test_without_torch_distributed_there_is_one_rank_and_the_columns_are_the_batch():
    assert (rank(), world_size()) == (0, 1)
    x = IMAGES.clone().requires_grad_()
    ids, ref = gather(x, LABELS.int())
    assert isinstance(ref, References)
    assert ref.embeddings is x
    assert ref.labels.dtype == torch.int64
    assert ids.tolist() == ref.ids.tolist() == list(range(-1, -13, -1))
    ids, ref = gather(x, LABELS, IDS.int())
    assert ids.tolist() == ref.ids.tolist() == IDS.tolist()


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("head", HEADS)
def test_one_process_that_gathers_has_the_loss_and_gradient_of_the_batch(head, miner, ids):
    model = network()
    x = model(IMAGES)
    row_ids, ref = gather(x, LABELS, ids)
    own = HEADS[head](reduction="sum")
    loss = loss_of(x, LABELS, own, MINERS[miner], row_ids, ref)
    loss.backward()
    check_adds_up(
        [(loss.detach(), gradients(model, own))],
        one_process(HEADS[head](reduction="sum"), MINERS[miner], ids),
    )


@pytest.mark.parametrize("number", range(len(SCENARIOS)), ids=[" ".join(map(str, s)) for s in SCENARIOS])
def test_the_ranks_losses_and_gradients_add_up_to_those_of_one_process(ranks, number):
    head, miner, _, ids = SCENARIOS[number]
    whole = one_process(HEADS[head](reduction="sum"), MINERS[miner], IDS if ids else None)
    check_adds_up([seen["sums"][number] for seen in ranks], whole)


@pytest.mark.parametrize("name", MEANS)
def test_ranks_that_each_take_the_loss_of_the_whole_batch_average_to_the_gradient_of_one_process(ranks, name):
    loss, grads = one_process(MEANS[name](), None)
    for seen in ranks:
        torch.testing.assert_close(seen["whole"][name][0], loss)
    for own, *parts in zip(grads, *(seen["whole"][name][1] for seen in ranks), strict=True):
        torch.testing.assert_close(sum(parts) / WORLD, own)


@pytest.mark.parametrize("name", EQUAL_COUNTS)
def test_means_over_equal_counts_average_to_the_loss_and_gradient_of_one_process(ranks, name):
    loss, grads = one_process(EQUAL_COUNTS[name](), None)
    parts = [seen["mean"][name] for seen in ranks]
    check_adds_up([(part / WORLD, [grad / WORLD for grad in grads]) for part, grads in parts], (loss, grads))


@pytest.mark.parametrize("name", UNSUMMED)
def test_a_loss_that_is_no_sum_over_anchors_refuses_gathered_columns_with_and_without_a_memory(ranks, name):
    caller = type(UNSUMMED[name](reduction="sum")).__name__
    text = f"{caller}(ref='columns from gather'): expected columns of one process, since this loss is no sum "
    for seen in ranks:
        assert all(said.startswith(text) for said in seen["no sum"][name])


@pytest.mark.parametrize("name", UNSUMMED)
def test_a_loss_that_is_no_sum_over_anchors_takes_what_one_process_gathers(name):
    head = UNSUMMED[name](reduction="sum")
    ids, ref = gather(IMAGES, LABELS)
    torch.testing.assert_close(head(IMAGES, LABELS, ids=ids, ref=ref), head(IMAGES, LABELS))


def test_the_check_that_ranks_add_up_can_fail():
    loss, grads = one_process(HEADS["triplet"](), None)
    nothing = torch.zeros(()), [torch.zeros_like(grad) for grad in grads]
    check_adds_up([nothing, (loss, grads)], (loss, grads))
    for wrong in ((loss * 1.01, grads), (loss, [grads[0] * 1.01, *grads[1:]])):
        with pytest.raises(AssertionError):
            check_adds_up([nothing, wrong], (loss, grads))


def test_columns_stand_in_the_order_of_ranks_and_no_two_rows_share_an_id(ranks):
    row_ids = [seen["columns"][0] for seen in ranks]
    for r, seen in enumerate(ranks):
        assert seen["rank"] == (r, 2)
        _, embeddings, ids = seen["columns"]
        assert torch.equal(embeddings, IMAGES)
        assert torch.equal(ids, torch.cat(row_ids))
    assert len(torch.cat(row_ids).unique()) == 12
    assert (torch.cat(row_ids) < 0).all()


def test_under_ddp_a_sum_times_the_world_size_steps_as_one_process_does(ranks):
    for seen in ranks:
        check_same(seen["ddp sum"], one_process(TripletMargin(reduction="sum"), None)[1])


def test_under_ddp_a_mean_over_equal_counts_steps_as_one_process_does(ranks):
    for seen in ranks:
        check_same(seen["ddp mean"], one_process(TripletMargin(reduction="mean"), None)[1])


def test_under_ddp_the_mean_over_all_ranks_active_triplets_is_that_of_one_process(ranks):
    for seen in ranks:
        check_same(seen["ddp mean_active"], one_process(TripletMargin(1.0), None)[1])


def test_a_cached_step_over_ranks_is_the_step_of_one_process(ranks):
    norm, model = nn.BatchNorm1d(4, affine=False, dtype=torch.float64).eval(), network()
    x = model(norm(IMAGES))
    loss = loss_of(x, LABELS, TripletMargin(1.0, reduction="sum"), BatchHard(), None, None)
    loss.backward()
    torch.testing.assert_close(sum(seen["cached"]["loss"] for seen in ranks), loss.detach())
    for seen in ranks:
        assert seen["cached"]["columns"] == 12
        check_same(seen["cached"]["grads"], gradients(model))


def test_a_cached_step_under_ddp_starts_from_rank_0_s_buffers_and_updates_them_once(ranks):
    for r, seen in enumerate(ranks):
        mean, count = seen["cached"]["buffers"]
        expected = torch.zeros(4, dtype=torch.float64)  # rank 0's; rank 1 began with ones
        for images, _ in chunks_of(r):
            expected = 0.9 * expected + 0.1 * images.mean(0)
        torch.testing.assert_close(mean, expected)
        assert count == 2


def test_a_memory_of_what_was_gathered_is_the_same_on_all_ranks(ranks):
    alone = CrossBatchMemory(9, 4)
    alone.update(IMAGES, LABELS)
    for state, (embeddings, labels, ids) in (seen["memory"] for seen in ranks):
        loaded = CrossBatchMemory(9, 4)
        loaded.load_state_dict(state)
        for got, expected in zip(loaded.columns(), alone.columns(), strict=True):
            assert torch.equal(got, expected) if expected is not None else got is None
        assert torch.equal(embeddings, IMAGES[3:].float())
        assert torch.equal(labels, LABELS[3:])
        assert ids.tolist() == list(range(3, 12))


def test_relations_of_several_labels_a_row_are_mined_across_ranks(ranks):
    whole = BatchHard(relation=CrossGroup())(IMAGES, CAMERAS)
    found = [torch.cat(parts) for parts in zip(*(seen["cameras"] for seen in ranks), strict=True)]
    assert len(whole.anchor)
    assert all(torch.equal(part, index) for part, index in zip(found, whole, strict=True))


def test_ranks_that_differ_are_refused_on_every_rank(ranks):
    expected = {
        "ids": "3 × float32 with ids",
        "dimension": "4 × float32",
        "precision": "3 × float64",
        "graph": "3 × float32 with graph",
        "labels": "3 × float32 with 2 labels a row",
    }
    for seen in ranks:
        assert seen["refused"] == {
            name: f"gather(embeddings='{shown} on rank 1'): expected 3 × float32, as on rank 0"
            for name, shown in expected.items()
        }


def test_fp16_and_bf16_embeddings_are_gathered_and_their_gradient_summed(ranks):
    for seen in ranks:
        for (dtype, labels, grad), expected in zip(
            seen["half"], (torch.float16, torch.bfloat16), strict=True
        ):
            assert dtype == grad.dtype == expected
            assert labels == [0, 0, 0]
            assert (grad == 3 * 2**-7).all()


def test_a_second_derivative_through_gathered_columns_is_refused(ranks):
    for seen in ranks:
        assert seen["twice"].startswith("gather(create_graph=True): expected False, since the gradient that")


def test_embeddings_that_are_no_rows_of_floats_are_refused():
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"gather\(embeddings='torch.int64 of shape \(2, 3\)'"),
    ):
        gather(torch.ones(2, 3).long(), torch.arange(2))
    with unchecked(), pytest.raises(ValueError, match=r"shape \(3,\)'\): expected floats of shape \[n, d\]"):
        gather(torch.ones(3), torch.arange(3))
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"gather\(labels='shape \(3,\)'\): expected shape \("),
    ):
        gather(torch.ones(2, 3), torch.arange(3))
    with pytest.raises(ValueError, match=r"gather\(ids='torch.float32'\): expected a tensor of whole num"):
        gather(torch.ones(2, 3), torch.arange(2), torch.ones(2))
