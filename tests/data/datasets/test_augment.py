"""Keyed augmentation: the same key, the same numbers; another key, other numbers; and no trace left."""
# ruff: noqa: NPY002 (transforms that draw from numpy's global generator are what is tested)

import copy
import functools
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.data.datasets.augment import KeyedTransform, _keyed_globals, _keyed_nodes

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

torch.set_num_threads(1)
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
DRAWS = []


class Probe(A.ImageOnlyTransform):
    """Leaves the image alone and notes what its generators give."""

    def __init__(self, p=1.0):
        super().__init__(p=p)

    def apply(self, img, **params):
        DRAWS.append((self.py_random.random(), float(self.random_generator.random())))
        return img


def pipeline(seed=None):
    return A.Compose(
        [
            A.RandomResizedCrop((16, 16), scale=(0.3, 1.0)),
            A.HorizontalFlip(p=0.5),
            A.OneOf([A.ColorJitter(p=1), A.GaussNoise(p=1)], p=0.8),
            A.SomeOf([A.VerticalFlip(), A.CoarseDropout(p=1), A.Sequential([A.Rotate(p=1)], p=1)], n=2),
        ],
        seed=seed,
    )


# Everything below draws, each in its own way.


def from_numpy(image):
    return image + np.random.normal(size=image.shape)


def from_python(image):
    return image + [random.random() for _ in range(3)]


def from_torch(image):
    return torch.as_tensor(image) + torch.rand(3)


def from_all(image):
    return from_numpy(from_python(image)) + torch.rand(3).numpy()


class Torn(torch.nn.Module):
    """A module that draws from torch's global generator."""

    def forward(self, image):
        return torch.as_tensor(image) + torch.rand(3)


class Through:
    """A callable that draws in a method of a method, without attributes."""

    __slots__ = ()

    def __call__(self, image):
        return self.helper(image)

    def helper(self, image):
        return from_all(image)


def with_rng(image, rng):
    return image + rng.normal(size=image.shape)


def with_keyword_rng(image, *, scale=2, rng):
    return image + scale * rng.normal(size=image.shape)


def lambda_pipeline():
    return A.Compose([A.OneOf([A.Lambda(image=_noise, name="noise", p=1)], p=1), A.Rotate(p=1)])


def _noise(image, **_):
    return (image + np.random.randint(9)).astype(np.uint8)


TRANSFORMS = {
    "albumentations": pipeline,
    "albumentations with a seed": lambda: pipeline(seed=3),
    "one albumentations transform": lambda: A.GaussNoise(p=1),
    "an albumentations Lambda": lambda_pipeline,
    "numpy": lambda: from_numpy,
    "python": lambda: from_python,
    "torch": lambda: from_torch,
    "all three": lambda: from_all,
    "a partial": lambda: functools.partial(from_all),
    "a module": Torn,
    "a callable object": Through,
    "a method": lambda: Through().helper,
    "rng": lambda: with_rng,
    "keyword rng": lambda: with_keyword_rng,
}
EVERY = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS.keys())


# Everything below draws from a generator that no key reaches.

PIPELINE = pipeline()
GENERATOR = np.random.default_rng(0)


class Naming(torch.nn.Module):
    def forward(self, image):
        return torch.as_tensor(PIPELINE(image=image)["image"])


class Slotted:
    __slots__ = ("rebound",)

    def __init__(self):
        self.rebound = random.Random(0)

    def __call__(self, image):
        return self.helper(image)

    def helper(self, image):
        self.rebound = random.Random(self.rebound.random())
        return image + self.rebound.random()


class OwnGenerator(A.ImageOnlyTransform):
    def apply(self, img, **params):
        return (img + GENERATOR.integers(100)).astype(np.uint8)


def around(transform):
    return lambda image: transform(image=image)["image"]


def from_default(image, generator=np.random.default_rng(0)):  # noqa: B008
    return image + generator.normal(size=3)


def from_torch_generator(image, generator=torch.Generator()):  # noqa: B008
    return torch.as_tensor(image) + torch.rand(3, generator=generator)


UNREACHED = {
    "a function around a pipeline": lambda: around(pipeline()),
    "around a seeded pipeline": lambda: around(pipeline(seed=3)),
    "around one transform": lambda: around(A.GaussNoise(p=1)),
    "a module that names a pipeline": Naming,
    "a generator rebound at each call": Slotted,
    "a method": lambda: Slotted().helper,
    "a default": lambda: from_default,
    "a partial's argument": lambda: functools.partial(from_default, generator=np.random.RandomState(4)),
    "a generator of torch": lambda: from_torch_generator,
    "a fresh generator": lambda: lambda image: image + np.random.default_rng().random(),
    "the operating system's": lambda: lambda image: image + random.SystemRandom().random(),
    "sizes only": lambda: lambda image: image[: GENERATOR.integers(1, 20)],
    "a pipeline's transform": lambda: A.Compose([A.OneOf([OwnGenerator(p=1)], p=1)]),
}

UNREACHED_SENTENCE = (
    r"(?s)^KeyedTransform\(transform=.*\): expected one that gives the same image twice when the global "
    r"generators are seeded alike; it draws from a generator of its own; "
)


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def globals_now():
    python, (_, words, place, has_gauss, gauss) = random.getstate(), np.random.get_state()
    return python, words.tobytes(), place, has_gauss, gauss, torch.get_rng_state().numpy().tobytes()


# ── a function of the key ────────────────────────────────────────────────────────────────────────────────


@EVERY
def test_the_same_key_gives_the_same_image_in_any_order(make):
    augment, other = KeyedTransform(make(), seed=5), KeyedTransform(make(), seed=5)
    keys = [{"epoch": e, "sample": s, "view": v} for e in (0, 1) for s in (0, 7) for v in (0, 1)]
    images = [augment(IMAGE.copy(), **key) for key in keys]
    for key, image in reversed(list(zip(keys, images, strict=True))):
        assert same(augment(IMAGE.copy(), **key), image)
        assert same(other(IMAGE.copy(), **key), image)  # nothing of the object enters but its parts


@EVERY
def test_another_seed_epoch_sample_or_view_gives_another_image(make):
    def series(seed=0, **key):
        augment = KeyedTransform(make(), seed=seed)
        return [augment(IMAGE.copy(), **{"epoch": 0, "sample": n, "view": 0, **key}) for n in range(4)]

    base = series()
    assert sum(same(a, b) for i, a in enumerate(base) for b in base[:i]) <= 1
    for changed in (series(seed=1), series(epoch=1), series(view=1)):
        assert (
            sum(same(a, b) for a, b in zip(base, changed, strict=True)) <= 1
        )  # a pipeline may leave an image alone


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(*[st.integers(0, 2**40)] * 3), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_a_draw_depends_on_its_key_alone(keys, shuffler):
    augment = KeyedTransform(from_all)
    images = {key: augment(IMAGE, epoch=key[0], sample=key[1], view=key[2]) for key in keys}
    shuffler.shuffle(keys)
    for key in keys:
        assert same(augment(IMAGE, epoch=key[0], sample=key[1], view=key[2]), images[key])


def test_samples_may_have_names():
    augment = KeyedTransform(with_rng)
    assert same(augment(IMAGE, sample="ant/1"), augment(IMAGE, sample="ant/1"))
    assert not same(augment(IMAGE, sample="ant/1"), augment(IMAGE, sample="ant/2"))
    assert not same(augment(IMAGE, sample="1"), augment(IMAGE, sample=1))


def test_case_two_views_get_the_same_parameters():
    augment = KeyedTransform(A.Compose([Probe(), A.RandomResizedCrop((8, 8))], seed=0))
    augment(IMAGE)  # which proves it first
    DRAWS.clear()
    views = [augment(IMAGE, sample=3, view=view) for view in range(8)]
    assert len(set(DRAWS)) == 8
    assert not any(same(a, b) for i, a in enumerate(views) for b in views[:i])


def correlations(transform, count):
    """The largest |r| between any two of the numbers that two or more probes draw, over many images."""
    transform(0)
    DRAWS.clear()
    for number in range(count):
        transform(number)
    draws = np.array(DRAWS).reshape(count, -1)
    return np.abs(np.corrcoef(draws.T) - np.eye(draws.shape[1])).max()


def test_case_a_seeded_compose_makes_its_transforms_perfectly_correlated():
    for seed in (0, None):
        probes = A.Compose([Probe(), A.Sequential([Probe(), A.Compose([Probe()])], p=1), Probe()], seed=seed)
        augment = KeyedTransform(probes)
        assert correlations(lambda n, augment=augment: augment(IMAGE, sample=n), 400) < 0.2
    seeded = A.Compose([Probe(), Probe()], seed=0)
    assert correlations(lambda n: seeded(image=IMAGE), 100) > 0.99  # the fault itself, so the check can fail


def test_the_choice_of_one_of_is_independent_of_what_it_applies():
    probes = A.Compose([A.OneOf([Probe(), A.NoOp(p=1)], p=1), Probe()], seed=0)
    augment = KeyedTransform(probes)
    augment(IMAGE)
    chosen = []
    for number in range(600):
        DRAWS.clear()
        augment(IMAGE, sample=number)
        chosen.append((len(DRAWS) == 2, DRAWS[-1][0] < 0.5))
    table = np.histogram2d(*np.array(chosen, dtype=int).T, bins=2)[0]
    assert table.min() > 110  # 150 expected, σ = 11


def test_a_transform_that_occurs_twice_draws_twice():
    probe = Probe()
    augment = KeyedTransform(A.Compose([probe, A.OneOf([probe], p=1)]))
    augment(IMAGE)
    DRAWS.clear()
    augment(IMAGE)
    assert len(set(DRAWS)) == 2


def test_seeding_the_pipeline_changes_nothing():
    plain, augment = KeyedTransform(pipeline()), KeyedTransform(pipeline(seed=1))
    first = augment(IMAGE, sample=2)
    augment.transform.set_random_seed(99)  # as a worker_init_fn might
    assert same(augment(IMAGE, sample=2), first)
    assert same(plain(IMAGE, sample=2), first)


def test_a_pipeline_may_be_changed_after_its_first_use():
    augment, fresh = KeyedTransform(A.Compose([A.NoOp()])), KeyedTransform(A.Compose([A.NoOp()]))
    augment(IMAGE)
    for one in (augment, fresh):
        one.transform.transforms.append(A.Sequential([A.GaussNoise(p=1), A.Lambda(image=_noise, p=1)], p=1))
    images = [augment(IMAGE, sample=n) for n in range(3)]
    assert all(same(fresh(IMAGE, sample=n), images[n]) for n in range(3))
    assert not same(images[0], images[1])


def test_the_generators_of_one_key_are_unrelated():
    def draw(image, **_):
        own = random.random(), np.random.random(), float(torch.rand((), dtype=torch.float64))
        numbers.append((*own, *DRAWS[-1]))
        return image

    numbers = []
    augment = KeyedTransform(A.Compose([Probe(), A.Lambda(image=draw, p=1)]))
    augment(IMAGE)
    numbers.clear()
    for number in range(400):
        augment(IMAGE, sample=number)
    table = np.array(numbers)
    assert np.abs(np.corrcoef(table.T) - np.eye(5)).max() < 0.2


def test_the_pipelines_stream_is_none_of_the_global_ones():
    probe = Probe()
    with _keyed_globals(9), _keyed_nodes([probe], 9):
        own = [probe.py_random.random(), probe.random_generator.random()]
        assert len({*own, random.random(), np.random.random(), float(torch.rand(()))}) == 5


def test_keys_that_share_32_bits_give_other_numbers(monkeypatch):
    words = iter([5, 5, 5, 5 | 3 << 60, 5 | 3 << 60, 5 | 3 << 60])
    monkeypatch.setattr("tercet.data.datasets.augment.derive_key", lambda *_: next(words))
    draws = []
    for _ in range(2):
        with _keyed_globals(0):
            draws.append((random.random(), np.random.random(), float(torch.rand(()))))
    assert all(a != b for a, b in zip(*draws, strict=True))


# ── the proof ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", UNREACHED.values(), ids=UNREACHED.keys())
def test_a_transform_with_a_generator_of_its_own_is_refused(make):
    augment = KeyedTransform(make())
    before = globals_now()
    for _ in range(2):
        with pytest.raises(ValueError, match=UNREACHED_SENTENCE) as caught:
            augment(IMAGE)
    assert globals_now() == before
    assert str(caught.value).endswith(
        "draw from `self.random_generator` or `self.py_random` in its transforms"
        if isinstance(augment.transform, A.Compose)
        else "take a parameter `rng` and draw from that, or pass the albumentations pipeline itself if it is "
        "a function around one"
    )


def test_the_ways_out_of_the_refusal():
    inner = pipeline()
    assert same(KeyedTransform(inner)(IMAGE), KeyedTransform(inner)(IMAGE))

    def drawing(image, rng):
        return from_default(image, rng)

    assert same(KeyedTransform(drawing)(IMAGE), KeyedTransform(drawing)(IMAGE))


def test_a_transform_is_proven_once_and_only_where_it_is_needed(monkeypatch):
    calls = []

    def counting(image):
        calls.append(0)
        return from_all(image)

    augment = KeyedTransform(counting)
    augment(IMAGE)
    assert len(calls) == 1 + 2 * 8 + 1
    augment(IMAGE, epoch=1)
    assert len(calls) == 1 + 2 * 8 + 2
    calls.clear()
    KeyedTransform(lambda image, rng: counting(image))(IMAGE)
    monkeypatch.setattr(A.HorizontalFlip, "apply", lambda self, img, **_: counting(img))
    KeyedTransform(A.Compose([A.HorizontalFlip(p=1)]))(IMAGE)
    assert len(calls) == 2


def test_the_proof_works_on_copies():
    def blacken(image):
        before = image.copy()
        image[:] = 0
        return before

    image = IMAGE.copy()
    assert same(KeyedTransform(blacken)(image), IMAGE)
    assert not image.any()


def test_the_proof_takes_nan_for_equal_and_passes_over_other_results():
    whole = np.full((2, 2), np.nan)
    assert np.isnan(KeyedTransform(lambda image: whole + image)(0)).all()
    assert KeyedTransform(lambda image: torch.tensor([torch.nan, 1]))(0)[1] == 1
    assert KeyedTransform(lambda image: torch.tensor([True]))(0)
    assert KeyedTransform(lambda image: torch.ones(2, dtype=torch.bfloat16, requires_grad=True))(0).sum() == 2
    counter = iter(range(100))
    assert KeyedTransform(lambda image: {"image": next(counter)})(0) == {"image": 17}


def test_a_transform_that_imports_torch_is_not_refused_for_it(monkeypatch):
    def late(image):
        monkeypatch.setitem(sys.modules, "torch", torch)
        return from_torch(image)

    monkeypatch.delitem(sys.modules, "torch")
    augment = KeyedTransform(late)
    assert same(augment(IMAGE), augment(IMAGE))


# ── no trace ─────────────────────────────────────────────────────────────────────────────────────────────


@EVERY
def test_the_global_generators_are_left_as_they_were(make):
    augment = KeyedTransform(make())
    np.random.seed(0)
    np.random.normal()  # one cached normal, which must survive too
    random.gauss(0, 1)
    before = globals_now()
    augment(IMAGE)
    augment(IMAGE, epoch=1)
    assert globals_now() == before


def test_the_global_generators_are_put_back_after_an_error():
    def fails(image):
        random.random(), np.random.random(), torch.rand(1)
        raise KeyError("no")

    before = globals_now()
    with pytest.raises(KeyError):
        KeyedTransform(fails)(IMAGE)
    assert globals_now() == before


def test_the_state_of_the_global_generators_does_not_enter():
    augment = KeyedTransform(from_all)
    first = augment(IMAGE)
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.default_generator.manual_seed(seed)
        assert same(augment(IMAGE), first)


@pytest.mark.parametrize("fails", [False, True])
def test_a_pipeline_used_directly_afterwards_draws_as_if_nothing_had_been(fails):
    def crash(image, **_):
        if fails and keyed:
            raise KeyError("no")
        return image

    noise = A.GaussNoise(p=1)
    parts = [noise, A.OneOf([A.ColorJitter(p=1), A.Rotate(p=1)], p=1), noise, A.Lambda(image=crash, p=1)]
    used = A.Compose([A.Sequential(parts, p=1)], seed=1)
    keyed = False
    used(image=IMAGE)  # so that the generators are no longer where a seed puts them
    twin = copy.deepcopy(used)
    augment, keyed = KeyedTransform(used), True
    for sample in range(3):
        with pytest.raises(KeyError) if fails else nullcontext():
            augment(IMAGE, sample=sample)
    keyed = False
    for _ in range(5):
        assert same(used(image=IMAGE)["image"], twin(image=IMAGE)["image"])


@pytest.mark.parametrize("foreign", [False, True])
def test_a_pipeline_of_the_librarys_own_transforms_runs_beside_the_global_generators(monkeypatch, foreign):
    seen = []
    monkeypatch.setattr(A.HorizontalFlip, "apply", lambda self, img, **_: seen.append(globals_now()) or img)
    augment = KeyedTransform(A.Compose([A.HorizontalFlip(p=1), *([Probe()] if foreign else [])]))
    before = globals_now()
    augment(IMAGE)
    assert (seen[0] == before) is not foreign
    assert globals_now() == before


# ── threads and processes ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "make", [pipeline, lambda: from_all, lambda: with_rng], ids=["albumentations", "plain", "rng"]
)
def test_threads_draw_as_one_does(make):
    augment = KeyedTransform(make())
    alone = [augment(IMAGE, sample=n) for n in range(64)]
    before = globals_now()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: augment(IMAGE, sample=n), range(64)))
    assert all(map(same, alone, together))
    assert globals_now() == before


@pytest.mark.parametrize("make", [pipeline, lambda: from_all, lambda: with_rng, Through])
def test_a_copy_draws_as_the_original(make):
    augment = KeyedTransform(make(), seed=2)
    expected = augment(IMAGE, sample=1)
    assert same(pickle.loads(pickle.dumps(augment))(IMAGE, sample=1), expected)
    assert same(copy.deepcopy(augment)(IMAGE, sample=1), expected)
    assert same(augment(IMAGE, sample=1), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_transforms_does_not_hang():
    inside, leave = threading.Event(), threading.Event()
    expected = KeyedTransform(from_all)(IMAGE)

    def slow(image):
        inside.set()
        leave.wait(20)
        return image

    thread = threading.Thread(target=KeyedTransform(slow), args=(IMAGE,))
    thread.start()
    inside.wait(20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is the point
        child = os.fork()
    if child == 0:
        signal.alarm(10)
        os._exit(0 if same(KeyedTransform(from_all)(IMAGE), expected) else 1)
    _, status = os.waitpid(child, 0)
    leave.set()
    thread.join()
    assert status == 0


def test_importing_loads_neither_albumentations_nor_torch():
    code = (
        "import sys, tercet.data.datasets.augment as a, random\n"
        "k = a.KeyedTransform(lambda image: image + random.random())\n"
        "assert k(1) == k(1) != k(1, epoch=1)\n"
        "sys.exit(bool({'torch', 'albumentations', 'cv2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_numbers_in_another_process():
    code = (
        "import numpy as np, random, tercet.data.datasets.augment as a\n"
        "k = a.KeyedTransform(lambda image: (random.random(), np.random.random()), seed=7)\n"
        "print(k(0, epoch=1, sample=2, view=3))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    def draw(image):
        return random.random(), np.random.random()

    assert out.strip() == str(KeyedTransform(draw, seed=7)(0, epoch=1, sample=2, view=3))
