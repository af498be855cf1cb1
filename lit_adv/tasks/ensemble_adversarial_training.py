"""Training on adversarial images that other networks give rise to as well."""

from pathlib import Path
from typing import Any

from torch import nn

from lit_adv.attacks import FGSM, Attack
from lit_adv.attacks.randomness import mix_int
from lit_adv.models import freeze_, load_classifier
from lit_adv.models.classifier import ClassifierName
from lit_adv.tasks.adversarial_training import AdversarialTraining


class EnsembleAdversarialTraining(AdversarialTraining):
    """Crafts on the network in training or on one of several trained ones, Tramer et al. 2018 (arXiv:1705.07204).

    Each batch has one source, drawn uniformly from the network itself and the ``sources``; the loss is half clean, half
    adversarial. A single-step attack on the network itself can be made useless by the network (its gradients are
    masked); attacks on others cannot. The sources are frozen, in eval mode, and neither trained nor part of a
    checkpoint. All processes draw the same source, from ``seed``, the epoch and the number of the batch.

    Args:
        name: The architecture.
        sources: Trained networks by any names: modules, or paths of checkpoints as `load_classifier` reads them.
        statics_only: Whether the network itself is never the source.
        attack: What crafts; None takes FGSM of 8/255.
        clean_weight: Share of the clean loss. None takes the paper's 1/2, and 0 with a ``loss`` that has its own clean
            part.
        **kwargs: See `AdversarialTraining`.

    Attributes:
        drawn: Name of the source drawn last; empty for the network itself.

    Raises:
        ValueError: No sources, or ``replays``; later, a source that takes other images or has other classes.
    """

    objects = ("attack", "val_attack", "sources")
    sources: dict[str, str | nn.Module]
    drawn: str

    def __init__(
        self,
        name: ClassifierName,
        sources: dict[str, str | nn.Module] | None = None,
        statics_only: bool = False,
        attack: Attack | None = None,
        clean_weight: float | None = None,
        **kwargs: Any,
    ) -> None:
        replays = kwargs.get("replays", 1)
        self._refuse(replays != 1, "replays", replays, "an ensemble: the perturbation carried on is the network's own")
        if clean_weight is None:
            clean_weight = 0.5 if kwargs.get("loss", "adversarial") == "adversarial" else 0.0
        super().__init__(name, attack=FGSM() if attack is None else attack, clean_weight=clean_weight, **kwargs)
        # beside the submodules: neither trained nor saved
        self.__dict__["sources"] = dict(sources or {})
        self.__dict__["drawn"] = ""

    def setup(self, stage: str) -> None:
        """Loads and checks the sources, where they are needed.

        Raises:
            ValueError: There are none, or one takes other images or has other classes.
            FileNotFoundError: The file of one is missing.
        """
        if stage != "fit":
            return
        if not self.sources:
            raise ValueError(
                f"{self._name}: sources must name at least one trained network, got none (without one, use"
                " AdversarialTraining)"
            )
        for name, source in self.sources.items():
            if isinstance(source, str) and not Path(source).is_file():
                raise FileNotFoundError(
                    f"{self._name}: sources: there is no checkpoint '{source}' for {name} (train it first, by lightning"
                    " fit with the config of that network, or correct the path)"
                )
            network = load_classifier(source) if isinstance(source, str) else source
            self._check_source(name, network)
            self.sources[name] = freeze_(network).to(self.device)

    def source(self) -> nn.Module:
        """The network that this step crafts on."""
        names = list(self.sources) if self.hparams["statics_only"] else ["", *self.sources]
        # batches that make one step together have one source, as one large batch has
        step = self._batch // (1 if self._trainer is None else self.trainer.accumulate_grad_batches)
        draw = mix_int(self.hparams["seed"], self.current_epoch, step)
        # the sign bit aside, as a remainder of a negative number is no index
        self.__dict__["drawn"] = names[(draw & ((1 << 63) - 1)) % len(names)]
        if not self.drawn:
            return self.model
        network = self.sources[self.drawn]
        assert isinstance(network, nn.Module)
        if next((p.device for p in network.parameters()), self.device) != self.device:
            network.to(self.device)
        return network

    def _check_source(self, name: str, network: nn.Module) -> None:
        theirs = getattr(network, "spec", {})
        own: dict[str, Any] = {field: self._from_data(field) for field in ("num_classes", "in_channels")}
        for field, value in own.items():
            if theirs.get(field, value) != value:
                raise ValueError(
                    f"{self._name}: source {name!r} must have {field} {value}, got {theirs[field]} (train it on the"
                    " same images and classes)"
                )
