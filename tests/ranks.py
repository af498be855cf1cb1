"""Runs a function of a file on so many gloo processes: `python ranks.py FILE FUNCTION FOLDER WORLD [WORLD ...]`.

torch and Lightning are imported once and the ranks forked from there, as an import costs more than most of the cases.
Each world has a folder of its own, `FOLDER/WORLD`, which the function is called with; several worlds run at the same
time. A rank that fails takes all others with it, and nothing outlives the deadline.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

VARIABLES = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")


def clean_environment():
    """This process's environment without what ranks, or earlier tests of this process, leave in it."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "MPLBACKEND": "agg"}


def launch(file, function, folder, worlds=(1, 2, 3), timeout=200):
    """Calls `function` of `file` on every rank of every world; returns the worlds' folders."""
    command = [sys.executable, __file__, str(file), function, str(folder), *map(str, worlds)]
    environment = {**clean_environment(), "DEADLINE": str(timeout)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout + 60, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return [Path(folder) / str(world) for world in worlds]


def main(file, function, folder, *worlds):
    import lit_adv.callbacks
    import matplotlib.pyplot  # noqa: F401
    import torch

    import lit_adv.tasks  # noqa: F401

    torch.set_num_threads(1)
    deadline = time.monotonic() + float(os.environ["DEADLINE"])
    running = {}
    for world in map(int, worlds):
        place = Path(folder) / str(world)
        place.mkdir(parents=True)
        port = free_port()
        for rank in range(world):
            pid = os.fork()
            if not pid:
                child(file, function, place, world, rank, port)
            running[pid] = place / f"rank{rank}.log"
    failed = None
    while running and failed is None and time.monotonic() < deadline:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            log = running.pop(pid)
            failed = (log, f"ended with {os.waitstatus_to_exitcode(status)}") if status else None
        else:
            time.sleep(0.02)
    if running and failed is None:
        failed = next(iter(running.values())), "did not end in time"
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if failed is not None:
        sys.exit(f"{failed[0]} {failed[1]}:\n{failed[0].read_text()[-3500:]}")


def child(file, function, place, world, rank, port):
    """One rank; never returns."""
    code = 1
    try:
        log = os.open(place / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if world > 1:
            named = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in named.items()}, MASTER_ADDR="127.0.0.1")
            from pytorch_lightning.utilities.rank_zero import rank_zero_only

            rank_zero_only.rank = rank  # which Lightning has looked up when it was imported
        found = importlib.util.spec_from_file_location("cases", file)
        module = importlib.util.module_from_spec(found)
        sys.modules["cases"] = module
        found.loader.exec_module(module)
        getattr(module, function)(place, world)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    main(*sys.argv[1:])
