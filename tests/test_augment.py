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

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.augment import KeyedTransform

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


GLOBAL_PIPELINE = pipeline()
GLOBAL_TABLE = {"train": [pipeline()]}
GLOBAL_GENERATOR = np.random.default_rng(0)


def from_global_pipeline(image):
    (out,) = [GLOBAL_PIPELINE(image=item)["image"] for item in (image,)]
    return out


def from_global_table(image):
    return GLOBAL_TABLE["train"][0](image=image)["image"]


def from_global_generator(image):
    return image + GLOBAL_GENERATOR.normal(size=3)


def through_another_function(image):
    return from_global_generator(image)


def with_default(image, generator=np.random.default_rng(0)):  # noqa: B008
    return image + generator.normal(size=3)


def with_rng(image, rng):
    return image + rng.normal(size=image.shape)


def with_keyword_rng(image, *, scale=2, rng):
    return image + scale * rng.normal(size=image.shape)


class Holder:
    """A callable with generators of its own."""

    def __init__(self, source):
        self.source = source

    def __call__(self, image):
        source = self.source
        if isinstance(source, A.BaseCompose):
            return source(image=image)["image"]
        if isinstance(source, torch.Generator):
            return image + torch.rand(3, generator=source).numpy()
        return image + source.uniform(0, 1)

    def method(self, image):
        return self(image)


def closing_over(source):
    holder = Holder(source)
    return lambda image: holder(image)


def lambda_pipeline():
    return A.Compose([A.Lambda(image=_noise, name="noise"), A.Rotate(p=1)])


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
    "a named pipeline": lambda: from_global_pipeline,
    "a named table": lambda: from_global_table,
    "a named generator": lambda: from_global_generator,
    "a function that names another": lambda: through_another_function,
    "a default": lambda: with_default,
    "a partial's argument": lambda: functools.partial(with_default, generator=np.random.default_rng(4)),
    "a pipeline in an attribute": lambda: Holder(pipeline()),
    "a generator in an attribute": lambda: Holder(np.random.default_rng()),
    "a legacy generator in an attribute": lambda: Holder(np.random.RandomState()),
    "python's generator in an attribute": lambda: Holder(random.Random()),
    "torch's generator in an attribute": lambda: Holder(torch.Generator()),
    "MT19937 in an attribute": lambda: Holder(np.random.Generator(np.random.MT19937())),
    "a method": lambda: Holder(pipeline()).method,
    "a closure": lambda: closing_over(pipeline()),
    "a closure over a generator": lambda: closing_over(random.Random()),
    "rng": lambda: with_rng,
    "keyword rng": lambda: with_keyword_rng,
}
EVERY = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS.keys())


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
    for key, image in reversed(list(zip(keys, images))):
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
        assert sum(same(a, b) for a, b in zip(base, changed)) <= 1  # a pipeline may leave an image alone


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
    DRAWS.clear()
    views = [augment(IMAGE, sample=3, view=view) for view in range(8)]
    assert len(set(DRAWS)) == 8
    assert not any(same(a, b) for i, a in enumerate(views) for b in views[:i])


def correlations(transform, count):
    """The largest |r| between any two of the numbers that two or more probes draw, over many images."""
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
        wrapped = KeyedTransform(closing_over(probes))
        assert correlations(lambda n, wrapped=wrapped: wrapped(IMAGE, sample=n), 400) < 0.2
    seeded = A.Compose([Probe(), Probe()], seed=0)
    assert correlations(lambda n: seeded(image=IMAGE), 100) > 0.99  # the fault itself, so the check can fail


def test_the_choice_of_one_of_is_independent_of_what_it_applies():
    probes = A.Compose([A.OneOf([Probe(), A.NoOp(p=1)], p=1), Probe()], seed=0)
    augment = KeyedTransform(probes)
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
    DRAWS.clear()
    augment(IMAGE)
    assert len(set(DRAWS)) == 2


def test_seeding_the_pipeline_changes_nothing():
    plain, augment = KeyedTransform(pipeline()), KeyedTransform(pipeline(seed=1))
    first = augment(IMAGE, sample=2)
    augment.transform.set_random_seed(99)  # as a worker_init_fn might
    assert same(augment(IMAGE, sample=2), first)
    assert same(plain(IMAGE, sample=2), first)


def test_a_wrapped_pipeline_draws_as_the_bare_one():
    assert same(
        KeyedTransform(closing_over(pipeline()))(IMAGE, sample=4), KeyedTransform(pipeline())(IMAGE, sample=4)
    )


def test_changing_one_transform_leaves_the_draws_of_the_others():
    def draws(*before):
        DRAWS.clear()
        KeyedTransform(A.Compose([*before, Probe()]))(IMAGE)
        return DRAWS[-1]

    assert draws(A.Rotate(p=1)) == draws(A.CoarseDropout(p=1)) == draws(A.NoOp(p=0))


# ── calling ──────────────────────────────────────────────────────────────────────────────────────────────


def test_only_a_parameter_called_rng_gets_a_generator():
    def anything(image, **options):
        assert not options
        return image

    def positional(image, rng, /):
        return image

    assert KeyedTransform(anything)(IMAGE) is IMAGE
    assert isinstance(KeyedTransform(lambda image, rng: rng)(IMAGE), np.random.Generator)
    assert isinstance(KeyedTransform(lambda image, rng=None: rng)(IMAGE), np.random.Generator)
    assert KeyedTransform(torch.nn.Identity())(IMAGE) is IMAGE
    assert same(KeyedTransform(np.negative)(IMAGE), np.negative(IMAGE))
    assert KeyedTransform(len)(IMAGE) == 24
    with pytest.raises(TypeError, match="rng"):
        KeyedTransform(positional)(IMAGE)


def test_what_is_no_transform_is_refused():
    with pytest.raises(
        ValueError, match=r"^KeyedTransform\(transform=3\): expected an albumentations transform or"
    ):
        KeyedTransform(3)
    with pytest.raises(ValueError, match="expected a transform that is not keyed yet"):
        KeyedTransform(KeyedTransform(len))
    with pytest.raises(
        ValueError, match=r"^KeyedTransform\(seed=-1\): expected a whole number of at least 0"
    ):
        KeyedTransform(len, seed=-1)


def test_the_operating_systems_generator_is_left_alone():
    assert KeyedTransform(Holder(random.SystemRandom()))(IMAGE).shape == IMAGE.shape


def test_things_that_refer_to_themselves_are_walked_once():
    holder = Holder(random.Random())
    holder.again = [holder, {"more": holder}]

    def recursive(image, depth=2):
        return recursive(image, depth - 1) if depth else holder(image)

    augment = KeyedTransform(recursive)
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


@pytest.mark.parametrize(
    "generator",
    [random.Random(1), np.random.default_rng(1), np.random.RandomState(1), torch.Generator()],
    ids=lambda generator: type(generator).__name__,
)
def test_generators_that_the_transform_holds_are_put_back(generator):
    def draw():
        if isinstance(generator, torch.Generator):
            return torch.rand(2, generator=generator).tolist()
        return [generator.random(), generator.random()]

    twin = copy.deepcopy(generator) if not isinstance(generator, torch.Generator) else generator.clone_state()
    KeyedTransform(Holder(generator))(IMAGE)
    after = draw()
    generator = twin
    assert draw() == after


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


@pytest.mark.parametrize(
    "make", [pipeline, lambda: from_all, lambda: from_global_pipeline, lambda: Holder(pipeline())]
)
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
        "import sys, tercet.augment as a, random\n"
        "k = a.KeyedTransform(lambda image: image + random.random())\n"
        "assert k(1) == k(1) != k(1, epoch=1)\n"
        "sys.exit(bool({'torch', 'albumentations', 'cv2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_numbers_in_another_process():
    code = (
        "import numpy as np, random, tercet.augment as a\n"
        "k = a.KeyedTransform(lambda image: (random.random(), np.random.random()), seed=7)\n"
        "print(k(0, epoch=1, sample=2, view=3))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    def draw(image):
        return random.random(), np.random.random()

    assert out.strip() == str(KeyedTransform(draw, seed=7)(0, epoch=1, sample=2, view=3))
