"""Figures of what a network sees: what is where, and what is refused."""

import matplotlib.colors
import numpy as np
import pytest

from lit_adv.plots import (
    Cloud,
    Explained,
    Tiles,
    feature_space_figure,
    gradient_maps_figure,
    neighbors_figure,
    occlusion_figure,
    patches_figure,
    tile_figure,
)
from lit_adv.plots.feature_space import class_colour


def words(figure):
    return [text.get_text() for text in figure.texts]


def inside(figure):
    """No word leaves the paper."""
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 >= 0, text.get_text()
        assert box.y0 >= 0, text.get_text()
        assert box.x1 <= width, text.get_text()
        assert box.y1 <= height, text.get_text()


def test_tiles_keep_their_order_and_rows_are_numbered():
    values = np.arange(6)[:, None, None] * np.ones((6, 4, 4))
    figure = tile_figure([Tiles(values, "block", np.ones((1, 8, 8)))], "title", columns=3)
    inside(figure)
    assert words(figure) == ["title", "block", "0", "3"]
    picture, mosaic = (axes.get_images()[0].get_array() for axes in figure.axes[:2])
    assert (picture == 1).all()
    high, wide = mosaic.shape[0] // 2, mosaic.shape[1] // 3
    middles = [mosaic[row * high + high // 2, column * wide + wide // 2] for row in range(2) for column in range(3)]
    expected = [matplotlib.colormaps["viridis"](place / 5)[:3] for place in range(6)]
    np.testing.assert_allclose(middles, expected)


def test_rows_of_tiles_are_full_where_they_can_be():
    for count, expected in ((64, 16), (32, 8), (16, 8), (1, 1)):
        rows = [int(word) for word in words(tile_figure([Tiles(np.zeros((count, 1, 3, 3)))])) if word.isdigit()]
        assert (rows[1] if len(rows) > 1 else count) == expected


def test_points_have_the_colour_of_their_class_and_the_marker_of_their_kind():
    points = np.array([[0, 0], [1, 1], [2, 2], [3, 3.0]])
    cloud = Cloud(points, [0, 1, 0, 1], [0, 0, 1, 1], "PCA", ("first", "second"))
    figure = feature_space_figure([cloud, cloud], ["clean", "pgd"], {0: "cat", 1: "dog"}, "title")
    inside(figure)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_title(loc="left")) == ("first", "PCA")
    drawn = {}
    for collection in axes.collections:
        face, edge = collection.get_facecolor(), collection.get_edgecolor()
        colour = matplotlib.colors.to_hex((face if len(face) else edge)[0])
        drawn[tuple(collection.get_offsets()[0].tolist())] = (colour, bool(len(face)))
    first, second = class_colour(0, 2), class_colour(1, 2)
    assert drawn == {(0, 0): (first, True), (1, 1): (second, True), (2, 2): (first, False), (3, 3): (second, False)}
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert sorted(labels) == ["cat", "clean", "dog", "pgd"]
    assert len({class_colour(place, 20) for place in range(20)}) == 20


def test_maps_are_scaled_by_themselves_and_zero_is_in_the_middle():
    image = np.full((3, 4, 4), 0.5)
    flat, signed = np.arange(16.0).reshape(4, 4), np.zeros((3, 4, 4))
    signed[0, 0, 0], signed[1, 1, 1] = 4, -4
    figure = gradient_maps_figure([Explained(image, {"flat": flat * 1e-9, "signed": signed}, "row")], "title")
    inside(figure)
    first, second = (axes.get_images()[0].get_array() for axes in figure.axes[1:3])
    np.testing.assert_allclose(first, (flat / np.percentile(flat, 99.5)).clip(0, 1))
    assert (second[0, 0].tolist(), second[1, 1].tolist()) == ([1, 0.5, 0.5], [0.5, 0, 0.5])
    assert (second[2:] == 0.5).all()
    drop = np.array([[0.5, -0.25], [np.nan, 0]])
    figure = occlusion_figure([Explained(np.ones((1, 2, 2)), {"drop": drop}, "row")], "lost", "title")
    assert figure.axes[1].get_images()[0].get_clim() == (-0.5, 0.5)
    # a map of zeros is none to divide by
    occlusion_figure([Explained(np.ones((1, 2, 2)), {"drop": drop * 0}, "row")], "lost")
    gradient_maps_figure([Explained(image, {"flat": flat * 0}, "row")])


def test_a_channel_with_few_patches_leaves_places_empty():
    figure = patches_figure(np.ones((2, 3, 1, 4, 4)), [[3, 2, -np.inf], [1, 0.5, 0.25]], ["0", "7"], "a longer title")
    inside(figure)
    assert len(figure.axes) == 5
    assert {"3", "0.25", "7", "rank, activation below"} <= set(words(figure))
    inside(
        neighbors_figure([("image 0, clean\ncat", [(np.ones((3, 4, 4)), "seen as cat")] * 2)], ["image", "one"], "near")
    )


def test_what_cannot_be_drawn_is_named():
    for call, message in (
        (lambda: tile_figure([]), "blocks must hold at least one block"),
        (lambda: tile_figure([Tiles(np.zeros((4, 2, 3, 3)))]), "tile_figure: values must have shape"),
        (lambda: tile_figure([Tiles(np.zeros((0, 3, 3)))]), "tile_figure: values must have shape"),
        (lambda: feature_space_figure([], ["clean"], {}), "clouds must hold at least one point"),
        (lambda: gradient_maps_figure([]), "gradient_maps_figure: examples must hold at least one image"),
        (lambda: occlusion_figure([], "x"), "occlusion_figure: examples must hold at least one image"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
