"""Draws the picture of docs/ssm.md: what SSM hides in both passes on a slice of the demo data, restores and marks.

From the repository's root, with the folder of a trained network, such as that of the command in docs/ssm.md:

    python docs/images/ssm.py bundles/brats2d/trained/ssm
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from slices import lesion_slice, save_grey
from torch import Tensor

from ssmctb_monai.checkpoints import load_settings, load_state, make_network
from ssmctb_monai.networks.error_maps import gaussian_smooth

file = Path(sys.argv[1]) / "model.pt"
settings = load_settings(file, {})
network = make_network(settings.network)
network.load_state_dict(load_state(file, "train it"))
network.eval()

case = {key: network.padded(values[None].float()) for key, values in lesion_slice(settings.spacing[0]).items()}
brain = case["brain"] > 0
image = case["image"] * brain
uncovered = torch.zeros_like(image)
passes: list[list[Tensor]] = []
with torch.no_grad():
    for index in range(network.num_passes):
        visible = [
            torch.maximum(network._masks(image, index, which), uncovered)[:, :1] for which in range(len(network.cells))
        ]
        errors, restored = network._pass(image, index, uncovered)
        passes.append([image * uncovered, *(image * mask for mask in visible), restored * brain, errors * brain])
        uncovered = torch.maximum(uncovered, network._clearly_normal(gaussian_smooth(errors, network.sigma)))
passes[0][0] = image
sides = [f"cells of {settings.spacing[0] * cell[0]:g} mm" for cell in network.cells]
titles = [["input", *sides, "restored", "error"], ["uncovered", *sides, "restored", "error: the map"]]
rows, columns = (slice(int(index.min()), int(index.max()) + 1) for index in brain[0, 0].nonzero().T)
highest = max(float(parts[-1].max()) for parts in passes)
figure, axes = plt.subplots(len(passes), len(passes[0]), figsize=(12, 5.2), layout="constrained")
for number, (line, parts, texts) in enumerate(zip(axes, passes, titles, strict=True)):
    for part, values, text in zip(line, parts, texts, strict=True):
        part.set(xticks=[], yticks=[])
        part.spines[:].set_visible(False)
        part.set_title(text, fontsize=10)
        shown = torch.rot90(values[0, 0, rows, columns])
        part.imshow(shown, cmap="gray", vmin=0, vmax=highest if text.startswith("error") else 1)
    line[0].contour(torch.rot90(case["label"][0, 0, rows, columns]) > 0, [0.5], colors="white", linewidths=0.8)
    line[0].set_ylabel(f"pass {number + 1}", fontsize=10)
save_grey(figure, "ssm", dpi=100)
