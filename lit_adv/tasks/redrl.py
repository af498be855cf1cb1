"""REDRL: takes an adversarial image apart into clean image and perturbation, and names the attack that made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_adv.data import AdversarialBatch, PictureBatch, PictureFolder
from lit_adv.metrics import Calibration, RecognitionAccuracy, ReconstructionAccuracy
from lit_adv.models import AttackRecognizer, Attribution, AttributionHeads, Reconstructor, VGGFeatures, freeze_
from lit_adv.tasks.attribution import (
    AttributionScores,
    AttributionTargets,
    attribution_losses,
    attribution_numbers,
    grey_levels,
)
from lit_adv.tasks.demands import check_synchronised, check_trainer
from lit_adv.tasks.finite import FiniteTraining
from lit_adv.tasks.identification import (
    NOT_CALIBRATED,
    Calibrator,
    Identification,
    check_inputs,
    identify,
    keep_calibration,
)
from lit_adv.tasks.resuming import apply_settings, changed_settings

_SCHEDULE_FIELDS = ("learning_rate", "weight_decay", "warmup_epochs", "milestones")
# variants of an image in the paper's evaluation set, which its "Total" is weighted by
PAPER_WEIGHTS = {"clean": 1, "pgd": 12, "deepfool": 4, "cw_l2": 8, "cw_linf": 12, "patch": 24}


class Recovery(NamedTuple):
    """What REDRL makes of a batch.

    Attributes:
        logits: ``(B, A)`` over the attack classes.
        reconstructed: ``(B, C, H, W)`` G's estimate of the clean image, not clamped; None without G.
        residual: ``(B, C, H, W)`` in [-1, 1], what the recogniser sees beside the image; None for ``inputs="image"``.
        attribution: What the heads for victim and budget say; None without them.
    """

    logits: Tensor
    reconstructed: Tensor | None
    residual: Tensor | None
    attribution: Attribution | None = None


class REDRL(pl.LightningModule):
    """Reverse engineering of an image's perturbation, Souri et al. 2021 (equations 1 to 5; networks as in their code).

    A reconstructor G estimates the clean image, the residual ``image - clamp(G(image), 0, 1)`` estimates the
    perturbation, and a recogniser Psi names the attack from (residual, image). Both are trained together on ``L_AC +
    0.01 L_R + 0.1 L_F + 1.0 L_IC``; the feature network F and the victim classifier Phi are frozen, stay in eval mode
    and are not part of a checkpoint. Phi is the data module's own copy.

    Args:
        inputs: What Psi sees: ``residual`` and image (REDRL), the true ``delta`` and image, or the ``image`` alone (the
            paper's baselines of Table 3, which have no G).
        phi: Name of the victim in L_IC; None takes the data module's first that is not held out.
        width: Channels of G.
        blocks: Residual blocks of G.
        recognizer: Psi's trunk: ``resnet18``, or ``small`` for small images.
        feature_network: F, a VGG of torchvision.
        feature_layer: Where F is cut.
        feature_weights: ``imagenet``, a path, or None for random features. Needed where ``weight_features`` is not 0.
        weight_reconstruction: Weight of L_R, the summed absolute difference to the clean image.
        weight_features: Weight of L_F, the distance of F's features; 0 leaves F out.
        weight_classification: Weight of L_IC, the cross-entropy to Phi's prediction on the clean image; 0 leaves it
            out.
        label_smoothing: Of L_AC.
        learning_rate: Adam's; the paper's 3.5e-4 for CIFAR-10, 1.7e-4 for Tiny-ImageNet.
        weight_decay: On weights, none on biases.
        warmup_epochs: Epochs below the full rate, under the paper's schedule.
        milestones: The rate falls tenfold as these epochs (counted from 1) begin, under the paper's schedule.
        schedule: ``paper``, or ``onecycle`` over the whole run for short ones.
        compile: Whether G goes through ``torch.compile``: minutes before the first step, then quicker ones.
        heads: What is learnt beside the attack, after Guo et al. 2023 (arXiv:2302.14059): the ``victim``, the
            ``budget`` (log2 of the Linf radius, where the attack has one and is recognised), or both. L_AC and their
            losses are then weighted by learnt variances (`lit_adv.tasks.attribution`).
        num_attacks: Attack classes, clean included; None takes the data module's.
        in_channels: Channels of the images; None takes the data module's.
        num_victims: Victims that the ``victim`` head tells apart; None takes those that the data module trains on.
        coverage: Share of the validation images that `identify` shall answer; the least confident rest is ``unknown``.

    Attributes:
        attack_classes: Names of the classes, from the data module or the checkpoint.
        trained_victims: Names of the victims trained on, in the order of the ``victim`` head, from there too.

    Raises:
        ValueError: A field out of its range, or one that contradicts the data module or the checkpoint.
    """

    monitor = "val/recognition"
    monitor_mode = "max"
    architecture = ("inputs", "width", "blocks", "recognizer", "num_attacks", "in_channels", "heads", "num_victims")

    def __init__(
        self,
        inputs: Literal["residual", "delta", "image"] = "residual",
        phi: str | None = None,
        width: int = 64,
        blocks: int = 23,
        recognizer: Literal["resnet18", "small"] = "resnet18",
        feature_network: str = "vgg16_bn",
        feature_layer: str = "relu3_3",
        feature_weights: str | None = "imagenet",
        weight_reconstruction: float = 0.01,
        weight_features: float = 0.1,
        weight_classification: float = 1.0,
        label_smoothing: float = 0.1,
        learning_rate: float = 3.5e-4,
        weight_decay: float = 5e-4,
        warmup_epochs: int = 9,
        milestones: tuple[int, ...] = (40, 70, 90),
        schedule: Literal["paper", "onecycle"] = "paper",
        compile: bool = False,
        heads: tuple[Literal["victim", "budget"], ...] = (),
        num_attacks: int | None = None,
        in_channels: int | None = None,
        num_victims: int | None = None,
        coverage: float = 0.95,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._changed: set[str] = set()
        self.hparams["milestones"] = list(milestones)
        self.hparams["heads"] = list(heads)
        self._check()
        self.reconstructor: Reconstructor | None = None
        self.psi: AttackRecognizer | None = None
        self.attribution: AttributionHeads | None = None
        self.results: dict[str, Any] = {}
        self.attack_classes: list[str] | None = None
        self.trained_victims: list[str] | None = None
        self.calibrator = Calibrator(coverage)
        # frozen networks live outside the module tree: not saved, not trained, not put into train mode
        self._frozen: dict[str, nn.Module] = {}
        self._recognition: dict[str, RecognitionAccuracy] = {}
        self._reconstruction: ReconstructionAccuracy | None = None
        self._scores: dict[str, AttributionScores] = {}
        self._targets: AttributionTargets | None = None

    def configure_callbacks(self) -> Sequence[pl.Callback]:
        """Stops training that has lost its numbers; refuses a trainer that the task cannot work with, before the data
        module crafts for hours."""
        check_trainer(self)
        with torch.device("meta"):  # takes neither time nor random numbers
            check_synchronised(self, AttackRecognizer(2, 6, self.hparams["recognizer"]))
        return [FiniteTraining()]

    def prepare_data(self) -> None:
        """Refuses what does not fit the data, and fetches F's weights, before the data module crafts for hours."""
        if self._identifies:
            check_inputs(self.hparams["inputs"])
            return
        self._check_data(complete=False)
        self._make_features()

    def configure_model(self) -> None:
        """Builds G and Psi; what is None is taken from the data module."""
        if self.psi is not None:
            return
        self._check_data()
        channels = int(self.hparams["in_channels"])
        seen = channels if self.hparams["inputs"] == "image" else 2 * channels
        # from the run's seed itself: how far the generator has come differs from one process to several
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            if self.hparams["inputs"] == "residual":
                self.reconstructor = Reconstructor(channels, self.hparams["width"], self.hparams["blocks"])
            self.psi = AttackRecognizer(int(self.hparams["num_attacks"]), seen, self.hparams["recognizer"])
            self.attribution = self._make_heads(self.psi.features)
        if self.reconstructor is not None and self.hparams["compile"]:
            self.reconstructor.compile()
        self.to(memory_format=torch.channels_last)  # faster on every device, in half precision above all

    def _make_heads(self, features: int) -> AttributionHeads | None:
        heads = self.hparams["heads"]
        if not heads:
            return None
        victims = int(self.hparams["num_victims"]) if "victim" in heads else 0
        made = AttributionHeads(features, int(self.hparams["num_attacks"]), victims, "budget" in heads)
        if "budget" in heads and self._data() is not None:
            made.set_budgets(AttributionTargets(self._data()).budgets)
        return made

    def _make_features(self) -> None:
        if self._uses("features") and "features" not in self._frozen:
            self._frozen["features"] = VGGFeatures(
                self.hparams["feature_network"], self.hparams["feature_layer"], self.hparams["feature_weights"]
            )

    def _check_data(self, complete: bool = True) -> None:
        data = self._data()
        if data is not None and not hasattr(data, "attack_classes"):
            raise ValueError("REDRL: needs an AdversarialDataModule as its data (`--data AdversarialDataModule`)")
        if data is not None and (self.hparams["phi"] or data.trained_victims[0]) not in data.trained_victims:
            apart = " that are not held out" if data.held_out else ""
            raise ValueError(
                f"REDRL: phi must be one of the data module's victims{apart} ({', '.join(data.trained_victims)}), got "
                f"{self.hparams['phi']!r}"
            )
        fields = [("num_attacks", "attack_classes"), ("in_channels", "in_channels")]
        if "victim" in self.hparams["heads"]:
            fields.append(("num_victims", "trained_victims"))
        for field, name in fields:
            found = getattr(data, name, None)
            found = len(found) if isinstance(found, list) else found
            given = self.hparams[field]
            if given is None and found is None and not complete:
                continue  # the shape of anybody's images is known once they have been read
            if given is None and found is None:
                raise ValueError(
                    f"REDRL: {field} must be given where there is no adversarial data module to take it from, got None"
                )
            if given is not None and found is not None and given != found:
                raise ValueError(
                    f"REDRL: {field} is {given}, but the data module has {found} (leave it out to take the data's; "
                    "with a checkpoint, use the attacks, victims, held_out and images that it was trained with)"
                )
            self.hparams[field] = found if given is None else given
        self._check_heads()

    def _check_heads(self) -> None:
        data = self._data()
        if "victim" in self.hparams["heads"] and self.hparams["num_victims"] < 2:
            raise ValueError(
                "REDRL: heads: victim needs at least two victims to train on, got "
                f"{self.hparams['num_victims']} (name more under data.victims, or leave the head out)"
            )
        if "budget" in self.hparams["heads"] and data is not None and not any(map(any, data.budgets.values())):
            raise ValueError(
                "REDRL: heads: budget needs an attack with a Linf radius, got "
                f"{', '.join(data.attack_classes[1:])} (add one, or leave the head out)"
            )

    def setup(self, stage: str) -> None:
        if self._identifies and stage == "predict":
            return
        data = self._data()
        if data is None:
            raise ValueError("REDRL: needs an AdversarialDataModule as its data (pass datamodule=...)")
        self._check_data()
        if "phi" not in self._frozen:
            self._frozen["phi"] = data.victim(self.hparams["phi"] or data.trained_victims[0])
        if stage == "fit":
            self._make_features()
        classes, victims = data.attack_classes, data.victim_names
        self.attack_classes, self.trained_victims = list(classes), list(data.trained_victims)
        weights = [PAPER_WEIGHTS[one] for one in classes] if set(classes) == set(PAPER_WEIGHTS) else None
        self._recognition = {split: RecognitionAccuracy(classes, weights) for split in ("val", "test")}
        self._reconstruction = ReconstructionAccuracy(victims, classes)
        heads = tuple(self.hparams["heads"])
        self._scores = {split: AttributionScores(data, heads, apart=split == "test") for split in ("val", "test")}
        self._targets = AttributionTargets(data)

    def set_frozen(self, phi: nn.Module | None = None, features: nn.Module | None = None) -> None:
        """Gives Phi or F by hand, where there is no data module or another feature network; freezes them."""
        for name, module in (("phi", phi), ("features", features)):
            if module is not None:
                self._frozen[name] = freeze_(module)

    def frozen(self, name: Literal["phi", "features"]) -> nn.Module:
        """Phi or F, on this module's device."""
        if name == "features":
            self._make_features()
        if name not in self._frozen:
            raise ValueError(f"REDRL: there is no {name} yet (it comes with the data module, or give it to set_frozen)")
        module = self._frozen[name]
        if next((p.device for p in module.parameters()), self.device) != self.device:
            module.to(self.device)
        return module

    def forward(self, images: Tensor, clean: Tensor | None = None) -> Recovery:
        """Names the attack behind ``images``.

        Args:
            images: ``(B, C, H, W)`` in [0, 1].
            clean: The clean images, needed (and used) for ``inputs="delta"`` alone.
        """
        self.configure_model()
        assert self.psi is not None
        images = images.to(next(self.psi.parameters()).dtype)  # bfloat16 where the trainer's precision is bf16-true
        if self.hparams["inputs"] == "image":
            return self._recognise(images, None, None)
        if self.hparams["inputs"] == "delta":
            if clean is None:
                raise ValueError('REDRL: inputs="delta" needs the clean images as well, got None')
            delta = images - clean.to(images.dtype)
            return self._recognise(torch.cat([delta, images], 1), None, delta)
        assert self.reconstructor is not None
        reconstructed = self.reconstructor(images)
        residual = images - reconstructed.clamp(0, 1)
        return self._recognise(torch.cat([residual, images], 1), reconstructed, residual)

    def _recognise(self, seen: Tensor, reconstructed: Tensor | None, residual: Tensor | None) -> Recovery:
        assert self.psi is not None
        if self.attribution is None:
            return Recovery(self.psi(seen), reconstructed, residual)
        features = self.psi.trunk(seen)
        logits = self.psi.head(features)
        return Recovery(logits, reconstructed, residual, self.attribution(features, logits.argmax(1)))

    def identify(self, images: Tensor) -> Identification:
        """Which attack made each image, how sure that is, and what it added; `lightning predict` does it for folders.

        With heads, against which network and how strong as well.

        Needs no trainer and no data: ``REDRL.load_from_checkpoint(path).identify(images)``. The module's train flags
        are as before afterwards.

        Args:
            images: ``(B, C, H, W)`` in [0, 1], of any size; they are not resized.

        Raises:
            ValueError: Images of another kind, or ``inputs="delta"``, which needs the clean images as well.
        """
        found = identify(self, images)
        if found.calibration is None:
            rank_zero_warn(f"REDRL: {NOT_CALIBRATED}")
        return found

    @property
    def calibration(self) -> Calibration | None:
        """Temperature and threshold for the present weights; None where they have not been validated."""
        return self.calibrator.calibration

    def losses(self, batch: AdversarialBatch, recovery: Recovery) -> dict[str, Tensor]:
        """The loss and its parts, before their weights; a part whose weight is 0 is not computed.

        Returns:
            ``loss``; ``attack`` (L_AC, equation 4), ``reconstruction`` (L_R: absolute differences summed over an
            image, averaged over the batch), ``features`` (L_F: 2-norm of the difference of F's maps),
            ``classification`` (L_IC); with heads, ``victim`` and ``budget`` (`attribution_losses`). Sums are in
            float32.
        """
        smoothing = float(self.hparams["label_smoothing"])
        parts = {"attack": F.cross_entropy(recovery.logits.float(), batch.attack, label_smoothing=smoothing)}
        loss = parts["attack"]
        if self.attribution is not None and recovery.attribution is not None:
            if self._targets is None:
                raise ValueError("REDRL: the heads' losses need an AdversarialDataModule (pass datamodule=...)")
            answers = self._targets.of(batch)
            loss, said = attribution_losses(
                self.attribution, recovery.logits, recovery.attribution, batch.attack, *answers, smoothing
            )
            parts |= said
        if recovery.reconstructed is not None:
            made = recovery.reconstructed.float()
            if self._uses("reconstruction"):
                parts["reconstruction"] = (batch.clean - made).abs().flatten(1).sum(1).mean()
            if self._uses("features"):
                network = self.frozen("features")
                with torch.no_grad():
                    wanted = network(batch.clean)
                difference = (wanted.float() - network(made).float()).flatten(1)
                parts["features"] = torch.linalg.vector_norm(difference, dim=1).mean()
            if self._uses("classification"):
                phi = self.frozen("phi")
                with torch.no_grad():
                    predicted = phi(batch.clean).argmax(1)
                parts["classification"] = F.cross_entropy(phi(made).float(), predicted)
            for name in ("reconstruction", "features", "classification"):
                if name in parts:
                    loss = loss + self.hparams[f"weight_{name}"] * parts[name]
        return {"loss": loss, **parts}

    def training_step(self, batch: AdversarialBatch, batch_idx: int) -> Tensor:
        losses = self.losses(batch, self(batch.adversarial, batch.clean))
        self.calibrator.calibration = None  # it was of the weights before
        count = len(batch.label)
        self.log("loss", losses["loss"], prog_bar=True, logger=False, batch_size=count, on_step=True, on_epoch=False)
        named = {f"train/loss_{name}": value for name, value in losses.items() if name != "loss"}
        named["train/loss"] = losses["loss"]
        self.log_dict(named, batch_size=count, on_step=False, on_epoch=True, sync_dist=True)
        return losses["loss"]

    def on_validation_epoch_start(self) -> None:
        self._begin("val")

    def on_test_epoch_start(self) -> None:
        self._begin("test")

    def validation_step(self, batch: AdversarialBatch, batch_idx: int) -> dict[str, Tensor | None]:
        return self._evaluate(batch, "val")

    def test_step(self, batch: AdversarialBatch, batch_idx: int) -> dict[str, Tensor | None]:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: AdversarialBatch | PictureBatch, batch_idx: int) -> Any:
        if isinstance(batch, PictureBatch):
            return identify(self, batch.images / 255)
        return self._outputs(self(batch.adversarial, batch.clean))

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_validation_end(self) -> None:
        keep_calibration(self)

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def configure_optimizers(self) -> Any:
        spared = ("bias", "log_variances")
        decayed = [p for name, p in self.named_parameters() if not name.endswith(spared)]
        plain = [p for name, p in self.named_parameters() if name.endswith(spared)]
        rate = float(self.hparams["learning_rate"])
        optimizer = torch.optim.Adam(
            [
                {"params": decayed, "weight_decay": float(self.hparams["weight_decay"])},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=rate,
            fused=self._may_fuse(),
        )
        if self.hparams["schedule"] == "onecycle":
            steps = int(self.trainer.estimated_stepping_batches)
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_factor)}

    def _may_fuse(self) -> bool:
        # a quarter of the time; but in mixed precision Lightning cannot clip the gradients of a fused optimiser, nor,
        # where the loss is scaled, anybody afterwards
        trainer = self._trainer
        scaled = trainer is not None and trainer.precision == "16-mixed"
        clipped = trainer is not None and trainer.precision == "bf16-mixed" and bool(trainer.gradient_clip_val)
        return not scaled and not clipped and all(p.device.type in ("cpu", "cuda") for p in self.parameters())

    def rate_factor(self, epoch: int) -> float:
        """The paper's learning rate over its full one in an epoch, counted from 0 (warm-up, then tenfold falls)."""
        share = (epoch + 1) / (int(self.hparams["warmup_epochs"]) + 1)
        warm = 0.01 * (1 - share) + share if share < 1 else 1.0
        return warm * 0.1 ** sum(epoch + 1 >= milestone for milestone in self.hparams["milestones"])

    def on_train_start(self) -> None:
        """Lets the run's own learning rate, decay and schedule win over a checkpoint's."""
        rate, decay = float(self.hparams["learning_rate"]), float(self.hparams["weight_decay"])
        apply_settings(self, self._changed, [{"lr": rate, "weight_decay": decay}, {"lr": rate, "weight_decay": 0.0}])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["redrl"] = {field: self.hparams[field] for field in self.architecture}
        checkpoint["calibration"] = self.calibrator.state()
        data = self._data()
        if data is not None:
            checkpoint["attack_classes"] = list(data.attack_classes)
            checkpoint["trained_victims"] = list(data.trained_victims)
            if hasattr(data, "victim_fingerprints"):
                checkpoint["victims"] = data.victim_fingerprints()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get("redrl")
        if stored is None:
            raise ValueError("REDRL: the checkpoint is not one of a REDRL network (give one that REDRL has saved)")
        stored = {"heads": [], "num_victims": None, **stored}  # which older checkpoints do not know
        for field in self.architecture:
            if self.hparams[field] is not None and stored[field] != self.hparams[field]:
                raise ValueError(
                    f"REDRL: {field} is {self.hparams[field]!r}, but the checkpoint was trained with {stored[field]!r} "
                    "(use its config, or train anew without --ckpt_path)"
                )
        schedule = checkpoint.get("hyper_parameters", {}).get("schedule", self.hparams["schedule"])
        if schedule != self.hparams["schedule"] and self._fitting():
            raise ValueError(
                f"REDRL: schedule must be {schedule!r} to resume this checkpoint, got {self.hparams['schedule']!r} "
                "(a cycle cannot go on as another one; train anew without --ckpt_path)"
            )
        self._changed = changed_settings(self, checkpoint, _SCHEDULE_FIELDS)
        self.calibrator.load(checkpoint.get("calibration"), fits=self._fitting() or self._validating())
        self.attack_classes = checkpoint.get("attack_classes", self.attack_classes)
        self.trained_victims = checkpoint.get("trained_victims", self.trained_victims)
        self._compare_victims(checkpoint.get("victims"))
        data = self._data()
        trained = checkpoint.get("attack_classes")
        if data is not None and trained is not None and list(data.attack_classes) != trained:
            raise ValueError(
                f"REDRL: the data module's attack classes are {', '.join(data.attack_classes)}, but the checkpoint was "
                f"trained on {', '.join(trained)} (use the same attacks in the same order)"
            )
        victims = checkpoint.get("trained_victims")
        if data is not None and "victim" in self.hparams["heads"] and list(data.trained_victims) != victims:
            raise ValueError(
                f"REDRL: the data module trains on the victims {', '.join(data.trained_victims)}, but the checkpoint's "
                f"victim head knows {', '.join(victims or [])} (use the same victims and held_out)"
            )

    def _compare_victims(self, trained: dict[str, str] | None) -> None:
        data = self._data()
        if trained is None or not hasattr(data, "victim_fingerprints"):
            return
        present = data.victim_fingerprints()
        other = [name for name in trained if name in present and present[name] != trained[name]]
        if other and self._fitting():
            raise ValueError(
                f"REDRL: the weights of victim {', '.join(other)} are not those that the checkpoint was trained with "
                "(give the same victims, or train anew without --ckpt_path)"
            )
        if other:
            rank_zero_warn(f"REDRL: it was trained with other weights of victim {', '.join(other)}")

    def _fitting(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING

    def _validating(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.VALIDATING

    def _data(self) -> Any:
        return None if self._trainer is None or self._identifies else getattr(self._trainer, "datamodule", None)

    @property
    def _identifies(self) -> bool:
        # anybody's pictures have no classes and no victims
        return self._trainer is not None and isinstance(getattr(self._trainer, "datamodule", None), PictureFolder)

    def _uses(self, part: str) -> bool:
        return self.hparams["inputs"] == "residual" and float(self.hparams[f"weight_{part}"]) != 0

    @property
    def _asks_victims(self) -> bool:
        # while training, recognition alone decides
        return self.reconstructor is not None and self.trainer.state.fn != "fit"

    def _outputs(self, recovery: Recovery) -> dict[str, Tensor | None]:
        made, said = recovery.reconstructed, recovery.attribution
        outputs = {
            "reconstructed": None if made is None else made.clamp(0, 1),
            "residual": recovery.residual,
            "prediction": recovery.logits.argmax(1),
        }
        if said is not None:
            outputs["victim"] = None if said.victim is None else said.victim.argmax(1)
            outputs["budget"] = None if said.budget is None else grey_levels(said.budget) / 255
        return outputs

    def _begin(self, split: str) -> None:
        self._recognition[split].to(self.device).reset()
        self._scores[split].reset(self.device)
        if self._reconstruction is not None:
            self._reconstruction.to(self.device).reset()
        self.calibrator.begin(split, self.device)

    def _evaluate(self, batch: AdversarialBatch, split: str) -> dict[str, Tensor | None]:
        recovery = self(batch.adversarial, batch.clean)
        outputs = self._outputs(recovery)
        assert outputs["prediction"] is not None
        self._recognition[split].update(outputs["prediction"], batch.attack)
        self._scores[split].update(batch, outputs["prediction"], recovery.attribution)
        self.calibrator.update(split, recovery.logits, batch.attack)
        if outputs["reconstructed"] is not None and self._asks_victims:
            self._ask_victims(batch, outputs["reconstructed"])
        return outputs

    def _ask_victims(self, batch: AdversarialBatch, made: Tensor) -> None:
        data = self._data()
        assert self._reconstruction is not None
        clean = batch.attack == 0
        for number, name in enumerate(data.victim_names):
            rows = (clean | (batch.victim == number)).nonzero()[:, 0]
            if len(rows):
                victim = data.victim(name, self.device)
                before, after = victim(batch.adversarial[rows]).argmax(1), victim(made[rows].float()).argmax(1)
                whose = torch.full_like(rows, number)
                self._reconstruction.update(before, after, batch.label[rows], batch.attack[rows], whose)

    def _report(self, split: str) -> None:
        data = self._data()
        found: dict[str, Any] = self._recognition[split].compute()
        classes = data.attack_classes
        per_class = {name: float(value) for name, value in zip(classes, found["per_class"], strict=True)}
        weighted = found["weighted"]
        asked = self._reconstruction is not None and self._asks_victims
        counts = self._reconstruction.compute().tolist() if asked else []  # type: ignore[union-attr]
        self.results = {
            "stage": split,
            "inputs": self.hparams["inputs"],
            "classes": list(classes),
            "victims": list(data.victim_names),
            "recognition": {
                "micro": float(found["micro"]),
                "macro": float(found["macro"]),
                "weighted": None if weighted is None else float(weighted),
                "per_class": per_class,
                "counts": dict(zip(classes, found["counts"].tolist(), strict=True)),
                "confusion": found["confusion"].tolist(),
            },
            "reconstruction": {
                victim: {
                    name: {"before": before / images, "after": after / images, "images": images}
                    for name, (before, after, images) in zip(classes, counts[number], strict=True)
                    if images
                }
                for number, victim in enumerate(data.victim_names if asked else [])
            },
            "crafting": data.report(split),
            "calibration": self.calibrator.report(split),
        }
        beside = self._scores[split].results()
        self.results |= beside
        # equal on every rank already: the metrics have been reduced
        self.log(f"{split}/recognition", found["macro"], prog_bar=True, sync_dist=True)
        numbers = {f"{split}/recognition_micro": found["micro"]}
        if weighted is not None:
            numbers[f"{split}/recognition_weighted"] = weighted
        numbers |= {f"{split}/recognition/{name}": value for name, value in per_class.items()}
        for victim, row in self.results["reconstruction"].items():
            for name, cell in row.items():
                numbers[f"{split}/accuracy_before/{victim}/{name}"] = cell["before"]
                numbers[f"{split}/accuracy_after/{victim}/{name}"] = cell["after"]
        scores = self.results["calibration"].get("test", {})
        numbers |= {
            f"test/{name}": scores[name] for name in ("coverage", "accuracy_answered", "calibration_error") if scores
        }
        self.log_dict(numbers | attribution_numbers(beside, split), sync_dist=True)

    def _check(self) -> None:
        fields = self.hparams
        for field in ("width", "blocks"):
            if fields[field] < 1:
                raise ValueError(f"REDRL: {field} must be at least 1, got {fields[field]}")
        for field in ("weight_reconstruction", "weight_features", "weight_classification", "weight_decay"):
            if not fields[field] >= 0:
                raise ValueError(f"REDRL: {field} must be at least 0, got {fields[field]}")
        if not 0 <= fields["label_smoothing"] < 1:
            raise ValueError(f"REDRL: label_smoothing must be in [0, 1), got {fields['label_smoothing']}")
        if not 0 < fields["coverage"] <= 1:
            raise ValueError(f"REDRL: coverage must be in (0, 1], got {fields['coverage']}")
        if not fields["learning_rate"] > 0:
            raise ValueError(f"REDRL: learning_rate must be greater than 0, got {fields['learning_rate']}")
        if len(set(fields["heads"])) < len(fields["heads"]) or not set(fields["heads"]) <= {"victim", "budget"}:
            raise ValueError(f"REDRL: heads must be some of victim and budget, each once, got {fields['heads']}")
        for field, known in (("inputs", ("residual", "delta", "image")), ("schedule", ("paper", "onecycle"))):
            if fields[field] not in known:
                raise ValueError(f"REDRL: {field} must be one of {', '.join(known)}, got {fields[field]!r}")
