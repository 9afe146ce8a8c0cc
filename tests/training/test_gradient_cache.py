import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from tercet.core.indices import References
from tercet.losses.pair import Contrastive
from tercet.losses.triplet import TripletMargin
from tercet.metrics.mining_stats import describe
from tercet.miners.batch_all import BatchAll
from tercet.miners.hard import BatchHard, SemiHard
from tercet.pairwise.distances import Mahalanobis
from tercet.training.distributed import gather
from tercet.training.gradient_cache import CachedStep, _Chunk, cached_backward
from tercet.training.memory import CrossBatchMemory
from tests.helpers import double_points as points
from tests.helpers import unchecked

IMAGES, LABELS = points(14), torch.arange(14) % 4
IDS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 1, 12, 13])  # images 0 and 1 come twice


def filled(module, dtype=torch.float64):
    """The same weights on every call, without the global generator."""
    module.to(dtype)
    with torch.no_grad():
        for i, weight in enumerate(module.parameters()):
            weight.copy_(torch.sin(torch.arange(weight.numel()) * 1.7 + i).view_as(weight))
    return module


def network(*between, dtype=torch.float64):
    return filled(nn.Sequential(nn.Linear(4, 6), *between, nn.Tanh(), nn.Linear(6, 3)), dtype)


class Proxies(nn.Module):
    """A head with parameters of its own: the cross entropy to a learned point a class."""

    def __init__(self):
        super().__init__()
        self.points = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))

    def forward(self, embeddings, labels):
        return nn.functional.cross_entropy(embeddings @ self.points.T, labels)


class Beta(nn.Module):
    """A head that learns its margin, over mined triplets."""

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, embeddings, labels, mined):
        a, p, n = (embeddings[rows] for rows in mined)
        d_ap, d_an = ((a - x).norm(dim=1) for x in (p, n))
        return (torch.relu(1 + d_ap - self.beta) + torch.relu(1 - d_an + self.beta)).sum()


HEADS = {
    "triplet": lambda: TripletMargin(1.0),
    "swap": lambda: TripletMargin(1.0, swap=True, reduction="sum"),
    "contrastive": lambda: Contrastive(3.0),
    "mahalanobis": lambda: TripletMargin(1.0, distance=Mahalanobis(nn.Parameter(torch.eye(3)))),
    "proxies": Proxies,
    "beta": Beta,
}
MINERS = {"none": None, "hard": BatchHard(), "semi-hard": SemiHard(0.5), "all": BatchAll(margin=1.0)}
COMBINED = [
    (head, miner)
    for head in HEADS
    for miner in MINERS
    if not (head == "proxies" and miner != "none") and not (head == "beta" and miner == "none")
]


def chunked(size, *parts):
    return list(zip(*(part.split(size) for part in parts), strict=True))


def gradients(*modules):
    return [weight.grad for module in modules for weight in module.parameters()]


def in_one_piece(model, chunks, head, miner=None, ids=None, ref=None):
    """The plain step: each chunk embedded with its graph, then one loss and one backward over all."""
    x = torch.cat([model(images) for images, *_ in chunks])
    labels = torch.cat([chunk[1] for chunk in chunks])
    more = {key: value for key, value in {"ids": ids, "ref": ref}.items() if value is not None}
    if miner is None:
        loss = head(x, labels, **more)
    else:
        columns = {} if ref is None else {"ref": ref}
        loss = head(x, labels, miner(x, labels, **more), **columns)
    with torch.autocast(x.device.type, enabled=False):
        loss.backward()
    return loss.detach(), x.detach()


def check_same_step(cached, plain, rtol=1e-9):
    """Loss, embeddings and every gradient: (step, modules) of the one, (loss, x, modules) of the other."""
    (step, *modules), (loss, x, *others) = cached, plain
    assert isinstance(step, CachedStep)
    assert not step.loss.requires_grad
    assert not step.embeddings.requires_grad
    torch.testing.assert_close(step.loss, loss, rtol=rtol, atol=rtol)
    torch.testing.assert_close(step.embeddings, x, rtol=rtol, atol=rtol)
    grads, expected = gradients(*modules), gradients(*others)
    assert any(grad.abs().sum() > 0 for grad in expected if grad is not None)
    for grad, own in zip(grads, expected, strict=True):
        assert (grad is None) == (own is None)
        if grad is not None:
            torch.testing.assert_close(grad, own, rtol=rtol, atol=rtol)


def check_same(chunks, make_model, make_head, miner=None, rtol=1e-9, plain_chunks=None, **more):
    """The cached step and the plain one, each on its own model and head; what the cached one gave."""
    model, head, other, other_head = make_model(), filled(make_head()), make_model(), filled(make_head())
    step = cached_backward(model, chunks, head, miner=miner, **more)
    plain = in_one_piece(other, plain_chunks or chunks, other_head, miner, **more)
    check_same_step((step, model, head), (*plain, other, other_head), rtol)
    return step, model, other


@pytest.mark.parametrize("size", [1, 4, 5, 14, 100])
@pytest.mark.parametrize(("head", "miner"), COMBINED)
def test_the_gradients_are_those_of_the_batch_in_one_piece(head, miner, size):
    """Case: a gradient cache with silently wrong gradients."""
    chunks, whole = chunked(size, IMAGES, LABELS), [(IMAGES, LABELS)]
    step, _, _ = check_same(chunks, network, HEADS[head], MINERS[miner], plain_chunks=whole)
    assert step.labels.tolist() == LABELS.tolist()
    assert (step.mined is None) == (miner == "none")
    assert step.ids is step.ref is None


def test_the_check_of_a_step_can_fail():
    model, head = network(), TripletMargin(1.0)
    step = cached_backward(model, chunked(5, IMAGES, LABELS), head)
    other = network()
    loss, x = in_one_piece(other, [(IMAGES, LABELS)], head)
    check_same_step((step, model), (loss, x, other))
    weights = list(other.parameters())
    for spoil in (lambda: weights[0].grad.mul_(1.01), lambda: setattr(weights[1], "grad", None)):
        spoil()
        with pytest.raises(AssertionError):
            check_same_step((step, model), (loss, x, other))
        other.zero_grad()
        in_one_piece(other, [(IMAGES, LABELS)], head)
    for wrong in ((loss * 1.01, x), (loss, x + 0.01)):
        with pytest.raises(AssertionError):
            check_same_step((step, model), (*wrong, other))


def test_ids_tell_which_rows_are_one_image():
    chunks = chunked(4, IMAGES, LABELS, IDS)
    for miner in (None, BatchHard()):
        model, other, head = network(), network(), TripletMargin(1.0)
        step = cached_backward(model, chunks, head, miner=miner)
        plain = in_one_piece(other, [(IMAGES, LABELS)], head, miner, ids=IDS)
        check_same_step((step, model), (*plain, other))
        assert step.ids.tolist() == IDS.tolist()


@pytest.mark.parametrize("miner", MINERS)
def test_the_columns_may_be_references(miner):
    ref = References(points(9, 3, seed=5), torch.arange(9) % 5)
    step, _, _ = check_same(chunked(4, IMAGES, LABELS), network, HEADS["triplet"], MINERS[miner], ref=ref)
    assert torch.equal(step.ref.embeddings, ref.embeddings)


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("with_ids", [False, True])
def test_the_columns_may_be_made_of_the_embeddings(miner, with_ids):
    memory = CrossBatchMemory(6, 3, dtype=torch.float64)
    old = points(5, 3, seed=6), torch.arange(5) % 4, torch.arange(5) if with_ids else None
    memory.update(*old)

    def columns(embeddings, labels, ids):
        ids, batch = gather(embeddings, labels, ids)
        return ids, memory.columns(batch)

    model, other, head = network(), network(), TripletMargin(1.0)
    chunks = chunked(4, IMAGES, LABELS, *([IDS] if with_ids else []))
    step = cached_backward(model, chunks, head, miner=MINERS[miner], ref=columns)
    x = other(IMAGES)
    ids, ref = columns(x, LABELS, IDS if with_ids else None)
    mined = MINERS[miner] and MINERS[miner](x, LABELS, ids=ids, ref=ref)
    loss = head(x, LABELS, mined, ids=ids, ref=ref)
    loss.backward()
    check_same_step((step, model), (loss.detach(), x.detach(), other))
    assert torch.equal(step.ids, ids)
    assert torch.equal(step.ref.embeddings, ref.embeddings)
    assert not step.ref.embeddings.requires_grad
    memory.update(step.embeddings, step.labels, step.ids)
    assert torch.equal(memory.columns().embeddings, step.embeddings[-6:])
    if step.mined is not None:
        assert describe(step.embeddings, step.labels, step.mined, ref=step.ref)["mined"] == mined.count


def test_gradients_add_to_those_that_are_there():
    once, twice, head = network(), network(), TripletMargin(1.0)
    chunks = chunked(5, IMAGES, LABELS)
    cached_backward(once, chunks, head)
    for _ in range(2):
        cached_backward(twice, iter(chunks), head)
    for grad, double in zip(gradients(once), gradients(twice), strict=True):
        torch.testing.assert_close(2 * grad, double)


def test_nothing_to_mine_gives_a_loss_of_0_and_gradients_of_0():
    chunks = chunked(5, IMAGES, torch.arange(14))  # no positives
    for miner in (None, BatchHard()):
        model = network()
        step = cached_backward(model, chunks, TripletMargin(1.0), miner=miner)
        assert step.loss.item() == 0
        assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in gradients(model))


def test_a_chunk_may_be_empty():
    chunks = [(IMAGES[:0], LABELS[:0]), (IMAGES, LABELS), (IMAGES[:0], LABELS[:0])]
    check_same(chunks, network, HEADS["triplet"], plain_chunks=[(IMAGES, LABELS)])


@contextmanager
def generator_at(seed):
    """The global generator at a seed, and afterwards where it was."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        yield


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


@pytest.mark.parametrize("kind", ["dropout", "noise"])
def test_the_second_pass_draws_the_same_numbers_and_leaves_the_generator_as_one_pass_does(kind):
    def make():
        return network(nn.Dropout(0.4) if kind == "dropout" else Noise())

    chunks, head = chunked(5, IMAGES, LABELS), TripletMargin(1.0)
    with generator_at(7):
        model = make()
        step = cached_backward(model, chunks, head, miner=BatchHard())
        after = torch.get_rng_state()
    with generator_at(7):
        other = make()
        plain = in_one_piece(other, chunks, head, BatchHard())
        assert torch.equal(torch.get_rng_state(), after)
    check_same_step((step, model), (*plain, other))
    with generator_at(8):
        assert not torch.equal(cached_backward(make(), chunks, head).loss, step.loss)


def test_what_a_head_draws_is_drawn_once():
    class Dropped(TripletMargin):
        def forward(self, embeddings, labels, mined=None):
            return super().forward(nn.functional.dropout(embeddings, 0.3), labels, mined)

    chunks = chunked(5, IMAGES, LABELS)
    with generator_at(7):
        model = network(nn.Dropout(0.4))
        step = cached_backward(model, chunks, Dropped(1.0))
        after = torch.get_rng_state()
    with generator_at(7):
        other = network(nn.Dropout(0.4))
        plain = in_one_piece(other, chunks, Dropped(1.0))
        assert torch.equal(torch.get_rng_state(), after)
    check_same_step((step, model), (*plain, other))


class Tracked(nn.Module):
    """Keeps a mean of what it sees, in a buffer that forward replaces and normalises by."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6, dtype=torch.float64))

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return x - self.mean


@pytest.mark.parametrize("kind", ["batch norm", "cumulative", "spectral norm", "replaced buffer"])
def test_running_statistics_are_updated_once_and_both_passes_start_from_the_same(kind):
    makers = {
        "batch norm": lambda: network(nn.BatchNorm1d(6)),
        "cumulative": lambda: network(nn.BatchNorm1d(6, momentum=None)),
        "replaced buffer": lambda: network(Tracked()),
    }

    def spectral():
        with generator_at(0):
            model = network(filled(nn.Linear(6, 6)))
            torch.nn.utils.parametrizations.spectral_norm(model[1])
        return model

    chunks = chunked(5, IMAGES, LABELS)
    _, model, other = check_same(chunks, makers.get(kind, spectral), HEADS["triplet"], BatchHard())
    buffers, expected = dict(model.named_buffers()), dict(other.named_buffers())
    assert buffers
    for name in expected:
        torch.testing.assert_close(buffers[name], expected[name])


def test_buffers_are_put_back_when_the_loss_cannot_be_taken():
    model = network(nn.BatchNorm1d(6))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(ValueError, match="expected finite"):
        cached_backward(model, [(IMAGES * torch.nan, LABELS)], TripletMargin())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_in_evaluation_mode_batch_norm_is_that_of_the_whole_batch():
    make = lambda: network(nn.BatchNorm1d(6)).eval()  # noqa: E731
    check_same(chunked(5, IMAGES, LABELS), make, HEADS["triplet"], plain_chunks=[(IMAGES, LABELS)])


def test_a_frozen_model_trains_its_head_and_its_statistics_move_once():
    make = lambda: network(nn.BatchNorm1d(6)).requires_grad_(False)  # noqa: E731
    _, model, other = check_same(chunked(5, IMAGES, LABELS), make, Proxies)
    torch.testing.assert_close(model[1].running_mean, other[1].running_mean)
    assert model[1].num_batches_tracked == 3


@pytest.mark.parametrize("where", ["around the step", "inside the model"])
def test_autocast_runs_both_passes_in_bf16(where):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(dtype=torch.float32)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x)

    make = Mixed if where == "inside the model" else lambda: network(dtype=torch.float32)
    chunks, head = chunked(5, IMAGES.float(), LABELS), TripletMargin(1.0)
    model, other, around = make(), make(), where == "around the step"
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        step = cached_backward(model, chunks, head, miner=BatchHard())
    # Were cast weights shared by the chunks, the plain step would add up their gradients in 16 bits.
    with torch.autocast("cpu", torch.bfloat16, enabled=around, cache_enabled=False):
        plain = in_one_piece(other, chunks, head, BatchHard())
    check_same_step((step, model), (*plain, other), rtol=1e-6)
    assert step.embeddings.dtype == torch.bfloat16
    assert step.loss.dtype == torch.float32
    assert all(grad.dtype == torch.float32 for grad in gradients(model))


def test_what_a_model_or_a_head_does_in_float32_has_its_gradient_in_float32_too():
    class Exact(nn.Linear):
        def forward(self, x, *labels):
            with torch.autocast("cpu", enabled=False):
                out = super().forward(x.float())
            return nn.functional.cross_entropy(out, *labels) if labels else out

    def make():
        return filled(nn.Sequential(Exact(4, 6), nn.Tanh(), Exact(6, 3)), torch.float32), filled(
            Exact(3, 4), torch.float32
        )

    (model, head), (other, other_head), chunks = make(), make(), chunked(5, IMAGES.float(), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        step = cached_backward(model, chunks, head)
        plain = in_one_piece(other, chunks, other_head)
    check_same_step((step, model, head), (*plain, other, other_head), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_models_in_every_precision(dtype):
    make = lambda: network(dtype=dtype)  # noqa: E731
    model, other = make(), make()
    chunks, head = chunked(5, IMAGES.to(dtype), LABELS), TripletMargin(1.0)
    step, plain = cached_backward(model, chunks, head), in_one_piece(other, chunks, head)
    check_same_step((step, model), (*plain, other), rtol=0.05 if dtype.itemsize == 2 else 1e-5)


def test_backward_may_scale_the_loss():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model, other, head = network(), network(), TripletMargin(1.0)
    chunks = chunked(5, IMAGES, LABELS)
    step = cached_backward(model, chunks, head, backward=lambda loss: scaler.scale(loss).backward())
    cached_backward(other, chunks, head, backward=lambda loss: (loss * 1024).backward())
    loss, _ = in_one_piece(network(), chunks, head)
    torch.testing.assert_close(step.loss, loss)
    for grad, own in zip(gradients(model), gradients(other), strict=True):
        assert torch.equal(grad, own)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.unscale_(optimizer)
    other.zero_grad()
    in_one_piece(other, chunks, head)
    for grad, own in zip(gradients(model), gradients(other), strict=True):
        torch.testing.assert_close(grad, own)


class Kept:
    """How many numbers autograd keeps for backward, now and at most, parameters left out."""

    def __init__(self, model):
        self.own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        self.now = self.most = 0

    def pack(self, tensor):
        class Box:
            pass

        box = Box()
        box.tensor = tensor.detach() if tensor.untyped_storage().data_ptr() in self.own else tensor
        if tensor.untyped_storage().data_ptr() not in self.own:
            self.now += tensor.numel()
            self.most = max(self.most, self.now)
            weakref.finalize(box, self.drop, tensor.numel())
        return box

    def drop(self, count):
        self.now -= count


def most_kept(model, run):
    kept = Kept(model)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda box: box.tensor):
        run()
    assert kept.now == 0
    return kept.most


def wide():
    return filled(nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)))


def test_no_more_than_one_chunk_s_graph_is_alive():
    images, labels = points(40), torch.arange(40) % 4
    head, model = TripletMargin(1.0), wide()
    one = most_kept(model, lambda: in_one_piece(model, [(images[:4], labels[:4])], head))
    all_at_once = most_kept(model, lambda: in_one_piece(model, [(images, labels)], head))
    over_all = most_kept(model, lambda: cached_backward(model, chunked(4, images, labels), head))
    embeddings = model(images).detach().requires_grad_()
    loss = most_kept(model, lambda: head(embeddings, labels).backward())
    assert all_at_once > 8 * one
    assert over_all <= max(one, loss)


def test_gradients_are_exchanged_once_with_the_last_chunk():
    class Parallel(nn.Module):
        """Says which forward passes with a graph ran under `no_sync`, as DDP would see them."""

        def __init__(self):
            super().__init__()
            self.inner, self.alone, self.seen = network(), False, []

        @contextmanager
        def no_sync(self):
            self.alone = True
            yield
            self.alone = False

        def forward(self, x):
            out = self.inner(x)
            if torch.is_grad_enabled():
                self.seen.append(("forward", self.alone))
                out.register_hook(lambda grad: self.seen.append(("backward", self.alone)))
            return out

    model = Parallel()
    cached_backward(model, chunked(5, IMAGES, LABELS), TripletMargin(1.0))
    assert model.seen == [(way, alone) for alone in (True, True, False) for way in ("forward", "backward")]


def test_images_and_labels_are_moved_to_the_device():
    chunks = [(IMAGES, LABELS)]
    compare_to = cached_backward(network(), chunks, TripletMargin(1.0))
    assert torch.equal(
        cached_backward(network(), chunks, TripletMargin(1.0), device="cpu").loss, compare_to.loss
    )
    chunk = _Chunk(nn.Flatten(), IMAGES, "cpu")
    chunk.device = "meta"
    assert chunk._images().device.type == "meta"


def test_images_may_be_whatever_the_model_takes():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, images):
            return self.inner(images["pixels"])

    model, other = Named(), network()
    chunks = chunked(5, IMAGES, LABELS)
    step = cached_backward(model, [({"pixels": x}, y) for x, y in chunks], TripletMargin(1.0), device="cpu")
    check_same_step((step, model), (*in_one_piece(other, chunks, TripletMargin(1.0)), other))


@pytest.mark.parametrize("source", ["numpy", "a generator of its own", "its images"])
def test_a_model_that_gives_other_embeddings_the_second_time_is_refused(source):
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.rng = network(), np.random.default_rng(0)
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x):
            if source == "its images":
                return self.inner(x.mul_(2))
            if source == "numpy":
                return self.inner(x * float(self.rng.uniform(0.5, 2)))
            return self.inner(x * torch.rand(x.shape, generator=self.generator))

    text = r"cached_backward\(model='other embeddings for chunk 0 in the second pass'\): .* global generators"
    with pytest.raises(ValueError, match=text):
        cached_backward(Moody(), chunked(5, IMAGES.clone(), LABELS), TripletMargin(1.0))


class Odd(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x):
        return self.out(x)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph:UserWarning")
def test_a_backward_that_creates_a_graph_is_refused():
    chunks = list(zip(IMAGES.split(7), LABELS.split(7), strict=True))
    text = (
        r"cached_backward\(backward='create_graph=True'\): expected a call without create_graph=True, since"
    )
    with pytest.raises(ValueError, match=text):
        cached_backward(network(), chunks, Proxies(), backward=lambda loss: loss.backward(create_graph=True))


def test_what_is_no_step_is_refused():
    model, head, chunks = network(), TripletMargin(1.0), chunked(5, IMAGES, LABELS)
    refusals = [
        (
            lambda: cached_backward(lambda x: x, chunks, head),
            r"\(model='function'\): expected an nn.Module",
        ),
        (lambda: cached_backward(model, [], head), r"\(chunks='0 chunks, 0 with rows'\): expected 1 or more"),
        (
            lambda: cached_backward(model, [(IMAGES, LABELS), (IMAGES, LABELS, IDS)], head),
            r"\(chunks='2 chunks, 1 with rows'\): expected 1 or more, all with rows or all without",
        ),
        (
            lambda: cached_backward(model, [IMAGES], head),
            r"\(chunks='Tensor of 14'\): expected \(images, labels\) or \(images, labels, rows\) in each",
        ),
        (
            lambda: cached_backward(model, [(IMAGES,)], head),
            r"\(chunks='tuple of 1'\): expected \(imag",
        ),
        (lambda: cached_backward(model, [3], head), r"\(chunks=3\): expected \(images, labels\)"),
        (
            lambda: cached_backward(model, [(IMAGES, LABELS[:3])], head),
            r"\(labels='shape \(3,\)'\): expected shape \(14,\)",
        ),
        (
            lambda: cached_backward(model, [(IMAGES, LABELS, IDS.double())], head),
            r"\(rows='torch.float64'\): expected a tensor of whole numbers",
        ),
        (
            lambda: cached_backward(Odd(lambda x: x[0]), chunks, head),
            r"\(model='shape \(4,\)'\): expected a model that gives a tensor \[n, d\]",
        ),
        (
            lambda: cached_backward(Odd(lambda x: (x, x)), chunks, head),
            r"\(model='tuple'\): expected a",
        ),
        (
            lambda: cached_backward(model, chunks, TripletMargin(reduction="none"), miner=BatchAll()),
            r"\(head='shape \(\d+,\)'\): expected a head whose loss is a scalar",
        ),
        (
            lambda: cached_backward(model, chunks, lambda x, y: 0.0),
            r"\(head='float'\): expected a head",
        ),
    ]
    for call, text in refusals:
        with unchecked(), pytest.raises(ValueError, match=r"^cached_backward" + text):
            call()
    assert all(grad is None for grad in gradients(model))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_dropout_fp16_and_a_scaler_give_the_plain_step():
    make = lambda: network(nn.Dropout(0.4), nn.BatchNorm1d(6), dtype=torch.float32).cuda()  # noqa: E731
    head = TripletMargin(0.2, distance="cosine")
    chunks = chunked(5, normalize(IMAGES.float()), LABELS)
    on_gpu = [(images.cuda(), labels.cuda()) for images, labels in chunks]
    with torch.random.fork_rng(), torch.autocast("cuda", torch.float16, cache_enabled=False):
        torch.manual_seed(7)
        model = make()
        step = cached_backward(model, chunks, head, miner=BatchHard(), device="cuda")
        after = torch.cuda.get_rng_state()
        torch.manual_seed(7)
        other = make()
        plain = in_one_piece(other, on_gpu, head, BatchHard())
        assert torch.equal(torch.cuda.get_rng_state(), after)
    check_same_step((step, model), (*plain, other), rtol=1e-2)
