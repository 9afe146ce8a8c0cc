"""A model by name or by file, for the command line: a function that makes it, TorchScript, torch.export."""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tercet.core.checks import Refusal, escaped
from tercet.data.io.positional import open_plain
from tercet.pairwise.inputs import device_of

__all__ = ["FixedBatch", "load_model", "made_by_name"]

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def load_model(source: str, device: Any) -> Any:
    """The model that a text names, on a device. It is code, and is run.

    Args:
        source: `package.module:factory`, a function without arguments that returns the model, searched on
            Python's path and in the working directory; or a file, told by its content: TorchScript, or a
            program that `torch.export.save` has written.
        device: where to, as torch names it.

    Raises:
        ValueError: no such file or function, a function that returns no callable or fails, a file of
            something else, such as weights without their model, or no such device.

    Example:
        >>> load_model("torch.nn:Identity", "cpu")
        Identity()
    """
    device = device_of("embed", device)
    path = Path(source) if source and "\0" not in source else None
    if path is not None and path.exists():
        return _of_file(path, device)
    model = made_by_name("model", source, "a function that returns the model, or an existing model file")
    return model.to(device) if isinstance(model, nn.Module) else model


def made_by_name(argument: str, name: str, what: str) -> Any:
    """What the function returns that `package.module:factory` names; the module is imported, and so is run.

    Args:
        argument: the name of the argument, for messages.
        name: the name; after the colon it may have dots.
        what: what it should name, for messages.

    Raises:
        ValueError: another form, no such module or function, one that fails, or one that returns no callable.

    Example:
        >>> made_by_name("transform", "functools:partial", "a function")
        Traceback (most recent call last):
        tercet.core.checks.Refusal: transform='functools:partial': expected package.module:factory, a \
function; TypeError: type 'partial' takes at least one argument
    """
    expected = f"package.module:factory, {what}"
    if not _NAME.fullmatch(name):
        raise Refusal(argument, name, expected)
    module, _, path = name.partition(":")
    here = os.getcwd()
    sys.path.append(here)  # last, so that nothing in the folder hides an installed module
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        made = found()
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise Refusal(argument, name, expected, f"{type(error).__name__}: {said}") from error
    finally:
        sys.path.remove(here)
    if not callable(made):
        raise Refusal(argument, name, expected, f"it returns {type(made).__name__}")
    return made


def _of_file(path: Path, device: torch.device) -> Any:
    """The model of a file, told by what is in it."""
    kinds = "TorchScript, or a program of torch.export"
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise Refusal("model", str(path), f"a file of {kinds}", escaped(error)) from error
    try:
        if "models/model.json" in names or "serialized_exported_program.json" in archive.namelist():
            return _program(path, device)
        if "constants.pkl" in names:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole
                return torch.jit.load(path, map_location=device)
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refusal("model", str(path), f"a whole file of {kinds}", said) from error
    hint = "weights are no model: give package.module:factory, a function that makes it and loads them"
    raise Refusal("model", str(path), f"a file of {kinds}", hint)


def _program(path: Path, device: torch.device) -> nn.Module:
    """A program of torch.export, which takes batches of any size."""
    program = torch.export.load(path)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    inputs = program.graph_signature.user_inputs
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in inputs]
    if len(shapes) != 1 or not len(shapes[0]):
        raise ValueError(f"it takes {len(shapes)} inputs, and one is given, the images")
    count = shapes[0][0]
    return FixedBatch(program.module(), count) if isinstance(count, int) else program.module()


class FixedBatch(nn.Module):
    """A program that was exported for batches of one size, as a model of batches of any size.

    A batch is cut into pieces of that size. The last one is filled up with its last image, and what the
    program gives for the filling is left out.

    Args:
        program: the program.
        count: the images of its batch.

    Example:
        >>> FixedBatch(nn.Flatten(), 2)(torch.ones(5, 3, 1)).shape
        torch.Size([5, 3])
    """

    def __init__(self, program: nn.Module, count: int) -> None:
        super().__init__()
        self.program, self.count = program, count

    def forward(self, images: Any) -> Tensor:
        """The output for each image."""
        found = []
        for piece in images.split(self.count):
            lacking = self.count - len(piece)
            filled = torch.cat([piece, piece[-1:].expand(lacking, *piece.shape[1:])]) if lacking else piece
            found.append(self.program(filled)[: len(piece)])
        return torch.cat(found)
