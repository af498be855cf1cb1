"""What is trained: LightningModules, each with its loss."""

from lit_adv.tasks.fit_attack import FitAttack
from lit_adv.tasks.redrl import REDRL
from lit_adv.tasks.victim_classifier import VictimClassifier

__all__ = ["REDRL", "FitAttack", "VictimClassifier"]
