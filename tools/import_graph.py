"""Which folder of tercet imports which, held against the order that docs/architecture.md states.

    python tools/import_graph.py           prints the picture and every breach
    python tools/import_graph.py --write   puts the picture into docs/architecture.md
    python tools/import_graph.py --check   fails where the page shows another one, or a law is broken

Only source text is read, so nothing has to be installed, and a test can feed it a house with one fault.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
SRC = ROOT / "src" / "tercet"

MOST_CODE = 250  # lines of code of a file; docstrings, comments and empty lines are not counted
MOST_ARROWS = 60
WITH_TORCH = {"data/datasets", "data/streams"}  # the folders of data/ that load torch
MATHEMATICS = {"pairwise", "neighbors", "miners", "losses", "metrics"}
# No more than an import: an old name that stays importable for a while, with a warning; `python -m tercet`.
SHIMS = {"distributed.py", "__main__.py"}
LIBRARIES = {
    "numpy": "everywhere",
    "jaxtyping": "everywhere",
    "torch": "torch",
    "typer": "cli",
    "rich": "cli",
    "lazy_loader": "root",
    **dict.fromkeys(("albumentations", "cv2", "faiss", "jinja2", "lightning", "markupsafe"), "where used"),
    **dict.fromkeys(("matplotlib", "openTSNE", "pandas", "pyarrow", "ray", "sklearn"), "where used"),
    **dict.fromkeys(("webdataset",), "where used"),
}
"""Third-party libraries by where they may be imported at module level."""


def order(page: str) -> list[str]:
    """The folders of the page's layout, from the top of the order to its end: `core`, `data/io`, …"""
    block = re.search(r"^## Layout\n.*?^```text\n(.*?)^```", page, re.M | re.S)
    if block is None:
        raise ValueError("expected a block of text under '## Layout' in the page, found none")
    found, parent = [], ""
    for line in block[1].splitlines():
        entry = re.match(r"( *)(\w+)/ ", line)
        if entry is None:
            continue
        if not entry[1]:
            parent = entry[2]
        found.append(f"{parent}/{entry[2]}" if entry[1] else entry[2])
    nested = {folder.split("/")[0] for folder in found if "/" in folder}
    return [folder for folder in found if folder not in nested]


def room_of(path: str, rooms: list[str]) -> str:
    """The folder of a file, `losses` of `losses/triplet.py`; "" for files that lie in none."""
    return next((room for room in rooms if path.startswith(f"{room}/")), "")


def module_of(path: str) -> str:
    """`losses/triplet.py` as `tercet.losses.triplet`, `losses/__init__.py` as `tercet.losses`."""
    return ".".join(["tercet", *path.removesuffix(".py").split("/")]).removesuffix(".__init__")


def imports(source: str, modules: set[str]) -> Iterator[tuple[int, str, str]]:
    """(line, module, when) of every import: `loaded` with the file, `called` in a function, `typed` only."""

    def walk(node: ast.AST, when: str) -> Iterator[tuple[int, str, str]]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            when = "called"
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from (found for child in node.body for found in walk(child, "typed"))
            yield from (found for child in node.orelse for found in walk(child, when))
            return
        elif isinstance(node, ast.Import):
            for alias in node.names:
                # Without `as` the name that is bound is the root's.
                root = alias.name.startswith("tercet.") and not alias.asname
                yield node.lineno, "tercet" if root else alias.name, when
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if base != "tercet" and inner in modules else base, when
        for child in ast.iter_child_nodes(node):
            yield from walk(child, when)

    return walk(ast.parse(source), "loaded")


def code_lines(source: str) -> int:
    """Lines that hold code: no docstring, no comment, none that is empty."""
    lines: set[int] = set()
    idle = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in idle and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            lines -= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return len(lines)


def _fault(room: str, target: str, when: str, rooms: list[str]) -> str:
    """What is wrong with one import of `target` in a file of `room`; empty where nothing is."""
    library = target.split(".")[0]
    if target.startswith("."):
        return "relative import; write the name in full"
    if library == "tercet":
        other = room_of("/".join(target.split(".")[1:]) + "/", rooms)
        if target == "tercet":
            return "imports the package root; import from the module that has the name"
        if not other:
            return f"imports {target}, which lies in no folder of the layout"
        if room == "root":
            return "" if when == "typed" else f"loads {other} with the package; name it in the stub"
        wings = {"data" if name.startswith("data/") else name for name in (room, other)}
        if "data" in wings and wings & MATHEMATICS:
            return f"{room} imports {other}; they meet in training"
        if wings == {"miners", "losses"}:
            return f"{room} imports {other}; they meet in Triplets and Pairs"
        if rooms.index(other) > rooms.index(room):
            return f"{room} imports {other}, which stands below it"
        if when == "loaded" and other in WITH_TORCH and room.startswith("data/") and room not in WITH_TORCH:
            return f"loads {other}, and torch with it; import it where it is used"
    elif library not in sys.stdlib_module_names:
        place = LIBRARIES.get(library)
        if place is None:
            return f"imports {library}, which is not in the table of libraries"
        torchless = room in ("core", "root") or (room.startswith("data/") and room not in WITH_TORCH)
        allowed = (
            place == room
            or (place == "everywhere" and room != "root")
            or (place == "torch" and not torchless)
        )
        if when == "loaded" and not allowed:
            return f"imports {library} at module level; import it where it is used"
    return ""


def edges(sources: Mapping[str, str], rooms: list[str]) -> dict[str, set[str]]:
    """Which other folders each folder imports.

    Args:
        sources: the text of each file by its path under src/tercet, `losses/triplet.py`.
        rooms: the folders, as `order` gives them.
    """
    found: dict[str, set[str]] = {room: set() for room in rooms}
    modules = {module_of(path) for path in sources}
    for path, source in sources.items():
        if room := room_of(path, rooms):
            others = {
                room_of("/".join(name.split(".")[1:]) + "/", rooms) for _, name, _ in imports(source, modules)
            }
            found[room] |= others - {room, ""}
    return found


def breaches(sources: Mapping[str, str], rooms: list[str]) -> list[str]:
    """Every breach of the laws in a house of sources, a sentence each; arguments as for `edges`."""
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    modules = {module_of(path) for path in sources}
    for path, source in sources.items():
        if (count := code_lines(source)) > MOST_CODE:
            found.append(f"{path}: {count} lines of code; {MOST_CODE} at most")
        room = room_of(path, rooms) or ("root" if path == "__init__.py" else "")
        if not room:
            if path not in SHIMS and path != "data/__init__.py":
                found.append(f"{path}: lies in no folder of the layout")
            continue
        uses = list(imports(source, modules))
        graph[module_of(path)] = {target for _, target, _ in uses if target in modules and room != "root"}
        said = ((line, _fault(room, target, when, rooms)) for line, target, when in uses)
        found += dict.fromkeys(f"{path}:{line}: {text}" for line, text in said if text)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("import cycle: " + " → ".join(reversed(error.args[1])))
    count = sum(len(others) for others in edges(sources, rooms).values())
    if count > MOST_ARROWS:
        found.append(f"{count} arrows between folders; {MOST_ARROWS} at most")
    return found


def picture(sources: Mapping[str, str], rooms: list[str]) -> str:
    """The graph as text: a line a folder, with the folders that it imports in their order."""
    found = edges(sources, rooms)
    width = max(map(len, rooms))
    lines = [
        f"{room:<{width}} → {', '.join(sorted(found[room], key=rooms.index))}" if found[room] else room
        for room in rooms
    ]
    return "\n".join([*lines, "", f"{sum(map(len, found.values()))} arrows, {len(rooms)} folders"])


def house(src: Path = SRC) -> dict[str, str]:
    """The text of each file by its path under src/tercet."""
    return {path.relative_to(src).as_posix(): path.read_text("utf-8") for path in sorted(src.rglob("*.py"))}


def drawn(page: str, text: str) -> str:
    """The page with `text` as its picture."""
    return re.sub(
        r"(<!-- import graph -->\n```text\n).*?(\n```)", lambda m: m[1] + text + m[2], page, flags=re.S
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the picture into docs/architecture.md")
    parser.add_argument("--check", action="store_true", help="fail where the page or a law does not hold")
    options = parser.parse_args()
    page = PAGE.read_text("utf-8")
    rooms, sources = order(page), house()
    text, said = picture(sources, rooms), breaches(sources, rooms)
    if options.write:
        PAGE.write_text(drawn(page, text), "utf-8")
    elif options.check and drawn(page, text) != page:
        said.append("docs/architecture.md shows another picture; run python tools/import_graph.py --write")
    print(text if not options.check else "", *said, sep="\n")
    sys.exit(1 if said else 0)


if __name__ == "__main__":
    main()
