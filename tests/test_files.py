"""A file is there whole or not at all."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_adv.files import inside, replacing, safe_names, write_json, write_rows


def test_the_old_file_stays_after_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "results.json"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(path)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_the_ending_is_kept(tmp_path: Path) -> None:
    # matplotlib chooses the format by it
    with replacing(tmp_path / "figure.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
        temporary.touch()


def test_rows_and_json_are_strict(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_rows(path, ("a", "b"), [{"a": 1, "b": None}, {"b": "x, y", "a": 0.5}])
    assert path.read_text(encoding="utf-8").splitlines() == ["a,b", "1,", '0.5,"x, y"']
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write_rows(path, ("a",), [{"a": 1, "b": 2}])
    assert path.read_text(encoding="utf-8").startswith("a,b")
    write_json(tmp_path / "one.json", {"ä": [1, None]})
    assert (tmp_path / "one.json").read_text(encoding="utf-8") == '{"\\u00e4": [1, null]}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "one.json", float("nan"))
    assert len(list(tmp_path.iterdir())) == 2


def test_names_that_look_alike_stay_apart() -> None:
    names = ["cat", "T-shirt/top", "a b", "a/b", "+", "é", "a_b", "../x", "con", "Dog", "dog", "", "-f", "n" * 300]
    found = safe_names(names)
    assert found[0] == "cat"
    assert found[6] == "a_b"
    assert found[1].startswith("T-shirt_top-")
    assert len({name.casefold() for name in found}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", name) for name in found)
    assert "con" not in found
    assert safe_names([]) == []


def _interrupted(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt


@given(st.lists(st.text(max_size=100), unique=True, max_size=8))
def test_any_names_become_files_of_one_folder(names):
    safe = safe_names(names)
    assert len({name.casefold() for name in safe}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", name) for name in safe)


def test_hostile_names_stay_inside(tmp_path):
    hostile = [
        "../up",
        "/etc/passwd",
        "a\0b",
        "CON",
        "nul",
        "cat",
        "Cat",
        "x" * 5000,
        "",
        ".",
        "..",
        "a/b",
        "a.b",
        "-rf",
    ]
    safe = safe_names(hostile)
    assert len({name.casefold() for name in safe}) == len(hostile)
    assert safe_names(["cats_and-dogs9"]) == ["cats_and-dogs9"]
    assert not {name.casefold() for name in safe} & {"con", "nul"}
    for name in safe:
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.iterdir())) == len(hostile)
    # the same whatever stands beside it
    assert safe_names(["a/b"]) == [safe[hostile.index("a/b")]]


def test_a_file_is_inside_its_folder_or_refused(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    assert inside(folder, "a/b.png") == folder / "a" / "b.png"
    for name in ("", "../a", "a/../../b", "/a", "a\0", "a\\..\\b", "out/a"):
        assert inside(folder, name) is None, name
