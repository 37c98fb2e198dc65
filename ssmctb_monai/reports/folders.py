"""Evaluation of anomaly maps in files, from any tool."""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.transforms import Compose, CopyItemsd, HistogramNormalized, LoadImaged
from monai.utils import ensure_tuple

from ssmctb_monai.data.brats import BratsCase, NoCasesError, canonical_modality, find_cases
from ssmctb_monai.data.datasets import ValidCases
from ssmctb_monai.data.patients import patient_of
from ssmctb_monai.data.readers import SimpleITKReader
from ssmctb_monai.files import printable, unfinished_folder
from ssmctb_monai.metrics.evaluation import AnomalyEvaluation
from ssmctb_monai.metrics.settings import EvaluationSettings
from ssmctb_monai.metrics.threshold import LabelFreeThreshold
from ssmctb_monai.reports.evaluation_run import VIEWER, EvaluationRun
from ssmctb_monai.reports.report import write_report
from ssmctb_monai.transforms import BrainMaskd, CheckCased, SelectChannelsd
from ssmctb_monai.visualize.results import files_by_case, map_folder, several, volume_files


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
    self_contained: bool = False,
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
        viewer: whether to write the cases beside the report, for its page to scroll through them: 5 to 7 MB for one of
            240x240x155.
        self_contained: whether the page holds these cases itself, as one file to pass on.

    Returns:
        The evaluation; what could not be evaluated is in ``failed``.

    Raises:
        NotADirectoryError: when a folder does not exist.
        ValueError: when there is no method, no label or no case to report, a threshold is that of no method, or a
            method has the name of the baseline.

    Example:
        >>> evaluation = evaluate_folders({"ours": "maps/ours", "theirs": "maps/theirs"}, "BraTS2021")  # doctest: +SKIP
        >>> evaluation.differences("ours", "theirs")["pixel_average_precision"].interval  # doctest: +SKIP
    """
    if not map_dirs:
        raise ValueError('There is no method to evaluate: give folders of maps by its name, as {"ours": "maps"}.')
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
        if f"baseline_{modality}" in maps:
            raise ValueError(f"One method is named baseline_{modality}, as the baseline is: give it another name.")
        maps[f"baseline_{modality}"] = "baseline"
        for item in items.values():
            item["problems"] += [] if "image" in item else [f"it has no {modality} image, as others have"]
    if unknown := set(thresholds or {}) - set(maps):
        raise ValueError(f"There are thresholds of {', '.join(sorted(unknown))}, but maps of {', '.join(maps)}.")

    evaluation = AnomalyEvaluation(thresholds, settings)
    for key, folder in folders.items():
        path = _folder(folder, key)
        volumes = volume_files(path if key == "brain" else map_folder(path))
        files, strangers = files_by_case(volumes, known.keys() | items.keys())
        for file in strangers:
            evaluation.fail(str(file), f"it belongs to no case of {label_dir}")
        for name, item in items.items():
            found = files.get(name, [])
            if len(found) == 1:
                item[key] = found[0]
            elif found:
                item["problems"].append(several(found))
            else:
                item["problems"].append(f"{folder} has no file of it, such as {name}.nii.gz")

    prepared = ValidCases(list(items.values()), _prepare)
    unfinished = None if output_dir is None else unfinished_folder(Path(output_dir))
    run = EvaluationRun(evaluation, prepared, unfinished / VIEWER if viewer and unfinished else None)
    try:
        for item in prepared:
            paths = items[item["case_id"]]
            run.add(
                item["case_id"],
                files=[paths[key] for key in ("label", *folders) if key in paths],
                anomaly_maps={method: item[key] for method, key in maps.items()},
                label=item["label"],
                brain=item.get("brain"),
                patient_id=item["patient_id"],
                image=item.get("image"),
            )
        run.take_problems()
        if output_dir is not None and unfinished:
            described = f"Anomaly maps of {', '.join(f'{method} ({folder})' for method, folder in map_dirs.items())}"
            write_report(evaluation, output_dir, printable(described), run.scans, [unfinished], self_contained)
    finally:
        if unfinished:
            shutil.rmtree(unfinished, ignore_errors=True)
    return evaluation


def _folder(folder: PathLike, kind: str) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise NotADirectoryError(f"The folder {path} ({kind}) does not exist or is not a folder.")
    return path


def _labelled_cases(label_dir: PathLike) -> tuple[dict[str, BratsCase], dict[str, list[str]]]:
    """Finds the cases that have a label, and the problems of those that cannot be used."""
    folder = _folder(label_dir, "labels")
    try:
        cases = [case for case in find_cases(folder) if case.label or case.problems]
        return {case.case_id: case for case in cases}, {case.case_id: [*case.problems] for case in cases}
    except NoCasesError:
        by_stem: dict[str, list[Path]] = {}
        for stem, file in volume_files(folder):
            by_stem.setdefault(stem, []).append(file)
    if not by_stem:
        raise ValueError(f"There is no label in {folder}.")
    known = {stem: BratsCase(stem, patient_of(stem), {}, files[0], None, {}) for stem, files in by_stem.items()}
    problems = {stem: [several(files)] for stem, files in by_stem.items() if len(files) > 1}
    return known, problems | {
        stem: ["its name is not UTF-8: rename its files"] for stem in by_stem if printable(stem) != stem
    }


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
