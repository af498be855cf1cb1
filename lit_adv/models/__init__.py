"""Networks: classifiers with their normalisation inside, and the networks that REDRL is made of."""

from lit_adv.models.attribution import Attribution, AttributionHeads
from lit_adv.models.classifier import Classifier, classifier, export_classifier, load_classifier, save_classifier
from lit_adv.models.features import VGGFeatures
from lit_adv.models.frozen import fingerprint, freeze_
from lit_adv.models.generator import PerturbationNetwork
from lit_adv.models.lipschitz import lipschitz_bound
from lit_adv.models.neutralization import NeutralizationDefense, neutralize
from lit_adv.models.parseval import ParsevalWideResNet, WideResNet
from lit_adv.models.parseval_layers import ConvexSum, ParsevalConv2d, ParsevalLinear
from lit_adv.models.parseval_retraction import parseval_retraction_, project_simplex
from lit_adv.models.redrl import AttackRecognizer, Reconstructor
from lit_adv.models.robustbench_networks import PreActResNet, RobustBenchWideResNet
from lit_adv.models.temperature import Temperature

__all__ = [
    "AttackRecognizer",
    "Attribution",
    "AttributionHeads",
    "Classifier",
    "ConvexSum",
    "NeutralizationDefense",
    "ParsevalConv2d",
    "ParsevalLinear",
    "ParsevalWideResNet",
    "PerturbationNetwork",
    "PreActResNet",
    "Reconstructor",
    "RobustBenchWideResNet",
    "Temperature",
    "VGGFeatures",
    "WideResNet",
    "classifier",
    "export_classifier",
    "fingerprint",
    "freeze_",
    "lipschitz_bound",
    "load_classifier",
    "neutralize",
    "parseval_retraction_",
    "project_simplex",
    "save_classifier",
]
