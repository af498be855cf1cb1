"""JPEG and resizing: real ones, by the row's own seed, alike for a pair, the same on any rank and after a resume."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_jpeg, encode_jpeg

from lit_adv.attacks import FGSM, PGD
from lit_adv.data import AdversarialDataModule, Arrays, Degradation
from lit_adv.data.degradation import compressed, resized, window
from lit_adv.models import Classifier


def photo(count=1, channels=3, side=32, seed=0):
    """Smooth images with some noise, in 8 bits."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=draws)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    noisy = smooth + 0.05 * torch.randn(smooth.shape, generator=draws)
    return (noisy.clamp(0, 1) * 255).round() / 255


@pytest.mark.filterwarnings("ignore:.*TorchVision are deprecated:DeprecationWarning")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [50, 75, 95, 100])
def test_jpeg_is_torchvision_s(channels, quality):
    image = photo(channels=channels)[0]
    found = compressed(image, quality)
    other = decode_jpeg(encode_jpeg((image * 255).byte(), quality)).float() / 255
    assert found.shape == image.shape
    assert (found - other).abs().max() <= 2 / 255  # two builds of the same library
    assert torch.equal(found, (found * 255).round() / 255)
    assert not torch.equal(found, image)


def test_less_quality_is_farther_away():
    image = photo()[0]
    errors = [float((compressed(image, quality) - image).square().mean()) for quality in (10, 50, 75, 95)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("mode", "filter_"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
@pytest.mark.parametrize("factor", [0.5, 0.75, 1.25, 2.0])
def test_resizing_is_pillow_s(mode, filter_, factor):
    image = photo(channels=1)[0]
    found = resized(image, factor, mode)
    side = round(32 * factor)
    picture = Image.fromarray((image[0] * 255).byte().numpy())
    expected = torch.from_numpy(np.array(picture.resize((side, side), filter_)))[None] / 255
    assert found.shape == (1, side, side)
    # torch's bicubic has another parameter (-0.75, Pillow -0.5)
    assert (found - expected).abs().max() <= (2 if mode == "bilinear" else 12) / 255
    assert torch.equal(found, (found * 255).round() / 255)
    assert resized(image, 0.001, mode).shape == (1, 1, 1)


def test_windows():
    row = torch.arange(5.0).expand(1, 5, 5)
    assert window(row, torch.zeros(1, 3, 3), (0.0, 0.0))[0, 0].tolist() == [0, 1, 2]
    assert window(row, torch.zeros(1, 3, 3), (0.0, 0.999))[0, 0].tolist() == [2, 3, 4]
    assert window(row, torch.zeros(1, 5, 5), (0.3, 0.7))[0, 0].tolist() == [0, 1, 2, 3, 4]
    assert window(row, torch.zeros(1, 12, 12), (0.0, 0.0))[0, 0].tolist() == [0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1]
    assert window(row, torch.zeros(1, 7, 7), (0.0, 0.999))[0, 0].tolist() == [1, 0, 0, 1, 2, 3, 4]
    down = row.transpose(1, 2)
    assert window(down, torch.zeros(1, 3, 3), (0.999, 0.0))[0, :, 0].tolist() == [2, 3, 4]


def test_a_pair_goes_through_the_same_and_keeps_its_shape():
    x = photo(40)
    seeds = torch.arange(40)
    degrade = Degradation()
    clean, same = degrade(seeds, x, x)
    assert clean.shape == x.shape
    assert torch.equal(clean, same)
    changed = (clean != x).flatten(1).any(1)
    assert 22 <= int(changed.sum()) <= 38  # three quarters of 40
    # a row's numbers are its own
    rows = torch.tensor([7, 3, 39])
    assert torch.equal(degrade(seeds[rows], x[rows])[0], clean[rows])
    assert not torch.equal(degrade(seeds + 100, x)[0], clean)
    assert torch.equal(clean, (clean * 255).round() / 255)


def test_each_part_alone():
    x, seeds = photo(30), torch.arange(30)
    assert torch.equal(Degradation(share=0.0)(seeds, x)[0], x)
    assert torch.equal(Degradation(jpeg=None, resize=None, share=1.0)(seeds, x)[0], x)
    (found,) = Degradation(jpeg=(60, 60), resize=None, share=1.0)(seeds, x)
    assert torch.equal(found, torch.stack([compressed(image, 60) for image in x]))
    (found,) = Degradation(jpeg=None, resize=(0.5, 0.5), share=1.0)(seeds, x)
    for image, result in zip(x, found, strict=True):
        half = {mode: resized(image, 0.5, mode) for mode in ("bicubic", "bilinear")}
        # everywhere in the window is a pixel of the half image
        assert any(set(result.flatten().tolist()) <= set(kind.flatten().tolist()) for kind in half.values())


def test_qualities_are_drawn_from_all_of_the_range():
    x = photo(1).expand(60, -1, -1, -1)
    (found,) = Degradation(jpeg=(50, 52), resize=None, share=1.0)(torch.arange(60), x)
    kinds = [torch.stack([compressed(x[0], quality)] * 60) for quality in (50, 51, 52)]
    counts = [int((found == kind).flatten(1).all(1).sum()) for kind in kinds]
    assert sum(counts) == 60
    assert min(counts) >= 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("jpeg", (0, 50)),
        ("jpeg", (90, 50)),
        ("jpeg", (50, 101)),
        ("resize", (0, 1)),
        ("resize", (2.0, 0.5)),
        ("resize", (1.0, float("inf"))),
        ("share", 1.5),
    ],
)
def test_bad_fields_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"Degradation: {field} must be"):
        Degradation(**{field: value})


# in the data module


def module(tmp_path, **changes):
    draws = np.random.default_rng(0)
    if not (tmp_path / "images.npz").exists():
        sets = {f"x_{k}": draws.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8) for k, n in (("train", 24), ("test", 6))}
        np.savez(tmp_path / "images.npz", **sets, y_train=np.arange(24) % 3, y_test=np.arange(6) % 3)
    torch.manual_seed(1)
    fields = {"batch_size": 8, "degradation": Degradation(), "cache_dir": str(tmp_path / "cache"), **changes}
    attacks = {"pgd": PGD(eps=64 / 255, steps=2), "fgsm": FGSM(eps=0.2)}
    return AdversarialDataModule(
        Arrays(path=tmp_path / "images.npz", validation=6), {"a": Classifier("small_cnn", 3, 8)}, attacks, **fields
    )


def rows(source, split, epoch=0):
    source.prepare_data()
    source.setup({"train": "fit", "val": "validate", "test": "test"}[split])
    loader = getattr(source, f"{split}_dataloader")()
    loader.sampler.set_epoch(epoch)
    found = {}
    for raw in loader:
        batch = source._finish(raw, epoch)
        for number, key in enumerate(zip(batch.index.tolist(), batch.attack.tolist(), strict=True)):
            found[key] = (batch.clean[number], batch.adversarial[number])
    return found


def test_clean_and_adversarial_image_are_a_pair(tmp_path):
    plain, degraded = rows(module(tmp_path, degradation=None), "val"), rows(module(tmp_path), "val")
    assert plain.keys() == degraded.keys()
    changed = 0
    for key, (clean, adversarial) in degraded.items():
        if key[1] == 0:
            assert torch.equal(clean, adversarial)
        same = [torch.equal(new, old) for new, old in zip((clean, adversarial), plain[key], strict=True)]
        assert same[0] == same[1]
        changed += not same[0]
    assert 9 <= changed < len(degraded) == 18
    # the versions of an image go through different things
    again = rows(module(tmp_path), "val")
    assert all(torch.equal(new, old) for key in again for new, old in zip(again[key], degraded[key], strict=True))
    assert any(not torch.equal(degraded[i, 0][0], degraded[i, 1][0]) for i in range(6))


def test_training_degrades_anew_each_epoch_and_the_test_set_never(tmp_path):
    paired = {"paired": True, "batch_size": 9}  # so that both epochs show all versions
    first, again, second = (rows(module(tmp_path, **paired), "train", epoch) for epoch in (0, 0, 1))
    assert all(torch.equal(first[key][1], again[key][1]) for key in first)
    assert any(not torch.equal(first[key][1], second[key][1]) for key in first)
    # in a paired batch the versions of an image stay comparable
    assert all(torch.equal(first[i, 0][0], first[i, 1][0]) for i, attack in first if attack == 0)
    plain, test = rows(module(tmp_path, degradation=None), "test"), rows(module(tmp_path), "test")
    assert all(torch.equal(plain[key][1], test[key][1]) for key in plain)


def test_two_ranks_see_what_one_sees(tmp_path, monkeypatch):
    whole = rows(module(tmp_path), "train")
    parts = {}
    for rank in (0, 1):
        monkeypatch.setattr("lit_adv.data.adversarial.rank_and_world", lambda rank=rank: (rank, 2))
        parts |= rows(module(tmp_path, batch_size=4), "train")
    assert parts.keys() == whole.keys()
    assert all(torch.equal(new, old) for key in parts for new, old in zip(parts[key], whole[key], strict=True))
