"""What heads with proxies weigh, reduce and keep: weights of rows and classes, mined rows, new classes."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from tercet.core.indices import Pairs, Triplets
from tercet.core.randomness import derive_key
from tercet.losses.cosine_regression import P2SGrad
from tercet.losses.first_proxies import first_proxies
from tercet.losses.proxy import ProxyAnchor, ProxyNCA
from tercet.miners.hard import BatchHard
from tests.contracts.heads import PROXIED as HEADS
from tests.contracts.heads import check_equal, gradient_of
from tests.contracts.proxies import BATCHES, expected_of, make
from tests.helpers import double_points as points
from tests.helpers import refusal_of, unchecked
from tests.oracles import proxy

X, LABELS = BATCHES["some classes"]
COUNTS = torch.tensor([2, 1, 0, 3, 1, 0, 2, 1, 1])
every_head = pytest.mark.parametrize("name", HEADS)
every_softmax = pytest.mark.parametrize("name", [name for name in HEADS if "Anchor" not in name])


def repeated(head, counts=COUNTS):
    """Loss and gradients of a batch in which each row stands so many times."""
    rows = torch.arange(len(X)).repeat_interleave(counts)
    loss, grad = gradient_of(head, X[rows], LABELS[rows])
    return loss, torch.zeros_like(X).index_add(0, rows, grad), head.proxies.grad.clone()


def check_alike(head, expected, **call):
    head.zero_grad()
    loss, grad = gradient_of(head, X, LABELS, **call)
    for found, right in zip((loss, grad, head.proxies.grad), expected, strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@every_head
def test_a_row_of_weight_w_is_w_rows_and_one_of_weight_0_is_none(name, reduction):
    head = make(name, reduction=reduction)
    expected = repeated(head)
    for weight in (COUNTS, COUNTS.double(), COUNTS.float()):
        check_alike(head, expected, weight=weight)
    if reduction == "mean" and "Anchor" not in name:
        check_alike(head, repeated(make(name), COUNTS), weight=0.25 * COUNTS)


@every_head
def test_mined_rows_count_as_often_as_they_are_named(name):
    head = make(name)
    mined = BatchHard()(X, LABELS)
    counts = torch.stack(mined).flatten().bincount(minlength=len(X))
    assert len(set(counts.tolist())) > 1
    expected = repeated(make(name), counts)
    check_alike(head, expected, mined=mined)
    check_alike(head, expected, mined=Pairs(mined[0], mined[1], mined[2], mined[2][:0])[:3])
    pairs = Pairs(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([4]))
    counts = torch.tensor([1, 2, 1, 1, 1, 0, 0, 0, 0])
    check_alike(head, repeated(make(name), counts), mined=pairs)
    check_alike(head, repeated(make(name), counts * COUNTS), mined=pairs, weight=COUNTS)


def anchor_terms(head, x, labels):
    """The two terms of each proxy of a proxy anchor loss, by a loop."""
    pulled, pushed = [], []
    for c, p in enumerate(head.proxies.tolist()):
        each = [(y == c, proxy.cosine(v, p)) for v, y in zip(x.tolist(), labels.tolist(), strict=True)]
        own = [-head.alpha * (s - head.margin) for same, s in each if same]
        others = [head.alpha * (s + head.margin) for same, s in each if not same]
        pulled.append(proxy.log_sum([0.0, *own]) if own else 0.0)
        pushed.append(proxy.log_sum([0.0, *others]))
    return pulled, pushed


@every_head
def test_losses_one_by_one_are_those_of_single_rows(name):
    head = make(name, reduction="none")
    losses = head(X, LABELS)
    total = make(name, reduction="sum")(X, LABELS)
    if "Anchor" in name:
        pulled, pushed = anchor_terms(head, X, LABELS)
        expected = [u + v for u, v in zip(pulled, pushed, strict=True)]
    else:
        expected = [expected_of(name, head, X[i : i + 1], LABELS[i : i + 1]) for i in range(len(X))]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))
    if "SoftTriple" not in name or head.tau == 0 or head.centers == 1:
        torch.testing.assert_close(losses.sum(), total)
        weighted = head(X, LABELS, weight=COUNTS).sum()
        torch.testing.assert_close(weighted, make(name, reduction="sum")(X, LABELS, weight=COUNTS))


@every_softmax
def test_a_row_counts_as_much_as_its_class(name):
    shares = [0.5, 2.0, 7.0, 0.25]
    head = make(name, class_weight=shares)
    weight = torch.tensor(shares)[LABELS]
    expected = (*gradient_of(plain := make(name), X, LABELS, weight=weight), plain.proxies.grad.clone())
    check_alike(head, expected)
    expected = (*gradient_of(plain := make(name), X, LABELS, weight=weight * COUNTS), plain.proxies.grad)
    check_alike(head, expected, weight=COUNTS)
    assert list(head.state_dict()) == list(plain.state_dict())  # weights are an option


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_proxy_anchor_counts_as_much_as_its_class(reduction):
    shares = [0.5, 2.0, 7.0, 0.0]
    head = make("ProxyAnchor", class_weight=shares, reduction=reduction)
    pulled, pushed = anchor_terms(head, X, LABELS)
    terms = [w * (u + v) for w, u, v in zip(shares, pulled, pushed, strict=True)]
    present = sum(w for w, u in zip(shares, pulled, strict=True) if u)
    means = [sum(w * u for w, u in zip(shares, side, strict=True)) for side in (pulled, pushed)]
    expected = {"mean": means[0] / present + means[1] / sum(shares), "sum": sum(terms), "none": terms}
    torch.testing.assert_close(head(X, LABELS), torch.tensor(expected[reduction], dtype=torch.float64))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@every_head
def test_where_no_row_counts_the_loss_is_0_with_a_graph(name, reduction):
    head = make(name, reduction=reduction)
    nobody = torch.zeros(0).long()
    for call in ({"weight": torch.zeros(9)}, {"mined": Triplets(nobody, nobody, nobody)}):
        x = X.clone().requires_grad_()
        loss = head(x, LABELS, **call)
        loss.sum().backward()
        assert torch.equal(x.grad, torch.zeros_like(x))
        if "SoftTriple" not in name:
            assert torch.equal(loss, torch.zeros_like(loss))
    losses = make(name, reduction="none")(points(0), nobody)
    assert losses.shape == ((4,) if "Anchor" in name else (0,))
    losses.sum().backward()


@pytest.mark.parametrize("name", [name for name, row in HEADS.items() if row.smooth])
def test_a_weighted_loss_is_differentiated_twice(name):
    head, weight = make(name), torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.3, 1.0, 1.0, 1.5])

    def loss(x, proxies):
        return torch.func.functional_call(head, {"proxies": proxies}, (x, LABELS), {"weight": weight})

    inputs = (X.clone().requires_grad_(), head.proxies.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, inputs, fast_mode=True)


def test_weights_get_no_gradient():
    weight = torch.ones(9, dtype=torch.float64, requires_grad=True)
    make("ArcFace")(X, LABELS, weight=weight).backward()
    assert weight.grad is None


@pytest.mark.parametrize(
    ("weight", "shown"),
    [
        (torch.tensor([1.0] * 8 + [-1.0]), "-1.0"),
        (torch.tensor([1.0] * 8 + [math.nan]), "nan"),
        (torch.tensor([1.0] * 8 + [math.inf]), "inf"),
        (torch.ones(8), r"'shape \(8,\)'"),
        (torch.ones(9, 1), r"'shape \(9, 1\)'"),
        (torch.ones(9).to_sparse(), "'torch.sparse_coo on cpu'"),
        (torch.ones(9, dtype=torch.complex64), "'torch.complex64'"),
        ([1.0] * 9, "'list'"),
    ],
)
def test_weights_that_are_none_are_refused(weight, shown):
    expected = "expected 9 finite numbers of at least 0, one for each embedding"
    with unchecked(), pytest.raises(ValueError, match=rf"CosFace\(weight={shown}\): {expected}"):
        make("CosFace")(X, LABELS, weight=weight)


KINDS = list({type(row.head()): None for row in HEADS.values()})


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_are_none_are_refused(kind):
    caller = kind.__name__
    expected = "expected 4 finite numbers of at least 0, one for num_classes"
    for weight, shown in (([1, 2], r"'shape \(2,\)'"), ([1, 1, 1, -2], "-2.0"), ("abcd", "'abcd'")):
        with unchecked(), pytest.raises(ValueError, match=rf"{caller}\(class_weight={shown}\): {expected}"):
            kind(4, 4, class_weight=weight)
    with pytest.raises(ValueError, match=rf"{caller}\(reduction='means'\): .*did you mean 'mean'\?"):
        kind(4, 4, reduction="means")
    if kind in (ProxyAnchor, P2SGrad):  # no cross-entropy
        return
    text = rf"{caller}\(label_smoothing=1.5\): expected a finite number from 0 to 1"
    with pytest.raises(ValueError, match=text):
        kind(4, 4, label_smoothing=1.5)


def test_proxy_nca_is_smoothed_as_a_softmax_alone():
    text = refusal_of(ProxyNCA, 4, 4, label_smoothing=0.1)
    assert text.startswith("ProxyNCA(label_smoothing=0.1): expected 0, since without the class's own proxy")
    assert text.endswith("pass plus_plus=True")


WITHOUT_MARGIN = {
    "ProxyNCA++": lambda head, s: cross_entropy(s, LABELS),
    "NormalizedSoftmax": lambda head, s: cross_entropy(s, LABELS),
    "NormalizedSoftmax, smoothed": lambda head, s: cross_entropy(s, LABELS, label_smoothing=0.2),
    "ArcFace": lambda head, s: cross_entropy(s, LABELS),
    "CosFace": lambda head, s: cross_entropy(s, LABELS),
    "sub-centers": lambda head, s: cross_entropy(s, LABELS),
    "AdaFace": lambda head, s: cross_entropy(s, LABELS),
    "SoftTriple, free": lambda head, s: cross_entropy(s, LABELS),
}


@pytest.mark.parametrize("name", WITHOUT_MARGIN)
def test_logits_are_those_of_the_loss_without_its_margin(name):
    without = {"margin": 0.0} if "margin" in vars(make(name)) else {}
    scores = make(name).logits(X)
    check_equal(make(name, **without)(X, LABELS), WITHOUT_MARGIN[name](None, scores).item())


@every_head
def test_logits_are_highest_for_the_nearest_class(name):
    head = make(name)
    x = X.clone().requires_grad_()
    scores = head.logits(x)
    assert scores.shape == (9, 4)
    assert scores.dtype == torch.float64
    near = torch.nn.functional.cosine_similarity(X[:, None], head.proxies[None], dim=2).unflatten(1, (4, -1))
    if near.shape[2] == 1:
        assert torch.equal(scores.argmax(1), near[:, :, 0].argmax(1))
    scores.sum().backward()
    assert x.grad.isfinite().all()
    assert head.logits(X[:0]).shape == (0, 4)
    assert torch.equal(head.logits(X.float()), make(name).logits(X.float()))
    caller = type(head).__name__
    with pytest.raises(ValueError, match=rf"{caller}\(embeddings='3 dimensions'\): expected 4"):
        head.logits(X[:, :3])


@every_head
def test_added_classes_keep_the_proxies_that_were_learned(name):
    head, larger = make(name), make(name, num_classes=7)
    with torch.no_grad():
        head.proxies.mul_(3)
    learned = head.proxies.detach().clone()
    head.add_classes(3)
    assert head.num_classes == 7
    assert torch.equal(head.proxies[: len(learned)], learned)
    assert torch.equal(head.proxies[len(learned) :], larger.proxies[len(learned) :].to(torch.float64))
    labels = LABELS + 3
    check_equal(head(X, labels), expected_of(name, head, X, labels))
    assert head.logits(X).shape == (9, 7)
    head(X, labels).backward()
    assert head.proxies.grad.shape == head.proxies.shape
    k = len(learned) // 4
    mean = points(2 * k, seed=9)
    head.add_classes(2, mean)
    torch.testing.assert_close(head.proxies[7 * k :], torch.nn.functional.normalize(mean))
    with pytest.raises(ValueError, match=r"\(labels=9\): expected class numbers from 0 to 8"):
        head(X, torch.full((9,), 9))


def test_added_classes_weigh_1_and_odd_ones_are_refused():
    head = make("ArcFace", class_weight=[1, 2, 3, 4.0])
    head.add_classes(1)
    assert head.class_weight.tolist() == [1, 2, 3, 4, 1]
    with pytest.raises(ValueError, match=r"ArcFace\(n=0\): expected a whole number of at least 1"):
        head.add_classes(0)
    with pytest.raises(ValueError, match=r"ArcFace\(embeddings='shape \(2, 4\)'\): expected \(1, 4\), a dir"):
        head.add_classes(1, points(2))
    with pytest.raises(ValueError, match=r"ArcFace\(embeddings='1 of 1 rows"):
        head.add_classes(1, points(1) * math.nan)
    assert len(head.proxies) == head.num_classes == 5


@every_head
def test_a_state_of_other_classes_is_refused_with_the_way_out(name):
    head, caller = make(name), type(make(name)).__name__
    saved = make(name, num_classes=6).state_dict()
    text = refusal_of(head.load_state_dict, saved)
    rows = 6 * len(head.proxies) // 4
    assert text.startswith(f"{caller}(state_dict='proxies of {rows} × 4'): expected {rows * 4 // 6} × 4, as ")
    assert text.endswith("make the head with num_classes=6, load, then call add_classes for more")
    text = refusal_of(head.load_state_dict, make(name, dim=3).state_dict())
    assert text.endswith("make the head with the options of the one that was saved")
    within = torch.nn.Sequential(head)
    assert refusal_of(within.load_state_dict, {"0.proxies": saved["proxies"]}).startswith(caller)


def test_first_proxies_of_many_classes_are_one_draw():
    blocks = list(first_proxies(3, 9001, 5))
    assert [block.start for block, _ in blocks] == [0, 4096, 8192]
    generator = torch.Generator().manual_seed(derive_key("proxies", 3))
    expected = torch.nn.functional.normalize(torch.randn(9001, 5, generator=generator))
    assert torch.equal(torch.cat([directions for _, directions in blocks]), expected)
