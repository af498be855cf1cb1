"""Runs that are killed at random moments, and started again, until one comes to its end.

Tests fork them from a process that has imported everything, so that it is the run that is struck, and not the seconds
in which torch is imported. `python tests/kills.py --kills 20 --seed 1` does the same through the command line.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import yaml

from lit_adv import attacks, callbacks, cli, data, models, runs, tasks

ARRAYS = {"class_path": "Arrays", "init_args": {"path": "images.npz", "validation": 8, "batch_size": 8}}
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 5,
    "logger": True,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}
ADVERSARIAL = {
    "class_path": "AdversarialDataModule",
    "init_args": {
        "source": ARRAYS,
        "victims": {
            "a": {"class_path": "Classifier", "init_args": {"name": "small_cnn", "num_classes": 3, "image_size": 8}}
        },
        "attacks": {
            "pgd/8": {"class_path": "PGD", "init_args": {"eps": 0.05, "steps": 3}},
            "pgd/16": {"class_path": "PGD", "init_args": {"eps": 0.1, "steps": 3}},
            "deepfool": {"class_path": "DeepFool", "init_args": {"steps": 5}},
        },
        "batch_size": 8,
        "craft_batch_size": 4,
    },
}
CACHED = {"cache_dir": "cache", "prefill": True, "variants": 3}
SMALL = {"name": "small_cnn", "learning_rate": 0.02}
REDRL = {"width": 4, "blocks": 1, "recognizer": "small", "weight_features": 0, "schedule": "onecycle"}


def _writer(form):
    return {"callbacks": [{"class_path": "AdversarialWriter", "init_args": {"form": form, "max_images_per_shard": 6}}]}


JOBS = {
    "victim": ("fit", {"model": {"class_path": "VictimClassifier", "init_args": SMALL}, "data": ARRAYS}),
    "adversarial": (
        "fit",
        {
            "model": {
                "class_path": "AdversarialTraining",
                "init_args": {**SMALL, "attack": {"class_path": "PGD", "init_args": {"eps": 0.05, "steps": 4}}},
            },
            "data": ARRAYS,
        },
    ),
    # crafts into the cache before it trains
    "redrl": (
        "fit",
        {
            "model": {"class_path": "REDRL", "init_args": REDRL},
            "data": {**ADVERSARIAL, "init_args": {**ADVERSARIAL["init_args"], **CACHED}},
            "trainer": {"max_epochs": 2},
        },
    ),
    "folder": ("predict", {"model": {"class_path": "Crafting"}, "data": ADVERSARIAL, "trainer": _writer("folder")}),
    "webdataset": (
        "predict",
        {"model": {"class_path": "Crafting"}, "data": ADVERSARIAL, "trainer": _writer("webdataset")},
    ),
}
ARGUMENTS = {
    "fit": ["fit", "--config=job.yaml", "--run_dir=run", "--ckpt_path=auto"],
    "predict": ["predict", "--config=job.yaml", "--run_dir=run"],
}


def prepare(folder, job):
    """Makes the folder of a run."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (61, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(61) % 3
    np.savez(folder / "images.npz", x_train=images[:48], y_train=labels[:48], x_test=images[48:], y_test=labels[48:])
    subcommand, config = JOBS[job]
    config = {**config, "trainer": {**TRAINER, **config.get("trainer", {})}}
    if subcommand == "fit":
        config["checkpoint"] = {"every_n_train_steps": 3}
    (folder / "job.yaml").write_text(yaml.safe_dump(config))
    return folder


def fork(folder, job):
    """Forks a run that Python code starts: no command line is parsed, which takes longer than the run."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(folder, job))
    process.start()
    return process


def command(folder, job):
    """Starts a run as users do."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(runs.__file__).parent.parent)}
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lit_adv", *ARGUMENTS[JOBS[job][0]]],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return _Process(process)


def fork_command(folder, *arguments, **environment):
    """Forks a run of the command line, without the time that importing takes."""
    process = multiprocessing.get_context("fork").Process(target=_command, args=(folder, arguments, environment))
    process.start()
    return process


def _command(folder, arguments, environment):
    os.chdir(folder)
    os.environ.update(environment)
    # in place of those of pytest, too
    sys.stdout = sys.stderr = output = open("output.txt", "a", buffering=1)  # noqa: SIM115
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if "LARGEST_FILE" in environment:
        size = int(environment["LARGEST_FILE"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    # what the tests' own process has of signals
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    sys.argv = ["lightning", *arguments]
    cli.main()


class _Process:
    """A subprocess with the names of multiprocessing."""

    def __init__(self, process):
        self.process, self.pid = process, process.pid

    def join(self, seconds):
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def is_alive(self):
        return self.process.poll() is None

    @property
    def exitcode(self):
        return self.process.poll()


def _run(folder, job):
    os.chdir(folder)
    # in place of those of pytest, too
    sys.stdout = sys.stderr = output = open("output.txt", "a", buffering=1)  # noqa: SIM115
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    config = yaml.safe_load(Path("job.yaml").read_text())
    torch.manual_seed(0)
    images, task = made(config["data"]), made(config["model"])
    writers = [made(each) for each in config["trainer"].pop("callbacks", [])]
    trainer = pl.Trainer(
        **{**config["trainer"], "logger": [runs.MetricsFile("run")]},
        callbacks=[*writers, runs.Checkpoint(**config.get("checkpoint", {})), runs.StopSignals()],
        default_root_dir="run",
        num_sanity_val_steps=0,
        inference_mode=False,
    )
    if JOBS[job][0] == "predict":
        trainer.predict(task, datamodule=images, return_predictions=False)
        return
    last = Path("run/checkpoints/last.ckpt")
    trainer.fit(task, datamodule=images, ckpt_path=last if last.is_file() else None, weights_only=True)


def made(config):
    """The object that a config describes, all of whose classes are of this package."""
    if isinstance(config, list):
        return [made(each) for each in config]
    if not isinstance(config, dict):
        return config
    if "class_path" not in config:
        return {key: made(value) for key, value in config.items()}
    places = (tasks, data, models, attacks, callbacks)
    found = next(getattr(place, config["class_path"]) for place in places if hasattr(place, config["class_path"]))
    return found(**made(config.get("init_args", {})))


def to_the_end(folder, job, start=fork):
    """One run that nobody disturbs; its seconds, and those after it has left something for the first time."""
    began = time.monotonic()
    process = start(folder, job)
    _until_it_leaves_something(process, folder)
    first = time.monotonic()
    process.join(120)
    assert process.exitcode == 0, (folder / "output.txt").read_text()[-3000:]
    return time.monotonic() - began, time.monotonic() - first


def _until_it_leaves_something(process, folder):
    before = marks(folder)
    while process.is_alive() and marks(folder) == before:
        process.join(0.01)


def kill(folder, job, count, seed, seconds, start=fork):
    """Kills a run so many times, each after a share of its `seconds`, and then lets it come to its end.

    Every second time, it is let do something first, so that the whole moves on on a slow machine too.

    A run that has come to its end before it was struck is taken away, and another begins.

    Returns:
        How much was done at each kill: steps trained, or files there.
    """
    draws, done = random.Random(seed), []
    while len(done) < count:
        process = start(folder, job)
        if len(done) % 2:
            _until_it_leaves_something(process, folder)
            process.join(seconds[1] * draws.uniform(0, 0.8))
        else:
            process.join(seconds[0] * draws.uniform(0.1, 0.9))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join(30)
        assert process.exitcode in (0, -signal.SIGKILL), (folder / "output.txt").read_text()[-3000:]
        if process.exitcode == 0:
            for place in ("run", "cache"):
                shutil.rmtree(folder / place, ignore_errors=True)
        else:
            done.append(progress(folder))
    to_the_end(folder, job, start)
    return done


def marks(folder):
    """What changes where a run leaves something: its last checkpoint's time, and the number of files."""
    with suppress(FileNotFoundError):  # what is written first has another name
        last = folder / "run/checkpoints/last.ckpt"
        files = [path for path in folder.rglob("*") if path.parent != folder]
        return last.stat().st_mtime_ns if last.is_file() else 0, len(files)
    return None


def progress(folder):
    """Steps trained, or else files there."""
    last = folder / "run/checkpoints/last.ckpt"
    if last.is_file():
        return torch.load(last, weights_only=True)["global_step"]
    return sum(path.is_file() for path in folder.rglob("*"))


@contextmanager
def closed_port():
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


def hashes(folder):
    """SHA-256 of every file of a folder, by its name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def differences(job, whole, other):
    """What a run that was killed has otherwise than one that was not; empty where all is the same."""
    found = []
    if JOBS[job][0] == "predict":
        one, two = hashes(whole / "run/adversarial"), hashes(other / "run/adversarial")
        return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    found += [str(path) for path in other.rglob(".*.tmp*")]
    one, two = hashes(whole / "cache"), hashes(other / "cache")
    found += sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    for name in ("best", "last"):
        first, second = (
            torch.load(folder / "run/checkpoints" / f"{name}.ckpt", weights_only=True) for folder in (whole, other)
        )
        for key in ("epoch", "global_step"):
            found += [f"{name}: {key} {first[key]}, {second[key]}"] if first[key] != second[key] else []
        weights = (first["state_dict"], second["state_dict"])
        assert weights[0].keys() == weights[1].keys()
        found += [f"{name}: {key}" for key in weights[0] if not torch.equal(*(each[key] for each in weights))]
        states = (content["optimizer_states"][0]["state"] for content in (first, second))
        found += [] if _same(*states) else [f"{name}: the optimiser's state"]
    return found


def _same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    given = parser.parse_args()
    wrong = False
    for job in given.jobs:
        with tempfile.TemporaryDirectory() as place:
            one, other = (prepare(Path(place) / name, job) for name in ("one", "other"))
            seconds = to_the_end(one, job, command)
            done = kill(other, job, given.kills, given.seed, seconds, command)
            found = differences(job, one, other)
        wrong = wrong or bool(found)
        print(f"{job}: {seconds[0]:.1f} s, {given.kills} kills at {done}: {found or 'the same'}", flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
