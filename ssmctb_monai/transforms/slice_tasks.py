"""Tasks on stacks of slices, which a network learns normal anatomy by."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from torch import Tensor

from ssmctb_monai.checks import check_whole
from ssmctb_monai.transforms.brain import source_name


class RandSliceTaskd(Randomizable, MapTransform):
    """Sets one of four tasks to a stack of slices, drawn with equal probability, as `SSMTL` learns them.

    After Barbalau et al., *SSMTL++: Revisiting self-supervised multi-task learning for video anomaly detection*, CVIU
    2023, https://arxiv.org/abs/2207.08003. Slices are those along the last axis, of which a part is kept, the same
    number for each task. In the first task slices side by side are hidden, by 0. In the others a question is asked,
    and with probability ½ the answer is yes: the stack is reversed; slices within it are skipped, that is slices of all
    the input are taken; or pieces of the stack, of one thickness up to a slice, change their places.

    Added are ``image_clean``, the kept slices as they were; ``hidden``, 1 where they are hidden, shape (1, …, slices);
    and ``answers`` to the three questions, 1, 0, or -1 where a question is not asked.

    Args:
        keys: key of the image, shape (channels, height, width[, depth]).
        num_hidden: number of slices that are hidden together, fewer than are kept.
        num_skipped: number of slices that are left out.
        num_pieces: number of pieces that change places, at least 2.

    Raises:
        ValueError: when an argument is outside its range, there is more than one key, or an image has too few slices;
            the file is named.

    Example:
        >>> sample = RandSliceTaskd(num_hidden=16, num_skipped=16)({"image": torch.rand(1, 64, 96, 64)})
        >>> sample["image"].shape, sample["hidden"].shape, sample["answers"].shape
        (torch.Size([1, 64, 96, 48]), torch.Size([1, 1, 1, 48]), torch.Size([3]))
    """

    def __init__(
        self, keys: KeysCollection = "image", num_hidden: int = 16, num_skipped: int = 16, num_pieces: int = 3
    ) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"RandSliceTaskd takes one key, got {self.keys}.")
        check_whole(1, num_hidden=num_hidden, num_skipped=num_skipped)
        check_whole(2, num_pieces=num_pieces)
        self.num_hidden = num_hidden
        self.num_skipped = num_skipped
        self.num_pieces = num_pieces

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sets a task.

        Args:
            data: item with an image.

        Returns:
            The item with fewer slices, one task, and what the loss takes.
        """
        image = data[self.keys[0]]
        size = image.shape[-1] - self.num_skipped
        if size < self.num_pieces:
            raise ValueError(
                f"{source_name(image)} has {image.shape[-1]} slices: without the {self.num_skipped} that are skipped "
                f"these are too few for {self.num_pieces} pieces; lower num_skipped or take a larger roi_size."
            )
        if size <= self.num_hidden:
            raise ValueError(
                f"{source_name(image)} has {image.shape[-1]} slices: of the {size} that are kept num_hidden "
                f"{self.num_hidden} would leave none to restore them from; lower it or num_skipped {self.num_skipped}, "
                "or take a larger roi_size."
            )
        kept = self.R.randint(self.num_skipped + 1) + np.arange(size)
        order, hidden = kept, np.zeros(size, dtype=bool)
        answers = np.full(3, -1.0, dtype=np.float32)
        question = self.R.randint(4) - 1  # -1: to restore
        if question < 0:
            hidden[self.R.randint(size - self.num_hidden + 1) :][: self.num_hidden] = True
        else:
            answers[question] = self.R.randint(2)
            if answers[question]:
                order = (self._reversed, self._skipping, self._permuted)[question](kept)
        hidden_slices = torch.from_numpy(hidden).view([1] * (image.dim() - 1) + [-1])
        return {
            **data,
            self.keys[0]: _taken(image, order).masked_fill(hidden_slices, 0.0),
            "image_clean": _taken(image, kept),
            "hidden": hidden_slices.float(),
            "answers": torch.from_numpy(answers),
        }

    def _reversed(self, kept: np.ndarray) -> np.ndarray:
        return kept[::-1]

    def _skipping(self, kept: np.ndarray) -> np.ndarray:
        """As many slices of the whole input, with at least one gap."""
        skipped = 1 + self.R.permutation(len(kept) + self.num_skipped - 2)[: self.num_skipped]
        return np.setdiff1d(np.arange(len(kept) + self.num_skipped), skipped)

    def _permuted(self, kept: np.ndarray) -> np.ndarray:
        order = self.R.permutation(self.num_pieces)
        if (order == np.arange(self.num_pieces)).all():
            order = np.roll(order, 1)
        pieces = np.array_split(kept, self.num_pieces)
        return np.concatenate([pieces[index] for index in order])


def _taken(image: Tensor, slices: np.ndarray) -> Tensor:
    return image[..., torch.from_numpy(slices.copy())]
