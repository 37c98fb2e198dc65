"""Data sets: prepared once and cached on disk; lesion-free and reproducible for training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import PersistentDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose

logger = logging.getLogger(__name__)


class PreparedDataset(PersistentDataset):
    """`monai.data.PersistentDataset` that prepares all cases at once and names the one that cannot be prepared.

    The cache is filled by threads when the data set is made, and taken as it is by every later one, also after a killed
    run; other data or other transforms make other files.

    Args:
        data: items with a ``case_id``, such as those of `load_datalist`.
        transform: transforms; those before the first random one are cached. End these with
            ``EnsureTyped(track_meta=False)``, since only plain tensors are loaded safely.
        cache_dir: folder of the cache.
        num_workers: number of threads that fill the cache.

    Raises:
        RuntimeError: when a case cannot be prepared; it is named, and what was prepared before stays cached.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Sequence[Callable] | Compose,
        cache_dir: PathLike,
        num_workers: int = 2,
    ) -> None:
        super().__init__(data, transform, cache_dir, hash_transform=pickle_hashing)
        with ThreadPool(num_workers) as pool:
            usable = pool.map(self._prepare, data)
        self.data: Sequence[Mapping[str, Any]] = [item for item, is_used in zip(data, usable, strict=True) if is_used]

    def _prepare(self, item: Mapping[str, Any]) -> bool:
        """Fills the cache with one case; says whether it can be used."""
        try:
            return self._is_usable(self._cachecheck(item))
        except Exception as error:
            raise RuntimeError(f"Case {item['case_id']} cannot be prepared: {error.__cause__ or error}") from error

    def _is_usable(self, prepared: Mapping[str, Any]) -> bool:
        return True


class LesionFreeDataset(PreparedDataset):
    """Cases to crop lesion-free regions from; the same seed, epoch and case give the same crops and anomalies.

    Cases without a lesion-free position are left out, with a count. Every sample's random transforms are seeded by
    seed, epoch and index, so that neither the number of workers nor an interruption between two epochs changes them.

    Args:
        data: items with a ``case_id``, such as those of `load_datalist`.
        transform: transforms that end with random ones; before these, `LesionFreePositionsd` must have run.
        cache_dir: folder of the cache.
        num_workers: number of threads that fill the cache.
        seed: seed of all samples.
        positions_key: key of the positions that `LesionFreePositionsd` stores.

    Raises:
        RuntimeError: when a case cannot be prepared; it is named.
        ValueError: when no case has a lesion-free position.

    Example:
        >>> dataset = LesionFreeDataset(load_datalist(...), transform, "cache", seed=0)
        >>> dataset.set_epoch(1)
        >>> crops = dataset[0]
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Sequence[Callable] | Compose,
        cache_dir: PathLike,
        num_workers: int = 2,
        seed: int = 0,
        positions_key: str = "lesion_free_positions",
    ) -> None:
        self.positions_key = positions_key
        self.seed = seed
        self.epoch = 0
        super().__init__(data, transform, cache_dir, num_workers)
        used = {item["case_id"] for item in self.data}
        left_out = [item["case_id"] for item in data if item["case_id"] not in used]
        if not used:
            raise ValueError(
                f"None of {len(data)} cases has a lesion-free position: choose a smaller roi_size, margin or min_brain."
            )
        if left_out:
            logger.warning(
                "%d of %d cases have no lesion-free position and are left out: %s.",
                len(left_out),
                len(data),
                ", ".join(left_out),
            )

    def _is_usable(self, prepared: Mapping[str, Any]) -> bool:
        return len(prepared[self.positions_key]) > 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the samples of an epoch; call it before the data loader's iterator is made.

        Args:
            epoch: number of the epoch.
        """
        self.epoch = epoch

    def _transform(self, index: int) -> Any:
        sample_seed = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)[0]
        self.transform.set_random_state(seed=int(sample_seed))
        return super()._transform(index)
