"""Decoding against Pillow: orientation, depth, transparency, odd names, and files that are no images."""

import io
import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from tercet.data.io.images import (
    MAX_BYTES,
    claimed_pixels,
    decode_image,
    file_content,
    read_image,
    why_unreadable,
)

H, W = 40, 56
Y, X = np.mgrid[:H, :W]
RGB = np.stack([X * 4, Y * 6, (X + Y) * 2], axis=-1).astype(np.uint8)  # smooth, and no two turns alike
ALPHA = (X * 255 // (W - 1)).astype(np.uint8)


def encoded(image, suffix, **options):
    out = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(out, suffix, **options)
    return out.getvalue()


def on_white(rgb, alpha):
    """The composite, pixel by pixel."""
    out = np.empty_like(rgb)
    for y in range(rgb.shape[0]):
        for x in range(rgb.shape[1]):
            a = int(alpha[y, x])
            for c in range(3):
                out[y, x, c] = int((a * int(rgb[y, x, c]) + (255 - a) * 255) / 255 + 0.5)
    return out


def near(a, b, tolerance):
    return a.shape == b.shape and np.abs(a.astype(int) - b.astype(int)).max() <= tolerance


# ── orientation ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [("JPEG", {"quality": 95}, 8), ("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("TIFF", {}, 0)],
)
def test_exif_orientation_is_applied(suffix, options, tolerance, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    extra = {"tiffinfo": {0x0112: orientation}} if suffix == "TIFF" else {"exif": exif}
    data = encoded(RGB, suffix, **options, **extra)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape[0] == (W if orientation > 4 else H)
    assert near(decode_image(data, suffix), expected, tolerance)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_exif_orientation_is_applied_to_transparent_images(suffix, options, orientation, order):
    exif = Image.Exif()
    exif.endian = order
    exif[0x0112] = orientation
    data = encoded(np.dstack([RGB, ALPHA]), suffix, exif=exif, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert upright.shape[2] == 4
    assert near(decode_image(data, suffix), on_white(upright[..., :3], upright[..., 3]), 0)


def test_an_orientation_out_of_range_counts_for_nothing():
    for value in (0, 9, 77):
        exif = Image.Exif()
        exif[0x0112] = value
        assert np.array_equal(decode_image(encoded(RGB, "PNG", exif=exif), "png"), RGB)
        data = encoded(np.dstack([RGB, np.full_like(ALPHA, 255)]), "PNG", exif=exif)
        assert np.array_equal(decode_image(data, "png"), RGB)


# ── channels and depth ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_rgb_is_exact_in_lossless_formats(suffix):
    options = {"lossless": True} if suffix == "WEBP" else {}
    assert np.array_equal(decode_image(encoded(RGB, suffix, **options), suffix), RGB)


MODES = {
    "PNG": ["1", "L", "P"],
    "TIFF": ["1", "L", "P", "CMYK"],
    "JPEG": ["L", "CMYK"],
    "GIF": ["1", "L", "P"],
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix in MODES for mode in MODES[suffix]])
def test_every_mode_becomes_rgb(suffix, mode):
    data = encoded(Image.fromarray(RGB).convert(mode), suffix)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert near(decode_image(data, suffix), expected, 2 if suffix == "JPEG" else 0)


def test_saturated_cmyk_jpegs_are_not_inverted():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert near(
        decode_image(encoded(cyan, "JPEG", quality=95), "cyan.jpg"), np.full((16, 16, 3), [0, 255, 255]), 3
    )


def test_sixteen_bits_are_scaled_to_eight():
    deep = (X * 1000).astype(np.uint16)
    for suffix in ("PNG", "TIFF"):
        image = decode_image(encoded(deep, suffix), suffix)
        assert image.dtype == np.uint8
        assert near(image, np.repeat((deep / 257)[..., None], 3, axis=2).round(), 1)
        assert image.max() > 200


def test_sixteen_bits_with_alpha():
    import cv2

    deep = np.dstack([RGB[..., ::-1], ALPHA]).astype(np.uint16) * 257
    data = cv2.imencode(".png", deep)[1].tobytes()
    assert near(decode_image(data, "deep.png"), on_white(RGB, ALPHA), 0)


@pytest.mark.parametrize(("suffix", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_transparent_parts_lie_on_white(suffix, options):
    data = encoded(np.dstack([RGB, ALPHA]), suffix, **options)
    image = decode_image(data, suffix)
    assert near(image, on_white(RGB, ALPHA), 0)
    assert image[:, 0].min() == 255  # wholly transparent
    assert np.array_equal(image[:, -1], RGB[:, -1])  # wholly opaque


def test_lossy_webp_with_alpha_lies_on_white():
    image = decode_image(encoded(np.dstack([RGB, ALPHA]), "WEBP", quality=90), "alpha.webp")
    assert image[:, 0].min() == 255
    assert near(image[:, -1], RGB[:, -1], 40)


def test_grey_with_alpha_lies_on_white():
    grey = np.asarray(Image.fromarray(RGB).convert("L"))
    data = encoded(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(ALPHA)]), "PNG")
    assert near(decode_image(data, "la.png"), on_white(np.dstack([grey] * 3), ALPHA), 0)


def test_a_transparent_palette_entry_lies_on_white():
    palette = Image.fromarray(RGB).convert("P")
    entry = int(np.asarray(palette)[H // 2, W // 2])
    image = decode_image(encoded(palette, "PNG", transparency=entry), "p.png")
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[np.asarray(palette) == entry] = 255
    assert np.array_equal(image, expected)


def test_the_transparent_value_of_a_grey_png_is_shown():
    grey = Image.fromarray(RGB).convert("L")
    data = encoded(grey, "PNG", transparency=3)
    assert np.array_equal(decode_image(data, "l.png"), np.dstack([np.asarray(grey)] * 3))


def test_the_first_frame_is_taken():
    for suffix in ("GIF", "TIFF", "PNG", "WEBP"):
        options = {"lossless": True} if suffix == "WEBP" else {}
        frames = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}
        image = decode_image(encoded(RGB, suffix, **frames, **options), suffix)
        assert near(image, RGB, 30)


def test_the_content_tells_the_format_not_the_suffix(tmp_path):
    (tmp_path / "really.jpg").write_bytes(encoded(RGB, "PNG"))
    assert np.array_equal(read_image(tmp_path / "really.jpg"), RGB)


def test_the_result_is_contiguous_and_writable():
    for data in (encoded(RGB, "JPEG"), encoded(np.dstack([RGB, ALPHA]), "PNG"), encoded(RGB[..., 0], "PNG")):
        image = decode_image(data, "any")
        assert image.flags.c_contiguous
        assert image.flags.writeable
        assert image.dtype == np.uint8


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = [
    "IMG_1.JPG",
    "a-b.jpg",
    "x y.jpg",
    "v1.2.jpg",
    "é.png",
    "a,b,c.png",
    "日本.webp",
    "100%.bmp",
    "no_suffix",
]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_are_read(tmp_path, name):
    folder = tmp_path / "ünï code, 1.0"
    folder.mkdir()
    suffix = {".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}.get(name[-4:].lower(), "PNG")
    (folder / name).write_bytes(encoded(RGB, suffix))
    assert read_image(folder / name).shape == (H, W, 3)
    assert np.array_equal(read_image(str(folder / name)), read_image(folder / name))
    assert why_unreadable(folder / name) is None


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────


def check_refused(path, why):
    assert why_unreadable(path) == why
    with pytest.raises(ValueError, match="read_image") as caught:
        read_image(path)
    hint = "restore the file, or leave it out with tercet.scan_folder(root, verify=True)"
    if not path.exists():
        hint = "is the root of the catalog the right folder?"
    assert str(caught.value) == f"read_image: {path}: {why}; {hint}"


UNDECODABLE = "OpenCV does not decode it: cut short, damaged, or no image of 8 or 16 bits"


def test_missing_empty_folder_and_text(tmp_path):
    check_refused(tmp_path / "gone.jpg", "the file cannot be read: No such file or directory")
    check_refused(tmp_path, "it is not a regular file")
    (tmp_path / "empty.jpg").write_bytes(b"")
    check_refused(tmp_path / "empty.jpg", "the file is empty")
    (tmp_path / "ok.jpg.txt").write_text("not an image")
    check_refused(tmp_path / "ok.jpg.txt", UNDECODABLE)
    for head in (
        b"\xff\xd8",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0WEBP",
        b"RIFF\0\0\0\0WEBPVP8X",
        b"GIF89a",
        b"II*\0",
    ):
        (tmp_path / "head").write_bytes(head)
        assert why_unreadable(tmp_path / "head") is not None


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_refused_wherever_it_ends(tmp_path, progressive):
    data = encoded(NOISE, "JPEG", progressive=progressive)
    for end in [*range(3, len(data), 97), len(data) - 1]:
        (tmp_path / "cut.jpg").write_bytes(data[:end])
        check_refused(tmp_path / "cut.jpg", "the JPEG is cut short")
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    check_refused(tmp_path / "cut.jpg", "the JPEG is cut short")


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_jpeg():
    data, small = encoded(NOISE, "JPEG"), encoded(NOISE[::8, ::8], "JPEG")
    segment = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    whole = data[:2] + segment + data[2:]
    expected = decode_image(data, "plain")
    assert np.array_equal(decode_image(whole, "with a thumbnail"), expected)
    assert np.array_equal(decode_image(whole + b"appended", "with a tail"), expected)
    assert np.array_equal(decode_image(whole + bytes(4096), "padded"), expected)
    with pytest.raises(ValueError, match=r"decode_image: cut: the JPEG is cut short$"):
        decode_image(whole[: len(whole) // 2], "cut")


def test_jpegs_with_restart_markers_are_whole():
    import cv2

    data = cv2.imencode(".jpg", NOISE, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes()
    assert b"\xff\xd0" in data
    assert decode_image(data + b"\0", "restarts").shape == NOISE.shape
    with pytest.raises(ValueError, match="cut short"):
        decode_image(data[: len(data) // 2] + b"\0", "restarts")


@pytest.mark.parametrize("suffix", ["PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_truncated_files_of_other_formats_are_refused(tmp_path, suffix):
    data = encoded(NOISE, suffix)
    for share in (0.02, 0.3, 0.6, 0.9, 0.99):
        (tmp_path / "cut").write_bytes(data[: int(len(data) * share)])
        check_refused(tmp_path / "cut", UNDECODABLE)


def test_a_damaged_png_is_refused(tmp_path):
    data = bytearray(encoded(np.dstack([NOISE, NOISE[..., :1]]), "PNG"))
    data[len(data) // 2] ^= 0x55
    (tmp_path / "damaged.png").write_bytes(bytes(data))
    check_refused(tmp_path / "damaged.png", UNDECODABLE)


def test_floating_point_images_are_refused(tmp_path):
    (tmp_path / "depth.tiff").write_bytes(encoded(Image.fromarray(X.astype(np.float32)), "TIFF"))
    check_refused(tmp_path / "depth.tiff", UNDECODABLE)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_a_turned_avif_is_refused_and_an_upright_one_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned.avif").write_bytes(encoded(RGB, "AVIF", exif=exif))
    check_refused(
        tmp_path / "turned.avif", "the AVIF image is turned or mirrored by a property that OpenCV ignores"
    )
    (tmp_path / "upright.avif").write_bytes(encoded(RGB, "AVIF", quality=95))
    assert near(read_image(tmp_path / "upright.avif"), RGB, 12)


# ── the same everywhere ──────────────────────────────────────────────────────────────────────────────────


def test_threads_decode_alike():
    data = [encoded(np.roll(NOISE, shift, axis=0), "JPEG") for shift in range(16)]
    alone = [decode_image(item, "x") for item in data]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda item: decode_image(item, "x"), data))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_importing_loads_neither_opencv_nor_torch():
    code = "import sys, tercet.data.io.images; sys.exit('cv2' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────


def png_claiming(width, height, depth=8, colour=2):
    """A PNG whose header claims a size, and whose pixels are one bit each in the file, or fewer."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def large(suffix, **options):
    """A small file of a real encoder, of an image of 6400 × 40 pixels."""
    return encoded(np.zeros((40, 6400, 3), np.uint8), suffix, **options)


def tiff(order, big, entries):
    """A TIFF of a first directory alone: (tag, type, value) each."""
    kind, width = ("Q", 8) if big else ("I", 4)
    out = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", 43 if big else 42)
    out += struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "I", 8)
    out += struct.pack(order + ("Q" if big else "H"), len(entries))
    for tag, type_, value in entries:
        packed = struct.pack(order + {3: "H", 4: "I", 16: "Q"}[type_], value).ljust(width, b"\0")
        out += struct.pack(order + "HH" + kind, tag, type_, 1) + packed
    return out + bytes(width)


JPEG_AFTER_GARBAGE = b"\xff\xd8" + b"junk\xff\x01\xff\xff" + large("JPEG")[2:]
AVIF_BOXES = b"\0\0\0\x14ispe\0\0\0\0" + struct.pack(">II", 6400, 40)
CLAIMS = {
    "png": png_claiming(6400, 40),
    "png, grey": large("PNG"),
    "jpeg": large("JPEG"),
    "progressive jpeg": large("JPEG", progressive=True),
    "jpeg with a thumbnail": large("JPEG", exif=b"Exif\0\0" + encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")),
    "jpeg with garbage before its frame": JPEG_AFTER_GARBAGE,
    "gif": encoded(np.zeros((40, 6400), np.uint8), "GIF"),
    "bmp": large("BMP"),
    "bmp from the top": b"BM" + bytes(12) + struct.pack("<Iii", 40, 6400, -40),
    "bmp of os/2": b"BM" + bytes(12) + struct.pack("<IHH", 12, 6400, 40),
    "webp": large("WEBP", quality=1),
    "webp without loss": large("WEBP", lossless=True),
    "webp with exif": large("WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    "tiff": large("TIFF"),
    "tiff of shorts": tiff("<", False, [(256, 3, 6400), (257, 3, 40)]),
    "tiff, high bytes first": tiff(">", False, [(256, 3, 6400), (257, 4, 40)]),
    "tiff out of order": tiff("<", False, [(305, 4, 0), (257, 4, 40), (256, 4, 6400)]),
    "big tiff": tiff("<", True, [(256, 16, 6400), (257, 16, 40)]),
    "big tiff, high bytes first": tiff(">", True, [(256, 4, 6400), (257, 3, 40)]),
    "tiff of a large tile": tiff("<", False, [(256, 4, 1), (257, 4, 1), (322, 4, 6400), (323, 4, 40)]),
    "pgm": b"P5 6400 40 255 ",
    "ppm with comments": b"P6\n# 1 1\n6400\n# 1\n 40\n255\n",
    "pbm": b"P4\n6400 40\n",
    "pam": b"P7\nWIDTH 6400\nHEIGHT 40\nDEPTH 3\nMAXVAL 255\nENDHDR\n",
    "pam with smaller numbers": b"P7\n# \rWIDTH 64\rWIDTH 6400\nHEIGHT 40\nDEPTH 3\nMAXVAL 255\nENDHDR\n",
    "pfm": b"PF\n6400 40\n-1.0\n",
    "radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 40 +X 6400\n",
    "sun raster": b"\x59\xa6\x6a\x95" + struct.pack(">II", 6400, 40),
    "jpeg 2000": b"\xff\x4f\xff\x51\0\x2f\0\0" + struct.pack(">II", 6400, 40),
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\xff\x4f\xff\x51\0\x2f\0\0" + struct.pack(">II", 6400, 40),
    "avif": b"\0\0\0\x1cftypavif" + b"\0\0\0\x14ispe\0\0\0\0" + struct.pack(">II", 64, 64) + AVIF_BOXES,
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_an_image_is_measured_before_it_is_decoded(kind, monkeypatch):
    data = CLAIMS[kind]
    assert claimed_pixels(data) == 6400 * 40
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"^decode_image: x: it has more than max_pixels=255999 pixels$"):
        decode_image(data, "x", max_pixels=6400 * 40 - 1)


@pytest.mark.parametrize("kind", ["png, grey", "jpeg", "gif", "bmp", "webp", "tiff"])
def test_an_image_of_just_so_many_pixels_is_decoded(kind):
    assert decode_image(CLAIMS[kind], "x", max_pixels=6400 * 40).shape == (40, 6400, 3)


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_header_that_is_cut_claims_nothing_or_the_same(kind):
    assert {claimed_pixels(CLAIMS[kind][:end]) for end in range(80)} <= {None, 0, 64 * 64, *range(256_001)}


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff\xe0\0\2" * (1 << 17) + CLAIMS["jpeg"][2:],
        CLAIMS["avif"] + AVIF_BOXES * (1 << 16),
    ],
)
def test_a_header_of_endless_parts_claims_too_much(data):
    """Else a file of a gigabyte is looked through for minutes."""
    with pytest.raises(ValueError, match="it has more than max_pixels"):
        decode_image(data, "x")


def test_a_header_of_blank_lines_is_looked_through_once():
    before = time.process_time()
    assert claimed_pixels(b"P7\n" + b" \n" * (1 << 15)) is None
    assert time.process_time() - before < 5  # it was a minute


def test_a_format_that_we_do_not_measure_is_so_after_decoding(monkeypatch):
    monkeypatch.setattr("tercet.data.io.images.claimed_pixels", lambda data: None)
    with pytest.raises(ValueError, match=r"it has more than max_pixels=2000 pixels"):
        decode_image(encoded(RGB, "PNG"), "x", max_pixels=2000)


@pytest.mark.parametrize(("depth", "colour"), [(8, 2), (16, 6), (1, 0)])
def test_a_png_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch, depth, colour):
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("decoded"))
    (tmp_path / "bomb.png").write_bytes(png_claiming(32_000, 32_000, depth, colour))
    why = "it has more than max_pixels=268435456 pixels"
    check_refused(tmp_path / "bomb.png", why)


def test_a_sparse_file_of_a_tebibyte_is_not_read(tmp_path):
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(1 << 40)
    check_refused(tmp_path / "sparse.jpg", "it has more than 1,073,741,824 bytes")


def test_a_pipe_a_device_and_a_socket_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    check_refused(tmp_path / "pipe.jpg", "it is not a regular file")  # nobody writes, and nobody waits
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    check_refused(tmp_path / "zero.jpg", "it is not a regular file")
    with socket.socket(socket.AF_UNIX) as one:
        monkey = os.getcwd()
        os.chdir(tmp_path)  # such a name may be 107 bytes long
        one.bind("socket.jpg")
        os.chdir(monkey)
        check_refused(tmp_path / "socket.jpg", "the file cannot be read: No such device or address")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("x" * 300 + ".jpg", "the file cannot be read: File name too long"),
        ("x/" * 3000 + "1.jpg", "the file cannot be read: File name too long"),
        ("a\0b.jpg", "embedded null byte"),
        ("\ud800.jpg", "the file cannot be read: its name is no text that the system takes"),
    ],
)
def test_a_name_that_the_system_does_not_take_is_told(name, why):
    assert why_unreadable(name) == why
    with pytest.raises(ValueError, match=r"^read_image: ") as raised:
        read_image(name)
    assert str(raised.value).endswith(f"{why}; is the root of the catalog the right folder?")


def test_no_file_stays_open(tmp_path):
    (tmp_path / "1.pgm").write_bytes(b"P5 1 1 255 a")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("1.pgm", ".", "gone"):
        why_unreadable(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(file_content(tmp_path / "1.pgm")) < MAX_BYTES
