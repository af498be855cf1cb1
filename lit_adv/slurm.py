"""A SLURM job puts itself into the queue again when its time is up."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from lightning_fabric.plugins.environments import SLURMEnvironment


def requeue(trainer: Any) -> str:
    """Runs `scontrol requeue` for this job, unless the trainer's `SLURMEnvironment` has `auto_requeue: false`.

    SLURM then ends the job and starts its script again, under the same number.

    Returns:
        What was done, in words.
    """
    environment = getattr(getattr(trainer, "_accelerator_connector", None), "cluster_environment", None)
    if isinstance(environment, SLURMEnvironment) and not environment.auto_requeue:
        return "not requeued, since auto_requeue is off (submit the same script again)"
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        problem = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    return (
        f"job {job} could not be requeued: {problem} (submit the same script again)"
        if problem
        else (f"requeued as job {job}")
    )
