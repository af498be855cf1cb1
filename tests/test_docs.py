"""The documented table of attacks has every attack that there is."""

import inspect
import re
from pathlib import Path

import lit_adv.attacks as attacks
from lit_adv.attacks import Attack

PAGE = Path(__file__).parent.parent / "docs" / "attacks.md"


def test_every_attack_is_in_the_table_and_every_row_is_an_attack():
    cells = [row.split("|")[1] for row in PAGE.read_text().splitlines() if row.startswith("| `")]
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    there = {
        name
        for name, value in vars(attacks).items()
        if inspect.isclass(value) and issubclass(value, Attack) and not inspect.isabstract(value)
    }
    assert sorted(listed) == sorted(there)
