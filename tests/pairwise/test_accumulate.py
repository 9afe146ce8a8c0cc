import pytest
import torch

from tercet.pairwise.accumulate import Masked, counted_losses, summed, tiled_mean, tiled_sum, with_gradient
from tests.helpers import points


def test_a_tiled_sum_and_its_gradient_equal_the_sum():
    x, y = points(6).requires_grad_(), points(5, seed=1).requires_grad_()

    def terms(x, y):
        for i in range(6):
            yield (x[i] * y).square().sum(), torch.tensor(i)

    total, count = tiled_sum("Head", terms, x, y)
    (2 * total).backward()
    grads = x.grad, y.grad
    x.grad = y.grad = None
    expected = (x[:, None] * y).square().sum()
    (2 * expected).backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(grads, (x.grad, y.grad))
    assert count.item() == 15
    assert not count.requires_grad


def test_a_tiled_sum_keeps_one_graph_at_a_time():
    alive = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.token = alive
            alive.append(1)
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            alive.pop()
            return grad.expand(3)

    def terms(x):
        for _ in range(4):
            assert not alive
            yield Watched.apply(x), torch.tensor(1)

    x = torch.ones(3, requires_grad=True)
    tiled_sum("Head", terms, x)[0].backward()
    assert x.grad.tolist() == [4, 4, 4]


def test_a_tiled_sum_computes_only_the_gradients_that_are_asked_for():
    seen = []

    def terms(x, y):
        seen.append((x.requires_grad, y.requires_grad))
        yield (x * y).sum(), torch.tensor(1)

    x, y = torch.ones(2, requires_grad=True), torch.ones(2)
    assert tiled_sum("Head", terms, x, y)[0].requires_grad
    with torch.no_grad():
        assert not tiled_sum("Head", terms, x, y)[0].requires_grad
    assert not tiled_sum("Head", terms, y, y)[0].requires_grad
    assert seen == [(True, False), (False, False), (False, False)]


def test_a_tiled_sum_refuses_a_second_derivative():
    x = torch.ones(2, requires_grad=True)
    total, _ = tiled_sum("Head", lambda x: iter([(x.square().sum(), torch.tensor(1))]), x)
    with pytest.raises(
        ValueError,
        match=r"Head\(create_graph=True\): expected False, since this loss can be differentiated only",
    ):
        torch.autograd.grad(total, x, create_graph=True)


def test_a_mean_over_nothing_is_0_with_a_graph():
    x = torch.ones(2, requires_grad=True)
    loss = tiled_mean("Head", "mean", lambda x: iter([]), x)
    loss.backward()
    assert loss.item() == 0
    assert x.grad.tolist() == [0, 0]


def test_the_reductions_count_what_they_average():
    losses = torch.tensor([0.0, 2.0, 4.0])
    for reduction, count in (("mean_active", 2), ("mean", 3), ("sum", 3)):
        value, number = summed(losses, reduction)
        assert (value.item(), number.item()) == (6, count)
        mean = tiled_mean("Head", reduction, lambda x: iter([summed(x, reduction)]), losses)  # noqa: B023
        assert mean.item() == {"mean_active": 3, "mean": 2, "sum": 6}[reduction]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_known_gradient_is_that_of_the_sum_and_goes_only_where_one_is_wanted(reduction):
    x, y = torch.ones(2, requires_grad=True), torch.ones(3)
    share = 4 if reduction == "mean" else 1
    value = torch.tensor(6.0, dtype=torch.float64)
    for inputs, gradients in (((x, y), (torch.tensor([1.0, 2.0]), None)), ((y,), ())):
        loss = with_gradient("Head", reduction, value, torch.tensor(4), gradients, inputs)
        assert loss.dtype == torch.float32
        assert loss.item() == 6 / share
    x.grad = None
    with_gradient("Head", reduction, value, torch.tensor(4), [torch.tensor([1.0, 2.0])], [x]).backward()
    assert x.grad.tolist() == [1 / share, 2 / share]


@pytest.mark.parametrize("reduction", ["mean_active", "mean", "sum"])
def test_masked_losses_add_up_as_the_chosen_ones_do(reduction):
    losses = points(7).relu()
    counts = points(7, seed=1) > 0
    chosen = counted_losses(losses, counts, reduction)
    assert torch.equal(chosen, losses[counts])
    value, number = summed(Masked(losses, counts), reduction)
    expected, count = summed(chosen, reduction)
    torch.testing.assert_close(value, expected)
    assert number == count
