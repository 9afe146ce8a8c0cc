"""Figures as a table on the terminal, a CSV, Markdown and a plot."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from cases import CASES, OML, OURS, PML, ST
from measure import MATMUL, Figures, Setting
from page import ratio, short, table

Row = tuple[Setting, dict[str, Figures]]
PEERS = {PML: "PML", ST: "S-T", OML: "OML"}
HEADS = ["case", "N", "K", "D", "ms", "× matmul", "MiB", "peer", "peer ms", "× faster", "peer MiB", "× less"]
GROWTH = ["batch hard", "hinge, all triplets"]
COLOURS = {OURS: "#c1272d", PML: "#0f4c81", ST: "#e08a1e", OML: "#3a7d44", MATMUL: "#8a8a8a"}


def lines(row: Row) -> list[list[str]]:
    """A line for each peer."""
    setting, found = row
    ours, product = found[OURS], found[MATMUL]
    start = [setting.case, str(setting.n), str(setting.k), str(setting.dim), short(ours.median)]
    start += [short(ratio(ours.median, product.median)), short(ours.mib)]
    if ours.died:
        start[4] = ours.died
    out = []
    for name, peer in found.items():
        if name in (OURS, MATMUL):
            continue
        faster, less = ratio(peer.median, ours.median), ratio(peer.mib, ours.mib)
        figures = [short(peer.median), short(faster), short(peer.mib), short(less)]
        out.append([*start, PEERS[name], *([peer.died, "", "", ""] if peer.died else figures)])
    return out


def defeats(rows: Iterable[Row]) -> list[str]:
    """Where ours is slower than a peer, by median and by least time, or takes over 1 MiB more."""
    out = []
    for setting, found in rows:
        ours = found[OURS]
        for name, peer in found.items():
            if name in (OURS, MATMUL):
                continue
            where = f"{setting.case}, N={setting.n}, K={setting.k}, D={setting.dim}"
            slower, more = ratio(ours.least, peer.least), ratio(ours.mib, peer.mib)
            if slower is not None and slower > 1 and ours.median > peer.median:
                times = f"least {short(ours.least)} ms against {short(peer.least)} ms"
                out.append(f"{where}: {short(slower)} × the time of {PEERS[name]} ({times})")
            if more is not None and ours.mib - peer.mib > 1:
                sizes = f"{short(ours.mib)} MiB against {short(peer.mib)} MiB"
                out.append(f"{where}: {short(more)} × the memory of {PEERS[name]} ({sizes})")
            if ours.died:
                out.append(f"{where}: ours {ours.died}")
    return out


def growth(rows: Iterable[Row], low: int = 1024, high: int = 8192) -> list[str]:
    """The exponents of the cases of GROWTH between two sizes, of the least times."""
    rows = list(rows)
    out = []
    for name in GROWTH:
        least = {s.n: f[OURS].least for s, f in rows if (s.case, s.k, s.dim) == (name, 8, 128)}
        if least.get(low) and least.get(high):
            exponent = math.log(least[high] / least[low]) / math.log(high / low)
            out.append(f"{name}: time grows as N^{exponent:.2f} from N = {low} to {high}")
    return out


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Every side of every row, with medians and least times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        columns = "case kind side n k dim device threads rounds median_ms least_ms peak_mib died".split()
        out.writerow(columns)
        for s, found in rows:
            for side, f in found.items():
                start = [s.case, CASES[s.case].kind, side, s.n, s.k, s.dim, s.device, s.threads]
                out.writerow([*start, f.rounds, f.median, f.least, f.mib, f.died])


def read_csv(path: Path) -> list[Row]:
    """The rows of such a file; none where it does not exist."""
    rows: dict[Setting, dict[str, Figures]] = {}
    if not path.exists():
        return []
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            size = {name: int(line[name]) for name in ("n", "k", "dim", "threads")}
            setting = Setting(line["case"], device=line["device"], **size)
            median, least, mib = (
                float(line[name]) if line[name] else None for name in ("median_ms", "least_ms", "peak_mib")
            )
            figures = Figures(int(line["rounds"]), median, least, mib, line["died"])
            rows.setdefault(setting, {})[line["side"]] = figures
    return list(rows.items())


def markdown(rows: list[Row], told: str, command: str) -> str:
    """The section of the results page."""
    parts = [
        "## Time and memory",
        f"{told} Regenerate with `{command}`.",
        "Milliseconds are medians of rounds in which ours, the peers and the bare product `x @ x.T` run by "
        "turns in one process, forward and backward for a loss. MiB is the peak of one step above its inputs "
        "in a process of its own; below 1 MiB it is mostly pages of code. *× faster* and *× less* are the "
        "peer over ours. PML is pytorch-metric-learning, S-T sentence-transformers, OML "
        "open-metric-learning; \\* marks cases whose definitions differ. Unit vectors in float32. A peer "
        "that died is not tried at larger N.",
    ]
    lost = defeats(rows)
    parts.append("**Where ours is slower, by median and by least time, or takes over 1 MiB more**")
    parts.append("\n".join(f"- {line}" for line in lost) or "Nowhere.")
    if exponents := growth(rows):
        parts += ["**Growth**", "\n".join(f"- {line}" for line in exponents)]
    titles = {"miner": "Miners", "loss": "Losses", "both": "Miner and loss in one step"}
    usual = [row for row in rows if (row[0].k, row[0].dim) == (8, 128)]
    for kind, title in titles.items():
        some = [line for row in usual if CASES[row[0].case].kind == kind for line in lines(row)]
        if some:
            parts += [f"### {title}", _table(some)]
    other = [line for row in rows if row not in usual for line in lines(row)]
    if other:
        parts += ["### Other dimensions and class sizes", _table(other)]
    return "\n\n".join(parts)


def _table(some: list[list[str]]) -> str:
    marked = [[line[0] + (" \\*" if CASES[line[0]].differs else ""), *line[1:]] for line in some]
    return table(HEADS, marked)


def plot(path: Path, rows: Iterable[Row], told: str) -> None:
    """Time against N on logarithmic axes, a panel a case, at K = 8 and D = 128."""
    import matplotlib
    from PIL import Image

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if (row[0].k, row[0].dim) == (8, 128)]
    names = list(dict.fromkeys(setting.case for setting, _ in rows))
    wide = min(6, len(names))
    tall = math.ceil(len(names) / wide)
    figure, axes = plt.subplots(
        tall, wide, figsize=(2.15 * wide, 1.75 * tall + 0.7), sharex=True, sharey=True, squeeze=False
    )
    for axis, name in zip(axes.flat, names, strict=False):  # the last row may have empty places
        for side, colour in COLOURS.items():
            points = [(s.n, f[side].median) for s, f in rows if s.case == name and side in f]
            points = sorted(point for point in points if point[1] is not None)
            style = {"linestyle": ":", "marker": ""} if side == MATMUL else {"marker": "o", "markersize": 2.5}
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.3, **style)
            ends = [s.n for s, f in rows if s.case == name and side in f and f[side].died]
            if ends and points:
                axis.plot(*points[-1], marker="x", color=colour, markersize=6, markeredgewidth=1.5)
        axis.set(xscale="log", yscale="log")
        axis.set_title(name + (" *" if CASES[name].differs else ""), fontsize=7.5, pad=3)
        axis.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=6.5, length=2, which="both")
    sizes = sorted({setting.n for setting, _ in rows})
    shown = sizes[-1:]
    for n in sizes[::-1]:  # no two numbers closer than a factor of 3
        shown += [n] if 3 * n <= shown[-1] else []
    axes[0, 0].set_xticks(shown, [str(n) for n in shown])
    axes[0, 0].minorticks_off()
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for column in range(wide):  # the lowest panel of each column carries the numbers
        last = max(r for r in range(tall) if r * wide + column < len(names))
        axes[last, column].tick_params(labelbottom=True)
    labels = {OURS: "tercet", PML: PML, ST: ST, OML: OML, MATMUL: "x @ x.T alone"}
    handles = [
        plt.Line2D([], [], color=colour, label=labels[side], linestyle=":" if side == MATMUL else "-")
        for side, colour in COLOURS.items()
    ]
    handles.append(plt.Line2D([], [], color="black", marker="x", linestyle="", label="died beyond this"))
    figure.legend(handles=handles, loc="upper center", ncols=5, fontsize=8, frameon=False)
    figure.supylabel("milliseconds", fontsize=8, x=0.003)
    figure.supxlabel(f"N (K = 8, D = 128).   * definitions differ.   {told}", fontsize=6.5)
    figure.tight_layout(rect=(0.012, 0, 1, 1 - 0.35 / figure.get_figheight()), pad=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=100)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)  # a third of the bytes
