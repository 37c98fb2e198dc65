import base64

import matplotlib
import numpy as np
import pytest
from figure_checks import extent, outlines, panel_pixels
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure

from ssmctb_monai.metrics.view import Plane, View
from ssmctb_monai.visualize.plots import (
    CURVES,
    LESION_OUTLINE,
    THRESHOLD_OUTLINE,
    add_colorbar,
    data_uri,
    draw_image,
    draw_map,
    draw_outlines,
    draw_overlay,
    plot_curve,
    plot_overlay,
    plot_profile,
    plot_style,
    prepare_panel,
    score_limits,
)


def make_view(size=24, image=True):
    generator = np.random.default_rng(0)
    label = np.zeros((size, size), dtype=bool)
    label[8:12, 6:14] = True
    brain = np.zeros_like(label)
    brain[3:-4, 2:-2] = True
    picture, scores = (generator.random((size, size)) for _ in range(2))
    plane = Plane(picture.astype(np.float16) if image else None, scores, brain | label, label)
    return View("A", "model", "lesion", 12, 0.9, plane)


@pytest.mark.parametrize("name", CURVES)
def test_curves_are_drawn_as_they_are(name):
    curves = {
        "model": {name: {"x": [0, 0.1, 1], "y": [0, 0.8, 1]}},
        "without": {},
        "baseline": {name: {"x": [0, 0.4, 1], "y": [0, 0.5, 1]}},
        "_old": {name: {"x": [0, 1], "y": [0, 0.25]}},
    }
    axes = Figure().add_subplot()
    plot_curve(axes, curves, name)
    lines = {line.get_label(): line for line in axes.get_lines()}
    for method in ("model", "baseline", "_old"):
        assert lines[method].get_xdata().tolist() == curves[method][name]["x"]
        assert lines[method].get_ydata().tolist() == curves[method][name]["y"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["model", "baseline", "_old"]
    styles = {(line.get_color(), line.get_linestyle()) for line in lines.values()}
    assert len(styles) == len(lines)
    assert len(lines) == 3 + name.endswith("_roc")  # with the diagonal
    alone = Figure().add_subplot()
    plot_curve(alone, {"a": {}, "b": {}, "baseline": curves["baseline"]}, name)
    assert alone.get_lines()[0].get_color() == lines["baseline"].get_color()  # by place, whoever lacks the curve


@pytest.mark.parametrize(("largest", "scale", "end"), [(0, "linear", 1), (8, "linear", 8.16), (100, "symlog", 102)])
def test_froc_of_many_false_positives_is_logarithmic(largest, scale, end):
    axes = Figure().add_subplot()
    plot_curve(axes, {"model": {"lesion_froc": {"x": [0, largest], "y": [0, 1]}}}, "lesion_froc")
    assert axes.get_xscale() == scale
    assert axes.get_xlim() == pytest.approx((0, end))
    assert ("logarithmic" in axes.get_xlabel()) == (scale == "symlog")


def test_profile_marks_lesion_slices_and_threshold():
    axes = Figure().add_subplot()
    plot_profile(axes, [3, 4, 5, 6, 9], [0.1, 0.5, 0.7, 0.2, 0.3], [True, True, False, True, True], 0.4, (0, 2))
    profile, threshold = axes.get_lines()
    assert profile.get_xdata().tolist() == [3, 4, 5, 6, 9]
    assert profile.get_ydata().tolist() == [0.1, 0.5, 0.7, 0.2, 0.3]
    assert list(threshold.get_ydata()) == [0.4, 0.4]
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
    assert spans == [(2.5, 4.5), (5.5, 6.5), (8.5, 9.5)]
    assert axes.get_ylim() == pytest.approx((-0.1, 2.1))


def test_profile_without_lesion_and_threshold():
    axes = Figure().add_subplot()
    plot_profile(axes, [7], [0.1], [False])
    assert not axes.patches
    assert [line.get_marker() for line in axes.get_lines()] == ["o"]  # a line of one point would not show


def test_overlay_shows_image_map_and_outlines():
    view = make_view()  # the brain with a margin is all of it
    figure = Figure()
    plot_overlay(figure, view, threshold=0.5, limits=(0, 1))
    image, anomaly_map, overlay, bar = figure.axes
    np.testing.assert_array_equal(image.images[0].get_array(), view.plane.image.T.astype(np.float32))
    scores, brain = anomaly_map.images[0].get_array(), view.plane.brain.T
    np.testing.assert_array_equal(scores.mask, ~brain)
    np.testing.assert_array_equal(scores.compressed(), view.plane.scores.T[brain])
    assert anomaly_map.images[0].get_clim() == (0, 1)
    found = outlines(overlay)
    assert extent(found[LESION_OUTLINE]) == [7.5, 5.5, 11.5, 13.5]
    assert set(found) == {LESION_OUTLINE, to_hex(THRESHOLD_OUTLINE)}
    assert overlay.get_title(loc="center") + overlay.get_title(loc="left") == "Overlay (lesion solid, threshold dashed)"
    assert bar.get_ylim() == (0, 1)
    assert not outlines(image)
    assert not outlines(anomaly_map)


def test_overlay_without_threshold_has_no_outline_of_it():
    figure = Figure()
    plot_overlay(figure, make_view())
    assert list(outlines(figure.axes[2])) == [LESION_OUTLINE]


def test_overlay_without_image_is_the_map_with_outlines():
    figure = Figure()
    plot_overlay(figure, make_view(image=False), threshold=0.5)
    assert len(figure.axes) == 2  # with the colour bar
    assert len(outlines(figure.axes[0])) == 2


@pytest.mark.parametrize("panel", [0, 1, 2])
@pytest.mark.parametrize(("right", "front"), [(True, True), (True, False), (False, True), (False, False)])
def test_overlay_has_the_right_on_the_left_and_the_front_at_the_top(panel, right, front):
    shape = (40, 60)  # planes run from the right and from the front
    blob = np.zeros(shape, bool)
    blob[(slice(4, 12) if right else slice(28, 36)), (slice(6, 16) if front else slice(44, 54))] = True
    plane = Plane(0.2 + 0.8 * blob, blob.astype(float), np.ones(shape, bool), np.zeros(shape, bool))
    view = View("A", "model", "lesion", 3, 1.0, plane)
    figure = Figure(figsize=(9, 3), layout="constrained")
    plot_overlay(figure, view, limits=(0, 1))
    axes = figure.axes[panel]
    places = {text.get_text(): text.get_window_extent() for text in axes.texts}
    pixels = panel_pixels(figure, axes).sum(axis=-1)
    height, width = pixels.shape
    down, across = np.nonzero(pixels > 0.8 * pixels.max())
    assert (across.mean() < width / 2) == right
    assert (down.mean() < height / 2) == front
    across_of, down_of = ({side: getattr(box, name) for side, box in places.items()} for name in ("x0", "y0"))
    assert sorted(places) == ["A", "L", "P", "R"]
    assert across_of["R"] < across_of["A"] < across_of["L"]
    assert down_of["P"] < down_of["R"] < down_of["A"]


def test_overlay_is_cropped_to_the_brain_but_never_to_less_than_half():
    view = make_view(size=60)
    view.plane.brain[:] = view.plane.label[:] = False
    view.plane.brain[28:33, 10:50] = True
    figure = Figure()
    plot_overlay(figure, view)
    assert figure.axes[0].images[0].get_array().shape == (48, 37)  # with a margin of 4: 40, and 5 made nearly 30
    view.plane.brain[:] = False
    whole = Figure()
    plot_overlay(whole, view)
    assert whole.axes[0].images[0].get_array().shape == (60, 60)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scores", [np.inf, -np.inf, 0.25])
def test_overlay_takes_constant_and_infinite_scores(scores):
    view = make_view()
    view.plane.scores[:] = scores
    figure = Figure(layout="constrained")
    plot_overlay(figure, view, threshold=0.5)
    assert data_uri(figure, "png")


def test_scores_outside_the_brain_may_be_undefined():
    view = make_view()
    view.plane.scores[~view.plane.brain] = np.nan
    figure = Figure()
    plot_overlay(figure, view, limits=(0, 1))
    overlay = figure.axes[2].images[0].get_array()
    outside = ~view.plane.brain.T
    image = view.plane.image.T.astype(np.float32)
    np.testing.assert_allclose(overlay[outside], np.repeat(image[outside][:, None], 3, axis=1), rtol=1e-6)


def make_plane(**changes):
    parts = {
        "image": np.array([[0.0, 0.5, 1.0], [0.4, 0.4, 0.4]]),
        "scores": np.array([[0.0, 1.0, 2.0], [4.0, 4.0, -3.0]]),
        "brain": np.array([[True, True, True], [True, False, True]]),
        "label": None,
    }
    return Plane(**{**parts, **changes})


def test_overlay_is_the_more_opaque_the_higher_the_score():
    axes = Figure().add_subplot()
    draw_overlay(axes, make_plane(), Normalize(0, 4, clip=True))
    drawn = axes.images[0].get_array()
    assert drawn.shape == (3, 2, 3)  # down, across, colour
    inferno = matplotlib.colormaps["inferno"]
    for (across, down), gray, share in [((0, 0), 0, 0), ((0, 1), 0.5, 0.25), ((0, 2), 1, 0.5), ((1, 0), 0.4, 1)]:
        expected = (1 - 0.55 * share) * gray + 0.55 * share * np.array(inferno(float(share))[:3])
        np.testing.assert_allclose(drawn[down, across], expected, atol=1e-6)
    for down in (1, 2):  # outside the brain, and below the scale
        np.testing.assert_allclose(drawn[down, 1], 0.4, atol=1e-6)


def test_a_plane_lies_as_its_arrays_do():
    figure = Figure(figsize=(4, 4))
    axes = figure.add_axes((0, 0, 1, 1))
    prepare_panel(axes, "RLSI", "a title")
    image = np.zeros((20, 10))
    image[15:, :2] = 1  # the first axis runs across, the second down
    plane = make_plane(image=image, scores=image, brain=image < 2, aspect=3.0)
    draw_image(axes, plane)
    pixels = panel_pixels(figure, axes).sum(axis=-1) > 1.5
    down, across = np.nonzero(pixels)
    assert down.mean() < 150 < 250 < across.mean()  # of 400
    assert (np.ptp(down) + 1) / (np.ptp(across) + 1) == pytest.approx(2 * 3 / 5, rel=0.03)
    assert [text.get_text() for text in axes.texts] == list("RLSI")


def test_outlines_take_what_is_given():
    label = np.zeros((2, 3), bool)
    label[1, 0] = True
    for given, threshold, expected in [
        (None, None, set()),
        (np.zeros_like(label), None, set()),
        (label, None, {LESION_OUTLINE}),
        (None, 2.0, {to_hex(THRESHOLD_OUTLINE)}),
        (label, 2.0, {LESION_OUTLINE, to_hex(THRESHOLD_OUTLINE)}),
        (None, 4.1, set()),
    ]:
        axes = Figure().add_subplot()
        draw_outlines(axes, make_plane(label=given), threshold)
        assert set(outlines(axes)) == expected
    axes = Figure().add_subplot()
    draw_outlines(axes, make_plane(label=label), 2.0)
    assert extent(outlines(axes)[LESION_OUTLINE]) == [0.5, -0.5, 1.5, 0.5]
    dashed = outlines(axes)[to_hex(THRESHOLD_OUTLINE)].get_paths()[0].to_polygons()
    around = sorted([*points.min(axis=0), *points.max(axis=0)] for points in dashed)
    assert around == [[-0.5, 1.5, 0.5, 2.5], [0.5, -0.5, 1.5, 0.5]]  # not at (1, 1), outside the brain


def test_a_plane_without_image_has_a_map_only():
    plane = make_plane(image=None)
    axes = Figure().add_subplot()
    draw_map(axes, plane, Normalize(0, 4))
    assert axes.images[0].get_array().count() == 5
    with pytest.raises(ValueError, match="no image"):
        draw_image(axes, plane)


@pytest.mark.parametrize(("threshold", "lines"), [(None, 0), (0.0, 0), (0.5, 1), (4.0, 0), (9.0, 0)])
def test_colour_bar_shows_the_threshold_that_is_on_it(threshold, lines):
    figure = Figure()
    axes, place = figure.subplots(1, 2)
    add_colorbar(figure, Normalize(0, 4), threshold, "Anomaly score", cax=place)
    bar = figure.axes[1]
    assert bar is place
    assert bar.get_ylim() == (0, 4)
    assert [list(line.get_ydata()) for line in bar.get_lines()] == [[threshold, threshold]] * lines
    assert bar.get_ylabel() == "Anomaly score"
    add_colorbar(figure, Normalize(0, 4), threshold, ax=axes)
    assert figure.axes[2].get_position().x0 > axes.get_position().x1


def test_score_limits_ignore_what_is_infinite():
    scores = np.linspace(2, 4, 2001).reshape(3, -1)
    assert score_limits([scores, np.array([np.inf, -np.inf])]) == pytest.approx((2.002, 3.998))
    assert score_limits([scores, scores + 10]) == pytest.approx((2.004, 13.996), abs=1e-3)
    assert score_limits(iter([scores])) == pytest.approx((2.002, 3.998))
    assert score_limits([]) == (0, 1)


def test_limits_of_a_view_ignore_what_is_outside_the_brain():
    view = make_view()
    view.plane.scores[:] = 99
    view.plane.scores[view.plane.brain] = np.linspace(2, 4, view.plane.brain.sum())
    figure = Figure()
    plot_overlay(figure, view)
    assert figure.axes[1].images[0].get_clim() == pytest.approx((2, 4), abs=0.02)


def test_style_scales_with_the_text():
    before = dict(matplotlib.rcParams)
    with plot_style(7):
        axes = Figure().add_subplot(title="A title")
        axes.plot([0, 1])
        assert (axes.xaxis.label.get_fontsize(), axes.get_lines()[0].get_linewidth()) == (7, 1.4)
        assert axes._left_title.get_fontsize() == 8
    assert dict(matplotlib.rcParams) == before


def test_data_uris_are_pictures():
    with plot_style():
        figure = Figure(figsize=(1, 1))
        figure.add_subplot()
    svg, png = (data_uri(figure, kind) for kind in ("svg", "png"))
    assert svg.startswith("data:image/svg+xml;base64,")
    assert b"<svg" in base64.b64decode(svg.split(",")[1])
    assert base64.b64decode(png.removeprefix("data:image/png;base64,"))[1:4] == b"PNG"
