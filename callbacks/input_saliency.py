"""Which pixels make the filters stand out: heat maps over some clean and adversarial images, at the end of a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytorch_lightning as pl

from lit_adv.attacks import Attack
from lit_adv.explain import heat_map, input_saliency
from lit_adv.plots import HeatMap, heat_map_figure

from .figures import log_figure
from .saliency_callback import SaliencyCallback
from .shown_images import gathered


class InputSaliency(SaliencyCallback):
    """Input-space saliency maps of some test images under each attack (Souri et al. 2021, section 5.2, Figures 6, 7).

    Draws for each victim ``figures/input_saliency.png``: the images clean and under each attack, and below them the
    heat maps of `input_saliency`, for the true class, laid over them. Victims, attacks and statistics are those of
    `SaliencyProfile`, which it may stand beside.

    Args:
        attacks: By any names, where there is no AdversarialDataModule; None takes those of the data module.
        examples: The images: their positions in the test set, or, where batches are (images, labels), in the first
            batch of the main process.
        n: How many filters are boosted.
        boost: Factor by which they are.
        channel: See `input_saliency`.
        absolute: Absolute standardised saliency, as in equation 6; the authors' code has the sign.
        shown: The attacks in the figure, in this order; None shows all, the clean images first.
        statistics_dir: See `SaliencyProfile`.
        chunk_size: Most images whose saliency is computed at once.
        seed: Of `attacks`.
        floor: Least standard deviation of a filter, see `SaliencyProfile`.

    Raises:
        ValueError: An argument is out of range; in the test, data and `attacks` that do not fit, or no validation set.
    """

    def __init__(
        self,
        attacks: dict[str, Attack] | None = None,
        examples: Sequence[int] = (0, 1, 2, 3),
        n: int = 10,
        boost: float = 100.0,
        channel: Literal["abs_then_max", "max_then_abs"] = "abs_then_max",
        absolute: bool = False,
        shown: Sequence[str] | None = None,
        statistics_dir: str | None = None,
        chunk_size: int | None = None,
        seed: int = 0,
        floor: float = 0.0,
    ) -> None:
        super().__init__(attacks, statistics_dir, chunk_size, seed, floor)
        if not examples or min(examples) < 0 or len(set(examples)) < len(examples):
            raise ValueError(f"InputSaliency: examples must be different positions >= 0, got {list(examples)}")
        if n < 1 or not boost >= 0:
            raise ValueError(f"InputSaliency: n must be at least 1 and boost at least 0, got {n} and {boost}")
        if channel not in ("abs_then_max", "max_then_abs"):
            raise ValueError(f"InputSaliency: channel must be abs_then_max or max_then_abs, got {channel!r}")
        self.examples = list(examples)
        self.n = n
        self.boost = boost
        self.channel = channel
        self.absolute = absolute
        self.shown = None if shown is None else list(shown)
        self._found: dict[tuple[str, str, int], HeatMap] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._found = {}
        super().on_test_start(trainer, pl_module)
        keys = self._keys(trainer)
        unknown = [key for key in self.shown or () if key not in keys]
        if unknown:
            raise ValueError(f"InputSaliency: shown must be attacks ({', '.join(keys)}), got {unknown[0]!r}")

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # where batches say nothing of positions, the first one alone has them
        if self.attacks is not None and (batch_idx or not trainer.is_global_zero):
            return
        for each in self._attacked(trainer, pl_module, batch, self.examples):
            statistics = self.statistics[each.victim]
            maps = input_saliency(
                each.model,
                each.images,
                each.labels,
                statistics,
                n=min(self.n, sum(statistics.layers.values())),
                boost=self.boost,
                channel=self.channel,
                absolute=self.absolute,
                floor=self.floor,
                chunk_size=self.chunk_size,
            )
            images, shown = each.images.float().cpu(), heat_map(maps).float().cpu()
            columns = (part.tolist() for part in (each.index, each.labels, each.after))
            for row, (place, label, after) in enumerate(zip(*columns, strict=True)):
                caption = "right" if after == label else f"taken for {after}"
                one = HeatMap(images[row].clone(), shown[row].clone(), f"class {label}", caption)
                self._found[each.attack, each.victim, place] = one

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # which process has an image depends on the attack
        self._found = {name: shown for each in gathered(self._found) for name, shown in each.items()}

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        keys = self.shown or self._keys(trainer)
        for victim in self.statistics:
            mine = {
                f"image {place}": {
                    key: self._found[key, victim, place] for key in keys if (key, victim, place) in self._found
                }
                for place in self.examples
            }
            mine = {name: maps for name, maps in mine.items() if maps}
            if not mine or {len(each.image) for maps in mine.values() for each in maps.values()} - {1, 3}:
                continue
            suffix, where = (f"_{victim}", victim) if self._several else ("", victim or type(pl_module).__name__)
            title = f"Input saliency: {where}, {'absolute' if self.absolute else 'signed'}"
            log_figure(trainer, f"input_saliency{suffix}", heat_map_figure(mine, keys, title))
