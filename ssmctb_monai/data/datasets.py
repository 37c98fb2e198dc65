"""Data sets: cached on disk; lesion-free and reproducible for training; case after case for evaluation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.config import PathLike
from monai.data import PersistentDataset, get_track_meta, set_track_meta
from monai.data.utils import pickle_hashing
from monai.transforms import Compose
from monai.utils import ensure_tuple
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ssmctb_monai import __version__
from ssmctb_monai.data.checks import InvalidCasesError, report_invalid
from ssmctb_monai.data.series import is_series_file
from ssmctb_monai.files import UNFINISHED, is_undamaged, printable, raise_from_environment, remove_abandoned, voxel_file
from ssmctb_monai.progress import Progress

logger = logging.getLogger(__name__)


def fingerprint(item: Mapping[str, Any]) -> bytes:
    """Computes a hash that changes with an item, with its files and with the package's version.

    Args:
        item: item with absolute paths of files; a folder or a DICOM file stands for all files of the folder, their size
            and time for their content.

    Returns:
        The hash as hexadecimal digits.
    """
    paths = [Path(path) for value in item.values() for path in ensure_tuple(value) if isinstance(path, str)]
    paths = [path for path in paths if path.is_absolute()]  # no name that happens to be that of a file
    paths = [path.parent if is_series_file(path) else path for path in paths]
    found = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else _files_of(path))]
    files = [(file.stat().st_size, file.stat().st_mtime_ns) for file in found if file.is_file()]
    return pickle_hashing([item, files, __version__])


def _files_of(path: Path) -> list[Path]:
    """A volume's file, and that of its voxels where it is another one."""
    voxels = voxel_file(path)
    return [path] if voxels in (None, path) else [path, voxels]


def _reason(error: BaseException) -> str:
    """What went wrong, without the errors that MONAI's transforms wrap around it."""
    while error.__cause__ and str(error).startswith("applying transform "):
        error = error.__cause__
    message = str(error)
    if "Traceback (most recent call last)" in message:  # LoadImage appends those of all the readers it tried
        message = message.splitlines()[0]
    return message if isinstance(error, OSError | ValueError) and message else f"{type(error).__name__}: {message}"


class PreparedDataset(PersistentDataset):
    """`monai.data.PersistentDataset` that prepares all cases at once and reports those that cannot be prepared.

    The cache is filled by threads when the data set is made, and taken as it is by every later one, also after a killed
    run; other files, transforms or versions of this package make other entries. Several processes share the work: each
    starts at another place of the list, and takes what the others have made. Several trainings may share the cache at
    a time.

    Args:
        data: items with a ``case_id``, such as those of `load_datalist`.
        transform: transforms; those before the first random one are cached. End these with
            ``EnsureTyped(track_meta=False)``, since only plain tensors are loaded safely.
        cache_dir: folder of the cache.
        num_workers: number of threads that fill the cache.
        skip_invalid: whether to leave out and log cases that cannot be prepared, instead of raising.

    Raises:
        InvalidCasesError: when cases cannot be prepared; all are named, and what was prepared stays cached.
        OSError, MemoryError: when the machine is at fault, such as a full disk; no case is left out for that.
        ValueError: when no case is left.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Sequence[Callable] | Compose,
        cache_dir: PathLike,
        num_workers: int = 2,
        skip_invalid: bool = False,
    ) -> None:
        super().__init__(data, transform, cache_dir, hash_func=fingerprint, hash_transform=pickle_hashing)
        remove_abandoned(Path(cache_dir))
        start = len(data) * idist.get_rank() // idist.get_world_size()
        progress, results = Progress("Prepared case", len(data)), []
        with ThreadPool(num_workers) as pool:
            for result in pool.imap(self._prepare, [*data[start:], *data[:start]]):
                results.append(result)
                progress.step()
        results = results[len(data) - start :] + results[: len(data) - start]  # in the order of the data
        problems = {item["case_id"]: [result] for item, result in zip(data, results, strict=True) if result}
        report_invalid(problems, skip_invalid)
        self.data: Sequence[Mapping[str, Any]] = [item for item in data if item["case_id"] not in problems]
        if not self.data:
            raise ValueError(f"None of {len(data)} cases can be used.")

    def _prepare(self, item: Mapping[str, Any]) -> str | None:
        """Fills the cache with one case; says why where it cannot."""
        entry = Path(self.cache_dir) / f"{fingerprint(item).decode()}{self.transform_hash}.pt"
        try:
            if not self._is_whole(entry):
                # MONAI moves a new entry to the cache from another disk, so that other processes may find half of it.
                with TemporaryDirectory(dir=self.cache_dir, prefix=UNFINISHED) as folder:
                    beside = copy.copy(self)
                    beside.cache_dir = Path(folder)
                    beside._cachecheck(item)
                    (beside.cache_dir / entry.name).replace(entry)
        except Exception as error:
            raise_from_environment(error)
            return f"it cannot be prepared: {_reason(error)}"
        return None

    def _is_whole(self, entry: Path) -> bool:
        """Tells whether an entry of the cache is what was written; one may be cut off or damaged on the disk."""
        if not is_undamaged(entry):
            return False
        try:
            torch.load(entry, weights_only=True)
        except Exception:
            return False
        return True


class LesionFreeDataset(PreparedDataset):
    """Cases to crop lesion-free regions from; the same seed, epoch and case give the same crops and anomalies.

    Cases of which nothing lesion-free can be drawn are left out, with a count. Every sample's random transforms are
    seeded by seed, epoch and index, so that neither the number of workers nor an interruption between two epochs
    changes them.

    Args:
        data: items with a ``case_id``, such as those of `load_datalist`.
        transform: transforms that end with random ones; what draws from a case, as `RandLesionFreeCropd` and
            `RandSlicesd` do, says by ``can_draw`` whether it can.
        cache_dir: folder of the cache.
        num_workers: number of threads that fill the cache.
        skip_invalid: whether to leave out and log cases that cannot be prepared, instead of raising.
        seed: seed of all samples.
        donors: number of cases, drawn for every epoch, whose crops are handed to `RandAnomalyd` as donors of the other
            cases' anomalies; they go through the same transforms up to there. 0: none.

    Raises:
        InvalidCasesError: when cases cannot be prepared; all are named.
        ValueError: when no case has a lesion-free position, or there are fewer than two patients or no
            `RandAnomalyd` for donors.

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
        skip_invalid: bool = False,
        seed: int = 0,
        donors: int = 0,
    ) -> None:
        self.seed = seed
        self.donors = donors
        super().__init__(data, transform, cache_dir, num_workers, skip_invalid)
        draws = [transform.can_draw for transform in self.transform.transforms if hasattr(transform, "can_draw")]
        is_usable = [all(can_draw(item) for can_draw in draws) for item in map(self._cachecheck, self.data)]
        if not any(is_usable):
            raise ValueError(
                f"None of {len(data)} cases has a lesion-free position: choose a smaller roi_size, margin or min_brain."
            )
        if left_out := [item["case_id"] for item, used in zip(self.data, is_usable, strict=True) if not used]:
            logger.warning(
                "%d of %d cases have no lesion-free position and are left out: %s.",
                len(left_out),
                len(self.data),
                ", ".join(left_out),
            )
        self.data = [item for item, used in zip(self.data, is_usable, strict=True) if used]
        self._taker = self.transform.get_index_of_first(lambda transform: hasattr(transform, "donors_key"))
        self._patients = [item.get("patient_id", item["case_id"]) for item in self.data]
        if donors and (donors < 2 or len(set(self._patients)) < 2 or self._taker is None):
            raise ValueError(
                f"donors take at least two patients and a RandAnomalyd among the transforms, got donors={donors} and "
                f"cases of {len(set(self._patients))} patients: leave donors at 0, or add what is missing."
            )
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the samples of an epoch; call it before the data loader's iterator is made.

        Args:
            epoch: number of the epoch.
        """
        self.epoch = epoch
        self._pool = self._draw_donors() if self.donors else {}

    def _draw_donors(self) -> dict[int, list[Tensor]]:
        """Crops of a case each of some patients, by the index of the case."""
        # A stream of its own: of the numbers alone, that of the first sample.
        seed = np.random.SeedSequence([self.seed, self.epoch], spawn_key=(0,)).generate_state(1)[0]
        draw = np.random.RandomState(seed)
        taker = self.transform.transforms[self._taker]
        beside = copy.copy(self)
        beside.transform = Compose(self.transform.transforms[: self._taker]).set_random_state(state=draw)
        pool = {}
        cases: dict[str, int] = {}
        for index in draw.permutation(len(self.data)).tolist():
            cases.setdefault(self._patients[index], index)
        for index in list(cases.values())[: self.donors]:
            crops = beside._post_transform(self._cachecheck(self.data[index]))
            pool[index] = [crop[taker.keys[0]] for crop in (crops if isinstance(crops, list) else [crops])]
        return pool

    def _post_transform(self, item_transformed: Any) -> Any:
        # Metadata carried through every random transform took as long as the transforms; nothing reads it behind them.
        is_tracked = get_track_meta()
        set_track_meta(False)
        try:
            return super()._post_transform(item_transformed)
        finally:
            set_track_meta(is_tracked)

    def _transform(self, index: int) -> Any:
        sample_seed = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)[0]
        self.transform.set_random_state(seed=int(sample_seed))
        item = self._cachecheck(self.data[index])
        if self.donors:
            own = self._patients[index]
            others = [crop for case, crops in self._pool.items() if self._patients[case] != own for crop in crops]
            item = {**item, self.transform.transforms[self._taker].donors_key: others}
        return self._post_transform(item)


class ValidCases(IterableDataset):
    """Prepares case after case for evaluation, reports those that cannot be prepared, and goes on with the others.

    Nothing is cached, and only as many cases are in memory as the loader asks for: one with a `DataLoader`, a few more
    with MONAI's `ThreadDataLoader`, which prepares the next case while the network works on the last. It has no length,
    since nobody knows beforehand which cases are sound.

    Args:
        data: items with a ``case_id``, such as those of `load_datalist`; one with ``problems`` is reported as it is.
        transform: transforms that prepare an item.

    Attributes:
        problems: what is wrong with each case met so far that cannot be used, by case name; emptied when an iteration
            starts.

    Raises:
        RuntimeError: when a loader's worker iterates, because ``problems`` would stay in the worker and every worker
            would prepare all cases.

    Example:
        >>> cases = ValidCases(load_datalist(..., keep_invalid=True), transform)
        >>> for batch in ThreadDataLoader(cases, batch_size=1):
        ...     evaluate(batch)
        >>> cases.problems
        {'BraTS2021_00006': 'BraTS2021_00006_flair.nii.gz does not exist'}
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Sequence[Callable] | Callable) -> None:
        self.data = data
        self.transform = Compose(transform)
        self.problems: dict[str, str] = {}

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            raise RuntimeError(
                "ValidCases keeps its problems in the main process: use num_workers=0, with MONAI's ThreadDataLoader "
                "to prepare cases in the background."
            )
        self.problems.clear()
        for item in self.data:
            try:
                prepared = self._prepare(item)
            except Exception as error:
                raise_from_environment(error)
                problem = self.problems[item["case_id"]] = _reason(error)
                logger.error("%s cannot be used: %s", printable(item["case_id"]), printable(problem))
                logger.debug("The error in full:", exc_info=error)
            else:
                yield prepared

    def raise_problems(self, advice: str) -> None:
        """Raises what is wrong with the cases met so far, all together, so that the exit status tells.

        Args:
            advice: what to do, or what was done with the other cases.

        Raises:
            InvalidCasesError: when there are such cases.
        """
        if self.problems:
            raise InvalidCasesError({case_id: [problem] for case_id, problem in self.problems.items()}, advice)

    def _prepare(self, item: Mapping[str, Any]) -> Any:
        if problems := item.get("problems"):
            raise ValueError("; ".join(problems))
        return self.transform(item)
