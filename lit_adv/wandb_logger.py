"""Weights & Biases that never holds up a run: without a server or a key, everything is kept here."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from http.client import HTTPException
from netrc import NetrcParseError, netrc
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only


class PatientWandbLogger(WandbLogger):
    """WandbLogger that goes on offline, with one line that says so, where Lightning's stops, waits or asks.

    That is where there is no API key, and where the server does not answer in time. `wandb sync FOLDER`, which the
    line names, uploads later what was logged. `WANDB_MODE` and `WANDB_BASE_URL` hold as ever.

    Args:
        save_dir: Where the files go; `<run>` in a config is the run's folder.
        project: The project's name.
        offline: Do not even try.
        wait: Seconds in which the server must answer before training starts.
        **kwargs: Any other argument of WandbLogger and `wandb.init`.
    """

    def __init__(
        self,
        save_dir: str = ".",
        project: str | None = None,
        offline: bool = False,
        wait: float = 10.0,
        **kwargs: Any,
    ) -> None:
        if not wait > 0:
            raise ValueError(f"PatientWandbLogger: wait must be above 0 seconds, got {wait:g}")
        problem = ""
        asked = not offline and os.environ.get("WANDB_MODE", "online") == "online"
        if asked and int(getattr(rank_zero_only, "rank", 0) or 0) == 0:
            problem = _problem(wait)
        if asked:
            import wandb

            kwargs.setdefault("settings", wandb.Settings(init_timeout=max(wait, 1), silent=True))
        super().__init__(project=project, save_dir=save_dir, offline=offline or bool(problem), **kwargs)
        self._problem = problem

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, made at its first use."""
        if self._experiment is None:
            import wandb

            try:
                self._begin()
            except wandb.errors.Error as error:
                if self._offline:
                    raise
                # the server answers, and takes no run
                self._problem = str(error).splitlines()[0]
                self._offline = True
                self._wandb_init["mode"] = "offline"
                self._begin()
            if self._problem:
                folder = os.path.dirname(str(self._experiment.dir))  # type: ignore[attr-defined]
                print(f"W&B: {self._problem}; logged offline, to be uploaded with: wandb sync {folder}", flush=True)
        return self._experiment

    def _begin(self) -> None:
        _ = WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]


def _problem(wait: float) -> str:
    """Why a run cannot be logged online; empty where it seems that it can."""
    import wandb

    server = os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)
    if not _has_key(server):
        return f"there is no API key for {server} (wandb login, or WANDB_API_KEY)"
    try:
        with urllib.request.urlopen(server, timeout=wait):
            return ""
    except urllib.error.HTTPError:
        return ""  # it answers
    except (OSError, ValueError, HTTPException) as error:
        return f"{server} does not answer ({getattr(error, 'reason', error)})"


def _has_key(server: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc(os.environ.get("NETRC") or None).authenticators(str(urlsplit(server).hostname)) is not None
    except (OSError, NetrcParseError):
        return False
