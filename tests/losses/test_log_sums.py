import pytest
import torch

from tercet.losses.log_sums import log_sum

LOWEST = torch.finfo(torch.float32).min


def table(rows=6, columns=9, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, columns, generator=g, dtype=dtype)
    mask = torch.rand(rows, columns, generator=g) < 0.5
    mask[0], mask[1] = False, True
    return logits, mask


def by_loop(logits, mask):
    """log Σ exp of each row's listed entries alone."""
    lowest = torch.finfo(logits.dtype).min
    parts = [row[kept] for row, kept in zip(logits, mask, strict=True)]
    return torch.stack([part.logsumexp(0) if len(part) else part.new_tensor(lowest) for part in parts])


@pytest.mark.parametrize("scale", [1.0, 50.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sum_is_over_the_entries_of_the_mask_alone(dtype, scale):
    logits, mask = table(dtype=dtype)
    torch.testing.assert_close(log_sum(scale * logits, mask), by_loop(scale * logits, mask))
    torch.testing.assert_close(log_sum(logits.T, mask.T, dim=0), by_loop(logits, mask))


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_the_gradient_is_that_of_logsumexp_and_zero_where_nothing_is_summed(scale):
    logits, mask = table()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    weights = torch.arange(1.0, len(logits) + 1, dtype=logits.dtype)
    (log_sum(scale * ours, mask) * weights)[1:].sum().backward()
    (by_loop(scale * theirs, mask) * weights)[1:].sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert bool((ours.grad[~mask] == 0).all())


def test_a_row_of_which_nothing_is_summed_is_the_lowest_number_and_has_no_gradient():
    logits, mask = table(dtype=torch.float32)
    logits = logits.requires_grad_()
    total = log_sum(logits, mask)
    assert total[0].item() == LOWEST
    total[0].backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_first_and_second_derivatives_are_those_of_differences():
    logits, mask = table(rows=3, columns=4)
    logits = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: log_sum(v, mask)[1:], logits)
    assert torch.autograd.gradgradcheck(lambda v: log_sum(v, mask)[1:], logits)
