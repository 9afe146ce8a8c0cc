"""Heads whose margin depends on the row: what they know of training, and the outliers of sub-centers."""

import copy
import math

import pytest
import torch
from torch.nn.functional import normalize

from tercet.losses.angular_margins import AdaFace, CurricularFace, SphereFace
from tercet.losses.softmax import ArcFace, CosFace, NormalizedSoftmax
from tercet.losses.sub_centers import SubCenterArcFace
from tests.contracts.heads import check_equal, gradient_of
from tests.contracts.proxies import BATCHES
from tests.helpers import double_points as points
from tests.helpers import unchecked
from tests.oracles import proxy

X, LABELS = BATCHES["all classes"]


def lists(head, x, labels):
    return x.tolist(), labels.tolist(), head.proxies.detach().double().tolist()


def test_lengths_are_taken_in_batch_by_batch_in_training_mode_alone():
    head = AdaFace(4, 4, momentum=0.25).double()
    mean = deviation = None
    for step in range(4):
        x = points(5 + step, seed=step) * (1 + step)
        labels = torch.arange(len(x)) % 4
        sizes = [math.dist(v, [0.0] * 4) for v in x.tolist()]
        own = math.fsum(sizes) / len(sizes)
        spread = math.sqrt(math.fsum((size - own) ** 2 for size in sizes) / (len(sizes) - 1))
        mean = own if mean is None else 0.75 * mean + 0.25 * own
        deviation = spread if deviation is None else 0.75 * deviation + 0.25 * spread
        check_equal(head(x, labels), proxy.ada_face(*lists(head, x, labels), mean, deviation))
        torch.testing.assert_close(head.statistics.tolist(), [mean, deviation])
    head.eval()
    check_equal(head(X, LABELS), proxy.ada_face(*lists(head, X, LABELS), mean, deviation))
    head(X[:0], LABELS[:0])
    assert head.batches == 4
    again = AdaFace(4, 4, seed=9).double()
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.eval()(X, LABELS), head(X, LABELS))


def test_one_row_has_no_deviation_and_a_head_that_never_trained_takes_the_batch():
    head = AdaFace(4, 4).double()
    assert head(X[:1], LABELS[:1]).isfinite()
    torch.testing.assert_close(head.statistics.tolist(), [X[0].norm().item(), 0.0])
    fresh = AdaFace(4, 4).double().eval()
    found = fresh(X, LABELS)
    assert fresh.batches == 0
    check_equal(found, AdaFace(4, 4).double()(X, LABELS).item())


def test_the_gradient_of_ada_face_is_that_of_its_angle_alone():
    """Lengths are fixed, since no gradient flows through them."""
    head = AdaFace(4, 4, scale=8.0).double()
    head(X, LABELS)
    head.eval()
    size = X.norm(dim=1, keepdim=True)

    def loss(v):
        return head(normalize(v) * size, LABELS)

    assert torch.autograd.gradcheck(loss, X.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(loss, X.clone().requires_grad_())
    _, grad = gradient_of(head, X, LABELS)
    torch.testing.assert_close((grad * X).sum(1), torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize(("z", "same"), [(-1, ArcFace(4, 4, margin=0.4)), (0, CosFace(4, 4, margin=0.4))])
def test_ada_face_of_short_embeddings_is_arc_face_and_of_usual_ones_cos_face(z, same):
    """ẑ = −1 gives cos(θ + m), and ẑ = 0 cos θ − m."""
    head = AdaFace(4, 4, margin=0.4).double().eval()
    head.batches += 1
    x = normalize(X)
    head.statistics.copy_(torch.tensor([1.0, 1.0]) if z == 0 else torch.tensor([9.0, 1e-3]))
    same = copy.deepcopy(same).double()
    assert (torch.acos((x * normalize(same.proxies)[LABELS]).sum(1)) < math.pi - 0.4).all()
    for found, expected in zip(gradient_of(head, x, LABELS), gradient_of(same, x, LABELS), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_angle_of_ada_face_stays_within_0_and_pi():
    for z, at in ((1, 0.1), (-1, 3.1)):
        head = AdaFace(2, 2, margin=0.4, scale=1.0).double().eval()
        head.batches += 1
        head.statistics.copy_(torch.tensor([1.0 - z, 1e-3]))
        with torch.no_grad():
            head.proxies.copy_(torch.eye(2))
        x = torch.tensor([[math.cos(at), math.sin(at)]], dtype=torch.float64)
        expected = proxy.ada_face(*lists(head, x, torch.tensor([0])), 1.0 - z, 1e-3, margin=0.4, scale=1.0)
        check_equal(head(x, torch.tensor([0])), expected, rel=1e-6)


def test_progress_is_taken_in_batch_by_batch_in_training_mode_alone():
    head, t = CurricularFace(4, 4, scale=8.0, momentum=0.25).double(), 0.0
    for step in range(4):
        x = points(6, seed=step)
        labels = torch.arange(6) % 4
        given = lists(head, x, labels)
        cosines = [proxy.cosine(v, given[2][y]) for v, y in zip(*given[:2], strict=True)]
        t = 0.75 * t + 0.25 * math.fsum(cosines) / 6
        check_equal(head(x, labels), proxy.curricular_face(*given, t, scale=8.0))
        assert math.isclose(head.t.item(), t)
    head.eval()
    check_equal(head(X, LABELS), proxy.curricular_face(*lists(head, X, LABELS), t, scale=8.0))
    assert math.isclose(head.t.item(), t)


def test_sphere_face_of_margin_1_is_a_softmax_of_products():
    head, same = SphereFace(4, 4, margin=1, scale=20.0).double(), NormalizedSoftmax(4, 4).double()
    check_equal(head(normalize(X), LABELS), same(X, LABELS).item())
    same = NormalizedSoftmax(4, 4, temperature=0.025).double()
    check_equal(head(2 * normalize(X), LABELS), same(X, LABELS).item())


@pytest.mark.parametrize("margin", [1, 2, 3, 4, 7])
def test_the_loss_of_sphere_face_rises_with_the_angle_up_to_pi(margin):
    head = SphereFace(2, 3, margin=margin, scale=5.0).double()
    with torch.no_grad():
        head.proxies.copy_(torch.eye(3)[[0, 2]])
    angles = torch.linspace(0, math.pi, 200, dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], 1)
    losses = torch.stack([head(v[None], torch.tensor([0])) for v in x])
    assert (losses.diff() > -1e-12).all()  # flat where k changes


def test_one_sub_center_is_arc_face():
    head, same = SubCenterArcFace(4, 4, sub_centers=1).double(), ArcFace(4, 4).double()
    for found, expected in zip(gradient_of(head, X, LABELS), gradient_of(same, X, LABELS), strict=True):
        torch.testing.assert_close(found, expected)


def test_only_the_nearest_centers_move():
    head = SubCenterArcFace(4, 4).double()
    gradient_of(head, X[:1], LABELS[:1])
    moved = (head.proxies.grad != 0).any(1).unflatten(0, (4, 3))
    near = (normalize(X[:1]) @ head.proxies.T).unflatten(1, (4, 3))[0]
    assert torch.equal(moved, near == near.amax(1, keepdim=True))


@pytest.mark.parametrize("angle", [0.3, 1.0, math.radians(75), math.pi])
def test_outliers_are_those_of_a_loop(angle):
    head = SubCenterArcFace(5, 4, sub_centers=3).double()
    x, labels = points(60, seed=3), torch.arange(60) % 4  # no image of class 4
    rows, dominant = head.outliers(x, labels, angle=angle)
    far, centers = proxy.outliers(*lists(head, x, labels), 3, angle)
    assert (rows.tolist(), dominant.tolist()) == (far, centers)
    assert centers[4] == -1
    rows, dominant = head.outliers(x[:0], labels[:0])
    assert (rows.tolist(), dominant.tolist()) == ([], [-1] * 5)


def test_what_is_no_outlier_question_is_refused():
    head = SubCenterArcFace(4, 4).double()
    with pytest.raises(ValueError, match=r"SubCenterArcFace\.outliers\(angle=75\): expected .* to 3\.14"):
        head.outliers(X, LABELS, angle=75)
    with pytest.raises(ValueError, match=r"SubCenterArcFace\(labels=4\): expected class numbers from 0 to 3"):
        head.outliers(X, LABELS + 1)


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (SphereFace, {"margin": 0}, "margin=0): expected a whole number from 1 to 64"),
        (SphereFace, {"margin": 1.5}, "margin=1.5): expected a whole number from 1 to 64"),
        (SphereFace, {"scale": 0.0}, "scale=0.0): expected a finite number above 0"),
        (AdaFace, {"margin": 2.0}, "margin=2.0): expected a finite number from 0 to 1.57"),
        (AdaFace, {"h": 0.0}, "h=0.0): expected a finite number above 0"),
        (AdaFace, {"momentum": 0.0}, "momentum=0.0): expected a finite number above 0"),
        (AdaFace, {"momentum": 1.5}, "momentum=1.5): expected a finite number of at most 1"),
        (CurricularFace, {"momentum": 1.5}, "momentum=1.5): expected a finite number of at most 1"),
        (CurricularFace, {"margin": -1.0}, "margin=-1.0): expected a finite number from 0 to 3.14"),
        (SubCenterArcFace, {"sub_centers": 0}, "sub_centers=0): expected a whole number of at least 1"),
    ],
)
def test_options_out_of_range_are_refused(kind, options, text):
    with unchecked(), pytest.raises(ValueError, match=r".") as raised:
        kind(4, 4, **options)
    assert str(raised.value).startswith(f"{kind.__name__}({text}")
