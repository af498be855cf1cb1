"""Lightning callbacks of lit_adv, imported as ``lit_adv.callbacks``."""

from .confusion_matrix import ConfusionMatrix
from .figures import log_figure
from .reconstruction_grid import ReconstructionGrid
from .results_table import ResultsTable
from .robustness_table import RobustnessTable
from .run_progress import RunProgress
from .ssim_precision import SSIMPrecision

__all__ = [
    "ConfusionMatrix",
    "RunProgress",
    "ReconstructionGrid",
    "ResultsTable",
    "RobustnessTable",
    "SSIMPrecision",
    "log_figure",
]

if __name__ == "callbacks":
    raise ImportError("import lit_adv.callbacks instead of callbacks")
