"""Models small enough to try every attack on: a convolutional net and a linear one with known distances."""

import pytest
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Normalisation, convolution, batch norm with uneven statistics, dropout and a linear layer on pooled features."""

    def __init__(self, channels: int = 3, classes: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(channels, 6, 3, padding=1)
            self.bn = nn.BatchNorm2d(6)
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(24, classes)
            self.bn.running_mean.uniform_(-0.5, 0.5)
            self.bn.running_var.uniform_(0.2, 1)
            self.head.weight.data.mul_(8)
            self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.5))
            with torch.no_grad():  # every class gets predicted
                self.head.bias.sub_(self.eval()(torch.rand(64, channels, 8, 8)).mean(0))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn(self.conv((x - self.mean) * 4)).relu()
        return self.head(self.drop(nn.functional.adaptive_avg_pool2d(hidden, 2).flatten(1)))


class Linear(nn.Module):
    """Z = A x + b in float64."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


@pytest.fixture(scope="session")
def net():
    """net(channels=3, classes=4, seed=0): a `Net` in eval mode."""
    return lambda *args, **kwargs: Net(*args, **kwargs).eval()


@pytest.fixture(scope="session")
def pictures():
    """pictures(count, channels=3, height=8, width=8, low=0, high=1, dtype=float32, seed=0)."""

    def make(count, channels=3, height=8, width=8, low=0.0, high=1.0, dtype=torch.float32, seed=0):
        draw = torch.rand(count, channels, height, width, dtype=torch.float64, generator=_generator(seed))
        return (low + (high - low) * draw).to(dtype)

    return make


@pytest.fixture(scope="session")
def linear():
    """linear(seed, classes=2, count=4): model, images around 0.5 and their predictions, near the boundary."""

    def make(seed, classes=2, count=4, channels=1, height=4, width=3, margin=0.3):
        generator = _generator(seed)
        size = channels * height * width
        weight = torch.randn(classes, size, dtype=torch.float64, generator=generator)
        images = 0.45 + 0.1 * torch.rand(count, channels, height, width, dtype=torch.float64, generator=generator)
        spread = margin * torch.randn(classes, dtype=torch.float64, generator=generator)
        model = Linear(weight, -(weight * 0.5).sum(1) + spread).eval()
        with torch.no_grad():
            return model, images, model(images).argmax(1)

    return make


@pytest.fixture(scope="session")
def make_smooth():
    """make_smooth(channels, scale): a small float64 network without kinks for images of 6 x 6, with four classes."""

    def make(channels, scale):
        model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 4)).double()
        generator = _generator(1)
        for p in model.parameters():
            p.data = scale * torch.randn(p.shape, dtype=torch.float64, generator=generator)
        return model

    return make


@pytest.fixture(scope="module")
def smooth(make_smooth):
    return make_smooth(1, 0.6)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
