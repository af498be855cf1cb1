"""A rank that dies or fails, in training, crafting and evaluation: the run says so, ends at once and can go on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from lit_adv.ranks import LostRank, RankWatch
from tests.ranks import clean_environment

# crafts, but on one rank does something else, at one of its calls
ODD = """
import os, signal, time
from dataclasses import dataclass
from lit_adv.attacks import FGSM

@dataclass(frozen=True, kw_only=True)
class Odd(FGSM):
    def _attack(self, *given, **named):
        Odd.calls += 1
        what = os.environ.get("ODD_" + os.environ.get("LOCAL_RANK", "0"))
        if what and Odd.calls == (1 if what == "sleep" else 4):
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "raise":
                raise ValueError("Odd: this image cannot be crafted (take another)")
            time.sleep(600)
        return super()._attack(*given, **named)

Odd.calls = 0
"""
ATTACK = {"class_path": "odd.Odd", "init_args": {"eps": 0.1}}
SOURCE = {
    "class_path": "Digits",
    "init_args": {"image_size": 8, "batch_size": 6, "train_limit": 24, "validation": 8, "test_limit": 21},
}
TRAINING = {
    "class_path": "AdversarialTraining",
    "init_args": {"name": "small_cnn", "attack": ATTACK, "val_attack": "FGSM"},
}
TABLE = {"class_path": "RobustnessTable", "init_args": {"attacks": {"odd": ATTACK}}}
SMALL = {
    "class_path": "lit_adv.models.Classifier",
    "init_args": {"name": "small_cnn", "num_classes": 10, "image_size": 8},
}
SMALL["init_args"]["in_channels"] = 1
CRAFTED = {
    "class_path": "AdversarialDataModule",
    "init_args": {"source": SOURCE, "victims": {"a": SMALL}, "attacks": {"odd": ATTACK}, "eval_batch_size": 2},
}
WRITER = {"class_path": "AdversarialWriter", "init_args": {"max_images_per_shard": 3}}
JOBS = {
    "fit": {"model": TRAINING, "data": SOURCE, "trainer": {"max_epochs": 50}},
    "test": {"model": TRAINING, "data": SOURCE, "untrained": True, "trainer": {"callbacks": [TABLE]}},
    "predict": {"model": {"class_path": "Crafting"}, "data": CRAFTED, "trainer": {"callbacks": [WRITER]}},
}
JOBS["test"]["data"] = {**SOURCE, "init_args": {**SOURCE["init_args"], "eval_batch_size": 2}}


def environment_for(folder):
    return {**clean_environment(), "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def start(folder, subcommand, odd, launcher=()):
    """Two ranks of a job, of which one is to do something odd; with `launcher` not started by Lightning."""
    (folder / "odd.py").write_text(ODD)
    (folder / "job.yaml").write_text(yaml.safe_dump(JOBS[subcommand]))
    options = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--run_dir=here"]
    command = [sys.executable, "-m", *launcher, "lit_adv", subcommand, "--config", "job.yaml", *options]
    environment = {**environment_for(folder), **{f"ODD_{rank}": what for rank, what in odd.items()}}
    return subprocess.Popen(
        [*command, "--trainer.enable_progress_bar=false", "--allow-any-class"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process, timeout=100):
    """What a run printed, once it and all that it started have ended; within the timeout."""
    try:
        printed = process.communicate(timeout=timeout)[0]  # all that hold the pipe have closed it
        deadline = time.monotonic() + 10
        while (left := of_session(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left
        return printed
    finally:
        for pid in of_session(process.pid):
            os.kill(pid, signal.SIGKILL)


def of_session(number):
    """The processes of a session that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = file.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has ended in this moment
        if int(session) == number and state != "Z":
            found.append(int(file.parent.name))
    return found


@pytest.mark.slow
def test_a_rank_that_is_killed_in_training_ends_the_run_which_goes_on_later(tmp_path):
    began = time.monotonic()
    process = start(tmp_path, "fit", {1: "kill"})
    printed = ended(process)
    assert process.returncode == 1, printed
    assert re.search(r"error: rank 1 \(process \d+\) was killed by SIGKILL .* and the run with it\n", printed), printed
    assert "resume with: lightning fit --allow-any-class --config here/config.yaml --ckpt_path last" in printed
    assert "Traceback" not in printed
    assert time.monotonic() - began < 80
    last = tmp_path / "here" / "checkpoints" / "last.ckpt"
    epoch = torch.load(last, weights_only=True)["epoch"]
    resume = ["fit", "--config", "here/config.yaml", "--ckpt_path", "last", f"--trainer.max_epochs={epoch + 2}"]
    one = ["--trainer.devices=1", "--trainer.strategy=auto", "--allow-any-class"]
    environment = {
        **clean_environment(),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "lit_adv", *resume, *one]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert torch.load(last, weights_only=True)["epoch"] == epoch + 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("subcommand", "odd", "words", "codes"),
    [
        # rank 0 is busy on its own, as for hours in crafting, and hears of nothing
        ("test", {0: "sleep", 1: "kill"}, r"error: rank 1 \(process \d+\) was killed by SIGKILL", (1,)),
        # and its own end is to leave no process behind
        ("predict", {0: "kill", 1: "sleep"}, r"error: the process that started this one .* has ended", (-9,)),
    ],
)
def test_no_rank_works_on_alone(tmp_path, subcommand, odd, words, codes):
    process = start(tmp_path, subcommand, odd)
    printed = ended(process)
    assert process.returncode in codes, printed
    assert re.search(words, printed), printed


@pytest.mark.long
def test_torchrun_fails_where_a_rank_fails_which_says_why(tmp_path):
    process = start(tmp_path, "fit", {1: "raise"}, ["torch.distributed.run", "--nproc-per-node=2", "-m"])
    printed = ended(process)
    assert process.returncode == 1, printed
    assert "ValueError: Odd: this image cannot be crafted" in printed
    assert "ChildFailedError" in printed


def test_endings_are_told_apart():
    """Without a run: what the main thread says of the processes that it has started."""
    import subprocess as processes

    codes = ["import os; os.kill(os.getpid(), 9)", "import sys; sys.exit(3)", "pass"]
    started = [processes.Popen([sys.executable, "-S", "-c", code]) for code in codes]
    for each in started:
        each.wait()
    watch = RankWatch(lambda: started, lambda: "go on", lambda: False)
    with pytest.raises(LostRank) as caught, watch.watching():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection closed by peer")
    said = str(caught.value)
    assert re.fullmatch(
        r"rank 1 \(process \d+\) was killed by SIGKILL \(out of memory\?\); rank 2 \(process \d+\) ended with code 3"
        r" \(what it said is above\), and the run with it\ngo on",
        said,
    )
    # an error of this process's own stays what it is, and ends the others
    running = [processes.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"])]
    with pytest.raises(ValueError, match="mine"), RankWatch(lambda: running, str, lambda: False).watching():
        raise ValueError("mine")
    assert running[0].returncode == -signal.SIGKILL
    # one that fails after rank 0 was done
    with pytest.raises(LostRank, match=r"rank 2 .* ended with code 3"), watch.watching():
        pass
    with pytest.raises(LostRank, match=r"does not answer .* timeout"), RankWatch(list, str, lambda: False).watching():
        raise RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 10000ms for recv operation")
