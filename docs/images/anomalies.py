"""Draws the gallery of docs/anomalies.md: each kind of synthetic anomaly on the same slice of the demo data.

From the repository's root:

    python docs/images/anomalies.py
"""

import matplotlib.pyplot as plt
import torch
from slices import healthy_slices, save_grey

from ssmctb_monai import transforms as t

SEED = 5

KINDS = {
    "Perlin shape, offset": t.RandAnomaly(2, 1.0, t.PerlinShape(coverage=(0.05, 0.1)), t.OffsetSource((0.2, 0.3), 1.0)),
    "ellipse, offset": t.RandAnomaly(2, 1.0, t.EllipsoidShape(coverage=(0.05, 0.1)), t.OffsetSource((0.2, 0.3), 1.0)),
    "Perlin shape in one tissue, texture": t.RandAnomaly(
        2, 1.0, t.TissueShape(t.PerlinShape(coverage=(0.2, 0.3)), width=0.1), t.TextureSource((0.8, 1.0))
    ),
    "Perlin shape, another place": t.RandAnomaly(
        2, 1.0, t.PerlinShape(coverage=(0.1, 0.15)), t.AnotherPlaceSource((1.0, 1.0))
    ),
    "Perlin shape, donor": t.RandAnomaly(2, 1.0, t.PerlinShape(coverage=(0.1, 0.15)), t.DonorSource((1.0, 1.0))),
    "CutPaste, patch": t.RandCutPaste(2, mode="patch"),
    "CutPaste, scar": t.RandCutPaste(2, mode="scar"),
    "FPI, factor as label": t.RandForeignPatch(2, factor=(0.6, 0.8)),
    "PII, factor as label": t.RandForeignPatch(2, poisson=True, factor=(0.6, 0.8)),
    "NSA, logistic label": t.RandNaturalAnomaly(2, count=(2, 2)),
    "NSA, mixed gradients": t.RandNaturalAnomaly(2, gradients="mixed", count=(2, 2)),
    "NSA, ellipses, change as label": t.RandNaturalAnomaly(
        2, ellipsoids=5, label=t.ContinuousLabel(full=0.3), count=(2, 2)
    ),
}

case, *donors = healthy_slices(3)
rows, columns = (slice(int(index.min()), int(index.max()) + 1) for index in case["brain"][0].nonzero().T)

figure, axes = plt.subplots(4, 6, figsize=(12, 10), layout="constrained")
for (image_axes, label_axes), (name, anomaly) in zip(axes.reshape(-1, 2), KINDS.items(), strict=True):
    corrupted, _, label = anomaly.set_random_state(SEED)(case["image"], case["brain"], [d["image"] for d in donors])
    for part, shown in ((image_axes, corrupted), (label_axes, label)):
        part.imshow(torch.rot90(shown[0, rows, columns]), cmap="gray", vmin=0, vmax=1)
        part.axis("off")
    image_axes.set_title(name, loc="left", fontsize=10)
save_grey(figure, "anomalies", dpi=80)
