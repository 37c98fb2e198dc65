"""Evaluation of anomaly maps in files, from any tool."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.transforms import Compose, CopyItemsd, HistogramNormalized, LoadImaged
from monai.utils import ensure_tuple

from ssmctb_monai.data.brats import (
    VOLUME_SUFFIXES,
    BratsCase,
    NoCasesError,
    canonical_modality,
    dataset_folder,
    find_cases,
    patient_of,
    volume_stem,
)
from ssmctb_monai.data.datasets import ValidCases
from ssmctb_monai.data.readers import SimpleITKReader
from ssmctb_monai.metrics.evaluation import AnomalyEvaluation
from ssmctb_monai.metrics.settings import EvaluationSettings
from ssmctb_monai.metrics.threshold import LabelFreeThreshold
from ssmctb_monai.progress import Clock
from ssmctb_monai.reports.report import VIEWER, write_report
from ssmctb_monai.transforms import BrainMaskd, CheckCased, SelectChannelsd
from ssmctb_monai.visualize.viewer import write_case

logger = logging.getLogger(__name__)

SUFFIXES = (*VOLUME_SUFFIXES, ".hdr")


def evaluate_folders(
    map_dirs: Mapping[str, PathLike],
    label_dir: PathLike,
    *,
    brain_dir: PathLike | None = None,
    cases: Sequence[str] | str | None = None,
    baseline: str = "flair",
    thresholds: Mapping[str, float | LabelFreeThreshold] | None = None,
    settings: EvaluationSettings | None = None,
    output_dir: PathLike | None = None,
    viewer: bool = True,
) -> AnomalyEvaluation:
    """Evaluates folders of anomaly maps, from one method or several, against labels.

    Files belong together by the name of the case: a map's or mask's file has it, alone or followed by ``_``, ``-`` or
    ``.`` and anything else. Files of one case have one shape and one affine; nothing is resampled. A case that lacks a
    file, has two of a kind or one that cannot be used is logged and remembered, and the others are evaluated.

    Args:
        map_dirs: folder of the maps of each method, by its name; the first is the one that others are compared to.
        label_dir: folder of the labels: a data set in any layout of BRATS, see `find_cases`, or files named after the
            cases.
        brain_dir: folder of brain masks. Without it masks are those of the data set, else what differs from the
            background of its images; where there are no images, every voxel counts.
        cases: name or names of the cases to evaluate; by default all that have a label.
        baseline: modality whose histogram-equalised image is evaluated as ``baseline_…``, in a data set of images;
            there, every case must have it.
        thresholds: label-free threshold of each method, by its name.
        settings: what to count.
        output_dir: where to write the report, if anywhere.
        viewer: whether to write the cases beside the report, for its page to scroll through them: 5 to 6 MB for one of
            240x240x155.

    Returns:
        The evaluation; what could not be evaluated is in ``failed``.

    Raises:
        NotADirectoryError: when a folder does not exist.
        ValueError: when there is no label, a threshold is that of no method, or there is no case to report.

    Example:
        >>> evaluation = evaluate_folders({"ours": "maps/ours", "theirs": "maps/theirs"}, "BraTS2021")  # doctest: +SKIP
        >>> evaluation.differences("ours", "theirs")["pixel_average_precision"].interval  # doctest: +SKIP
    """
    known, problems = _labelled_cases(label_dir)
    names = sorted(known) if cases is None else list(ensure_tuple(cases))
    modality = canonical_modality(baseline)
    items: dict[str, dict[str, Any]] = {name: {"case_id": name, "problems": problems.get(name, [])} for name in names}
    for name, item in items.items():
        if name not in known:
            item["problems"] = [f"{label_dir} has no label of it"]
            continue
        case = known[name]
        item |= {"patient_id": case.patient_id, "label": case.label}
        item |= {"brain": case.brain} if case.brain and not brain_dir else {}
        item |= {"image": case.images[modality]} if modality in case.images else {}
        item |= {"channels": [case.channels[modality]]} if modality in case.channels else {}

    maps = {method: f"map of {method}" for method in map_dirs}
    folders = {maps[method]: folder for method, folder in map_dirs.items()} | (
        {"brain": brain_dir} if brain_dir else {}
    )
    if any("image" in item for item in items.values()):
        maps[f"baseline_{modality}"] = "baseline"
        for item in items.values():
            item["problems"] += [] if "image" in item else [f"it has no {modality} image, as others have"]
    if unknown := set(thresholds or {}) - set(maps):
        raise ValueError(f"There are thresholds of {', '.join(sorted(unknown))}, but maps of {', '.join(maps)}.")

    evaluation = AnomalyEvaluation(thresholds, settings)
    for key, folder in folders.items():
        files, strangers = _files_by_case(folder, known.keys() | items.keys())
        for file in strangers:
            evaluation.fail(str(file), f"it belongs to no case of {label_dir}")
        for name, item in items.items():
            found = files.get(name, [])
            if len(found) == 1:
                item[key] = found[0]
            elif found:
                item["problems"].append(_several(found))
            else:
                item["problems"].append(f"{folder} has no file of it, such as {name}.nii.gz")

    prepared = ValidCases(list(items.values()), _prepare)
    clock = Clock()
    first, scans = next(iter(map_dirs)), []
    for index, item in enumerate(prepared, start=1):
        name = item["case_id"]
        try:
            evaluation.add(
                name,
                {method: item[key] for method, key in maps.items()},
                item["label"],
                item.get("brain"),
                patient_id=item["patient_id"],
                image=item.get("image"),
            )
        except ValueError as error:
            paths = [str(items[name][key]) for key in ("label", *folders) if key in items[name]]
            problem = f"{error} Its files: {', '.join(paths)}"
            logger.error("%s", problem)
            evaluation.fail(name, problem)
        else:
            if viewer and output_dir is not None and "image" in item:
                threshold = evaluation.thresholds.get(first)
                shown = {key: item[key] for key in ("case_id", "image", "label", "brain")}
                shown |= {"anomaly_map": item[maps[first]], "threshold": threshold and threshold.value}
                if write_case(shown, Path(output_dir) / VIEWER, evaluation.settings):
                    scans.append(name)
        done = index + len(prepared.problems)
        logger.info("Case %d/%d, %s | %s left", done, len(items), name, clock.left(done, len(items)))
    for name, problem in prepared.problems.items():
        evaluation.fail(name, problem)
    if output_dir is not None:
        described = f"Anomaly maps of {', '.join(f'{method} ({folder})' for method, folder in map_dirs.items())}"
        write_report(evaluation, output_dir, described, scans)
    return evaluation


def _labelled_cases(label_dir: PathLike) -> tuple[dict[str, BratsCase], dict[str, list[str]]]:
    """Finds the cases that have a label, and the problems of those that have several."""
    folder = dataset_folder(label_dir)
    try:
        return {case.case_id: case for case in find_cases(folder) if case.label}, {}
    except NoCasesError:
        by_stem: dict[str, list[Path]] = {}
        for stem, file in _files(folder):
            by_stem.setdefault(stem, []).append(file)
    if not by_stem:
        raise ValueError(f"There is no label in {folder}.")
    known = {stem: BratsCase(stem, patient_of(stem), {}, files[0], None, {}) for stem, files in by_stem.items()}
    return known, {stem: [_several(files)] for stem, files in by_stem.items() if len(files) > 1}


def _files_by_case(folder: PathLike, names: Collection[str]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Finds the files of each case, and those of no case."""
    by_case: dict[str, list[Path]] = {}
    strangers = []
    for stem, file in _files(dataset_folder(folder)):
        owners = [name for name in names if stem == name or (stem.startswith(name) and stem[len(name)] in "_-.")]
        if owners:
            by_case.setdefault(max(owners, key=len), []).append(file)
        else:
            strangers.append(file)
    return by_case, strangers


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Finds the volumes in a folder, with their names without suffix."""
    return [(stem, file) for file in sorted(folder.glob("[!.]*")) if (stem := volume_stem(file, SUFFIXES))]


def _several(files: Sequence[Path]) -> str:
    return f"several files belong to it: {', '.join(map(str, files))}"


def _prepare(item: Mapping[str, Any]) -> dict[Hashable, Any]:
    """Loads the files of a case; makes brain mask and baseline where there is an image."""
    maps = [key for key in item if key.startswith("map of ")]
    options = {"reader": SimpleITKReader(), "ensure_channel_first": True}
    keys = [key for key in ("label", "brain", "image") if key in item]
    transforms = [
        LoadImaged(keys, **options),
        LoadImaged(maps, dtype=None, **options),  # scores keep their precision
        CheckCased(keys),
    ]
    if "image" in item:
        transforms += [
            SelectChannelsd("image"),
            BrainMaskd("image"),
            CopyItemsd("image", names="baseline"),
            HistogramNormalized("baseline", num_bins=1000, min=0, max=1, mask_key="brain"),
        ]
    return Compose(transforms)(item)
