"""Facts in JSON: each way to be wrong is one sentence with the file and the field."""

from __future__ import annotations

import json
import os
import random

import pytest

from tercet.core.checks import border
from tercet.data.io.checked_json import (
    CHECKSUM,
    JsonRecord,
    checksum_fits,
    json_round_trip,
    read_bounded,
    to_json,
    warn_unchecked,
    with_checksum,
)

FACTS = {"seed": 7, "name": "é", "counts": {"triplets": 3, "classes": [1, 2]}, "paths": ["a", "b"]}


def facts(content):
    with border("read_manifest", "path"):
        return JsonRecord(content, "t.csv.json", "provenance")


def test_what_was_written_is_read():
    for indent in (None, 1):
        read = facts(to_json(FACTS, indent))
        assert read.fields == FACTS
        assert read.checked
        assert read.integer("seed") == 7
        assert read.string("name") == "é"
        assert read.strings("paths") == ["a", "b"]
        assert read.part("counts").integers("classes", 1, 2) == [1, 2]
        assert read.items("paths") == ["a", "b"]
    assert list(read) == list(FACTS)
    assert "seed" in read
    assert "other" not in read


def test_keys_that_are_numbers_become_strings_and_the_checksum_fits():
    read = facts(to_json(json_round_trip({"sizes": {10: 1, 9: 2}, "pair": (1, 2)})))
    assert read.fields == {"sizes": {"10": 1, "9": 2}, "pair": [1, 2]}
    assert read.checked


def test_an_indented_or_reordered_file_fits_its_checksum():
    read = json.loads(to_json(FACTS))
    assert facts(json.dumps(dict(reversed(read.items())), indent=4)).checked


def test_facts_without_a_checksum_are_read_and_told():
    assert not facts(json.dumps(FACTS)).checked
    with pytest.warns(UserWarning, match=r"^t\.csv\.json has no checksum"):
        warn_unchecked("t.csv.json")


def test_every_flipped_bit_and_every_cut_gives_the_facts_or_a_sentence():
    content = to_json(FACTS).encode()
    damaged = [content[:at] for at in range(len(content))]
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(changed))
    sentences = []
    for text in damaged:
        try:
            read = facts(text)
        except ValueError as error:
            sentences.append(str(error))
            continue
        assert read.fields == FACTS
        assert read.checked
    assert all(text.startswith("read_manifest(path='t.csv.json'): expected") for text in sentences)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ('{"a": ' + "9" * 5_000 + "}", "a number of thousands of digits"),
        ('{"a": 1, "a": 2}', "the field 'a' is there twice"),
        (b'{"a": "\xff"}', "utf-8"),
        ("", "as JSON"),
        ("[1]", "it has a list"),
        ("null", "it has a NoneType"),
        ('{"a": 1, "crc32": 5}', "to fit its checksum"),
        ('{"a": 1, "crc32": "x"}', "to fit its checksum"),
        ('{"a": 1, "crc32": null}', "to fit its checksum"),
    ],
    ids=str,
)
def test_odd_json_is_one_sentence_with_the_file(content, words):
    with pytest.raises(ValueError, match="expected") as caught:
        facts(content)
    text = str(caught.value)
    assert text.startswith("read_manifest(path='t.csv.json'): expected")
    assert words in text
    assert len(text) < 400
    assert type(caught.value) is ValueError


@pytest.mark.parametrize(
    "value", [None, True, 1.0, -1, 2**63, "x", [], {}, "missing", float("nan")], ids=repr
)
def test_a_field_of_another_type_is_one_sentence_with_the_field(value):
    given = {} if value == "missing" else {"a": value}
    outer = facts(json.dumps({"outer": given})).part("outer")
    expected = (
        r"expected .* in its field 'outer\.a'; it has .*, so it is damaged or of another program; write it"
    )
    asked = {
        "integer": (),
        "string": (str,),
        "strings": (list,),
        "integers": (list,),
        "items": (list,),
        "part": (dict,),
    }
    for method, fitting in asked.items():
        if fitting and type(given.get("a")) in fitting:
            continue
        with pytest.raises(ValueError, match=expected):
            getattr(outer, method)("a")


def test_lists_are_of_one_type_and_range():
    read = facts('{"texts": ["a", 1], "numbers": [1, true], "large": [1, 9]}')
    for ask in (
        lambda: read.strings("texts"),
        lambda: read.integers("numbers"),
        lambda: read.integers("large", 0, 8),
    ):
        with pytest.raises(ValueError, match="expected a list of"):
            ask()


def test_a_missing_field_may_have_a_default_but_a_wrong_one_is_refused():
    read = facts('{"kind": 3}')
    assert read.string("strategy", "given") == "given"
    assert read.part("counts", {}).fields == {}
    with pytest.raises(ValueError, match="expected text in its field 'kind'"):
        read.string("kind", "triplets")


def test_what_json_cannot_hold_is_not_written():
    for odd in (object(), {1, 2}):
        with pytest.raises(TypeError):
            to_json({"odd": odd})


def test_an_edited_checksummed_dict_is_noticed():
    rng = random.Random(0)
    state = with_checksum({"epoch": 3, "step": 5, "settings": {"seed": 0, "p": 8}})
    assert checksum_fits(state)
    assert checksum_fits({"epoch": 1}) is None
    for _ in range(100):
        edited = json.loads(json.dumps(state))
        place = rng.choice([edited, edited["settings"]])
        name = rng.choice([name for name in place if name not in ("settings",)])
        place[name] += rng.choice([-1, 1, 8])
        assert checksum_fits(edited) is False
    assert CHECKSUM in state


def test_reading_is_bounded_and_never_waits(tmp_path):
    large = tmp_path / "large.json"
    with open(large, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="has 1,099,511,627,776 bytes"):
        JsonRecord.read(large)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Not a plain file"):
        JsonRecord.read(tmp_path / "pipe")
    with pytest.raises(OSError, match="Not a plain file"):
        read_bounded(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "none")
    small = tmp_path / "small.json"
    small.write_text(to_json(FACTS))
    assert JsonRecord.read(small).fields == FACTS
    with pytest.raises(OSError, match="at most 10 are read"):
        read_bounded(small, 10)
