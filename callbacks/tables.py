"""What the tables on the terminal have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def plain_table(title: str, first: str, columns: Iterable[str]) -> Table:
    """Return an empty table with names on the left and numbers on the right."""
    style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "caption_justify": "left"}
    # a title wider than its table would be broken
    table = Table(title=title, min_width=len(title), **style)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def percent(share: float | None) -> str:
    """Return a share in per cent, a dash where it is not known."""
    return "–" if share is None else f"{100 * share:.1f} %"


def print_path(console: Console, name: str, path: object) -> None:
    """Print where something is, on one line: a path that is broken into lines cannot be copied."""
    console.print(Text.assemble((f"{name}: ", "bold"), str(path)), soft_wrap=True)
