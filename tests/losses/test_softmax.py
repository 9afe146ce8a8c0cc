import copy
import math

import pytest
import torch
from torch import nn

from tercet.losses.proxy import ProxyNCA, SoftTriple
from tercet.losses.softmax import ArcFace, CosFace, NormalizedSoftmax
from tests.contracts.heads import PROXIED as HEADS
from tests.contracts.heads import check_equal, gradient_of
from tests.contracts.proxies import BATCHES, at_proxies, expected_of, make
from tests.helpers import double_points as points


@pytest.mark.parametrize("name", [name for name in HEADS if "ArcFace" in name])
def test_the_gradient_beyond_the_last_angle_is_that_of_finite_differences(name):
    head = make(name)
    x, labels = at_proxies(head, -1.0)
    x = (x + 0.2 * points(4, seed=5)).requires_grad_()
    angles = torch.acos(nn.functional.cosine_similarity(x, head.proxies))
    assert (angles > math.pi - HEADS[name].options.get("margin", 0.5)).any()
    check_equal(head(x, labels), expected_of(name, head, x.detach(), labels))
    assert torch.autograd.gradcheck(lambda x: head(x, labels), x, fast_mode=True)


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
    for found, expected in zip(gradient_of(one, x, labels), gradient_of(other, x, labels), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(one.proxies.grad, other.proxies.grad)


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


@pytest.mark.parametrize("name", [name for name in HEADS if "ArcFace" in name])
def test_the_gradient_at_a_proxy_and_opposite_to_it_is_along_the_sphere_alone(name):
    head = make(name)
    for sign in (1.0, -1.0):
        x, labels = at_proxies(head, sign)
        _, grad = gradient_of(head, x, labels)
        torch.testing.assert_close((grad * x).sum(1), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in HEADS if "ArcFace" in name])
def test_a_gradient_penalty_on_arc_face_has_the_gradient_of_finite_differences(name):
    head = make(name)
    x, labels = BATCHES["all classes"]

    def penalty(x):
        (grad,) = torch.autograd.grad(head(x, labels), x, create_graph=True)
        return grad.square().sum()

    assert torch.autograd.gradcheck(penalty, x.clone().requires_grad_())
