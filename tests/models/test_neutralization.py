"""The defence: what it blocks, its files, and that it is a classifier like any other."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_adv import evaluate
from lit_adv.attacks import PGD
from lit_adv.data import AdversarialDataModule, Digits
from lit_adv.models import NeutralizationDefense, classifier, fingerprint, load_classifier, neutralize, save_classifier


def network(channels=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return classifier("small_cnn", 10, 16, channels).eval()


def images(count=4, channels=3):
    return torch.rand(count, channels, 16, 16, generator=torch.Generator().manual_seed(1))


def blob():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[3:9, 5:14] = True
    return mask


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_blob_and_nothing_else_takes_the_value(value) -> None:
    x = images()
    found = neutralize(x, blob(), value)
    assert (found[:, :, blob()] == value).all()
    assert torch.equal(found[:, :, ~blob()], x[:, :, ~blob()])
    assert torch.equal(neutralize(found, blob(), value), found)
    assert torch.equal(neutralize(x, torch.zeros_like(blob()), value), x)
    each = torch.stack([blob(), ~blob(), blob(), torch.zeros_like(blob())])
    assert torch.equal(neutralize(x, each, value)[1], neutralize(x, ~blob(), value)[1])
    assert torch.equal(neutralize(x, each, value)[3], x[3])


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_the_defence_is_the_classifier_of_blocked_images(value) -> None:
    model, x = network(), images()
    defence = NeutralizationDefense(model, blob(), value)
    assert torch.equal(defence(x), model(neutralize(x, blob(), value)))
    assert torch.equal(defence(x), defence(neutralize(x, blob(), 1 - value)))
    empty = NeutralizationDefense(model, torch.zeros_like(blob()), value)
    assert torch.equal(empty(x), model(x))
    assert "blob=54 of 16x16 pixels" in repr(defence)


def test_an_attack_on_the_defence_knows_the_blob() -> None:
    model, x = network(), images(8)
    labels = model(x).argmax(1)
    defence = NeutralizationDefense(model, blob())
    attack = PGD(eps=0.1, step_size=0.02, steps=10, random_start=False)
    adaptive, unaware = attack(defence, x, labels), attack(model, x, labels)
    assert torch.equal(adaptive[:, :, blob()], x[:, :, blob()])  # no gradient, no change
    assert not torch.equal(adaptive, unaware)

    def right_logit(images):
        return float(nn.functional.cross_entropy(defence(images), labels).detach())

    assert right_logit(adaptive) > right_logit(unaware) > right_logit(x)


@pytest.mark.parametrize("how", ["state_dict", "safetensors"])
def test_saved_and_loaded(tmp_path: Path, how) -> None:
    defence = NeutralizationDefense(network(), blob(), 0.5).eval()
    if how == "state_dict":
        torch.save(defence.state_dict(), tmp_path / "d.pt")
        other = NeutralizationDefense(classifier("small_cnn", 10, 16), torch.ones(16, 16, dtype=torch.bool)).eval()
        other.load_state_dict(torch.load(tmp_path / "d.pt", weights_only=True))
    else:
        defence.save(tmp_path / "d.safetensors")
        other = load_classifier(tmp_path / "d.safetensors")
        assert isinstance(other, NeutralizationDefense)
        assert not other.training
    assert torch.equal(other(images()), defence(images()))
    assert torch.equal(other.blob, blob())
    assert fingerprint(other) == fingerprint(defence) != fingerprint(NeutralizationDefense(network(), ~blob(), 0.5))
    save_classifier(network(), tmp_path / "bare.safetensors")
    assert not isinstance(load_classifier(tmp_path / "bare.safetensors"), NeutralizationDefense)


def test_a_file_without_its_value_is_refused(tmp_path: Path) -> None:
    save_classifier(network(), tmp_path / "d.safetensors", {"blob": blob()})
    with pytest.raises(ValueError, match=r"load_classifier: .* lacks the value of its defence"):
        load_classifier(tmp_path / "d.safetensors")


def test_evaluated_and_attacked_as_any_victim(tmp_path: Path) -> None:
    defence = NeutralizationDefense(network(1), blob())
    defence.save(tmp_path / "defended.safetensors")
    attack = PGD(eps=0.1, step_size=0.05, steps=2, random_start=False)
    x = images(6, 1)
    loader = DataLoader(TensorDataset(x, defence(x).argmax(1)), batch_size=4)
    assert evaluate(defence, loader, {"pgd": attack}).clean_accuracy == 1
    victims = {"bare": network(1), "defended": str(tmp_path / "defended.safetensors")}
    source = Digits(train_limit=10, test_limit=8, validation=8)
    data = AdversarialDataModule(source, victims, {"pgd": attack}, eval_batch_size=32, quantise="none")
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    rows = (batch.attack == 1) & (batch.victim == data.victim_names.index("defended"))
    assert rows.any()
    assert torch.equal(batch.adversarial[rows][:, :, blob()], batch.clean[rows][:, :, blob()])
    others = (batch.attack == 1) & ~rows
    assert not torch.equal(batch.adversarial[others][:, :, blob()], batch.clean[others][:, :, blob()])


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"NeutralizationDefense: blob must be a bool tensor \(H, W\), got torch.float"
    ):
        NeutralizationDefense(network(), blob().float())
    with pytest.raises(
        ValueError, match=r"NeutralizationDefense: value must be in \[0, 1\], the range of images, got 9"
    ):
        NeutralizationDefense(network(), blob(), 9)
    with pytest.raises(ValueError, match=r"NeutralizationDefense: blob must have shape \(H, W\), got \(1, 16, 16\)"):
        NeutralizationDefense(network(), blob()[None])
    with pytest.raises(ValueError, match=r"images must be \(B, C, 16, 16\), the size of the blob, got \(2, 3, 8, 8\)"):
        NeutralizationDefense(network(), blob())(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"classifier must be a Classifier to be saved, got Sequential"):
        NeutralizationDefense(nn.Sequential(nn.Flatten()), blob()).save(tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match=r"save_classifier: path must end in .safetensors"):
        NeutralizationDefense(network(), blob()).save(tmp_path / "d.pt")
    with pytest.raises(ValueError, match=r"neutralize: images must be floating-point in \[0, 1\], got torch.uint8"):
        neutralize(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), blob(), 0.5)
