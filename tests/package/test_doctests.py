"""The examples of every docstring run, a module a test.

They are read from the source text: the annotation check wraps functions, and `doctest` leaves out what
is wrapped.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import pkgutil
from importlib import import_module

import pytest

import tercet

FOUND = ["tercet", *(info.name for info in pkgutil.walk_packages(tercet.__path__, "tercet."))]
MODULES = [name for name in FOUND if not name.endswith("__main__")]  # to import that one is to run it
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def failures(source: str, names: dict[str, object]) -> str:
    """What went wrong in the examples of a module's source; empty where all is well."""
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        text, name = ast.get_docstring(node) or "", getattr(node, "name", "module")
        examples = doctest.DocTestParser().get_doctest(text, dict(names), name, None, None)
        runner.run(examples, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = import_module(module)
    assert not (said := failures(inspect.getsource(loaded), vars(loaded))), said


def test_every_module_is_found():
    assert {"tercet", "tercet.core.checks", "tercet.data.triplets.random", "tercet.losses.triplet"} <= set(
        MODULES
    )


def test_a_wrong_example_is_seen_wherever_it_stands():
    source = '''
class A:
    def f(self):
        """
        >>> one + 1
        3
        """
'''
    assert "Expected:\n    3\nGot:\n    2" in failures(source, {"one": 1})
    assert failures(source, {"one": 2}) == ""
    assert "NameError" in failures(source, {})
