import numpy as np
import pytest
import torch

from tercet.metrics import episodes
from tercet.metrics.episodes import few_shot, played
from tests.helpers import points, refusal_of


def test_separate_classes_are_all_right_and_collapsed_ones_are_chance():
    labels = np.repeat(np.arange(6), 20)
    assert few_shot(np.repeat(np.eye(6), 20, axis=0), labels, episodes=20) == 1
    assert few_shot(np.ones((120, 4)), labels, episodes=20) == pytest.approx(1 / 5)


def test_an_episode_is_a_function_of_the_seed_and_its_number():
    x, labels = points(200, 6), torch.arange(200) % 8
    few, many = few_shot(x, labels, episodes=5, seed=3), few_shot(x, labels, episodes=9, seed=3)
    assert few.values.tolist() == many.values[:5].tolist()
    assert few_shot(x, labels, episodes=5, seed=4).values.tolist() != few.values.tolist()
    assert len(set(many.values.tolist())) > 3


def test_means_of_more_images_are_nearer():
    centres = 2 * points(10, 16, seed=1).repeat_interleave(40, 0)
    x, labels = centres / 2 + 1.5 * points(400, 16), np.repeat(np.arange(10), 40)
    accuracy = [few_shot(x, labels, shots=shots, episodes=100) for shots in (1, 5, 20)]
    assert accuracy == sorted(accuracy)
    assert accuracy[0] < accuracy[2]


def test_small_classes_are_counted_and_too_few_refused():
    labels = [0] * 6 + [1] * 6 + [2] * 2
    assert few_shot(points(14), labels, ways=2, queries=5, episodes=3).left_out == 1
    said = refusal_of(few_shot, points(14), labels, ways=3, queries=5)
    assert said.startswith("few_shot(ways=3): expected at most 2, the classes with 6 images or more; lower")


def test_episodes_without_a_class_are_those_that_did_not_draw_it(monkeypatch):
    seen, one = [], episodes._episode

    def watched(*args):
        seen.append(one(*args))
        return seen[-1]

    monkeypatch.setattr(episodes, "_episode", watched)
    score, without = played(points(160, 4), np.arange(160) // 20, ways=3, episodes=40)
    assert score == np.mean([value for value, _ in seen])
    for c in range(8):
        assert without[c] == pytest.approx(np.mean([value for value, drawn in seen if c not in drawn]))
