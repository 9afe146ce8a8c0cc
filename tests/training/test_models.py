"""Deep Ranking's network against its equations as loops; the linear map against the distance it learns."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from tercet.pairwise.distances import Mahalanobis, cosine, euclidean, exact
from tercet.training.models import DeepRankingNet, EmbeddingHead
from tests.helpers import unchecked

torch.set_num_threads(1)


def images(n, c=3, h=20, w=20, seed=0):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


def backbone(channels=3, out=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride=2), nn.BatchNorm2d(out), nn.AdaptiveAvgPool2d(1))


def small_net(size=20, channels=3, **options):
    options = {"embedding_size": 7, "filters": 4, **options}
    return DeepRankingNet(backbone(channels), image_size=size, channels=channels, **options)


# ── the oracle: loops over pixels, padding by index ──────────────────────────────────────────────────────


def subsampled(image, factor):
    """[c, h, w]: means of blocks, of what there is of them."""
    c, h, w = image.shape
    rows, columns = range(0, h, factor), range(0, w, factor)
    return np.array(
        [[[image[k, i : i + factor, j : j + factor].mean() for j in columns] for i in rows] for k in range(c)]
    )


def windows(side, size, stride):
    """For each of ⌈side / stride⌉ outputs, the (place in the window, place in the image) that exist."""
    out = math.ceil(side / stride)
    before = max((out - 1) * stride + size - side, 0) // 2
    starts = [o * stride - before for o in range(out)]
    return [[(t, s + t) for t in range(size) if 0 <= s + t < side] for s in starts]


def convolved(image, weight, bias, stride):
    f, size = len(weight), weight.shape[2]
    across = windows(image.shape[1], size, stride), windows(image.shape[2], size, stride)
    out = np.zeros((f, len(across[0]), len(across[1])))
    for y, rows in enumerate(across[0]):
        for x, columns in enumerate(across[1]):
            out[:, y, x] = bias
            for (a, i), (b, j) in ((r, q) for r in rows for q in columns):
                out[:, y, x] += weight[:, :, a, b] @ image[:, i, j]
    return out


def pooled(image, size, stride):
    across = windows(image.shape[1], size, stride), windows(image.shape[2], size, stride)
    return np.array(
        [
            [
                [max(plane[i, j] for _, i in rows for _, j in columns) for columns in across[1]]
                for rows in across[0]
            ]
            for plane in image
        ]
    )


def unit(x):
    length = math.sqrt((x**2).sum())
    return x / length if length else x


def by_hand(net, image):
    """The embedding of one image; the backbone alone is torch's."""
    paths = [unit(net.backbone(image[None]).double().numpy().ravel())]
    pixels = image.double().numpy()
    for convolution, factor, size, stride in zip(net.coarse, (4, 8), (3, 7), (4, 2), strict=True):
        weight, bias = (v.detach().double().numpy() for v in (convolution.weight, convolution.bias))
        seen = convolved(subsampled(pixels, factor), weight, bias, 4)
        paths.append(unit(pooled(seen, size, stride).ravel()))
    weight, bias = (v.detach().double().numpy() for v in (net.embedding.weight, net.embedding.bias))
    return unit(weight @ np.concatenate(paths) + bias)


@pytest.mark.parametrize(
    ("h", "w", "channels"), [(20, 20, 3), (37, 70, 1), (8, 8, 3), (1, 1, 2), (129, 33, 1)]
)
@torch.no_grad()
def test_the_net_equals_its_equations(h, w, channels):
    net = DeepRankingNet(
        backbone(channels) if min(h, w) > 2 else nn.Identity(),
        image_size=(h, w),
        channels=channels,
        embedding_size=7,
        filters=4,
    ).eval()
    assert net.features[1:] == (4 * -(-h // 64) * -(-w // 64),) * 2
    batch = images(2, channels, h, w)
    for image, embedding in zip(batch, net(batch), strict=True):
        assert np.allclose(embedding.numpy(), by_hand(net, image), atol=1e-5)


def test_the_paper_s_sizes():
    seen = []
    net = DeepRankingNet(backbone(), image_size=225)
    for convolution in net.coarse:
        convolution.register_forward_hook(lambda module, given, result: seen.append(tuple(result.shape)))
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 225, 225)).shape == (1, 4096)
    assert seen == [(1, 96, 15, 15), (1, 96, 8, 8)]
    assert net.features == (5, 96 * 4 * 4, 96 * 4 * 4)


def test_the_coarse_paths_have_weights_of_their_own():
    first, second = small_net().coarse
    assert first.weight is not second.weight
    assert not torch.equal(first.weight, second.weight)


def test_embeddings_have_length_one_and_every_weight_learns():
    net = small_net()
    embeddings = net(images(4))
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(4))
    (embeddings[0] - embeddings[1]).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(layer.weight.grad.abs().sum() > 0 for layer in (*net.coarse, net.embedding, net.backbone[0]))


@pytest.mark.parametrize("shape", [(5,), (5, 1, 1), (5, 2, 3)])
def test_backbones_of_any_shape(shape):
    class Reshaped(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, : math.prod(shape)].reshape(-1, *shape)

    net = DeepRankingNet(Reshaped(), image_size=20, embedding_size=7, filters=4)
    assert net.features[0] == math.prod(shape)
    assert net(images(3)).shape == (3, 7)
    assert net(images(0)).shape == (0, 7)


def test_asking_the_backbone_leaves_it_as_it_was():
    asked = backbone()
    asked[1].eval()
    asked.train()
    asked[1].eval()
    before, state = copy.deepcopy(asked.state_dict()), torch.random.get_rng_state()
    DeepRankingNet(asked, image_size=20, embedding_size=7, filters=4)
    assert [module.training for module in asked.modules()] == [True, True, False, True]
    assert all(torch.equal(before[name], value) for name, value in asked.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_backbone_need_not_be_asked():
    class Unready(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x.flatten(1)[:, :6]

    unready = Unready()
    net = DeepRankingNet(unready, image_size=20, embedding_size=7, filters=4, backbone_features=6)
    assert unready.calls == 0
    assert net(images(2)).shape == (2, 7)


def test_first_weights_are_a_function_of_the_seed():
    state = torch.random.get_rng_state()
    nets = [small_net(seed=seed).state_dict() for seed in (3, 3, 4)]
    heads = [EmbeddingHead(6, 4, seed=seed).L for seed in (3, 3, 4)]
    torch.random.set_rng_state(state)
    EmbeddingHead(6, 4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
    assert not torch.equal(nets[0]["embedding.weight"], nets[2]["embedding.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    for name, inputs in (("coarse.0.weight", 3 * 64), ("embedding.weight", 5 + 4 + 4)):
        largest = nets[0][name].abs().max()
        assert 0.8 / math.sqrt(inputs) < largest <= 1 / math.sqrt(inputs)


# ── modes and precisions ─────────────────────────────────────────────────────────────────────────────────


def test_train_and_eval_reach_the_backbone():
    net, batch = small_net(), images(4)
    assert not torch.equal(net.train()(batch), net.eval()(batch))
    assert torch.allclose(net(batch)[:2], net(batch[:2]), atol=1e-6)  # in eval images do not meet


@pytest.mark.parametrize("make", [small_net, lambda: nn.Sequential(nn.Flatten(), EmbeddingHead(1200, 7))])
def test_bfloat16_autocast(make):
    net = make().eval()
    expected = net(images(4))
    with torch.autocast("cpu", torch.bfloat16):
        found = net(images(4))
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(4), atol=1e-5)
    assert (found * expected).sum(1).min() > 0.99
    assert not torch.equal(found, expected)
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_net_of_another_precision(dtype):
    net = small_net().eval()
    expected = net(images(2))
    found = net.to(dtype)(images(2).to(dtype))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (found * expected).sum(1).min() > 0.99
    assert small_net_of(dtype).features == net.features


def small_net_of(dtype):
    """A net built on a backbone that takes images of that precision only."""
    return DeepRankingNet(backbone().to(dtype), image_size=20, embedding_size=7, filters=4)


def test_state_dict_round_trip_and_copies():
    net, batch = small_net(seed=1).eval(), images(3)
    other = small_net(seed=2).eval()
    other.load_state_dict(net.state_dict())
    for same in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(same(batch), net(batch))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_net_is_one_graph():
    # The eager backend traces as every backend does, without a compiler to call.
    with unchecked():
        net = small_net().eval()
        traced = torch.compile(net, fullgraph=True, backend="eager", dynamic=True)
        for n in (3, 5):
            assert torch.allclose(traced(images(n)), net(images(n)), atol=1e-6)
        head = EmbeddingHead(6, 4)
        assert torch.equal(
            torch.compile(head, fullgraph=True, backend="eager")(torch.eye(6)), head(torch.eye(6))
        )


def test_zeros_have_no_direction_and_no_nan():
    net = DeepRankingNet(nn.Flatten(), image_size=20, embedding_size=7, filters=4)
    with torch.no_grad():
        for layer in (*net.coarse, net.embedding):
            layer.bias.zero_()
    batch = torch.cat([torch.zeros(1, 3, 20, 20), images(1)]).requires_grad_()
    embeddings = net(batch)
    assert torch.equal(embeddings[0], torch.zeros(7))
    (embeddings**2 + embeddings).sum().backward()
    assert batch.grad.isfinite().all()
    assert not batch.grad[0].any()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    head = EmbeddingHead(5, 3)
    x = torch.zeros(2, 5, requires_grad=True)
    head(x).sum().backward()
    assert not x.grad.any()
    assert not head.linear.weight.grad.any()


# ── the linear map ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("out", [2, 5, 9])
def test_the_head_learns_a_mahalanobis_distance(out):
    head = EmbeddingHead(5, out, normalize=False).double()
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mahalanobis = Mahalanobis(head.L)
    prepared = mahalanobis.prepare(x)
    after = exact(euclidean, head(x), head(x)).detach()
    assert torch.allclose(mahalanobis.tile(prepared, prepared), after, atol=1e-9)
    m = (head.L @ head.L.T).detach()
    for i in range(8):
        for j in range(8):
            step = x[i] - x[j]
            assert math.isclose(float(step @ m @ step), float(after[i, j]) ** 2, abs_tol=1e-9)
    assert torch.linalg.eigvalsh(m).min() > -1e-12


def test_the_head_trains_what_the_distance_trains():
    head = EmbeddingHead(5, 3, normalize=False)
    L = nn.Parameter(head.L.detach().clone())
    mahalanobis, x = Mahalanobis(L), torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    euclidean.paired(head(x[:3]), head(x[3:])).sum().backward()
    prepared = mahalanobis.prepare(x)
    mahalanobis.paired(prepared[:3], prepared[3:]).sum().backward()
    assert torch.allclose(head.linear.weight.grad.T, L.grad, atol=1e-6)


def test_the_head_normalises_and_flattens():
    head, plain = EmbeddingHead(6, 4), EmbeddingHead(6, 4, normalize=False)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(head(x), cosine.prepare(plain(x)))
    assert torch.equal(head(x), head(x[:, :, None, None]))
    assert torch.allclose(head(x).norm(dim=1), torch.ones(3))
    assert [name for name, _ in head.named_parameters()] == ["linear.weight"]


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 20, 21), (2, 1, 20, 20), (3, 20, 20), (2, 3, 224, 224)],
    ids=lambda shape: str(list(shape)),
)
def test_images_that_the_net_was_not_built_for(shape):
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"DeepRankingNet\(images='shape .*expected \[n, 3, 20, 20\], as"),
    ):
        small_net()(torch.zeros(shape))


class Gives(nn.Module):
    """A backbone that gives whatever it holds."""

    def __init__(self, *given):
        super().__init__()
        self.given = list(given)

    def forward(self, x):
        return self.given.pop(0)


REFUSED = [
    ({"backbone": torch.relu}, r"backbone='builtin.*'\): expected a torch.nn.Module"),
    ({"backbone": Gives((1, 2))}, r"backbone='tuple'\): expected \[1, d\] or \[1, d, 1, 1\] for 1 images"),
    ({"backbone": Gives(torch.zeros(3))}, r"backbone='it gave shape \(3,\)'\): expected \[1, d\]"),
    ({"backbone": Gives(torch.zeros(2, 3))}, r"backbone='it gave shape \(2, 3\)'\): expected \[1, d\]"),
    ({"image_size": 0}, r"image_size=0\): expected a whole number of at least 1"),
    (
        {"image_size": (20, 20, 3)},
        r"image_size=\(20, 20, 3\)\): expected a number of pixels or \(height, width",
    ),
    ({"image_size": 20.5}, r"image_size=20.5\): expected a whole number"),
    ({"embedding_size": 0}, r"embedding_size=0\): expected a whole number of at least 1"),
    ({"channels": 0}, r"channels=0\): expected a whole number of at least 1"),
    ({"filters": 0}, r"filters=0\): expected a whole number of at least 1"),
    ({"backbone_features": 0}, r"backbone_features=0\): expected a whole number of at least 1"),
    ({"seed": -1}, r"seed=-1\): expected a whole number of at least 0"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_options_that_make_no_sense(options, said):
    with unchecked(), pytest.raises(ValueError, match=r"DeepRankingNet\(" + said):
        DeepRankingNet(**{"backbone": backbone(), "image_size": 20, **options})


def test_a_backbone_that_changes_its_mind():
    net = DeepRankingNet(Gives(torch.zeros(1, 4), torch.zeros(2, 5)), image_size=20)
    with pytest.raises(
        ValueError, match=r"backbone='it gave 5'\): expected 4 features, as it was built with"
    ):
        net(images(2))


def test_what_the_head_refuses():
    for options, name in (((0, 3), "in_features"), ((3, 0), "out_features")):
        with pytest.raises(
            ValueError, match=rf"EmbeddingHead\({name}=0\): expected a whole number of at least 1"
        ):
            EmbeddingHead(*options)
    with pytest.raises(
        ValueError, match=r"EmbeddingHead\(features='shape \(2, 4\)'\): expected 3 numbers for each"
    ):
        EmbeddingHead(3, 2)(torch.zeros(2, 4))
