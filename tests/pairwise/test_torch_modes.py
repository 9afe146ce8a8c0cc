import jaxtyping
import pytest
import torch
from torch.autograd import forward_ad

from tercet.losses.triplet import TripletMargin
from tercet.miners.angular import AngularMiner
from tercet.miners.batch_all import BatchAll
from tercet.miners.distance_weighted import DistanceWeighted
from tercet.miners.easy_hard import EasyHard
from tercet.miners.hard import BatchHard, EasyPositive, HardestN, SemiHard
from tercet.miners.pairs import MultiSimilarityMiner, PairMargin
from tercet.miners.whole_batch import HDC, UniformHistogram
from tercet.pairwise import torch_modes
from tercet.pairwise.torch_modes import outside_graph, product_precision, with_float64
from tests.contracts.heads import HEADS
from tests.helpers import unchecked

MINERS = [
    BatchAll(margin=0.5),
    BatchAll(max_count=20),
    BatchHard(),
    SemiHard(),
    EasyHard(),
    EasyPositive(),
    HardestN(k=2),
    DistanceWeighted(),
    AngularMiner(),
    HDC(),
    UniformHistogram(),
    MultiSimilarityMiner(),
    PairMargin(),
]
LABELS = torch.arange(16) // 4


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()


def images():
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("miner", MINERS, ids=lambda miner: type(miner).__name__)
def test_a_compiled_step_mines_what_a_plain_one_does(miner, backend, monkeypatch):
    # The check of annotations, which only tests install, is no code that the compiler can trace.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    def step(x):
        embeddings = torch.nn.functional.normalize(x * 2 + 1)
        return embeddings, miner(embeddings, LABELS)

    _, expected = step(images())
    _, mined = torch.compile(step, backend=backend)(images())
    assert type(mined) is type(expected)
    assert mined.count
    assert all(torch.equal(u, v) for u, v in zip(mined, expected, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at it
def test_a_compiled_training_step_has_the_plain_gradient():
    model, miner, head = torch.nn.Linear(6, 4), BatchHard(), TripletMargin(0.5, distance="cosine")

    def step(x):
        embeddings = model(x)
        return head(embeddings, LABELS, miner(embeddings, LABELS))

    def gradient(call):
        model.zero_grad()
        loss = call(images())
        loss.backward()
        return loss, model.weight.grad.clone()

    expected = gradient(step)
    with unchecked():  # the checker's own code is not to be compiled
        torch.testing.assert_close(gradient(torch.compile(step, backend="aot_eager")), expected)
    assert expected[1].any()


def forward_mode(call, x):
    with forward_ad.dual_level():
        return call(forward_ad.make_dual(x, x))


TRANSFORMS = {
    "grad": lambda call, x: torch.func.grad(lambda x: call(x).sum())(x),
    "vmap": lambda call, x: torch.vmap(call)(x[None]),
    "jacrev": lambda call, x: torch.func.jacrev(call)(x),
    "jvp": lambda call, x: torch.func.jvp(call, (x,), (x,)),
    "forward mode": forward_mode,
}
OWNERS = {type(one).__name__: one for one in [*MINERS, *(row.head().float() for row in HEADS.values())]}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # jvp itself
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("caller", OWNERS)
def test_transforms_of_torch_func_and_forward_mode_are_refused(caller, transform):
    def call(x):
        out = OWNERS[caller](x, LABELS)
        return out if isinstance(out, torch.Tensor) else out[0]

    text = (
        rf"{caller}\(embeddings='inside torch.func or forward_ad'\): expected a call outside grad, vmap, jvp"
    )
    with unchecked(), pytest.raises(ValueError, match=text):
        TRANSFORMS[transform](call, images()[:, :4])


@pytest.mark.parametrize("name", HEADS)
def test_functional_call_gives_the_loss_of_a_call(name):
    head, x = HEADS[name].head().float(), images()[:, :4]
    parameters = dict(head.named_parameters())
    assert torch.equal(torch.func.functional_call(head, parameters, (x, LABELS)), head(x, LABELS))


def test_nothing_of_it_is_traced():
    seen = []

    @outside_graph
    def noted(x):
        seen.append(torch.compiler.is_compiling() or isinstance(x, torch._subclasses.FakeTensor))
        return inner(x)

    def inner(x):
        seen.append(torch.compiler.is_compiling())
        return (x > 0).nonzero()

    compiled = torch.compile(lambda x: noted(x * 2).sum() + 1, backend="eager")
    assert compiled(torch.tensor([1.0, -1.0, 2.0])) == 3
    assert seen == [False, False]


@pytest.fixture
def settings():
    """torch's settings of the precision of products, as they were afterwards."""
    yield
    torch.set_float32_matmul_precision("highest")  # first, since it writes the newer ones too
    for name in ("", "cuda.matmul", "mkldnn", "mkldnn.matmul"):
        place = torch.backends
        for part in filter(None, name.split(".")):
            place = getattr(place, part)
        if hasattr(place, "fp32_precision"):
            place.fp32_precision = "none"


KINDS = ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("highest", "ieee ieee ieee"), ("high", "tf32 tf32 tf32"), ("medium", "bf16 tf32 bf16")],
)
def test_the_older_setting_of_products_is_heeded(settings, precision, expected):
    torch.set_float32_matmul_precision(precision)
    found = [product_precision(kind) for kind in KINDS]
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        expected = expected.replace("bf16 tf32", "bf16 bf16")  # then nothing says what CUDA makes of it
    assert found == expected.split()


def test_tf32_that_is_allowed_on_cuda_leaves_the_processor_alone(settings):
    torch.backends.cuda.matmul.allow_tf32 = True
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        assert [product_precision(kind) for kind in KINDS] == ["ieee", "tf32", "tf32"]


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has the older setting alone"
)
@pytest.mark.parametrize(
    ("backend", "precision", "expected"),
    [
        ("cuda.matmul", "tf32", "ieee tf32 tf32"),
        ("cuda.matmul", "ieee", "ieee ieee ieee"),
        ("mkldnn.matmul", "bf16", "bf16 ieee bf16"),
        ("", "tf32", "tf32 tf32 tf32"),
    ],
)
def test_the_newer_settings_of_products_are_heeded_and_no_exception_is_caught_twice(
    settings, monkeypatch, backend, precision, expected
):
    place = torch.backends
    for part in filter(None, backend.split(".")):
        place = getattr(place, part)
    place.fp32_precision = precision
    asked = []
    older = torch.get_float32_matmul_precision
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: asked.append(1) or older())
    assert [product_precision(kind) for kind in KINDS] == expected.split()
    asked.clear()
    refused = expected != "ieee ieee ieee"
    product_precision("cpu")
    assert not (asked and refused)
    place.fp32_precision = "none"
    assert [product_precision(kind) for kind in KINDS] == ["ieee"] * 3


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("NVIDIA_TF32_OVERRIDE", "1", "ieee tf32 ieee"),
        ("NVIDIA_TF32_OVERRIDE", "0", "ieee ieee ieee"),
        ("DNNL_DEFAULT_FPMATH_MODE", "BF16", "bf16 ieee ieee"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "any", "bf16 ieee ieee"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "TF32", "tf32 ieee ieee"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT", "ieee ieee ieee"),
    ],
)
def test_precision_that_the_environment_forces_is_seen(monkeypatch, name, value, expected):
    monkeypatch.setenv(name, value)
    torch_modes.forced_precision.cache_clear()
    assert [product_precision(kind) for kind in KINDS] == expected.split()
    torch_modes.forced_precision.cache_clear()


def test_float64_is_taken_on_the_host_where_a_device_has_none(monkeypatch):
    x = torch.tensor([2.0**24, 1.0, 1.0], requires_grad=True)

    def sums(x, digits):
        return x.double().sum(), (x > 1).sum() + digits

    here = with_float64(sums, x, 2)
    monkeypatch.setattr(torch_modes, "widest_float", lambda device: torch.float32)
    there = with_float64(sums, x, 2)
    assert [v.dtype for v in here] == [torch.float64, torch.int64]
    assert [v.dtype for v in there] == [torch.float32, torch.int64]
    assert [v.item() for v in there] == [v.item() for v in here] == [2.0**24 + 2, 3]
    there[0].backward()
    assert x.grad.tolist() == [1, 1, 1]
    assert with_float64(lambda x: x.double(), x).dtype == torch.float32


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 64, 100])
@pytest.mark.parametrize("dim", [0, 1])
def test_sums_by_doubling_are_running_sums_with_their_gradient(length, dim):
    shape = (length, 3) if dim == 0 else (3, length)
    v = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    found, expected = torch_modes.sums_by_doubling(v, dim), v.cumsum(dim)
    torch.testing.assert_close(found, expected)
    weights = torch.arange(v.numel()).double().view(shape)
    grads = [torch.autograd.grad((sums * weights).sum(), v)[0] for sums in (found, expected)]
    torch.testing.assert_close(*grads)
