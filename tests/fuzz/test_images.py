"""Any images and labels at the attacks, metrics and maps: a result as promised, or a refusal in words."""

import inspect
import math
import random
import re
import warnings

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_adv import explain, metrics
from lit_adv.attacks import Attack, Center, Frame, RandomPatch, RandomPixels
from lit_adv.diagnosis import said_by_us

CLASSES = 4


class AnySize(nn.Module):
    """Logits of images of any size and any number of channels; a filter, for what looks for filters."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.head = nn.Linear(4, CLASSES)
            self.head.weight.data.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        grey = x.sum(1, keepdim=True) * 4 - 2
        if 0 in grey.shape[2:]:
            return self.head(grey.new_zeros(len(grey), 4))
        return self.head(self.conv(grey).relu().mean((2, 3)))


class Marked(Tensor):
    """A subclass of Tensor that every operation keeps."""


def attacks():
    found, waiting = [], [Attack]
    for cls in waiting:
        waiting += cls.__subclasses__()
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_") and cls.__module__.startswith("lit_adv."):
            found.append(cls)
    # those of other libraries need them
    return sorted((c for c in set(found) if c.__module__ != "lit_adv.attacks.adapters"), key=lambda c: c.__name__)


def some_images(draw):
    """Images, mostly with something odd about them."""
    shape = [draw.choice((0, 1, 2, 2, 3)), draw.choice((0, 1, 1, 1, 2, 3, 3, 3, 4)), draw.choice((1, 2, 3, 5, 8, 8, 9))]
    shape.append(draw.choice((shape[2], shape[2], shape[2], 0, 1, 4, 8)))
    if draw.random() < 0.4:
        shape = [2, draw.choice((1, 3)), 8, 8]
    images = torch.rand(shape, generator=torch.Generator().manual_seed(draw.randrange(1000)))
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    dtype = draw.choice(kinds if draw.random() < 0.9 else (torch.uint8, torch.int64, torch.bool, torch.complex64))
    images = (images * 255).to(dtype) if dtype in (torch.uint8, torch.int64) else images.to(dtype)
    for _ in range(draw.choice((0, 0, 1, 1, 2))):
        images = odd(images, draw)
    return images


def odd(images, draw):
    kind = draw.randrange(22)
    if not isinstance(images, Tensor) or images.device.type == "meta" or images.layout != torch.strided:
        return images
    if kind in (0, 1) and images.numel() and images.dtype.is_floating_point:
        images = images.detach().contiguous().clone()
        value = draw.choice((math.nan, math.inf, -math.inf, -0.001, 1.001, 255.0, -0.0, 1e-40, 1e30))
        images.view(-1)[draw.randrange(images.numel())] = value
    elif kind == 2 and images.ndim == 4:
        images = images.to(memory_format=torch.channels_last)
    elif kind == 3 and images.ndim >= 2:
        images = images.transpose(-1, -2)
    elif kind == 4 and images.ndim >= 2:
        images = images.flip(-1, -2)
    elif kind == 5 and images.ndim >= 1:
        images = images[..., ::2]
    elif kind == 6 and images.dtype.is_floating_point:
        images = images.clone().requires_grad_()
    elif kind == 7 and images.dtype.is_floating_point:
        images = images.clone().requires_grad_() * 1.0
    elif kind == 8:
        images = images.to("meta")
    elif kind == 9:
        images = images[None]
    elif kind == 10 and images.ndim and len(images):
        images = images[0]
    elif kind == 11:
        images = draw.choice(([[[[0.5, 0.2]]]], np.full((1, 1, 2, 2), 0.5, np.float32), ()))
    elif kind == 12:
        images = images.as_subclass(Marked)
    elif kind == 13 and images.dtype.is_floating_point:
        images = nn.Parameter(images.detach().clone())
    elif kind == 14 and images.ndim == 4 and images.shape[1]:
        images = images[:, :1].expand(-1, 3, -1, -1)
    elif kind == 15:
        with torch.inference_mode():
            images = images.clone()
    elif kind == 16:
        images = draw.choice((None, 3, "images", images.to_sparse() if type(images) is Tensor else images))
    elif kind == 17 and images.numel():
        images = torch.zeros_like(images) if draw.random() < 0.5 else torch.ones_like(images)
    return images


def some_labels(draw, images):
    count = len(images) if isinstance(images, (Tensor, list)) and getattr(images, "ndim", 1) else 2
    labels = torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(draw.randrange(1000)))
    kind = draw.randrange(50)
    if kind == 0:
        labels = labels.int()
    elif kind == 1:
        labels = labels.float()
    elif kind == 2:
        labels = labels[:, None]
    elif kind == 3:
        labels = labels[:-1]
    elif kind == 4:
        labels = torch.cat([labels, labels])
    elif kind == 5:
        labels = labels - 3
    elif kind == 6:
        labels = labels + 3
    elif kind == 7:
        labels = labels.tolist()
    elif kind == 8:
        labels = None
    elif kind == 9:
        labels = labels.to("meta")
    elif kind == 10:
        labels = labels.as_subclass(Marked)
    elif kind == 11:
        labels = labels.bool()
    elif kind == 12:
        labels = labels + 2**62
    elif kind == 13:
        labels = draw.choice((3, "0", torch.tensor(1)))
    return labels


def some_region(draw):
    return draw.choice(
        (None, None, None, None, Center(size=2), Frame(thickness=1), RandomPixels(fraction=0.5), RandomPatch(size=3))
    )


def said(error):
    """Whether it is a refusal of ours: our kind, raised on purpose, beginning with the name of what refuses."""
    words = re.match(r"[A-Za-z_]\w*(\.\w+)?: \w+", str(error))
    return isinstance(error, (ValueError, TypeError)) and said_by_us(error) and words is not None


RUNS = st.builds(random.Random, st.integers(0, 2**64 - 1))
SEEDS = (0, 0, 3, None, -1, 2**70, 1.5, "a", torch.tensor([1, 2]), torch.tensor([1.0, 2.0]))
MODEL = AnySize().eval()


def about(*values):
    """The arguments, short enough for a message."""
    return [
        (type(each).__name__, each.dtype, tuple(each.shape), each.device.type) if isinstance(each, Tensor) else each
        for each in values
    ]


@given(RUNS)
def test_attacks_keep_their_promises_or_say_why_not(draw):
    cls = draw.choice(attacks())
    images = some_images(draw)
    labels = some_labels(draw, images)
    targets = labels if draw.random() < 0.1 else some_labels(draw, images) if draw.random() < 0.2 else None
    region, seed = some_region(draw), draw.choice(SEEDS)
    run = draw.random() < 0.3
    wrong = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call = cls.example().run if run else cls.example()
            result = call(MODEL, images, labels, targets=targets, region=region, seed=seed)
    except Exception as error:
        wrong = None if said(error) else error
        result = None
    assert wrong is None, (cls, about(images, labels, targets, region, seed), repr(wrong))
    if result is None:
        assert not (is_plain(images) and isinstance(seed, int) and region is None) or not is_class(
            labels, targets, images
        )
        return
    crafted = result.images if run else result
    assert (crafted.shape, crafted.dtype, crafted.device) == (images.shape, images.dtype, images.device)
    assert not crafted.requires_grad
    assert crafted.numel() == images.numel()
    assert bool(((crafted >= 0) & (crafted <= 1)).all()), (cls, about(images, labels))


def is_plain(images):
    """Whether nothing is odd about images, so that nothing may be refused."""
    return (
        type(images) is Tensor
        and images.shape[1:] in ((1, 8, 8), (3, 8, 8))
        and images.dtype == torch.float32
        and images.device.type == "cpu"
        and images.layout == torch.strided
        and bool(((images >= 0) & (images <= 1)).all())
    )


def is_class(labels, targets, images):
    """Whether labels and targets are what they should be."""
    return all(
        type(each) is Tensor
        and each.dtype == torch.int64
        and each.device.type == "cpu"
        and each.shape == images.shape[:1]
        and bool(((each >= 0) & (each < CLASSES)).all())
        for each in (labels, labels if targets is None else targets)
    )


def scores(draw, rows, columns):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(draw.randrange(99)))


# a metric, and for each of its arguments what should be there
PAIRS, LABELS, BOOL, MAPS = "images", "labels", "bool", "maps"
METRICS = (
    (lambda: metrics.FoolingRate(), (LABELS, LABELS)),
    (lambda: metrics.RecognitionAccuracy(["clean", "pgd", "c", "d"]), (LABELS, LABELS)),
    (lambda: metrics.VictimAccuracy(["clean", "pgd"], ["a", "b"]), (LABELS, LABELS, LABELS)),
    (lambda: metrics.BudgetError(["clean", "pgd"]), ("vector", "vector", LABELS, LABELS)),
    (lambda: metrics.ReconstructionAccuracy(["a", "b"], ["clean", "pgd"]), (LABELS,) * 5),
    (lambda: metrics.LogitCalibration(), ("scores", LABELS)),
    (lambda: metrics.AnsweredAccuracy(), ("scores", LABELS)),
    (lambda: metrics.MeanPSNR(), (PAIRS, PAIRS)),
    (lambda: metrics.MeanSSIM(), (PAIRS, PAIRS)),
    (lambda: metrics.LocalizationScores(), (PAIRS, MAPS)),
)
MAPPED = (
    (lambda *a: metrics.psnr(*a), (PAIRS, PAIRS)),
    (lambda *a: metrics.ssim(*a), (PAIRS, PAIRS)),
    (lambda *a: metrics.ssim_map(*a), (PAIRS, PAIRS)),
    (lambda *a: metrics.localization_scores(*a), (PAIRS, MAPS)),
    (lambda *a: explain.grad_cam(MODEL, *a), (PAIRS, LABELS)),
    (lambda *a: explain.grad_cam_plus_plus(MODEL, *a), (PAIRS, LABELS)),
    (lambda *a: explain.importance_map(MODEL, *a), (PAIRS, LABELS)),
    (lambda *a: explain.region_of_importance(MODEL, *a), (PAIRS, LABELS)),
    (lambda *a: explain.gradient_map(MODEL, *a), (PAIRS, LABELS)),
    (lambda *a: explain.parameter_saliency(MODEL, *a), (PAIRS, LABELS)),
    (lambda *a: explain.saliency_mask(MODEL, *a, 0.5), (PAIRS, LABELS)),
    (lambda *a: explain.perturbation_map(*a), (PAIRS, PAIRS)),
    (lambda *a: explain.region_of_attack(*a), (PAIRS, PAIRS)),
    (lambda *a: explain.heat_map(*a), (MAPS,)),
    (lambda *a: explain.four_regions(*a), (BOOL, BOOL)),
    (lambda *a: explain.representative(*a), (BOOL,)),
    (lambda *a: explain.blob_of_masks(*a), (BOOL, BOOL)),
    (lambda *a: explain.blob_of_representatives(*a), ("share", "share")),
    (lambda *a: explain.attack_only_counts(*a, [0.5], [0.5]), (MAPS, MAPS)),
    (lambda *a: explain.mask_counts(*a, [0.5]), (MAPS,)),
)


def some_arguments(draw, kinds):
    """Arguments that belong together, most often with one that does not."""
    images = some_images(draw) if draw.random() < 0.5 else torch.rand(2, 3, 8, 8)
    if draw.random() < 0.4:
        images = torch.rand(2, 3, 16, 16)
    shape = images.shape if isinstance(images, Tensor) and images.ndim == 4 else torch.Size((2, 3, 8, 8))
    found = []
    for kind in kinds:
        rows = shape[0]
        if kind == PAIRS:
            each = images
        elif kind == LABELS:
            each = (
                some_labels(draw, torch.zeros(shape)) if draw.random() < 0.5 else torch.zeros(rows, dtype=torch.int64)
            )
        elif kind == "scores":
            each = scores(draw, rows, CLASSES).softmax(1)
        elif kind == "vector":
            each = scores(draw, rows, 1)[:, 0] + 1
        elif kind == "share":
            each = torch.rand(shape[2:])
        else:
            each = torch.rand(rows, *shape[2:])
            each = each > 0.5 if kind == BOOL else each
        if draw.random() < 0.2:
            each = odd(each, draw)
        found.append(each)
    return found


@given(RUNS)
def test_metrics_count_or_say_why_not(draw):
    make, kinds = draw.choice(METRICS)
    metric, arguments = make(), some_arguments(draw, kinds)
    wrong = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric.update(*arguments)
    except Exception as error:
        wrong = None if said(error) else error
    assert wrong is None, (type(metric), about(*arguments), repr(wrong))


@given(RUNS)
def test_maps_are_made_or_it_is_said_why_not(draw):
    number = draw.randrange(len(MAPPED))
    function, kinds = MAPPED[number]
    arguments = some_arguments(draw, kinds)
    wrong = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(*arguments)
    except Exception as error:
        wrong = None if said(error) else error
    assert wrong is None, (number, about(*arguments), repr(wrong))
