"""What the tests of several files share: refusals, numbers, files, tars and epochs of samplers."""

import io
import random
import tarfile
from contextlib import contextmanager
from functools import partial

import cv2
import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.utils.data import Dataset

from tercet.core.randomness import derive_key, keyed_uniform
from tercet.data.catalog.scan import scan_folder

# ── calls ────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def unchecked():
    """tercet as a user runs it, without the type checks of the test run: its own messages come through."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def refusal_of(call, *args, **options):
    """The text of the ValueError with which a call is refused."""
    with pytest.raises(ValueError, match=r".") as raised:
        call(*args, **options)
    assert type(raised.value) is ValueError
    return str(raised.value)


class Continue:
    """A handler of errors that notes their texts and returns `answer`."""

    def __init__(self, answer=True):
        self.told, self.answer = [], answer

    def __call__(self, error):
        self.told.append(str(error))
        return self.answer


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────


def points(n, d=4, seed=0, dtype=None):
    """Normal numbers [n, d]: drawn in float32, or where a dtype is given in float64 and rounded to it."""
    drawn_in = torch.float32 if dtype is None else torch.float64
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=drawn_in)
    return x if dtype is None else x.to(dtype)


double_points = partial(points, dtype=torch.float64)


def grid(n, d=2, seed=0):
    """Whole numbers from 0 to 2 [n, d]: full of exact ties and duplicates."""
    return torch.randint(0, 3, (n, d), generator=torch.Generator().manual_seed(seed)).float()


def uniforms(n, *key):
    """n numbers in [0, 1) that are the same under every version of numpy."""
    return keyed_uniform(derive_key("test", *key), np.arange(n))


def listed(columns):
    """Triplets or pairs of rows as a list of tuples of int."""
    return list(zip(*(column.tolist() for column in columns), strict=True))


def as_set(columns):
    """Mined triplets as a set of (anchor, positive, negative)."""
    return set(map(tuple, torch.stack(tuple(columns)).T.tolist()))


def jaccard(a, b):
    """|A ∩ B| / |A ∪ B| of the labels that two rows of 0 and 1 bear."""
    a, b = ({i for i, bit in enumerate(row) if bit} for row in (a, b))
    return len(a & b) / max(1, len(a | b))


def noise(image, rng):
    """An augmentation that draws its own numbers."""
    return (image + rng.normal(size=image.shape)).astype(np.float32)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────


def names(folder):
    """The names of what lies in a folder, sorted."""
    return sorted(file.name for file in folder.iterdir())


def contents(folder):
    """The bytes of each file of a folder, by name."""
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*")}
    return {name: file.read_bytes() if file.is_file() else None for name, file in files.items()}


def tree(top, *names):
    """A folder with files of these names, of one byte each."""
    for name in names:
        file = top / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return top


def picture(path, seed=0):
    """An image of random pixels, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


def photos(top, sizes=(9, 4, 1, 6), seed=0):
    """The catalog of class folders of files of random bytes, of all suffixes, below two parents."""
    draw = np.random.default_rng(seed)
    suffixes = (".jpg", ".JPG", ".jpeg", ".png", ".webp")
    for label, size in enumerate(sizes):
        folder = top / f"parent {label % 2}" / f"class é{label}"
        folder.mkdir(parents=True)
        for image in range(size):
            content = draw.bytes(int(draw.integers(1, 3000)))
            (folder / f"v1.{image}, x{suffixes[image % len(suffixes)]}").write_bytes(content)
    return scan_folder(top)


def flip(path, offset):
    """Inverts one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def write_tar(path, *named, format=tarfile.GNU_FORMAT):
    """A tar of (name, content)."""
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in named:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tar_of_images(path, start=0):
    """A tar of four images of each of two classes."""
    parts = [
        (f"{number}.{suffix}", content)
        for number in range(start, start + 8)
        for suffix, content in (("pgm", b"P5 2 1 255 " + bytes([number, 9])), ("cls", b"%d" % (number // 4)))
    ]
    return write_tar(path, *parts)


def samples_of(labels, start=0):
    """Samples of a stream, {"__key__": name, extension: content} each."""
    return [
        {"__key__": f"{n:06}", "jpg": b"image %d" % n, "cls": b"%d" % label}
        for n, label in enumerate(labels, start)
    ]


def write_samples(path, samples):
    """A tar of samples."""
    return str(
        write_tar(
            path,
            *(
                (f"{sample['__key__']}.{extension}", content)
                for sample in samples
                for extension, content in sample.items()
                if extension != "__key__"
            ),
        )
    )


# ── samplers ─────────────────────────────────────────────────────────────────────────────────────────────

stateful = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata's own
laws = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def labels_of(sizes, seed=0):
    """One label an image, class c with sizes[c] images, in mixed order."""
    labels = [c for c, size in enumerate(sizes) for _ in range(size)]
    random.Random(seed).shuffle(labels)
    return labels


UNEVEN = labels_of([2, 3, 3, 4, 5, 7, 9, 12])


def plain(batches):
    """Batches as lists of (row, epoch, view), which compare by value."""
    return [[(int(row), row.epoch, row.view) for row in batch] for batch in batches]


def epoch_of(sampler, epoch):
    """Every batch of an epoch, as `plain` gives them."""
    return plain(sampler.batch(epoch, step) for step in range(len(sampler)))


class Rows(Dataset):
    """A dataset of what arrives in a worker."""

    def __getitem__(self, row):
        return int(row), row.epoch, row.view


def loaded(loader):
    """Batches of a loader over `Rows`, as `plain` gives them."""
    return [listed(batch) for batch in loader]


def lowered(x, bits, cut=False):
    """float32 with so many bits of fraction, as tensor cores take factors: rounded, or cut off."""
    lost = 23 - bits
    numbers = x.contiguous().view(torch.int32)
    if not cut:
        numbers = numbers + (1 << (lost - 1))
    return ((numbers >> lost) << lost).view(torch.float32)
