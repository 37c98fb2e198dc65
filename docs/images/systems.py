"""Draws the gallery of docs/systems.md: what each system of brats2d gets and must give, on one slice of the demo data.

From the repository's root:

    python docs/images/systems.py
"""

import matplotlib.pyplot as plt
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from slices import healthy_slices, save_grey

from ssmctb_monai.networks.cell_masks import rand_cell_masks

SYSTEMS = {  # titles by the overlays' names, and seeds that show something
    "draem": ("DRAEM", 11),
    "nsa": ("NSA", 3),
    "cutpaste": ("CutPaste", 2),
    "cutpaste_classifier": ("CutPaste, classified", 0),
    "ssm": ("SSM", 8),
    "mae": ("masked autoencoder", 8),
    "autoencoder": ("autoencoder", 0),
}
ROWS = {"image": "gets", "image_clean": "reconstructs", "anomaly_mask": "marks"}


def parser_of(system: str) -> ConfigParser:
    """Reads brats2d with a system."""
    parser = ConfigParser()
    parser.read_config(["bundles/brats2d/train.json", f"bundles/brats2d/configs/{system}.json"])
    parser["bundle_root"] = "bundles/brats2d"
    return parser


def sample_of(
    system: str, seed: int, healthy: dict[str, torch.Tensor], donors: list[torch.Tensor]
) -> dict[str, torch.Tensor | str]:
    """What the system's training makes of a slice: the parts that it gets, reconstructs or marks."""
    parser = parser_of(system)
    corrupt = Compose(parser.get_parsed_content("system#corruption")).set_random_state(seed)
    sample = corrupt({**healthy, "donors": donors})
    targets = parser["system"]["prepare_batch"]["targets"]
    if "anomaly_class" in sample:
        return {"image": sample["image"], "anomaly_mask": ("original", "patch", "scar")[int(sample["anomaly_class"])]}
    if targets != "image":
        return {key: sample[key] for key in ("image", *([targets] if isinstance(targets, str) else targets))}
    image, generator = healthy["image"], torch.Generator().manual_seed(seed)
    hidden = torch.zeros_like(image, dtype=torch.bool)
    if system == "ssm":  # one of the sets of cells, of the middle size in mm on a grid of 2 mm
        cells = [parser["system"]["network"]["cell_sizes"][1] // 2] * 2
        hidden = ~rand_cell_masks(1, image.shape[1:], cells, num_sets=3, generator=generator)[0, :1]
    if system == "mae":
        patches = [parser["system"]["backbone"]["patch_size"]] * 2
        hidden = rand_cell_masks(1, image.shape[1:], patches, num_sets=4, generator=generator)[0, :1]
    return {"image": image.masked_fill(hidden, 0), "image_clean": image}


healthy, *donors = healthy_slices(3, spacing=2.0)
rows, columns = (slice(int(index.min()), int(index.max()) + 1) for index in healthy["brain"][0].nonzero().T)
figure, axes = plt.subplots(len(ROWS), len(SYSTEMS), figsize=(12, 6.5), layout="constrained")
for (system, (title, seed)), parts in zip(SYSTEMS.items(), axes.T, strict=True):
    sample = sample_of(system, seed, healthy, [donor["image"] for donor in donors])
    parts[0].set_title(title, fontsize=10)
    for part, key in zip(parts, ROWS, strict=True):
        part.set(xticks=[], yticks=[])
        part.spines[:].set_visible(False)
        shown = sample.get(key)
        if isinstance(shown, str):
            part.text(0.5, 0.5, f"class:\n{shown}", ha="center", va="center", transform=part.transAxes)
        elif shown is not None:
            part.imshow(torch.rot90(shown[0, rows, columns]), cmap="gray", vmin=0, vmax=1)
for part, text in zip(axes[:, 0], ROWS.values(), strict=True):
    part.set_ylabel(text, fontsize=10)
save_grey(figure, "systems", dpi=100)
