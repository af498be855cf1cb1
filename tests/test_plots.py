"""Figures show the values they were given."""

import itertools
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_adv.plots import (
    Example,
    HeatMap,
    Localization,
    Panel,
    Profile,
    RegionExample,
    Representatives,
    Scale,
    budget_figure,
    budget_grid_figure,
    confusion_figure,
    example_grid,
    heat_map_figure,
    iterations_figure,
    localization_figure,
    methods_figure,
    neutralization_figure,
    panel_grid,
    profile_figure,
    quality_figure,
    regions_figure,
    representatives_figure,
    robustness_report_figure,
    threshold_figure,
    transfer_figure,
)


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


def test_panels_lie_in_their_places_with_nothing_over_them() -> None:
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=np.float32)
    panels = [Panel(np.broadcast_to(colour[:, None, None], (3, 4, 8)), "caption") for colour in colours]
    scales = {"map": Scale("label", "viridis", 0.2, 0.6), "unused": Scale("no bar", "gray")}
    middle = Panel(np.full((4, 8), 0.6), "", "map")
    rows = [("a name of\ntwo lines", [panels[0], panels[1], None]), ("b", [panels[2], panels[3], middle])]
    figure = panel_grid(rows, ["1", "2", "3"], "a title that is longer than what lies below it", scales, "down", "over")
    pixels = _pixels(figure)
    shown = [tuple(pixels[y, x]) for x, y in (_centre(figure, axes) for axes in figure.axes[:5])]
    assert shown == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (253, 231, 36)]
    assert len(figure.axes) == 6  # and one colour bar
    assert figure.axes[5].get_xlabel() == "label"
    _apart(figure)


def test_panels_must_fit() -> None:
    one = Panel(np.zeros((1, 4, 4)))
    with pytest.raises(ValueError, match="at least one panel"):
        panel_grid([("a", [None])])
    with pytest.raises(ValueError, match=r"same number of panels, got \[1, 2\] and 0"):
        panel_grid([("a", [one]), ("b", [one, one])])
    with pytest.raises(ValueError, match=r"same number of panels, got \[1\] and 2"):
        panel_grid([("a", [one])], ["1", "2"])
    with pytest.raises(ValueError, match=r"values must have shape .* got \(2, 4, 4\)"):
        panel_grid([("a", [Panel(np.zeros((2, 4, 4)))])])


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_and_activation_maps(channels) -> None:
    image, ssim = torch.rand(channels, 6, 6), torch.rand(channels, 6, 6)
    row = Localization(image, ssim, torch.rand(6, 6), "class 1 → 2")
    figure = localization_figure({"pgd/linf": row, "an attack of a longer name": row}, "title")
    _pixels(figure)
    _apart(figure)
    assert len(figure.axes) == 2 * (channels + 2) + 2
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), ssim[0])
    np.testing.assert_allclose(figure.axes[channels + 1].images[0].get_array(), row.cam)
    assert {"SSIM"} if channels == 1 else {"SSIM, red", "SSIM, green", "SSIM, blue"} <= _words(figure)


def test_methods_below_the_clean_images() -> None:
    clean, other = np.random.default_rng(0).random((2, 3, 3, 5, 5))
    figure = methods_figure(clean, {"fgsm\neps 0.1": other})
    _pixels(figure)
    _apart(figure)
    assert len(figure.axes) == 6
    np.testing.assert_allclose(figure.axes[4].images[0].get_array(), np.moveaxis(other[1], 0, -1))


def test_differences_over_iterations() -> None:
    clean = np.full((1, 4, 4), 0.5)
    images = clean + np.array([0.25, -0.1])[:, None, None, None] * np.eye(4)
    budgets = {"pgd": [0.25, 0.1], "fgsm": [float("nan"), 0.1]}
    figure = iterations_figure(clean, {"pgd": images, "fgsm": images}, budgets, [10, 70], "title")
    _pixels(figure)
    _apart(figure)
    assert {"budget 0.25", "difference × 2", "difference × 5", "10 iterations", "70 iterations"} <= _words(figure)
    # clean, then two images and two differences of pgd, then one of each
    assert len(figure.axes) == 7
    np.testing.assert_allclose(figure.axes[3].images[0].get_array(), 0.5 + 0.5 * np.eye(4))
    np.testing.assert_allclose(figure.axes[4].images[0].get_array(), 0.5 - 0.5 * np.eye(4))
    with pytest.raises(ValueError, match=r"pgd must have one image and one budget for each of \[10\], got 2 and 2"):
        iterations_figure(clean, {"pgd": images}, budgets, [10])


def test_the_plane_of_two_budgets() -> None:
    images = torch.rand(2, 3, 3, 4, 4)
    figure = budget_grid_figure(images, [0, 0.01], [0.001, 0.01, 0.1], "PGAP", [["a", "b", "c"], ["d", "e", "f"]])
    _pixels(figure)
    _apart(figure)
    assert {"eps1", "eps2", "0.01", "0.001", "f"} <= _words(figure)
    np.testing.assert_allclose(figure.axes[5].images[0].get_array(), images[1, 2].permute(1, 2, 0))
    with pytest.raises(ValueError, match=r"images must have shape \(3, 2, C, H, W\)"):
        budget_grid_figure(images, [0, 1, 2], [0, 1])


def test_curves_over_the_threshold() -> None:
    thresholds = torch.tensor([0.1, 0.2, 0.3])
    names = [f"attack/{number} $x" for number in range(16)]
    scores = ("precision", "pixels", "recall", "iou_outside")
    curves = {name: {score: [i / 20, None, 0.5] for score in scores} for i, name in enumerate(names)}
    figure = threshold_figure(thresholds, curves, 0.2, "title")
    _pixels(figure)
    assert [axes.get_ylabel() for axes in figure.axes] == ["precision", "pixels perturbed", "recall", "IoU outside"]
    for axes in figure.axes:
        lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
        np.testing.assert_allclose(lines[2].get_ydata(), [0.1, np.nan, 0.5], rtol=1e-6)
        # every line can be told from every other
        assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 16
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    _legend_apart(figure)


def test_a_score_far_below_1_has_a_scale_of_its_own() -> None:
    curves = {"a": {"precision": [0.1, None], "recall": [0.1, 0.9]}, "b": {"precision": [0.12, 0.2], "recall": [0, 0]}}
    figure = threshold_figure([0.1, 0.2], curves, scores={"precision": "precision", "recall": "recall"})
    assert figure.axes[0].get_ylim() == pytest.approx((-0.0075, 0.2575))
    assert figure.axes[1].get_ylim() == pytest.approx((-0.03, 1.03))
    curves = {"a": {"precision": [None, None]}}
    assert threshold_figure([0.1, 0.2], curves, scores={"precision": ""}).axes[0].get_ylim() == (-0.03, 1.03)


@pytest.mark.parametrize(
    ("ssim", "marks"),
    [
        ([0.3, 0.95, 0.99985], ["0.9", "0.99", "0.999"]),
        ([0.5, 0.9999], ["0.9", "0.99", "0.999", "0.9999"]),
        ([-0.2, 0.8], ["0", "0.5", "0.8"]),
        ([1.0, 0.9], ["0.9", "0.99", "0.999", "0.9999", "0.99999", "0.999999"]),
        ([0.997, 0.997], []),
    ],
)
def test_ssim_is_spread_near_1(ssim, marks) -> None:
    curves = {"pgd": {"fooling_rate": [0] * len(ssim), "ssim": ssim, "psnr": ssim}}
    figure = quality_figure(curves, ssim=0.998)
    _pixels(figure)
    axes = figure.axes[0]
    places = axes.transData.transform([(0, value) for value in (0.9, 0.99, 0.999)])[:, 1]
    assert places[2] - places[1] == pytest.approx(places[1] - places[0])
    low, high = axes.get_ylim()
    assert low < min(ssim) <= min(max(ssim), 1 - 1e-6) < high
    shown = [text.get_text() for text in axes.get_yticklabels()]
    assert set(marks) <= set(shown)
    assert len(shown) <= 8


def test_quality_and_budget_against_the_fooling_rate() -> None:
    curves = {"pgd": {"fooling_rate": [0, 1], "ssim": [1, 0.9], "psnr": [60, 30]}}
    figure = quality_figure(curves, ssim=0.95, psnr=40)
    _pixels(figure)
    _legend_apart(figure)
    left, right = figure.axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("mean SSIM", "mean PSNR (dB)")
    data = [list(line.get_ydata()) for line in right.lines if len(line.get_ydata()) == 2]
    assert data == [[60, 30], [40, 40]]
    figure = budget_figure({"pgd": ([0.1, 1], [0.2, 0.9]), "fgsm": ([1, 2], [0.1, 0.3])}, {"pgd": "eps (L2)"})
    _pixels(figure)
    first, second = figure.axes
    assert (first.get_xscale(), first.get_xlabel(), second.get_xlabel()) == ("log", "eps (L2)", "budget")
    assert list(second.lines[0].get_ydata()) == pytest.approx([0.1, 0.3])
    assert (first.get_title(), second.get_title()) == ("pgd", "fgsm")
    with pytest.raises(ValueError, match="there must be something to show"):
        budget_figure({})


@pytest.mark.parametrize("share_y", [True, False])
def test_saliency_profiles_over_the_layers(share_y) -> None:
    layers = [3, 5, 2]
    profiles = {"clean": Profile([0.1] * 10), "pgd/4 $x": Profile(torch.linspace(3, -1, 10), "7 images")}
    figure = profile_figure(profiles, layers, share_y, title="title")
    _pixels(figure)
    first, second = figure.axes
    assert (first.get_title("left"), second.get_title("left")) == ("clean", "pgd/4 $x")
    assert second.get_title("right") == "7 images"
    # steps that are as wide as a filter
    steps = second.patches[-1].get_data()
    np.testing.assert_allclose(steps.values, np.linspace(3, -1, 10), rtol=1e-6)
    np.testing.assert_array_equal(steps.edges, np.arange(11))
    # every other layer is a band
    assert [(band.get_x(), band.get_width()) for band in second.patches[:-1]] == [(0, 3), (8, 2)]
    assert [text.get_text() for text in first.texts] == ["1", "2", "3"]
    assert (first.get_ylim() == second.get_ylim()) is share_y
    assert second.get_xlim() == (0, 10)
    with pytest.raises(ValueError, match=r"clean must have one number for each of 11 filters, got \(10,\)"):
        profile_figure(profiles, [3, 5, 3])
    with pytest.raises(ValueError, match="there must be something to show"):
        profile_figure({}, layers)


def test_a_filter_far_above_all_others_leaves_them_visible() -> None:
    curve = np.sin(np.arange(200.0))
    high = np.where(np.arange(200) == 20, 1234.0, curve)
    nothing = np.full(200, np.nan)
    figure = profile_figure({"a": Profile(curve), "b": Profile(high), "c": Profile(nothing)}, [200], share_y=True)
    _pixels(figure)
    bottom, top = figure.axes[1].get_ylim()
    assert -1.3 < bottom < -1
    assert 1 < top < 3
    assert [text.get_text() for text in figure.axes[1].texts] == ["1 filter up to 1,234"]
    assert not figure.axes[2].texts
    figure = profile_figure({"a": Profile(curve), "b": Profile(3 * high)}, [200], share_y=False)
    assert figure.axes[0].get_ylim()[1] < 1.2 < 3 < figure.axes[1].get_ylim()[1] < 7
    assert figure.axes[1].get_ylim()[0] > -4


@pytest.mark.parametrize("channels", [1, 3])
def test_heat_maps_over_their_images(channels) -> None:
    image, heat = np.full((channels, 6, 6), 0.5), np.zeros((6, 6))
    heat[2, 3] = 1
    one = HeatMap(image, heat, "class 1", "taken for 2")
    figure = heat_map_figure(
        {"image 0": {"clean": one, "pgd": one}, "image 4": {"pgd": one}}, ["clean", "pgd"], "title"
    )
    _pixels(figure)
    _apart(figure)
    assert {"image 0\nclass 1", "saliency", "taken for 2", "clean", "pgd"} <= _words(figure)
    assert len(figure.axes) == 6
    overlaid = np.asarray(figure.axes[2].images[0].get_array())
    # jet's ends, dark red and dark blue, added to grey and scaled by the largest
    np.testing.assert_allclose(overlaid[2, 3], np.array([1.0, 0.5, 0.5]), atol=1e-2)
    np.testing.assert_allclose(overlaid[0, 0], np.array([0.5, 0.5, 1.0]), atol=1e-2)


@pytest.mark.parametrize("channels", [1, 3])
def test_regions_in_their_colours_and_the_blob_over_the_image(channels) -> None:
    roi = torch.tensor([[1, 1], [0, 0]]).float()
    roa = torch.tensor([[1, 0], [1, 0]]).float()
    grey = torch.full((channels, 2, 2), 0.5)
    maps = {"importance": roi, "attack": 0.1 * roa, "roi": roi, "roa": roa, "blob": roi}
    pictures = dict.fromkeys(("image", "adversarial", "modified", "modified_adversarial"), grey)
    words = ["right", "wrong", "right", "lost"]
    figure = regions_figure([RegionExample("0 → 1\n.5", **pictures, **maps, captions=words)], "title")
    _pixels(figure)
    assert {*words, "0 → 1\n.5", "title", "regions", "blocked"} <= _words(figure)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes[:9]]
    assert len({tuple(shown[6][place].round(3)) for place in np.ndindex(2, 2)}) == 4
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    colours = [tuple(np.round(patch.get_facecolor()[:3], 3)) for patch in figure.legends[0].get_patches()]
    by_name = dict(zip(labels, colours, strict=True))
    for place, name in (((0, 0), "both"), ((0, 1), "RoI only"), ((1, 0), "RoA only"), ((1, 1), "neither")):
        (colour,) = (value for key, value in by_name.items() if key.startswith(name))
        assert tuple(shown[6][place].round(3)) == colour
    np.testing.assert_allclose(shown[4], roa)  # over its maximum
    for number, mask in ((2, roi), (5, roa), (7, roi)):
        changed = np.abs(shown[number] - 0.5).max(-1) > 1e-6
        np.testing.assert_array_equal(changed, mask.bool())
    figure = representatives_figure({"0 → 1": Representatives(0.6 * roi, 0.4 * roa, roi, grey, "50 % blocked")})
    _pixels(figure)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes[:4]]
    np.testing.assert_allclose(shown[0], 0.6 * roi)
    assert tuple(shown[2][0, 0].round(3)) == by_name["RoI only (UV⁻)"]  # 0.4 is below one half
    assert "50 % blocked" in _words(figure)


def test_accuracies_with_their_intervals() -> None:
    half = {"accuracy": 0.5, "low": 0.3, "high": 0.7}
    none = dict.fromkeys(half)
    rows = {f"row {number}": {"clean": half, "adaptive": none if number else half} for number in range(4)}
    figure = neutralization_figure(rows, {"clean": "clean", "adaptive": "knows the blob"}, "title")
    _pixels(figure)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title("left") for axes in panels] == list(rows)
    assert [len(axes.lines) for axes in panels] == [4, 2, 2, 2]
    line, point = panels[1].lines
    np.testing.assert_allclose(line.get_xdata(), [30, 70])
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (50, 1)  # clean at the top
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["clean", "knows the blob"]


def test_pyplot_knows_of_no_figure() -> None:
    confusion_figure([[1]], ["a"])
    example_grid({"row": [Example((np.zeros((1, 4, 4)),), "")]}, ["a"])
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def _pixels(figure: Figure) -> np.ndarray:
    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def _words(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.texts}


def _apart(figure: Figure) -> None:
    """Words and pictures inside the figure, none over another."""
    boxes = [text.get_window_extent() for text in figure.texts if text.get_text()]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    for number, box in enumerate(boxes):
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
        assert not any(box.shrunk(0.98, 0.9).overlaps(other) for other in boxes[:number])


def _legend_apart(figure: Figure) -> None:
    box = figure.legends[0].get_window_extent()
    assert box.x1 <= figure.bbox.width
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)


def _centre(figure: Figure, axes) -> tuple[int, int]:
    box = axes.get_window_extent()
    return int((box.x0 + box.x1) / 2), int(figure.bbox.height - (box.y0 + box.y1) / 2)


def test_many_classes_are_drawn_small_and_parted_by_family() -> None:
    names = [f"attack_{number}" for number in range(13)]
    counts = np.diag(np.full(13, 500))
    counts[0, 1], counts[0, 2] = 1, 499
    families = ["a"] * 4 + ["b"] * 8 + ["c"]
    figure = confusion_figure(counts, names, families=families)
    _pixels(figure)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts][:3] == ["50", "<1", "50"]
    assert len(axes.texts) == 13 + 2  # none in empty cells
    assert max(figure.get_size_inches()) < 11
    lines = {tuple(np.unique(line.get_ydata())) for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert lines == {(3.5,), (11.5,)}
    # no name over another
    figure.canvas.draw()
    labels = axes.get_yticklabels()
    places = sorted((box.y0, box.y1) for box in (label.get_window_extent() for label in labels))
    assert all(low[1] <= high[0] for low, high in itertools.pairwise(places))
    assert labels[0].get_text() == "attack_0 (1,000)"
    assert all(label.get_rotation() == 60 for label in axes.get_xticklabels())


def test_families_must_fit_the_classes() -> None:
    with pytest.raises(ValueError, match="families must be 2, one for each class, got 1"):
        confusion_figure(np.zeros((2, 2), int), ["a", "b"], families=["a"])


def test_the_frame_of_the_white_box_is_seen_on_any_colour():
    figure = transfer_figure([[1.0, 0.2], [0.9, 0.1]], ["a", "b"], ["a", "b"])
    dark, light = (patch.get_edgecolor()[:3] for patch in figure.axes[0].patches)
    assert min(dark) == 1.0
    assert max(light) < 0.25


def test_a_title_in_two_lines_does_not_widen_a_grid():
    rows = [("a", [Panel(np.zeros((4, 4)), scale="s")])]
    one = panel_grid(rows, title="x" * 60, scales={"s": Scale("s", "viridis")})
    two = panel_grid(rows, title="\n".join(["x" * 30] * 2), scales={"s": Scale("s", "viridis")})
    assert two.get_figwidth() < one.get_figwidth()


def test_the_robustness_report_shows_every_number_once() -> None:
    accuracies = {
        "clean": {"accuracy": 0.9, "low": 0.85, "high": 0.93},
        "PGD": {"accuracy": 0.42, "low": 0.37, "high": 0.48},
        "Square": {"accuracy": None, "low": None, "high": None},
    }
    signs = {
        "D1": {"value": -0.2, "low": -0.25, "high": -0.15, "limit": 0.01, "flag": "no"},
        "D2": {"value": 0.3, "low": 0.2, "high": 0.4, "limit": 0.02, "flag": "beyond"},
        "D3": {"value": None, "low": None, "high": None, "limit": 0.0, "flag": "no"},
        "D9": {"value": -0.06, "low": -0.1, "high": -0.02, "limit": 0.05, "flag": "within", "both_sides": True},
    }
    curves = {"FGSM": [(1.0, 0.1), (0.0, 0.9), (0.1, 0.5)], "PGD": [(0.0, 0.9), (0.1, 0.42), (1.0, 0.0)]}
    figure = robustness_report_figure(
        accuracies, signs, curves, "Linf 0.1", "gradient masking likely: " + "words " * 60
    )
    _pixels(figure)
    left, middle, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["90.0", "42.0"]
    assert [text.get_text() for text in middle.texts] == ["not made"]
    colours = [line.get_color() for line in middle.lines if line.get_marker() == "o"]
    assert colours == ["#52606d", "#d7263d", "#e69f00"]
    thresholds = sorted({float(x) for line in middle.lines if line.get_color() == "#1f2933" for x in line.get_xdata()})
    assert thresholds == [-5, 1, 2, 5]
    assert list(right.lines[0].get_xdata()) == [0, 0.1, 1]
    assert list(right.lines[0].get_ydata()) == [90, 50, 10]
    # the words above stay on the picture
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert len(robustness_report_figure(accuracies, signs).axes) == 2
