"""A file is there whole or not at all."""

from pathlib import Path

import pytest

from lit_adv.files import replacing


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


def _interrupted(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
