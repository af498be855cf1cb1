"""`lightning export`, and `lightning test` on what it writes."""

import sys
from pathlib import Path

import pytest
import torch

from lit_adv import cli
from lit_adv.data import Digits
from lit_adv.models import RobustBenchWideResNet, classifier, fingerprint, load_classifier, save_classifier


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lightning", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def victim(tmp_path):
    torch.manual_seed(0)
    model = classifier("small_cnn", 10, 16, 1, mean=[0.2], std=[0.4]).eval()
    save_classifier(model, tmp_path / "victim.safetensors")
    return model


def test_exports_and_tests_it_in_one_line(run, victim):
    assert run("export", "--ckpt", "victim.safetensors", "--to", "pt2") == (0, "exported: victim.pt2\n", "")
    code, out, _ = run("export", "--ckpt", "victim.pt2", "--out", "again.safetensors")
    assert (code, out) == (0, "exported: again.safetensors\n")
    assert fingerprint(load_classifier("again.safetensors")) == fingerprint(victim)
    data = Digits(image_size=16, test_limit=40)
    data.setup("test")
    x, y = data.test_dataset.batch(range(40))
    expected = float((victim(x).argmax(1) == y).float().mean())
    few = ["--data.test_limit=40", "--trainer.accelerator=cpu", "--trainer.callbacks=[]", "--run_dir=there"]
    job = ["test", "--config", "configs/digits/victims/small_cnn.yaml"]
    code, out, err = run(*job, *few, "--model.weights=victim.pt2")
    assert code == 0, err
    assert float(Path("there/metrics.csv").read_text().splitlines()[-1].split(",")[-1]) == pytest.approx(expected)


def test_weights_of_others_by_the_name_of_the_network(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys.modules["lit_adv.models.classifier"],
        "robustbench_network",
        lambda name, classes, channels: RobustBenchWideResNet(10, 1, classes, channels),
    )
    network = RobustBenchWideResNet(10, 1, 100).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "model.pt")
    given = ["export", "--ckpt", "model.pt", "--to", "safetensors", "--name", "wide_resnet28_10"]
    code, _, err = run(*given, "--num_classes", "100")
    assert code == 2
    assert "error: Classifier: 'model.pt' does not say its mean" in err
    code, _, err = run(*given, "--num_classes", "100", "--mean", "0", "--std", "1")
    assert code == 0, err
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_classifier("model.safetensors")(x), network(x))


def test_what_is_refused(run, victim):
    for arguments, message in (
        (["--ckpt", "victim.safetensors"], "--to or --out must say the format"),
        (["--ckpt", "victim.safetensors", "--to", "safetensors"], "--out must be another file than --ckpt"),
        (["--ckpt", "victim.safetensors", "--to", "pt2", "--out", "x.onnx"], "--out must end in .pt2, got x.onnx"),
        (["--ckpt", "none.ckpt", "--to", "pt2"], "there is no weights file 'none.ckpt'"),
        (["--ckpt", "victim.safetensors", "--out", "x.pth"], "path must end in .safetensors, .pt2 or .onnx"),
    ):
        code, _, err = run("export", *arguments)
        assert code == 2
        assert message in err
    assert run("exprot")[0] == 2
    assert "did you mean export?" in run("exprot")[2]
    assert "--ckpt" in run("export", "--help")[1]
