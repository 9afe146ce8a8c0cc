"""The walk, on real folders: every file is either found or left out with a reason."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.data.catalog.catalog import LeftOut
from tercet.data.catalog.scan import decodable, walk_images
from tercet.data.io.images import IMAGE_SUFFIXES, MAX_PIXELS
from tests.helpers import picture, tree


def walk(top, suffixes=IMAGE_SUFFIXES):
    left_out: list[LeftOut] = []
    found = sorted("/".join(parts) for parts in walk_images(top, suffixes, left_out))
    return found, {item.path: item.reason for item in left_out}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "IMG_1.JPG",
            "a-b.jpg",
            "x y.jpg",
            "v1.2.jpg",
            "é.png",
            "e\u0301.png",
            "日本.png",
            "a,b.jpg",
            "p.webp",
        ),
        *("it's.jpg", 'say "hi".jpg', "line\nbreak.jpg", "cr\r.jpg", " lead.jpg", "back\\slash.jpg", "-.jpg"),
        *("#1.png", "100%.jpeg", "[v1].Tiff", "a..jpg", "😀.gif", "x" * 251 + ".jpg"),
    ],
)
def test_an_image_is_found_whatever_its_name(tmp_path, name):
    assert walk(tree(tmp_path, f"ant/{name}")) == ([f"ant/{name}"], {})


@pytest.mark.parametrize("folder", ["a b", "é", "v1.2", "x.jpg", "a,b", "line\nbreak", "#", "-r", "~"])
def test_a_class_is_found_whatever_its_name(tmp_path, folder):
    assert walk(tree(tmp_path, f"{folder}/1.jpg")) == ([f"{folder}/1.jpg"], {})


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_counts_in_any_case(tmp_path, suffix):
    names = {f"ant/low{suffix}", f"ant/up{suffix.upper()}", f"ant/title{suffix.title()}"}
    assert walk(tree(tmp_path, *names)) == (sorted(names), {})


def test_other_suffixes_when_asked(tmp_path):
    tree(tmp_path, "ant/1.npy", "ant/2.NPY", "ant/3.jpg")
    assert walk(tmp_path, frozenset({".npy"})) == (["ant/1.npy", "ant/2.NPY"], {"ant/3.jpg": "not an image"})


@pytest.mark.parametrize(
    "name", ["ok.jpg.txt", "jpg", "ajpg", "a.jpg~", "a.jpg ", "a.", "Makefile", "a.jpg\n"]
)
def test_ok_jpg_txt_is_not_an_image(tmp_path, name):
    found, left_out = walk(tree(tmp_path, f"ant/{name}", "ant/1.jpg"))
    assert (found, left_out) == (["ant/1.jpg"], {f"ant/{name}": "not an image"})


def test_hidden_files_and_folders_are_left_out(tmp_path):
    tree(tmp_path, "ant/1.jpg", "ant/.jpg", "ant/._1.jpg", ".cache/1.jpg", "ant/.thumbs/1.jpg")
    assert walk(tmp_path) == (
        ["ant/1.jpg"],
        {
            "ant/.jpg": "hidden file",
            "ant/._1.jpg": "hidden file",
            ".cache": "hidden folder",
            "ant/.thumbs": "hidden folder",
        },
    )


def test_an_image_outside_any_class_is_left_out(tmp_path):
    assert walk(tree(tmp_path, "1.jpg", "a.txt", "ant/2.jpg")) == (
        ["ant/2.jpg"],
        {"1.jpg": "image outside any class folder", "a.txt": "not an image"},
    )


def test_an_empty_class_is_reported(tmp_path):
    tree(tmp_path, "ant/1.jpg", "bee/notes.txt")
    (tmp_path / "cow").mkdir()
    (tmp_path / "dog" / "deep").mkdir(parents=True)
    assert walk(tmp_path) == (
        ["ant/1.jpg"],
        {
            "bee": "folder without an image",
            "bee/notes.txt": "not an image",
            "cow": "folder without an image",
            "dog/deep": "folder without an image",
        },
    )


def test_an_empty_folder_holds_nothing(tmp_path):
    assert walk(tmp_path) == ([], {})


def test_images_lie_at_any_depth(tmp_path):
    names = ["a/1.jpg", "a/b/2.jpg", "a/b/c/d/e/f/3.jpg"]
    assert walk(tree(tmp_path, *names)) == (sorted(names), {})


def test_links_to_files_and_folders_are_followed(tmp_path):
    tree(tmp_path / "store", "one/1.jpg")
    top = tree(tmp_path / "top", "ant/2.jpg")
    (top / "ant" / "linked.jpg").symlink_to(tmp_path / "store" / "one" / "1.jpg")
    (top / "bee").symlink_to(tmp_path / "store" / "one")
    assert walk(top) == (["ant/2.jpg", "ant/linked.jpg", "bee/1.jpg"], {})


ABOVE = "link back to a folder above it"
TWICE = "link to a folder that is entered by another name"


def test_a_symlink_loop_ends(tmp_path):
    top = tree(tmp_path / "top", "ant/1.jpg", "bee/2.jpg")
    (top / "ant" / "up").symlink_to("..")
    (top / "ant" / "here").symlink_to(".")
    (top / "itself").symlink_to("itself")
    (top / "bee" / "me.jpg").symlink_to("me.jpg")
    found, left_out = walk(top)
    assert found == ["ant/1.jpg", "bee/2.jpg"]
    assert left_out.keys() == {"ant/up", "ant/here", "itself", "bee/me.jpg"}
    assert left_out["ant/up"] == left_out["ant/here"] == ABOVE
    assert all(left_out[path].startswith("link cannot be followed") for path in ("itself", "bee/me.jpg"))


def test_two_folders_that_link_to_each_other_are_entered_once(tmp_path):
    tree(tmp_path, "ant/1.jpg", "bee/2.jpg")
    (tmp_path / "ant" / "bee").symlink_to(tmp_path / "bee")
    (tmp_path / "bee" / "ant").symlink_to(tmp_path / "ant")
    assert walk(tmp_path) == (["ant/1.jpg", "bee/2.jpg"], {"ant/bee": TWICE, "bee/ant": TWICE})


def test_links_that_double_a_tree_at_each_level_are_entered_once(tmp_path):
    store = tree(tmp_path / "store", "30/1.jpg")
    for level in range(30):  # 2³⁰ ways lead to the image
        (store / str(level)).mkdir()
        for name in ("a", "b"):
            (store / str(level) / name).symlink_to(store / str(level + 1))
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "x").symlink_to(store / "0")
    found, left_out = walk(tmp_path / "top")
    assert found == ["/".join(["x", *"a" * 30, "1.jpg"])]
    assert len(left_out) == 30
    assert set(left_out.values()) == {TWICE}


@pytest.mark.parametrize("reverse", [False, True])
def test_which_link_is_entered_depends_on_the_names_alone(tmp_path, monkeypatch, reverse):
    scandir = os.scandir

    class Listing(list):
        def __enter__(self):
            return iter(self)

        def __exit__(self, *_):
            pass

    def in_order(place):  # no file system promises one
        return Listing(sorted(scandir(place), key=lambda entry: entry.name, reverse=reverse))

    monkeypatch.setattr(os, "scandir", in_order)
    tree(tmp_path / "store", "x/1.jpg", "x/y/2.jpg")
    top = tree(tmp_path / "top", "z/real/3.jpg")
    for name in ("ant", "bee"):
        (top / name).symlink_to(tmp_path / "store" / "x")
    (top / "a").symlink_to(top / "z" / "real")
    assert walk(top) == (["ant/1.jpg", "ant/y/2.jpg", "z/real/3.jpg"], {"a": TWICE, "bee": TWICE})


def test_a_file_system_without_numbers_of_files_is_walked(tmp_path, monkeypatch):
    stat = os.stat
    nothing = lambda place: os.stat_result([stat(place).st_mode, 0, 0, *[0] * 7])  # noqa: E731
    tree(tmp_path, "ant/1.jpg", "bee/2.jpg")
    (tmp_path / "bee" / "ant").symlink_to(tmp_path / "ant")
    monkeypatch.setattr("tercet.data.catalog.scan.os.stat", nothing)
    assert walk(tmp_path) == (["ant/1.jpg", "bee/2.jpg"], {"bee/ant": TWICE})


def test_a_tree_of_links_into_a_store_is_followed(tmp_path):
    tree(tmp_path / "store", *(f"{number}/{number}.jpg" for number in range(4)))
    for number in range(4):
        folder = tmp_path / "top" / f"class{number // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").symlink_to(tmp_path / "store" / str(number) / f"{number}.jpg")
    (tmp_path / "top" / "class2").symlink_to(tmp_path / "store" / "0")
    names = ["class0/0.jpg", "class0/1.jpg", "class1/2.jpg", "class1/3.jpg", "class2/0.jpg"]
    assert walk(tmp_path / "top") == (names, {})


def test_more_files_than_agreed_are_refused_in_words(tmp_path):
    tree(tmp_path, "ant/1.jpg", "ant/2.jpg", "bee/1.jpg")
    assert len(list(walk_images(tmp_path, IMAGE_SUFFIXES, [], 5))) == 3  # with the two folders
    with pytest.raises(
        ValueError, match=r"scan_folder\(max_files=4\): expected at most so many files"
    ) as said:
        list(walk_images(tmp_path, IMAGE_SUFFIXES, [], 4))
    assert "there are more, the last in bee; pass a larger max_files or a smaller folder" in str(said.value)


def test_a_path_longer_than_the_system_takes_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    tree(tmp_path, "ant/1.jpg")
    os.chdir("ant")
    for _ in range(20):  # 20 × 251 bytes: only step by step
        os.mkdir("x" * 250)
        os.chdir("x" * 250)
    os.chdir(here)
    found, left_out = walk(tmp_path)
    assert found == ["ant/1.jpg"]
    assert set(left_out.values()) == {"folder cannot be read: File name too long"}


def test_the_root_may_be_a_link(tmp_path):
    tree(tmp_path / "real", "ant/1.jpg")
    (tmp_path / "link").symlink_to("real")
    assert walk(tmp_path / "link") == (["ant/1.jpg"], {})


def test_a_link_to_nothing_a_pipe_and_a_link_to_a_device_are_left_out(tmp_path):
    tree(tmp_path, "ant/1.jpg")
    (tmp_path / "ant" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "ant" / "pipe.jpg")
    (tmp_path / "ant" / "zero.jpg").symlink_to("/dev/zero")
    found, left_out = walk(tmp_path)
    assert found == ["ant/1.jpg"]
    pipes = dict.fromkeys(("ant/pipe.jpg", "ant/zero.jpg"), "not a regular file")
    assert left_out == {"ant/gone.jpg": "link to nothing", **pipes}


def test_a_name_that_is_not_utf8_is_left_out(tmp_path):
    tree(tmp_path, "ant/1.jpg")
    (tmp_path / "ant" / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    (tmp_path / os.fsdecode(b"b\xe9e")).mkdir()
    found, left_out = walk(tmp_path)
    assert found == ["ant/1.jpg"]
    assert left_out == dict.fromkeys((r"ant/\udcff.jpg", r"b\udce9e"), "name is not valid UTF-8")


def test_a_folder_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
    tree(tmp_path, "ant/1.jpg", "bee/2.jpg")
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "bee":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert walk(tmp_path) == (["ant/1.jpg"], {"bee": "folder cannot be read: Permission denied"})


parts = st.text(st.sampled_from("aB.é ,~"), min_size=1, max_size=4).filter(lambda name: set(name) != {"."})
files = st.builds(
    lambda folders, stem, suffix: "/".join([*folders, stem + suffix]),
    st.lists(parts, max_size=3),
    parts,
    st.sampled_from(["", ".jpg", ".PNG", ".txt", ".jpg.txt"]),
)


@settings(deadline=None, max_examples=60)
@given(names=st.sets(files, max_size=12))
def test_no_file_is_dropped_silently(names):
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        for name in names:
            try:
                tree(top, name)
            except (IsADirectoryError, NotADirectoryError, FileExistsError):
                continue  # a file where another name has a folder
        found, left_out = walk(top)
        for base, _, below in os.walk(top):
            for name in below:
                path = Path(base, name).relative_to(top)
                told = [str(path) in found, str(path) in left_out]
                hidden = [parent.name.startswith(".") for parent in list(path.parents)[:-1]]
                assert sum(told) == (0 if any(hidden) else 1), path
                image = path.suffix.lower() in (".jpg", ".png") and not path.name.startswith(".")
                assert (str(path) in found) == (image and len(path.parts) > 1 and not any(hidden))


def test_only_what_decodes_is_kept(tmp_path, capfd):
    names = [f"ant/{i}.{kind}" for i, kind in enumerate(["jpg", "png", "webp", "bmp", "tif", "ppm", "jpg"])]
    for name in names:
        picture(tmp_path / name)
    for name, size in [("ant/cut.jpg", 600), ("ant/cut.png", 600), ("ant/hollow.jpg", 0)]:
        whole = picture(tmp_path / name)
        whole.write_bytes(whole.read_bytes()[:size])
    (tmp_path / "ant" / "words.png").write_text("no image at all")
    bad = ["ant/cut.jpg", "ant/cut.png", "ant/hollow.jpg", "ant/words.png", "ant/gone.jpg"]
    asked = [name for pair in zip(names, bad, strict=False) for name in pair]  # more names than bad ones
    left_out: list[LeftOut] = []
    kept = decodable({name: tmp_path / name for name in asked}, left_out, MAX_PIXELS, progress=True)
    assert kept == names[: len(bad)]  # in their order
    assert [item.path for item in left_out] == bad
    assert all(item.reason and str(tmp_path) not in item.reason for item in left_out)  # the same anywhere
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "verifying images" in shown.err


def test_nothing_to_decode(tmp_path):
    assert decodable({}, [], MAX_PIXELS, progress=False) == []
