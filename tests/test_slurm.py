"""A job whose time is up: it saves, is put into the queue again, and goes on as if nothing had been."""

import os
import random
import signal
import sys
import time

import pytest
import torch

from lit_adv import slurm
from tests import kills

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has threads"),
]
JOB = {"SLURM_JOB_ID": "42", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
JOB |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}
COMMAND = ("fit", "--config=job.yaml", "--run_dir=run", "--ckpt_path=auto", "--trainer.max_epochs=12")


@pytest.fixture
def queue(tmp_path):
    """A stand-in for `scontrol` on the PATH; the lines of what it was asked for."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    script.chmod(0o755)
    JOB["PATH"] = f"{tmp_path}/bin:{os.environ['PATH']}"
    return lambda: (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []


def said(folder):
    return (folder / "output.txt").read_text()


def stop(folder, processes, number, seconds):
    """Sends a signal some time after the first checkpoint."""
    deadline = time.monotonic() + 100
    while not (folder / "run/checkpoints/last.ckpt").is_file():
        assert all(process.is_alive() for process in processes), said(folder)[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(seconds)
    for process in reversed(processes):
        os.kill(process.pid, number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nobody stopped."""
    folder = kills.prepare(tmp_path_factory.mktemp("whole") / "whole", "adversarial")
    process = kills.fork_command(folder, *COMMAND)
    process.join(100)
    assert process.exitcode == 0, said(folder)[-2000:]
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_one_command_line_starts_and_goes_on(tmp_path, whole, queue, number, code):
    other = kills.prepare(tmp_path / "other", "adversarial")
    process = kills.fork_command(other, *COMMAND, **JOB)
    stop(other, [process], number, random.Random(int(number)).uniform(0, 0.2))
    process.join(60)
    assert process.exitcode == code, said(other)[-2000:]
    step = torch.load(other / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert 2 <= step < 60
    assert queue() == (["requeue 42"] if number == signal.SIGUSR1 else [])
    assert ("requeued as job 42" in said(other)) == (number == signal.SIGUSR1)
    assert not list(other.rglob("hpc_ckpt*"))
    process = kills.fork_command(other, *COMMAND, **JOB)
    process.join(100)
    assert process.exitcode == 0, said(other)[-2000:]
    assert "resuming from run/checkpoints/last.ckpt" in said(other)
    assert kills.differences("adversarial", whole, other) == []


def test_requeueing_that_fails_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "job 7 could not be requeued" in slurm.requeue(None)
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    (tmp_path / "scontrol").chmod(0o755)
    assert slurm.requeue(None) == "job 7 could not be requeued: no such job (submit the same script again)"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert "job 7_3 could" in slurm.requeue(None)


@pytest.mark.long
def test_two_ranks_stop_and_go_on_as_one(tmp_path, queue):
    options = (*COMMAND, "--trainer.strategy=ddp", "--trainer.devices=2")

    def start(folder):
        with kills.closed_port() as port:
            shared = {**JOB, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "MASTER_PORT": str(port)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
        ranks = ({"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in (0, 1))
        return [kills.fork_command(folder, *options, **{**shared, **rank}) for rank in ranks]

    whole, other = (kills.prepare(tmp_path / name, "adversarial") for name in ("whole", "other"))
    for process in start(whole):
        process.join(120)
        assert process.exitcode == 0, said(whole)[-3000:]
    first, second = start(other)
    stop(other, [first, second], signal.SIGUSR1, 0.1)
    first.join(60)
    assert first.exitcode == 138, said(other)[-3000:]
    second.kill()  # as SLURM does
    second.join()
    assert queue() == ["requeue 42"]
    assert torch.load(other / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] < 36
    for process in start(other):
        process.join(120)
        assert process.exitcode == 0, said(other)[-3000:]
    assert kills.differences("adversarial", whole, other) == []
