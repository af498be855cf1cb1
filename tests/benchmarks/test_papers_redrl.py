"""REDRL's tables: every network once, resumed where it was cut, read where it is finished."""

import csv
import json
from pathlib import Path

import pytest

from benchmarks.papers import redrl
from benchmarks.papers.redrl import CLASSES, PAPER, JobFailed, finish, jobs, main, victims


def recognised(shares):
    shares = dict(zip(CLASSES, shares, strict=True))
    weights = {"clean": 1, "pgd": 12, "deepfool": 4, "cw_l2": 8, "cw_linf": 12, "patch": 24}
    total = sum(weights[one] * share for one, share in shares.items()) / 61
    return {"per_class": shares, "macro": sum(shares.values()) / 6, "weighted": total}


class Lightning:
    """Writes what a fit and a test leave, and remembers what it was asked; `fail` names a config whose fit ends."""

    def __init__(self, fail=None):
        self.asked, self.fail = [], fail

    def __call__(self, arguments):
        self.asked.append(arguments)
        command, config = arguments[0], Path(arguments[2])
        folder = Path(arguments[arguments.index("--run_dir") + 1]) if "--run_dir" in arguments else config.parent
        checkpoints = folder / "checkpoints"
        if command == "fit":
            checkpoints.mkdir(parents=True, exist_ok=True)
            (checkpoints / "last.ckpt").touch()
            (folder / "config.yaml").touch()
            if self.fail and self.fail in str(config):
                return 137
            (checkpoints / "best.ckpt").touch()
        elif "victims" in str(folder) or "small_cnn" in str(folder):
            with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([["step", "test/acc"], [1, ""], [2, "0.915"]])
        else:
            cell = {"before": 0.125, "after": 0.875, "images": 8}
            made = {"small_cnn": dict.fromkeys(CLASSES[:-1], cell)}
            found = {"recognition": recognised([0.5, 1, 0.25, 0.75, 0.125, 0.625]), "reconstruction": made}
            (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")
        return 0


@pytest.fixture
def lightning(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Lightning()


def test_every_network_once_and_the_tables(lightning, tmp_path, capsys):
    main(["--set", "digits", "--out", "tables.md", "--", "--trainer.max_epochs=1"], run=lightning)
    fits = [Path(command[2]).stem for command in lightning.asked if command[0] == "fit"]
    assert fits == ["small_cnn", "redrl", "baseline_image", "baseline_delta", "ablation_a", "ablation_b", "ablation_c"]
    assert [command[0] for command in lightning.asked] == ["fit", "test"] * 7
    assert all((command[-1] == "--trainer.max_epochs=1") == (command[0] == "fit") for command in lightning.asked[2:])
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "| small_cnn | 91.50 |  |" in text
    assert "| cw_linf | 12.5 | 12.5 | 12.5 |" in text
    assert "| macro | 54.2 | 54.2 | 54.2 | 54.2 |" in text
    assert "| small_cnn | ours | 12.5 → 87.5 | 12.5 → 87.5 |" in text
    again = len(lightning.asked)
    main(["--set", "digits", "--", "--trainer.max_epochs=1"], run=lightning)
    assert len(lightning.asked) == again  # all of it is finished


def test_a_run_that_was_cut_is_resumed(lightning, capsys):
    lightning.fail = "baseline_delta"
    with pytest.raises(SystemExit, match=r"lightning fit .*baseline_delta.* ended with 137 .*run this again"):
        main(["--set", "digits", "--tables", "3"], run=lightning)
    assert lightning.asked[-1][0] == "fit"
    lightning.fail, lightning.asked = None, []
    main(["--set", "digits", "--tables", "3"], run=lightning)
    folder = Path("runs/papers/full/digits/delta")
    assert lightning.asked == [
        ["fit", "--config", str(folder / "config.yaml"), "--ckpt_path", "last"],
        ["test", "--config", str(folder / "config.yaml"), "--ckpt_path", "best"],
    ]
    assert "Table 3" in capsys.readouterr().out


def test_a_folder_of_other_settings_is_refused(lightning):
    main(["--set", "digits", "--tables", "4"], run=lightning)
    with pytest.raises(SystemExit, match=r"holds a run of digits/redrl with no arguments, not with --model.width=8"):
        main(["--set", "digits", "--tables", "4", "--", "--model.width=8"], run=lightning)


def test_a_victim_that_somebody_trained_is_only_tested(lightning):
    checkpoints = Path("runs/digits/small_cnn/checkpoints")
    checkpoints.mkdir(parents=True)
    (checkpoints / "best.ckpt").touch()
    main(["--set", "digits", "--tables", "1"], run=lightning)
    assert [command[0] for command in lightning.asked] == ["test"]


def test_victims_of_ones_own(lightning):
    with pytest.raises(SystemExit, match="--tables: table 1 is of the set's own victims"):
        main(["--set", "digits", "--victims", "mine.yaml"], run=lightning)
    main(["--set", "digits", "--victims", "mine.yaml", "--tables", "4"], run=lightning)
    assert [command[-1] for command in lightning.asked] == ["--data.victims=mine.yaml", "best"]


def test_equal_networks_are_one_job(tmp_path):
    needed = jobs("cifar10", (3, 5), tmp_path, reduced=True)
    assert needed["c"] is needed["redrl"]
    assert len({job.folder for job in needed.values()}) == len(set(needed.values())) == 6
    for job in needed.values():
        assert (redrl.CONFIGS / f"{job.config}.yaml").is_file()
    assert list(victims("cifar10", reduced=True)) == ["resnet20"]
    assert len(victims("cifar10", reduced=False)) == 4


def test_a_set_without_a_reduced_config_is_refused(lightning):
    with pytest.raises(SystemExit, match=r"--reduced: there is no configs/digits/reduced.yaml"):
        main(["--set", "digits", "--reduced"], run=lightning)
    assert not lightning.asked


def test_what_fails_leaves_no_result(tmp_path):
    job = jobs("digits", (4,), tmp_path, reduced=False)["redrl"]
    with pytest.raises(JobFailed, match="ended with 2"):
        finish(job, lambda command: 2, lambda folder: False)


@pytest.mark.parametrize("number", [3, 5])
def test_published_totals_are_the_weighted_means(number):
    # the method's check of the weights, which also finds a mistyped figure
    for name in ("cifar10", "tiny_imagenet"):
        for *shares, total in PAPER[name, number].values():
            assert abs(recognised(shares)["weighted"] - total) < 0.15
