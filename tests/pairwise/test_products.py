import pytest
import torch

from tercet.pairwise import products
from tercet.pairwise.products import product_plus, product_side
from tests.helpers import points


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 70, 128), (200, 33, 5)])
def test_both_libraries_give_the_product(monkeypatch, shape, wide, dtype):
    monkeypatch.setattr(products, "_has_wide_units", lambda: wide)
    a, r, k = shape
    x, y, added = points(a, d=k).to(dtype), points(r, d=k, seed=1).to(dtype), torch.arange(r).to(dtype)
    side = product_side(x)
    assert side.is_mkldnn == (wide and dtype == torch.float32 and torch.backends.mkldnn.is_available())
    found = product_plus(side, y, added, torch.empty(a * r + 3, dtype=dtype))
    assert (found.shape, found.dtype, found.is_mkldnn) == ((a, r), dtype, False)
    expected = x.double() @ y.double().T + added
    assert torch.allclose(found.double(), expected, atol=1e-4, rtol=1e-6)


def test_a_lowered_precision_stays_with_the_library_that_it_was_set_for(monkeypatch):
    monkeypatch.setattr(products, "_has_wide_units", lambda: True)
    monkeypatch.setattr(products, "roundoff", lambda x: 2.0**-8)
    assert not product_side(points(4)).is_mkldnn


def test_switching_onednn_off_is_heeded(monkeypatch):
    monkeypatch.setattr(products, "_has_wide_units", lambda: True)
    torch.backends.mkldnn.enabled = False
    try:
        assert not product_side(points(4)).is_mkldnn
    finally:
        torch.backends.mkldnn.enabled = True
