"""Numbers over a data set, as torchmetrics: integer counts that are summed, so that any number of processes agrees."""

from lit_adv.metrics.fooling import FoolingRate
from lit_adv.metrics.recognition import RecognitionAccuracy
from lit_adv.metrics.reconstruction import ReconstructionAccuracy
from lit_adv.metrics.robustness import RobustAccuracy

__all__ = ["FoolingRate", "RecognitionAccuracy", "ReconstructionAccuracy", "RobustAccuracy"]
