"""From counts to diagnostics, and from diagnostics to a verdict on gradient masking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lit_adv.files import write_json, write_rows
from lit_adv.metrics import median_interval, paired_difference, wilson_interval

THRESHOLDS: dict[str, float] = {
    "D1": 0.01,
    "D2": 0.02,
    "D3/fgsm": 0.0,
    "D3/pgd": 0.0,
    "D4": 0.5,
    "D5": 0.01,
    "D6": 0.01,
    "D7/entries": 0.5,
    "D7/images": 0.05,
    "D8": 1.0,
    "D9": 0.05,
    "S/pgd": 0.0,
    "S/margin": 0.0,
}
"""What a diagnostic must exceed to be flagged: shares in [0, 1]; of D4 the factor, of D8 a ratio."""

COLUMNS = (
    "section", "name", "quantity", "value", "low", "high", "threshold", "flag", "beyond", "images", "forwards",
    "backwards", "note",
)  # fmt: skip
_INFORM = ("D8", "D9", "S/pgd", "S/margin")
_NAMES = {
    "clean": "clean",
    "fgsm": "FGSM",
    "rand_fgsm": "RAND-FGSM",
    "pgd": "PGD",
    "margin": "APGD on the margin",
    "square": "Square",
    "autoattack": "AutoAttack",
    "fgsm_transfer": "FGSM, transferred",
    "pgd_transfer": "PGD, transferred",
    "fgsm_margin": "FGSM on the margin",
    "random_search": "random search",
    "gradients": "D7 and D8",
}

Verdict = Literal["likely", "one sign", "no sign", "cannot tell"]


@dataclass(frozen=True)
class Diagnostic:
    """One quantity of D1 to D9, or Square against the attacks with gradients.

    Attributes:
        name: ``D1`` to ``D9`` (with parts ``D3/fgsm``, ``D3/pgd``, ``D7/entries`` and ``D7/images``), and, of Square,
            ``S/pgd`` and ``S/margin``.
        quantity: In words.
        value: A share or a difference of shares, for D8 a ratio; None where it could not be made.
        low: Lower end of its interval.
        high: Upper end.
        threshold: What it must exceed; of D8 and D9 the absolute value.
        flag: Whether the value does.
        beyond: Whether the whole interval does.
        images: How many it is of.
        counts: What it was computed from.
        evidence: What it would say in a verdict.
        informs: Whether it has no part in the verdict.
        note: Why there is no value, else empty.
    """

    name: str
    quantity: str
    value: float | None
    low: float | None
    high: float | None
    threshold: float
    flag: bool | None
    beyond: bool | None
    images: int
    counts: dict[str, int | float] = field(default_factory=dict)
    evidence: str = ""
    informs: bool = False
    note: str = ""

    @property
    def limit(self) -> float:
        """What the value is compared with: the threshold, but for D4, whose factor is inside its value."""
        return 0.0 if self.name == "D4" else self.threshold


@dataclass(frozen=True)
class Diagnosis:
    """What `lit_adv.masking.diagnose` has found.

    Attributes:
        eps: Linf radius.
        images: How many there were.
        attacked: How many of them were classified rightly, and so attacked.
        classes: Of the classifier.
        accuracies: By attack, ``clean`` first: ``accuracy``, ``low``, ``high`` (Wilson; None without an image) and the
            count ``robust``.
        passes: By attack: ``images`` worked on, and ``forwards`` and ``backwards``, sums over them.
        diagnostics: By name.
        confidence: Of the intervals.
        verdict: ``likely`` (two or more of D1 to D7 beyond their intervals), ``one sign``, ``no sign`` or ``cannot
            tell``.
        text: The verdict in words, with its evidence.
        evidence: What speaks for masking, item by item.
    """

    eps: float
    images: int
    attacked: int
    classes: int
    accuracies: dict[str, dict[str, Any]]
    passes: dict[str, dict[str, int]]
    diagnostics: dict[str, Diagnostic]
    confidence: float
    verdict: Verdict
    text: str
    evidence: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row an attack, one a diagnostic, with the fields of `COLUMNS`, and one with the verdict."""
        rows = []
        for name in (*self.accuracies, *(spender for spender in self.passes if spender not in self.accuracies)):
            found = self.accuracies.get(name, {})
            spent = self.passes.get(name, {})
            rows.append(
                {"section": "attack", "name": name, "quantity": "accuracy" if found else "passes only"}
                | {"value": found.get("accuracy"), "low": found.get("low"), "high": found.get("high")}
                | {"images": self.images if found else spent["images"]}
                | {key: spent.get(key, 0) for key in ("forwards", "backwards")}
            )
        names = ("name", "quantity", "value", "low", "high", "threshold", "flag", "beyond", "images", "note")
        rows += [
            {"section": "diagnostic"} | {name: getattr(each, name) for name in names}
            for each in self.diagnostics.values()
        ]
        rows.append({"section": "verdict", "name": self.verdict, "images": self.attacked, "note": self.text})
        return rows

    def table(self) -> Group:
        """For a terminal of 80 columns: accuracies and passes, diagnostics, verdict."""
        return Group(self._attacks(), self._signs(), Text(self.text, style="bold"), Text())

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Accuracy of FGSM and PGD against the radius, from 0 to 1; empty unless further radii were asked for."""
        found: dict[str, list[tuple[float, float]]] = {}
        for base in ("fgsm", "pgd"):
            points = {0.0: self.accuracies["clean"], self.eps: self.accuracies[base]}
            points |= {float(n.partition("@")[2]): a for n, a in self.accuracies.items() if n.startswith(f"{base}@")}
            found[_NAMES[base]] = sorted((radius, each["accuracy"]) for radius, each in points.items())
        return found if "fgsm@1" in self.accuracies and self.images else {}

    def save(self, folder: str | Path) -> Path:
        """Writes ``robustness_report.csv`` and ``robustness_report.json`` and returns the path of the first."""
        folder = Path(folder)
        write_rows(folder / "robustness_report.csv", COLUMNS, self.rows())
        write_json(folder / "robustness_report.json", asdict(self), indent=2)
        return folder / "robustness_report.csv"

    def _attacks(self) -> Table:
        style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD}
        title = f"Robustness at Linf {radius_text(self.eps)}, {self.images:,} images, {self.attacked:,} attacked"
        table = Table(title=title, pad_edge=False, min_width=len(title), **style)
        table.add_column("attack", no_wrap=True)
        for heading in ("accuracy", f"{100 * self.confidence:g} % interval", "F/image", "B/image"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name in (*self.accuracies, *(spender for spender in self.passes if spender not in self.accuracies)):
            found, spent = self.accuracies.get(name, {}), self.passes.get(name)
            means = [_mean(spent, key) for key in ("forwards", "backwards")]
            interval = _interval(found.get("low"), found.get("high"))
            table.add_row(attack_name(name), _number(found.get("accuracy")), interval, *means)
        totals = [sum(each[key] for each in self.passes.values()) for key in ("forwards", "backwards")]
        table.caption = f"per cent; {totals[0]:,} forward and {totals[1]:,} backward passes in all"
        table.caption_justify = "left"
        return table

    def _signs(self) -> Table:
        style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD}
        table = Table(title="Is the gradient masked?", pad_edge=False, padding=(0, 1, 0, 0), min_width=24, **style)
        table.add_column("", no_wrap=True)
        table.add_column("", overflow="fold")
        for heading in ("value", f"{100 * self.confidence:g} % interval", "flag if", "flag"):
            table.add_column(heading, justify="right", no_wrap=True)
        for each in self.diagnostics.values():
            scale = 1 if each.name == "D8" else 100
            sign = "|.| >" if each.name in ("D8", "D9") else ">"
            limit = f"{sign} {scale * each.limit:.3g}"
            flag = "–" if each.flag is None else "beyond" if each.beyond else "within" if each.flag else "no"
            quantity = f"{each.quantity} ({each.note})" if each.note else each.quantity
            style = {"style": "bold red"} if each.beyond and not each.informs else {}
            values = (_number(each.value, scale), _interval(each.low, each.high, scale), limit)
            table.add_row(each.name, quantity, *values, flag, **style)
        table.caption = (
            "per cent or points, D8 a ratio; beyond: the whole interval is on the flag's side; within: the value alone"
            " is. D8, D9 and S inform; the verdict needs two of D1 to D7 beyond"
        )
        table.caption_justify = "left"
        return table


def judge(
    counts: Mapping[str, Any], eps: float, thresholds: Mapping[str, float], confidence: float, min_images: int
) -> Diagnosis:
    """The diagnosis from `MaskingCounts.compute`.

    Args:
        counts: Of the attacks of `lit_adv.masking.Probes`.
        eps: Their radius.
        thresholds: All of `THRESHOLDS`.
        confidence: Of the intervals.
        min_images: With fewer images attacked there is no verdict, unless it is ``likely``.
    """
    names, both, images = counts["names"], counts["both"], counts["images"]
    robust = {name: both[place][place] for place, name in enumerate(names)}
    signs = _Signs(counts, thresholds, confidence).all()
    beyond = [each for each in signs.values() if each.beyond and not each.informs]
    squares = [signs["S/pgd"], signs["S/margin"]]
    if not beyond and not all(each.beyond for each in squares):
        # where the margin does as well as Square, the cross-entropy is the worse guide, not the gradient
        squares = []
    evidence = tuple(each.evidence for each in [*squares, *beyond] if each.beyond)
    # the parts of D3, and of D7, are one sign
    votes = len({each.name.partition("/")[0] for each in beyond})
    verdict: Verdict = "likely" if votes >= 2 else "one sign" if votes else "no sign"
    why = ""
    clean, least, _ = _share(counts["attacked"], images, confidence)
    chance = 1 / max(counts["classes"], 1)
    if verdict != "likely" and counts["attacked"] < min_images:
        why = f"{counts['attacked']:,} images attacked, {min_images:,} needed"
    elif clean is not None and least is not None and least <= chance:
        # a network that says the same of all images has no gradient either
        why = f"the accuracy of {100 * clean:.1f} % is no better than chance, {100 * chance:.1f} %"
    if why:
        verdict = "cannot tell"
    return Diagnosis(
        eps=eps,
        images=images,
        attacked=counts["attacked"],
        classes=counts["classes"],
        accuracies={
            name: dict(zip(("accuracy", "low", "high"), _share(count, images, confidence), strict=True))
            | {"robust": count}
            for name, count in robust.items()
        },
        passes=counts["passes"],
        diagnostics=signs,
        confidence=confidence,
        verdict=verdict,
        text=_words(verdict, why, signs, evidence, counts["attacked"], confidence),
        evidence=evidence,
    )


class _Signs:
    """Makes the diagnostics; see card 8.5 for their definitions."""

    def __init__(self, counts: Mapping[str, Any], thresholds: Mapping[str, float], confidence: float) -> None:
        self.counts, self.thresholds, self.confidence = counts, thresholds, confidence
        self.places = {name: place for place, name in enumerate(counts["names"])}

    def all(self) -> dict[str, Diagnostic]:
        counts = self.counts
        attacked, chance = counts["attacked"], 1 / max(counts["classes"], 1)
        found = [
            self._difference("D1", "PGD − FGSM", "pgd", "fgsm", "FGSM {} points below PGD"),
            self._difference("D2", "FGSM − RAND-FGSM", "fgsm", "rand_fgsm", "RAND-FGSM {} points below FGSM"),
            *(self._transfer(name, words) for name, words in (("fgsm", "FGSM"), ("pgd", "PGD"))),
            self._exchange() if "fgsm_transfer" in self.places else self._absent("D4", _EXCHANGE, _LONELY),
            self._proportion(
                "D5",
                "PGD at eps 1 − chance",
                self._robust("pgd@1"),
                counts["images"],
                "PGD at eps 1 leaves {} points more than chance",
                base=chance,
            ),
            self._proportion(
                "D6",
                "random search after PGD",
                counts["found"],
                counts["searched"],
                "random search fools {} % of what PGD could not",
                why="PGD left nothing" if attacked else "",
            ),
            self._entries(),
            self._proportion(
                "D7/images",
                "images without gradient",
                counts["zero_images"],
                attacked,
                "the gradient of {} % of the images is exactly 0",
            ),
            self._linearity(),
            self._difference("D9", "FGSM − FGSM on margin", "fgsm", "fgsm_margin", "", both_sides=True),
            self._difference("S/pgd", "PGD − Square", "pgd", "square", "Square {} points below PGD"),
            self._difference(
                "S/margin",
                "APGD margin − Square",
                "margin",
                "square",
                "Square {} points below APGD on the margin",
            ),
        ]
        return {each.name: each for each in found}

    def _transfer(self, base: str, words: str) -> Diagnostic:
        name, quantity = f"D3/{base}", f"{words} − transferred {words}"
        if f"{base}_transfer" not in self.places:
            return self._absent(name, quantity, _LONELY)
        found = f"{words} transferred from the undefended network {{}} points below {words}"
        return self._difference(name, quantity, base, f"{base}_transfer", found)

    def _robust(self, name: str) -> int:
        place = self.places[name]
        count: int = self.counts["both"][place][place]
        return count

    def _difference(
        self, name: str, quantity: str, first: str, second: str, words: str, both_sides: bool = False
    ) -> Diagnostic:
        images = self.counts["images"]
        if not images:
            return self._absent(name, quantity, "no images")
        both = self.counts["both"][self.places[first]][self.places[second]]
        one, other = self._robust(first), self._robust(second)
        value, low, high = paired_difference(both, one, other, images, self.confidence)
        table = {"both": both, first: one, second: other}
        return self._made(name, quantity, value, low, high, images, table, words, both_sides=both_sides)

    def _proportion(
        self, name: str, quantity: str, count: int, images: int, words: str, base: float = 0.0, why: str = ""
    ) -> Diagnostic:
        if not images:
            return self._absent(name, quantity, why or "no images")
        value, low, high = (end - base for end in _share(count, images, self.confidence) if end is not None)
        table: dict[str, int | float] = {"count": count, "images": images} | ({"chance": base} if base else {})
        return self._made(name, quantity, value, low, high, images, table, words)

    def _entries(self) -> Diagnostic:
        name, quantity = "D7/entries", "zero entries of gradient"
        attacked, entries, zero = (self.counts[key] for key in ("attacked", "entries", "zero_entries"))
        if not entries:
            return self._absent(name, quantity, "no images")
        # entries of an image are not independent; a share in [0, 1] varies at most as much as a coin of its mean
        value, low, high = (
            end for end in _share(attacked * zero / entries, attacked, self.confidence) if end is not None
        )
        words = "{} % of the gradient's entries are exactly 0"
        table = {"count": zero, "entries": entries}
        return self._made(name, quantity, value, low, high, attacked, table, words)

    def _exchange(self) -> Diagnostic:
        shared, crossed, own = (self.counts[key] for key in ("shared", "crossed", "own"))
        if not shared:
            return self._absent("D4", _EXCHANGE, "no image that both have right")
        factor = self.thresholds["D4"]
        found = paired_difference(self.counts["crossed_and_own"], crossed, own, shared, self.confidence, factor)
        table = {"crossed": crossed, "own": own, "images": shared}
        words = (
            f"FGSM examples fool the undefended network on {100 * crossed / shared:.1f} % of the images, its own on"
            f" {100 * own / shared:.1f} %"
        )
        quantity = _EXCHANGE.replace("½", "½" if factor == 0.5 else f"{factor:g}")
        return self._made("D4", quantity, -found.value, -found.high, -found.low, shared, table, words, bound=0.0)

    def _linearity(self) -> Diagnostic:
        quantity, gaps = "median linearisation gap", self.counts["gaps"]
        if not len(gaps):
            return self._absent("D8", quantity, "no images")
        value, low, high = median_interval(gaps, self.confidence)
        return self._made("D8", quantity, value, low, high, len(gaps), {}, "", both_sides=True)

    def _made(
        self,
        name: str,
        quantity: str,
        value: float,
        low: float,
        high: float,
        images: int,
        counts: Mapping[str, int | float],
        words: str,
        *,
        both_sides: bool = False,
        bound: float | None = None,
    ) -> Diagnostic:
        bound = self.thresholds[name] if bound is None else bound
        flag, beyond = value > bound, low > bound
        if both_sides:
            flag, beyond = abs(value) > bound, beyond or high < -bound
        return Diagnostic(
            name=name,
            quantity=quantity,
            value=value,
            low=low,
            high=high,
            threshold=self.thresholds[name],
            flag=flag,
            # where rounding has moved an end over the value
            beyond=beyond and flag,
            images=images,
            counts=dict(counts),
            evidence=words.format(f"{100 * value:.1f}"),
            informs=name in _INFORM,
        )

    def _absent(self, name: str, quantity: str, why: str) -> Diagnostic:
        bound, informs = self.thresholds[name], name in _INFORM
        return Diagnostic(name, quantity, None, None, None, bound, None, None, 0, informs=informs, note=why)


_LONELY = "no undefended network"
_EXCHANGE = "½ own − crossed success"


def attack_name(name: str) -> str:
    """An attack's key in words: ``pgd@0.1`` is PGD at eps 0.1."""
    base, at, radius = name.partition("@")
    return _NAMES.get(base, base) + (f" at eps {radius}" if at else "")


def _words(
    verdict: Verdict,
    why: str,
    signs: Mapping[str, Diagnostic],
    evidence: tuple[str, ...],
    attacked: int,
    confidence: float,
) -> str:
    seen = "; ".join(evidence)
    if verdict == "likely":
        return f"gradient masking likely: {seen}"
    if verdict == "cannot tell":
        so_far = f"; so far: {seen}" if seen else ""
        return f"cannot tell whether the gradient is masked: {why}{so_far}"
    voters = [each for each in signs.values() if not each.informs]
    made = {each.name.partition("/")[0] for each in voters if each.flag is not None}
    within = sorted({each.name for each in voters if each.flag and not each.beyond})
    left = [f"{len(made)} of D1 to D7 made on {attacked:,} images"]
    left += [f"{', '.join(within)} flagged within the {100 * confidence:g} % interval"] if within else []
    left += [f"{each.name}: {each.note}" for each in voters if each.note]
    about = f" ({'; '.join(left)})"
    if verdict == "one sign":
        honest = "; networks that are robust show D4 too" if signs["D4"].beyond else ""
        return f"no verdict of gradient masking, as one sign is not two: {seen}{honest}{about}"
    beside = f"; but {seen}" if seen else ""
    return f"no sign of gradient masking{about}{beside}"


def _share(count: float, images: int, confidence: float) -> tuple[float | None, float | None, float | None]:
    """A share with Wilson's interval; None without images."""
    if not images:
        return None, None, None
    tally, total = torch.tensor([float(count)], dtype=torch.float64), torch.tensor([images])
    low, high = wilson_interval(tally, total, confidence)
    return count / images, float(low), float(high)


def _number(value: float | None, scale: float = 100) -> str:
    return "–" if value is None else f"{scale * value:.{1 if scale == 100 else 3}f}"


def _interval(low: float | None, high: float | None, scale: float = 100) -> str:
    return "–" if low is None else f"{_number(low, scale)} to {_number(high, scale)}"


def _mean(spent: Mapping[str, int] | None, key: str) -> str:
    return "–" if not spent or not spent["images"] else f"{spent[key] / spent['images']:,.0f}"


def radius_text(eps: float) -> str:
    """A radius in pixel units of [0, 1], in grey levels where it is a whole number of them."""
    levels = 255 * eps
    return f"{levels:.0f}/255" if abs(levels - round(levels)) < 1e-6 else f"{eps:.4g}"
