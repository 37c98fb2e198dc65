"""Evaluation of anomaly maps in files, from any tool."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.transforms import Compose, CopyItemsd, HistogramNormalized, LoadImaged

from ssmctb_monai.data.brats import BratsCase, canonical_modality, dataset_folder, find_cases, patient_of
from ssmctb_monai.data.datasets import SoundCases
from ssmctb_monai.data.readers import SUFFIXES, SimpleITKReader
from ssmctb_monai.metrics.evaluation import AnomalyEvaluation
from ssmctb_monai.metrics.settings import EvaluationSettings
from ssmctb_monai.metrics.threshold import LabelFreeThreshold
from ssmctb_monai.progress import Clock
from ssmctb_monai.reports.report import write_report
from ssmctb_monai.transforms import BrainMaskd, CheckCased

logger = logging.getLogger(__name__)


def evaluate_folders(
    map_dirs: Mapping[str, PathLike],
    label_dir: PathLike,
    *,
    brain_dir: PathLike | None = None,
    cases: Collection[str] | None = None,
    baseline: str = "flair",
    thresholds: Mapping[str, float | LabelFreeThreshold] | None = None,
    settings: EvaluationSettings | None = None,
    output_dir: PathLike | None = None,
) -> AnomalyEvaluation:
    """Evaluates folders of anomaly maps, from one method or several, against labels.

    Files belong together by the name of the case: a map's or mask's file has it, alone or followed by ``_``, ``-`` or
    ``.`` and anything else. Files of one case have one shape and one affine; nothing is resampled. A case that lacks a
    file or has one that cannot be used is logged and remembered, and the others are evaluated.

    Args:
        map_dirs: folder of the maps of each method, by its name; the first is the one that others are compared to.
        label_dir: folder of the labels: a data set in any layout of BRATS, see `find_cases`, or files named after the
            cases.
        brain_dir: folder of brain masks. Without it masks are those of the data set, else what differs from the
            background of its images; where there are no images, every voxel counts.
        cases: names of the cases to evaluate; by default all that have a label.
        baseline: modality whose histogram-equalised image is evaluated as ``baseline_…`` where the data set has it.
        thresholds: label-free threshold of each method, by its name.
        settings: what to count.
        output_dir: where to write the report, if anywhere.

    Returns:
        The evaluation; what could not be evaluated is in ``failed``.

    Raises:
        NotADirectoryError: when a folder does not exist.
        ValueError: when there is no label, or no case to report.

    Example:
        >>> evaluation = evaluate_folders({"ours": "maps/ours", "theirs": "maps/theirs"}, "BraTS2021")  # doctest: +SKIP
        >>> evaluation.differences("ours", "theirs")["pixel_average_precision"].interval  # doctest: +SKIP
    """
    known = _labelled_cases(label_dir)
    modality = canonical_modality(baseline)
    has_images = all(modality in case.images for case in known.values())
    names = sorted(known) if cases is None else list(cases)

    evaluation = AnomalyEvaluation(thresholds, settings)
    items: dict[str, dict[str, Any]] = {name: {"case_id": name, "problems": []} for name in names}
    for name, item in items.items():
        if name not in known:
            item["problems"].append(f"{label_dir} has no label of it")
            continue
        case = known[name]
        item |= {"patient_id": case.patient_id, "label": case.label}
        item |= {"brain": case.brain} if case.brain and not brain_dir else {}
        item |= {"image": case.images[modality]} if has_images else {}
    folders = {f"map of {method}": folder for method, folder in map_dirs.items()}
    for key, folder in {**folders, **({"brain": brain_dir} if brain_dir else {})}.items():
        files, strangers = _files_of(folder, known.keys() | items.keys())
        for file in strangers:
            evaluation.fail(str(file), f"it belongs to no case of {label_dir}")
        for name, item in items.items():
            if name in files:
                item[key] = files[name]
            else:
                item["problems"].append(f"{folder} has no file of it, such as {name}.nii.gz")

    maps = {method: f"map of {method}" for method in map_dirs}
    prepared = SoundCases(list(items.values()), _loading(list(maps.values()), modality if has_images else None))
    if has_images:
        maps[f"baseline_{modality}"] = "baseline"
    clock = Clock()
    for item in prepared:
        try:
            evaluation.add(
                item["case_id"],
                {method: item[key] for method, key in maps.items()},
                item["label"],
                item.get("brain"),
                patient_id=item["patient_id"],
                image=item.get("image"),
            )
        except ValueError as error:
            logger.error("%s", error)
            evaluation.fail(item["case_id"], str(error))
        done = len(evaluation.cases) + len(prepared.problems)
        logger.info("Case %d/%d, %s | %s left", done, len(items), item["case_id"], clock.left(done, len(items)))
    for name, problem in prepared.problems.items():
        evaluation.fail(name, problem)
    if output_dir is not None:
        write_report(evaluation, output_dir, f"Anomaly maps of {', '.join(f'{m} ({d})' for m, d in map_dirs.items())}")
    return evaluation


def _labelled_cases(label_dir: PathLike) -> dict[str, BratsCase]:
    folder = dataset_folder(label_dir)
    try:
        found = [case for case in find_cases(folder) if case.label]
    except ValueError:  # no layout of BRATS
        found = []
    if not found:
        files = [file for file in sorted(folder.iterdir()) if file.name.lower().endswith(SUFFIXES)]
        found = [BratsCase(_stem(file), patient_of(_stem(file)), {}, file, None, {}) for file in files]
    if not found:
        raise ValueError(f"There is no label in {folder}.")
    return {case.case_id: case for case in found}


def _files_of(folder: PathLike, names: Collection[str]) -> tuple[dict[str, Path], list[Path]]:
    """Finds the file of each case, and files of no case."""
    files: dict[str, Path] = {}
    strangers = []
    for file in sorted(dataset_folder(folder).iterdir()):
        if not file.name.lower().endswith(SUFFIXES):
            continue
        stem = _stem(file)
        owners = [name for name in names if stem == name or (stem.startswith(name) and stem[len(name)] in "_-.")]
        if not owners:
            strangers.append(file)
        elif (owner := max(owners, key=len)) in files:
            raise ValueError(f"Two files belong to {owner}: {files[owner]} and {file}.")
        else:
            files[owner] = file
    return files, strangers


def _stem(file: Path) -> str:
    return file.name[: -len(max((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), key=len))]


def _loading(map_keys: list[str], modality: str | None) -> Compose:
    """Loads and checks the files of a case, and makes brain mask and baseline where there is an image."""
    keys = ["label", "brain", *(["image"] if modality else [])]
    options = {"reader": SimpleITKReader(), "ensure_channel_first": True, "allow_missing_keys": True}
    transforms = [
        LoadImaged(keys, **options),
        LoadImaged(map_keys, dtype=None, **options),  # scores keep their precision
        CheckCased([*keys, *map_keys]),
    ]
    if modality:
        transforms += [
            BrainMaskd("image"),
            CopyItemsd("image", names="baseline"),
            HistogramNormalized("baseline", num_bins=1000, min=0, max=1, mask_key="brain"),
        ]
    return Compose(transforms)
