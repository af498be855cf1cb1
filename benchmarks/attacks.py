"""Speed, passes, success and perturbation of our attacks beside other libraries', in one run.

    python -m benchmarks [--images 32] [--rounds 3] [--models small_cnn resnet20] [--weights resnet20=file.pth]
                         [--data images.npz] [--attacks PGD DeepFool] [--libraries torchattacks] [--out docs]

The same network, images, labels (its own predictions) and settings for all, in the same process; the contestants take
turns and the best round of each counts. On the CPU time is processor time of one thread, which other jobs disturb
little; on a GPU it is between two events. Passes are counted for each image in a call of its own: by hooks on the
network for the others, by the attack's own counters for ours, since a folded snapshot has no hooks (the tests compare
the two ways). Libraries that are not installed and attacks that are not there are said and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import contests
from benchmarks.contests import Contest, Craft
from benchmarks.report import OURS, Row, figure, markdown, ratios, read_csv, short, write_csv
from lit_adv import attacks
from lit_adv.models import classifier


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the contests and prints and writes what came out."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    libraries = contests.installed({k: v for k, v in contests.LIBRARIES.items() if k in options.libraries})
    weights = dict(pair.split("=", 1) for pair in options.weights)
    images = load_images(options.data, options.images).to(device)
    chosen = [
        (name, contest)
        for name, contest in contests.contests().items()
        if not options.attacks or any(name.lower().startswith(each.lower()) for each in options.attacks)
    ]
    rows: list[Row] = []
    for name in options.models:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = classifier(name, 10, images.shape[-1], images.shape[1], weights=weights.get(name)).eval().to(device)
        title = name + (", trained" if name in weights else ", random weights")
        for attack, contest in chosen:
            found = contend(title, attack, contest, model, images, libraries, options.rounds, options.seconds)
            for row in found:
                print(f"{row.model}: {row.attack}: {row.library} {row.setting}: {short(row.speed)}/s", file=sys.stderr)
            rows += found
            if options.out:
                publish(rows, options.out, _conditions(options, device, images))
    _show(rows)


def contend(
    title: str,
    name: str,
    contest: Contest,
    model: nn.Module,
    images: Tensor,
    libraries: dict[str, str],
    rounds: int,
    seconds: float,
) -> list[Row]:
    """All contestants of a contest on one model, in turns.

    Args:
        title: What the rows call the model.
        name: What they call the contest.
        contest: See there.
        model: In eval mode.
        images: ``(B, C, H, W)``.
        libraries: Names of those that can be imported.
        rounds: Turns of each, with several calls where they are short; the best call counts.
        seconds: A contestant that has taken so long has had its last round.
    """
    images = images[: contest.images]
    with torch.no_grad():
        labels = model(images).argmax(1)
        classes = model(images[:1]).shape[1]
    given = (labels + 1) % classes if contest.targeted else labels
    try:
        attack = contest.ours()
        own = {"": attack, **contests.variants(attack)}
    except (AttributeError, TypeError, ValueError) as error:
        print(f"{name}: left out, our attack cannot be made: {error}", file=sys.stderr)
        return []
    crafts: dict[tuple[str, str], Craft] = {
        (OURS, setting): contests.ours(made, contest.targeted) for setting, made in own.items()
    }
    crafts |= {(library, ""): craft for library, craft in contest.peers.items() if library in libraries}

    passes: dict[tuple[str, str], tuple[float, float]] = {}
    results: dict[tuple[str, str], Tensor] = {}
    spent: dict[tuple[str, str], float] = {}
    for key in list(crafts):
        began = time.monotonic()
        try:
            with _quiet():
                results[key], passes[key] = counted_call(
                    crafts[key], own[key[1]] if key[0] == OURS else None, model, images, given, contest.targeted
                )
        except Exception as error:  # a library may fail in any way, and the others go on
            print(f"{name}: left out {key[0]}: {type(error).__name__}: {error}", file=sys.stderr)
            del crafts[key]
        spent[key] = time.monotonic() - began
        model.zero_grad(set_to_none=True)

    best: dict[tuple[str, str], float] = {}
    for _ in range(rounds):
        for key, craft in crafts.items():
            if key in best and spent[key] > seconds:
                continue
            began = time.monotonic()
            with _quiet():
                taken = best_of(lambda craft=craft: craft(model, images, given), images.device)  # type: ignore[misc]
            spent[key] += time.monotonic() - began
            best[key] = min(best.get(key, taken), taken)
            model.zero_grad(set_to_none=True)
    model.eval()
    return [
        Row(
            model=title,
            attack=name,
            library=key[0],
            setting=key[1],
            images=len(images),
            seconds=best[key],
            forwards=passes[key][0],
            backwards=passes[key][1],
            norm=contest.norm,
            remark=contest.remarks.get(key[0], ""),
            **judged(model, images, results[key].detach(), given, contest.targeted, contest.norm),
        )
        for key in crafts
    ]


def counted_call(
    craft: Craft, attack: attacks.Attack | None, model: nn.Module, images: Tensor, given: Tensor, targeted: bool
) -> tuple[Tensor, tuple[float, float]]:
    """What comes back, and the forward and backward passes of an image: by ``attack``'s own counters if it is ours."""
    if attack is not None and not isinstance(attack, attacks.UniversalPerturbation):
        result = attack.run(model, images, given, targets=given if targeted else None, seed=0)
        return result.images, (result.forwards.double().mean().item(), result.backwards.double().mean().item())
    with counted(model, len(images)) as passes:
        found = craft(model, images, given)
    return found, (passes[0], passes[1])


@contextlib.contextmanager
def counted(model: nn.Module, images: int) -> Iterator[list[float]]:
    """Forward and backward passes an image while the block runs, by hooks: samples that went through over images."""
    passes = [0.0, 0.0]

    def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        passes[0] += len(inputs[0]) / images
        if output.requires_grad:
            output.register_hook(lambda gradient: backward(len(gradient)))

    def backward(samples: int) -> None:
        passes[1] += samples / images

    handle = model.register_forward_hook(forward)
    try:
        yield passes
    finally:
        handle.remove()


def best_of(call: Callable[[], object], device: torch.device, seconds: float = 0.3, most: int = 10) -> float:
    """The least time of some calls in a row: a call of milliseconds also pays for what ran before it."""
    began = time.monotonic()
    best = timed(call, device)
    for _ in range(most - 1):
        if time.monotonic() - began > seconds:
            break
        best = min(best, timed(call, device))
    return best


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of ``call()``: processor time on the CPU, between two events on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        call()
        after.record()
        torch.cuda.synchronize(device)
        return before.elapsed_time(after) / 1000
    began = time.process_time()
    call()
    return time.process_time() - began


def judged(
    model: nn.Module, images: Tensor, adversarial: Tensor, classes: Tensor, targeted: bool, norm: str
) -> dict[str, float]:
    """Success and the mean norm of the successes, measured here and the same way for all."""
    with torch.no_grad():
        hit = model(adversarial.to(images)).argmax(1) == classes
    success = hit if targeted else ~hit
    delta = (adversarial.double() - images.double()).flatten(2)
    pixels = delta.abs().amax(1)
    size = {
        "l0": (pixels > 1e-6).sum(1).double(),  # what went through tanh and back is not bit for bit the same
        "l1": delta.abs().sum((1, 2)),
        "l2": delta.square().sum((1, 2)).sqrt(),
        "linf": pixels.amax(1),
    }[norm]
    return {"success": success.double().mean().item(), "mean_norm": size[success].mean().item()}


def load_images(path: Path | None, count: int) -> Tensor:
    """The first images of an npz file (``x_test``: uint8, NHWC), or noise of 32 pixels, in [0, 1]."""
    if path is None:
        noise = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return (noise * 255).round() / 255
    with np.load(path, allow_pickle=False) as file:
        pixels = torch.from_numpy(file["x_test"][:count])
    return pixels.permute(0, 3, 1, 2).contiguous().float() / 255


def publish(rows: Sequence[Row], folder: Path, conditions: str) -> None:
    """Writes ``benchmark.csv``, ``benchmark.md`` and ``benchmark.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows, folder / "benchmark.csv")
    head = (
        "# Speed of the attacks\n\n"
        f"{conditions} `make bench` writes this page anew; all figures are in `benchmark.csv`.\n\n"
        "*ratio*: for another library's row, our images per second over its; for a row of ours, its over the fastest"
        " other library's (of those that do the same work: one with a remark and less than nine tenths of our passes"
        " does not). *forwards* and *backwards*: passes an image. Mean norm of the perturbations that succeed;"
        " labels are the model's own predictions, so success is a changed prediction. `fold=False` attacks the network"
        " itself rather than a snapshot with its batch norms folded.\n\n"
        "![How many times as fast as the fastest other library](benchmark.png)\n\n"
    )
    (folder / "benchmark.md").write_text(head + markdown(rows))
    figure(rows, "Attacks of lit_adv against the fastest other library").savefig(folder / "benchmark.png")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _conditions(options: argparse.Namespace, device: torch.device, images: Tensor) -> str:
    time_is = "CUDA events" if device.type == "cuda" else f"processor time, {options.threads} thread(s)"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    kind = "noise" if options.data is None else "images"
    return (
        f"{len(images)} {kind} of {images.shape[-1]} pixels (fewer for the slowest attacks), {name}, {time_is}, torch"
        f" {torch.__version__.split('+')[0]}, best of {options.rounds} rounds in which all take turns."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Attacks against other libraries'")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each; the best call counts")
    parser.add_argument("--seconds", type=float, default=60, help="who has taken longer has had its last round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=["small_cnn", "resnet20"])
    parser.add_argument("--weights", nargs="+", default=[], metavar="MODEL=FILE", help="random ones without")
    parser.add_argument("--data", type=Path, help="an npz file with x_test, uint8, NHWC; noise without")
    parser.add_argument("--attacks", nargs="+", help="only those whose name starts so")
    parser.add_argument("--libraries", nargs="*", default=list(contests.LIBRARIES))
    parser.add_argument("--out", type=Path, help="folder for benchmark.csv, .md and .png")
    return parser


def _show(rows: Sequence[Row]) -> None:
    table = Table(title="ratio: ours over the peer's images per second; for ours over the fastest peer's")
    names = ("model", "attack", "library", "images/s", "ratio", "forwards", "backwards", "success", "mean norm")
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number < 3 else "right")
    for row, ratio in zip(rows, ratios(rows), strict=True):
        figures = (row.speed, ratio, row.forwards, row.backwards, row.success, row.mean_norm)
        library = f"{row.library} {row.setting}".strip()
        table.add_row(row.model, row.attack, library, *("-" if each != each else short(each) for each in figures))
    Console(width=140).print(table)


def redraw(folder: Path, conditions: str) -> None:
    """Table and figure again from ``benchmark.csv``."""
    publish(read_csv(folder / "benchmark.csv"), folder, conditions)


if __name__ == "__main__":
    main()
