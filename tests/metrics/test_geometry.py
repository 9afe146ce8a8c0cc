import math

import numpy as np
import pytest
import torch

from tercet.metrics.geometry import geometry, shape_of
from tests.helpers import points, refusal_of


def by_loop(x, labels, k):
    """Uniformity, alignment and hubness, in loops over pairs."""
    units = [row / np.linalg.norm(row) for row in x]
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    apart = {(i, j): float(((units[i] - units[j]) ** 2).sum()) for i, j in pairs}
    same = [apart[i, j] for i, j in pairs if labels[i] == labels[j]]
    times = [0] * len(x)
    for i, row in enumerate(x):
        order = sorted((j for j in range(len(x)) if j != i), key=lambda j, row=row: ((row - x[j]) ** 2).sum())
        for j in order[:k]:
            times[j] += 1
    mean = sum(times) / len(times)
    moments = [sum((t - mean) ** p for t in times) / len(times) for p in (2, 3)]
    uniformity = math.log(sum(math.exp(-2 * v) for v in apart.values()) / len(pairs))
    return uniformity, sum(same) / len(same), moments[1] / moments[0] ** 1.5


def test_figures_equal_loops():
    x, labels = points(30, 5), (torch.arange(30) % 7).tolist()
    found = geometry(x, labels, k=4)
    uniformity, alignment, hubness = by_loop(x.double().numpy(), labels, 4)
    assert found.uniformity == pytest.approx(uniformity)
    assert found.alignment == pytest.approx(alignment)
    assert found.hubness == pytest.approx(hubness)
    sigma = np.linalg.svd(x.double().numpy(), compute_uv=False)
    share = sigma / sigma.sum()
    assert found.effective_rank == pytest.approx(math.exp(-(share * np.log(share)).sum()))


def test_collapse_and_bad_rows_are_seen():
    x = torch.ones(10, 4)
    assert geometry(x).effective_rank == pytest.approx(1, abs=1e-5)
    assert (geometry(x).uniformity, geometry(x).tied) == (pytest.approx(0), 1)
    x = points(10)
    x[3] = math.nan
    x[5] = x[4]
    found = geometry(x, torch.arange(10) // 2)
    assert (found.not_finite, found.tied) == (pytest.approx(0.1), pytest.approx(2 / 9))
    assert found.alignment == pytest.approx(
        geometry(np.delete(x.numpy(), 3, 0), [0, 0, 1, 2, 2, 3, 3, 4, 4])[2]
    )


def test_nothing_is_nan_and_odd_shapes_are_refused():
    assert math.isnan(geometry(points(1)).uniformity)
    assert math.isnan(geometry(points(4)).alignment)
    assert "labels" in refusal_of(geometry, points(4), [0, 0, 1])
    assert "shape" in refusal_of(geometry, points(4)[0])


def test_figures_without_each_class_are_those_of_the_others():
    x, labels = points(60, 5), np.arange(60) % 6
    x[7], x[12] = x[1], x[0]
    x[9] = math.nan
    found, without = shape_of(x, labels, 4)
    assert found == geometry(x, labels, k=4)
    assert list(without) == list(found.figures())
    finite = [i for i in range(60) if i != 9]
    order = torch.cdist(x[finite].double(), x[finite].double()).fill_diagonal_(math.inf).argsort(1)
    times = np.bincount(order[:, :4].flatten().numpy(), minlength=59)
    for c in range(6):
        others = geometry(x[labels != c], labels[labels != c], k=4)
        for name in ("uniformity", "alignment", "rows of NaN"):
            assert without[name][c] == pytest.approx(others.figures()[name]), name
        assert without["effective rank"][c] == pytest.approx(others.effective_rank, abs=0.05)
        kept = np.array([times[i] for i, row in enumerate(finite) if labels[row] != c], dtype=float)
        off = kept - kept.mean()  # as often as in the whole collection
        assert without["hubness"][c] == pytest.approx((off**3).mean() / (off**2).mean() ** 1.5)
        tied = [row in (0, 12, 1, 7) for row in finite if labels[row] != c]
        assert without["tied rows"][c] == pytest.approx(np.mean(tied))


def test_without_labels_there_are_no_classes_to_leave_out():
    assert shape_of(points(20), None)[1] == {}
    assert shape_of(points(1), [0])[1] == {}
