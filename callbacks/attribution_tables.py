"""What REDRL says beside the attack's name, as rows of a file and as tables: family, victim, budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from .tables import percent, plain_table


def attribution_rows(results: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return one row a number, in the order of `ResultsTable.COLUMNS`."""
    rows: list[tuple[Any, ...]] = []
    if hierarchy := results.get("hierarchy"):
        counts = hierarchy["counts"]
        for family, value in hierarchy["per_family"].items():
            rows.append(("hierarchy", family, "", "", "family", value, counts[family]))
            within = hierarchy["per_family_algorithm"][family]
            rows.append(("hierarchy", family, "", "", "algorithm_in_family", within, counts[family]))
        for metric in ("family", "family_micro", "algorithm", "precision", "recall", "f1"):
            rows.append(("hierarchy", "", "", "", metric, hierarchy[metric], sum(counts.values())))
    for group, found in (results.get("recognition_by_victim") or {}).items():
        for attack, value in found["per_class"].items():
            rows.append(("recognition_by_victim", attack, "", group, "accuracy", value, found["counts"][attack]))
        for metric in ("micro", "macro"):
            total = sum(found["counts"].values())
            rows.append(("recognition_by_victim", "", "", group, metric, found[metric], total))
    if victim := results.get("victim"):
        total = sum(victim["counts"].values())
        for attack, value in victim["per_attack"].items():
            rows.append(("victim", attack, "", "", "accuracy", value, victim["counts"][attack]))
        for metric in ("accuracy", "macro"):
            rows.append(("victim", "", "", "", metric, victim[metric], total))
        for true, taken in victim["taken_for"].items():
            images = sum(taken.values())
            for name, count in taken.items():
                share = count / images if images else None
                rows.append(("victim", "", "", true, f"taken_for_{name}", share, images))
    if budget := results.get("budget"):
        for attack, value in budget["per_attack"].items():
            images = budget["recognised"][attack]
            rows.append(("budget", attack, "", "", "mae_grey_levels", value, images))
            rows.append(("budget", attack, "", "", "within", budget["per_attack_within"][attack], images))
        recognised, images = sum(budget["recognised"].values()), sum(budget["counts"].values())
        rows.append(("budget", "", "", "", "mae_grey_levels", budget["mae"], recognised))
        rows.append(("budget", "", "", "", "within", budget["within"], recognised))
        rows.append(("budget", "", "", "", "within_all", budget["within_all"], images))
    return rows


def attribution_tables(results: Mapping[str, Any]) -> Iterable[Table]:
    """Yield the tables of what there is; families only where they put several attacks together."""
    hierarchy = results.get("hierarchy")
    if hierarchy and len(hierarchy["per_family"]) < len(hierarchy["families"]):
        yield _families(hierarchy)
    if results.get("recognition_by_victim"):
        yield _groups(results["recognition_by_victim"])
    if results.get("victim"):
        yield from _victims(results["victim"])
    if results.get("budget"):
        yield _budgets(results["budget"])


def _families(hierarchy: Mapping[str, Any]) -> Table:
    table = plain_table("Recognition by family", "family", ("attacks", "images", "family right", "attack right,\nthen"))
    members = list(hierarchy["families"].values())
    for family, value in hierarchy["per_family"].items():
        within = hierarchy["per_family_algorithm"][family] if members.count(family) > 1 else None
        images = f"{hierarchy['counts'][family]:,d}"
        table.add_row(family, str(members.count(family)), images, percent(value), percent(within))
    table.add_section()
    total = f"{sum(hierarchy['counts'].values()):,d}"
    micro = percent(hierarchy["family_micro"]), percent(hierarchy["algorithm"])
    table.add_row("micro (all images alike)", str(len(members)), total, *micro)
    macro = percent(hierarchy["family"]), ""
    table.add_row("macro (all families alike)", str(len(members)), total, *macro, style="bold")
    scores = (f"{name} {percent(hierarchy[name])}" for name in ("precision", "recall", "f1"))
    table.caption = f"hierarchical {', '.join(scores)}"
    return table


def _groups(groups: Mapping[str, Any]) -> Table:
    columns = [f"{name} victims" for name in groups]
    table = plain_table("Attack recognition, victims held out apart", "attack", columns)
    for attack in next(iter(groups.values()))["per_class"]:
        table.add_row(attack, *(percent(group["per_class"][attack]) for group in groups.values()))
    table.add_section()
    table.add_row("micro (all images alike)", *(percent(group["micro"]) for group in groups.values()))
    table.add_row("macro (all attacks alike)", *(percent(group["macro"]) for group in groups.values()), style="bold")
    return table


def _victims(victim: Mapping[str, Any]) -> Iterable[Table]:
    table = plain_table("Victim named", "attack", ("images", "right"))
    for attack, value in victim["per_attack"].items():
        table.add_row(attack, f"{victim['counts'][attack]:,d}", percent(value))
    table.add_section()
    total = f"{sum(victim['counts'].values()):,d}"
    table.add_row("micro (all images alike)", total, percent(victim["accuracy"]))
    table.add_row("macro (all attacks alike)", total, percent(victim["macro"]), style="bold")
    yield table
    named = list(next(iter(victim["taken_for"].values())))
    table = plain_table("Victims, and what they were taken for", "made against", ("images", *named))
    for true, taken in victim["taken_for"].items():
        images = sum(taken.values())
        shares = [percent(count / images if images else None) for count in taken.values()]
        table.add_row(true if true in named else f"{true} (held out)", f"{images:,d}", *shares)
    yield table


def _budgets(budget: Mapping[str, Any]) -> Table:
    near = f"within a\nfactor {budget['factor']:g}"
    columns = ("images", "attack\nrecognised", "mean error\n(1/255)", near)
    table = plain_table("Linf budget, where the attack was recognised", "attack", columns)
    for attack, value in budget["per_attack"].items():
        images, recognised = budget["counts"][attack], budget["recognised"][attack]
        table.add_row(
            attack, f"{images:,d}", f"{recognised:,d}", _levels(value), percent(budget["per_attack_within"][attack])
        )
    table.add_section()
    images, recognised = sum(budget["counts"].values()), sum(budget["recognised"].values())
    table.add_row("all", f"{images:,d}", f"{recognised:,d}", _levels(budget["mae"]), percent(budget["within"]))
    table.caption = f"recognised and within the factor: {percent(budget['within_all'])} of all images with a budget"
    return table


def _levels(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
