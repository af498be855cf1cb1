"""RobustBench's networks: names of the weights, what they compute, and the shapes their files come in."""

import sys

import pytest
import torch
import torch.nn.functional as F

from lit_adv.models import PreActResNet, RobustBenchWideResNet, classifier, fingerprint
from lit_adv.models.weights import read_weights

MU, SIGMA = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]


def shaken(network, seed=0):
    """The network in eval mode with BatchNorms that do something."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    return network.eval()


def norm_relu(state, name, x):
    keys = (f"{name}.{part}" for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *(state[key] for key in keys)).relu()


def wide_by_hand(state, x, blocks):
    """From the names alone: the shortcut of a block that changes the channels starts behind its first ReLU."""
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for number in range(blocks):
            at, stride = f"block{stage}.layer.{number}", 2 if stage > 1 and number == 0 else 1
            a = norm_relu(state, f"{at}.bn1", x)
            out = F.conv2d(a, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(norm_relu(state, f"{at}.bn2", out), state[f"{at}.conv2.weight"], padding=1)
            shortcut = state.get(f"{at}.convShortcut.weight")
            x = out + (x if shortcut is None else F.conv2d(a, shortcut, stride=stride))
    x = F.avg_pool2d(norm_relu(state, "bn1", x), 8).flatten(1)
    return F.linear(x, state["fc.weight"], state["fc.bias"])


def preact_by_hand(state, x, blocks, last):
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3, 4):
        for number in range(blocks):
            at, stride = f"layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
            a = norm_relu(state, f"{at}.bn1", x)
            out = F.conv2d(a, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(norm_relu(state, f"{at}.bn2", out), state[f"{at}.conv2.weight"], padding=1)
            shortcut = state.get(f"{at}.shortcut.0.weight")
            x = out + (x if shortcut is None else F.conv2d(a if last else x, shortcut, stride=stride))
    x = norm_relu(state, "bn", x) if last else x
    return F.linear(F.avg_pool2d(x, 4).flatten(1), state["linear.weight"], state["linear.bias"])


def test_wide_resnet_is_what_its_names_say():
    network = shaken(RobustBenchWideResNet(16, 2, 7))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network(x), wide_by_hand(network.state_dict(), x, 2))
    # widen factor 1: the first block changes no channels and has no shortcut of its own
    narrow = RobustBenchWideResNet(10, 1, 7).state_dict()
    assert [key for key in narrow if "convShortcut" in key] == [
        "block2.layer.0.convShortcut.weight",
        "block3.layer.0.convShortcut.weight",
    ]


@pytest.mark.parametrize("last", [False, True])
def test_preact_resnet_is_what_its_names_say(last):
    network = shaken(PreActResNet(7, last_norm=last, width=8))
    x = torch.rand(2, 3, 32, 32)
    expected = preact_by_hand(network.state_dict(), x, 2, last)
    torch.testing.assert_close(network(x), expected)
    other = preact_by_hand({**network.state_dict(), **_last_norm()}, x, 2, not last)
    assert not torch.allclose(network(x), other)


def _last_norm():
    norm = torch.nn.BatchNorm2d(64).state_dict()
    return {f"bn.{key}": value for key, value in norm.items()}


def test_the_published_numbers_of_parameters():
    """Zagoruyko & Komodakis 2016, table 4: 36.5 M for WRN-28-10; 46.2 M for WRN-34-10; 11.2 M for ResNet-18."""
    with torch.device("meta"):
        sizes = {
            "wide_resnet28_10": RobustBenchWideResNet(28, 10, 10),
            "wide_resnet34_10": RobustBenchWideResNet(34, 10, 10),
            "preact_resnet18": PreActResNet(10),
        }
        counts = {name: sum(p.numel() for p in network.parameters()) / 1e6 for name, network in sizes.items()}
    assert counts == pytest.approx(
        {"wide_resnet28_10": 36.48, "wide_resnet34_10": 46.16, "preact_resnet18": 11.17}, abs=0.01
    )


@pytest.fixture
def wide(monkeypatch):
    """`wide_resnet28_10` made small."""
    monkeypatch.setattr(
        sys.modules["lit_adv.models.classifier"],
        "robustbench_network",
        lambda name, classes, channels: RobustBenchWideResNet(10, 1, classes, channels),
    )
    torch.manual_seed(0)
    return shaken(RobustBenchWideResNet(10, 1, 10))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"model_state_dict": {f"module.model.{k}": v for k, v in s.items()}},
        lambda s: {"net": {f"module.{k}": v for k, v in s.items()}, "acc": 0.5},
        lambda s: {"last": s, "best": {}},
        lambda s: s | {f"sub_block1.layer.0.{k}": v for k, v in s.items() if k == "conv1.weight"},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    ],
)
def test_files_as_they_are_published(tmp_path, wide, wrap):
    path = tmp_path / "w.pt"
    torch.save(wrap(wide.state_dict()), path)
    x = torch.rand(2, 3, 32, 32)
    model = classifier("wide_resnet28_10", 10, weights=path, mean=[0.0], std=[1.0]).eval()
    assert torch.equal(model(x), wide(x))


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(("mu", "sigma"), ""), (("mean", "std"), "model."), (("normalize.mean", "normalize.std"), "model.")],
)
def test_normalisation_in_the_file_is_taken(tmp_path, wide, names, prefix):
    state = {f"{prefix}{key}": value for key, value in wide.state_dict().items()}
    statistics = dict(zip(names, (torch.tensor(each).view(1, 3, 1, 1) for each in (MU, SIGMA)), strict=True))
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in (state | statistics).items()}}, tmp_path / "w.pt"
    )
    model = classifier("wide_resnet28_10", 10, weights=tmp_path / "w.pt").eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), wide((x - statistics[names[0]]) / statistics[names[1]]))
    assert model.spec["mean"] == pytest.approx(MU)
    # given as it is in the file, it is no contradiction
    again = classifier("wide_resnet28_10", 10, weights=tmp_path / "w.pt", mean=MU, std=SIGMA)
    assert fingerprint(again) == fingerprint(model)
    with pytest.raises(ValueError, match=r"was trained with std \[0.247.*got \[1.0\] \(leave std out"):
        classifier("wide_resnet28_10", 10, weights=tmp_path / "w.pt", std=[1.0])


def test_normalisation_that_nobody_says_is_asked_for(tmp_path, wide):
    torch.save(wide.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"does not say its mean.*give mean as it was trained \(\[0\] for pixels"):
        classifier("wide_resnet28_10", 10, weights=tmp_path / "w.pt")


def test_another_networks_file_is_refused_with_the_differences(tmp_path, wide):
    given = {"mean": [0.0], "std": [1.0]}
    torch.save(PreActResNet(10, width=8).state_dict(), tmp_path / "p.pt")
    with pytest.raises(ValueError, match=r"is not a wide_resnet28_10 .*conv1.weight is \(8, 3, 3, 3\).*more"):
        classifier("wide_resnet28_10", 10, weights=tmp_path / "p.pt", **given)
    torch.save(PreActResNet(10, last_norm=True).state_dict(), tmp_path / "v2.pt")
    with pytest.raises(ValueError, match=r"bn\.weight is not expected"):
        _first_preact(tmp_path / "v2.pt", given)
    torch.save({"state_dict": wide}, tmp_path / "pickled.pt")
    with pytest.raises(ValueError, match="cannot be loaded safely"):
        classifier("wide_resnet28_10", 10, weights=tmp_path / "pickled.pt", **given)
    torch.save(wide.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="has 10 classes, got num_classes 100"):
        classifier("wide_resnet28_10", 100, weights=tmp_path / "w.pt", **given)


def _first_preact(path, given):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys.modules["lit_adv.models.classifier"],
            "robustbench_network",
            lambda name, classes, channels: PreActResNet(classes, channels),
        )
        classifier("preact_resnet18", 10, weights=path, **given)


def test_resnet18_in_robustbenchs_names(tmp_path):
    """The same network as torchvision's with the small stem; `shortcut` and `linear` are `downsample` and `fc`."""
    reference = classifier("resnet18", 10, mean=[0.0], std=[1.0])
    renamed = {
        key.replace(".downsample.", ".shortcut.").replace("fc.", "linear."): value
        for key, value in reference.network.state_dict().items()
    }
    assert "layer2.0.shortcut.1.weight" in renamed
    torch.save(renamed, tmp_path / "w.pt")
    assert fingerprint(classifier("resnet18", 10, weights=tmp_path / "w.pt", mean=[0.0], std=[1.0])) == fingerprint(
        reference
    )


def test_a_tasks_checkpoint_may_hold_more_than_the_classifier(tmp_path):
    model = classifier("small_cnn", 10, 8, 1)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"classifier": model.spec, "state_dict": state | {"raw.x": torch.zeros(1)}}, tmp_path / "v.ckpt")
    found = read_weights(tmp_path / "v.ckpt", "test")
    assert found.state.keys() == model.network.state_dict().keys()
    assert found.mean.tolist() == [0.5]
