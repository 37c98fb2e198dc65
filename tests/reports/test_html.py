import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ssmctb_monai.metrics.view import Plane, View
from ssmctb_monai.reports.html import render_html
from ssmctb_monai.visualize.plots import CURVES

MINUS = "\N{MINUS SIGN}"
VOID = {"meta", "img", "br", "link", "input", "hr"}
DEFINITIONS = {  # title, level, unit, higher is better
    "slice_auroc": ("Slice AUROC", "slice", None, True),
    "alarm_share": ("Alarm share", "slice", None, False),
    "false_positives": ("False positives", "lesion", "per volume", False),
    "volume_bias": ("Volume bias", "volume", "ml", None),
    "volume_auroc": ("Volume AUROC", "volume", None, True),
}


class Page(HTMLParser):
    """The parsed page: its tags with attributes, and the text of each table cell, by row."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows, self.text, self.open = [], [], "", []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, title):
        """Cells of the first row with this title."""
        return next([" ".join(cell.split()) for cell in row] for row in self.rows if row[0].strip().startswith(title))

    def all(self, tag, **attributes):
        return [found for name, found in self.tags if name == tag and attributes.items() <= found.items()]


def estimate(value, interval=None, reason=None):
    return {"value": value, "interval": interval, "reason": reason}


def make_report(methods=("model", "baseline"), threshold=0.5, cases=1, **changes):
    values = [
        estimate(0.91234, [0.85, 0.9601]),
        estimate(0.25, [0.2, 0.3]),
        estimate(3.456, [1.0, 7.891]),
        estimate(-2.5, [-4.126, 0.004]),
        estimate(None, reason="no volume without a lesion"),
    ]
    differences = [
        estimate(0.05, [0.01, 0.09]),
        estimate(0.04, [0.02, 0.06]),
        estimate(-1.5, [-3.0, 0.5]),
        estimate(-9.0, [-10.0, -8.0]),
        estimate(None, reason="no volume without a lesion"),
    ]
    return {
        "schema_version": "1.0",
        "created": "2026-11-22T12:34:56+00:00",
        "software": {"ssmctb_monai": "0.1.0", "torch": "2.13.0"},
        "description": None,
        "settings": {
            **{"slice_score": "top_k_mean", "top_k": 20, "min_lesion_size": 12},
            **{"confidence": 0.95, "froc_places": [0.25, 8]},
        },
        "cases": cases,
        "patients": 3,
        "failed_cases": [],
        "figure_definitions": {
            name: {"title": title, "level": level, "unit": unit, "higher_is_better": better, "definition": f"is {name}"}
            for name, (title, level, unit, better) in DEFINITIONS.items()
        },
        "methods": {
            method: {
                "threshold": None
                if threshold is None
                else {"value": threshold, "false_positive_rate": 0.01, "source": "5 validation cases"},
                "figures": dict(zip(DEFINITIONS, values, strict=True)),
            }
            for method in methods
        },
        "differences": [
            {"method": methods[0], "reference": other, "figures": dict(zip(DEFINITIONS, differences, strict=True))}
            for other in methods[1:]
        ],
        "curves": {},
        **changes,
    }


def make_curves(methods):
    return {method: {name: {"x": [0, 0.5, 1], "y": [0, 0.75, 1]} for name in CURVES} for method in methods}


def make_case(case_id, precision, method="model"):
    numbers = {"lesion_ml": 12.5, "dice_at_threshold": 0.4, "best_dice_oracle": 0.6}
    return {"method": method, "case_id": case_id, "pixel_average_precision": precision, **numbers}


def make_slices(case_id, scores, lesion, method="model", first=10):
    return [
        {
            "method": method,
            "case_id": case_id,
            "slice": first + index,
            "relative_height": index / len(scores),
            "brain_voxels": 100,
            "lesion_voxels": int(has_lesion),
            "score": score,
        }
        for index, (score, has_lesion) in enumerate(zip(scores, lesion, strict=True))
    ]


def make_view(case_id="A", kind="lesion", size=24, image=True, method="model", scale=1.0, smooth=0.0, index=12):
    generator = np.random.default_rng(0)
    label = np.zeros((size, size), dtype=bool)
    label[8:12, 6:14] = kind == "lesion"
    brain = np.zeros_like(label)
    brain[3:-4, 2:-2] = True
    picture, scores = (gaussian_filter(generator.random((size, size)), smooth) for _ in range(2))
    plane = Plane(picture.astype(np.float16) if image else None, scores * scale, brain | label, label)
    return View(case_id, method, kind, index, 0.9, plane)


def make_inputs(cases=1, **changes):
    names = [f"case-{index}" for index in range(cases)]
    return (
        make_report(cases=cases, **changes),
        [make_case(name, (index + 1) / (cases + 1)) for index, name in enumerate(names)],
        [row for name in names for row in make_slices(name, [0.1, 0.9, 0.3], [False, True, False])],
        [],
    )


def test_every_metric_is_shown_with_its_interval():
    page = Page(render_html(*make_inputs()))
    assert page.row("Slice AUROC")[1:3] == ["0.912 [0.850, 0.960]"] * 2
    assert page.row("Alarm share")[1:3] == ["0.250 [0.200, 0.300]"] * 2
    assert page.row("False positives per volume")[1:3] == ["3.46 [1.00, 7.89]"] * 2
    assert page.row("Volume bias ml")[1:3] == [f"{MINUS}2.50 [{MINUS}4.13, 0.00]"] * 2
    assert [row[0] for row in page.rows if len(row) == 1][:3] == ["Slice level", "Lesion level", "Volume level"]
    assert page.row("Metric") == [
        "Metric",
        "modeln = 3 patients",
        "baselinen = 3 patients",
        f"model {MINUS} baselinepaired, n = 3",
    ]
    assert "95 % intervals, from resampling the n = 3 patients" in page.text.replace("\xa0", " ")


def test_differences_have_a_sign_and_a_verdict_where_the_interval_excludes_zero():
    page = Page(render_html(*make_inputs()))
    assert page.row("Slice AUROC")[3] == "+0.050 [0.010, 0.090] better"
    assert page.row("Alarm share")[3] == "+0.040 [0.020, 0.060] worse"  # less is better
    assert page.row("False positives")[3] == f"{MINUS}1.50 [{MINUS}3.00, 0.50]"  # zero is inside
    assert page.row("Volume bias")[3] == f"{MINUS}9.00 [{MINUS}10.00, {MINUS}8.00]"  # neither is better


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(-0.0004, None, "0.000"), (-0.0005001, None, f"{MINUS}0.001"), (1234.567, "ml", "1234.57"), (0, None, "0.000")],
)
def test_numbers_have_no_negative_zero(value, unit, shown):
    report = make_report(["model"])
    report["figure_definitions"] = {
        "it": {"title": "It", "level": "pixel", "unit": unit, "higher_is_better": True, "definition": ""}
    }
    report["methods"]["model"]["figures"] = {"it": estimate(value)}
    assert Page(render_html(report, [], [], [])).row("It")[1] == shown


def test_a_unit_that_the_title_names_is_not_repeated():
    report = make_report()
    report["figure_definitions"]["false_positives"]["title"] = "False positives per volume"
    assert Page(render_html(report, [], [], [])).row("False positives")[0] == "False positives per volume"


def test_reasons_are_tooltips_and_numbered_notes():
    report = make_report()
    report["methods"]["model"]["figures"]["slice_auroc"] = estimate(0.5, reason="an interval needs two patients")
    page = Page(render_html(report, [], [], []))
    assert page.row("Slice AUROC")[1] == "0.5001"  # value, and the number of the note
    assert page.row("Volume AUROC")[1:] == ["—2"] * 3  # one note for all
    assert len(page.all("li", id="note-2")) == 1
    assert "an interval needs two patients" in page.text
    assert "no volume without a lesion" in page.text
    assert page.all("span", title="no volume without a lesion")
    targets = {attributes.get("id") for _, attributes in page.tags}
    links = [attributes["href"] for attributes in page.all("a")]
    assert all(link.startswith("#") and link[1:] in targets for link in links)


def test_page_loads_nothing():
    inputs = make_inputs(curves=make_curves(["model", "baseline"]))
    html = render_html(*inputs[:3], [make_view("case-0"), make_view("case-0", "false_alarm")])
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert all(attributes["src"].startswith("data:image/") for attributes in page.all("img"))
    assert not re.search(r"https?://|url\(|@import", html)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "default-src 'none'" in policy
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for attributes in page.all("th"))
    assert "For research only; this is no medical device." in page.text


def test_viewer_reads_from_beside_the_page_only():
    name = '</script><script>alert("1")</script>'
    report = make_report(["model"])
    cases = [make_case("case-1", 0.5), make_case(name, 0.2)]
    html = render_html(report, cases, make_slices("case-1", [0.1], [True]), [], [name, "case-1"])
    page = Page(html)
    data = re.search(r'<script type="application/json" id="viewer-data">(.*?)</script>', html, re.DOTALL)
    content = json.loads(data[1])
    assert content["cases"] == [name, "case-1"]  # the worst first, as everywhere on the page
    assert list(content["colormaps"]) == ["inferno", "viridis", "cividis"]
    assert len(page.all("script")) == 2
    assert not [attributes for attributes in page.all("script") if "src" in attributes]
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "default-src 'none'" in policy
    digest = base64.b64encode(
        hashlib.sha256(html.split("<script>")[1].split("</script>")[0].encode()).digest()
    ).decode()
    assert policy.endswith(f"script-src 'sha256-{digest}' 'self' file:")
    assert "unsafe-inline" not in policy.split("script-src")[1]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_scans_in_the_page():
    html = render_html(make_report(), [make_case("A", 0.5)], [], [], {"A": '[{"case_id": "A"}, {}]'})
    page = Page(html)
    assert len(page.all("script", **{"data-case": "A", "type": "application/json"})) == 1
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "file:" not in policy
    assert "'self'" not in policy


@pytest.mark.parametrize(
    ("threshold", "says"),
    [
        (0.5, "at or above the threshold of the report."),
        (0.0, "at or above the threshold of the report."),
        (
            None,
            "at or above the score that one in a hundred voxels of the case's brain exceeds, "
            "since no threshold was given.",
        ),
    ],
)
def test_viewer_says_what_candidates_are(threshold, says):
    inputs = make_inputs(threshold=threshold)
    page = Page(render_html(*inputs, ["case-0"]))
    assert f"Candidates are the connected components of at least 12 voxels {says}" in page.text
    assert "Candidates" not in Page(render_html(*inputs)).text


def test_candidates_have_the_threshold_of_the_first_method():
    report = make_report()
    report["methods"]["model"]["threshold"] = None
    page = Page(render_html(report, [make_case("A", 0.5)], [], [], ["A"]))
    assert "since no threshold was given" in page.text


def test_page_without_scans_has_no_viewer():
    html = render_html(*make_inputs(), [])
    page = Page(html)
    assert not page.all("script")
    assert not page.all("section", id="viewer")
    assert not page.all("a", href="#viewer")
    assert "script-src" not in html
    assert "default-src 'none'" in html


def test_names_are_text():
    name = '<script>alert("1")</script>\'$x_{$'
    report = make_report([name, "_b"], description=name, failed_cases=[{"case_id": name, "problem": name}])
    report["curves"] = make_curves([name, "_b"])
    report["methods"][name]["figures"]["volume_auroc"]["reason"] = name
    slices = make_slices(name, [0.1, 0.2], [False, True], name)
    views = [make_view(name, kind, method=name) for kind in ("lesion", "false_alarm")]
    html = render_html(report, [make_case(name, 0.5, name)], slices, views)
    page = Page(html)
    assert "<script" not in html
    assert not page.all("script")
    assert page.text.count(name) >= 10
    assert len(page.all("td", title=name)) + len(page.all("span", title=name)) == 2
    assert any(name in attributes["alt"] for attributes in page.all("img"))


def test_failed_cases_come_first():
    failed = [{"case_id": "X", "problem": "no label"}, {"case_id": "Y", "problem": "NaN"}]
    page = Page(render_html(*make_inputs(failed_cases=failed)))
    assert page.row("X") == ["X", "no label"]
    assert page.text.index("2 cases were not evaluated") < page.text.index("Summary")
    assert "not evaluated" not in Page(render_html(*make_inputs())).text


def test_page_says_how_its_pictures_lie():
    says = "The patient's right is on the left (R), as in radiology."
    assert says in Page(render_html(*make_inputs()[:3], [make_view("case-0")])).text
    assert says not in Page(render_html(*make_inputs())).text


def order(page, names):
    """Case names in the order of the section of best, median and worst cases."""
    section = page.text[page.text.index("Best, median and worst cases") : page.text.index("Slice score of")]
    return re.findall("|".join(names), section)


def test_best_median_and_worst_cases_of_the_first_method():
    precision = {"c0": 0.9, "c1": 0.1, "c2": 0.5, "c3": 0.8, "c4": 0.3, "c5": None, "c6": 0.6}
    cases = [make_case(name, value) for name, value in precision.items()]
    cases += [make_case(name, 1 - (value or 0), "baseline") for name, value in precision.items()]
    slices = [row for name in precision for row in make_slices(name, [0.1], [False])]
    views = [
        make_view("c0"),
        make_view("c0", method="baseline", index=7),
        make_view("c5"),
        make_view("c4", "false_alarm"),
    ]
    page = Page(render_html(make_report(), cases, slices, views))
    # 6 are ranked: groups of 2
    assert order(page, precision) == ["c0", "c3", "c6", "c2", "c4", "c1"]
    assert re.findall(r"rank (\d) of 6", page.text) == ["1", "2", "3", "4", "5", "6"]
    assert "first method of this report; 6 cases have one" in page.text
    pictures = [attributes["alt"] for attributes in page.all("img") if "png" in attributes["src"][:20]]
    assert [alt.split(":")[0] for alt in pictures if "c0" in alt] == ["Slice 12 of c0"]
    assert page.text.count("There is no picture of this slice.") == 5
    profiles = [attributes["alt"] for attributes in page.all("img") if attributes["alt"].startswith("Score of")]
    assert [alt[-3:-1] for alt in profiles] == ["c1", "c4", "c2", "c6", "c3", "c0", "c5"]
    assert "Worst case first" in page.text
    assert "Cases without one come last" in page.text


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_cases_are_shown_once(count):
    names = [f"c{index}" for index in range(count)]
    page = Page(render_html(make_report(), [make_case(n, 0.5) for n in names], make_slices("c0", [1.0], [True]), []))
    assert sorted(order(page, names)) == names


def test_false_alarms_are_the_highest_lesion_free_slices_one_a_case():
    slices = [
        *make_slices("low", [0.1, 0.2, 0.9], [False, False, True]),
        *make_slices("high", [0.7, 0.8, None], [False, False, False]),
        *make_slices("high", [0.99], [False], "baseline"),
        *make_slices("full", [0.95], [True]),
    ]
    page = Page(render_html(make_report(), [], slices, []))
    start = page.rows.index(["Rank", "Case", "Slice", "Relative height", "Slice score"])
    assert page.rows[start + 1] == ["1", "high", "11", "0.333", "0.800"]
    assert page.rows[start + 2] == ["2", "low", "11", "0.333", "0.200"]
    assert page.rows[start + 3][0] == "Setting"


def test_many_cases_make_a_small_page():
    report, cases, _, _ = make_inputs(180, curves=make_curves(["model", "baseline"]))
    slices = [
        row for case in cases for row in make_slices(case["case_id"], list(np.linspace(0, 1, 155) ** 2), [False] * 155)
    ]
    views = [
        make_view(case["case_id"], kind, size=200, smooth=2.0) for case in cases for kind in ("lesion", "false_alarm")
    ]
    html = render_html(report, cases, slices, views)
    images = [attributes["src"][:14] for attributes in Page(html).all("img")]
    assert images.count("data:image/png") == 12
    assert images.count("data:image/svg") == 24 + len(CURVES)
    assert "Shown are the 24 worst of 180 cases" in html
    assert len(html) < 8e6


INCOMPLETE = {
    "one method": make_inputs(methods=["model"]),
    "no threshold": (*make_inputs(threshold=None)[:3], [make_view("case-0")]),
    "no image": (*make_inputs()[:3], [make_view("case-0", image=False)]),
    "scores beyond [0, 1]": (*make_inputs(threshold=-700.0)[:3], [make_view("case-0", scale=-1e3)]),
    "one score": (*make_inputs()[:3], [make_view("case-0", scale=0)]),
    "curves of one method": make_inputs(curves=make_curves(["baseline"])),
    "no case": (make_report([], cases=0), [], [], []),
    "no lesion": (make_report(), [make_case("A", None)], make_slices("A", [0.3], [False]), []),
    "no volumes": (make_report(), [make_case("A", 0.5) | {"lesion_ml": None, "best_dice_oracle": None}], [], []),
}


@pytest.mark.parametrize("inputs", INCOMPLETE.values(), ids=list(INCOMPLETE))
def test_renders_what_is_incomplete(inputs):
    assert "None" not in Page(render_html(*inputs)).text


def test_thresholds_are_listed():
    report = make_report(["model", "second", "third"])
    report["methods"]["second"]["threshold"]["false_positive_rate"] = None
    report["methods"]["third"]["threshold"] = None
    rows = Page(render_html(report, [], [], [])).rows
    start = rows.index(["Method", "Threshold", "False positive rate", "From"])
    assert rows[start + 1] == ["model", "0.5", "1 %", "5 validation cases"]
    assert rows[start + 2] == ["second", "0.5", "—", "5 validation cases"]
    assert rows[start + 3][1].startswith("none given")


def test_settings_and_definitions_are_listed():
    page = Page(render_html(*make_inputs()))
    assert page.row("top_k") == ["top_k", "20"]
    assert page.row("froc_places") == ["froc_places", "[0.25, 8]"]
    assert page.rows[-5][1:] == ["slice", "is slice_auroc", "higher"]
    assert page.rows[-3][1:] == ["lesion", "is false_positives Unit: per volume.", "lower"]
    assert page.rows[-2][-1] == "—"


def test_the_same_report_gives_the_same_page_and_leaves_matplotlib_as_it_was():
    settings = dict(matplotlib.rcParams)
    inputs = (*make_inputs()[:3], [make_view("case-0")])
    assert render_html(*inputs) == render_html(*inputs)
    assert dict(matplotlib.rcParams) == settings
    assert plt.get_fignums() == []
