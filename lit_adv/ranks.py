"""What the processes of one run do when one of them ends before its time: say so, and end as well.

Lightning 2.6 looks after the processes that it starts, but kills its own without a word; nobody looks after processes
whose starter was killed, which craft for hours before they ask the others for anything.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch.distributed as dist

# How the ranks that Lightning starts know whom to watch.
_STARTER = "LIT_ADV_STARTED_BY"
# Seconds between two looks; that an error may take to end a process by itself; that whole ranks may end apart.
_INTERVAL, _GRACE, _LAST = 0.5, 5.0, 120.0


class LostRank(Exception):
    """Another process of the run has ended, or does not answer; the message says which and how to go on."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class RankWatch:
    """Watches the processes that this one has started, or the one that has started this one.

    A thread looks twice a second, as a process that crafts, or waits in a collective operation, hears of nothing. It
    prints what has happened, leaves the main thread some seconds to end by itself, and then ends the process.

    Args:
        started: The processes that this one has started, those of rank 1, 2, ... in turn; empty in all others.
        advice: What to tell beside: how to go on.
        is_ending: Whether this process is ending of its own, as after Ctrl-C.
    """

    def __init__(
        self,
        started: Callable[[], Sequence[subprocess.Popen[bytes]]],
        advice: Callable[[], str],
        is_ending: Callable[[], bool],
    ) -> None:
        self.started, self.advice, self.is_ending = started, advice, is_ending
        self.starter = _starter()
        self._over = threading.Event()
        self._said = threading.Lock()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches for the length of the block; whatever ends it, the processes that were started end too.

        Raises:
            LostRank: In place of the error that another process's end has caused here, or after the block, where
                another process has failed after this one was done.
        """
        before = os.environ.get(_STARTER)
        os.environ[_STARTER] = str(os.getpid())
        threading.Thread(target=self._watch, daemon=True, name="rank-watch").start()
        try:
            yield
            self._wait(_LAST)
            lost = self._lost()
            if lost:
                raise LostRank(*self._message(lost))
        except BaseException as error:
            stopping = self.is_ending() or isinstance(error, (LostRank, KeyboardInterrupt))
            if not stopping and _is_of_another(error):
                # sockets close a little before their process is seen to have ended
                deadline = time.monotonic() + (_GRACE if self.started() else 1)
                while not (lost := self._lost()) and not self._is_orphan() and time.monotonic() < deadline:
                    time.sleep(0.05)
                self._claim()
                raise LostRank(*(self._message(lost) if lost else self._no_answer(error))) from error
            raise
        finally:
            self._over.set()
            self._end()
            if before is None:
                del os.environ[_STARTER]
            else:
                os.environ[_STARTER] = before

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL):
            # Lightning's own would kill this process before it has said anything
            for thread in threading.enumerate():
                if thread.name == "child-process-observer":
                    vars(thread)["_child_processes"] = []
            lost, orphaned = self._lost(), self._is_orphan()
            if (not lost and not orphaned) or self.is_ending():
                continue
            message, code = self._message(lost) if lost else self._orphaned()
            # an error that the same end has caused in the main thread is nearer to it, and ends it in order
            self._over.wait(_GRACE if not orphaned else _INTERVAL)
            if self._over.is_set() or not self._said.acquire(blocking=False):
                return
            print(f"error: {message}", file=sys.stderr, flush=True)
            self._end()
            os._exit(code)

    def _is_orphan(self) -> bool:
        return self.starter is not None and os.getppid() != self.starter

    def _claim(self) -> None:
        """Keeps the thread from speaking as well."""
        self._said.acquire(blocking=False)

    def _lost(self) -> list[tuple[int, subprocess.Popen[bytes]]]:
        return [(rank, each) for rank, each in enumerate(self.started(), 1) if each.poll() not in (None, 0)]

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any(each.poll() is None for each in self.started()) and time.monotonic() < deadline:
            if self._lost():
                return
            time.sleep(0.02)

    def _end(self) -> None:
        """Ends the processes that were started and still run: they wait for one that is gone."""
        left = [each for each in self.started() if each.poll() is None]
        deadline = time.monotonic() + 2
        while any(each.poll() is None for each in left) and time.monotonic() < deadline:
            time.sleep(0.02)
        for each in left:
            if each.poll() is None:
                with suppress(OSError):
                    each.kill()
                each.wait()

    def _message(self, lost: Sequence[tuple[int, subprocess.Popen[bytes]]]) -> tuple[str, int]:
        said = [f"rank {rank} (process {each.pid}) {_ending(int(each.returncode))}" for rank, each in lost]
        terminated = all(each.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM) for _, each in lost)
        code = 128 + signal.SIGTERM if terminated else 1
        return f"{'; '.join(said)}, and the run with it{self._advice()}", code

    def _orphaned(self) -> tuple[str, int]:
        return f"the process that started this one (process {self.starter}) has ended, and the run with it" + (
            self._advice()
        ), 1

    def _no_answer(self, error: BaseException) -> tuple[str, int]:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if self._is_orphan():
            return self._orphaned()
        if "timed out" in text.lower() or "timeout" in text.lower():
            what = (
                "another process of the run does not answer (it hangs, or works for longer than the timeout of"
                " trainer.strategy, 30 minutes by default: --trainer.strategy=DDPStrategy"
                " --trainer.strategy.timeout=HH:MM:SS)"
            )
        else:
            what = "the connection to another process of the run was lost (it has ended; what it said is above)"
        return f"{what}{self._advice()}", 1

    def _advice(self) -> str:
        advice = self.advice()
        return f"\n{advice}" if advice else ""


def _starter() -> int | None:
    """The process whose end is to be this one's: Lightning's rank 0, or torchrun."""
    given = os.environ.get(_STARTER)
    if given is not None and "LOCAL_RANK" in os.environ:
        return int(given)
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def _ending(code: int) -> str:
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        why = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was killed by {name}{why}"
    return f"ended with code {code} (what it said is above)"


def _is_of_another(error: BaseException) -> bool:
    """Whether an error tells of another process: a connection that broke, or a wait that was too long."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    marks = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, RuntimeError) and any(mark in text for mark in marks)
