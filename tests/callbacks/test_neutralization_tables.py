"""Neutralisation on a terminal of 80 columns."""

import io

from lit_adv.callbacks import Neutralization
from lit_adv.callbacks.neutralization_tables import neutralization_rows, neutralization_table
from rich.console import Console

PAIRS = [("T-shirt/top", "Ankle boot"), ("parasitised cells, stained", "uninfected")]


def results():
    """Every accuracy of row n is n / 10, but for the last row, which has no image."""
    found = []
    for number, ((source, target), chosen) in enumerate((pair, how) for pair in PAIRS for how in ("given", "pair")):
        known = number < 3
        score = (
            {"accuracy": number / 10, "low": 0.0, "high": 1.0} if known else dict.fromkeys(("accuracy", "low", "high"))
        )
        found.append(
            {
                "source": source,
                "target": target,
                "chosen": chosen,
                "area": 1.0,
                "empty_maps": 0.0 if number < 2 else 0.84,
                "images": 9,
                "target_images": 9,
                **dict.fromkeys(("delta1", "delta2", "theta", "ssim_samples", "ssim_representatives"), 0.5),
                "scores": dict.fromkeys(Neutralization.SCORES, score),
            }
        )
    return found


def test_long_names_of_classes_stay_whole_and_columns_stay_aligned() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(neutralization_table(results(), "split"))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    for (source, target), empty in zip(PAIRS, ("", "  (84.0 % empty maps)"), strict=True):
        assert [line.strip() for line in lines].count(f"{source} → {target}{empty}") == 1
    heading = next(line for line in lines if line.startswith("chosen"))
    rows = [line for line in lines if line.startswith(("  given", "  pair"))]
    assert [row.split() for row in rows] == [
        [chosen, "100.0", *[value] * 8]
        for chosen, value in zip(["given", "pair"] * 2, ["0.0", "10.0", "20.0", "–"], strict=False)
    ]
    # numbers end where their headings do
    for word in ("clean", "m-adv", "target"):
        end = heading.index(word) + len(word)
        assert all(row[:end].rstrip() == row[:end] and row[end : end + 1] in ("", " ") for row in rows)


def test_rows_of_the_file() -> None:
    rows = neutralization_rows(results(), Neutralization.SCORES)
    assert rows[1]["adaptive"] == 0.1
    assert rows[1]["adaptive_high"] == 1.0
    assert rows[3]["clean"] is None
    assert [row["empty_maps"] for row in rows] == [0.0, 0.0, 0.84, 0.84]
    assert list(rows[0])[:3] == ["source", "target", "chosen"]
