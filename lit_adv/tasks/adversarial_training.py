"""Training on adversarial images that the network itself gives rise to."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_adv.attacks import FGSM, KLPGD, PGD, Attack, GeneratedPerturbation, linf_budget
from lit_adv.attacks.attack import predictions
from lit_adv.attacks.randomness import mix_int
from lit_adv.models import Classifier
from lit_adv.models.classifier import ClassifierName
from lit_adv.tasks.demands import check_trainer
from lit_adv.tasks.free_perturbation import FreePerturbation
from lit_adv.tasks.robust_losses import mart_loss, trades_loss
from lit_adv.tasks.victim_classifier import Batch, VictimClassifier
from lit_adv.tasks.weight_average import averaged_copy, update_average_
from lit_adv.tasks.weight_perturbation import WeightPerturbation

LossName = Literal["adversarial", "trades", "mart"]


class AdversarialTraining(VictimClassifier):
    """Trains a classifier on adversarial images, Madry et al. 2018 (arXiv:1706.06083), and the ways that came after.

    Each step crafts against the weights of that step; the perturbation is then a constant. Settings make of it:

    * Madry's min-max: the defaults. An attack of K steps costs K forward and K backward passes an image and one of each
      for the weights.
    * Mixed FGSM, Goodfellow et al. 2015: ``attack`` FGSM, ``clean_weight`` 0.5.
    * Fast, Wong et al. 2020 (arXiv:2001.03994): ``attack`` PGD of one step of 1.25 eps from a random start,
      ``schedule`` cyclic. `RandFGSM` is another such attack.
    * Free, Shafahi et al. 2019 (arXiv:1904.12843): ``replays`` m, ``attack`` FGSM. One backward pass gives the gradient
      for weights and images, each batch is trained on m times, and the perturbation is carried on. Take an m-th of the
      epochs.
    * TRADES and MART: ``loss``. AWP: ``awp``.
    * Against a learned generator, Baluja & Fischer 2018 (arXiv:1703.09387): ``attack`` GeneratedPerturbation,
      ``update_attack``.

    Crafting takes no gradient of a parameter, calls the network itself and so reduces nothing between processes, and
    leaves train flags, buffers and ``.grad`` as they are. Its random numbers depend on ``seed``, the epoch and the
    image alone: neither on the number of processes nor on where a run was interrupted.

    Validation also attacks: ``val/robust_acc`` is the share of the images that are classified rightly and stay so. It
    is what the best checkpoint is chosen by, and what EarlyStopping should watch, as robust accuracy falls again when
    clean accuracy still rises (Rice et al. 2020, arXiv:2002.11569). Tests log ``test/robust_acc``.

    Args:
        name: The architecture.
        attack: What crafts. None takes what the loss is made for: PGD (8/255, steps of 2/255, 10 steps), KLPGD with the
            same numbers for ``trades``, FGSM for ``replays``.
        clean_weight: a in a J(x) + (1 - a) J(x'), in [0, 1]; 0 trains on adversarial images alone, 1 attacks nothing.
        loss: ``adversarial`` is this sum; ``trades`` (Zhang et al. 2019) and ``mart`` (Wang et al. 2020) have their
            own.
        beta: Weight of the divergence in ``trades`` (None: 6) and ``mart`` (None: 5).
        replays: m of free adversarial training; 1 is none of it.
        awp: gamma of adversarial weight perturbation, Wu et al. 2020, 0.005 there; 0 is none. One forward and backward
            pass more a step.
        attack_label: Whether the attack leaves the ``true`` class, or the ``predicted`` one, so that no perturbation
            tells the label (label leaking, Kurakin et al. 2017). One forward pass more.
        update_attack: Whether an attack that learns (`GeneratedPerturbation`) takes a step against the network before
            each of the network's own (Baluja & Fischer 2018): one forward and backward pass more. Its state is in the
            checkpoint. Without it the attack stays as it was given.
        crafting_mode: ``eval`` crafts with BatchNorm's running statistics, ``keep`` with those of the batch, in train
            mode; running statistics do not move.
        crafting_precision: ``bf16`` crafts under autocast to bfloat16, about twice as fast where the processor has such
            instructions; the weights' own passes stay as they are. ``same`` crafts as the trainer's precision has it.
        halves: Where clean and adversarial images are both trained on: ``apart`` in two forward passes, clean first,
            each normalised by its own batch statistics; ``together`` in one pass of both.
        schedule: ``steps`` is that of ``milestones``; ``cyclic`` rises to ``learning_rate`` over the first half of the
            run and falls to 0 over the second, step by step.
        ema_decay: Of an average of the weights, which is then what is validated, tested and found in the checkpoint; 0
            is none. It begins with less and grows to this (see `update_average_`).
        val_attack: The attack of validation and test. None takes PGD with ``attack``'s Linf radius, ten steps of a
            quarter of it, so that a defence against one step only is seen through; or ``attack`` where it has no such
            radius.
        seed: Of the attacks.
        **kwargs: See `VictimClassifier`.

    Attributes:
        attack: What crafts.
        val_attack: What validation attacks with.
        average: The averaged network, None without ``ema_decay``.

    Raises:
        ValueError: A field is out of range, or two of them do not go together.
    """

    monitor = "val/robust_acc"
    objects: tuple[str, ...] = ("attack", "val_attack")

    def __init__(
        self,
        name: ClassifierName,
        attack: Attack | None = None,
        clean_weight: float = 0.0,
        loss: LossName = "adversarial",
        beta: float | None = None,
        replays: int = 1,
        awp: float = 0.0,
        attack_label: Literal["true", "predicted"] = "true",
        update_attack: bool = False,
        crafting_mode: Literal["eval", "keep"] = "eval",
        crafting_precision: Literal["same", "bf16"] = "same",
        halves: Literal["apart", "together"] = "apart",
        schedule: Literal["steps", "cyclic"] = "steps",
        ema_decay: float = 0.0,
        val_attack: Attack | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        self._check_settings(attack)
        default = FGSM() if replays > 1 else KLPGD() if loss == "trades" else PGD()
        self.attack = default if attack is None else attack
        self.val_attack = _judge(self.attack) if val_attack is None else val_attack
        self.average: Classifier | None = None
        self.val_robust = MeanMetric()
        self.test_robust = MeanMetric()
        # Lightning's own optimisation knows one step a batch
        self.automatic_optimization = replays == 1
        self._updates = 0
        self._batch = 0
        self._free = FreePerturbation()
        self._awp: WeightPerturbation | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of images `(B, C, H, W)` in `[0, 1]`; in eval mode the average's, where there is one."""
        logits: Tensor = (self.model if self.training else self.network)(images)
        return logits

    @property
    def network(self) -> Classifier:
        """What is validated, tested and used: the average of the weights, or the model itself where there is none."""
        return self.model if self.average is None else self.average

    def craft(self, images: Tensor, labels: Tensor) -> Tensor:
        """The adversarial images ``(B, C, H, W)`` that this step trains on."""
        network = self.source()
        if self.hparams["attack_label"] == "predicted":
            labels = predictions(network, images)
        if (learner := self._learner) is not None:
            learner.update(network, images, labels)
        seed = mix_int(self.hparams["seed"], self.current_epoch)
        low = self.hparams["crafting_precision"] == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16) if low else nullcontext():
            return self.attack(network, images, labels, seed=seed, mode=self.hparams["crafting_mode"])

    def source(self) -> nn.Module:
        """The network that this step crafts on: the one in training."""
        return self.model

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of the settings: `()` of clean images `(B, C, H, W)` and labels `(B,)`.

        With ``awp`` the weights are left perturbed, for the backward pass; `on_after_backward` restores them.
        """
        if self.hparams["clean_weight"] == 1:
            return super().training_loss(images, labels)
        adversarial = self.craft(images, labels)
        if self._awp is not None:
            self._awp.perturb(lambda: self._loss(images, adversarial, labels))
        try:
            return self._loss(images, adversarial, labels)
        except BaseException:
            # a checkpoint that is saved because of it must hold the weights themselves
            self.on_after_backward()
            raise

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """`training_loss` of one batch; with ``replays`` all steps on it, and the loss of the last."""
        self._batch = batch_idx
        if self.automatic_optimization:
            return super().training_step(batch, batch_idx)
        images, labels = batch
        loss = self._train_free(images, labels, batch_idx)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts loss, accuracy and accuracy under attack."""
        super().validation_step(batch, batch_idx)
        self._count_robust(batch, self.val_robust)
        self.log(
            "val/robust_acc", self.val_robust, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch[0])
        )

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts accuracy and accuracy under attack."""
        super().test_step(batch, batch_idx)
        self._count_robust(batch, self.test_robust)
        self.log("test/robust_acc", self.test_robust, on_step=False, on_epoch=True, batch_size=len(batch[0]))

    def configure_callbacks(self) -> Sequence[pl.Callback]:
        """Adds a refusal of trainers that the settings do not go together with.

        Raises:
            ValueError: See `check_trainer`; `gradient_clip_val` or 16-bit floats with ``replays``, SyncBatchNorm with
                ``crafting_mode`` keep.
        """
        callbacks = super().configure_callbacks()
        given, trainer = self.hparams, self.trainer
        once = {"replays": 1, "awp": 0, "update_attack": False}
        check_trainer(self, {field: given[field] for field, neutral in once.items() if given[field] != neutral})
        if given["replays"] > 1 and trainer.gradient_clip_val:
            raise ValueError(
                f"{self._name}: trainer.gradient_clip_val must be null with replays {given['replays']}, whose steps are"
                f" the task's own, got {trainer.gradient_clip_val} (leave one of them out)"
            )
        if given["replays"] > 1 and trainer.precision == "16-mixed":
            raise ValueError(
                f"{self._name}: trainer.precision must not be 16-mixed with replays {given['replays']}: a scaled loss"
                " that overflows would be carried on in the perturbation (--trainer.precision=bf16-mixed)"
            )
        synchronised = getattr(trainer.strategy, "_layer_sync", None) is not None and trainer.world_size > 1
        if given["crafting_mode"] == "keep" and synchronised:
            raise ValueError(
                f"{self._name}: crafting_mode must be eval with trainer.sync_batchnorm, got keep: processes whose"
                " images take unequal numbers of passes would wait for each other (leave one of them out)"
            )
        return callbacks

    def on_fit_start(self) -> None:
        """Refuses to train without the attack that is to learn; a checkpoint that is read to be used needs none."""
        self._check_learner(self.attack)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass; one that fails leaves no perturbed weights behind."""
        try:
            super().backward(loss, *args, **kwargs)
        except BaseException:
            self.on_after_backward()
            raise

    def on_after_backward(self) -> None:
        """Takes back the perturbation of the weights."""
        if self._awp is not None:
            self._awp.restore()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, and the average's."""
        super().optimizer_step(*args, **kwargs)
        self._update_average()

    def on_train_epoch_end(self) -> None:
        """Steps the schedule of epochs, which Lightning leaves to a task with ``replays``."""
        scheduler: Any = self.lr_schedulers()
        if not self.automatic_optimization and self.hparams["schedule"] == "steps":
            scheduler.step()

    def configure_optimizers(self) -> Any:
        """SGD as in `VictimClassifier`, with the schedule of the settings."""
        configured: Any = super().configure_optimizers()
        if self.hparams["schedule"] == "cyclic":
            total = int(self.trainer.estimated_stepping_batches) * self.hparams["replays"]
            if self.trainer.max_steps > 0:  # which counts steps of the optimiser, each replay one
                total = min(total, self.trainer.max_steps)
            cycle = torch.optim.lr_scheduler.LambdaLR(
                configured["optimizer"], lambda step: max(0.0, 1 - abs(2 * (step + 0.5) / total - 1))
            )
            configured["lr_scheduler"] = {"scheduler": cycle, "interval": "step"}
        return configured

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the average in the model's place, where there is one: it is what others shall load."""
        super().on_save_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        for key in [key for key in state if key.startswith(_AVERAGE)]:
            plain = _MODEL + key.removeprefix(_AVERAGE)
            state[_RAW + key.removeprefix(_AVERAGE)] = state[plain]
            state[plain] = state.pop(key)
        checkpoint["average_updates"] = self._updates
        if (learner := self._learner) is not None:
            checkpoint["attack_training"] = learner.training_state()
        if self._free.whole is not None:
            checkpoint["free_perturbation"] = self._free.whole

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes weights, average and perturbation apart again.

        Raises:
            ValueError: The checkpoint holds no classifier, or another one, or a schedule of another kind.
        """
        super().on_load_checkpoint(checkpoint)
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        stored = checkpoint.get("hyper_parameters", {})
        for field in ("schedule", "replays") if fitting else ():
            before = stored.get(field, self.hparams[field])
            if before != self.hparams[field]:
                raise ValueError(
                    f"{self._name}: {field} must be {before!r} to resume this checkpoint, got {self.hparams[field]!r}"
                    " (train anew without --ckpt_path)"
                )
        state = checkpoint["state_dict"]
        saved = {key.removeprefix(_MODEL): value for key, value in state.items() if key.startswith(_MODEL)}
        raw = {key: state.pop(key) for key in list(state) if key.startswith(_RAW)}
        if self.average is not None:
            state.update({_AVERAGE + key: value for key, value in saved.items()})
        if fitting and raw:
            state.update({_MODEL + key.removeprefix(_RAW): value for key, value in raw.items()})
        self._updates = int(checkpoint.get("average_updates", 0))
        self._free.whole = checkpoint.get("free_perturbation")
        learner = self._learner
        if fitting and learner is not None and "attack_training" in checkpoint:
            learner.load_training_state(checkpoint["attack_training"])

    def _build(self, model: Classifier) -> None:
        super()._build(model)
        if self.hparams["ema_decay"]:
            self.average = averaged_copy(model)
        if self.hparams["awp"]:
            self._awp = WeightPerturbation(model, self.hparams["awp"])

    def _loss(self, images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        kind, share = self.hparams["loss"], self.hparams["clean_weight"]
        smoothing = self.hparams["label_smoothing"]
        if kind == "adversarial" and share == 0:
            return F.cross_entropy(self.model(adversarial), labels, label_smoothing=smoothing)
        clean_logits, logits = self._both(images, adversarial)
        if kind == "trades":
            return trades_loss(clean_logits, logits, labels, self._beta, smoothing)
        if kind == "mart":
            return mart_loss(clean_logits, logits, labels, self._beta)
        clean, hard = (F.cross_entropy(each, labels, label_smoothing=smoothing) for each in (clean_logits, logits))
        return share * clean + (1 - share) * hard

    def _both(self, images: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        if self.hparams["halves"] == "apart":
            return self.model(images), self.model(adversarial)
        clean, hard = self.model(torch.cat([images, adversarial])).chunk(2)
        return clean, hard

    def _train_free(self, images: Tensor, labels: Tensor, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        eps = linf_budget(self.attack) or 0.0
        delta = self._free.take(images)
        for _ in range(self.hparams["replays"]):
            delta.requires_grad_()
            loss = F.cross_entropy(
                self.model((images + delta).clamp(0, 1)), labels, label_smoothing=self.hparams["label_smoothing"]
            )
            optimizer.zero_grad()
            self.manual_backward(loss)
            assert delta.grad is not None
            delta = (delta.detach() + eps * delta.grad.sign()).clamp(-eps, eps)
            optimizer.step()
            self._update_average()
            if self.hparams["schedule"] == "cyclic":
                scheduler.step()
        self._free.put(delta)
        return loss.detach()

    def _update_average(self) -> None:
        if self.average is not None:
            update_average_(self.average, self.model, self.hparams["ema_decay"], self._updates)
            self._updates += 1

    def _count_robust(self, batch: Batch, metric: MeanMetric) -> None:
        images, labels = batch
        robust = predictions(self.network, images) == labels
        right = robust.nonzero()[:, 0]
        found = self.val_attack.run(self.network, images[right], labels[right], seed=self.hparams["seed"])
        robust[right] = ~found.success
        metric.update(robust.float())

    @property
    def _learner(self) -> GeneratedPerturbation | None:
        """The attack, where it is trained too; a checkpoint may be read without it."""
        if self.hparams["update_attack"] and isinstance(self.attack, GeneratedPerturbation):
            return self.attack
        return None

    @property
    def _beta(self) -> float:
        beta: float | None = self.hparams["beta"]
        return {"trades": 6.0, "mart": 5.0}[self.hparams["loss"]] if beta is None else beta

    def _check_settings(self, attack: Attack | None) -> None:
        given = self.hparams
        self._check_range("clean_weight", given["clean_weight"], "in [0, 1]", 0 <= given["clean_weight"] <= 1)
        self._check_range("replays", given["replays"], "at least 1", given["replays"] >= 1)
        self._check_range("awp", given["awp"], "in [0, 1)", 0 <= given["awp"] < 1)
        self._check_range("ema_decay", given["ema_decay"], "in [0, 1)", 0 <= given["ema_decay"] < 1)
        for field, valid in _CHOICES.items():
            if given[field] not in valid:
                raise ValueError(f"{self._name}: {field} must be {' or '.join(valid)}, got {given[field]!r}")
        plain = given["loss"] == "adversarial"
        if given["beta"] is not None:
            self._check_range("beta", given["beta"], "at least 0", given["beta"] >= 0)
            self._refuse(plain, "beta", given["beta"], "loss adversarial, which has no such weight")
        self._refuse(
            given["clean_weight"] and not plain, "clean_weight", given["clean_weight"], f"loss {given['loss']}"
        )
        if attack is not None:
            self._check_learner(attack)
        smooth = given["label_smoothing"]
        self._refuse(smooth and given["loss"] == "mart", "label_smoothing", smooth, "loss mart")
        if given["replays"] == 1:
            return
        for field, neutral in _NOT_WITH_REPLAYS.items():
            self._refuse(given[field] != neutral, field, given[field], f"replays {given['replays']}")
        if attack is not None and not isinstance(attack, FGSM):
            raise ValueError(
                f"{self._name}: attack must be FGSM with replays {given['replays']} (its eps is radius and step of the"
                f" perturbation carried on), got {type(attack).__name__}"
            )

    def _check_learner(self, attack: Attack) -> None:
        if self.hparams["update_attack"] and not isinstance(attack, GeneratedPerturbation):
            raise ValueError(
                f"{self._name}: attack must learn where update_attack is set, got {type(attack).__name__} (take"
                " GeneratedPerturbation, or leave update_attack out)"
            )

    def _refuse(self, wrong: Any, field: str, value: Any, other: str) -> None:
        if wrong:
            raise ValueError(
                f"{self._name}: {field} {value!r} does not go together with {other} (leave one of them out)"
            )


def _judge(attack: Attack) -> Attack:
    eps = linf_budget(attack)
    return attack if eps is None else PGD(eps=eps, step_size=eps / 4)


_MODEL, _AVERAGE, _RAW = "model.", "average.", "raw."
_CHOICES = {
    "loss": ("adversarial", "trades", "mart"),
    "attack_label": ("true", "predicted"),
    "crafting_mode": ("eval", "keep"),
    "crafting_precision": ("same", "bf16"),
    "halves": ("apart", "together"),
    "schedule": ("steps", "cyclic"),
}
_NOT_WITH_REPLAYS = {
    "loss": "adversarial",
    "clean_weight": 0,
    "awp": 0,
    "attack_label": "true",
    "update_attack": False,
    "crafting_mode": "eval",
    "crafting_precision": "same",
}
