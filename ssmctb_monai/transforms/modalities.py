"""Scans that lack modalities: a channel that is 0 throughout."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import ensure_tuple
from torch import Tensor

from ssmctb_monai.checks import check_shares


def has_modality(image: Tensor) -> Tensor:
    """Tells which modalities an image has: those whose channel is not 0 throughout; a blank image lacks none.

    Args:
        image: shape (channels, …), as `RobustScaleIntensity` scales it.

    Returns:
        Shape (channels,), bool.

    Example:
        >>> has_modality(torch.tensor([[0.0, 0.5], [0.0, 0.0]]))
        tensor([ True, False])
    """
    present = image.flatten(1).any(dim=1)
    return present | ~present.any()


def dropout_rates(prob: float | Sequence[float], channels: int) -> tuple[float, ...]:
    """Returns the probability of each modality to be left out.

    Args:
        prob: one for all modalities but the first, which is never left out, or one for each.
        channels: number of modalities.

    Raises:
        ValueError: when a probability is outside [0, 1], the first modality could be left out, or the number differs.

    Example:
        >>> dropout_rates(0.5, 3)
        (0, 0.5, 0.5)
    """
    rates = ensure_tuple(prob) if isinstance(prob, Sequence) else (0, *[prob] * (channels - 1))
    for rate in (*rates, *ensure_tuple(prob)):
        check_shares(modality_dropout=rate)
    if len(rates) != channels or rates[0] or (channels == 1 and prob):
        raise ValueError(
            f"modality_dropout must be one number for all modalities behind the first, or one for each of {channels}, "
            f"0 for the first, which is never left out; got {prob}."
        )
    return rates


class RandDropModalities(Randomizable, Transform):
    """Leaves out modalities at random, so that one network learns to do without them: their channels become 0.

    Neverova et al., *ModDrop: adaptive multi-modal gesture recognition*, TPAMI 38(8), 2016,
    https://arxiv.org/abs/1501.00102. A channel of 0 throughout can be nothing but a modality that is missing, since
    `RobustScaleIntensity` puts the median of the brain to 0.5. Use it behind all that changes intensities, and before
    `RandAnomaly`, which leaves such channels at 0.

    Args:
        prob: probability that a modality is left out, one for all but the first, which is never, or one for each.

    Raises:
        ValueError: when a probability is outside [0, 1]; and, when called, that of the first is not 0, or the image has
            another number of channels or only one.

    Example:
        >>> RandDropModalities(prob=[0, 1, 0])(torch.ones(3, 4)).any(dim=1)
        tensor([ True, False,  True])
    """

    def __init__(self, prob: float | Sequence[float] = 0.5) -> None:
        for rate in ensure_tuple(prob):
            check_shares(prob=rate)
        self.prob = prob

    def randomize(self, data: int) -> None:
        """Draws which modalities are left out.

        Args:
            data: number of channels.
        """
        self.is_left_out = self.R.uniform(size=data) < np.array(dropout_rates(self.prob, data))

    def __call__(self, image: NdarrayOrTensor) -> NdarrayOrTensor:
        """Leaves out modalities.

        Args:
            image: shape (channels, …), scaled by `RobustScaleIntensity`.

        Returns:
            Image of the same shape and kind.
        """
        self.randomize(len(image))
        if not self.is_left_out.any():
            return image
        image = image.clone() if isinstance(image, Tensor) else image.copy()
        image[np.flatnonzero(self.is_left_out)] = 0
        return image


class RandDropModalitiesd(Randomizable, MapTransform):
    """Dictionary-based `RandDropModalities`.

    Args:
        keys: keys of the images; of each other modalities are left out.
        prob: probability that a modality is left out, one for all but the first, which is never, or one for each.
    """

    def __init__(self, keys: KeysCollection = "image", prob: float | Sequence[float] = 0.5) -> None:
        super().__init__(keys)
        self.drop = RandDropModalities(prob)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandDropModalitiesd:
        """Seeds all random draws.

        Args:
            seed: seed.
            state: random state instead of a seed.

        Returns:
            The transform.
        """
        super().set_random_state(seed, state)
        self.drop.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Leaves out modalities.

        Args:
            data: item with the images.

        Returns:
            The item.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.drop(item[key])
        return item
