"""The scores of the identification benchmark, on a network whose answers are known."""

import csv

import pytest
import torch

from benchmarks import identify as benchmark
from lit_adv.metrics import Calibration
from lit_adv.tasks import REDRL


class Brightness(torch.nn.Module):
    """Logits by the brightness of an image: bright is class 1; the farther from grey, the surer."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, images):
        score = self.scale * (images[:, -1:].mean((2, 3)) - 0.5)
        return torch.cat([-score, score], 1)


@pytest.fixture
def network():
    made = REDRL(inputs="image", num_attacks=2, in_channels=1)
    made.psi = Brightness()
    made.attack_classes = ["clean", "pgd"]
    made.calibrator.calibration = Calibration(1.0, 0.9, 0.95, 0.95, 10)
    return made


def greys(*levels, side=16):
    return [torch.full((1, side, side), level) for level in levels]


def test_scores_count_verdicts_and_classes(network):
    # surely clean, surely pgd, pgd but not sure, clean and wrong
    images, classes = greys(0.1, 0.9, 0.52, 0.2), torch.tensor([0, 1, 1, 1])
    found = benchmark.score("net", "as crafted", network, images, classes)
    assert (found.images, found.recognised, found.unknown, found.right) == (4, 0.75, 0.25, pytest.approx(2 / 3))
    unseen = benchmark.score("net", "unseen", network, images, None)
    assert unseen.recognised is None
    assert unseen.right is None
    assert unseen.verdicts == "clean 50 %, pgd 25 %, unknown 25 %"


def test_tiles_cover_the_image_and_are_averaged(network):
    image = torch.zeros(1, 1, 24, 24)
    image[..., 8:] = 1.0
    network.eval()
    # columns 0 to 16 are half bright, 8 to 24 bright; the rows twice the same
    wanted = (network(image[..., :16, :16]).logits + network(image[..., 8:, 8:]).logits) / 2
    torch.testing.assert_close(benchmark.in_tiles(network, image), wanted)
    found = benchmark.score("net", "tiles", network, [image[0]], torch.tensor([1]), benchmark.in_tiles)
    assert (found.recognised, found.unknown, found.right) == (1, 0, 1)


def test_conditions_change_what_they_say():
    image = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    image = (image * 255).round() / 255
    found = {name: change(image) for name, change in benchmark.conditions()}
    assert torch.equal(found["as crafted"], image)
    sides = {name: result.shape[-1] for name, result in found.items()}
    assert (sides["resized x 0.5"], sides["resized x 2"], sides["resized x 2 and back"]) == (8, 32, 16)
    errors = [float((found[f"JPEG {quality}"] - image).abs().mean()) for quality in (100, 95, 85, 75, 50)]
    assert errors == sorted(errors)
    assert len(set(errors)) == 5


def test_scores_are_written_and_shown(network, tmp_path, capsys):
    scores = [benchmark.score("net", "as crafted", network, greys(0.1), torch.tensor([0]))]
    benchmark.write(scores, tmp_path / "identify.csv")
    (row,) = csv.DictReader((tmp_path / "identify.csv").read_text().splitlines())
    assert (row["network"], row["condition"], row["recognised"]) == ("net", "as crafted", "1.0000")
    benchmark.show(scores)
    assert "100.0 %" in capsys.readouterr().out


def test_an_uncalibrated_network_is_refused(network, monkeypatch):
    network.calibrator.calibration = None
    monkeypatch.setattr(REDRL, "load_from_checkpoint", lambda path: network)
    with pytest.raises(SystemExit, match="plain: not calibrated"):
        benchmark.main(["--networks", "plain=a.ckpt"])
    with pytest.raises(SystemExit, match="must be NAME=CHECKPOINT"):
        benchmark.main(["--networks", "a.ckpt"])
