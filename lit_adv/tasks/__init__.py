"""What is trained: LightningModules, each with its loss; and techniques that learn a classifier in one call."""

from lit_adv.tasks.adversarial_training import AdversarialTraining
from lit_adv.tasks.crafting import Crafting
from lit_adv.tasks.defensive_distillation import DefensiveDistillation
from lit_adv.tasks.ensemble_adversarial_training import EnsembleAdversarialTraining
from lit_adv.tasks.fit_attack import FitAttack
from lit_adv.tasks.parseval_retraction import ParsevalRetraction
from lit_adv.tasks.parseval_training import ParsevalTraining
from lit_adv.tasks.perturbation_generator import PerturbationGenerator
from lit_adv.tasks.redrl import REDRL
from lit_adv.tasks.techniques import EstimatorTechnique, NetworkTechnique, Technique
from lit_adv.tasks.victim_classifier import VictimClassifier

__all__ = [
    "REDRL",
    "Crafting",
    "EstimatorTechnique",
    "FitAttack",
    "NetworkTechnique",
    "ParsevalRetraction",
    "ParsevalTraining",
    "DefensiveDistillation",
    "PerturbationGenerator",
    "AdversarialTraining",
    "EnsembleAdversarialTraining",
    "Technique",
    "VictimClassifier",
]
