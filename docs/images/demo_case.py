"""Draws the README's picture: a validation case of the demo data, its anomaly map, and both on top of each other.

Train first (the README's first command, as it stands), then, from the repository's root, with matplotlib installed:

    python docs/images/demo_case.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from monai.bundle import ConfigParser

CASE = 1  # of the validation section

config = ConfigParser()
config.read_config("bundles/brats3d/configs/train.json")
network = config.get_parsed_content("network_def")
network.load_state_dict(torch.load(Path("bundles/brats3d/models/model.pt"), map_location="cpu", weights_only=True))
case = config.get_parsed_content("validate#dataset")[CASE]
with torch.no_grad():
    anomaly_map = config.get_parsed_content("validate#inferer")(case["image"][None], network.eval())[0, 0].float()

index = int(case["label"][0].sum((0, 1)).argmax())  # the axial slice with the largest lesion
flair, lesion, brain, score = (
    np.rot90(np.asarray(volume[..., index]))
    for volume in (case["image"][0], case["label"][0], case["brain"][0], anomaly_map)
)
score = np.where(brain > 0, score, np.nan)
colours = {"cmap": "inferno", "vmin": 0, "vmax": np.nanmax(score)}

figure, axes = plt.subplots(1, 3, figsize=(9, 4), layout="constrained", facecolor="white")
for axis, title in zip(axes, ("FLAIR and lesion (outline)", "Anomaly map", "Anomaly map on FLAIR"), strict=True):
    axis.set_title(title)
    axis.set_axis_off()
axes[0].imshow(flair, cmap="gray", vmin=0, vmax=1)
axes[0].contour(lesion, [0.5], colors="tab:orange", linewidths=1.5)
shown = axes[1].imshow(score, **colours)
axes[2].imshow(flair, cmap="gray", vmin=0, vmax=1)
axes[2].imshow(score, **colours, alpha=np.nan_to_num(score / colours["vmax"]) ** 2)
axes[2].contour(lesion, [0.5], colors="tab:cyan", linewidths=1)
figure.colorbar(shown, ax=axes, shrink=0.7, label="anomaly score")
figure.savefig("docs/images/demo_case.png", dpi=110)
