"""Names of files and classes are written by others: what of them reaches a console is escaped."""

from __future__ import annotations

import re
import sys
import warnings

import jaxtyping
import numpy as np
import pytest
import typer

from tercet.cli.app import main, run
from tercet.core.checks import escaped, refusal
from tercet.data.io.images import decode_image, read_image
from tercet.data.samplers.pk import PKSampler
from tercet.data.streams.samples import label_of

CLEAR, FORGED, TURNED, HIDDEN, BYTE = (
    "\x1b[2J\x1b[H",
    "\nError: all is lost",
    "\u202egnp.exe",
    "\u200b",
    "\udcff",
)
ODD = f"a{CLEAR}{FORGED}{TURNED}{HIDDEN}{BYTE}\x07\x9b"
SHOWN = r"a\x1b[2J\x1b[H\nError: all is lost\u202egnp.exe\u200b\udcff\x07\x9b"


def test_what_does_not_print_is_escaped_as_repr_does():
    assert escaped(ODD) == SHOWN == repr(ODD)[1:-1]


@pytest.mark.parametrize("text", ["", "x y.jpg", "é.png", "[red]", "C:\\photos\\new", 'it\'s "5" µm ≥ 日本'])
def test_what_prints_is_not_changed(text):
    assert escaped(text) == text


def test_an_error_is_escaped_by_its_sentence():
    assert escaped(ValueError(f"no {ODD}")) == f"no {SHOWN}"


def test_all_of_a_refusal_is_escaped():
    error = refusal(f"f{CLEAR}", f"x{CLEAR}", CLEAR, f"a file in {ODD}", f"rename {ODD}")
    assert str(error).isprintable()
    assert f"expected a file in {SHOWN}; rename {SHOWN}" in str(error)


def test_a_refusal_shows_a_table_on_one_line():
    said = str(refusal("f", "x", np.zeros((2, 2)), "less"))
    assert said == "f(x=array([[0., 0.], [0., 0.]])): expected less"


def test_a_refusal_shows_the_type_of_what_has_no_repr():
    class Silent:
        def __repr__(self):
            raise RuntimeError("no")

    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    values = {"Silent": Silent(), "int": 10**5000, "list": nested}
    for kind, value in values.items():
        assert str(refusal("f", "x", value, "less")) == f"f(x=<{kind}>): expected less"


# What speaks of names without a refusal.


def said_by(call, *given):
    with pytest.raises((ValueError, OSError)) as caught:
        call(*given)
    return str(caught.value)


def test_images_and_samples_of_odd_names_are_told_escaped(tmp_path):
    assert f"/{SHOWN}: " in said_by(read_image, tmp_path / ODD)
    assert SHOWN in said_by(decode_image, b"", ODD)
    assert said_by(label_of, {"__key__": ODD, "__url__": ODD, ODD: b"1"}, "cls").count(SHOWN) == 3


def test_a_warning_of_classes_is_escaped():
    labels = [*"aabb", ODD]
    with pytest.warns(UserWarning, match=re.escape(SHOWN)):
        PKSampler(labels, p=2, k=2)


# The console script.


@pytest.fixture
def tercet(monkeypatch, capfd):
    """Calls the console script; gives its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tercet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capfd.readouterr())

    return call


NAME = f"a{CLEAR}{FORGED}{TURNED}{HIDDEN}\x07\x9b [red]"  # what a folder of UTF-8 names may hold
NAME_SHOWN = r"a\x1b[2J\x1b[H\nError: all is lost\u202egnp.exe\u200b\x07\x9b [red]"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two classes with odd names of 3 images each, and a file that is left out."""
    monkeypatch.chdir(tmp_path)
    for label in ("1", "2"):
        folder = tmp_path / NAME / f"{label}{NAME}"
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}{NAME}.jpg").write_bytes(b"%d" % number)
    (folder / f"{NAME}.txt").write_bytes(b"")
    return NAME


def plain(*texts):
    """Whether nothing but ends of lines acts on a terminal, and no line is of a name."""
    text = "".join(texts).replace("\n", "")
    return text.isprintable() and "\nError: all is lost" not in "".join(texts)


@pytest.mark.parametrize(
    "command", [["make-triplets", "random"], ["make-shards"]], ids=["make-triplets", "make-shards"]
)
def test_a_command_escapes_every_name_that_it_shows(tercet, photos, command):
    output = f"out{NAME}.txt" if "random" in command else f"out{NAME}"
    code, out, err = tercet(*command, photos, output)
    assert code == 0
    assert f"out{NAME_SHOWN}" in out
    assert f"left out: 2{NAME_SHOWN}/{NAME_SHOWN}.txt: not an image\n" in err
    assert plain(out, err)


def test_the_reason_of_what_is_left_out_is_escaped_too(tercet, photos, monkeypatch):
    bad = f"0{NAME}.jpg"
    reason = f"is {NAME}"
    monkeypatch.setattr(
        "tercet.data.io.images.why_unreadable", lambda path, **options: reason if path.name == bad else None
    )
    code, out, err = tercet("make-triplets", "random", photos, "t.txt", "--verify")
    assert code == 0
    assert err.count(f"is {NAME_SHOWN}\n") == 2
    assert f"  is {NAME_SHOWN} " in out
    assert plain(out, err.replace("\r", ""))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["make-triplets", "random", NAME, f"{NAME}.txt", "--seed", NAME], 2),
        (["make-triplets", "random", NAME, "t.txt", f"--{NAME}"], 2),
        (["make-triplets", "random", NAME, "t.txt", "--groups", f"({NAME}"], 1),
        (["make-triplets", "random", f"no{NAME}", "t.txt"], 1),
        (["make-triplets", "random", NAME, f"t.{NAME}"], 1),
        (["make-triplets", "random", NAME, "t.txt", NAME], 2),
        (["make-triplets", NAME], 2),
        (["make-shards", NAME, f"{NAME}/{NAME}"], 1),
        (["make-shards", NAME, "out", "--split", NAME], 1),
        (["index-shards", f"no{NAME}"], 1),
        ([NAME], 2),
    ],
)
def test_a_wrong_command_line_is_told_escaped(tercet, photos, arguments, code):
    ended, out, err = tercet(*arguments)
    assert ended == code
    assert plain(out, err)
    assert "Error" in err


def test_a_warning_is_one_line_with_its_names_escaped(capfd, monkeypatch):
    app = typer.Typer()

    @app.command()
    def warns() -> None:
        warnings.warn(f"{ODD} is old", stacklevel=2)

    monkeypatch.setattr(sys, "argv", ["warns"])
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert not ended.value.code
    assert capfd.readouterr().err == f"Warning: {SHOWN} is old\n"


@pytest.mark.parametrize("kind", [OSError, ValueError, UnicodeError])
def test_a_sentence_of_another_library_is_escaped(kind, capfd, monkeypatch):
    app = typer.Typer()

    @app.command()
    def fails() -> None:
        raise kind(f"cannot open {ODD}")

    monkeypatch.setattr(sys, "argv", ["fails"])
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert ended.value.code == 1
    assert capfd.readouterr().err == f"Error: cannot open {SHOWN}\n"
