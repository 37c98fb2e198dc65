"""Redrawing of the review widget's three views, against matplotlib.

A scan of 240x240x155 without a background that could be cut away, with map and lesion, is shown by Chromium, without a
graphics card. A redraw is the time from a move of the slider to the end of the frame that shows it, waiting for the
frame included. The reference draws the same three planes, overlays, contours and crosshairs by matplotlib's artists,
whose data alone are changed.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from playwright.sync_api import sync_playwright
from scipy import ndimage

from benchmarks.measure import Row
from ssmctb_monai.visualize.heatmap import Heatmap, load_heatmap
from ssmctb_monai.visualize.viewer import asset, colormaps, write_case

SHAPE = (240, 240, 155)
REPEATS = 40
PAGE = """<!doctype html><meta charset="utf-8"><style>{style}</style><div id="stage"></div>
<script>{script}
const unpack = async (text, type) => {{
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new type(await new Response(stream).arrayBuffer());
}};
const viewer = createViewer(document.getElementById("stage"), {colormaps});
async function heatmapCase(header, volumes) {{
  const [map, image, label] = await Promise.all(
    [unpack(volumes.map, Uint16Array), unpack(volumes.image, Uint16Array), unpack(volumes.label, Uint8Array)]);
  viewer.show(header, {{ map, image, label }});
  document.body.dataset.ready = true;
}}
</script><script src="case.js"></script>"""
REDRAWS = """async (count) => {
  const slider = document.querySelector(".hv-slices input");
  const times = [];
  for (let index = 0; index < count; index++) {
    slider.value = 20 + 2 * index;
    const start = performance.now();
    slider.dispatchEvent(new Event("input"));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - start);
  }
  return times;
}"""


def synthetic_item() -> dict[str, object]:
    """Smooth noise everywhere, with a lesion."""
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.normal(size=SHAPE).astype(np.float32), 2)
    anomaly_map = ndimage.gaussian_filter(rng.normal(size=SHAPE).astype(np.float32), 3)
    return {
        "case_id": "case",
        "image": image,
        "anomaly_map": anomaly_map,
        "label": anomaly_map > 2.5 * anomaly_map.std(),
        "brain": np.ones(SHAPE, dtype=bool),
        "threshold": float(2 * anomaly_map.std()),
    }


def in_browser(item: dict[str, object]) -> list[float]:
    """Times of redraws in ms."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        write_case(item, folder)
        text = {"style": asset("viewer.css"), "script": asset("viewer.js"), "colormaps": json.dumps(colormaps())}
        Path(folder, "page.html").write_text(PAGE.format(**text), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1150, "height": 1000})
        page.goto(Path(folder, "page.html").as_uri())
        page.wait_for_selector("body[data-ready]")
        page.evaluate(REDRAWS, 5)
        times = page.evaluate(REDRAWS, REPEATS)
        browser.close()
    return times


def by_matplotlib(heatmap: Heatmap) -> list[float]:
    """Times of redraws in ms."""
    (image,) = heatmap.images.values()
    flagged = np.ma.masked_less(heatmap.anomaly_map, heatmap.threshold)
    figure = Figure(figsize=(11.3, 4.3), dpi=100)
    canvas = FigureCanvasAgg(figure)
    planes = (lambda k: np.s_[:, :, k], lambda k: np.s_[:, 120, :], lambda k: np.s_[120, :, :])
    panels = figure.subplots(1, 3)
    artists = []
    for axes, plane in zip(panels, planes, strict=True):
        place = plane(20)
        gray = axes.imshow(image[place].T, cmap="gray")
        scores = axes.imshow(flagged[place].T, cmap="inferno", alpha=0.6)
        axes.axvline(100)
        artists.append((gray, scores, axes.axhline(100)))
    times = []
    for index in range(REPEATS):
        start = time.perf_counter()
        for axes, plane, (gray, scores, line) in zip(panels, planes, artists, strict=True):
            place = plane(20 + 2 * index)
            gray.set_data(image[place].T)
            scores.set_data(flagged[place].T)
            line.set_ydata([20 + index, 20 + index])
            for contour in axes.collections:
                contour.remove()
            axes.contour(heatmap.label[place].T, [0.5], colors="cyan")
        canvas.draw()
        times.append(1000 * (time.perf_counter() - start))
    return times


def rows() -> Iterator[Row]:
    item = synthetic_item()
    ours, theirs = in_browser(item), by_matplotlib(load_heatmap(item))
    yield Row(
        "redraw of the review's three views",
        "matplotlib, whose artists get new data",
        statistics.median(ours) / 1000,
        statistics.median(theirs) / statistics.median(ours),
        "≥",
        note=f"95 % under {np.percentile(ours, 95):.1f} ms (matplotlib: {np.percentile(theirs, 95):.1f} ms)",
    )
