"""What mkdocs adds to docs/: a reference of every public name of the stub, and the benchmarks' picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STUB = ROOT / "src/tercet/__init__.pyi"
PICTURES = ["tools/bench/peers.png"]  # of the results page, which the benchmarks' page includes
PAGES = {  # a page, its title, its first line, and the folders whose names it has
    "catalogs": (
        "Catalogs and manifests",
        "Which images there are, which triplets or pairs of them, and both on disk.",
        ("data.catalog", "data.triplets", "data.manifests"),
    ),
    "samplers": (
        "Samplers and datasets",
        "Which rows form a batch, and their images, decoded and augmented.",
        ("data.samplers", "data.datasets"),
    ),
    "shards": (
        "Shards and streams",
        "Tar shards, read at random or from front to back.",
        ("data.shards", "data.streams"),
    ),
    "miners": (
        "Miners, relations and distances",
        "Embeddings and labels in, row numbers of the batch out.",
        ("miners", "core", "pairwise"),
    ),
    "losses": (
        "Loss heads",
        "Modules that take embeddings, labels and mined tuples, and give a scalar.",
        ("losses",),
    ),
    "training": (
        "Around the loop",
        "Loaders, memory, several ranks, batches that do not fit, and what is logged.",
        ("training",),
    ),
    "metrics": ("Metrics", "Figures of embeddings, and of what mining did.", ("metrics",)),
    "collection": (
        "The whole collection",
        "Embeddings on disk, exact neighbours, hard negatives, doubtful labels.",
        ("neighbors", "offline"),
    ),
    "reports": ("Pictures and pages", "What one looks at.", ("reports",)),
}


def public_names(stub: str) -> dict[str, list[str]]:
    """The public names of each page, in the order of the stub.

    Raises:
        ValueError: a name of a folder that no page has.
    """
    pages: dict[str, list[str]] = {page: [] for page in PAGES}
    for module, name in re.findall(r"^from \.([\w.]+) import (\w+) as", stub, flags=re.MULTILINE):
        found = [
            page
            for page, (_, _, folders) in PAGES.items()
            if any(module.startswith(f"{folder}.") for folder in folders)
        ]
        if len(found) != 1:
            raise ValueError(f"{name} of {module}: add its folder to one page of tools/docs_pages.py")
        pages[found[0]].append(name)
    return pages


def page_text(page: str, names: list[str]) -> str:
    """One page in Markdown, on which mkdocstrings writes the docstrings."""
    title, line, _ = PAGES[page]
    return "\n".join([f"# {title}\n\n{line}\n", *(f"::: tercet.{name}" for name in names), ""])


def on_files(files: Any, config: Any) -> Any:
    """mkdocs' hook: add the pages and the pictures."""
    from mkdocs.structure.files import File

    for page, names in public_names(STUB.read_text()).items():
        files.append(File.generated(config, f"reference/{page}.md", content=page_text(page, names)))
    for picture in map(Path, PICTURES):
        files.append(File.generated(config, picture.name, abs_src_path=str(ROOT / picture)))
    return files
