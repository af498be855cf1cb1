"""Lightning callbacks of lit_adv, imported as ``lit_adv.callbacks``."""

from lit_adv.tasks import ParsevalRetraction

from .accuracy_under_noise import AccuracyUnderNoise
from .activation_grid import ActivationGrid
from .activation_maximization import ActivationMaximization
from .adversarial_writer import AdversarialWriter
from .boundary_geometry import BoundaryGeometry
from .class_connectedness import ClassConnectedness
from .confusion_matrix import ConfusionMatrix
from .decision_regions import DecisionRegions
from .dominant_labels import DominantLabels
from .feature_space import FeatureSpace
from .figures import log_figure
from .filter_grid import FilterGrid
from .gradient_maps import GradientMaps
from .identification import IdentificationWriter
from .input_saliency import InputSaliency
from .learning_curves import LearningCurves
from .neutralization import Neutralization
from .occlusion_map import OcclusionMap
from .reconstruction_grid import ReconstructionGrid
from .results_table import ResultsTable
from .robustness_report import RobustnessReport
from .robustness_table import RobustnessTable
from .run_progress import RunProgress
from .saliency_profile import SaliencyProfile
from .singular_values import SingularValues
from .ssim_precision import SSIMPrecision
from .top_patches import TopPatches
from .transferability import Transferability

__all__ = [
    "AccuracyUnderNoise",
    "ActivationGrid",
    "ActivationMaximization",
    "AdversarialWriter",
    "BoundaryGeometry",
    "ClassConnectedness",
    "ConfusionMatrix",
    "DecisionRegions",
    "DominantLabels",
    "FeatureSpace",
    "FilterGrid",
    "GradientMaps",
    "IdentificationWriter",
    "InputSaliency",
    "LearningCurves",
    "Neutralization",
    "OcclusionMap",
    "ParsevalRetraction",
    "RunProgress",
    "ReconstructionGrid",
    "ResultsTable",
    "RobustnessReport",
    "RobustnessTable",
    "SSIMPrecision",
    "SaliencyProfile",
    "SingularValues",
    "TopPatches",
    "Transferability",
    "log_figure",
]

if __name__ == "callbacks":
    raise ImportError("import lit_adv.callbacks instead of callbacks")
