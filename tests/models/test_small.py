"""The architectures for small images."""

import pytest
import torch

from lit_adv.models.small import CIFARResNet, SmallCNN


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_cifar_resnet_parameters(depth, count):
    """He et al. 2016, table 6: 0.27, 0.46, 0.66 and 0.85 million."""
    assert sum(p.numel() for p in CIFARResNet(depth, 10).parameters()) == count


def test_cifar_resnet_keys():
    keys = CIFARResNet(20, 10).state_dict().keys()
    assert {"conv1.weight", "bn1.running_var", "layer3.2.conv2.weight", "layer1.0.bn2.bias", "linear.bias"} <= keys
    assert not any("shortcut" in key or "downsample" in key for key in keys)


def test_cifar_resnet_depth():
    with pytest.raises(ValueError, match=r"depth must be 6n\+2, got 21"):
        CIFARResNet(21, 10)


@pytest.mark.parametrize("size", [8, 9, 16, 28, 33, 64])
def test_small_cnn_learns(size):
    """A small step down the gradient lowers the loss: nothing on the way is dead or cut off."""
    torch.manual_seed(0)
    model = SmallCNN(4, size, 1)
    x, y = torch.randn(16, 1, size, size), torch.arange(16) % 4
    loss = torch.nn.functional.cross_entropy(model(x), y)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    assert all(grad.abs().max() > 0 for grad in grads)
    with torch.no_grad():
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter -= 1e-4 * grad
    assert torch.nn.functional.cross_entropy(model(x), y) < loss
