"""Image classifiers that take pixels in [0, 1], and their files."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_adv.models.exported_files import EXPORTED, read_exported, write_exported
from lit_adv.models.lipschitz import LipschitzNorm, lipschitz_bound
from lit_adv.models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from lit_adv.models.parseval import WideResNetName, wide_resnet
from lit_adv.models.robustbench_networks import ROBUSTBENCH_NAMES, RobustBenchName, robustbench_network
from lit_adv.models.small import CIFARResNet, SmallCNN
from lit_adv.models.torchvision_networks import SMALL_IMAGE, TORCHVISION_NAMES, torchvision_network
from lit_adv.models.weights import StateDict, Weights, differences, imagenet_state_dict, read_file, read_weights

ClassifierName = Literal[
    "resnet18",
    "resnet50",
    "resnext50",
    "densenet121",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "mobilenet_v2",
    "alexnet",
    "small_cnn",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    WideResNetName,
    RobustBenchName,
]
"""The architectures: torchvision's, a small CNN, the CIFAR ResNets of He et al., wide ResNets, Parseval networks and
RobustBench's."""


class Classifier(nn.Module):
    """A network from images to logits whose first layer is the normalisation.

    Args:
        name: The architecture, see `ClassifierName`.
        num_classes: K.
        image_size: Side of the images in pixels. Up to 64 the stem keeps the resolution, above it is ImageNet's.
        in_channels: C.
        weights: None leaves random weights. "imagenet" downloads torchvision's; the head stays only for 1000 classes.
            A path names a file of `save_classifier` or `export_classifier`, a state_dict of `network`, or one of
            RobustBench's or other models of this architecture (see `read_weights`).
        mean: One number a channel on the scale of `[0, 1]`. None takes that of the file of weights where there is one;
            else it is ImageNet's, or 0.5 unless there are 3 channels.
        std: The same, above 0.

    Raises:
        ValueError: A field is out of range, or the weights are damaged, unsafe or of another architecture.
        FileNotFoundError: The file of weights does not exist.
        RuntimeError: The download failed.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        image_size: int = 32,
        in_channels: int = 3,
        weights: str | Path | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_name(name, "Classifier")
        _check_sizes(name, num_classes, image_size, in_channels)
        rgb = in_channels == 3
        found = None
        if weights is not None and str(weights) != "imagenet":
            found = read_weights(weights, "Classifier")
            mean = _statistic("mean", mean, found.mean, name, weights)
            std = _statistic("std", std, found.std, name, weights)
        mean = _per_channel("mean", mean if mean is not None else (IMAGENET_MEAN if rgb else [0.5]), in_channels)
        std = _per_channel("std", std if std is not None else (IMAGENET_STD if rgb else [0.5]), in_channels)
        if min(std) <= 0:
            raise ValueError(f"Classifier: std must be above 0, got {std}")
        self.spec: dict[str, Any] = {
            "name": name,
            "num_classes": num_classes,
            "image_size": image_size,
            "in_channels": in_channels,
            "mean": mean,
            "std": std,
        }
        self.normalize = Normalize(mean, std)
        self.network = _network(name, num_classes, image_size, in_channels)
        if found is not None:
            self._load(found, weights)
        elif weights is not None:
            self._load_imagenet()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of images `(B, C, H, W)` in `[0, 1]`."""
        channels, size = self.spec["in_channels"], self.spec["image_size"]
        if images.ndim != 4 or images.size(1) != channels:
            raise ValueError(f"Classifier: images must be (B, {channels}, {size}, {size}), got {tuple(images.shape)}")
        logits: Tensor = self.network(self.normalize(images))
        return logits

    def lipschitz(self, norm: LipschitzNorm) -> float:
        """Bound of how much logits can differ for one unit of pixels in [0, 1], see `lipschitz_bound`."""
        return lipschitz_bound(self.normalize, norm) * lipschitz_bound(self.network, norm)

    def _load_imagenet(self) -> None:
        name = self.spec["name"]
        if name not in TORCHVISION_NAMES:
            raise ValueError(
                f"Classifier: weights='imagenet' exist for {', '.join(TORCHVISION_NAMES)}, got name '{name}'"
            )
        state = imagenet_state_dict(TORCHVISION_NAMES[name], "Classifier")
        own = self.network.state_dict()
        if self.spec["num_classes"] != 1000:
            # VGG's head differs in more than its last layer
            head = "classifier." if name.startswith("vgg") else _head(self.network)
            state = {key: value for key, value in state.items() if not key.startswith(head)}
            state |= {key: value for key, value in own.items() if key.startswith(head)}
        wrong = differences(own, state)
        if wrong:
            raise ValueError(
                f"Classifier: the ImageNet weights do not fit {name} with image_size {self.spec['image_size']} and"
                f" in_channels {self.spec['in_channels']}: {wrong} (they need image_size above {SMALL_IMAGE} and"
                " in_channels 3)"
            )
        self.network.load_state_dict(state)

    def _load(self, found: Weights, path: str | Path | None) -> None:
        name, num_classes = self.spec["name"], self.spec["num_classes"]
        state = _with_own_names(found.state, name)
        own = self.network.state_dict()
        last = _head(self.network) + "weight"
        wrong = differences(own, state)
        if last in state and state[last].shape[1:] == own[last].shape[1:] and len(state[last]) != num_classes:
            raise ValueError(
                f"Classifier: '{path}' has {len(state[last])} classes, got num_classes {num_classes}"
                " (give the number it was trained for, or other weights)"
            )
        if wrong:
            raise ValueError(
                f"Classifier: '{path}' is not a {name} for image_size {self.spec['image_size']} and in_channels"
                f" {self.spec['in_channels']}: {wrong} (give the name and sizes it was trained with)"
            )
        # strict=False only for num_batches_tracked, which old files lack; `differences` saw everything else
        self.network.load_state_dict(state, strict=False)


def classifier(
    name: str,
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """A `Classifier` by the name of its architecture; see there for the arguments."""
    return Classifier(name, num_classes, image_size, in_channels, weights, mean, std)


def save_classifier(model: Classifier, path: str | Path, neutralization: Mapping[str, Tensor] | None = None) -> None:
    """Writes a classifier, weights and description, into one safetensors file.

    Args:
        model: The classifier.
        path: Where to; must end in `.safetensors`.
        neutralization: `blob` and `value` of a `NeutralizationDefense` around it, whose `save` calls this.

    Raises:
        ValueError: The path ends otherwise.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"save_classifier: path must end in .safetensors, got '{path}'")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {**model.state_dict(), **{_NEUTRALIZATION + key: value for key, value in (neutralization or {}).items()}}
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    partial = path.with_name(path.name + ".partial")
    save_file(state, partial, metadata={"format": "pt", "classifier": json.dumps(model.spec)})
    partial.replace(path)


def export_classifier(model: nn.Module, path: str | Path) -> None:
    """Writes a classifier for others: normalisation inside, from images in [0, 1] of any batch size to logits.

    Args:
        model: A `Classifier`.
        path: Where to. ``.safetensors`` holds weights and description (`save_classifier`); ``.pt2`` runs wherever
            PyTorch is (`torch.export.load(path).module()`), in eval mode; ``.onnx`` runs in ONNX Runtime and others,
            from ``images`` to ``logits``.

    Raises:
        ValueError: The path ends otherwise, or it is another module.
        ImportError: ONNX is asked for and not installed.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", *EXPORTED):
        raise ValueError(f"export_classifier: path must end in .safetensors, .pt2 or .onnx, got '{path}'")
    if not isinstance(model, Classifier):
        raise ValueError(
            f"export_classifier: model must be a Classifier, got {type(model).__name__} (export the one inside it)"
        )
    if path.suffix == ".safetensors":
        save_classifier(model, path)
    else:
        write_exported(model, model.spec, path)


def load_classifier(path: str | Path) -> nn.Module:
    """A trained classifier in eval mode, on the CPU.

    Args:
        path: A checkpoint of `VictimClassifier` (`.ckpt`), or a file of `save_classifier`, of
            `NeutralizationDefense.save` (`.safetensors`) or of `export_classifier` (`.pt2`, `.onnx`).

    Returns:
        A `Classifier`, or the `NeutralizationDefense` around one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, cannot be loaded safely, or does not say which classifier it holds.
    """
    owner = "load_classifier"
    how = "train it with `lightning fit --config configs/<set>/victims/<name>.yaml`, or correct the path"
    spec: Any
    state: Any
    if Path(path).suffix in EXPORTED:
        state, spec = read_exported(Path(path), owner)
    elif Path(path).suffix == ".safetensors":
        state = read_file(path, owner, how)
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("classifier")
        try:
            spec = json.loads(text) if text else None
        except ValueError as error:
            raise ValueError(
                f"{owner}: the description in '{path}' is damaged: {error} (copy or save it again)"
            ) from error
    else:
        content = read_file(path, owner, how)
        spec, state = content.get("classifier"), content.get("state_dict")
        if isinstance(state, dict):
            state = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    if not isinstance(spec, dict) or not isinstance(state, dict):
        raise ValueError(
            f"{owner}: '{path}' does not say which classifier it holds (it must come from VictimClassifier,"
            " save_classifier or export_classifier; a plain state_dict goes to"
            " Classifier(name, num_classes, weights=path))"
        )
    blob, value = (state.pop(_NEUTRALIZATION + key, None) for key in ("blob", "value"))
    model = _described(spec, state, path, owner)
    model.load_state_dict(state, strict=False)
    if blob is None and value is None:
        return model.eval()
    if blob is None or value is None:
        raise ValueError(
            f"{owner}: '{path}' lacks the {'blob' if blob is None else 'value'} of its defence (save it again)"
        )
    # imports this module
    from lit_adv.models.neutralization import NeutralizationDefense

    return NeutralizationDefense(model, blob, float(value)).eval()


def _described(spec: dict[str, Any], state: StateDict, path: str | Path, owner: str) -> Classifier:
    """The untrained classifier that a file describes, made once its tensors are seen to fit it.

    Raises:
        ValueError: They do not, or it is no description.
    """
    if not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{owner}: '{path}' holds more than tensors (save it again)")
    # never `weights`, which would name another file or a download
    wrong = f"got {sorted(map(str, spec))}" if not spec.keys() <= _DESCRIPTION else ""
    for field, most in _MOST.items():
        value = spec.get(field, 1)
        if not isinstance(value, int) or value > most:
            wrong = wrong or f"got {field} {str(value)[:40]}"
    if wrong:
        raise ValueError(f"{owner}: '{path}' describes no classifier, {wrong} (save it again)")
    try:
        with torch.device("meta"):
            differing = differences(Classifier(**spec).state_dict(), state)
        if not differing:
            return Classifier(**spec)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{owner}: '{path}' describes no classifier: {error} (save it again)") from error
    raise ValueError(f"{owner}: '{path}' does not hold the {spec['name']} it describes: {differing} (save it again)")


def check_name(name: str, owner: str) -> None:
    """Refuses a name that is no architecture, with the nearest that is.

    Raises:
        ValueError: The name is unknown.
    """
    names = get_args(ClassifierName)
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{owner}: name must be one of {', '.join(names)}, got '{name}'{hint}")


_DESCRIPTION = {"name", "num_classes", "image_size", "in_channels", "mean", "std"}
# what a file may claim of itself; all else is seen from its tensors, before anything of that size is made
_MOST = {"num_classes": 1 << 20, "image_size": 1 << 14, "in_channels": 1 << 14}
_NEUTRALIZATION = "neutralization."
_CIFAR_DEPTHS = {"resnet20": 20, "resnet32": 32, "resnet44": 44, "resnet56": 56}


def _statistic(
    field: str, given: Sequence[float] | None, stored: Tensor | None, name: str, path: str | Path
) -> Sequence[float] | None:
    """The mean or std to use with a file of weights."""
    if stored is None:
        if given is None and name in ROBUSTBENCH_NAMES:
            raise ValueError(
                f"Classifier: '{path}' does not say its {field}, and {name} has no usual one: give {field} as it was"
                f" trained ([{'0' if field == 'mean' else '1'}] for pixels in [0, 1] as they are, as most of"
                " RobustBench's models take them)"
            )
        return given
    if given is None:
        return [float(value) for value in stored]
    expected = torch.tensor([float(value) for value in given])
    if not torch.equal(*torch.broadcast_tensors(expected, stored)):
        raise ValueError(
            f"Classifier: '{path}' was trained with {field} {stored.tolist()}, got {list(given)} (leave {field} out, or"
            " give it as it was trained)"
        )
    return given


def _with_own_names(state: StateDict, name: str) -> StateDict:
    """The names of this architecture here in place of those that RobustBench's files have."""
    if name.startswith("wide_resnet"):
        # a stage that TRADES' code makes and never calls
        return {key: value for key, value in state.items() if not key.startswith("sub_block1.")}
    if name in ("resnet18", "resnet50") and "linear.weight" in state:
        return {
            key.replace(".shortcut.", ".downsample.").replace("linear.", "fc."): value for key, value in state.items()
        }
    return state


# below, a pooling layer has nothing left or every stage sees a single pixel
_SMALLEST = {"vgg16": 32, "vgg16_bn": 32, "vgg19": 32, "vgg19_bn": 32, "alexnet": 16}


def _network(name: str, num_classes: int, image_size: int, in_channels: int) -> nn.Module:
    if name == "small_cnn":
        return SmallCNN(num_classes, image_size, in_channels)
    if name in _CIFAR_DEPTHS:
        return CIFARResNet(_CIFAR_DEPTHS[name], num_classes, in_channels)
    if name in get_args(WideResNetName):
        return wide_resnet(name, num_classes, image_size, in_channels)
    if name in ROBUSTBENCH_NAMES:
        return robustbench_network(name, num_classes, in_channels)
    return torchvision_network(name, num_classes, image_size, in_channels)


def _head(network: nn.Module) -> str:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1] + "."


def _check_sizes(name: str, num_classes: int, image_size: int, in_channels: int) -> None:
    for field, value, least in (("num_classes", num_classes, 2), ("in_channels", in_channels, 1)):
        if value < least:
            raise ValueError(f"Classifier: {field} must be at least {least}, got {value}")
    smallest = _SMALLEST.get(name, 8)
    if image_size < smallest:
        raise ValueError(
            f"Classifier: image_size must be at least {smallest} for {name}, got {image_size}"
            " (enlarge the images with the data module's image_size, or take small_cnn, from 8 px)"
        )


def _per_channel(field: str, values: Sequence[float], channels: int) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) == 1:
        numbers *= channels
    if len(numbers) != channels:
        raise ValueError(f"Classifier: {field} must have one number a channel ({channels}), got {len(numbers)}")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"Classifier: {field} must be finite, got {numbers}")
    return numbers


__all__ = ["Classifier", "ClassifierName", "StateDict", "classifier", "load_classifier", "save_classifier"]
