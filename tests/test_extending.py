"""docs/extending.md: what is printed there is typed in and run."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_adv import cli
from lit_adv.models import Classifier

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
BLOCKS = re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def typed_in(tmp_path_factory):
    """A folder with the files of the page."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in dict.fromkeys(name for name, _ in BLOCKS):
        (folder / name).write_text("\n\n".join(text for title, text in BLOCKS if title == name))
    return folder


def commands():
    page = PAGE.read_text()
    return [line.removeprefix("$ PYTHONPATH=. lightning ") for line in page.splitlines() if line.startswith("$ ")]


def test_every_example_is_short():
    assert len(BLOCKS) == 7
    assert [title for title, text in BLOCKS if len(text.splitlines()) > 30] == []


def test_the_commands_of_the_page_train_and_test(typed_in, monkeypatch, capsys):
    monkeypatch.chdir(typed_in)
    monkeypatch.syspath_prepend(str(typed_in))
    assert len(commands()) == 2
    for command in commands():
        monkeypatch.setattr(sys, "argv", ["lightning", *command.split()])
        cli.main()
    said = capsys.readouterr().out
    assert "test it with: lightning test --allow-any-class --config runs/mine/config.yaml --ckpt_path best" in said
    with open("runs/mine/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    norms = [float(row["mean_norm"]) for row in rows if row["mean_norm"]]
    assert len(norms) == 1
    assert 0 < norms[0] <= 16 / 255 * 16  # eps * sqrt(elements)
    best = max(float(row["val/acc"]) for row in rows if row["val/acc"])
    assert best > 0.9  # it learns


def test_the_python_example_runs(typed_in):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(typed_in), *sys.path])}
    run = {"cwd": typed_in, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "checkered.py"], **run)
    assert done.returncode == 0, done.stderr
    assert "tensor(0.5" in done.stdout


def test_the_attack_of_the_page_keeps_its_promises(typed_in, monkeypatch):
    monkeypatch.syspath_prepend(str(typed_in))
    import mine

    torch.manual_seed(0)
    model = Classifier("small_cnn", num_classes=4, image_size=16, in_channels=1).double()
    images, labels = torch.rand(6, 1, 16, 16, dtype=torch.float64), torch.arange(6) % 4
    attack = mine.NoisySign(eps=0.05)
    whole = attack(model, images, labels, seed=3)
    assert (whole - images).abs().amax() <= 0.05 + 1e-12
    assert torch.equal(whole[2:4], attack(model, images[2:4], labels[2:4], seed=3))
    region = mine.Checkerboard(4)
    inside = attack(model, images, labels, region=region, seed=3)
    assert ((inside != images) & (region(images) == 0)).sum() == 0
    result = attack.run(model, images, labels, seed=3)
    assert (result.forwards >= 1).all()
    assert (result.backwards == 1).all()
