"""Synthetic anomalies of the literature, as what `RandAnomaly` makes of parts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, get_args

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ssmctb_monai.checks import check_choice
from ssmctb_monai.transforms.anomalies.blends import PoissonBlend, SoftEdge
from ssmctb_monai.transforms.anomalies.labels import FactorLabel, LogisticLabel
from ssmctb_monai.transforms.anomalies.parts import AnomalyLabel, AnomalyShape, SeededTogether
from ssmctb_monai.transforms.anomalies.patches import AreaPatchShape, GammaPatchShape, ScarShape, UniformPatchShape
from ssmctb_monai.transforms.anomalies.rand_anomaly import RandAnomaly
from ssmctb_monai.transforms.anomalies.sources import AnotherPlaceSource, DonorSource

CutPasteMode = Literal["patch", "scar", "union"]


class RandNaturalAnomaly(RandAnomaly):
    """Natural Synthetic Anomalies (NSA): magnified patches of another case, blended in by their gradients.

    Schlüter et al., *Natural Synthetic Anomalies for self-supervised anomaly detection and localization*, ECCV 2022,
    https://arxiv.org/abs/2109.15222, in 2D and 3D: a `GammaPatchShape` with a `DonorSource`, a `PoissonBlend` and a
    `LogisticLabel`. Objects of a patch are here those of the brain: a patch begins with a voxel of the brain, and at
    least 0.7 of its source are the donor's tissue, where one of 20 draws is so. The paper has source gradients for
    objects and mixed ones for textures and X-rays. Unlike there, sides and content are magnified by draws of their own.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        prob: probability that an image gets anomalies.
        gradients: ``"source"`` or ``"mixed"``, see `poisson_blend`.
        label: what is marked: `LogisticLabel` (default), `BinaryLabel`, `ContinuousLabel`, `FactorLabel`.
        factor: least and largest share of the source.
        ellipsoids: number of ellipsoids that a shape consists of; 0: boxes.
        spacing: size of a voxel in mm.
        count: least and largest number of anomalies; between them it is binomial, with a chance of 1/2.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> corrupted, clean, label = RandNaturalAnomaly(3).set_random_state(0)(batch, brains)
    """

    def __init__(
        self,
        spatial_dims: int,
        prob: float = 1.0,
        gradients: Literal["source", "mixed"] = "source",
        label: AnomalyLabel | None = None,
        factor: tuple[float, float] = (1.0, 1.0),
        ellipsoids: int = 0,
        spacing: float | tuple[float, ...] = 1.0,
        count: tuple[int, int] = (1, 3),
    ) -> None:
        check_choice(("source", "mixed"), gradients=gradients)
        zoom = (0.7, 1.3)
        super().__init__(
            spatial_dims,
            prob,
            GammaPatchShape(zoom=zoom, ellipsoids=ellipsoids),
            DonorSource(opacity=(1.0, 1.0), zoom=zoom),
            PoissonBlend(gradients, factor, spacing),
            LogisticLabel() if label is None else label,
            count,
        )

    def _number(self) -> int:
        least, largest = self.count
        return least + self.R.binomial(largest - least, 0.5)


class RandForeignPatch(RandAnomaly):
    """Foreign Patch Interpolation (FPI): a patch of another case at the same place, mixed with the image by a factor.

    Tan et al., *Detecting outliers with foreign patch interpolation*, MELBA 2022, https://arxiv.org/abs/2011.04197: a
    `UniformPatchShape` with a `DonorSource`; the label is the factor. The place is the same in the images that are
    given, so of crops and slices only where all are cut alike. With gradients it is Poisson Image Interpolation (PII),
    Tan et al., *Detecting outliers with Poisson image interpolation*, MICCAI 2021,
    https://arxiv.org/abs/2107.02622.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        prob: probability that an image gets an anomaly.
        poisson: whether gradients are mixed (PII), not images (FPI).
        label: what is marked: `FactorLabel` (default), `BinaryLabel`, `ContinuousLabel`, `LogisticLabel`.
        factor: least and largest share of the other case.
        spacing: size of a voxel in mm, for gradients.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> corrupted, clean, factors = RandForeignPatch(2, poisson=True).set_random_state(0)(batch, brains)
    """

    def __init__(
        self,
        spatial_dims: int,
        prob: float = 1.0,
        poisson: bool = False,
        label: AnomalyLabel | None = None,
        factor: tuple[float, float] = (0.05, 0.95),
        spacing: float | tuple[float, ...] = 1.0,
    ) -> None:
        super().__init__(
            spatial_dims,
            prob,
            UniformPatchShape(),
            DonorSource(opacity=(1.0, 1.0), same_place=True),
            PoissonBlend("interpolated", factor, spacing) if poisson else SoftEdge(0.0, factor),
            FactorLabel() if label is None else label,
        )


class RandCutPaste(RandAnomaly):
    """CutPaste: a patch of the image itself, at another place; 1 in the label where it lies.

    Li et al., *CutPaste: Self-supervised learning for anomaly detection and localization*, CVPR 2021,
    https://arxiv.org/abs/2104.04015, in 2D and 3D: an `AreaPatchShape`, a `ScarShape` or one of both, with an
    `AnotherPlaceSource` whose brightness and contrast change a little.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        prob: probability that an image gets an anomaly.
        mode: ``"patch"``, ``"scar"``, or ``"union"``: either of both.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> corrupted, clean, mask = RandCutPaste(2, mode="scar").set_random_state(0)(image, brain)
    """

    def __init__(self, spatial_dims: int, prob: float = 1.0, mode: CutPasteMode = "union") -> None:
        check_choice(get_args(CutPasteMode), mode=mode)
        kinds: dict[str, AnomalyShape] = {"patch": AreaPatchShape(), "scar": ScarShape()}
        super().__init__(
            spatial_dims,
            prob,
            [shape for name, shape in kinds.items() if mode in (name, "union")],
            AnotherPlaceSource(opacity=(1.0, 1.0), jitter=0.1),
            SoftEdge(0.0),
        )


class RandCutPasteClassd(SeededTogether, MapTransform):
    """Leaves an image as it is, or pastes a patch or a scar into it, each as often; which of the three is its class.

    Li et al., *CutPaste: Self-supervised learning for anomaly detection and localization*, CVPR 2021,
    https://arxiv.org/abs/2104.04015: what `CutPasteClassifier` learns from.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        keys: key of the image.
        brain_key: key of the brain mask; where it is absent patches lie anywhere.
        clean_key: key of the clean image, which is added.
        class_key: key of the class, which is added: 0 for the original, 1 for a patch, 2 for a scar.

    Raises:
        ValueError: when there is more than one key, or an argument is outside its range.

    Example:
        >>> RandCutPasteClassd(spatial_dims=2)({"image": image, "brain": brain})["anomaly_class"]
        tensor(2)
    """

    def __init__(
        self,
        spatial_dims: int,
        keys: KeysCollection = "image",
        brain_key: str = "brain",
        clean_key: str = "image_clean",
        class_key: str = "anomaly_class",
    ) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"RandCutPasteClassd takes one key, got {self.keys}.")
        self.kinds = tuple(RandCutPaste(spatial_dims, mode=mode) for mode in ("patch", "scar"))
        self.brain_key = brain_key
        self.clean_key = clean_key
        self.class_key = class_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draws the class of an item, and makes its image one of it.

        Args:
            data: item.

        Returns:
            The item with its image, the clean one and the class; 0, too, where the brain mask is empty.

        Raises:
            ValueError: when the image has a batch axis: each image has a class of its own.
        """
        item = dict(data)
        drawn = self.R.randint(3)
        brain = item.get(self.brain_key)
        if brain is not None and not brain.any():
            drawn = 0
        for key in self.key_iterator(item):
            if item[key].dim() != self.kinds[0].spatial_dims + 1:
                raise ValueError(f"An item has one image of shape (channels, …), got shape {tuple(item[key].shape)}.")
            item[self.clean_key] = item[key]
            if drawn > 0:
                item[key], _, _ = self.kinds[drawn - 1](item[key], brain)
        return {**item, self.class_key: torch.tensor(drawn)}
