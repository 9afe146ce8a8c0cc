import copy
import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tercet.core.indices import References
from tercet.losses.proxy import ProxyAnchor, ProxyNCA, SoftTriple
from tercet.losses.proxy_head import ProxyHead
from tercet.losses.softmax import ArcFace, CosFace, NormalizedSoftmax
from tests.contracts.heads import PROXIED as HEADS
from tests.contracts.heads import check_equal, check_finite, check_zero, gradient_of
from tests.contracts.proxies import BATCHES, at_proxies, expected_of, make
from tests.helpers import double_points as points
from tests.helpers import unchecked

every_head = pytest.mark.parametrize("name", HEADS)


def check_proxies(head, x, labels):
    """The proxies get a gradient, and it is finite."""
    head.zero_grad()
    head(x, labels).backward()
    assert torch.isfinite(head.proxies.grad).all()
    assert head.proxies.grad.abs().sum() > 0


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


@pytest.mark.parametrize("name", [name for name, row in HEADS.items() if row.smooth])
def test_both_derivatives_are_those_of_finite_differences(name):
    head = make(name)
    for batch in ("all classes", "some classes", "one class only"):
        x, labels = BATCHES[batch]

        def loss(x, proxies, labels=labels):
            return torch.func.functional_call(head, {"proxies": proxies}, (x, labels))

        inputs = (x.clone().requires_grad_(), head.proxies.detach().clone().requires_grad_())
        assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(loss, inputs, fast_mode=True)


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
    if "SphereFace" not in name:  # whose scores grow with the length
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
    row = replace(HEADS[name], options={**HEADS[name].options, **options})
    for sign in (1.0, -1.0):
        x, labels = at_proxies(head, sign)
        expected = row.expected(x, labels, head=head)
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
def test_classes_renumbered_with_their_proxies_give_the_same_loss(name):
    x, labels = BATCHES["some classes"]
    head, order = make(name), torch.tensor([2, 0, 3, 1])
    renumbered = make(name)
    with torch.no_grad():
        by_class = head.proxies.unflatten(0, (4, -1))
        renumbered.proxies.unflatten(0, (4, -1))[order] = by_class
    torch.testing.assert_close(renumbered(x, order[labels]), head(x, labels))


@pytest.mark.parametrize("name", [name for name in HEADS if name[:3] not in ("Sph", "Ada")])
def test_the_length_of_embeddings_and_proxies_counts_for_nothing(name):
    x, labels = BATCHES["all classes"]
    head = make(name)
    expected = head(x, labels)
    with torch.no_grad():
        head.proxies *= torch.logspace(-5, 5, len(head.proxies))[:, None]
    torch.testing.assert_close(head(x * torch.logspace(-5, 5, 8)[:, None], labels), expected)


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
    for expected, seen in zip(*found, strict=True):
        assert seen.dtype == torch.float32
        assert torch.equal(seen, expected)


@pytest.mark.parametrize("bad", [4, -1, 2**53])
@every_head
def test_a_label_that_is_no_class_number_is_refused(name, bad):
    caller = type(HEADS[name].head()).__name__
    text = rf"{caller}\(labels={bad}\): expected class numbers from 0 to 3, as num_classes says; torch.unique"
    with pytest.raises(ValueError, match=text):
        make(name)(points(3), torch.tensor([0, bad, 3]))


@every_head
def test_calls_that_make_no_sense_are_refused(name):
    caller, head = type(HEADS[name].head()).__name__, make(name)
    x, labels = BATCHES["all classes"]
    meets = r"expected None: embeddings meet proxies, not each other; call it with embeddings and labels"
    with pytest.raises(ValueError, match=rf"{caller}\(ref='References'\): {meets}"):
        head(x, labels, ref=References(x, labels))
    with pytest.raises(ValueError, match=rf"{caller}\(labels=None\): expected labels"):
        head(x)
    with pytest.raises(ValueError, match=rf"{caller}\(embeddings='3 dimensions'\): expected 4, as the prox"):
        head(x[:, :3], labels)
    with pytest.raises(
        ValueError, match=rf"{caller}\(embeddings='cpu'\): expected the proxies' device meta; mo"
    ):
        make(name).to("meta")(x, labels)
    with (
        unchecked(),
        pytest.raises(ValueError, match=rf"{caller}\(labels='torch.float32'\): expected a tensor"),
    ):
        head(x, labels.float())


ODD = {
    "sparse": lambda labels: labels.to_sparse(),
    "quantized": lambda labels: torch.quantize_per_tensor(labels.float(), 1.0, 0, torch.quint8),
    "on meta": lambda labels: labels.to("meta"),
    "with a gradient": lambda labels: labels.float().requires_grad_(),
    "nested": lambda labels: torch.nested.nested_tensor([labels, labels]),
    "a list": lambda labels: labels.tolist(),
    "too few": lambda labels: labels[1:],
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("kind", ODD)
@every_head
def test_labels_and_ids_that_are_no_whole_numbers_with_data_are_refused(name, kind):
    caller, head = type(HEADS[name].head()).__name__, make(name)
    x, labels = BATCHES["all classes"]
    for argument in ("labels", "ids"):
        given = {"labels": labels, argument: ODD[kind](labels)}
        with unchecked(), pytest.raises(ValueError, match=rf"{caller}\({argument}=.*\): expected "):
            head(x, **given)


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
    caller = kind.__name__
    with pytest.raises(
        ValueError, match=rf"{caller}\(num_classes=1\): expected a whole number of at least 2"
    ):
        kind(1, 4)
    with pytest.raises(ValueError, match=rf"{caller}\(dim=0\): expected a whole number of at least 1"):
        kind(4, 0)
    with pytest.raises(ValueError, match=rf"{caller}\(seed=-1\): expected a whole number of at least 0"):
        kind(4, 4, seed=-1)
    with (
        unchecked(),
        pytest.raises(ValueError, match=rf"{caller}\(num_classes=4.0\): expected a whole number"),
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


@every_head
def test_a_step_of_sgd_turns_a_proxy_by_1_over_the_square_of_its_length(name):
    x, labels = BATCHES["all classes"]
    turned = []
    for length in (1.0, 4.0):
        head = make(name)
        with torch.no_grad():
            head.proxies.mul_(length)
        (grad,) = torch.autograd.grad(head(x, labels), head.proxies)
        turned.append(
            nn.functional.normalize(head.proxies - 1e-6 * grad) - nn.functional.normalize(head.proxies)
        )
    torch.testing.assert_close(turned[0], 16 * turned[1], rtol=1e-3, atol=1e-9)


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
    buffers = [name for name, _ in head.named_buffers() if name != "class_weight"]
    assert sorted(head.state_dict()) == sorted(["proxies", *buffers])
    assert not buffers or "Ada" in name or "Curricular" in name
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


def test_proxy_nca_leaves_its_own_proxy_out_and_so_falls_below_0():
    head = make("ProxyNCA", num_classes=2, dim=2)
    with torch.no_grad():
        head.proxies.copy_(torch.eye(2))
    x = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    check_equal(head(x, torch.tensor([0])), -2.0)  # D = 0 to its own, 2 to the other
    check_equal(head(x, torch.tensor([1])), 2.0)


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

        def _scores(self, x, proxies):
            return x @ proxies.T

        def _loss(self, x, proxies, labels, weights):
            return self._reduced(1 - (x * proxies[labels]).sum(1), weights)

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
