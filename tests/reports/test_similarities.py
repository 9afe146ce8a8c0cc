"""The picture of similarities."""

import cv2
import pytest
import torch

from tercet.reports import similarities
from tercet.reports.similarities import plot_similarities


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_the_picture_is_drawn_and_not_drawn_over(tmp_path, suffix):
    target = tmp_path / f"similarities{suffix}"
    embeddings = {"before": torch.eye(4), "after": torch.eye(4)[[0, 0, 1, 1]]}
    plot_similarities(target, embeddings, [0, 0, 1, 1])
    assert target.stat().st_size > 1000
    if suffix == ".png":
        assert cv2.imread(str(target)).std() > 20
    with pytest.raises(ValueError, match="expected a new file"):
        plot_similarities(target, embeddings, [0, 0, 1, 1])
    plot_similarities(target, embeddings, [0, 0, 1, 1], overwrite=True)
    with pytest.raises(ValueError, match=r"a name ending in \.png, \.pdf, \.svg"):
        plot_similarities(tmp_path / "x.bmp", embeddings, [0, 0, 1, 1])


def test_an_interrupted_picture_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        similarities, "similarity_histograms", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        plot_similarities(tmp_path / "s.png", {"x": torch.eye(2)}, [0, 1])
    assert not list(tmp_path.iterdir())
