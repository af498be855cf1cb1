"""A run's folder as one HTML page that needs neither a network nor a server."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from lit_adv.dashboard import HEADLINES, ORDER, group_of_file, group_of_number
from lit_adv.files import replacing
from lit_adv.plots import learning_figure

MOST_ROWS = 300
Rows = list[dict[str, str]]


def write_report(folder: str | Path) -> Path:
    """Writes ``report.html`` into a run's folder, from the files that are there.

    Curves and last numbers from ``metrics.csv``; every other CSV file as a sortable table, the first 300 rows of it;
    every PNG under ``figures``; config, versions and commit. Nothing is fetched: figures are inside the page, and a
    content security policy forbids the browser to load anything.

    Args:
        folder: The run's folder.

    Returns:
        The path of the page, which is replaced as a whole.

    Raises:
        FileNotFoundError: There is no such folder, or it holds nothing of a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"report: there is no folder '{folder}' (give the folder of a run)")
    numbers = _read(folder / "metrics.csv")
    last = _last(numbers)
    groups = _grouped(last, group_of_number)
    sections: dict[str, list[str]] = defaultdict(list)
    for group, names in groups.items():
        sections[group] += _curves(group, numbers, names)
    for path in sorted((folder / "figures").glob("*.png")):
        sections[group_of_file(path.stem)].append(_figure(path.stem.replace("_", " "), path.read_bytes()))
    for group, names in groups.items():
        sections[group].append(_table("last numbers logged", _by_split({name: last[name] for name in names})))
    for path in sorted(folder.glob("*.csv")):
        if path.name != "metrics.csv":
            for title, name, rows in _tables(path):
                sections[group_of_file(name)].append(_table(title, rows, path.name))
    told = [*_texts(folder)]
    if not sections and not told:
        raise FileNotFoundError(
            f"report: '{folder}' holds neither tables, figures nor a config (is it a run's folder?)"
        )
    page = _page(folder.resolve(), last, {name: sections[name] for name in ORDER if name in sections}, told)
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "report.html"


def _page(folder: Path, last: Mapping[str, str], sections: Mapping[str, list[str]], told: list[str]) -> str:
    anchors = [(name, name.lower()) for name in sections] + ([("Config and environment", "config")] if told else [])
    tiles = [
        f'<div class="tile"><b>{escape(_short(last[name]))}</b><span>{escape(name)}</span></div>'
        for name in HEADLINES
        if name in last
    ][:6]
    parts = [
        f'<section id="{anchor}"><h2>{name}</h2>{"".join(sections[name])}</section>'
        for name, anchor in anchors
        if name in sections
    ]
    if told:
        parts.append(f'<section id="config"><h2>Config and environment</h2>{"".join(told)}</section>')
    links = "".join(f'<a href="#{anchor}">{name}</a>' for name, anchor in anchors)
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    name = escape("/".join(folder.parts[-3:]).lstrip("/"))
    return _SHELL.format(
        title=name, made=made, style=_STYLE, script=_SCRIPT, links=links, tiles="".join(tiles), parts="".join(parts)
    )


def _read(path: Path) -> Rows:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            return [{key: value or "" for key, value in row.items() if key is not None} for row in csv.DictReader(file)]
        except csv.Error as error:
            return [{"cannot be read": f"{path.name}: {error}"}]


def _last(numbers: Rows) -> dict[str, str]:
    """By name, the last value logged."""
    return {name: value for row in numbers for name, value in row.items() if name not in ("step", "epoch") and value}


def _by_split(last: Mapping[str, str]) -> Rows:
    """A row a number, with a column for each of training, validation and test."""
    found: dict[str, dict[str, str]] = {}
    for name, value in last.items():
        split, _, rest = name.partition("/")
        column, number = (split, rest) if split in _SPLITS and rest else ("value", name)
        found.setdefault(number, {"number": number} | dict.fromkeys((*_SPLITS, "value"), ""))[column] = value
    return list(found.values())


def _curve(numbers: Rows, name: str) -> tuple[list[float], list[float]]:
    """The last value of each epoch, epochs counted from 1."""
    found = {}
    for row in numbers:
        epoch, value = _number(row.get("epoch", "")), _number(row.get(name, ""))
        if epoch is not None and value is not None:
            found[epoch + 1] = value
    return list(found), list(found.values())


def _curves(group: str, numbers: Rows, names: Sequence[str]) -> Iterator[str]:
    """Figures of a row of panels each: what differs only behind the last slash shares a panel, or a few if many."""
    panels: dict[str, dict[str, Any]] = defaultdict(dict)
    for name in names:
        curve = _curve(numbers, name)
        if len(curve[0]) > 1:
            head, _, tail = name.rpartition("/")
            panels[name if head in ("", *_SPLITS) else head][tail] = curve
    parts = {}
    for title, curves in panels.items():
        count = math.ceil(len(curves) / _MOST_CURVES)
        # of about as many each
        size = math.ceil(len(curves) / count)
        for number in range(count):
            chosen = dict(list(curves.items())[number * size : (number + 1) * size])
            parts[f"{title} ({number + 1} of {count})" if count > 1 else title] = chosen
    titles = list(parts)
    for start in range(0, len(titles), 3):
        shown = {title: parts[title] for title in titles[start : start + 3]}
        picture = io.BytesIO()
        learning_figure(shown, of_batches=False).savefig(picture, format="png")
        yield _figure(f"{group}: {', '.join(shown)}", picture.getvalue())


def _tables(path: Path) -> Iterator[tuple[str, str, Rows]]:
    """Title, name and rows; ``results.csv`` holds several tables."""
    rows = _read(path)
    name = path.stem
    if rows and name == "results" and "section" in rows[0]:
        for section in dict.fromkeys(row["section"] for row in rows):
            yield section, section, [_without(row, "section") for row in rows if row["section"] == section]
    else:
        yield name.replace("_", " "), name, rows


def _without(row: Mapping[str, str], field: str) -> dict[str, str]:
    return {key: value for key, value in row.items() if key != field}


def _table(title: str, rows: Sequence[Mapping[str, str]], file: str = "") -> str:
    if not rows:
        return f'<h3>{escape(title)}</h3><p class="note">no rows</p>'
    columns = [key for key in rows[0] if any(row.get(key) for row in rows)]
    head = "".join(f'<th scope="col"><button type="button">{escape(key)}</button></th>' for key in columns)
    body = "".join(f"<tr>{''.join(_cell(row.get(key, '')) for key in columns)}</tr>" for row in rows[:MOST_ROWS])
    note = ""
    if len(rows) > MOST_ROWS:
        note = f'<p class="note">the first {MOST_ROWS} of {len(rows):,d} rows; all are in {escape(file)}</p>'
    return (
        f'<h3>{escape(title)}</h3><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div>{note}"
    )


def _cell(value: str) -> str:
    number = _number(value)
    if number is None:
        return f"<td>{escape(value)}</td>"
    return f'<td class="number" data-value="{number!r}" title="{escape(value)}">{escape(_short(value))}</td>'


def _short(value: str) -> str:
    number = _number(value)
    if number is None or number == int(number):
        return value.removesuffix(".0")
    return f"{number:.4g}"


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _figure(caption: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    words, width = escape(caption), round(int.from_bytes(png[16:20]) * _SCALE)
    return (
        f'<figure><button type="button" class="zoom" aria-label="enlarge {words}"><img alt="{words}" '
        f'width="{width}" src="data:image/png;base64,{data}"></button><figcaption>{words}</figcaption></figure>'
    )


def _texts(folder: Path) -> Iterator[str]:
    """Versions and commit as a table, configs as they are."""
    for path in sorted(folder.glob("git*.json")):
        try:
            source = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if not isinstance(source, dict):
            continue
        rows = [{"": key, "value": _words(value)} for key, value in source.items()]
        suffix = path.stem.removeprefix("git").strip("_")
        yield _table(f"Environment{f' of {suffix}' if suffix else ''}", rows)
    for path in sorted(folder.glob("config*.yaml")):
        text = escape(path.read_text(encoding="utf-8", errors="replace"))
        yield f"<details><summary>{escape(path.name)}</summary><pre>{text}</pre></details>"


def _words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "not known" if value is None else str(value)


def _grouped(names: Iterable[str], group_of: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[group_of(name)].append(name)
    return found


_SPLITS = ("train", "val", "test")
# a legend of more would cover its panel
_MOST_CURVES = 10
# figures are drawn at 150 dots an inch, pages have 96
_SCALE = 96 / 150
_SHELL = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><header><h1>{title}</h1><p class="note">lit_adv, {made}</p><nav>{links}</nav></header>
<main><div class="tiles">{tiles}</div>{parts}</main>
<dialog><img alt=""></dialog><script>{script}</script></body></html>
"""
_STYLE = """
:root{color-scheme:light dark;--ink:#1f2933;--soft:#616e7c;--line:#d9e2ec;--paper:#fff;--band:#f5f7fa;--link:#0b69a3}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7eb;--soft:#9aa5b1;--line:#3e4c59;--paper:#1f2933;--band:#27333f;
--link:#62b0e8}}
*{box-sizing:border-box}html{scroll-padding-top:6.5rem}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
header{position:sticky;top:0;z-index:1;background:var(--paper);border-bottom:1px solid var(--line);padding:.6rem 1.5rem}
h1{font-size:1.15rem;margin:0;display:inline-block}h2{font-size:1.3rem;margin:2.2rem 0 .3rem}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
header .note{display:inline-block;margin:0 0 0 .8rem}nav a{margin-right:1rem}a{color:var(--link)}
main{max-width:76rem;margin:0 auto;padding:0 1.5rem 4rem}
.note{color:var(--soft);font-size:.85rem}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin-top:1.2rem}
.tile{background:var(--band);border-radius:.5rem;padding:.6rem 1rem;min-width:9rem}
.tile b{display:block;font-size:1.5rem;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:.85rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.25rem .8rem .25rem 0;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
td:last-child{white-space:normal}
.number{text-align:right;font-variant-numeric:tabular-nums}
th button{font:inherit;font-weight:600;color:inherit;background:none;border:0;padding:0;cursor:pointer}
th button::after{content:" \\2195";color:var(--soft)}th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
figure{margin:1.2rem 0}figure img{max-width:100%;background:#fff;display:block}
.zoom{border:1px solid var(--line);padding:0;background:none;cursor:zoom-in;display:block;max-width:100%}
figcaption{color:var(--soft);font-size:.85rem}
dialog{border:0;padding:0;max-width:100vw;max-height:100vh;width:100vw;height:100vh;background:#fff;overflow:auto;
cursor:zoom-out}
dialog img{display:block;min-width:100%}dialog::backdrop{background:#000a}
details{margin:.6rem 0}summary{cursor:pointer}pre{background:var(--band);padding:.8rem;overflow:auto;font-size:.82rem}
@media print{header{position:static}details::details-content{content-visibility:visible;height:auto}nav{display:none}}
"""
_SCRIPT = """
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
  const up = head.getAttribute("aria-sort") !== "ascending", place = head.cellIndex;
  head.parentNode.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => { const cell = row.cells[place], value = cell.dataset.value;
    return value === undefined ? cell.textContent : Number(value); };
  const order = (a, b) => { a = key(a); b = key(b);
    if (a === "" || b === "") return (a === "") - (b === "");
    const both = typeof a === "number" && typeof b === "number";
    return (up ? 1 : -1) * (both ? a - b : String(a).localeCompare(String(b), "en", {numeric: true})); };
  body.append(...[...body.rows].sort(order));
}));
const dialog = document.querySelector("dialog");
document.querySelectorAll(".zoom").forEach(button => button.addEventListener("click", () => {
  const shown = dialog.querySelector("img"), picture = button.querySelector("img");
  shown.src = picture.src; shown.alt = picture.alt; dialog.showModal();
}));
dialog.addEventListener("click", () => dialog.close());
"""
