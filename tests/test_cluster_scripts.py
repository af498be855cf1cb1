"""The scripts for clusters."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import kills

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("script", ["slurm/train.sbatch", "torchrun/train.sh"])
def test_the_shell_understands_it(script):
    subprocess.run(["bash", "-n", str(EXAMPLES / script)], check=True)


def test_the_batch_script_asks_for_all_that_requeueing_needs(tmp_path):
    script = EXAMPLES / "slurm/train.sbatch"
    text = script.read_text()
    for option in ("--signal=SIGUSR1@120", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {option}\n" in text
    # what it runs, with a stand-in for srun
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    given = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "8"}
    environment = {**os.environ, **given, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(script), "--config", "a b.yaml", "--run_dir", "r"], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:8] == [
        *("--kill-on-bad-exit=1", "lightning", "fit", "--config", "a b.yaml", "--run_dir", "r", "--ckpt_path"),
    ]
    assert {"auto", "--trainer.num_nodes=2", "--trainer.devices=4"} <= set(done.stdout.split("\n"))


def torchrun(folder):
    """The script with two processes."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/torchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    (folder / "bin/torchrun").chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        head = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE")}
    environment |= {"PATH": f"{folder}/bin:{os.environ['PATH']}", "PROCESSES": "2", "HEAD": head, "SAVE_EVERY": "2"}
    environment |= {"PYTHONPATH": str(EXAMPLES.parent), "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    options = ["--config=job.yaml", "--run_dir=run", "--trainer.max_epochs=6"]
    script = ["bash", str(EXAMPLES / "torchrun/train.sh"), *options]
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(script, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_torchrun_stopped_by_sigterm_and_started_again_gives_the_same(tmp_path):
    whole, other = (kills.prepare(tmp_path / name, "adversarial") for name in ("whole", "other"))
    assert torchrun(whole).wait(200) == 0, (whole / "output.txt").read_text()[-3000:]
    process = torchrun(other)
    deadline = time.monotonic() + 150
    while not (other / "run/checkpoints/last.ckpt").is_file():
        assert process.poll() is None, (other / "output.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) != 0
    text = (other / "output.txt").read_text()
    assert "stopped by SIGTERM in epoch" in text, text[-3000:]
    assert torchrun(other).wait(200) == 0, (other / "output.txt").read_text()[-3000:]
    assert "resuming from run/checkpoints/last.ckpt" in (other / "output.txt").read_text()
    assert kills.differences("adversarial", whole, other) == []
