import json

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_checks import extent, outlines, panel_pixels
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text

from ssmctb_monai.metrics import METRICS, AnomalyEvaluation, EvaluationSettings
from ssmctb_monai.reports import build_report
from ssmctb_monai.visualize.figures import plot_case, plot_montage, plot_roc_pr
from ssmctb_monai.visualize.heatmap import load_heatmap
from ssmctb_monai.visualize.plots import INK, LESION_OUTLINE, MUTED, ORANGE, RULE, THRESHOLD_OUTLINE

DASHED = to_hex(THRESHOLD_OUTLINE)
BLOB, RADIUS = np.array([24.0, 20.0, -12.0]), 12.0  # mm RAS
LOW, HIGH = BLOB - (63, 57, 15), BLOB + np.array([27, 45, 57])  # of the brain: borders of voxels of 1.2, 2 and 6 mm
GRIDS = {  # where the scan's axes run, and their spacing
    "RAS": ("RAS", (2, 2, 2)),
    "LPS, thick slices": ("LPS", (2, 2, 6)),
    "permuted and flipped, anisotropic": ("IRP", (2, 6, 1.2)),
    "sagittal acquisition": ("PIL", (2, 1.2, 6)),
}
DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
PLANES = {  # axes of RAS space across and down, letters on the page
    "axial": ((0, 1), "RLAP"),
    "coronal": ((0, 2), "RLSI"),
    "sagittal": ((1, 2), "APSI"),
}


def make_item(grid="RAS", **changes):
    """A brain like a brick, with a blob of high scores whose middle is a voxel, but not that of the grid."""
    letters, spacing = GRIDS[grid]
    affine = np.eye(4)
    affine[:3, :3] = np.array([DIRECTIONS[letter] for letter in letters]).T * spacing
    shape = tuple(int(np.ceil(150 / step)) for step in spacing)
    affine[:3, 3] = BLOB - affine[:3, :3] @ [int(0.47 * size) for size in shape]
    voxels = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    mm = voxels @ affine[:3, :3].T + affine[:3, 3]
    brain = ((mm > LOW) & (mm < HIGH)).all(axis=-1)
    distance = np.linalg.norm(mm - BLOB, axis=-1)
    blob = distance < RADIUS
    image = np.where(brain, np.where(blob, 100, 60), 0)
    image[brain & (np.linalg.norm(mm - (LOW + 12), axis=-1) < RADIUS)] = 20
    scores = np.where(blob, 1.0, 0.5) - distance / 1000
    item = {"image": image.astype(np.float32), "anomaly_map": np.where(brain, scores, 7.0), "brain": brain}
    item |= {"label": blob, "affine": affine, "modalities": ["FLAIR"], "case_id": "P1", "threshold": 0.8}
    return {key: value for key, value in (item | changes).items() if value is not None}


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def legend(figure):
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def shown_texts(figure):
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def pixels_of(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


@pytest.fixture(scope="module")
def heatmap():
    return load_heatmap(make_item())


@pytest.fixture(scope="module")
def figure(heatmap):
    """Figure of a case, not to be changed."""
    return plot_case(heatmap)


@pytest.fixture(scope="module", params=GRIDS)
def case(request):
    """Figure of a case of each grid, and the pixels of its nine panels without letters."""
    figure = plot_case(make_item(request.param))
    texts = [[(text.get_text(), text.get_window_extent()) for text in axes.texts] for axes in figure.axes[:9]]
    return figure, [panel_pixels(figure, axes).sum(axis=-1) for axes in figure.axes[:9]], texts


# ------------------------------------------------------------------------------------------------------------- a case


@pytest.mark.parametrize("row", range(3))
def test_planes_lie_as_in_radiology_and_in_mm(case, row):
    (first, second), sides = list(PLANES.values())[row]
    _, panels, texts = case
    brain = np.argwhere(panels[3 * row] > 0.75)
    top, left = brain.min(axis=0)
    height, width = brain.max(axis=0) + 1 - (top, left)
    size = HIGH - LOW
    across = (HIGH - BLOB)[first] / size[first]  # the right, or the front, is on the left
    down = (HIGH - BLOB)[second] / size[second]
    for panel in panels[3 * row : 3 * row + 3]:
        blob = np.argwhere(panel > 0.75 * panel.max())
        assert (blob[:, 1].mean() - left) / width == pytest.approx(across, abs=0.02)
        assert (blob[:, 0].mean() - top) / height == pytest.approx(down, abs=0.02)
    assert width / height == pytest.approx(size[first] / size[second], rel=0.02)
    for letters in texts[3 * row : 3 * row + 3]:
        assert [letter for letter, _ in letters] == list(sides)
        (west, east, north, south) = (box for _, box in letters)
        assert west.x1 < north.x0 <= south.x1 < east.x0
        assert south.y1 < west.y0 <= east.y1 < north.y0


def test_all_planes_have_one_scale(case):
    _, panels, _ = case
    scales = []
    for row, ((first, second), _) in enumerate(PLANES.values()):
        brain = np.argwhere(panels[3 * row] > 0.75)
        height, width = np.ptp(brain, axis=0) + 1
        scales += [width / (HIGH - LOW)[first], height / (HIGH - LOW)[second]]
    assert max(scales) / min(scales) < 1.03


def test_titles_say_where_the_planes_cross(case):
    assert titles(case[0])[:9] == [
        *("FLAIR, axial, z = -12.0 mm", "Anomaly map", "Overlay"),
        *("FLAIR, coronal, y = 20.0 mm", "Anomaly map", "Overlay"),
        *("FLAIR, sagittal, x = 24.0 mm", "Anomaly map", "Overlay"),
    ]


def test_positions_have_a_sign():
    item = make_item()
    mirrored = np.diag([-1.0, -1.0, -1.0, 1.0]) @ item["affine"]
    named = [title.split(", ")[-1] for title in titles(plot_case(item | {"affine": mirrored}))[:9:3]]
    assert named == ["z = 12.0 mm", "y = -20.0 mm", "x = -24.0 mm"]


def test_oblique_scans_are_drawn_along_their_own_axes():
    item = make_item("LPS, thick slices")
    turn = np.eye(4)
    angle = np.deg2rad(20)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    figure = plot_case(item | {"affine": turn @ item["affine"]})
    straight = plot_case(item)
    for one, other in zip(figure.axes[:9], straight.axes[:9], strict=True):
        np.testing.assert_array_equal(one.images[0].get_array(), other.images[0].get_array())
        assert one.get_aspect() == pytest.approx(other.get_aspect())
    _, y, z = turn[:3, :3] @ BLOB
    assert titles(figure)[0] == f"FLAIR, axial, z = {z:.1f} mm"
    assert titles(figure)[3] == f"FLAIR, coronal, y = {y:.1f} mm"


def test_pictures_are_cropped_to_the_brain(figure):
    item = make_item()
    expected = [45 + 6, 51 + 6, 36 + 6]  # a margin of 5 mm takes 3 voxels of 2 mm
    shapes = [axes.images[0].get_array().shape[:2] for axes in figure.axes[:9]]
    axial, coronal, sagittal = ((expected[down], expected[across]) for across, down in ((0, 1), (0, 2), (1, 2)))
    assert shapes == [axial] * 3 + [coronal] * 3 + [sagittal] * 3
    everywhere = np.ones_like(item["brain"])
    whole = plot_case(item | {"brain": everywhere, "anomaly_map": np.where(item["brain"], item["anomaly_map"], 0)})
    assert whole.axes[0].images[0].get_array().shape == (75, 75)


def test_colours_are_those_of_the_scores_in_the_brain(figure):
    item = make_item()
    bar = figure.axes[-1]
    assert bar.get_ylim() == pytest.approx(np.percentile(item["anomaly_map"][item["brain"]], (0.1, 99.9)))
    assert {axes.images[0].get_clim() for axes in figure.axes[1:9:3]} == {bar.get_ylim()}
    assert bar.get_ylabel() == "Anomaly score"
    assert len(figure.axes) == 10


def test_outlines_and_legend_are_those_of_label_and_threshold(figure):
    assert legend(figure) == ["lesion label", "score \N{GREATER-THAN OR EQUAL TO} 0.8"]
    for index, axes in enumerate(figure.axes[:9]):
        assert set(outlines(axes)) == ({LESION_OUTLINE, DASHED} if index % 3 == 2 else set())
    left, top, right, bottom = extent(outlines(figure.axes[2])[LESION_OUTLINE])
    assert (left + right) / 2 == 13 + 3  # 13 voxels from the right end of the brain, and the margin
    assert (top + bottom) / 2 == 22 + 3
    assert right - left == bottom - top == 11  # nearer than 12 mm


def test_a_case_without_label_and_threshold_has_no_legend():
    figure = plot_case(make_item(label=None, threshold=None))
    assert not figure.legends
    assert not any(outlines(axes) for axes in figure.axes)
    assert not figure.axes[-1].get_lines()


def test_a_case_without_label_has_its_threshold_only():
    figure = plot_case(make_item(label=None))
    assert legend(figure) == ["score \N{GREATER-THAN OR EQUAL TO} 0.8"]
    assert [set(outlines(axes)) for axes in figure.axes[2:9:3]] == [{DASHED}] * 3


def test_a_threshold_that_is_given_goes_first(heatmap):
    figure = plot_case(heatmap, threshold=0.0)
    assert legend(figure)[1] == "score \N{GREATER-THAN OR EQUAL TO} 0"
    around = extent(outlines(figure.axes[2])[DASHED])
    assert around == [2.5, 2.5, 2.5 + 45, 2.5 + 51]  # the whole brain


def test_an_item_is_drawn_like_its_heatmap(figure):
    assert (pixels_of(plot_case(make_item())) == pixels_of(figure)).all()


def test_a_thin_slab_has_panels_that_can_be_read():
    item = make_item()
    slab = item["brain"].copy()
    slab[:, :, :36] = slab[:, :, 39:] = False
    figure = plot_case(item | {"brain": slab, "label": None})
    figure.draw_without_rendering()
    heights = [axes.get_window_extent().height for axes in figure.axes[:9]]
    assert min(heights) > 0.25 * max(heights)


def test_the_first_modality_is_shown(figure):
    item = make_item()
    image = np.stack([item["image"], 100 - item["image"]])
    of_two = plot_case(item | {"image": image, "modalities": ["T2", "FLAIR"]})
    assert titles(of_two)[0].startswith("T2, axial")
    np.testing.assert_array_equal(of_two.axes[0].images[0].get_array(), figure.axes[0].images[0].get_array())


@pytest.mark.parametrize("plot", [plot_case, plot_montage])
def test_what_is_missing_is_named(plot):
    with pytest.raises(KeyError, match="anomaly_map"):
        plot(make_item(anomaly_map=None))


# ----------------------------------------------------------------------------------------------------------- montage


@pytest.mark.parametrize("grid", ["RAS", "LPS, thick slices", "permuted and flipped, anisotropic"])
def test_montage_shows_even_slices_from_the_feet_up(grid):
    heatmap = load_heatmap(make_item(grid))
    slices = heatmap.slices
    figure = plot_montage(heatmap, slices=6)
    panels = figure.axes[:-1]
    middles = [part[len(part) // 2] for part in np.array_split(slices["slice"], 6)]
    shown = [int(title.split(":")[0].removeprefix("Slice ")) for title in titles(figure)[:-1]]
    assert shown == middles
    for number, axes in zip(shown, panels, strict=True):
        row = list(slices["slice"]).index(number)
        assert axes.get_title(loc="left") == f"Slice {number}: score {slices['score'][row]:.3g}"
        has_lesion = slices["lesion_voxels"][row] > 0
        assert (LESION_OUTLINE in outlines(axes)) == has_lesion
        assert {spine.get_visible() for spine in axes.spines.values()} == {has_lesion}
        if has_lesion:
            assert {to_hex(spine.get_edgecolor()) for spine in axes.spines.values()} == {ORANGE.lower()}
            pixels = panel_pixels(figure, axes).sum(axis=-1)[8:-8, 8:-8]
            down, across = np.nonzero(pixels > 0.8 * pixels.max())
            assert across.mean() < 0.45 * pixels.shape[1]
            assert down.mean() < 0.49 * pixels.shape[0]
    assert 0 < sum(axes.spines["left"].get_visible() for axes in panels) < 6


def test_montage_shows_no_slices_without_brain():
    """Also where the evaluation counts them."""
    every = load_heatmap(make_item(), EvaluationSettings(slices="all"))
    assert titles(plot_montage(every, slices=6)) == titles(plot_montage(make_item(), slices=6))


def test_slice_numbers_count_from_the_feet(heatmap):
    figure = plot_montage(heatmap, slices=500)  # of 75 of 2 mm; the blob's middle is in slice 35
    numbers = [int(title.split(":")[0].removeprefix("Slice ")) for title in titles(figure)[:-1]]
    assert numbers == list(range(35 - 7, 35 + 29))
    framed = [n for n, axes in zip(numbers, figure.axes, strict=False) if axes.spines["left"].get_visible()]
    assert framed == list(range(35 - 5, 35 + 6))


def test_montage_has_one_colour_bar_and_a_legend(heatmap):
    figure = plot_montage(heatmap, slices=7)
    assert len(figure.axes) == 7 + 1  # empty places are left out
    assert figure.axes[-1].get_ylabel() == "Anomaly score"
    assert legend(figure) == ["lesion label", "slice with lesion", "score \N{GREATER-THAN OR EQUAL TO} 0.8"]
    bare = plot_montage(make_item(label=None, threshold=None), slices=3)
    assert not bare.legends
    assert not any(axes.spines["left"].get_visible() for axes in bare.axes[:3])
    assert legend(plot_montage(make_item(label=None), slices=1, threshold=0.6)) == [
        "score \N{GREATER-THAN OR EQUAL TO} 0.6"
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 12, 20])
def test_montage_is_balanced(heatmap, count):
    figure = plot_montage(heatmap, slices=count)
    boxes = [axes.get_position() for axes in figure.axes[:-1]]
    assert len(boxes) == count
    rows, columns = (len({round(getattr(box, side), 3) for box in boxes}) for side in ("y0", "x0"))
    assert rows * columns - count <= columns // 2
    assert [(-round(box.y0, 3), box.x0) for box in boxes] == sorted((-round(box.y0, 3), box.x0) for box in boxes)
    width, height = figure.get_size_inches()
    assert width == pytest.approx(180 / 25.4)
    if count >= 6:
        assert 0.7 < width / height < 2.6


def test_montage_needs_a_slice(heatmap):
    with pytest.raises(ValueError, match="slices=0"):
        plot_montage(heatmap, slices=0)


# ---------------------------------------------------------------------------------------------------------- ROC and PR


def make_evaluation(patients=3, lesion=True, methods=("model", "baseline"), normal=True, metrics=tuple(METRICS)):
    settings = EvaluationSettings(resamples=40, top_k=3, slab_depth=3, min_lesion_size=2)
    evaluation = AnomalyEvaluation(settings=settings, metrics=metrics)
    for index in range(patients):
        rng = np.random.default_rng(index)
        label = np.zeros((6, 7, 12), np.uint8)
        if lesion:
            label[2:4, 2:5, 3:7] = 1
        if not normal:
            label[:] = 1
        maps = {name: rng.random(label.shape) + label / (rank + 2) for rank, name in enumerate(methods)}
        evaluation.add(f"P{index}", maps, label)
    return evaluation


@pytest.fixture(scope="module")
def evaluation():
    return make_evaluation()


@pytest.fixture(scope="module")
def report(evaluation):
    return json.loads(json.dumps(build_report(evaluation)))


def entries(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("level", ["pixel", "slice"])
def test_curves_with_their_areas(report, level):
    figure = plot_roc_pr(report, level)
    assert len(figure.axes) == 2
    for axes, kind, name, title in zip(
        figure.axes, ("roc", "pr"), ("auroc", "average_precision"), ("AUROC", "AP"), strict=True
    ):
        assert axes.get_title(loc="left") == f"{kind.upper()}, {level}s"
        lines = axes.get_lines()
        for line, method, entry in zip(lines, ("model", "baseline"), entries(axes), strict=False):
            curve = report["curves"][method][f"{level}_{kind}"]
            assert (list(line.get_xdata()), list(line.get_ydata())) == (curve["x"], curve["y"])
            found = report["methods"][method]["figures"][f"{level}_{name}"]
            low, high = found["interval"]
            assert entry == f"{method}\n{found['value']:.3f} [{low:.3f}, {high:.3f}]"
        assert axes.get_legend().get_title().get_text() == f"{title} [95 % interval]"
        assert [line.get_color() for line in axes.get_legend().get_lines()] == [line.get_color() for line in lines]
    roc, pr = (entries(axes)[-1] for axes in figure.axes)
    assert roc == "chance\n0.500"
    share = {"pixel": 2 * 3 * 4 / (6 * 7 * 12), "slice": 4 / 12}[level]
    assert pr == f"chance\n{share:.3f}"
    assert list(figure.axes[1].get_lines()[-1].get_ydata()) == pytest.approx([share, share], abs=1e-6)


def test_evaluation_and_report_give_one_figure(evaluation, report):
    one, other = (pixels_of(plot_roc_pr(source)) for source in (evaluation, report))
    assert (one == other).all()


def test_the_level_of_confidence_is_that_of_the_report(report):
    figure = plot_roc_pr(report | {"settings": report["settings"] | {"confidence": 0.9}})
    assert figure.axes[0].get_legend().get_title().get_text() == "AUROC [90 % interval]"


def test_without_intervals_there_are_values_only():
    figure = plot_roc_pr(make_evaluation(patients=1, methods=["model"]))
    for axes, title in zip(figure.axes, ("AUROC", "AP"), strict=True):
        assert axes.get_legend().get_title().get_text() == title
        assert len(entries(axes)[0]) == len("model\n0.123")


def test_an_area_that_was_left_out():
    chosen = make_evaluation(methods=["model"], metrics=["pixel_auroc"])
    for source in (chosen, build_report(chosen)):
        roc, pr = plot_roc_pr(source).axes
        assert entries(roc)[0].startswith("model\n0.")
        assert entries(pr)[0] == "model\nleft out"


@pytest.mark.parametrize("model", [{}, {"pixel_roc": {"x": [0, 1], "y": [0, 1]}, "pixel_pr": {"x": [1], "y": [1]}}])
def test_a_method_without_the_curve_keeps_the_others_colours(report, model):
    lacking = report | {"curves": {"baseline": report["curves"]["baseline"], "model": model}}
    figure = plot_roc_pr(lacking, "slice")
    assert [entry.split("\n")[0] for entry in entries(figure.axes[0])] == ["baseline", "chance"]
    assert figure.axes[0].get_lines()[0].get_color() == plot_roc_pr(report).axes[0].get_lines()[1].get_color()
    del lacking["curves"]["baseline"]
    with pytest.raises(ValueError, match="no slice ROC curve to draw: no method has one"):
        plot_roc_pr(lacking, "slice")


def test_names_of_methods_are_no_formulas(report):
    name = "_x $a_b$ {"
    renamed = {key: {name: report[key]["model"]} for key in ("curves", "methods")}
    figure = plot_roc_pr(report | renamed)
    pixels_of(figure)
    assert entries(figure.axes[0])[0].startswith(name)


@pytest.mark.parametrize(
    ("changes", "level", "message"),
    [
        ({"lesion": False}, "pixel", "no pixel ROC curve.*needs voxels with and without lesions"),
        ({"lesion": False}, "slice", "no slice ROC curve.*needs slices with and without lesions"),
        ({"normal": False}, "slice", "no slice ROC curve"),
        ({"patients": 0}, "pixel", "no pixel ROC curve to draw: no method has one"),
        ({}, "lesion", "one of pixel, slice, got 'lesion'"),
    ],
)
def test_what_cannot_be_drawn_is_said(changes, level, message):
    with pytest.raises(ValueError, match=message):
        plot_roc_pr(make_evaluation(**changes), level)


def test_a_dictionary_that_is_no_report_is_refused():
    with pytest.raises(ValueError, match="lacks curves, settings"):
        plot_roc_pr({"methods": {}})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("width", [90, 180])
@pytest.mark.parametrize(
    "methods", [["model"], ["DRAEM with SSMCTB, FLAIR and T1ce, 3D", "an_unbreakable_name_of_a_method", "c", "d"]]
)
def test_legends_have_room(report, width, methods):
    renamed = {key: dict.fromkeys(methods, report[key]["model"]) for key in ("curves", "methods")}
    figure = plot_roc_pr(report | renamed, width=width)
    pixels_of(figure)
    assert figure.get_size_inches()[0] == pytest.approx(width / 25.4)
    page = figure.bbox
    boxes = [axes.get_legend().get_window_extent() for axes in figure.axes]
    for axes, box in zip(figure.axes, boxes, strict=True):
        assert axes.get_window_extent().width > 0.3 * page.width
        assert box.y1 < axes.xaxis.label.get_window_extent().y0
        assert box.y0 >= 0
    assert boxes[0].x1 < boxes[1].x0
    assert boxes[1].x1 <= page.x1
    assert boxes[1].y0 < 0.12 * page.height  # no empty strip below


# --------------------------------------------------------------------------------------------------------- all figures


FIGURES = {
    "case": lambda heatmap, report: plot_case(heatmap),
    "montage": lambda heatmap, report: plot_montage(heatmap, slices=5),
    "curves": lambda heatmap, report: plot_roc_pr(report),
    "curves of a column": lambda heatmap, report: plot_roc_pr(report, width=90),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_figures_are_their_own(heatmap, report, draw):
    before = dict(matplotlib.rcParams)
    figure = draw(heatmap, report)
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    with matplotlib.rc_context({"xtick.labelsize": 30, "ytick.color": "red", "grid.linewidth": 5, "font.size": 30}):
        pixels_of(figure)
        texts = shown_texts(figure)
        lines = [line for axes in figure.axes for line in (*axes.get_xgridlines(), *axes.get_ygridlines())]
    assert {text.get_fontsize() for text in texts} <= {7, 8, 9}  # points, to be read in print
    assert {to_hex(text.get_color()) for text in texts} <= {INK, MUTED, "#ffffff"}
    assert {(line.get_linewidth(), to_hex(line.get_color())) for line in lines} == {(0.6, RULE)}
    ticks = [label for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    around = figure.get_tightbbox()
    assert around.x0 >= 0
    assert around.y0 >= 0
    assert (around.max <= figure.get_size_inches()).all()
    texts = [text for text in texts if text not in ticks]  # there are some out of range, which are not drawn
    boxes = [text.get_window_extent() for text in texts]
    overlaps = [
        (one.get_text(), other.get_text())
        for index, (one, first) in enumerate(zip(texts, boxes, strict=True))
        for other, second in zip(texts[index + 1 :], boxes[index + 1 :], strict=True)
        if first.overlaps(second)
    ]
    assert not overlaps
