"""REDRL's tables 1, 3, 4 and 5 (Souri et al. 2021) from the shipped configs, ours beside the paper's.

    python -m benchmarks.papers.redrl --set cifar10                # as the paper: a GPU and days
    python -m benchmarks.papers.redrl --set cifar10 --reduced -- --trainer.precision=bf16-mixed
    python -m benchmarks.papers.redrl --set digits --tables 3 5    # minutes on a CPU, nothing to download

Every network is an ordinary run, `lightning fit` and `lightning test` of a file in configs/, in a folder of its own.
What follows `--` goes to each fit of REDRL. What is finished is read and not made again, and a run that was cut is
resumed. All of them share one cache of adversarial images, so the first makes them for the others.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_adv.compose import compose
from lit_adv.files import replacing

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SETS = ("cifar10", "digits", "fashion_mnist", "tiny_imagenet")
CLASSES = ("clean", "pgd", "deepfool", "cw_l2", "cw_linf", "patch")
FEATURES = "--model.weight_features=0.1"

# Per cent. Tables 3 and 5: CLASSES, then the weighted total; Table 4: before and after G for each of CLASSES.
_CIFAR, _TINY = "cifar10", "tiny_imagenet"
PAPER: dict[tuple[str, int], dict[str, tuple[float, ...]]] = {
    (_CIFAR, 1): {"resnet50": (94.02,), "resnext50": (94.76,), "densenet121": (94.48,), "vgg19_bn": (95.73,)},
    (_TINY, 1): {"resnet50": (65.18,), "resnext50": (68.05,), "densenet121": (65.03,), "vgg19_bn": (64.89,)},
    (_CIFAR, 3): {
        "image": (12.0, 73.5, 56.2, 73.4, 33.4, 58.4, 57.5),
        "delta": (100, 99.9, 99.9, 98.6, 71.6, 99.9, 94.2),
        "redrl": (100, 99.9, 97.4, 96.6, 74.1, 99.9, 94.2),
    },
    (_TINY, 3): {
        "image": (62.5, 88.7, 53.2, 28.0, 24.2, 73.8, 59.4),
        "delta": (99.9, 99.7, 64.0, 96.4, 92.7, 99.9, 95.7),
        "redrl": (99.7, 99.9, 75.3, 66.3, 57.7, 99.6, 85.5),
    },
    (_CIFAR, 4): {
        "resnet50": (94.0, 94.0, 2.1, 90.9, 7.4, 87.6, 0.1, 88.2, 13.5, 85.0, 79.0, 93.3),
        "resnext50": (94.7, 94.7, 2.41, 91.3, 8.0, 87.0, 0.0, 85.5, 12.2, 85.3, 80.3, 94.0),
        "densenet121": (94.4, 94.4, 2.1, 90.6, 7.9, 86.3, 0.6, 80.9, 13.0, 84.1, 78.6, 93.7),
        "vgg19_bn": (95.7, 95.7, 2.0, 93.1, 8.4, 87.1, 0.2, 84.3, 5.4, 86.2, 75.8, 94.9),
    },
    (_TINY, 4): {
        "resnet50": (65.1, 65.1, 0.3, 37.8, 11.5, 51.3, 0.1, 39.5, 2.7, 40.9, 48.5, 61.0),
        "resnext50": (68.0, 68.0, 0.4, 36.6, 11.2, 53.9, 0.1, 36.5, 3.1, 43.5, 51.6, 63.8),
        "densenet121": (65.0, 64.9, 0.1, 27.3, 11.8, 53.2, 0.1, 31.6, 3.2, 39.0, 48.8, 60.4),
        "vgg19_bn": (64.8, 64.8, 0.2, 26.1, 11.1, 45.9, 0.0, 31.5, 1.6, 34.1, 45.7, 59.5),
    },
    (_CIFAR, 5): {
        "a": (99.9, 99.9, 99.3, 84.2, 63.3, 99.7, 90.59),
        "b": (98.9, 99.6, 98.8, 88.7, 70.8, 99.8, 92.58),
        "c": (100, 99.9, 99.8, 93.3, 71.6, 99.9, 93.51),
        "redrl": (100, 99.9, 97.4, 96.6, 74.1, 99.9, 94.28),
    },
    (_TINY, 5): {
        "a": (99.8, 99.9, 87.1, 58.7, 42.9, 98.6, 81.9),
        "b": (99.5, 99.8, 93.8, 60.2, 43.0, 98.9, 82.7),
        "c": (99.5, 99.9, 71.9, 61.5, 53.8, 99.2, 83.72),
        "redrl": (99.7, 99.9, 75.3, 66.3, 57.7, 99.6, 85.57),
    },
}
HEADS = {
    "image": "image alone",
    "delta": "true delta, image",
    "redrl": "REDRL",
    "a": "A: no L_F, no L_IC",
    "b": "B: no L_IC",
    "c": "C: no L_F",
}


@dataclass(frozen=True)
class Job:
    """A network to be trained and tested.

    Attributes:
        config: Its file under configs/, without `.yaml`.
        arguments: What its fit gets beside the file.
        folder: Where the run is kept.
    """

    config: str
    arguments: tuple[str, ...]
    folder: Path


class JobFailed(Exception):
    """A fit or a test that ended with an error."""


def jobs(name: str, tables: Iterable[int], folder: Path, reduced: bool, extra: Sequence[str] = ()) -> dict[str, Job]:
    """What the tables need, by column; equal networks are one job. Table 1's victims are `victims(...)`."""
    wanted: dict[str, tuple[str, tuple[str, ...]]] = {}
    if {3, 4, 5} & set(tables):
        wanted["redrl"] = ("reduced" if reduced else "redrl", ())
    if 3 in tables:
        prefix = "reduced_" if reduced else "baseline_"
        wanted |= {column: (prefix + column, ()) for column in ("image", "delta")}
    if 5 in tables and reduced:
        # the reduced REDRL is C already: F costs half of its time
        wanted["a"] = ("reduced", ("--model.weight_classification=0",))
        wanted["b"] = ("reduced", ("--model.weight_classification=0", FEATURES))
        wanted["c"] = wanted["redrl"]
        wanted["all"] = ("reduced", (FEATURES,))
    elif 5 in tables:
        wanted |= {letter: (f"ablation_{letter}", ()) for letter in "abc"}
    made: dict[tuple[str, tuple[str, ...]], Job] = {}
    for column, key in wanted.items():
        made.setdefault(key, Job(f"{name}/{key[0]}", (*key[1], *extra), folder / name / column))
    return {column: made[key] for column, key in wanted.items()}


def victims(name: str, reduced: bool) -> dict[str, Job]:
    """The classifiers that the set's REDRL attacks, in the folders where its config looks for them."""
    config = compose(CONFIGS / name / ("reduced.yaml" if reduced else "redrl.yaml"))
    named = config["data"]["init_args"]["victims"]
    return {one: Job(f"{name}/victims/{one}", (), Path(path).parents[1]) for one, path in named.items()}


def finish(job: Job, run: Callable[[Sequence[str]], int], is_done: Callable[[Path], bool]) -> None:
    """Trains and tests a job, or what is left of it.

    Raises:
        JobFailed: A command ended with an error, or the folder holds a run that was started with other arguments.
    """
    note, asked = job.folder / "job.json", {"config": job.config, "arguments": list(job.arguments)}
    started = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    if started not in (None, asked):
        raise JobFailed(
            f"{job.folder} holds a run of {started['config']} with {' '.join(started['arguments']) or 'no arguments'}, "
            f"not with {' '.join(job.arguments) or 'none'} (delete it, or give another folder with --runs)"
        )
    if is_done(job.folder):
        return
    checkpoints = job.folder / "checkpoints"
    if started is not None or not (checkpoints / "best.ckpt").is_file():
        job.folder.mkdir(parents=True, exist_ok=True)
        with replacing(note) as path:
            path.write_text(json.dumps(asked) + "\n", encoding="utf-8")
        again = (checkpoints / "last.ckpt").is_file()
        config = job.folder / "config.yaml" if again else CONFIGS / f"{job.config}.yaml"
        rest = ["--ckpt_path", "last"] if again else ["--run_dir", str(job.folder), *job.arguments]
        _run(run, ["fit", "--config", str(config), *rest])
    best = "best" if (checkpoints / "best.ckpt").is_file() else "last"
    _run(run, ["test", "--config", str(job.folder / "config.yaml"), "--ckpt_path", best])


def accuracy(folder: Path) -> float | None:
    """A victim's accuracy on the test images, if it has been tested."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        found = [row["test/acc"] for row in csv.DictReader(file) if row.get("test/acc")]
    return float(found[-1]) if found else None


def results(folder: Path) -> dict[str, Any] | None:
    """The results of a REDRL that has been tested."""
    path = folder / "results.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def accuracies(name: str, found: dict[str, float]) -> list[str]:
    """Table 1: the victims' accuracy on clean images."""
    paper = PAPER.get((name, 1), {})
    lines = ["### Table 1: accuracy on clean images, per cent", "", "| network | ours | paper |", "|---|---|---|"]
    for victim, value in found.items():
        lines.append(f"| {victim} | {100 * value:.2f} | {_cell(paper.get(victim), 0)} |")
    return lines


def recognition(number: int, name: str, columns: dict[str, dict[str, Any]]) -> list[str]:
    """Table 3 or 5: recognition of each class, ours beside the paper's."""
    title = {3: "Table 3: what the recogniser sees", 5: "Table 5: which losses"}[number]
    paper, heads = PAPER.get((name, number), {}), list(columns)
    # the reduced REDRL is trained without L_F, so that the run with all losses is the one to stand beside the paper's
    published = {head: "redrl" if head == "all" else head for head in heads}
    titles = [HEADS.get(head, "all four losses") for head in heads]
    lines = [f"### {title}, recognition in per cent, ours (paper)", "", f"| class | {' | '.join(titles)} |"]
    lines.append("|---" * (len(heads) + 1) + "|")
    classes = next(iter(columns.values()))["recognition"]["per_class"]
    for one in [*classes, "macro", "weighted"]:
        place = len(CLASSES) if one == "weighted" else CLASSES.index(one) if one in CLASSES else None
        cells = []
        for head in heads:
            measured = columns[head]["recognition"]
            value = measured[one] if one in ("macro", "weighted") else measured["per_class"][one]
            theirs = None if place is None else paper.get(published[head])
            cells.append(_both(value, theirs, place))
        lines.append(f"| {one} | {' | '.join(cells)} |")
    return lines


def reconstruction(name: str, found: dict[str, Any]) -> list[str]:
    """Table 4: accuracy of the victims before and after G, ours and the paper's."""
    paper, classes = PAPER.get((name, 4), {}), list(found["recognition"]["per_class"])
    lines = ["### Table 4: accuracy before → after G, per cent", "", f"| network | | {' | '.join(classes)} |"]
    lines.append("|---" * (len(classes) + 2) + "|")
    for victim, row in found["reconstruction"].items():
        ours = [
            f"{100 * row[one]['before']:.1f} → {100 * row[one]['after']:.1f}" if one in row else "" for one in classes
        ]
        lines.append(f"| {victim} | ours | {' | '.join(ours)} |")
        if victim in paper:
            pairs = dict(zip(CLASSES, zip(paper[victim][::2], paper[victim][1::2], strict=True), strict=True))
            theirs = [f"{pairs[one][0]} → {pairs[one][1]}" if one in pairs else "" for one in classes]
            lines.append(f"| | paper | {' | '.join(theirs)} |")
    return lines


def main(arguments: Sequence[str] | None = None, run: Callable[[Sequence[str]], int] | None = None) -> None:
    """The command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options, extra, run = _parser().parse_args(given[:cut]), given[cut + 1 :], run or _lightning
    name, reduced = options.set, options.reduced
    if reduced and not (CONFIGS / name / "reduced.yaml").is_file():
        raise SystemExit(
            f"error: --reduced: there is no configs/{name}/reduced.yaml (cifar10 has one; digits are small)"
        )
    if options.victims is not None and 1 in options.tables:
        raise SystemExit("error: --tables: table 1 is of the set's own victims, leave 1 out with --victims")
    if options.victims is not None:
        extra = [f"--data.victims={options.victims}", *extra]
    try:
        attacked = {} if options.victims is not None else victims(name, reduced)
        for job in attacked.values():
            finish(job, run, lambda folder: accuracy(folder) is not None)
        needed = jobs(name, options.tables, options.runs / ("reduced" if reduced else "full"), reduced, extra)
        for job in dict.fromkeys(needed.values()):
            finish(job, run, lambda folder: results(folder) is not None)
    except JobFailed as error:
        raise SystemExit(f"error: {error}") from error
    columns = {column: results(job.folder) or {} for column, job in needed.items()}
    size = "REDUCED: " if reduced else ""
    parts = [[f"## {name}", "", f"{size}`python -m benchmarks.papers.redrl {' '.join(given)}`"]]
    if 1 in options.tables:
        parts.append(accuracies(name, {one: accuracy(job.folder) or 0.0 for one, job in attacked.items()}))
    if 3 in options.tables:
        parts.append(recognition(3, name, {column: columns[column] for column in ("image", "delta", "redrl")}))
    if 4 in options.tables:
        parts.append(reconstruction(name, columns["redrl"]))
    if 5 in options.tables:
        order = ("a", "b", "c", "all" if reduced else "redrl")
        parts.append(recognition(5, name, {column: columns[column] for column in order}))
    text = "\n\n".join("\n".join(part) for part in parts) + "\n"
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(options.out) as path:
            path.write_text(text, encoding="utf-8")


def _lightning(arguments: Sequence[str]) -> int:
    return subprocess.run([sys.executable, "-m", "lit_adv", *arguments], check=False).returncode


def _run(run: Callable[[Sequence[str]], int], command: Sequence[str]) -> None:
    print(f"== lightning {' '.join(command)}", flush=True)
    code = run(command)
    if code:
        raise JobFailed(
            f"lightning {' '.join(command)} ended with {code} (what is finished is kept: mend it and run this again)"
        )


def _cell(values: tuple[float, ...] | None, place: int | None) -> str:
    return "" if values is None or place is None else f"{values[place]:g}"


def _both(value: float | None, values: tuple[float, ...] | None, place: int | None) -> str:
    ours, theirs = "" if value is None else f"{100 * value:.1f}", _cell(values, place)
    return f"{ours} ({theirs})" if theirs else ours


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers.redrl", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--tables", type=int, nargs="+", choices=[1, 3, 4, 5], default=[1, 3, 4, 5])
    parser.add_argument("--reduced", action="store_true", help="configs/<set>/reduced*.yaml")
    parser.add_argument("--victims", type=Path, default=None, help="YAML file of other victims, trained already")
    parser.add_argument("--runs", type=Path, default=Path("runs/papers"), help="folder of REDRL's runs")
    parser.add_argument("--out", type=Path, default=None, help="file for the tables, beside the terminal")
    return parser


if __name__ == "__main__":
    main()
