"""Progress is shown with and without a terminal."""

import io
import pickle
import re

import pytest
from lit_adv.callbacks import ResultsTable, RunProgress


def test_a_line_an_epoch_without_a_terminal(trainer, task, data, capsys) -> None:
    trainer(RunProgress(), max_epochs=3).fit(task, data)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) == 4
    pattern = r"epoch {}/2  val/recognition 0\.750  train/loss \d\.\d{{3}}  0:00:\d\d an epoch"
    assert re.fullmatch(pattern.format(0) + r"  0:00:\d\d left", lines[0])
    assert re.fullmatch(pattern.format(2), lines[2])
    assert re.fullmatch(r"trained 3 epochs in 0:00:\d\d", lines[3])


def test_long_stages_report_in_between(trainer, task, data, capsys) -> None:
    run = trainer(RunProgress(interval=1e-9), max_epochs=1, num_sanity_val_steps=1)
    run.fit(task, data)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sanity check  batch 1/1  ")
    assert any(line.startswith("epoch 0/0  batch 3/6  ") for line in lines)
    assert any(line.startswith("epoch 0/0, validation  batch 6/6  ") for line in lines)
    run.validate(task, data)
    run.test(task, data)
    run.predict(task, data.loader())
    lines = capsys.readouterr().out.splitlines()
    for stage in ("validation", "test", "predict"):
        assert f"{stage}: 6 batches" in lines
        assert any(line.startswith(f"{stage}  batch 2/6  0:00:00 so far") for line in lines)
        assert any(line.startswith(f"{stage}: done in 0:00:0") for line in lines)


def test_steps_instead_of_epochs(trainer, task, data, capsys) -> None:
    trainer(RunProgress(), max_epochs=-1, max_steps=9).fit(task, data)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines[0].startswith("epoch 0  val/recognition")
    assert "left" not in lines[0]


def test_a_bar_on_a_terminal_then_the_tables(trainer, task, data) -> None:
    screen = io.StringIO()
    bar = RunProgress(console_kwargs={"file": screen, "force_terminal": True, "width": 80, "legacy_windows": False})
    run = trainer(bar, ResultsTable(), max_epochs=2)
    run.fit(task, data)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "Epoch 1/1" in shown
    assert "6/6" in shown
    assert "val/recognition: 0.750" in shown
    assert "v_num" not in shown
    assert "an epoch" not in shown
    run.test(task, data)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert shown.rindex("Testing") < shown.index("Test metric") < shown.index("Attack recognition")


@pytest.mark.parametrize("silence", [{"refresh_rate": 0}, {}])
def test_silence(trainer, task, data, capsys, silence) -> None:
    bar = RunProgress(**silence)
    if not silence:
        bar.disable()
    trainer(bar).fit(task, data)
    assert capsys.readouterr().out.strip() == ""


def test_pickles_for_spawned_processes() -> None:
    assert pickle.loads(pickle.dumps(RunProgress(interval=5.0))).interval == 5


def test_interval_must_be_positive() -> None:
    with pytest.raises(ValueError, match="RunProgress: interval must be > 0, got 0"):
        RunProgress(interval=0)
