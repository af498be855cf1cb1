"""Lightning callbacks of lit_adv, imported as ``lit_adv.callbacks``."""

from .confusion_matrix import ConfusionMatrix
from .figures import log_figure
from .progress_bar import ProgressBar
from .reconstruction_grid import ReconstructionGrid
from .results_table import ResultsTable

__all__ = ["ConfusionMatrix", "ProgressBar", "ReconstructionGrid", "ResultsTable", "log_figure"]

if __name__ == "callbacks":
    raise ImportError("import lit_adv.callbacks instead of callbacks")
