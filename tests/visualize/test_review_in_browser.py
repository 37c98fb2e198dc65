"""The review in a browser, with its kernel in the process of the test: what a reader does, and what is on disk then."""

from __future__ import annotations

import base64
import csv
import time

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("anywidget")

from ssmctb_monai.visualize import compare
from ssmctb_monai.visualize.widget import Review

pytestmark = pytest.mark.process

SHAPE = (30, 40, 20)
AFFINE = np.array([[0, 0, 4.0, -40], [1.5, 0, 0, -30], [0, -2.0, 0, 70], [0, 0, 0, 1]])  # A, I, R; anisotropic
FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
MODEL = """([index, state]) => {
    const listeners = {};
    window.models ??= [];
    const model = window.models[index] = {
        get: (name) => state[name],
        on: (name, call) => (listeners[name] ??= []).push(call),
        set: (name, value) => {
            if (JSON.stringify(state[name]) === JSON.stringify(value)) return;
            state[name] = value;
            if (name === "crosshair") window.models.forEach((other) => other.set(name, value)); // as jslink does
            (listeners[`change:${name}`] ?? []).forEach((call) => call());
        },
        save_changes: () => {},
        send: async (message, _, buffers) => {
            const letters = (buffer) => Array.from(new Uint8Array(buffer), (byte) => String.fromCharCode(byte));
            const text = (buffer) => btoa(letters(buffer).join(""));
            const { answers, cases } = await toPython(index, message, buffers.map(text));
            model.set("cases", cases);
            for (const [content, volumes] of answers) {
                const read = async (address) => new DataView(await (await fetch(address)).arrayBuffer());
                const views = await Promise.all(volumes.map(read));
                listeners["msg:custom"].forEach((call) => call(content, views));
            }
        },
    };
    const cell = document.createElement("div");
    cell.style = "flex: 1 1 0; min-width: 0";
    document.body.append(cell);
    model.show = () => render({ model, el: cell });
    model.answer = (content) => listeners["msg:custom"].forEach((call) => call(content, []));
}"""
ANOTHER_VIEW = """() => {
    const cell = document.body.appendChild(document.createElement("div"));
    cell.style = "flex: 1 1 0; min-width: 0";
    render({ model: models[0], el: cell });
}"""
DRAWN = "document.querySelector('canvas[data-view=axial]').toDataURL()"


def show(page, *reviews):
    """Shows reviews side by side as JupyterLab does, their messages and buffers answered by Python."""
    volumes = []

    def address(volume):
        volumes.append(volume)
        return f"http://kernel/{len(volumes) - 1}"

    def volume(route):
        headers = {"access-control-allow-origin": "*"}
        route.fulfill(body=volumes[int(route.request.url.rpartition("/")[2])], headers=headers)

    def to_python(index, message, buffers):
        review, answers = reviews[index], []
        review.send = lambda content, buffers=(): answers.append((content, [address(item) for item in buffers]))
        review._handle_custom_msg(message, [memoryview(base64.b64decode(item)) for item in buffers])
        return {"answers": answers, "cases": review.cases}

    page.route("http://kernel/*", volume)
    page.expose_function("toPython", to_python)
    page.set_content('<body style="margin: 8px; display: flex; gap: 16px"></body>')
    page.add_style_tag(content=Review._css)
    script = Review._esm.replace("export default { render };", "window.render = render;")
    page.add_script_tag(content=script, type="module")
    page.wait_for_function("Boolean(window.render)")
    names = [name for name in Review.class_trait_names(sync=True) if name in Review.class_own_traits()]
    for index, review in enumerate(reviews):
        page.evaluate(MODEL, [index, {name: getattr(review, name) for name in names}])
    page.evaluate("models.forEach((model) => model.show())")
    page.wait_for_function("document.querySelectorAll('.hv-verdict b').length === models.length")


@pytest.fixture
def maps(tmp_path):
    """Two cases whose map has two candidates; the image is a ramp from 0 to 290 along the first axis."""
    scores = np.full(SHAPE, 0.1, dtype=np.float32)
    scores[8:14, 10:16, 5:8] = 0.8
    scores[11, 12, 6] = 0.9
    scores[20:24, 25:30, 12:15] = 0.7
    scores[20, 25, 12] = 0.75
    image = np.broadcast_to(10.0 * np.arange(SHAPE[0])[:, None, None], SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(image, AFFINE), tmp_path / "flair.nii.gz")
    (tmp_path / "maps").mkdir()
    for name in ("P1", "P2"):
        nifti = nib.Nifti1Image(scores, AFFINE)
        nifti.set_qform(AFFINE, 1)
        nifti.set_sform(AFFINE, 4)
        nib.save(nifti, tmp_path / "maps" / f"{name}.nii.gz")
    return tmp_path / "maps"


@pytest.fixture
def items(maps):
    image, brain = maps.parent / "flair.nii.gz", np.ones(SHAPE)
    return [
        {"image": image, "anomaly_map": maps / f"{name}.nii.gz", "brain": brain, "threshold": 0.5}
        for name in ("P1", "P2")
    ]


@pytest.fixture
def review(page, items):
    page.set_default_timeout(10_000)
    show(page, Review(items))
    return page


def rows(maps):
    with (maps / "review.csv").open(newline="", encoding="utf-8") as file:
        return [
            (row["case_id"], row["verdict"], row["comment"], row["voxel_i"], row["voxel_j"], row["voxel_k"])
            for row in csv.DictReader(file)
        ]


def status(page):
    page.evaluate(FRAMES)
    return page.locator(".hv-status").inner_text().replace("\N{MINUS SIGN}", "-")


def part(page, name):
    """A part of the status by its first word."""
    return next((text for text in status(page).split("  ·  ") if text.startswith(name)), None)


def drag(page, view, start, end, button="left", key=None):
    """Drags from one point of a view to another, both as fractions of its width and height."""
    box = page.locator(f"canvas[data-view={view}]").bounding_box()
    (x, y), to = ((box["x"] + across * box["width"], box["y"] + down * box["height"]) for across, down in (start, end))
    page.mouse.move(x, y)
    if key:
        page.keyboard.down(key)
    page.mouse.down(button=button)
    page.mouse.move(*to, steps=4)
    page.mouse.up(button=button)
    if key:
        page.keyboard.up(key)


def press(page, *keys):
    page.locator("canvas[data-view=axial]").focus()
    for key in keys:
        page.keyboard.press(key)


def saved(page):
    page.wait_for_function("document.querySelector('.hv-saved').textContent.startsWith('Saved')")


def not_saved(page):
    """Waits until a save has failed."""
    page.wait_for_function("document.querySelector('.hv-saved').textContent.startsWith('Not saved')")
    page.locator(".hv-saved").evaluate("node => (node.textContent = '')")


def click(page, place, view=0):
    """Clicks into an axial view, at fractions of its width and height."""
    axial = page.locator("canvas[data-view=axial]").nth(view)
    box = axial.bounding_box()
    axial.click(position={"x": place[0] * box["width"], "y": place[1] * box["height"]})


def painted(maps):
    """Tells whether a brush was where k is more than 10, as at (0.3, 0.3), and whether where it is less."""
    file = maps / "corrected_masks" / "P1.nii.gz"
    added = (nib.load(file).get_fdata() > 0) & (nib.load(maps / "P1.nii.gz").get_fdata() < 0.5)
    return [bool(added[..., 11:].any()), bool(added[..., :10].any())]


def test_verdicts_are_taken_back(review, maps):
    first, second = ("P1", "accept", "", "11", "12", "6"), ("P1", "reject", "", "20", "25", "12")
    press(review, "7", "n", "8", "Shift+9")
    review.get_by_text("1 of 2 reviewed").wait_for()
    assert rows(maps) == [first, second, ("P1", "unsure", "", "", "", "")]
    press(review, "Control+z")
    review.get_by_text("0 of 2 reviewed").wait_for()
    assert rows(maps) == [first, second]
    press(review, "9")
    review.locator("[data-verdict=unsure][aria-pressed=true]").wait_for()
    saved(review)
    assert rows(maps) == [first, ("P1", "unsure", *second[2:])]
    undo = review.get_by_role("button", name="Undo")
    assert undo.get_attribute("title") == "Take back the verdict on candidate 2 of P1 (Ctrl + z)"
    review.get_by_role("button", name="Next case").click()
    review.locator(".hv-verdict b", has_text="Case P2").wait_for()
    undo.click()  # on the case before
    saved(review)
    assert rows(maps) == [first, second]
    press(review, "Control+z", "Control+z", "Control+z")
    review.wait_for_function("document.querySelector('.hv-tools button:disabled')")
    saved(review)
    assert rows(maps) == []


def test_keys_of_other_viewers_decide_nothing(review, maps):
    press(review, *"aruswfgvbdyzm123456")
    assert status(review)
    assert not (maps / "review.csv").exists()
    press(review, "?")
    review.get_by_text("accept, reject, unsure: the marked candidate").wait_for()
    review.keyboard.press("Escape")
    assert not review.locator("dialog").is_visible()


def test_window_zoom_and_pan(review):
    """The ramp runs from 0 to 290 from the back to the front; its 0.5 and 99.5 percentile are 0 and 290."""
    press(review, "x")
    assert part(review, "flair") == "flair 110"  # of the candidate's peak, in slice 11 of 30
    assert part(review, "score") == "score 0.9"  # as in the list
    assert part(review, "window") is None
    box = review.locator("canvas[data-view=axial]").bounding_box()
    drag(review, "axial", (0.3, 0.5), (0.3 - 150 / box["width"], 0.5 - 75 / box["height"]), button="right")
    assert part(review, "window") == "window 145 to 290"  # half as wide, its middle a quarter of it higher
    before = part(review, "voxel")
    press(review, "r")
    assert part(review, "window") is None

    centre = (0.25, 0.75)
    click = {"x": centre[0] * box["width"], "y": centre[1] * box["height"]}
    axial = review.locator("canvas[data-view=axial]")
    axial.click(position=click)
    voxel = part(review, "voxel")
    assert voxel != before
    review.keyboard.down("Control")
    review.mouse.wheel(0, -100)
    review.mouse.wheel(0, -100)
    review.keyboard.up("Control")
    axial.click(position=click)
    assert part(review, "voxel") == voxel  # what is under the pointer stays there
    drag(review, "axial", centre, (0.45, 0.75), button="middle")
    axial.click(position=click | {"x": 0.45 * box["width"]})
    assert part(review, "voxel") == voxel
    drag(review, "axial", (0.45, 0.75), (0.25, 0.75), key="Shift")
    axial.click(position=click)
    assert part(review, "voxel") == voxel
    press(review, "r")
    axial.click(position=click)
    assert part(review, "voxel") == voxel


def test_ruler(review):
    """The axial view is 80 mm wide (20 voxels of 4 mm) and 45 mm high (30 of 1.5 mm)."""
    review.get_by_role("button", name="Ruler").click()
    drag(review, "axial", (0.2, 0.2), (0.65, 0.8))
    assert float(part(review, "ruler").split()[1]) == pytest.approx(np.hypot(0.45 * 80, 0.6 * 45), abs=0.4)
    drag(review, "coronal", (0.25, 0.5), (0.75, 0.5))
    assert float(part(review, "ruler").split()[1]) == pytest.approx(40, abs=0.4)
    press(review, "Escape")
    before = part(review, "voxel")
    drag(review, "coronal", (0.1, 0.2), (0.2, 0.3))
    assert part(review, "voxel") != before
    assert part(review, "ruler") == "ruler 40.0 mm"


def test_brush_corrects_an_outline(review, maps, items):
    flagged = nib.load(maps / "P1.nii.gz").get_fdata() >= 0.5
    file = maps / "corrected_masks" / "P1.nii.gz"
    review.get_by_role("button", name="Brush").click()
    review.get_by_label("Radius").fill("6.5")
    axial = review.locator("canvas[data-view=axial]")
    box = axial.bounding_box()
    place = (12.5 / 20, 7.5 / 30)  # in the views right is left: column 12 is k = 7, line 7 is i = 22; j = 12
    axial.click(position={"x": place[0] * box["width"], "y": place[1] * box["height"]})
    review.locator(".hv-saved", has_text="Saved").wait_for()
    i, j, k = np.indices(SHAPE)
    brush = (j == 12) & (np.hypot(1.5 * (i - 22), 4 * (k - 7)) <= 6.5)
    mask = nib.load(file)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.get_fdata(), flagged | brush)
    np.testing.assert_array_equal(mask.affine, AFFINE)
    assert [int(mask.header[name]) for name in ("qform_code", "sform_code")] == [1, 4]

    review.get_by_role("button", name="Eraser").click()
    review.locator(".hv-saved").evaluate("node => (node.textContent = '')")
    drag(review, "axial", (2.5 / 20, 17.5 / 30), (18.5 / 20, 17.5 / 30))  # through line 17, which is i = 12
    saved(review)
    erased = (j == 12) & (abs(1.5 * (i - 12)) <= 6.5) & (k >= 1) & (k <= 17)
    np.testing.assert_array_equal(nib.load(file).get_fdata(), (flagged | brush) & ~erased)
    review.locator(".hv-saved").evaluate("node => (node.textContent = '')")
    press(review, "Control+z")
    saved(review)
    np.testing.assert_array_equal(nib.load(file).get_fdata(), flagged | brush)

    again = Review(items)  # goes on from there
    answer = []
    again.send = lambda content, buffers=(): answer.append((content, buffers))
    again._handle_custom_msg({"type": "open", "case": 0}, [])
    ((content, buffers),) = answer
    assert content["volumes"] == ["map", "image", "mask"]
    assert sum(buffers[2]) == (flagged | brush).sum()


def test_what_could_not_be_saved_is_sent_again_but_nothing_that_was_replaced(review, maps):
    file, folder = maps / "review.csv", maps / "corrected_masks"
    file.write_text("broken\n", encoding="utf-8")
    folder.write_text("in the way", encoding="utf-8")
    for keys in (["7"], ["n", "9"]):  # accept the first one, the second is unsure
        press(review, *keys)
        not_saved(review)
    review.get_by_role("button", name="Brush").click()
    click(review, (0.3, 0.3))
    not_saved(review)
    folder.unlink()
    click(review, (0.77, 0.9))
    not_saved(review)  # the verdicts, which are sent again
    file.unlink()
    press(review, "p", "8")
    saved(review)
    assert sorted(row[1] for row in rows(maps)) == ["reject", "unsure"]
    assert review.locator("tbody tr [aria-pressed=true]").all_inner_texts() == ["✗ reject", "? unsure"]
    assert painted(maps) == [True, True]


def test_a_stroke_is_taken_back_after_its_case_was_left(review, maps):
    undo = review.get_by_role("button", name="Undo")
    review.evaluate("['brush', 'eraser'].forEach((tool) => document.querySelector(`[data-tool=${tool}]`).click())")
    review.get_by_label("Threshold as a number").fill("0.78")
    review.keyboard.press("Enter")
    review.get_by_text("1 candidate at or above 0.78").wait_for()  # the last answer, after two masks to begin with
    assert undo.is_disabled()
    review.get_by_role("button", name="Brush").click()
    click(review, (0.3, 0.3))
    saved(review)
    assert painted(maps) == [True, False]
    assert undo.get_attribute("title") == "Take back the stroke of the brush of P1 (Ctrl + z)"
    for button, case in (("Next case", "P2"), ("Previous case", "P1")):
        review.get_by_role("button", name=button).click()
        review.locator(".hv-verdict b", has_text=f"Case {case}").wait_for()
    review.evaluate(FRAMES)
    before = review.evaluate(DRAWN)
    undo.click()
    saved(review)
    assert painted(maps) == [False, False]
    assert review.evaluate(DRAWN) != before
    review.get_by_role("button", name="Brush").click()
    click(review, (0.77, 0.9))
    deadline = time.monotonic() + 10  # the line still says "Saved" of the undoing
    while painted(maps) != [False, True] and time.monotonic() < deadline:
        review.wait_for_timeout(100)
    assert painted(maps) == [False, True]


def test_two_views_of_one_review(page, items, maps):
    brighter = nib.Nifti1Image(nib.load(items[0]["image"]).get_fdata() + 1000, AFFINE)
    nib.save(brighter, maps.parent / "t1.nii.gz")
    images = {"image": [items[0]["image"], maps.parent / "t1.nii.gz"], "modalities": ["flair", "t1"]}
    show(page, Review([item | images for item in items]))
    page.evaluate(ANOTHER_VIEW)
    page.locator(".hv-candidates").nth(1).locator("tbody tr").first.wait_for()
    page.locator("button[data-tool=brush]").nth(0).click()
    page.locator("button[data-tool=brush]").nth(1).click()
    click(page, (0.3, 0.3), view=0)
    saved(page)
    assert painted(maps) == [True, False]
    click(page, (0.77, 0.9), view=1)
    page.locator(".hv-saved").nth(1).filter(has_text="Saved").wait_for()
    assert painted(maps) == [True, True]

    def shown():
        page.evaluate(FRAMES)
        return [text.split("  ·  ")[3:] for text in page.locator(".hv-status").all_inner_texts()]

    assert shown() == [["flair 110"], ["flair 110"]]
    boxes = page.locator(".hv-controls label", has_text="Image").locator("select")
    boxes.nth(1).select_option("t1")
    page.locator(".hv-status", has_text="t1 1110").wait_for()
    assert shown() == [["flair 110"], ["t1 1110"]]
    page.evaluate("models[0].send = (message) => (window.unanswered = message)")  # the kernel is busy
    boxes.nth(0).select_option("t1")
    click(page, (0.3, 0.3), view=1)
    assert shown()[0] == ["flair 110", "t1: loading …"]
    answer = "{ type: 'failed', view: unanswered.view, problem: 'no such file' }"
    page.evaluate(f"models[0].answer({answer})")
    assert boxes.nth(0).input_value() == "flair"
    assert shown()[0] == ["flair 110"]


def test_methods_side_by_side(page, items, tmp_path):
    theirs = []
    for item in items:
        nifti = nib.load(item["anomaly_map"])
        (tmp_path / "theirs").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(nifti.get_fdata()[::-1], nifti.affine), tmp_path / "theirs" / item["anomaly_map"].name)
        theirs.append(item | {"anomaly_map": tmp_path / "theirs" / item["anomaly_map"].name})
    show(page, *compare({"ours": items, "theirs": theirs}).children)
    assert page.locator(".hv-title").all_inner_texts() == ["ours", "theirs"]

    def places():
        page.evaluate(FRAMES)
        texts = page.locator(".hv-status").all_inner_texts()
        return [text.split("  ·  ")[0] for text in texts]

    first = places()
    assert first[0] == first[1]  # the first one's peak in both, where the map of the second is low
    axial = page.locator("canvas[data-view=axial]")
    box = axial.nth(1).bounding_box()
    axial.nth(1).click(position={"x": 0.3 * box["width"], "y": 0.3 * box["height"]})
    second = places()
    assert second[0] == second[1] != first[0]
    page.get_by_role("button", name="Next case").nth(1).click()
    for index in (0, 1):
        page.locator(".hv-verdict b").nth(index).filter(has_text="Case P2").wait_for()
    third = places()
    assert third[0] == third[1] != second[0]


def test_a_method_whose_map_is_broken(page, items, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "P1.nii.gz").write_bytes(b"broken")
    theirs = [item | {"anomaly_map": tmp_path / "theirs" / item["anomaly_map"].name} for item in items]
    show(page, *compare({"ours": items, "theirs": theirs}).children)
    assert "P1 cannot be shown" in page.locator(".hv-problem").nth(1).inner_text()
    status = page.locator(".hv-status").first
    before = status.inner_text()
    click(page, (0.3, 0.3))  # which the other one follows
    page.evaluate(FRAMES)
    assert status.inner_text() != before
