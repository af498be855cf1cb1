"""Do adversarial images, also those of a region, fool the next classifier too? Matrices at the end of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import rich
import torch
from torch import Tensor, nn

from lit_adv.attacks import Attack, Region, random_targets, transfer
from lit_adv.attacks.transferability import Procedure
from lit_adv.files import safe_names, write_json, write_rows
from lit_adv.metrics import TransferMatrix
from lit_adv.metrics.transfer_matrix import summary
from lit_adv.models import load_classifier
from lit_adv.plots import transfer_figure
from lit_adv.tasks import NetworkTechnique, Technique
from lit_adv.tasks.techniques import disjoint_subsets

from .clean_batches import TrainingBatches, check_clean, test_batches
from .figures import log_figure
from .loggers import log_numbers, log_table
from .repeats import fresh_pair
from .tables import print_path
from .transfer_tables import COLUMNS, by_technique, has_techniques, transfer_rows, transfer_tables

GLOBAL = "none"
"""Name of the attack without a region."""

_DIAGONAL = "(diagonal: the technique's other classifiers)"

Goal = Literal["untargeted", "random"]


class Transferability(pl.Callback):
    """Attacks some classifiers and tests others: a source x victim matrix without a region and for each region.

    The classifiers are the task under test, others by name, and techniques that are fitted to the training images
    before the test, on several disjoint subsets if asked for. Images that source and victim both classify rightly
    count. See `lit_adv.attacks.transfer` for the procedures, `TransferMatrix` for the numbers.

    For tasks whose ``forward`` maps images to logits, on batches (images, labels). Writes ``transferability.csv`` (one
    row a region, source and victim), ``transferability.json`` and a heat map for each region into the run folder,
    prints the tables and logs ``transfer/<region>``, the share over all pairs of a source with another victim. Several
    processes give the numbers of one.

    Args:
        attack: Of all sources. The one of Ozbulak et al.'s code is PGD with norm linf, eps 1, step_size 0.0039, 250
            steps and no random start.
        attacks: Other attacks for some sources, by their name or by the technique before the ``/`` in it.
        regions: By any names but ``none``; each is compared with the attack without a region.
        classifiers: By name, networks or paths of checkpoints made by `VictimClassifier`.
        techniques: By name; fitted to the training images, without augmentation.
        subsets: How many disjoint subsets of the training images each technique is fitted to; above 1 the classifiers
            are called ``name/1``, ``name/2``, ...
        tested: Name of the task under test among the classifiers; None leaves it out.
        sources: The classifiers that are attacked, by name or technique; None takes all.
        victims: Those that are tested; None takes all.
        procedure: ``until_fooled`` stops at the first iteration that fools the victim, ``attack_then_test`` tests what
            the attack returns.
        goal: ``untargeted``, or towards a ``random`` class other than the label as in Ozbulak et al.'s code; a success
            is a lost label either way.
        seed: Of the attacks, the classes, the subsets and the techniques.
        limit_batches: Only the first test batches of each process; None takes all.

    Raises:
        ValueError: An argument is out of range; in the test, data without training images for the techniques, or
            batches of another kind.
    """

    def __init__(
        self,
        attack: Attack,
        attacks: dict[str, Attack] | None = None,
        regions: dict[str, Region] | None = None,
        classifiers: dict[str, nn.Module | str] | None = None,
        techniques: dict[str, Technique] | None = None,
        subsets: int = 1,
        tested: str | None = "tested",
        sources: list[str] | None = None,
        victims: list[str] | None = None,
        procedure: Procedure = "until_fooled",
        goal: Goal = "untargeted",
        seed: int = 0,
        limit_batches: int | None = None,
    ) -> None:
        self.attack, self.attacks = attack, dict(attacks or {})
        self.regions = dict(regions or {})
        self.classifiers, self.techniques = dict(classifiers or {}), dict(techniques or {})
        self.subsets, self.tested = subsets, tested
        self.procedure: Procedure = procedure
        self.goal: Goal = goal
        self.seed, self.limit_batches = seed, limit_batches
        for field, value in (("subsets", subsets), ("limit_batches", limit_batches)):
            if value is not None and value < 1:
                _fail(f"{field} must be at least 1, got {value}")
        for field, given, known in (("procedure", procedure, get_args(Procedure)), ("goal", goal, get_args(Goal))):
            if given not in known:
                _fail(f"{field} must be one of {', '.join(known)}, got {given!r}")
        if GLOBAL in self.regions:
            _fail(f"regions must not be called {GLOBAL!r}, the name of the attack without one")
        learned = [f"{name}/{n + 1}" if subsets > 1 else name for name in self.techniques for n in range(subsets)]
        names = [*([] if tested is None else [tested]), *self.classifiers, *learned]
        if not names or len(set(names)) != len(names):
            _fail(f"tested, classifiers and techniques must give one or more different names, got {names}")
        self.source_names = _chosen("sources", sources, names)
        self.victim_names = _chosen("victims", victims, names)
        for name in self.attacks:
            if not any(_stands_for(name, source) for source in self.source_names):
                _fail(f"attacks must be for sources ({', '.join(self.source_names)}), got one for {name!r}")
        for name, model in self.classifiers.items():
            if isinstance(model, str) and not Path(model).is_file():
                _fail(
                    f"classifiers: there is no checkpoint '{model}' for {name} (train it with `lightning fit` and the"
                    " config of that network, or give the path of another checkpoint)"
                )
        self.results: dict[str, dict[str, Any]] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.results = {}
        check_clean("Transferability", trainer)
        # a mask that does not fit shows here, before anything is fitted or attacked
        for images, _ in test_batches("Transferability", trainer):
            for region in self.regions.values():
                region(images, self.seed)
            break
        # what is made in inference mode, in which Lightning tests, no gradient can pass through
        with torch.inference_mode(False):
            self._models = self._make(trainer, pl_module)
        self._metrics = {
            region: TransferMatrix(self.source_names, self.victim_names).to(pl_module.device)
            for region in (GLOBAL, *self.regions)
        }
        # a process may get no image
        nothing = self._transfer(torch.zeros(0, 1, 1, 1, device=pl_module.device), None, None)
        for metric in self._metrics.values():
            metric.update(nothing)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.limit_batches is not None and batch_idx >= self.limit_batches:
            return
        owner = f"Transferability with {type(pl_module).__name__}"
        images, labels = fresh_pair(owner, trainer, batch, batch_idx, dataloader_idx)
        targets = None
        if self.goal == "random" and len(images):
            with torch.no_grad():
                classes = self._models[self.source_names[0]](images[:1]).shape[1]
            targets = random_targets(images, labels, classes, self.seed)
        whole = self._transfer(images, labels, targets)
        self._metrics[GLOBAL].update(whole)
        for name, region in self.regions.items():
            self._metrics[name].update(self._transfer(images, labels, targets, region), whole)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # collective, and so on every process
        self.results = {region: metric.compute() for region, metric in self._metrics.items()}
        shares = {f"transfer/{region}": summary(found)["transferability"] for region, found in self.results.items()}
        log_numbers(trainer, shares)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._models = {}
        if not trainer.is_global_zero or not self.results:
            return
        self._save(Path(trainer.default_root_dir))
        files = safe_names(list(self.results))
        for file, (region, found) in zip(files, self.results.items(), strict=True):
            suffix = "" if region == GLOBAL else f"_{file}"
            where = "without a region" if region == GLOBAL else f"in region {region}"
            grouped = has_techniques(found)
            figure = self._figure(found, f"Transferability {where}", grouped)
            log_figure(trainer, f"transferability{suffix}", figure)
            if grouped:
                figure = self._figure(by_technique(found), f"Transferability {where}, by technique\n{_DIAGONAL}")
                log_figure(trainer, f"transferability_techniques{suffix}", figure)
        log_table(trainer, "transferability", COLUMNS, transfer_rows(self.results))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # only now, since Lightning prints its own table after on_test_end and the bar is live until here
        if stage != "test" or not self.results or not trainer.is_global_zero:
            return
        console = rich.get_console()
        for table in transfer_tables(self.results):
            console.print(table)
            console.print()
        path = Path(trainer.default_root_dir).absolute() / "transferability.csv"
        print_path(console, "transferability", path)

    def _transfer(
        self, images: Tensor, labels: Tensor | None, targets: Tensor | None, region: Region | None = None
    ) -> Any:
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device) if labels is None else labels
        return transfer(
            {name: self._attack_of(name) for name in self.source_names},
            {name: self._models[name] for name in self.source_names},
            {name: self._models[name] for name in self.victim_names},
            images,
            labels,
            targets=targets,
            region=region,
            seed=self.seed,
            procedure=self.procedure,
        )

    def _attack_of(self, source: str) -> Attack:
        technique = source.partition("/")[0]
        return self.attacks.get(source, self.attacks.get(technique, self.attack))

    def _make(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, nn.Module]:
        """All classifiers by name, on the task's device."""
        device = pl_module.device
        made: dict[str, nn.Module] = {} if self.tested is None else {self.tested: pl_module}
        for name, given in self.classifiers.items():
            made[name] = (load_classifier(given) if isinstance(given, str) else given).to(device).eval()
        if not self.techniques:
            return made
        images, labels, classes = _training_images(trainer)
        if self.subsets > len(labels):
            _fail(f"subsets must be at most {len(labels)}, the number of training images, got {self.subsets}")
        parts = disjoint_subsets(labels, self.subsets, self.seed)
        # networks last: what cannot be attacked is found before they are trained
        for name, technique in sorted(self.techniques.items(), key=lambda each: isinstance(each[1], NetworkTechnique)):
            for number, rows in enumerate(parts):
                key = f"{name}/{number + 1}" if self.subsets > 1 else name
                if key in (*self.source_names, *self.victim_names):
                    x, y = images[rows].to(device), labels[rows].to(device)
                    made[key] = technique.fit(x, y, classes, seed=self.seed + number)
                if key in self.source_names:
                    self._try(key, made[key], x[:1], y[:1])
        return made

    def _try(self, name: str, model: nn.Module, image: Tensor, label: Tensor) -> None:
        """One pass of the attack, which an estimator without a gradient may refuse."""
        try:
            self._attack_of(name).run(model, image, label, seed=self.seed, max_queries=1)
        except ValueError as error:
            _fail(f"attacks must give {name.partition('/')[0]} an attack that it can take: {error}")

    def _figure(self, found: dict[str, Any], title: str, groups: bool = False) -> Any:
        return transfer_figure(found["transferability"], found["sources"], found["victims"], title, groups)

    def _save(self, folder: Path) -> None:
        write_rows(folder / "transferability.csv", COLUMNS, transfer_rows(self.results))
        settings = {
            "attack": repr(self.attack),
            "attacks": {name: repr(attack) for name, attack in self.attacks.items()},
            "regions": {name: repr(region) for name, region in self.regions.items()},
            **{name: getattr(self, name) for name in ("procedure", "goal", "subsets", "seed", "limit_batches")},
        }
        found = {
            region: {**found, "summary": summary(found)}
            | ({"techniques": by_technique(found)} if has_techniques(found) else {})
            for region, found in self.results.items()
        }
        write_json(folder / "transferability.json", {"settings": settings, "regions": found}, indent=1)


def _training_images(trainer: pl.Trainer) -> tuple[Tensor, Tensor, int]:
    """All training images, their labels and K, from the data module."""
    found = TrainingBatches("Transferability", trainer, "or leave out the techniques, which learn them")
    classes = getattr(found.data, "num_classes", None)
    if not isinstance(classes, int):
        raise ValueError(
            f"Transferability: techniques need a data module with num_classes, got {type(found.data).__name__}"
        )
    return *found.whole(), classes


def _chosen(field: str, wanted: list[str] | None, names: list[str]) -> list[str]:
    if wanted is None:
        return names
    for name in wanted:
        if not any(_stands_for(name, known) for known in names):
            _fail(f"{field} must be of {', '.join(names)}, got {name!r}")
    chosen = [known for known in names if any(_stands_for(name, known) for name in wanted)]
    if not chosen:
        _fail(f"{field} must be at least one classifier, got none")
    return chosen


def _stands_for(name: str, known: str) -> bool:
    return name in (known, known.partition("/")[0])


def _fail(message: str) -> Any:
    raise ValueError(f"Transferability: {message}")
