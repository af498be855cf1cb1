"""Figures show the values they were given."""

import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_adv.plots import Example, confusion_figure, example_grid


def test_confusion_shows_shares_counts_and_empty_rows() -> None:
    figure = confusion_figure([[8, 2, 0], [0, 1234, 0], [0, 0, 0]], ["clean", "pgd", "a $\\bad$ name"], title="50 %")
    _pixels(figure)
    axes = figure.axes[0]
    words = [text.get_text() for text in axes.texts]
    assert words == ["80.0%", "8", "20.0%", "2", "0", "0", "100.0%", "1,234", "0"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2, 0], [0, 1, 0], [0, 0, 0]])
    assert [label.get_text() for label in axes.get_yticklabels()][2] == "a $\\bad$ name\n0 images"
    assert axes.get_title() == "50 %"


def test_a_share_too_small_to_show_is_not_shown_as_none() -> None:
    figure = confusion_figure([[9999, 1], [1, 1]], ["a", "b"])
    assert [text.get_text() for text in figure.axes[0].texts][2:4] == ["<0.1%", "1"]


def test_confusion_must_fit_the_classes() -> None:
    with pytest.raises(ValueError, match=r"confusion must have shape \(2, 2\), got \(3, 3\)"):
        confusion_figure(np.zeros((3, 3), int), ["a", "b"])


def test_grid_shows_every_panel_in_its_place_and_colour() -> None:
    """Panels of one colour must come out as that colour where they belong: grey as grey, nothing blurred together."""
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    panels = tuple(np.broadcast_to(colour[:, None, None], (3, 8, 8)) for colour in colours)
    grey = np.full((1, 8, 8), 0.5, np.float32)
    figure = example_grid(
        {"rgb": [Example(panels, "right ✓", True)], "grey": [Example((grey, grey, grey), "wrong ✗", False)]},
        ["one", "two", "three"],
        title="title",
    )
    pixels = _pixels(figure)
    centres = [[_centre(figure, axes) for axes in figure.axes[3 * row : 3 * row + 3]] for row in range(2)]
    assert [pixels[y, x].tolist() for x, y in centres[0]] == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert all(abs(int(value) - 127) <= 1 for x, y in centres[1] for value in pixels[y, x])
    assert centres[0][0][0] < centres[0][1][0] < centres[0][2][0]
    assert centres[0][0][1] < centres[1][0][1]
    words = [text.get_text() for text in figure.texts]
    assert words == ["title", "rgb", "one", "two", "three", "right ✓", "grey", "wrong ✗"]


def test_small_images_are_enlarged_without_smoothing() -> None:
    checks = np.indices((8, 8)).sum(0, keepdims=True) % 2
    figure = example_grid({"row": [Example((checks.astype(np.float32),), "")]}, ["column"])
    box = figure.axes[0].get_window_extent()
    left, right = int(box.x0) + 2, int(box.x1) - 2
    top, bottom = int(figure.bbox.height - box.y1) + 2, int(figure.bbox.height - box.y0) - 2
    inside = _pixels(figure)[top:bottom, left:right]
    # interpolation would leave a ramp of greys between the 8 x 8 squares; a seam may fall on a pixel
    assert np.isin(inside, [0, 255]).mean() > 0.9
    assert box.width >= 200


def test_large_images_and_uneven_rows() -> None:
    large = np.random.default_rng(0).random((3, 400, 300), dtype=np.float32)
    figure = example_grid({"a": [Example((large,), "1"), Example((large,), "2")], "b": [Example((large,), "3")]}, ["x"])
    assert len(figure.axes) == 3
    box = figure.axes[0].get_window_extent()
    assert box.height / box.width == pytest.approx(400 / 300)
    _pixels(figure)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ({}, ["a"], "at least one example"),
        ({"row": []}, ["a"], "at least one example"),
        (
            {"row": [Example((np.zeros((2, 4, 4)),), "")]},
            ["a"],
            r"must have shape \(1, H, W\) or \(3, H, W\), got \(2,",
        ),
        ({"row": [Example((np.zeros((1, 4, 4)),), "")]}, ["a", "b"], "as many as columns, got 1 and 2"),
    ],
)
def test_grid_refuses_what_it_cannot_show(rows, columns, message) -> None:
    with pytest.raises(ValueError, match=message):
        example_grid(rows, columns)


def test_pyplot_knows_of_no_figure() -> None:
    confusion_figure([[1]], ["a"])
    example_grid({"row": [Example((np.zeros((1, 4, 4)),), "")]}, ["a"])
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def _pixels(figure: Figure) -> np.ndarray:
    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def _centre(figure: Figure, axes) -> tuple[int, int]:
    box = axes.get_window_extent()
    return int((box.x0 + box.x1) / 2), int(figure.bbox.height - (box.y0 + box.y1) / 2)
