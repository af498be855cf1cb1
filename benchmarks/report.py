"""What was measured as rows, and the rows as CSV, Markdown table and figure."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

OURS = "lit_adv"
COLOURS = ("#1f77b4", "#d95f02", "#2a9d5c", "#7b4fa3")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attack of one library on one model.

    Attributes:
        model: Name of the network.
        attack: Name of the contest.
        library: Whose attack.
        setting: What differs from the contest's setting; empty for the contestants proper.
        images: How many were attacked.
        seconds: For all of them, the best round.
        forwards: Forward passes an image took, on average.
        backwards: Backward passes.
        success: Share of the images whose prediction reached the goal.
        norm: Which norm ``mean_norm`` is.
        mean_norm: Mean size of the perturbations that succeed; NaN where none does.
        remark: What makes the row less than equal to the others.
    """

    model: str
    attack: str
    library: str
    setting: str = ""
    images: int
    seconds: float
    forwards: float
    backwards: float
    success: float
    norm: str
    mean_norm: float
    remark: str = ""

    @property
    def speed(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def ratios(rows: Sequence[Row]) -> list[float]:
    """How many times as fast as another, for every row.

    Returns:
        For a peer's row: ours over it, above 1 where we are faster. For a row of ours: it over the fastest peer; NaN
        where there is none.
    """
    found = []
    for row in rows:
        same = [other for other in rows if (other.model, other.attack) == (row.model, row.attack)]
        if row.library == OURS:
            best = best_peer(rows, row)
            found.append(math.nan if best is None else row.speed / best.speed)
        else:
            own = [other.speed for other in same if other.library == OURS and not other.setting]
            found.append(own[0] / row.speed if own else math.nan)
    return found


def best_peer(rows: Sequence[Row], row: Row) -> Row | None:
    """The fastest row of another library for the same model and attack, of those that do the same work.

    One whose remark says that it does something else, and that takes less than nine tenths of our passes, does not.
    """
    same = [other for other in rows if (other.model, other.attack) == (row.model, row.attack)]
    passes = [other.forwards + other.backwards for other in same if other.library == OURS and not other.setting]
    least = 0.9 * passes[0] if passes else 0.0
    peers = [
        other
        for other in same
        if other.library != OURS and not (other.remark and other.forwards + other.backwards < least)
    ]
    return max(peers, key=lambda other: other.speed, default=None)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All figures of all rows."""
    names = [each.name for each in fields(Row)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, "images_per_second", "ratio"])
        writer.writeheader()
        for row, ratio in zip(rows, ratios(rows), strict=True):
            writer.writerow({**asdict(row), "images_per_second": f"{row.speed:.6g}", "ratio": f"{ratio:.4g}"})


def read_csv(path: Path) -> list[Row]:
    """What `write_csv` wrote, so that a table or a figure can be drawn again."""
    kinds: dict[str, Any] = {each.name: each.type for each in fields(Row)}
    cast: dict[str, Any] = {"str": str, "int": int, "float": float}
    with path.open(newline="") as file:
        return [Row(**{name: cast[kinds[name]](line[name]) for name in kinds}) for line in csv.DictReader(file)]


def markdown(rows: Sequence[Row]) -> str:
    """A table for every model."""
    lines = []
    all_ratios = dict(zip(map(id, rows), ratios(rows), strict=True))
    for model in dict.fromkeys(row.model for row in rows):
        lines += [
            f"## {model}",
            "",
            "| attack | library | images/s | ratio | forwards | backwards | success | mean norm |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
        ]
        before = ""
        for row in (row for row in rows if row.model == model):
            ratio = all_ratios[id(row)]
            library = f"**{OURS}**" if row.library == OURS else row.library
            cells = [
                row.attack if row.attack != before else "",
                f"{library} {row.setting}".strip() + (f" ({row.remark})" if row.remark else ""),
                short(row.speed),
                "-" if math.isnan(ratio) else short(ratio),
                short(row.forwards),
                short(row.backwards),
                f"{row.success:.0%}",
                "-" if math.isnan(row.mean_norm) else f"{short(row.mean_norm)} {row.norm}",
            ]
            before = row.attack
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def short(number: float) -> str:
    """Three digits, and no exponent."""
    if number == 0 or math.isnan(number):
        return f"{number:.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:.{min(digits, 5)}f}"


def figure(rows: Sequence[Row], title: str) -> Figure:
    """How many times as fast as the fastest peer each attack is: a dot a model, hollow without folding."""
    own = [row for row in rows if row.library == OURS and best_peer(rows, row) is not None]
    names = list(dict.fromkeys(row.attack for row in own))
    models = list(dict.fromkeys(row.model for row in own))
    speeds = dict(zip(map(id, rows), ratios(rows), strict=True))
    drawn = Figure(figsize=(8.6, 1.9 + 0.34 * max(len(names), 1)), dpi=150, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    axes.set_xscale("log")
    axes.axvspan(1e-9, 1, color="#f4e3df", linewidth=0, zorder=0)
    axes.axvline(1, color="#1f2933", linewidth=1, zorder=1)
    shown = [1.0]
    for number, model in enumerate(models):
        colour = COLOURS[number % len(COLOURS)]
        offset = 0.24 * (number - (len(models) - 1) / 2)
        for setting in ("", "fold=False"):
            points = [
                (speeds[id(row)], names.index(row.attack) + offset)
                for row in own
                if row.model == model and row.setting == setting
            ]
            if not points:
                continue
            shown += [x for x, _ in points]
            axes.scatter(
                [x for x, _ in points],
                [y for _, y in points],
                s=34 if not setting else 24,
                facecolor=colour if not setting else "white",
                edgecolor=colour,
                linewidth=1.2,
                zorder=3 if not setting else 2,
                label=model if not setting else f"{model}, fold=False",
            )
    low, high = min(shown) / 1.4, max(shown) * 1.4
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= t <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(low, high)
    axes.set_ylim(len(names) - 0.4, -0.6)
    labels = [f"{name}  ({_rivals(rows, name)})" for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#d5dbe1", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(
        "images per second, ours over the fastest peer's (in brackets); right of 1 we are faster", fontsize=9
    )
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    if models:
        drawn.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return drawn


def _rivals(rows: Sequence[Row], attack: str) -> str:
    found = [best_peer(rows, row) for row in rows if row.attack == attack and row.library == OURS and not row.setting]
    return ", ".join(dict.fromkeys(peer.library for peer in found if peer is not None))
