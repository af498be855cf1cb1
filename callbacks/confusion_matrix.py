"""Which attack is taken for which, as a figure."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from lit_adv.plots import confusion_figure

from .figures import log_figure
from .tables import percent


class ConfusionMatrix(pl.Callback):
    """Draws the confusion matrix of attack recognition after a test, as `figures/confusion.png` in the run folder.

    Reads `results["recognition"]` of the task, which holds counts over all processes; a task without it gets a warning
    and no figure. Lines part the families of `results["hierarchy"]`.
    """

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        results = getattr(pl_module, "results", None) or {}
        recognition = results.get("recognition")
        if not recognition:
            rank_zero_warn(
                f"ConfusionMatrix: no figure, since {type(pl_module).__name__} has no results['recognition'] "
                "(use this callback with REDRL)"
            )
            return
        title = f"Attack recognition: macro {percent(recognition['macro'])}, micro {percent(recognition['micro'])}"
        classes = results["classes"]
        # lines between families tell something only where there are several attacks in one
        found = (results.get("hierarchy") or {}).get("families")
        parted = {}
        if found and len(set(found.values())) < len(classes):
            parted["families"] = [found[name] for name in classes]
        log_figure(trainer, "confusion", confusion_figure(recognition["confusion"], classes, title, **parted))
