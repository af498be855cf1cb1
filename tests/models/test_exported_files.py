"""Classifiers as files for others: they compute the same, and come back bit for bit."""

import copy
import importlib.util
import sys
import zipfile

import pytest
import torch

from lit_adv.models import Temperature, classifier, export_classifier, exported_files, fingerprint, load_classifier

FORMATS = [
    "safetensors",
    pytest.param("pt2"),
    pytest.param(
        "onnx",
        marks=pytest.mark.skipif(
            any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")),
            reason="onnx and onnxscript are not installed (pip install 'lit_adv[onnx]')",
        ),
    ),
]


@pytest.fixture(scope="module")
def model():
    """With BatchNorm that does something, in train mode, with a normalisation of its own."""
    torch.manual_seed(0)
    made = classifier("resnet20", 7, 8, 1, mean=[0.3], std=[0.2]).train()
    with torch.no_grad():
        for _ in range(3):
            made(torch.rand(16, 1, 8, 8))
    return made


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")

    def path(kind):
        file = folder / f"net.{kind}"
        if not file.exists():
            before = fingerprint(model)
            export_classifier(model, file)
            assert fingerprint(model) == before
            assert model.training
            assert all(parameter.requires_grad for parameter in model.parameters())
        return file

    return path


@pytest.fixture(scope="module")
def expected(model):
    return copy.deepcopy(model).eval()


@pytest.mark.parametrize("kind", FORMATS)
def test_comes_back_bit_for_bit(kind, exported, expected):
    loaded = load_classifier(exported(kind))
    assert not loaded.training
    assert loaded.spec == expected.spec
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(loaded(x), expected(x))
    # as weights of a network that is described otherwise
    again = classifier("resnet20", 7, 8, 1, weights=exported(kind)).eval()
    assert torch.equal(again(x), expected(x))
    assert again.spec["mean"] == pytest.approx([0.3])
    with pytest.raises(ValueError, match="is not a resnet32"):
        classifier("resnet32", 7, 8, 1, weights=exported(kind))


def test_pt2_runs_on_batches_of_any_size(exported, expected):
    program = torch.export.load(exported("pt2")).module()
    for count in (1, 2, 9):
        x = torch.rand(count, 1, 8, 8, requires_grad=True)
        torch.testing.assert_close(program(x), expected(x), atol=1e-5, rtol=1e-5)
        # attacks can be run on it elsewhere
        (slope,), (other,) = (torch.autograd.grad(net(x).square().sum(), x) for net in (program, expected))
        torch.testing.assert_close(slope, other, atol=1e-4, rtol=1e-4)


def test_onnx_runs_on_batches_of_any_size(exported, expected):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    session = runtime.InferenceSession(str(exported("onnx")))
    for count in (1, 2, 9):
        x = torch.rand(count, 1, 8, 8)
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected(x).detach(), atol=1e-4, rtol=1e-4)


def test_nothing_is_unpickled(exported, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_a, **_k: pytest.fail("torch.load was called"))
    monkeypatch.setattr(torch.export, "load", lambda *_a, **_k: pytest.fail("torch.export.load was called"))
    assert load_classifier(exported("pt2")).spec["name"] == "resnet20"


def test_damaged_and_foreign_files(tmp_path, exported):
    whole = exported("pt2").read_bytes()
    path = tmp_path / "half.pt2"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"truncated or no \.pt2 file"):
        load_classifier(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/other.txt", "nothing")
    with pytest.raises(ValueError, match=r"not laid out as torch 2\.14 lays them out"):
        classifier("resnet20", 7, 8, 1, weights=path)
    with zipfile.ZipFile(path, "w") as archive:
        text = '{"config": {"w": {"path_name": "weight_0", "use_pickle": true}}}'
        archive.writestr("a/data/weights/model_weights_config.json", text)
        archive.writestr("a/data/weights/weight_0", b"cos\nsystem\n")
    with pytest.raises(ValueError, match="a tensor is pickled, which may run code"):
        classifier("resnet20", 7, 8, 1, weights=path)
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        load_classifier(tmp_path / "none.pt2")
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(1, 3),))
    torch.export.save(program, tmp_path / "plain.pt2")
    with pytest.raises(ValueError, match="does not say which classifier it holds"):
        load_classifier(tmp_path / "plain.pt2")


def test_what_is_refused(tmp_path, model, monkeypatch):
    with pytest.raises(ValueError, match=r"must end in .safetensors, .pt2 or .onnx, got '.*net.pth'"):
        export_classifier(model, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="model must be a Classifier, got Temperature"):
        export_classifier(Temperature(model, 2.0), tmp_path / "net.pt2")
    monkeypatch.setattr(exported_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"need onnx and onnxscript \(pip install 'lit_adv\[onnx\]'"):
        export_classifier(model, tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"need onnx \(pip install"):
        load_classifier(tmp_path / "net.onnx")
    assert not [file for file in tmp_path.iterdir() if file.name != "net.onnx"]


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is not installed")
def test_damaged_onnx(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(ValueError, match="truncated or no whole ONNX file"):
        load_classifier(tmp_path / "net.onnx")
    assert "onnx" in sys.modules
