"""The plan of embeddings: whether they are there, made anew or resumed, alone or beside other processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tercet.core.checks import Refusal
from tercet.data.catalog.catalog import Catalog
from tercet.data.io.atomic import lock_file, locked, remove_leftovers
from tercet.offline.claims import Claims
from tercet.offline.embedding_cache import differing
from tercet.offline.embedding_parts import HOW, Parts
from tercet.offline.embeddings import catalog_facts, files_of, read_facts, rewrite_catalog

__all__ = ["HINT", "claims_of", "is_there", "noted_in", "planning", "prepare"]

HINT = "overwrite=True or --overwrite makes all anew"


def planning(target: Path) -> AbstractContextManager[bool]:
    """A lock under which one of the processes that share a run plans it, or ends it."""
    return locked(lock_file(target.parent, f"{target.name}.plan"))


def claims_of(
    target: Path, parts: Parts, plan: Mapping[str, Any], catalog: Catalog, rank: int, world: int
) -> Claims:
    """The parts that this process may embed; none once another rank has put them all together."""

    def is_done(number: int) -> bool:
        if parts.is_done(number):
            return True
        if world == 1 or not os.path.lexists(target):
            return False
        with planning(target):
            return is_there(target, plan, catalog, rewrite=False)

    names = [f"{target.name}.{number}" for number in range(len(parts))]
    return Claims(target.parent, names, is_done, rank * len(parts) // world)


def noted_in(parts: Parts, begun: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with what running the model has changed, also as other ranks have noted it."""
    known = {**begun.get("after", {}), **parts.plan().get("after", {})}
    noted = {**begun, "after": {**known, **after}}
    if noted["after"] != known and parts.folder.is_dir():  # another rank may have put the parts together
        parts.note(noted)
    return noted


def is_there(target: Path, plan: Mapping[str, Any], catalog: Catalog, rewrite: bool) -> bool:
    """Whether the embeddings are there already, of the key of the plan; their catalog is brought up to date.

    Raises:
        ValueError: what is there is of another key, or of another program.
    """
    array, _, sidecar = files_of(target)
    there = [file for file in files_of(target) if os.path.lexists(file)]
    if not there or plan["overwrite"]:
        return False
    if array not in there or sidecar not in there:
        hint = f"{there[0].name} is there, and embed has not written it with these names; {HINT}"
        raise Refusal("out", str(target), "new files, or those of an earlier call", hint)
    facts = read_facts(target, sidecar)
    _refuse_other_key(target, facts, plan["key"], "embeddings")
    if rewrite and facts["catalog"] != catalog_facts(catalog, target):
        rewrite_catalog(target, catalog, facts)
    return True


def prepare(target: Path, parts: Parts, plan: Mapping[str, Any], catalog: Catalog) -> dict[str, Any] | None:
    """The plan of the run that the parts are ready for; None where the embeddings are there already.

    An unfinished run of the same plan is resumed. With `overwrite` it is if it was begun with it: so the same
    call goes on, wherever it was killed.

    Raises:
        ValueError: what is there, or an unfinished run, is of another key.
    """
    remove_leftovers(target.parent)
    if is_there(target, plan, catalog, rewrite=True):
        parts.clear()
        return None
    begun = parts.plan()
    how = [name for name in HOW if begun.get(name) != plan[name]]
    other = _differing(begun, plan["key"]) if begun else ""
    if begun and not other and not how and begun.get("overwrite") in (True, plan["overwrite"]):
        parts.resume(begun)
        return begun
    if begun and not plan["overwrite"] and parts.exist():
        _refuse_other_key(target, begun, plan["key"], "an unfinished run")
        hint = f"with {begun.get(how[0])!r} the unfinished run goes on; {HINT}"
        raise Refusal(how[0], plan[how[0]], f"that of an unfinished run, {begun.get(how[0])!r}", hint)
    parts.begin(plan)
    return dict(plan)


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """How a key differs from that of a run, before or after its model had run, whichever is nearer."""
    before = there.get("key", {})
    return min((differing(key, here) for key in (before, {**before, **there.get("after", {})})), key=len)


def _refuse_other_key(target: Path, there: Mapping[str, Any], here: Mapping[str, Any], what: str) -> None:
    if other := _differing(there, here):
        expected = f"{what} of the same model, images and options"
        raise Refusal("out", str(target), expected, f"what differs: {other}; {HINT}")
