"""Figures from values; what is shown was computed elsewhere."""

from lit_adv.plots.confusion import confusion_figure
from lit_adv.plots.grid import Example, example_grid

__all__ = ["Example", "confusion_figure", "example_grid"]
