"""The verdict: which signs it takes, how it speaks, and what it writes."""

import csv
import io
import json

import pytest
import torch
from rich.console import Console

from lit_adv.masking_verdict import COLUMNS, THRESHOLDS, judge, radius_text

NAMES = ("clean", "fgsm", "rand_fgsm", "pgd", "margin", "square", "fgsm_margin", "pgd@1")
TRANSFERS = ("fgsm_transfer", "pgd_transfer")


def counts(robust=None, images=400, transfers=True, **changes):
    """Counts of an honest network; attacks whose robust images hold those of the weaker ones, one inside the other."""
    honest = {"clean": 360, "fgsm": 200, "rand_fgsm": 260, "pgd": 160, "margin": 155, "square": 170}
    honest |= {"fgsm_margin": 195, "pgd@1": 0, "fgsm_transfer": 290, "pgd_transfer": 280}
    robust = {name: int((robust or {}).get(name, honest[name])) for name in (*NAMES, *(TRANSFERS * transfers))}
    # scaled with the images
    robust = {name: count * images // 400 for name, count in robust.items()}
    names = tuple(robust)
    attacked = robust["clean"]
    return {
        "names": names,
        "both": [[min(robust[one], robust[two]) for two in names] for one in names],
        "images": images,
        "attacked": attacked,
        "classes": 10,
        "entries": 64 * attacked,
        "zero_entries": 0,
        "zero_images": 0,
        "searched": robust["pgd"],
        "found": 0,
        "shared": 300,
        "crossed": 200,
        "own": 280,
        "crossed_and_own": 190,
        "passes": {name: {"images": attacked, "forwards": 3 * attacked, "backwards": attacked} for name in names[1:]},
        "gaps": torch.linspace(-0.1, 0.3, attacked, dtype=torch.float64),
    } | changes


def told(given, **thresholds):
    found = judge(given, 0.1, {**THRESHOLDS, **thresholds}, 0.95, 50)
    for each in found.diagnostics.values():
        assert each.value is None or each.low <= each.value <= each.high, each.name
    return found


def flags(found):
    return {name for name, each in found.diagnostics.items() if each.beyond}


def test_an_honest_network_shows_no_sign():
    found = told(counts())
    assert flags(found) == set()
    assert found.verdict == "no sign"
    assert found.text == "no sign of gradient masking (7 of D1 to D7 made on 360 images)"
    assert found.evidence == ()


@pytest.mark.parametrize(
    ("change", "sign", "words"),
    [
        ({"robust": {"pgd": 250, "square": 260}}, "D1", "FGSM 12.5 points below PGD"),
        ({"robust": {"rand_fgsm": 100}}, "D2", "RAND-FGSM 25.0 points below FGSM"),
        ({"robust": {"fgsm_transfer": 120}}, "D3/fgsm", "FGSM transferred from the undefended network 20.0 points"),
        ({"robust": {"pgd_transfer": 100}}, "D3/pgd", "PGD transferred from the undefended network 15.0 points"),
        ({"crossed": 30, "crossed_and_own": 25}, "D4", "undefended network on 10.0 % of the images, its own on 93.3 %"),
        ({"robust": {"pgd@1": 80}}, "D5", "PGD at eps 1 leaves 10.0 points more than chance"),
        ({"found": 20}, "D6", "random search fools 12.5 % of what PGD could not"),
        ({"zero_entries": 64 * 250}, "D7/entries", "69.4 % of the gradient's entries are exactly 0"),
        ({"zero_images": 50}, "D7/images", "the gradient of 13.9 % of the images is exactly 0"),
    ],
)
def test_one_sign_is_named_and_is_no_verdict(change, sign, words):
    found = told(counts(**change))
    assert flags(found) == {sign}
    assert found.verdict == "one sign"
    assert found.text.startswith("no verdict of gradient masking, as one sign is not two: ")
    assert words in found.text
    assert words in found.evidence[0]
    # which alone says nothing against a network
    assert ("networks that are robust show D4 too" in found.text) == (sign == "D4")


@pytest.mark.parametrize(
    "change",
    [
        {"zero_entries": 64 * 250, "zero_images": 50},
        {"robust": {"fgsm_transfer": 100, "pgd_transfer": 100}},
    ],
)
def test_two_parts_of_one_diagnostic_are_one_sign(change):
    found = told(counts(**change))
    assert len(flags(found)) == 2
    assert found.verdict == "one sign"


def test_what_informs_has_no_vote():
    gaps = torch.linspace(1.5, 2.5, 360, dtype=torch.float64)
    found = told(counts({"fgsm_margin": 100, "square": 100}, gaps=gaps))
    assert flags(found) == {"D8", "D9", "S/pgd", "S/margin"}
    assert found.verdict == "no sign"
    assert found.text.endswith("; but Square 15.0 points below PGD; Square 13.8 points below APGD on the margin")
    assert flags(told(counts(gaps=-gaps))) == {"D8"}
    assert flags(told(counts({"fgsm_margin": 300}))) == {"D9"}
    # an attack on the margin that does as well: the cross-entropy is the worse guide, nothing is hidden
    quiet = told(counts({"square": 100, "margin": 98}))
    assert flags(quiet) == {"S/pgd"}
    assert "Square" not in quiet.text


def test_two_signs_are_a_verdict_and_square_comes_first():
    found = told(counts({"rand_fgsm": 100, "square": 112, "margin": 110}, zero_images=50))
    assert found.verdict == "likely"
    assert found.text == (
        "gradient masking likely: Square 12.0 points below PGD; RAND-FGSM 25.0 points below FGSM; the gradient of"
        " 13.9 % of the images is exactly 0"
    )


def test_a_flag_within_its_interval_has_no_vote():
    found = told(counts({"rand_fgsm": 189}, zero_images=20))
    assert found.diagnostics["D2"].flag
    assert found.diagnostics["D7/images"].flag
    assert flags(found) == set()
    assert found.verdict == "no sign"
    assert "D2, D7/images flagged within the 95 % interval" in found.text


def test_thresholds_are_the_users():
    given = counts({"rand_fgsm": 100}, zero_images=50)
    assert told(given).verdict == "likely"
    assert told(given, D2=0.4).verdict == "one sign"
    assert told(given, **{"D2": 0.4, "D7/images": 0.2}).verdict == "no sign"
    # the factor of D4
    given = counts(crossed=100, crossed_and_own=95)
    assert "D4" in flags(told(given))
    assert "D4" not in flags(told(given, D4=0.2))


def test_with_too_few_images_it_cannot_tell():
    found = told(counts(images=40))
    assert found.verdict == "cannot tell"
    assert found.text == "cannot tell whether the gradient is masked: 36 images attacked, 50 needed"
    one = told(counts(images=40, zero_images=30))
    assert one.text.endswith("36 images attacked, 50 needed; so far: the gradient of 83.3 % of the images is exactly 0")
    # what is beyond its interval is so with few images too
    assert told(counts({"rand_fgsm": 20}, images=40, zero_images=30)).verdict == "likely"


def test_a_network_that_knows_nothing_is_not_accused():
    dead = dict.fromkeys((*NAMES, *TRANSFERS), 48)
    found = told(counts(dead, zero_images=48, zero_entries=48 * 64, crossed=0, crossed_and_own=0))
    assert {"D4", "D7/images"} <= flags(found)
    assert found.verdict == "cannot tell"
    assert "the accuracy of 12.0 % is no better than chance, 10.0 %" in found.text


def test_without_images_nothing_is_known():
    nothing = counts(images=0, shared=0, crossed=0, own=0, crossed_and_own=0, gaps=torch.zeros(0))
    nothing["passes"] = {name: dict.fromkeys(each, 0) for name, each in nothing["passes"].items()}
    found = told(nothing)
    assert found.verdict == "cannot tell"
    assert {each.value for each in found.diagnostics.values()} == {None}
    assert found.accuracies["pgd"] == {"accuracy": None, "low": None, "high": None, "robust": 0}
    shown(found)


def shown(found):
    console = Console(file=io.StringIO(), width=80)
    console.print(found.table())
    return console.file.getvalue()


def test_table_and_files(tmp_path):
    found = told(counts({"rand_fgsm": 100}, transfers=False, zero_images=50))
    text = shown(found)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    for words in ("Linf 0.1, 400 images, 360 attacked", "D7/entries", "no undefended network", "RAND-FGSM", "beyond"):
        assert words in text
    assert "gradient masking likely: RAND-FGSM 25.0 points below FGSM" in " ".join(text.split())
    with found.save(tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    by_name = {row["name"]: row for row in rows}
    assert float(by_name["pgd"]["value"]) == 0.4
    assert float(by_name["D2"]["low"]) == found.diagnostics["D2"].low
    assert (by_name["D2"]["beyond"], by_name["D1"]["beyond"], by_name["D3/pgd"]["beyond"]) == ("True", "False", "")
    assert by_name["D4"]["note"] == "no undefended network"
    assert (rows[-1]["section"], rows[-1]["name"], rows[-1]["note"]) == ("verdict", "likely", found.text)
    stored = json.loads((tmp_path / "robustness_report.json").read_text())
    assert stored["verdict"] == "likely"
    assert stored["diagnostics"]["D2"]["counts"] == {"both": 100, "fgsm": 200, "rand_fgsm": 100}
    assert stored["accuracies"]["pgd"]["robust"] == 160


@pytest.mark.parametrize(
    ("eps", "text"), [(8 / 255, "8/255"), (25 / 255, "25/255"), (0.1, "0.1"), (0.5 / 255, "0.001961")]
)
def test_a_radius_is_named_as_papers_do(eps, text):
    assert radius_text(eps) == text
