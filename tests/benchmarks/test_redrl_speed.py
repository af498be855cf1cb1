"""The benchmark of REDRL's training: a small run, all figures there and consistent."""

import csv

from benchmarks.redrl import main


def test_a_small_run(tmp_path, capsys):
    small = ["--size", "16", "--batch", "6", "--width", "4", "--blocks", "1", "--steps", "2", "--rounds", "1"]
    main([*small, "--phi", "small_cnn", "--features", "vgg16:relu1_1", "--out", str(tmp_path)])
    assert "training (6 images of 16 x 16" in capsys.readouterr().out
    with (tmp_path / "redrl_speed.csv").open(newline="") as file:
        rows = {row["figure"]: row for row in csv.DictReader(file)}
    shares = [float(row["value"]) for name, row in rows.items() if name.endswith("alone, of the four")]
    assert len(shares) == 4
    assert abs(sum(shares) - 100) < 0.1
    last = rows["the four networks' time, of a step's"]
    assert (float(last["value"]) >= 90) == (last["kept"] == "True")
