"""What a synthetic anomaly is made of: shape, source, blend and label."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.transforms import Randomizable
from monai.utils import ensure_tuple
from torch import Tensor

from ssmctb_monai.checks import check_ranges

if TYPE_CHECKING:
    from typing_extensions import Self


class SeededTogether(Randomizable):
    """Draws from one random state together with the random parts that it holds as attributes."""

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Self:
        """Seeds all random draws.

        Args:
            seed: seed.
            state: random state instead of a seed.

        Returns:
            The object itself.
        """
        super().set_random_state(seed, state)
        for value in vars(self).values():
            for part in ensure_tuple(value):
                if isinstance(part, Randomizable):
                    part.set_random_state(state=self.R)
        return self


def drawn_voxel(mask: Tensor, random: np.random.RandomState) -> np.ndarray:
    """Draws a voxel of a mask.

    Args:
        mask: shape (…), bool, not empty.
        random: random state.

    Returns:
        Its place, shape (axes,), whole numbers.

    Example:
        >>> drawn_voxel(torch.tensor([[False, False], [True, False]]), np.random.RandomState(0))
        array([1, 0])
    """
    places = mask.flatten().nonzero()  # of one axis: those of all take several times as long
    return np.array(np.unravel_index(int(places[random.randint(len(places))]), mask.shape))


class AnomalyShape(SeededTogether, ABC):
    """Where an anomaly lies."""

    @abstractmethod
    def __call__(self, image: Tensor, inside: Tensor) -> Tensor:
        """Draws a shape.

        Args:
            image: clean image, shape (channels, …).
            inside: where the anomaly may lie, shape (…), bool, not empty.

        Returns:
            Level, shape (…), float: at least 0 where ``inside`` is anomalous, which at least one voxel is; below 0
            elsewhere. A soft edge runs along the levels near 0, so they differ by about 1 between the middle of an
            anomaly and its border.
        """


class AnomalySource(SeededTogether, ABC):
    """What an anomaly consists of."""

    @abstractmethod
    def __call__(self, image: Tensor, region: Tensor, donors: Sequence[Tensor]) -> Tensor:
        """Draws a source.

        Args:
            image: image to put it in, shape (channels, …), in [0, 1].
            region: the anomaly, shape (…), bool, not empty.
            donors: other images, each of shape (channels, …); may be empty.

        Returns:
            Image of the same shape to take the anomaly from.
        """

    def shows_in(self, image: Tensor) -> bool:
        """Tells whether the source can show in an image, which may lack modalities.

        Args:
            image: shape (channels, …).
        """
        return True


class AnomalyBlend(SeededTogether, ABC):
    """How an anomaly is put into an image; what is random in it is drawn by ``randomize``, before the source.

    Args:
        factor: least and largest share of the source in the anomaly, drawn uniformly; `FactorLabel` labels by it.

    Raises:
        ValueError: when the range is not increasing, or outside (0, 1].
    """

    def __init__(self, factor: tuple[float, float] = (1.0, 1.0)) -> None:
        check_ranges(1, factor=factor)
        self.factor = factor
        self.drawn_factor = factor[1]

    def randomize(self, data: Any = None) -> None:
        """Draws the factor.

        Args:
            data: not used.
        """
        if self.factor[0] < self.factor[1]:
            self.drawn_factor = self.R.uniform(*self.factor)

    @abstractmethod
    def __call__(self, image: Tensor, source: Tensor, level: Tensor, inside: Tensor) -> Tensor:
        """Puts an anomaly into an image.

        Args:
            image: shape (channels, …).
            source: the anomaly's source, of the same shape.
            level: the anomaly's shape, as `AnomalyShape` gives it.
            inside: where the image may change, shape (…), bool.

        Returns:
            Image of the same shape, equal to ``image`` outside.
        """


class AnomalyLabel(ABC):
    """What a network learns to find of an anomaly."""

    @abstractmethod
    def __call__(self, clean: Tensor, corrupted: Tensor, factors: Tensor) -> Tensor:
        """Labels an image.

        Args:
            clean: image without anomalies, shape (channels, …).
            corrupted: image with anomalies, of the same shape.
            factors: factors of the blend where anomalies lie, 0 elsewhere; shape (…), float32; may be 0 everywhere.

        Returns:
            Label, shape (…), float32, in [0, 1].
        """
