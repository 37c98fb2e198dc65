"""Draws the README's first picture: a patient of the demo data by `plot_case`, with the map of the shipped weights.

From the repository's root:

    python -m monai.bundle run inference --config_file bundles/brats2d/inference.json
    python docs/images/demo_case.py
"""

from io import BytesIO

from PIL import Image

from ssmctb_monai.data import make_demo_dataset
from ssmctb_monai.visualize import find_maps, plot_case

CASE = "DemoBraTS_00011"

items = find_maps("bundles/brats2d/eval/inference", make_demo_dataset())
file = BytesIO()
plot_case(next(item for item in items if item["case_id"] == CASE)).savefig(file, dpi=120)
few_colours = Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE, kmeans=3)
few_colours.save("docs/images/demo_case.png", optimize=True)
