"""Are there pixels that only the attacker needs, and what is it worth to block them? Scores, table and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import rich
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lit_adv.attacks import BIM, FGSM, PGD, Attack, RandFGSM
from lit_adv.explain import gradient_map, importance_map, perturbation_map
from lit_adv.explain.regions import Cam
from lit_adv.files import safe_names, write_json, write_rows
from lit_adv.metrics import NeutralizationScore
from lit_adv.models import Classifier, NeutralizationDefense, neutralize
from lit_adv.plots import RegionExample

from .blob_row import BlobRow, same_blobs, total
from .blob_search import (
    BlobFrom,
    BlobSearch,
    Choice,
    Keep,
    Point,
    RegionCounts,
    common_choice,
    grid_points,
    wanted_blobs,
)
from .class_pairs import ClassPair, Decision
from .clean_batches import TrainingBatches, check_clean, test_batches
from .figures import log_figure
from .loggers import log_numbers, log_table
from .neutralization_figures import MOST, accuracies_figure, common_figure, examples_figure, region_examples
from .neutralization_tables import SETTINGS, neutralization_rows, neutralization_table
from .repeats import fresh_pair
from .tables import print_path


class Neutralization(pl.Callback):
    """Isolates the pixels that only the attack needs, blocks them, and scores the classifier before and after.

    For tasks whose ``forward`` maps images to logits, on batches (images, labels). For every class pair, source and
    target: the RoI of the source class' training images (class activation of the source class on the clean image), the
    RoA (what ``map_attack`` changes most), and the blob of the pixels that lie outside the one and inside the other in
    a share theta of the images. Then, on the source class' test images, these accuracies with Wilson intervals:

    - ``clean`` and ``adversarial``, under ``attack``, of the classifier as it is;
    - ``modified``: the blob takes ``value``; ``modified_adversarial``: these images attacked, the attacker free to
      write into the blob; ``reneutralised``: the same with the blob blocked once more, as a deployed defence does;
    - ``unaware``: the defended classifier on images made against the bare one;
    - ``strong`` and ``adaptive``: ``adaptive_attack`` on the bare classifier, and on the defended one, whose blob the
      attacker then knows. Judge the defence by the last;
    - ``target_clean`` and ``target_modified``: the target class' test images, which the defence blocks as well. A blob
      that turns everything into the source class is seen here.

    Writes ``neutralization.csv`` and ``neutralization.json``, figures (examples, representatives, accuracies), and
    where the task holds a `Classifier` each blob as ``neutralization/<source>_to_<target>_<chosen>.safetensors``, a
    victim for any config; prints the table and logs ``neutralization/<pair>/<chosen>/<score>``. Several processes give
    the numbers of one. The SSIM of RoI and RoA is that of the test images.

    Args:
        attack: Under which the accuracies are; one step where blobs are searched, which keeps to three forward passes.
        pairs: Source and target classes; None takes all ordered pairs.
        delta1: Of the RoI, on the activation's scale of [0, 1].
        delta2: Of the RoA: a share of the image's largest perturbation, or pixel units where not ``relative``.
        theta: Of the blob, a share of the images.
        search: Also choose the three on the training split, by ``grid``, for each pair and for all pairs together: the
            best ``modified_adversarial`` of those blobs that cost at most ``max_drop`` of the clean accuracy. Where
            none does better than nothing, nothing is blocked.
        grid: Values of each of the three in the search.
        max_drop: Accuracy that a blob may cost on the training split.
        keep: Whose accuracy that is: the ``source`` class' as in the paper, which a blob keeps best that turns
            everything into it, or that of ``both`` classes.
        value: What blocked pixels become, before normalisation.
        protocol: ``split``, or ``paper``: the regions are those of the test images, on which the scores are then too
            good.
        decision: ``pair`` reads the two classes' logits alone, a binary problem as in the paper; ``all`` all classes'.
        map_attack: Whose perturbation is the RoA; None takes ten steps of the radius of a one-step sign attack, which
            itself has no grades, and else ``attack``. ``gradient`` takes the size of the loss' gradient.
        adaptive_attack: Strong attack; None takes PGD with ``attack``'s radius, at most 20 steps, up to the first that
            succeeds, or, where that radius is neither of Linf nor of L2, ``attack``.
        relative: See ``delta2``.
        blob_from: ``images``: the share of images that have the pixel in RoA without RoI; ``representatives``: the
            shares of RoA and RoI, each by itself.
        cam: Activation map.
        layer: Name of the layer; None takes the last maps; see `grad_cam`.
        confidence: Of the intervals.
        examples: Images in the figure, for each of the first pairs.
        chunk_size: Most images that a search looks at together.
        seed: Of the attacks.

    Attributes:
        results: After a test, a dictionary for each row of the table.
        choices: The blobs, by (source, target) and ``given``, ``pair`` or ``all``.

    Raises:
        ValueError: An argument is out of range; in the test, pairs or data that do not fit.
    """

    SCORES = (
        *NeutralizationScore.SCORES,
        "unaware",
        "strong",
        "adaptive",
        "target_clean",
        "target_modified",
    )
    SETTINGS = SETTINGS

    def __init__(
        self,
        attack: Attack,
        pairs: Sequence[tuple[int, int]] | None = None,
        delta1: float = 0.5,
        delta2: float = 0.5,
        theta: float = 0.5,
        search: bool = False,
        grid: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        max_drop: float = 0.02,
        keep: Keep = "source",
        value: float = 0.0,
        protocol: Literal["split", "paper"] = "split",
        decision: Decision = "pair",
        map_attack: Attack | Literal["gradient"] | None = None,
        adaptive_attack: Attack | None = None,
        relative: bool = True,
        blob_from: BlobFrom = "images",
        cam: Cam = "grad_cam",
        layer: str | None = None,
        confidence: float = 0.95,
        examples: int = 2,
        chunk_size: int = 512,
        seed: int = 0,
    ) -> None:
        _check_choices(protocol=protocol, decision=decision, blob_from=blob_from, cam=cam, keep=keep)
        _check_attacks(attack, map_attack, adaptive_attack)
        self.pairs = None if pairs is None else _checked_pairs(pairs)
        if not grid:
            raise ValueError("Neutralization: grid must hold at least one value, got none")
        _check_numbers(delta1=[delta1], delta2=[delta2], theta=[theta], grid=grid)
        for name, number, low, high in (
            ("value", value, 0, 1),
            ("max_drop", max_drop, 0, 1),
            ("examples", examples, 0, float("inf")),
            ("chunk_size", chunk_size, 1, float("inf")),
        ):
            if not low <= number <= high:
                raise ValueError(f"Neutralization: {name} must be in [{low}, {high:g}], got {number}")
        # checks its argument
        NeutralizationScore(confidence=confidence)
        self.attack = attack
        self.map_attack = map_attack if map_attack is not None else _graded(attack)
        self.adaptive_attack = adaptive_attack or _strong(attack)
        self.given = Point(delta1, delta2, theta)
        self.search = search
        self.grid = list(grid)
        self.max_drop = max_drop
        self.keep: Keep = keep
        self.value = value
        self.protocol = protocol
        self.decision: Decision = decision
        self.relative = relative
        self.blob_from: BlobFrom = blob_from
        self.cam: Cam = cam
        self.layer = layer
        self.confidence = confidence
        self.examples = examples
        self.chunk_size = chunk_size
        self.seed = seed
        self.results: list[dict[str, Any]] = []
        self.choices: dict[tuple[int, int], dict[str, Choice]] = {}
        self._rows: list[BlobRow] = []
        self._names: list[str] = []
        self._pairs: list[ClassPair] = []
        self._counts: list[RegionCounts] = []
        self._distinct: list[list[BlobRow]] = []
        self._shown: dict[tuple[int, int], list[RegionExample]] = {}

    # Segregation ------------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_clean("Neutralization", trainer)
        self.results, self._rows, self._shown, self.choices = [], [], {}, {}
        # a blob made in inference mode could not be part of a gradient
        with torch.inference_mode(False), torch.no_grad():
            self._segregate(trainer, pl_module)

    def _segregate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        device = pl_module.device
        self._batches = self._training(trainer)
        self._names = self._class_names(trainer, pl_module)
        classes = len(self._names)
        wanted = self.pairs or [(s, t) for s in range(classes) for t in range(classes) if s != t]
        wrong = [each for each in wanted if max(each) >= classes]
        if wrong:
            raise ValueError(f"Neutralization: pairs must be of the {classes} classes from 0, got {wrong[0]}")
        self._pairs = [ClassPair(pl_module, source, target, self.decision) for source, target in wanted]
        self._count(trainer, pl_module, device)
        for each, counts in zip(self._pairs, self._counts, strict=True):
            choice = Choice(self.given, counts.blob(self.given, self.blob_from))
            self.choices[each.source, each.target] = {"given": choice}
        if self.search:
            self._search(trainer, device)
        for each, counts in zip(self._pairs, self._counts, strict=True):
            for chosen, choice in self.choices[each.source, each.target].items():
                empty = counts.empty / counts.images
                row = BlobRow.new(each, chosen, choice, self.given, empty, self.SCORES, self.confidence, device)
                self._rows.append(row)
        self._distinct = same_blobs(self._rows)

    def _count(self, trainer: pl.Trainer, model: nn.Module, device: torch.device) -> None:
        """Makes the maps of all images of the source classes, once."""
        deltas1, deltas2 = (list(dict.fromkeys([own, *self.grid * self.search])) for own in self.given[:2])
        self._counts = []
        for images, labels in self._moved(device):
            if not self._counts:
                size = (images.shape[2], images.shape[3])
                self._counts = [RegionCounts(deltas1, deltas2, size, device) for _ in self._pairs]
            for pair, _, importance, attack in self._maps(model, images, labels):
                self._counts[self._pairs.index(pair)].update(importance, attack)
        if not self._counts:
            raise ValueError("Neutralization: every process needs at least one batch of training images, got none")
        for pair, counts in zip(self._pairs, self._counts, strict=True):
            counts.reduce(lambda tensor: total(trainer, tensor))
            if not counts.images:
                raise ValueError(
                    f"Neutralization: pairs must be of classes with images, got none of {self._names[pair.source]} to "
                    "take the regions of"
                )
        _warn_of_empty_maps({self._name(pair): counts for pair, counts in zip(self._pairs, self._counts, strict=True)})

    def _search(self, trainer: pl.Trainer, device: torch.device) -> None:
        points = grid_points(self.grid)
        options = self.blob_from, self.value, self.attack, self.seed, self.chunk_size, self.keep
        searches = [
            BlobSearch(pair, counts, points, *options) for pair, counts in zip(self._pairs, self._counts, strict=True)
        ]
        count, images = sum(len(each.blobs) for each in searches), max(counts.images for counts in self._counts)
        rank_zero_info(
            f"Neutralization: {count:,} distinct blobs of {len(searches)} pairs, up to {images:,} images each"
        )
        for images_, labels in self._moved(device):
            for each in searches:
                each.score_modified(images_, labels)
        for each in searches:
            each.reduce(lambda tensor: total(trainer, tensor))
        wanted = wanted_blobs(searches, self.max_drop)
        rank_zero_info(
            f"Neutralization: {sum(int(w.sum()) for w in wanted):,} of them keep the accuracy and are attacked"
        )
        for images_, labels in self._moved(device):
            for each, blobs in zip(searches, wanted, strict=True):
                each.score_attacked(images_, labels, blobs)
        for each in searches:
            each.reduce_attacked(lambda tensor: total(trainer, tensor))
        together = common_choice(searches, self.max_drop) if len(searches) > 1 else []
        for place, each in enumerate(searches):
            found = self.choices[each.pair.source, each.pair.target]
            found["pair"] = each.choose(self.max_drop)
            if together:
                found["all"] = together[place]

    def _maps(
        self, model: nn.Module, images: Tensor, labels: Tensor
    ) -> Iterator[tuple[ClassPair, Tensor, Tensor, Tensor]]:
        """Each pair with its images of a batch, their class activation and the size of their perturbation."""
        for source in dict.fromkeys(pair.source for pair in self._pairs):
            own = images[labels == source]
            if not len(own):
                continue
            importance = importance_map(model, own, torch.full_like(labels[: len(own)], source), **self._map_options)
            for pair in self._pairs:
                if pair.source == source:
                    yield pair, own, importance, self._attack_map(pair, own)

    @property
    def _map_options(self) -> dict[str, Any]:
        return {"cam": self.cam, "layer": self.layer}

    def _attack_map(self, pair: ClassPair, images: Tensor) -> Tensor:
        if not isinstance(self.map_attack, Attack):
            targets = None if self.decision == "pair" else pair.labels(images, target=True)
            return gradient_map(pair.model, images, pair.labels(images), targets=targets, relative=self.relative)
        made = pair.attacked(self.map_attack, images, self.seed)
        return perturbation_map(images, made, relative=self.relative)

    def _class_names(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[str]:
        names = getattr(getattr(trainer, "datamodule", None), "classes", None)
        if names is not None:
            return [str(name) for name in names]
        for images, _ in self._moved(pl_module.device):
            if len(images):
                return [str(number) for number in range(pl_module(images[:1]).shape[1])]
        raise ValueError("Neutralization: every process needs at least one batch of training images, got none")

    def _training(self, trainer: pl.Trainer) -> Iterable[tuple[Tensor, Tensor]]:
        """This process's share of the images that the regions are taken of; may be gone through several times."""
        if self.protocol == "paper":
            return _Again(trainer)
        otherwise = "or take protocol='paper', whose regions are those of the test images"
        return TrainingBatches("Neutralization", trainer, otherwise)

    def _moved(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._batches:
            yield images.to(device), labels.to(device)

    # Scores -----------------------------------------------------------------------------------------------------------

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        owner = f"Neutralization with {type(pl_module).__name__}"
        images, labels = fresh_pair(owner, trainer, batch, batch_idx, dataloader_idx)
        with torch.inference_mode(False), torch.no_grad():
            images, labels = images.clone(), labels.clone()
            for pair, own, importance, attack in self._maps(pl_module, images, labels):
                self._score(trainer, pair, own, importance, attack)
            for pair in self._pairs:
                others = images[labels == pair.target]
                clean = pair.right(others, target=True)
                for rows in self._blobs_of(pair):
                    modified = clean
                    if rows[0].blocks:
                        blocked = neutralize(others, rows[0].choice.blob, self.value)
                        modified = pair.right(blocked, target=True)
                    for row in rows:
                        row.scores.update({"target_clean": clean, "target_modified": modified})

    def _score(self, trainer: pl.Trainer, pair: ClassPair, images: Tensor, importance: Tensor, attack: Tensor) -> None:
        bare = {
            "clean": images,
            "adversarial": pair.attacked(self.attack, images, self.seed),
            "strong": pair.attacked(self.adaptive_attack, images, self.seed),
        }
        right = {name: pair.right(each) for name, each in bare.items()}
        for rows in self._blobs_of(pair):
            blob = rows[0].choice.blob
            if rows[0].blocks:
                versions = self._blocked(pair, blob, images, bare["adversarial"])
                found = {**right, **{name: pair.right(each) for name, each in versions.items()}}
            else:
                # an empty blob changes nothing
                versions = {name: bare[same] for name, same in _UNBLOCKED.items()}
                found = {**right, **{name: right[same] for name, same in _UNBLOCKED.items()}}
            for row in rows:
                row.scores.update(found)
                roi, roa = row.masks(importance, attack)
                row.compare(roi, roa)
                if trainer.is_global_zero and row is self._drawn(pair) and images.shape[1] in (1, 3):
                    pictures = {
                        "image": images,
                        "adversarial": bare["adversarial"],
                        "importance": importance,
                        "attack": attack,
                        "roi": roi,
                        "roa": roa,
                        "blob": blob.expand(len(images), -1, -1),
                        "modified": versions["modified"],
                        "modified_adversarial": versions["modified_adversarial"],
                    }
                    shown = self._shown.setdefault((pair.source, pair.target), [])
                    shown += region_examples(self._name(pair), row, pictures, found, self.examples - len(shown))

    def _blocked(self, pair: ClassPair, blob: Tensor, images: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """By score the images that the bare classifier is to judge for it."""
        modified = neutralize(images, blob, self.value)
        modified_adversarial = pair.attacked(self.attack, modified, self.seed)
        defence = NeutralizationDefense(pair.model, blob, self.value).to(images.device)
        adaptive = pair.attacked(self.adaptive_attack, images, self.seed, defence)
        return {
            "modified": modified,
            "modified_adversarial": modified_adversarial,
            "reneutralised": neutralize(modified_adversarial, blob, self.value),
            "unaware": neutralize(adversarial, blob, self.value),
            "adaptive": neutralize(adaptive, blob, self.value),
        }

    def _blobs_of(self, pair: ClassPair) -> list[list[BlobRow]]:
        """The pair's rows, those of one blob together."""
        return [rows for rows in self._distinct if rows[0].pair is pair]

    def _rows_of(self, pair: ClassPair) -> list[BlobRow]:
        return [row for row in self._rows if row.pair is pair]

    def _drawn(self, pair: ClassPair) -> BlobRow:
        """The row that the figures of examples and representatives show: the pair's own, where one was searched."""
        return self._rows_of(pair)[int(self.search)]

    def _name(self, pair: ClassPair) -> str:
        return f"{self._names[pair.source]} → {self._names[pair.target]}"

    # Results ----------------------------------------------------------------------------------------------------------

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.results = [row.result(trainer, self._names) for row in self._rows]
        names = safe_names(self._names)
        numbers: dict[str, float] = {}
        for result, row in zip(self.results, self._rows, strict=True):
            name = f"neutralization/{names[row.pair.source]}_to_{names[row.pair.target]}/{row.chosen}"
            found = {score: result["scores"][score]["accuracy"] for score in self.SCORES}
            numbers |= {f"{name}/{score}": value for score, value in found.items() if value is not None}
        # already of all processes
        log_numbers(trainer, numbers)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or not self.results:
            return
        folder = Path(trainer.default_root_dir)
        self._save(folder)
        self._save_defences(folder / "neutralization", pl_module)
        self._draw(trainer)
        rows = self.table()
        log_table(trainer, "neutralization", list(rows[0]), rows)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # only now, since Lightning prints its own table after on_test_end and the bar is live until here
        if stage != "test" or not self.results or not trainer.is_global_zero:
            return
        console = rich.get_console()
        console.print(neutralization_table(self.results, self.protocol))
        path = Path(trainer.default_root_dir).absolute() / "neutralization.csv"
        print_path(console, "neutralization", path)

    def table(self) -> list[dict[str, Any]]:
        """The results as flat rows: settings, then each score, ``<score>_low`` and ``<score>_high``, then SSIM."""
        return neutralization_rows(self.results, self.SCORES)

    def _save(self, folder: Path) -> None:
        rows = self.table()
        write_rows(folder / "neutralization.csv", list(rows[0]), rows)
        names = (
            "search",
            "grid",
            "max_drop",
            "keep",
            "value",
            "protocol",
            "decision",
            "relative",
            "blob_from",
            "cam",
            "layer",
        )
        settings: dict[str, Any] = {name: getattr(self, name) for name in (*names, "confidence", "seed")}
        settings |= {name: repr(getattr(self, name)) for name in ("attack", "map_attack", "adaptive_attack")}
        write_json(folder / "neutralization.json", {**settings, "rows": self.results}, indent=1)

    def _save_defences(self, folder: Path, pl_module: nn.Module) -> None:
        """Each blob around the task's own classifier, of all classes."""
        own = pl_module if isinstance(pl_module, Classifier) else getattr(pl_module, "model", None)
        if not isinstance(own, Classifier):
            return
        names = safe_names(self._names)
        for row in self._rows:
            name = f"{names[row.pair.source]}_to_{names[row.pair.target]}_{row.chosen}.safetensors"
            NeutralizationDefense(own, row.choice.blob, self.value).save(folder / name)

    def _draw(self, trainer: pl.Trainer) -> None:
        shown = [example for examples in list(self._shown.values())[:MOST] for example in examples]
        if shown:
            log_figure(trainer, "neutralization_examples", examples_figure(shown))
            rows = [
                (self._name(pair), self._drawn(pair), counts, self._shown.get((pair.source, pair.target), []))
                for pair, counts in zip(self._pairs, self._counts, strict=True)
            ]
            log_figure(trainer, "neutralization_representatives", common_figure(rows[:MOST]))
        log_figure(trainer, "neutralization_accuracy", accuracies_figure(self.results, self.protocol))


class _Again:
    """The test images, from the first on each time."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self.trainer = trainer

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return test_batches("Neutralization", self.trainer)


_CHOICES = {
    "protocol": ("split", "paper"),
    "decision": ("pair", "all"),
    "blob_from": ("images", "representatives"),
    "cam": ("grad_cam", "grad_cam_plus_plus"),
    "keep": ("source", "both"),
}


# of which images an empty blob makes them
_UNBLOCKED = {
    "modified": "clean",
    "modified_adversarial": "adversarial",
    "reneutralised": "adversarial",
    "unaware": "adversarial",
    "adaptive": "strong",
}


def _warn_of_empty_maps(counts: Mapping[str, RegionCounts]) -> None:
    shares = {name: each.empty / each.images for name, each in counts.items()}
    empty = {name: share for name, share in shares.items() if share > _MOST_EMPTY}
    if empty:
        found = ", ".join(f"{name} {100 * share:.0f} %" for name, share in empty.items())
        rank_zero_warn(
            f"Neutralization: the activation map is 0 everywhere for many images ({found}), whose RoI is empty, so that"
            " a blob of them is the RoA alone (name another layer, one whose maps are rectified or have more places)"
        )


_MOST_EMPTY = 0.1


def _graded(attack: Attack) -> Attack:
    """Ten steps in place of one, whose sign has no grades."""
    return BIM(eps=attack.eps, step_size=attack.eps / 10, steps=10) if isinstance(attack, FGSM | RandFGSM) else attack


def _strong(attack: Attack) -> Attack:
    eps = getattr(attack, "eps", None)
    norm = getattr(attack, "norm", None)
    if eps is None or norm not in ("linf", "l2"):
        return attack
    return PGD(norm=norm, eps=eps, step_size=eps / 8, steps=20, stop_at_success=True)


def _check_numbers(**given: Sequence[float]) -> None:
    for name, values in given.items():
        for value in values:
            if not math.isfinite(value):
                raise ValueError(f"Neutralization: {name} must be finite, got {value} (0.5 is in the middle)")


def _check_choices(**given: str) -> None:
    for name, value in given.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"Neutralization: {name} must be one of {', '.join(_CHOICES[name])}, got {value!r}")


def _check_attacks(attack: Any, map_attack: Any, adaptive_attack: Any) -> None:
    if not isinstance(attack, Attack):
        raise ValueError(f"Neutralization: attack must be an Attack, got {attack!r} (FGSM(eps=8/255))")
    if map_attack is not None and map_attack != "gradient" and not isinstance(map_attack, Attack):
        raise ValueError(f"Neutralization: map_attack must be an Attack, gradient or None, got {map_attack!r}")
    if adaptive_attack is not None and not isinstance(adaptive_attack, Attack):
        raise ValueError(f"Neutralization: adaptive_attack must be an Attack or None, got {adaptive_attack!r}")


def _checked_pairs(pairs: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    found = [tuple(each) for each in pairs]
    if not found or len(set(found)) != len(found):
        raise ValueError(f"Neutralization: pairs must be one or more different ones, got {pairs}")
    for each in found:
        if len(each) != 2 or each[0] == each[1] or min(each) < 0:
            raise ValueError(f"Neutralization: pairs must be of two different classes from 0, got {each}")
    return found  # type: ignore[return-value]
