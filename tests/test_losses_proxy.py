import copy
import math
import random

import pytest
import reference_proxy as loops
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import unchecked
from test_losses import check_equal, check_finite, check_half_precision, check_zero, gradient_of, points
from torch import nn

from tercet.losses.proxy import ProxyAnchor, ProxyHead, ProxyNCA, SoftTriple
from tercet.losses.softmax import ArcFace, CosFace, NormalizedSoftmax
from tercet.tuples import References, Triplets

# One row a form of a head: how to make it, and the loop it must equal.
HEADS = {
    "ProxyNCA": (ProxyNCA, loops.proxy_nca, {}),
    "ProxyNCA, cold": (ProxyNCA, loops.proxy_nca, {"temperature": 0.2}),
    "ProxyNCA++": (ProxyNCA, loops.proxy_nca, {"plus_plus": True}),
    "ProxyNCA++, warm": (ProxyNCA, loops.proxy_nca, {"plus_plus": True, "temperature": 2.0}),
    "ProxyAnchor": (ProxyAnchor, loops.proxy_anchor, {}),
    "ProxyAnchor, soft": (ProxyAnchor, loops.proxy_anchor, {"margin": 0.3, "alpha": 2.0}),
    "NormalizedSoftmax": (NormalizedSoftmax, loops.normalized_softmax, {}),
    "NormalizedSoftmax, warm": (NormalizedSoftmax, loops.normalized_softmax, {"temperature": 1.5}),
    "ArcFace": (ArcFace, loops.arc_face, {}),
    "ArcFace, wide": (ArcFace, loops.arc_face, {"margin": 1.2, "scale": 3.0}),
    "ArcFace, easy": (ArcFace, loops.arc_face, {"scale": 8.0, "easy_margin": True}),
    "CosFace": (CosFace, loops.cos_face, {}),
    "CosFace, soft": (CosFace, loops.cos_face, {"margin": 0.1, "scale": 4.0}),
    "SoftTriple": (SoftTriple, loops.soft_triple, {"centers": 3}),
    "SoftTriple, one center": (SoftTriple, loops.soft_triple, {"centers": 1}),
    "SoftTriple, free": (SoftTriple, loops.soft_triple, {"centers": 2, "la": 5.0, "gamma": 0.5, "tau": 0.0}),
}
every_head = pytest.mark.parametrize("name", HEADS)

BATCHES = {
    "all classes": (points(8), torch.arange(8) % 4),
    "some classes": (points(9, seed=1), torch.tensor([3, 3, 3, 3, 1, 1, 1, 3, 1])),
    "one class only": (points(5, seed=2), torch.full((5,), 2)),
    "one row": (points(1, seed=3), torch.tensor([1])),
    "collapsed": (torch.ones(6, 4, dtype=torch.float64), torch.arange(6) % 4),
}
every_batch = pytest.mark.parametrize("batch", BATCHES)


def make(name, dtype=torch.float64, num_classes=4, dim=4, **more):
    kind, _, options = HEADS[name]
    return kind(num_classes, dim, **{**options, **more}).to(dtype)


def expected_of(name, head, x, labels):
    _, oracle, options = HEADS[name]
    return oracle(x.double().tolist(), labels.tolist(), head.proxies.double().tolist(), **options)


def at_proxies(head, sign=1.0):
    """Embeddings that stand on the proxies of their classes, or opposite to them, and the labels."""
    own = head.proxies.detach()[:: len(head.proxies) // head.num_classes]
    return sign * 2 * own, torch.arange(head.num_classes)


def check_proxies(head, x, labels):
    """The proxies get a gradient, and it is finite."""
    head.zero_grad()
    head(x, labels).backward()
    assert torch.isfinite(head.proxies.grad).all()
    assert head.proxies.grad.abs().sum() > 0


@every_batch
@every_head
def test_a_head_equals_the_loop(name, batch):
    x, labels = BATCHES[batch]
    for seed in (0, 1):
        head = make(name, seed=seed)
        expected = expected_of(name, head, x, labels)
        check_equal(head(x, labels), expected)
        check_equal(head.float()(x.float(), labels), expected, rel=1e-5)


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 100),
    name=st.sampled_from(list(HEADS)),
)
@settings(max_examples=50, deadline=None)
def test_a_head_equals_the_loop_for_any_labels_and_lengths(labels, size, seed, name):
    head = make(name, num_classes=6, dim=3, seed=seed)
    x, labels = points(len(labels), 3, seed=seed) * size, torch.tensor(labels)
    check_equal(head(x, labels), expected_of(name, head, x, labels))


@every_head
def test_the_gradients_are_those_of_finite_differences(name):
    head = make(name)
    for batch in ("all classes", "some classes", "one class only"):
        x, labels = BATCHES[batch]

        def loss(x, proxies, labels=labels):
            return torch.func.functional_call(head, {"proxies": proxies}, (x, labels))

        inputs = (x.clone().requires_grad_(), head.proxies.detach().clone().requires_grad_())
        assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("name", [name for name in HEADS if "ArcFace" in name])
def test_the_gradient_beyond_the_last_angle_is_that_of_finite_differences(name):
    head = make(name)
    x, labels = at_proxies(head, -1.0)
    x = (x + 0.2 * points(4, seed=5)).requires_grad_()
    angles = torch.acos(nn.functional.cosine_similarity(x, head.proxies))
    assert (angles > math.pi - HEADS[name][2].get("margin", 0.5)).any()
    check_equal(head(x, labels), expected_of(name, head, x.detach(), labels))
    assert torch.autograd.gradcheck(lambda x: head(x, labels), x, fast_mode=True)


@every_head
def test_points_on_and_opposite_to_a_proxy_have_a_finite_gradient(name):
    for dtype in (torch.float32, torch.float64):
        head = make(name, dtype)
        for sign in (1.0, -1.0):
            x, labels = at_proxies(head, sign)
            for target in (labels, labels.roll(1), torch.zeros(4).long()):
                check_equal(head(x, target), expected_of(name, head, x, target), rel=1e-5)
                check_finite(head, x, target)
                check_proxies(head, x, target)


@every_head
def test_zero_and_coincident_points_and_proxies_have_a_finite_gradient(name):
    head = make(name)
    x, labels = BATCHES["all classes"]
    x = x.clone()
    x[0], x[1] = 0, x[2]
    check_equal(head(x, labels), expected_of(name, head, x, labels))
    loss, grad = gradient_of(head, x, labels)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()
    assert torch.equal(grad[0], torch.zeros(4, dtype=torch.float64))
    with torch.no_grad():
        head.proxies[1:] = head.proxies[0]
    check_equal(head(x, labels), expected_of(name, head, x, labels))
    check_finite(head, x, labels)
    with torch.no_grad():
        head.proxies.zero_()
    check_finite(head, x, labels)
    check_finite(head, torch.zeros_like(x), labels)


SATURATED = {
    "ProxyNCA": {"temperature": 1e-4},
    "ProxyNCA++": {"temperature": 1e-4},
    "ProxyAnchor": {"alpha": 1e4},
    "NormalizedSoftmax": {"temperature": 1e-4},
    "ArcFace": {"scale": 1e4},
    "CosFace": {"scale": 1e4},
    "SoftTriple": {"la": 1e4, "gamma": 1e-4},
}


@pytest.mark.parametrize("name", SATURATED)
def test_large_scales_neither_overflow_nor_vanish(name):
    options = SATURATED[name]
    head = make(name, torch.float32, **options)
    _, oracle, rest = HEADS[name]
    for sign in (1.0, -1.0):
        x, labels = at_proxies(head, sign)
        expected = oracle(x.tolist(), labels.tolist(), head.proxies.tolist(), **{**rest, **options})
        check_equal(head(x, labels), expected, rel=1e-4)
        check_finite(head, x, labels)
    _, grad = gradient_of(head, x, labels)
    assert grad.abs().sum() > 0  # the farther from its class, the stronger the pull: it does not die


@every_head
def test_an_empty_batch_is_0_with_a_graph_to_embeddings_and_proxies(name):
    for dtype in (torch.float32, torch.float64):
        head = make(name, dtype)
        check_zero(head, points(0, dtype=dtype), torch.zeros(0).long())
        assert torch.equal(head.proxies.grad, torch.zeros_like(head.proxies))


@every_head
def test_rows_shuffled_give_the_same_loss_and_the_shuffled_gradient(name):
    x, labels = BATCHES["some classes"]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    loss, grad = gradient_of(make(name), x, labels)
    shuffled, shuffled_grad = gradient_of(make(name), x[order], labels[order])
    torch.testing.assert_close(shuffled, loss)
    torch.testing.assert_close(shuffled_grad, grad[order])


@every_head
def test_classes_renumbered_with_their_proxies_give_the_same_loss(name):
    x, labels = BATCHES["some classes"]
    head, order = make(name), torch.tensor([2, 0, 3, 1])
    renumbered = make(name)
    with torch.no_grad():
        by_class = head.proxies.unflatten(0, (4, -1))
        renumbered.proxies.unflatten(0, (4, -1))[order] = by_class
    torch.testing.assert_close(renumbered(x, order[labels]), head(x, labels))


@every_head
def test_the_length_of_embeddings_and_proxies_counts_for_nothing(name):
    x, labels = BATCHES["all classes"]
    head = make(name)
    expected = head(x, labels)
    with torch.no_grad():
        head.proxies *= torch.logspace(-5, 5, len(head.proxies))[:, None]
    torch.testing.assert_close(head(x * torch.logspace(-5, 5, 8)[:, None], labels), expected)


@every_head
def test_fp16_and_bf16_embeddings_are_compared_in_float32(name):
    check_half_precision(make(name, torch.float32), *BATCHES["all classes"])


@every_head
def test_proxies_of_another_precision_keep_the_precision_of_the_embeddings(name):
    x, labels = BATCHES["all classes"]
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        head = make(name, dtype)
        expected = expected_of(name, head, x, labels)
        loss = head(x, labels)
        assert loss.dtype == torch.float64
        check_equal(loss, expected)
        check_proxies(head, x, labels)
        assert head.proxies.grad.dtype == dtype
    assert make(name)(x.float(), labels).dtype == torch.float32


@every_head
def test_autocast_changes_nothing(name):
    x, labels = BATCHES["all classes"]
    found = []
    for enabled in (False, True):
        head = make(name, torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append((*gradient_of(head, x.float(), labels), head.proxies.grad))
    for expected, seen in zip(*found):
        assert seen.dtype == torch.float32
        assert torch.equal(seen, expected)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64, torch.bool])
@every_head
def test_labels_of_every_whole_kind(name, kind):
    x, labels = points(6), torch.arange(6) % 2
    assert torch.equal(make(name)(x, labels.to(kind)), make(name)(x, labels))


@pytest.mark.parametrize("bad", [4, -1, 2**53])
@every_head
def test_a_label_that_is_no_class_number_is_refused(name, bad):
    owner = HEADS[name][0].__name__
    text = rf"{owner}\(labels={bad}\): expected class numbers from 0 to 3, as num_classes says; torch.unique"
    with pytest.raises(ValueError, match=text):
        make(name)(points(3), torch.tensor([0, bad, 3]))


@every_head
def test_calls_that_make_no_sense_are_refused(name):
    owner, head = HEADS[name][0].__name__, make(name)
    x, labels = BATCHES["all classes"]
    rows = torch.tensor([0])
    meets = r"expected None: embeddings meet proxies, not each other; call it with embeddings and labels"
    with pytest.raises(ValueError, match=rf"{owner}\(mined='Triplets'\): {meets}"):
        head(x, labels, Triplets(rows, rows, rows))
    with pytest.raises(ValueError, match=rf"{owner}\(ref='References'\): {meets}"):
        head(x, labels, ref=References(x, labels))
    with pytest.raises(ValueError, match=rf"{owner}\(labels=None\): expected labels"):
        head(x)
    with pytest.raises(ValueError, match=rf"{owner}\(embeddings='3 dimensions'\): expected 4, as the prox"):
        head(x[:, :3], labels)
    with pytest.raises(
        ValueError, match=rf"{owner}\(embeddings='cpu'\): expected the proxies' device meta; mo"
    ):
        make(name).to("meta")(x, labels)
    with (
        unchecked(),
        pytest.raises(ValueError, match=rf"{owner}\(labels='shape \(7,\)'\): expected shape \(8"),
    ):
        head(x, labels[:7])
    with (
        unchecked(),
        pytest.raises(ValueError, match=rf"{owner}\(labels='torch.float32'\): expected a tensor"),
    ):
        head(x, labels.float())


@every_head
def test_nan_or_infinite_embeddings_are_a_clear_error(name):
    x, labels = BATCHES["all classes"]
    for bad in (math.nan, math.inf):
        broken = x.clone()
        broken[3, 0] = bad
        text = rf"{HEADS[name][0].__name__}\(embeddings='1 of 8 rows, the first is row 3'\): expected finite"
        with pytest.raises(ValueError, match=text):
            make(name)(broken, labels)


@every_head
def test_ids_change_nothing(name):
    x, labels = BATCHES["all classes"]
    assert torch.equal(make(name)(x, labels, ids=torch.zeros(8).long()), make(name)(x, labels))


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        *[
            (kind, {option: value}, rf"{kind.__name__}\({option}={value}\): expected a finite number above 0")
            for kind, option in [
                (ProxyNCA, "temperature"),
                (ProxyAnchor, "alpha"),
                (NormalizedSoftmax, "temperature"),
                (ArcFace, "scale"),
                (CosFace, "scale"),
                (SoftTriple, "la"),
                (SoftTriple, "gamma"),
            ]
            for value in (0.0, -1.0)
        ],
        (ProxyAnchor, {"margin": math.nan}, r"ProxyAnchor\(margin=nan\): expected a finite number"),
        (ArcFace, {"margin": 28.6}, r"ArcFace\(margin=28.6\): expected a finite number from 0 to 3.14159"),
        (ArcFace, {"margin": -0.1}, r"ArcFace\(margin=-0.1\): expected a finite number from 0 to 3.14159"),
        (CosFace, {"margin": "0.35"}, r"CosFace\(margin='0.35'\): expected a finite number"),
        (SoftTriple, {"tau": -0.2}, r"SoftTriple\(tau=-0.2\): expected a finite number of at least 0"),
        (SoftTriple, {"centers": 0}, r"SoftTriple\(centers=0\): expected a whole number of at least 1"),
        (SoftTriple, {"margin": math.inf}, r"SoftTriple\(margin=inf\): expected a finite number"),
    ],
)
def test_options_out_of_range_are_refused(kind, options, text):
    with unchecked(), pytest.raises(ValueError, match=text):
        kind(4, 4, **options)


@pytest.mark.parametrize("kind", [ProxyNCA, ProxyAnchor, NormalizedSoftmax, ArcFace, CosFace, SoftTriple])
def test_sizes_and_seeds_out_of_range_and_misspelt_options_are_refused(kind):
    owner = kind.__name__
    with pytest.raises(ValueError, match=rf"{owner}\(num_classes=1\): expected a whole number of at least 2"):
        kind(1, 4)
    with pytest.raises(ValueError, match=rf"{owner}\(dim=0\): expected a whole number of at least 1"):
        kind(4, 0)
    with pytest.raises(ValueError, match=rf"{owner}\(seed=-1\): expected a whole number of at least 0"):
        kind(4, 4, seed=-1)
    with (
        unchecked(),
        pytest.raises(ValueError, match=rf"{owner}\(num_classes=4.0\): expected a whole number"),
    ):
        kind(4.0, 4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'embedding_size'"):
        kind(4, 4, embedding_size=4)


@every_head
def test_first_proxies_are_unit_vectors_named_by_the_seed(name):
    state, python_state = torch.get_rng_state(), random.getstate()
    head, again, other = make(name), make(name), make(name, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    assert torch.equal(head.proxies, again.proxies)
    assert not torch.isclose(head.proxies, other.proxies).any()
    torch.testing.assert_close(head.proxies.norm(dim=1), torch.ones(len(head.proxies), dtype=torch.float64))


def test_first_proxies_spread_evenly_over_the_sphere():
    proxies = CosFace(5000, 3).proxies.detach()
    torch.testing.assert_close(proxies.mean(0), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(proxies.T @ proxies / 5000, torch.eye(3) / 3, atol=0.02, rtol=0)


def test_proxies_are_made_on_the_default_device_in_the_default_precision():
    with torch.device("meta"):
        assert CosFace(4, 4).proxies.device.type == "meta"
    torch.set_default_dtype(torch.float64)
    try:
        assert CosFace(4, 4).proxies.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@every_head
def test_the_state_is_the_proxies_and_restores_the_loss(name):
    x, labels = BATCHES["all classes"]
    head, other = make(name), make(name, seed=5)
    assert list(head.state_dict()) == ["proxies"]
    assert head(x, labels) != other(x, labels)
    other.load_state_dict(head.state_dict())
    assert torch.equal(head(x, labels), other(x, labels))
    assert torch.equal(copy.deepcopy(head)(x, labels), head(x, labels))


@every_head
def test_a_few_steps_lower_the_loss(name):
    x, labels = BATCHES["some classes"]
    head, x = make(name), x.clone().requires_grad_()
    optimiser = torch.optim.SGD([x, head.proxies], lr=0.01)
    first = head(x, labels)
    for _ in range(20):
        optimiser.zero_grad()
        head(x, labels).backward()
        optimiser.step()
    assert head(x, labels) < first


# Two columns that are the same loss.
EQUAL = {
    "ProxyNCA++ is a softmax at half its temperature": (
        ProxyNCA(4, 4, plus_plus=True, temperature=0.1),
        NormalizedSoftmax(4, 4, temperature=0.05),
    ),
    "a cosine margin of 0": (CosFace(4, 4, margin=0.0, scale=20.0), NormalizedSoftmax(4, 4)),
    "an angular margin of 0": (ArcFace(4, 4, margin=0.0, scale=20.0), NormalizedSoftmax(4, 4)),
    "an easy angular margin of 0": (
        ArcFace(4, 4, margin=0.0, scale=20.0, easy_margin=True),
        NormalizedSoftmax(4, 4),
    ),
    "one center": (SoftTriple(4, 4, centers=1, margin=0.2), CosFace(4, 4, margin=0.2, scale=20.0)),
}


@pytest.mark.parametrize("case", EQUAL)
def test_heads_that_are_the_same_loss_by_definition(case):
    x, labels = BATCHES["all classes"]
    one, other = (copy.deepcopy(head).double() for head in EQUAL[case])
    for found, expected in zip(gradient_of(one, x, labels), gradient_of(other, x, labels)):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(one.proxies.grad, other.proxies.grad)


def test_proxy_nca_leaves_its_own_proxy_out_and_so_falls_below_0():
    head = make("ProxyNCA", num_classes=2, dim=2)
    with torch.no_grad():
        head.proxies.copy_(torch.eye(2))
    x = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    check_equal(head(x, torch.tensor([0])), -2.0)  # D = 0 to its own, 2 to the other
    check_equal(head(x, torch.tensor([1])), 2.0)


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, 1.2, math.pi / 2])
def test_the_loss_of_arc_face_rises_with_the_angle_up_to_pi(margin):
    head = ArcFace(2, 3, margin=margin, scale=5.0).double()
    with torch.no_grad():
        head.proxies.copy_(torch.eye(3)[[0, 2]])
    angles = torch.linspace(0, math.pi, 200, dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], 1)  # the other cosine stays 0
    losses = torch.stack([head(v[None], torch.tensor([0])) for v in x])
    assert (losses.diff() > 0).all()


def test_arc_face_sees_small_angles_in_single_precision():
    head = ArcFace(2, 2, margin=0.5, scale=1.0)
    with torch.no_grad():
        head.proxies.copy_(torch.eye(2))
    for angle in (0.0, 1e-6, 1e-4, 1e-2):
        x = torch.tensor([[math.cos(angle), math.sin(angle)]])
        _, grad = gradient_of(head, x, torch.tensor([0]))
        # Along the circle: d/dθ log(1 + exp(sin θ − cos(θ + m))), and 0 at the proxy itself.
        share = 1 / (1 + math.exp(math.cos(angle + 0.5) - math.sin(angle)))
        slope = share * (math.cos(angle) + (math.sin(angle + 0.5) if angle else 0.0))
        assert math.isclose(grad[0, 1].item(), slope, rel_tol=1e-3)


def test_centers_of_a_class_fall_together_by_the_last_term_alone():
    head = make("SoftTriple")
    x, labels = BATCHES["all classes"]
    with torch.no_grad():
        head.proxies[1] = head.proxies[0]
    check_equal(head(x, labels), expected_of("SoftTriple", head, x, labels))
    check_proxies(head, x, labels)
    free = make("SoftTriple", tau=0.0)
    free.load_state_dict(head.state_dict())
    w = nn.functional.normalize(head.proxies.detach()).unflatten(0, (4, 3))
    apart = sum((v[s] - v[t]).norm() for v in w for s in range(3) for t in range(s))
    torch.testing.assert_close(head(x, labels) - free(x, labels), 0.2 * apart / (4 * 3 * 2))


def test_a_head_of_one_s_own_needs_its_equation_only():
    class Nearest(ProxyHead):
        """1 − the cosine to the own proxy."""

        def __init__(self, num_classes, dim):
            super().__init__(num_classes, dim, seed=0)

        def _loss(self, x, proxies, labels):
            return (1 - (x * proxies[labels]).sum(1)).mean()

    head = Nearest(4, 4)
    x, labels = at_proxies(head)
    check_equal(head(x, labels), 0.0, rel=1e-6)
    with pytest.raises(ValueError, match=r"Nearest\(labels=7\): expected class numbers from 0 to 3"):
        head(x, labels + 7)
    with pytest.raises(TypeError, match="abstract"):
        ProxyHead(4, 4, seed=0)


def test_options_show_when_printed():
    assert repr(ProxyNCA(3, 8)) == "ProxyNCA(num_classes=3, dim=8, plus_plus=False, temperature=1.0)"
    assert repr(ProxyAnchor(3, 8)) == "ProxyAnchor(num_classes=3, dim=8, margin=0.1, alpha=32.0)"
    assert repr(NormalizedSoftmax(3, 8)) == "NormalizedSoftmax(num_classes=3, dim=8, temperature=0.05)"
    assert "margin=0.5, scale=64.0, easy_margin=False" in repr(ArcFace(3, 8))
    assert "margin=0.35, scale=64.0" in repr(CosFace(3, 8))
    assert "centers=10, la=20.0, gamma=0.1, margin=0.01, tau=0.2" in repr(SoftTriple(3, 8))


def test_the_check_of_proxies_can_fail():
    x, labels = BATCHES["all classes"]
    for spoil in (lambda grad: grad * math.nan, lambda grad: grad * 0):
        head = make("CosFace")
        head.proxies.register_hook(spoil)
        with pytest.raises(AssertionError):
            check_proxies(head, x, labels)
