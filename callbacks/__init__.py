"""Lightning callbacks of lit_adv, imported as ``lit_adv.callbacks``."""

from lit_adv.tasks import ParsevalRetraction

from .accuracy_under_noise import AccuracyUnderNoise
from .adversarial_writer import AdversarialWriter
from .confusion_matrix import ConfusionMatrix
from .figures import log_figure
from .identification import IdentificationWriter
from .input_saliency import InputSaliency
from .learning_curves import LearningCurves
from .neutralization import Neutralization
from .reconstruction_grid import ReconstructionGrid
from .results_table import ResultsTable
from .robustness_report import RobustnessReport
from .robustness_table import RobustnessTable
from .run_progress import RunProgress
from .saliency_profile import SaliencyProfile
from .singular_values import SingularValues
from .ssim_precision import SSIMPrecision
from .transferability import Transferability

__all__ = [
    "AccuracyUnderNoise",
    "AdversarialWriter",
    "ConfusionMatrix",
    "IdentificationWriter",
    "InputSaliency",
    "LearningCurves",
    "Neutralization",
    "ParsevalRetraction",
    "RunProgress",
    "ReconstructionGrid",
    "ResultsTable",
    "RobustnessReport",
    "RobustnessTable",
    "SSIMPrecision",
    "SaliencyProfile",
    "SingularValues",
    "Transferability",
    "log_figure",
]

if __name__ == "callbacks":
    raise ImportError("import lit_adv.callbacks instead of callbacks")
