import pytest
import torch
from torch.autograd import forward_ad

from tercet.losses.triplet import TripletMargin
from tercet.miners.batch_all import BatchAll
from tercet.miners.distance_weighted import DistanceWeighted
from tercet.miners.hard import BatchHard, EasyPositive, HardestN, SemiHard
from tercet.miners.pairs import MultiSimilarityMiner, PairMargin
from tercet.pairwise import torch_modes
from tercet.pairwise.torch_modes import outside_graph
from tests.contracts.heads import HEADS
from tests.helpers import unchecked

MINERS = [
    BatchAll(margin=0.5),
    BatchAll(max_count=20),
    BatchHard(),
    SemiHard(),
    EasyPositive(),
    HardestN(k=2),
    DistanceWeighted(),
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
def test_a_compiled_step_mines_what_a_plain_one_does(miner, backend):
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


@pytest.mark.parametrize(("value", "forced"), [("1", True), ("0", False), (None, False)])
def test_tf32_that_the_environment_forces_is_seen(monkeypatch, value, forced):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    if value is not None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
    torch_modes.is_tf32_forced.cache_clear()
    assert torch_modes.is_tf32_forced() is forced
    torch_modes.is_tf32_forced.cache_clear()
