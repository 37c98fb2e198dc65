"""The viewer of report.html in a browser, opened from the disk."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from ssmctb_monai.reports import evaluate_folders
from ssmctb_monai.reports.report import FILES

pytestmark = pytest.mark.process

SHAPE = (40, 30, 20)
AFFINE = np.array([[0, 0, 4.0, -40], [1.5, 0, 0, -30], [0, -2.0, 0, 70], [0, 0, 0, 1]])  # A, I, R; anisotropic
STILL = "() => { const before = window.before; window.before = scrollY; return scrollY > 0 && before === scrollY; }"
LESION = np.array([24.0, 15.0, 55.0])  # mm, RAS: the patient's right, in front, above


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two cases with a lesion in the patient's right, which the map of the first finds, and that of the second not."""
    folder = tmp_path_factory.mktemp("report")
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    rng = np.random.default_rng(0)
    label = (np.linalg.norm(places - LESION, axis=-1) < 10).astype(np.uint8)
    flair = np.pad(rng.integers(100, 200, np.subtract(SHAPE, 2)), 1).astype(np.int16)
    found = rng.uniform(0, 0.3, SHAPE) + 0.6 * label
    for name, scores in {"case 1": found, "case_#2": rng.uniform(0, 0.4, SHAPE)}.items():
        files = {f"data/{name}/{name}_flair": flair, f"data/{name}/{name}_seg": label, f"maps/{name}": scores}
        for file, array in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, AFFINE), folder / f"{file}.nii.gz")
        (folder / "theirs").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(0.5 * scores, AFFINE), folder / f"theirs/{name}.nii.gz")
    maps, common = {"ours": folder / "maps"}, {"thresholds": {"ours": 0.5}}
    two = {**maps, "theirs": folder / "theirs"}
    evaluate_folders(two, folder / "data", thresholds={"ours": 0.5, "theirs": 0.2}, output_dir=folder / "two")
    evaluate_folders(maps, folder / "data", **common, output_dir=folder / "report")
    evaluate_folders(maps, folder / "data", **common, output_dir=folder / "alone", self_contained=True)
    return folder / "report" / "report.html"


@pytest.fixture
def viewer(page, report):
    page.requests = []
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(report.as_uri())
    page.set_default_timeout(10_000)
    page.get_by_text("0 candidates at or above 0.5").wait_for()  # of the worst case, which comes first
    return page


def next_frame(page):
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def centre_of_colour(page, view):
    """Where the overlay is in a view, as fractions of its width and height; ``None`` where there are but letters."""
    return page.evaluate(
        """view => {
            const canvas = document.querySelector(`canvas[data-view=${view}]`);
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            let [count, x, y] = [0, 0, 0];
            for (let i = 0; i < data.length; i += 4) {
                if (data[i] > data[i + 2] + 40 && !(data[i] > 200 && data[i + 1] > 180 && data[i + 2] > 90)) {
                    count += 1; x += (i / 4) % width; y += Math.floor(i / 4 / width);
                }
            }
            return count < 0.005 * width * height ? null : [x / count / width, y / count / height];
        }""",
        view,
    )


def image_of(page, view):
    next_frame(page)
    return page.evaluate("view => document.querySelector(`canvas[data-view=${view}]`).toDataURL()", view)


def click(target, across, down):
    box = target.bounding_box()
    target.click(position={"x": across * box["width"], "y": down * box["height"]})


def control(page, label):
    return page.locator("#viewer-stage label", has_text=label).locator("input, select").first


def test_page_reads_its_cases_from_the_disk_and_nothing_else(viewer, report):
    assert all(url.startswith((report.parent.as_uri(), "data:")) for url in viewer.requests)
    assert [url for url in viewer.requests if url.endswith(".js")] == [
        (report.parent / "viewer" / name).as_uri() for name in ["case_#2.js"]
    ]  # the worst case first, and only this one


def test_one_file_on_request(page, report, tmp_path):
    assert sorted(file.name for file in (report.parents[1] / "alone").iterdir()) == sorted(FILES)  # no folder viewer
    alone = (report.parents[1] / "alone" / "report.html").rename(tmp_path / "page.html")
    page.goto(alone.as_uri())
    page.get_by_text("0 candidates at or above 0.5").wait_for()
    page.select_option("#viewer-case", "case 1")
    page.get_by_text("1 candidate at or above 0.5").wait_for()


def test_methods_side_by_side(page, report):
    page.goto((report.parents[1] / "two" / "report.html").as_uri())
    page.get_by_text("0 candidates at or above 0.5").wait_for()
    statuses, beside = page.locator(".hv-status"), page.locator("#viewer-beside-stage")
    assert page.locator("#viewer-beside option").all_inner_texts() == ["nothing", "theirs"]  # not the baseline
    assert not beside.is_visible()
    page.select_option("#viewer-case", "case 1")
    page.get_by_text("1 candidate at or above 0.5").wait_for()
    page.select_option("#viewer-beside", "theirs")
    page.get_by_text("1 candidate at or above 0.2").wait_for()
    assert page.locator("#viewer-methods h3").all_inner_texts() == ["ours", "theirs"]

    def places():
        next_frame(page)
        return [text.split(" \N{MIDDLE DOT} ")[0].strip() for text in statuses.all_inner_texts()]

    seen = set()
    for stage, across in (("#viewer-stage", 0.3), ("#viewer-beside-stage", 0.6)):  # each moves the other
        click(page.locator(f"{stage} canvas[data-view=axial]"), across, 0.5)
        one, other = places()
        assert one == other
        seen.add(one)
    assert len(seen) == 2
    beside.locator("tbody tr").evaluate("row => row.classList.add('before')")
    for name in ("nothing", "theirs"):
        page.select_option("#viewer-beside", label=name)
    beside.locator("tbody tr:not(.before)").wait_for()
    one, other = places()
    assert one == other in seen
    ours, theirs = (float(text.split("score ")[1].split()[0]) for text in statuses.all_inner_texts())
    assert theirs == pytest.approx(0.5 * ours, abs=0.002)
    page.get_by_role("button", name="Previous").click()  # the choice stays
    page.get_by_text("0 candidates at or above 0.2").wait_for()
    one, other = places()
    assert one == other
    page.select_option("#viewer-beside", "nothing")
    assert not beside.is_visible()


def test_page_opens_at_its_top(viewer):
    next_frame(viewer)
    assert viewer.evaluate("scrollY") == 0


def test_page_on_a_phone(browser, report):
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.goto(report.as_uri())
    page.get_by_text("0 candidates at or above 0.5").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    row = page.locator(".metrics tbody tr", has=page.locator("td")).first
    assert [cell.bounding_box()["width"] for cell in row.locator("th, td").all()] == [358] * 4  # one below the other
    names = row.locator("td").evaluate_all("cells => cells.map(cell => getComputedStyle(cell, '::before').content)")
    assert names == ['"ours"', '"baseline_flair"', '"ours \N{MINUS SIGN} baseline_flair"']

    page.locator("canvas[data-view=axial]").scroll_into_view_if_needed()
    page.wait_for_function(STILL, polling=200)
    before, status = page.evaluate("scrollY"), page.locator(".hv-status").inner_text()
    box = page.locator("canvas[data-view=axial]").bounding_box()
    touch = page.context.new_cdp_session(page)
    x, y = box["x"] + 0.3 * box["width"], box["y"] + 0.8 * box["height"]
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for distance in range(10, 101, 10):
        point = {"x": x, "y": y - distance}
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("before => scrollY > before + 60", arg=before)
    assert page.locator(".hv-status").inner_text() == status  # the crosshair stays

    page.wait_for_function(STILL, polling=200)
    box = page.locator("canvas[data-view=axial]").bounding_box()
    x, y = box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"]
    for step in range(7):  # two fingers move apart, to twice their distance
        points = [{"x": x + side * (20 + 20 * step / 6), "y": y, "id": side + 1} for side in (-1, 1)]
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove" if step else "touchStart", "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    next_frame(page)
    assert page.locator(".hv-status").inner_text() == status
    places = []
    for across in (0.25, 0.75):  # half of the view's width is now a quarter of the scan's
        page.locator("canvas[data-view=axial]").tap(position={"x": across * box["width"], "y": 0.5 * box["height"]})
        next_frame(page)
        text = page.locator(".hv-status").inner_text().replace("\N{MINUS SIGN}", "-")
        places.append(float(text.split()[1].rstrip(",")))
    assert places[0] - places[1] == pytest.approx(0.25 * 20 * 4, abs=4)
    page.close()


def test_sides_are_those_of_radiology(viewer):
    viewer.select_option("#viewer-case", "case 1")
    viewer.get_by_text("1 candidate at or above 0.5").wait_for()
    next_frame(viewer)
    viewer.keyboard.press("x")
    across, down = centre_of_colour(viewer, "axial")
    assert across < 0.4  # the patient's right
    assert down < 0.45  # front
    across, down = centre_of_colour(viewer, "coronal")
    assert across < 0.4
    assert down < 0.45  # head
    across, down = centre_of_colour(viewer, "sagittal")
    assert across < 0.45  # front
    status = viewer.locator(".hv-status").inner_text()
    assert "in a labelled lesion" in status
    position = [
        float(part) for part in status.replace("\N{MINUS SIGN}", "-").split(" mm")[0].removeprefix("RAS ").split(",")
    ]
    assert np.abs(np.array(position) - LESION).max() <= 10
    box = viewer.locator("canvas[data-view=axial]").bounding_box()
    other = viewer.locator("canvas[data-view=coronal]").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(20 * 4.0 / (40 * 1.5), rel=0.15)  # mm, cut to the brain
    assert other["width"] / other["height"] == pytest.approx(20 * 4.0 / (30 * 2.0), rel=0.15)


def test_keyboard_scrolls_and_switches(viewer):
    viewer.get_by_role("button", name="Next").press("Enter")
    viewer.get_by_text("1 candidate at or above 0.5").wait_for()
    viewer.locator("canvas[data-view=axial]").focus()
    before = image_of(viewer, "axial")
    slider = viewer.get_by_label("Axial slice, from the feet up")
    number = int(slider.input_value())
    viewer.keyboard.press("ArrowUp" if number < 15 else "ArrowDown")
    assert image_of(viewer, "axial") != before
    assert abs(int(slider.input_value()) - number) == 1
    for key in ("o", "c", "x"):
        before = image_of(viewer, "axial")
        viewer.keyboard.press(key)
        assert image_of(viewer, "axial") != before, key
    viewer.get_by_role("button", name="Previous").press("Enter")
    viewer.get_by_text("0 candidates at or above 0.5").wait_for()


def test_controls_change_the_picture(viewer):
    viewer.select_option("#viewer-case", "case 1")
    viewer.get_by_text("1 candidate at or above 0.5").wait_for()
    images = {image_of(viewer, "axial")}
    control(viewer, "Opacity").fill("1")
    images.add(image_of(viewer, "axial"))
    control(viewer, "Colours").select_option("viridis")
    images.add(image_of(viewer, "axial"))
    control(viewer, "Overlay").select_option("all scores")
    images.add(image_of(viewer, "axial"))
    control(viewer, "Overlay").select_option("above threshold")
    viewer.get_by_label("Threshold as a number").fill("0.05")
    viewer.keyboard.press("Enter")
    images.add(image_of(viewer, "axial"))
    control(viewer, "Lesion label").uncheck()
    images.add(image_of(viewer, "axial"))
    assert len(images) == 6
    control(viewer, "Overlay").select_option("off")
    next_frame(viewer)
    assert centre_of_colour(viewer, "axial") is None


def test_clicks_move_all_views(viewer):
    coronal = image_of(viewer, "coronal")
    click(viewer.locator("canvas[data-view=axial]"), 0.25, 0.7)
    assert image_of(viewer, "coronal") != coronal
    assert float(viewer.locator(".hv-status").inner_text().split()[1].rstrip(",")) > 0  # the patient's right
    axial = image_of(viewer, "axial")
    click(viewer.locator(".hv-profile"), 0.1, 0.5)
    assert image_of(viewer, "axial") != axial
    slider = viewer.get_by_label("Axial slice, from the feet up")
    low, high = (int(slider.get_attribute(name)) for name in ("min", "max"))
    assert (int(slider.input_value()) - low) / (high - low) == pytest.approx(0.1, abs=0.04)


def test_missing_case_says_so(viewer, report):
    kept = (report.parent / "viewer" / "case 1.js").rename(report.parent / "away.js")
    viewer.select_option("#viewer-case", "case 1")
    viewer.get_by_text("viewer/case 1.js is not beside this page").wait_for()
    kept.rename(report.parent / "viewer" / "case 1.js")
