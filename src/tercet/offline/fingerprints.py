"""Fingerprints of models and transforms: by their weights, their parameters, and the code that they run."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import types
from contextlib import suppress
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Fingerprint", "fingerprint", "modules_within"]

# Python may keep one or several of these where their values are equal, so it does not matter which it is.
_BY_VALUE = (tuple, frozenset, types.CodeType, np.generic)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, PurePath, torch.dtype, torch.device, np.dtype)
# Of a class body what Python or ABC put there, besides what decides nothing.
_NOT_CODE = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "_abc_impl"}
_NOT_CODE |= {"__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__", "__slotnames__"}
# Also what torch.compile notes on a module, the last of them where Lightning is loaded.
_OF_ANY_MODULE = frozenset(vars(nn.Module())) | {
    "_is_torch_compile",
    "_compiled_call_impl",
    "_compile_kwargs",
}
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_INSTALLED = tuple(
    path + os.sep for path in (*_INSTALLED, str(Path(__file__).parents[1]))
)  # and this library


_LIBRARIES = {"site-packages", "dist-packages"}


class Fingerprint(NamedTuple):
    """Digests of a callable, SHA-256 in hexadecimal.

    Args:
        code: of what it does: code, parameters, and the layers of modules.
        weights: of the weights and buffers of the modules in it.
    """

    code: str
    weights: str


def fingerprint(value: Any) -> Fingerprint:
    """Digests of a model, a transform or another value, equal in another process for the same code and data.

    - Functions by their bytecode, defaults, and the globals and closures that they read, followed into other
      functions; what belongs to an installed library, or to Python, by its name alone.
    - Modules by the classes and attributes of their layers, and by a separate digest of their weights: name,
      type, shape and bytes of each entry of the state dict, and buffers that are not in it.
    - albumentations pipelines by their serialisation.
    - Other objects by their class and what `pickle` would keep of them.

    Args:
        value: the callable, or a list or dict of several.

    Raises:
        ValueError: it holds something of which none of these tells what it is, such as an open file; the text
            is a phrase.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> before = fingerprint(lambda x: layer(x))
        >>> with torch.no_grad():
        ...     _ = layer.weight.add_(1)
        >>> after = fingerprint(lambda x: layer(x))
        >>> before.code == after.code, before.weights == after.weights
        (True, False)
    """
    walk = _Walk()
    walk.visit(value)
    for module in walk.modules:
        walk.weigh(module)
    return Fingerprint(walk.code.hexdigest(), walk.weights.hexdigest())


def modules_within(value: Any) -> list[nn.Module]:
    """The outermost modules of a callable: itself, that of a method, those that a function reads.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> modules_within(layer.forward) == modules_within(lambda x: layer(x)) == [layer]
        True
    """
    walk = _Walk()
    with suppress(ValueError, RecursionError):  # what it holds besides is not asked for
        walk.visit(value)
    return walk.modules


class _Walk:
    """The walk over all that a value consists of."""

    def __init__(self) -> None:
        self.code, self.weights = hashlib.sha256(), hashlib.sha256()
        self.modules: list[nn.Module] = []  # the outermost ones
        self._weighed: set[int] = set()  # ids of those and of the modules in them
        self._seen: dict[int, tuple[int, Any]] = {}  # with the object, lest its id is given to another

    def visit(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self._feed(type(value).__name__, repr(value))
            return
        if not issubclass(kind := type(value), _BY_VALUE):
            if id(value) in self._seen:
                self._feed("again", self._seen[id(value)][0])
                return
            self._seen[id(value)] = len(self._seen), value
        if kind in (list, tuple):
            self._feed(kind.__name__, len(value))
            self._visit_all(*value)
        elif kind in (dict, types.MappingProxyType):
            self._feed("dict", len(value))
            self._visit_all(*value.items())
        elif isinstance(value, (set, frozenset)):
            self._feed(kind.__name__, sorted(fingerprint(item) for item in value))
        elif isinstance(value, (np.ndarray, np.generic, Tensor)):
            self._numbers(self.code, value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, types.ModuleType):
            self._feed("module", value.__name__)
        elif isinstance(value, Enum):
            self._feed("enum", f"{type(value).__qualname__}.{value.name}")
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif callable(value) and self._function(value):
            pass
        else:
            self._object(value)

    def weigh(self, module: nn.Module) -> None:
        """Add the weights of a module, and its buffers that no state dict has, to their digest."""
        entries = {**dict(module.named_buffers()), **module.state_dict()}
        for name in sorted(entries):
            self.weights.update(repr(("entry", name)).encode())
            if isinstance(entries[name], Tensor):
                self._numbers(self.weights, entries[name])
            else:  # extra state
                self.weights.update(fingerprint(entries[name]).code.encode())

    def _feed(self, *facts: Any) -> None:
        self.code.update(repr(facts).encode("utf-8", "surrogatepass"))

    def _visit_all(self, *values: Any) -> None:
        for value in values:
            self.visit(value)

    def _numbers(self, digest: Any, value: Any) -> None:
        """Type, shape and bytes of an array or a tensor."""
        if not isinstance(value, Tensor):
            array = np.asarray(value)
            digest.update(repr(("array", array.dtype.str, array.shape)).encode())
            if array.dtype.hasobject:
                self.visit(array.tolist())
            else:
                digest.update(array.tobytes())
            return
        digest.update(repr(("tensor", str(value.dtype), tuple(value.shape))).encode())
        try:
            flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        except (RuntimeError, NotImplementedError, TypeError):
            raise ValueError(f"a tensor without plain numbers ({value.dtype}, {value.layout})") from None

    def _class(self, kind: type) -> None:
        """The code of a class; of one that is installed, its name."""
        self._feed("class", kind.__qualname__)
        if _is_installed(kind):
            self._feed(kind.__module__)
            return
        self._visit_all(*kind.__bases__)
        for name, value in vars(kind).items():
            if name not in _NOT_CODE:
                self._feed(name)
                self.visit(value)

    def _module(self, module: nn.Module) -> None:
        """Layers and their attributes; a program by its text."""
        if id(module) not in self._weighed:
            self.modules.append(module)
            self._weighed.update(map(id, module.modules()))
        text = getattr(module, "code", None) if isinstance(module, torch.fx.GraphModule) else None
        if isinstance(module, torch.jit.ScriptModule):
            text = str(module.inlined_graph)
            text = re.sub(r" # .*", "", text)  # places in files
        if text is not None:
            self._feed("program", text)
            return
        self.visit(type(module))
        installed = _is_installed(type(module))
        for name, value in vars(module).items():
            if name.endswith("_hooks") and name in _OF_ANY_MODULE:
                self._visit_all(*value.values())
            elif name not in _OF_ANY_MODULE and not (installed and name.startswith("_")):
                self._feed(name)
                self.visit(value)
        for name, child in module._modules.items():
            self._feed("layer", name)
            self.visit(child)

    def _function(self, value: Any) -> bool:
        """Visit a function, a method or what wraps one; whether it is one."""
        if isinstance(value, types.MethodType):
            self._visit_all("method", value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            self._visit_all("partial", value.func, value.args, value.keywords)
        elif hasattr(value, "__qualname__") and _is_installed(value):
            self._feed("installed", getattr(value, "__module__", None), value.__qualname__)
            within = [cell.cell_contents for cell in _filled(value)]  # a decorator's, or what a method is of
            within += [getattr(value, "__self__", None), getattr(value, "__wrapped__", None)]
            self._visit_all(*(one for one in within if not _is_installed(one)))
        elif isinstance(value, types.FunctionType):
            self._feed("function", value.__name__)
            self._visit_all(value.__code__, value.__defaults__, value.__kwdefaults__)
            self._visit_all(*(cell.cell_contents for cell in _filled(value)))
            for name in sorted(_globals_of(value.__code__) & value.__globals__.keys()):
                self._feed("global", name)
                self.visit(value.__globals__[name])
        else:
            return False
        return True

    def _code(self, code: types.CodeType) -> None:
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self._feed("code", code.co_code, code.co_exceptiontable, code.co_flags, *names)
        documented = bool(code.co_consts) and isinstance(code.co_consts[0], str)
        self._visit_all(*code.co_consts[documented:])  # a docstring, which decides nothing, is the first

    def _object(self, value: Any) -> None:
        """An object: its class, and what `pickle` would keep of it."""
        if isinstance(value, (staticmethod, classmethod)):
            self._visit_all(type(value).__name__, value.__func__)
            return
        if isinstance(value, (property, functools.cached_property)):
            self._visit_all("property", getattr(value, "fget", None) or getattr(value, "func", None))
            return
        pipeline = _serialised(value)
        if pipeline is not None:
            self._visit_all("albumentations", *pipeline)
            return
        self.visit(type(value))
        try:
            kept = value.__reduce_ex__(4)
        except Exception:
            kept = None
        if kept is None:
            raise ValueError(f"a {type(value).__name__}, of which nothing tells what it is")
        if isinstance(kept, str):
            self._feed("global", kept)
            return
        made, given, *rest = kept
        if rest and isinstance(rest[0], dict):  # without what a property has computed from the others
            lazy = functools.cached_property
            rest[0] = {
                name: one
                for name, one in rest[0].items()
                if not isinstance(inspect.getattr_static(type(value), str(name), None), lazy)
            }
        items = [list(part) if hasattr(part, "__next__") else part for part in rest]
        name = getattr(made, "__qualname__", "")
        self._visit_all(name if _is_installed(made) else made, given, items)


def _is_installed(value: Any) -> bool:
    """Whether something is, or is of, Python's own code, an installed library or this one."""
    if isinstance(value, types.FunctionType):
        place = value.__code__.co_filename
        return place.startswith(("<frozen ", "<@beartype")) or _is_of_library(place)
    if isinstance(value, types.ModuleType):
        return True
    name = getattr(value, "__module__", None) if callable(value) else type(value).__module__
    if name == "__main__":
        return False
    place = getattr(sys.modules.get(name or "builtins"), "__file__", None)
    return place is None or _is_of_library(place)


def _is_of_library(place: str) -> bool:
    """Whether a file is of Python, of an installed library, also one of another environment, or of tercet."""
    return place.startswith(_INSTALLED) or not _LIBRARIES.isdisjoint(Path(place).parts)


def _filled(function: Any) -> list[Any]:
    """The cells of a function's closure that hold something."""

    def holds(cell: Any) -> bool:
        try:
            return cell.cell_contents is not cell
        except ValueError:  # it is empty
            return False

    return [cell for cell in getattr(function, "__closure__", None) or () if holds(cell)]


def _globals_of(code: types.CodeType) -> set[str]:
    """The names of globals that some code reads, also in functions inside it."""
    found = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*(_globals_of(one) for one in code.co_consts if isinstance(one, types.CodeType)))


def _serialised(value: Any) -> list[Any] | None:
    """An albumentations transform as it serialises itself, with code of the user's in it; None for others."""
    library = sys.modules.get("albumentations")
    if library is None or not isinstance(value, (library.BaseCompose, library.BasicTransform)):
        return None
    try:
        found = [value.to_dict()]
    except Exception as error:
        raise ValueError(f"a {type(value).__name__} that does not serialise ({error})") from None
    nodes = [value]
    for node in nodes:  # the list grows while it is iterated
        nodes.extend(getattr(node, "transforms", ()))
        if not _is_installed(type(node)):
            found.append(type(node))
        if type(node).__name__ == "Lambda":  # it serialises as its name
            found.append(getattr(node, "custom_apply_fns", None))
    return found
