"""Classifiers: every architecture at every size, their files, and what is refused."""

import os
from pathlib import Path
from typing import get_args
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from lit_adv.models import Classifier, classifier, fingerprint, load_classifier, save_classifier
from lit_adv.models.classifier import ClassifierName

NAMES = get_args(ClassifierName)
TINY = ("small_cnn", "resnet20", "resnet18", "mobilenet_v2", "densenet121")


def images(count: int, channels: int, size: int) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


# the same code at a smaller width is among the names
HUGE = [name for name in NAMES if "28_10" in name or "34_10" in name]


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(HUGE)))
def test_forward_at_32_and_64(name):
    for size, channels in ((32, 3), (32, 1), (64, 3)):
        model = classifier(name, 7, size, channels).eval()
        with torch.no_grad():
            logits = model(images(2, channels, size))
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()


def test_a_huge_network_is_the_published_one():
    sizes = set()
    for name in ("wrn28_10_bn", "wide_resnet28_10"):
        model = classifier(name, 10, 32).eval()
        with torch.no_grad():
            assert model(images(1, 3, 32)).shape == (1, 10)
        sizes.add(sum(parameter.numel() for parameter in model.parameters()))
    assert sizes == {36_479_194}  # 36.5 million, Zagoruyko & Komodakis 2016, table 5


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "vgg16", "mobilenet_v2", "alexnet", "small_cnn", "resnet20"]
)
def test_forward_at_224(name):
    model = classifier(name, 7, 224).eval()
    with torch.no_grad():
        assert model(images(1, 3, 224)).shape == (1, 7)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [8, 16, 28])
def test_forward_below_32(name, size):
    model = classifier(name, 10, size, 1).eval()
    with torch.no_grad():
        assert model(images(2, 1, size)).shape == (2, 10)


@pytest.mark.parametrize(("name", "smallest"), [("vgg16", 32), ("alexnet", 16), ("small_cnn", 8), ("resnet56", 8)])
def test_too_small_images_are_refused(name, smallest):
    with pytest.raises(ValueError, match=f"image_size must be at least {smallest} for {name}, got {smallest - 1}"):
        Classifier(name, 10, smallest - 1)


def test_small_images_keep_their_resolution():
    last = {}
    for size in (32, 64, 224):
        for name in ("resnet18", "mobilenet_v2"):
            network = classifier(name, 10, size).eval().network
            part = network.layer4 if name == "resnet18" else network.features
            part.register_forward_hook(lambda _m, _i, out, key=(name, size): last.update({key: out.shape[-1]}))
            with torch.no_grad():
                network(images(1, 3, size))
    assert [last["resnet18", size] for size in (32, 64, 224)] == [4, 8, 7]
    assert [last["mobilenet_v2", size] for size in (32, 64, 224)] == [4, 4, 7]


def test_imagenet_size_is_torchvision_network():
    """The same seed gives the same network as torchvision's own constructor, head included."""
    for name in ("resnet18", "mobilenet_v2", "densenet121"):
        torch.manual_seed(3)
        own = classifier(name, 10, 224).network.eval()
        torch.manual_seed(3)
        reference = getattr(models, name)(weights=None, num_classes=10).eval()
        assert own.state_dict().keys() == reference.state_dict().keys()
        with torch.no_grad():
            assert torch.equal(own(images(1, 3, 64)), reference(images(1, 3, 64)))


def test_vgg_heads():
    linear = [m for m in classifier("vgg19_bn", 10, 224).network.classifier if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(25088, 4096), (4096, 256), (256, 10)]
    small = [m for m in classifier("vgg16", 10, 64).network.classifier if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in small] == [(512, 10)]


def test_normalisation_is_inside():
    model = classifier("small_cnn", 10, 16, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]).eval()
    x = images(2, 3, 16)
    normalised = (x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    assert torch.equal(model(x), model.network(normalised))


def test_default_statistics():
    assert classifier("small_cnn", 10).spec["mean"] == [0.485, 0.456, 0.406]
    assert classifier("small_cnn", 10, in_channels=1).spec["std"] == [0.5]


def test_small_cnn_has_no_batchnorm():
    kinds = {type(module) for module in classifier("small_cnn", 10).modules()}
    assert nn.BatchNorm2d not in kinds
    assert nn.Conv2d in kinds


def test_cifar_resnet_against_plain_formula():
    """Depth, parameter count of He et al. 2016, table 6, and the parameter-free shortcut."""
    model = classifier("resnet20", 10)
    assert sum(p.numel() for p in model.parameters()) == 269_722
    block = model.network.layer2[0]
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = images(1, 16, 8)
    expected = torch.zeros(1, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(block.eval()(x), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, r"got 'resnet19' \(did you mean resnet"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"mean": [0.5, 0.5]}, r"mean must have one number a channel \(3\), got 2"),
        ({"std": [0.5, 0.0, 0.5]}, "std must be above 0"),
        ({"mean": [float("nan")]}, "mean must be finite"),
    ],
)
def test_bad_fields(arguments, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**{"name": "small_cnn", "num_classes": 10, **arguments})


def test_wrong_channels():
    with pytest.raises(ValueError, match=r"images must be \(B, 1, 16, 16\), got \(2, 3, 16, 16\)"):
        classifier("small_cnn", 10, 16, 1)(images(2, 3, 16))


@pytest.mark.parametrize("wrap", ["plain", "module", "lightning", "whole", "safetensors"])
def test_weights_from_file(tmp_path, wrap):
    torch.manual_seed(0)
    trained = classifier("resnet20", 10)
    state, path = trained.network.state_dict(), tmp_path / "w.pth"
    if wrap == "module":
        state = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    elif wrap == "lightning":
        state = {"state_dict": {f"model.{key}": value for key, value in trained.state_dict().items()}}
    elif wrap == "whole":
        state = trained.state_dict()
    if wrap == "safetensors":
        path = tmp_path / "w.safetensors"
        save_classifier(trained, path)
    else:
        torch.save(state, path)
    assert fingerprint(classifier("resnet20", 10, weights=path)) == fingerprint(trained)


def test_old_files_may_lack_batch_counts(tmp_path):
    trained = classifier("resnet20", 10)
    state = {k: v for k, v in trained.network.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    loaded = classifier("resnet20", 10, weights=tmp_path / "w.pth")
    assert torch.equal(loaded.network.layer3[2].conv2.weight, trained.network.layer3[2].conv2.weight)


def test_weights_of_another_network(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(classifier("resnet20", 10).network.state_dict(), path)
    with pytest.raises(ValueError, match=r"is not a resnet32 .*layer1.3.conv1.weight is missing.*more"):
        classifier("resnet32", 10, weights=path)
    with pytest.raises(ValueError, match="has 10 classes, got num_classes 100"):
        classifier("resnet20", 100, weights=path)
    with pytest.raises(ValueError, match=r"conv1.weight is \(16, 3, 3, 3\) and should be \(16, 1, 3, 3\)"):
        classifier("resnet20", 10, 28, 1, weights=path)


def test_weights_with_another_normalisation(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(classifier("small_cnn", 10, mean=[0.0], std=[1.0]).state_dict(), path)
    with pytest.raises(ValueError, match=r"was trained with mean \[0.0, 0.0, 0.0\], got \[0.5\]"):
        classifier("small_cnn", 10, weights=path, mean=[0.5])
    # what nobody says is the file's
    assert classifier("small_cnn", 10, weights=path).spec["mean"] == [0.0, 0.0, 0.0]


def test_unusable_files(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(FileNotFoundError, match=r"there is no weights file '.*w.pth'"):
        classifier("resnet20", 10, weights=path)
    torch.save(classifier("small_cnn", 10), path)
    with pytest.raises(ValueError, match=r"cannot be loaded safely.*state_dict.*safetensors"):
        classifier("small_cnn", 10, weights=path)
    torch.save(classifier("small_cnn", 10).state_dict(), path)
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated or not a weights file"):
            classifier("small_cnn", 10, weights=path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="must hold a state_dict, got list"):
        classifier("small_cnn", 10, weights=path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="holds no state_dict of tensors"):
        classifier("small_cnn", 10, weights=path)


@pytest.fixture
def hub(tmp_path):
    """An empty place for torchvision's downloads."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def test_imagenet_weights_keep_their_head_for_1000_classes(hub):
    reference = models.mobilenet_v2(weights=None)
    torch.save(reference.state_dict(), hub / "mobilenet_v2-b0353104.pth")
    whole = classifier("mobilenet_v2", 1000, 224, weights="imagenet").network
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), reference.parameters(), strict=True))
    fresh = classifier("mobilenet_v2", 5, 224, weights="imagenet").network
    assert torch.equal(fresh.features[3].conv[2].weight, reference.features[3].conv[2].weight)
    assert fresh.classifier[1].weight.shape == (5, 1280)


def test_imagenet_weights_of_densenet_with_their_old_names(hub):
    reference = models.densenet121(weights=None)
    renamed = {}
    for key, value in reference.state_dict().items():
        for part in ("norm", "conv"):
            for number in "12":
                key = key.replace(f".{part}{number}.", f".{part}.{number}.") if "denselayer" in key else key
        renamed[key] = value
    assert any(".norm.1." in key for key in renamed)
    torch.save(renamed, hub / "densenet121-a639ec97.pth")
    network = classifier("densenet121", 10, 224, weights="imagenet").network
    layer = network.features.denseblock2.denselayer3.norm2.weight
    assert torch.equal(layer, reference.features.denseblock2.denselayer3.norm2.weight)


def test_imagenet_weights_and_the_small_stem(hub):
    torch.save(models.resnet18(weights=None).state_dict(), hub / "resnet18-f37072fd.pth")
    with pytest.raises(ValueError, match=r"image_size 32.*conv1.weight is .*need image_size above 64"):
        classifier("resnet18", 10, 32, weights="imagenet")
    with pytest.raises(ValueError, match="weights='imagenet' exist for"):
        classifier("small_cnn", 10, 32, weights="imagenet")


def test_imagenet_weights_without_network(hub, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(RuntimeError, match=r"no route to host.*download https://.*resnet18.* to '.*hub/checkpoints"):
        classifier("resnet18", 10, 224, weights="imagenet")
    (hub / "resnet18-f37072fd.pth").write_bytes(b"half a fi")
    with pytest.raises(RuntimeError, match="replacing what may be there"):
        classifier("resnet18", 10, 224, weights="imagenet")


def test_safetensors_round_trip(tmp_path):
    torch.manual_seed(1)
    model = classifier("resnet20", 5, 16, 1, mean=[0.3], std=[0.2])
    path = tmp_path / "deep" / "victim.safetensors"
    save_classifier(model, path)
    loaded = load_classifier(path)
    assert not loaded.training
    assert loaded.spec == model.spec
    assert fingerprint(loaded) == fingerprint(model)
    assert [entry.name for entry in path.parent.iterdir()] == ["victim.safetensors"]
    with pytest.raises(ValueError, match=r"must end in .safetensors, got '.*victim.pt'"):
        save_classifier(model, tmp_path / "victim.pt")


def test_load_classifier_from_checkpoint(tmp_path):
    model = classifier("small_cnn", 10, 16, 1)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    path = tmp_path / "victim.ckpt"
    torch.save({"classifier": model.spec, "state_dict": state, "epoch": 1}, path)
    assert fingerprint(load_classifier(path)) == fingerprint(model)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        load_classifier(path)


def test_load_classifier_refuses(tmp_path):
    path = tmp_path / "victim.ckpt"
    with pytest.raises(FileNotFoundError, match="lightning fit --config configs/<set>/victim"):
        load_classifier(path)
    model = classifier("small_cnn", 10, 16, 1)
    torch.save(model.state_dict(), path)
    with pytest.raises(ValueError, match="does not say which classifier it holds"):
        load_classifier(path)
    torch.save({"classifier": {"colour": "blue"}, "state_dict": {}}, path)
    with pytest.raises(ValueError, match="describes no classifier"):
        load_classifier(path)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    del state[next(iter(state))]
    torch.save({"classifier": model.spec, "state_dict": state}, path)
    with pytest.raises(ValueError, match=r"does not hold the small_cnn it describes.*missing"):
        load_classifier(path)
    torch.save({"classifier": model.spec, "state_dict": model}, path)
    with pytest.raises(ValueError, match="cannot be loaded safely"):
        load_classifier(path)


@pytest.mark.data
@pytest.mark.skipif("LIT_ADV_DATA" not in os.environ, reason="LIT_ADV_DATA names no folder")
def test_published_resnet20_accuracy():
    """Public CIFAR-10 weights: 92.00 % of 2000 test images, here 500 of them."""
    folder = Path(os.environ["LIT_ADV_DATA"])
    model = classifier("resnet20", 10, weights=folder / "weights" / "cifar10_resnet20.pth").eval()
    with np.load(folder / "cifar10_subset.npz", allow_pickle=False) as file:
        x, y = torch.from_numpy(file["x_test"][::4]), torch.from_numpy(file["y_test"][::4])
    with torch.no_grad():
        correct = model(x.permute(0, 3, 1, 2).float() / 255).argmax(1) == y
    assert 0.9 < correct.float().mean() < 0.94
