"""What the displacement between slices tells of lesions, as optical flow does of events in videos: its own score alone.

python -m benchmarks.displacement --dataset_dir BRATS [--cases 3]

HF2-VAD (Liu et al., ICCV 2021, https://arxiv.org/abs/2108.06852) reconstructs the optical flow of a video, and predicts
frames from what it reconstructed. It makes sense here only if the flow between slices finds something by itself. What
came of it is in ``docs/sequences.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.transforms import Compose
from skimage.registration import optical_flow_tvl1
from torch import Tensor

from ssmctb_monai.data import find_cases
from ssmctb_monai.metrics import AnomalyEvaluation, EvaluationSettings
from ssmctb_monai.transforms import MaskedGaussianSmooth
from ssmctb_monai.transforms.slices import slice_runs

CONFIG = Path(__file__).parents[1] / "bundles/brats2d/configs/train.json"
PATCH = 8  # voxels of 2 mm
AROUND = (8.0, 8.0, 0.0)  # σ of the displacement that is expected, in voxels
SMOOTHING = (1.5, 1.5, 3.0)  # σ of every map, in voxels: 3, 3 and 6 mm
METRICS = ("pixel_average_precision", "slice_auroc", "slice_auroc_macro")


def displacement(image: Tensor, other: Tensor) -> Tensor:
    """Estimates by TV-L1 how each slice must be displaced within its plane to lie on that of another image.

    Args:
        image: shape (1, height, width, depth).
        other: of the same shape.

    Returns:
        Tensor (2, height, width, depth), in voxels.
    """
    pairs = zip(image[0].numpy().T, other[0].numpy().T, strict=True)
    return torch.from_numpy(np.stack([optical_flow_tvl1(a.T, b.T) for a, b in pairs], axis=-1)).float()


def in_patches(values: Tensor, brain: Tensor) -> Tensor:
    """Takes the mean over the brain in each patch of a slice, of all its voxels alike."""
    sums = [F.avg_pool3d(each * brain, (PATCH, PATCH, 1), ceil_mode=True) for each in (values, torch.ones_like(values))]
    means = (sums[0] / sums[1].clamp(min=1e-6)).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
    return means[:, : values.shape[1], : values.shape[2]]


def maps_of(image: Tensor, brain: Tensor) -> dict[str, Tensor]:
    """Makes the maps to compare, each of them the mean of both directions, where both lie in the volume.

    Args:
        image: shape (1, height, width, depth), with values in [0, 1].
        brain: mask of the same shape.
    """
    around, smooth = MaskedGaussianSmooth(AROUND), MaskedGaussianSmooth(SMOOTHING)
    maps = {"FLAIR itself": image}
    for step in (1, 16):
        names = [f"{name}, {2 * step} mm" for name in ("difference of grey values", "displacement", "unlike around")]
        maps |= {name: torch.zeros_like(image) for name in names}
        indices, counts = slice_runs(image.shape[-1], [-step])
        for run, share in zip(indices, counts / counts.sum(axis=0), strict=True):
            other = image[..., torch.from_numpy(run[:, 1])]
            field = displacement(image, other)
            unlike = field - around(field, brain)
            lengths = [in_patches(each.norm(dim=0, keepdim=True), brain) for each in (field, unlike)]
            for name, part in zip(names, [(image - other).abs(), *lengths], strict=True):
                maps[name] = maps[name] + part * torch.from_numpy(share).float()
    return {name: smooth(each, brain) for name, each in maps.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.displacement", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="BRATS data")
    parser.add_argument("--cases", type=int, help="number of cases, the first ones by name; as a default all")
    settings = parser.parse_args(arguments)
    config = ConfigParser()
    config.read_config(str(CONFIG))
    steps = [config.get_parsed_content(name) for name in ("loading", "spatial_preprocessing", "scaling")]
    prepare = Compose([step for part in steps for step in part])
    evaluation = AnomalyEvaluation(settings=EvaluationSettings(slice_score="max"), metrics=METRICS)
    lesion, voxels = 0.0, 0.0
    for case in find_cases(settings.dataset_dir)[: settings.cases]:
        files = {"image": case.images["flair"], "label": case.label, "brain": case.brain}
        item = prepare({"case_id": case.case_id, **{key: str(file) for key, file in files.items() if file}})
        image, label, brain = (item[key].as_tensor().float() for key in ("image", "label", "brain"))
        evaluation.add(case.case_id, maps_of(image, brain), label, brain, patient_id=case.patient_id)
        lesion, voxels = lesion + float((label * brain).sum()), voxels + float(brain.sum())
        print(case.case_id, flush=True)
    print(f"{lesion / voxels:.1%} of the brain is lesion.")
    print(f"| map | {' | '.join(METRICS)} |\n|---|{'---|' * len(METRICS)}")
    for method in evaluation.methods:
        estimates = evaluation.estimates(method)
        print(f"| {method} | {' | '.join(f'{estimates[name].value:.3f}' for name in METRICS)} |")


if __name__ == "__main__":
    main()
