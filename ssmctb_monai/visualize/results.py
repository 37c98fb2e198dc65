"""Finding the anomaly maps that inference or an evaluation saved, with the scans that they belong to."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.utils import ensure_tuple

from ssmctb_monai.data.brats import (
    VOLUME_SUFFIXES,
    BratsCase,
    CaseFile,
    NoCasesError,
    find_cases,
    lacking_channels,
    parse_file,
    volume_stem,
)
from ssmctb_monai.data.scans import find_scans
from ssmctb_monai.files import printable, read_csv

logger = logging.getLogger(__name__)

SUFFIXES = (*VOLUME_SUFFIXES, ".hdr")
_SUMMARY_COLUMNS = {"case_id", "threshold", "image", "problem"}


def find_maps(results_dir: PathLike, dataset_dir: PathLike | None = None) -> list[dict[str, Any]]:
    """Finds saved anomaly maps with their scans.

    A case that lacks its map or its images is named in the log, and the others are returned.

    Args:
        results_dir: folder that inference wrote (with ``summary.csv``), that an evaluation with ``save_maps`` wrote, or
            any folder of maps, directly in it or in ``maps``, named after the cases as for
            :func:`~ssmctb_monai.reports.evaluate_folders`: ``CASE.nii.gz``, ``CASE_map.mha`` …
        dataset_dir: folder of the scans: a data set in any layout of BRATS, see
            :func:`~ssmctb_monai.data.brats.find_cases`, or what inference ran over. Results of inference do without it
            as long as the scans are where they were.

    Returns:
        One item a case, such as `load_heatmap` takes, in the order of their names: ``case_id``; ``image``, a list of
        files (for a 4D file that one, and ``channels``); ``modalities``: all that the data set has of the case, or,
        without ``dataset_dir``, those of the inference; ``anomaly_map``; and where there are such, ``label`` (of a data
        set), ``brain``, ``threshold`` (of a report, that of its first method), ``reconstruction`` and
        ``reconstruction_modalities``. All paths are absolute.

    Raises:
        NotADirectoryError: when a folder does not exist.
        NoCasesError: when there is no map with its scan; what was looked for is named.
        ValueError: when ``dataset_dir`` is needed, a file of the results cannot be understood, or two cases of the data
            set have the same name.

    Example:
        >>> items = find_maps("bundles/brats3d/eval/inference", "BraTS2021")  # doctest: +SKIP
        >>> items[0]["modalities"], items[0]["threshold"]  # doctest: +SKIP
        (['flair', 't1', 't1ce', 't2'], 0.31)
    """
    root = Path(results_dir).expanduser().absolute()
    if not root.is_dir():
        raise NotADirectoryError(f"The folder of results {root} does not exist or is not a folder.")
    rows = _read_summary(root / "summary.csv")
    modalities = ensure_tuple(_read_json(root / "settings.json").get("modalities", ())) if rows else ()
    used = {
        name: row["modalities"].split(";") if row.get("modalities") else modalities
        for name, row in (rows or {}).items()
    }
    maps = {name: _result(root, row, used[name]) for name, row in (rows or {}).items()}
    if dataset_dir is not None:
        scans = _dataset_scans(Path(dataset_dir).expanduser().absolute(), modalities, maps, exclude=root)
        maps = maps if rows is not None else _saved_maps(root, scans)
    elif rows is not None:
        beside = cache(_files_beside)
        scans = {name: _summary_scan(row, used[name], beside) for name, row in rows.items() if not row["problem"]}
    else:
        raise ValueError(f"No summary.csv in {root} says where the scans are: give their folder as `dataset_dir`.")

    items, problems = [], []
    for name in sorted(maps):
        item = {"case_id": name, **scans.get(name, {"problem": f"{dataset_dir} has no images of it"}), **maps[name]}
        if "problem" in item:
            problems.append(f"{name}: {item['problem']}")
            logger.warning("Left out is %s", printable(problems[-1]))
        else:
            items.append(item)
    if not items:
        reasons = "; ".join(problems[:3]) or "there is none in it, nor in its folder maps"
        raise NoCasesError(f"Looked for maps CASE.nii.gz in {root} and their scans, {len(problems)} cases: {reasons}.")
    logger.info("Found %d maps with their scans in %s.", len(items), printable(str(root)))
    return items


def _read_summary(path: Path) -> dict[str, dict[str, str]] | None:
    """Reads the rows of what `ScanResults` wrote, by case; ``None`` where there is no such table."""
    if not path.is_file():
        return None
    columns, rows = read_csv(path)
    return {row["case_id"]: row for row in rows} if set(columns) >= _SUMMARY_COLUMNS else None


def _read_json(path: Path) -> dict[str, Any]:
    """Reads an object from a file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON, make it anew or remove it: {error}") from error
    return content if isinstance(content, dict) else {}


def _result(root: Path, row: Mapping[str, str], modalities: Sequence[str]) -> dict[str, Any]:
    """Returns what inference wrote of a scan, or its problem."""
    if row["problem"]:
        return {"problem": row["problem"]}
    name = f"{row['case_id']}.nii.gz"
    anomaly_map, reconstruction = root / "maps" / name, root / "reconstructions" / name
    if not anomaly_map.is_file():
        return {"problem": f"{anomaly_map} does not exist"}
    result: dict[str, Any] = {"anomaly_map": str(anomaly_map)}
    if row["threshold"]:
        result["threshold"] = _number(row["threshold"], f"{root / 'summary.csv'}, threshold of {row['case_id']}")
    if reconstruction.is_file():
        result["reconstruction"] = str(reconstruction)
        result |= {"reconstruction_modalities": list(modalities)} if modalities else {}
    return result


def _number(text: str, place: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{place}: {text!r} is no number, put it right or run inference anew.") from error


def map_folder(root: Path) -> Path:
    """Returns where a folder has its maps: in its folder ``maps``, as after inference, or in itself."""
    return root / "maps" if (root / "maps").is_dir() else root


def volume_files(folder: Path) -> list[tuple[str, Path]]:
    """Lists the volumes in a folder.

    Returns:
        Names without suffix, and files, in the order of their names.
    """
    return [(stem, file) for file in sorted(folder.glob("[!.]*")) if (stem := volume_stem(file, SUFFIXES))]


def files_by_case(
    files: Sequence[tuple[str, Path]], names: Collection[str]
) -> tuple[dict[str, list[Path]], list[Path]]:
    """Finds the files of each case: of its name, alone or followed by ``_``, ``-`` or ``.`` and anything.

    Args:
        files: names without suffix, and files.
        names: names of the cases; of several that fit the longest counts.

    Returns:
        Files by the name of the case, and those of no case.
    """
    by_case: dict[str, list[Path]] = {}
    strangers = []
    for stem, file in files:
        owners = [name for name in names if stem == name or (stem.startswith(name) and stem[len(name)] in "_-.")]
        if owners:
            by_case.setdefault(max(owners, key=len), []).append(file)
        else:
            strangers.append(file)
    return by_case, strangers


def several(files: Sequence[Path]) -> str:
    """Says that several files belong to a case, which needs one."""
    return f"several files belong to it: {', '.join(map(str, files))}"


def _saved_maps(root: Path, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Finds the maps of the cases of these names and of others, with the threshold of the report beside."""
    report = _read_json(root / "report.json")
    methods = report["methods"].values() if "schema_version" in report else ()  # other programs write reports too
    threshold = next((method["threshold"] for method in methods), None)
    common = {"threshold": threshold["value"]} if threshold else {}
    found = volume_files(map_folder(root))
    by_case, strangers = files_by_case(found, names)
    for stem, file in found:
        if file in strangers:
            by_case.setdefault(stem, []).append(file)
    return {
        name: {"anomaly_map": str(files[0]), **common, **({"problem": several(files)} if len(files) > 1 else {})}
        for name, files in by_case.items()
    }


def _dataset_scans(
    folder: Path, modalities: Sequence[str], wanted: Collection[str], exclude: Path
) -> dict[str, dict[str, Any]]:
    """Finds the scans of a data set with all their modalities, and others that inference knows too."""
    try:
        cases = find_cases(folder)
    except NoCasesError:
        if not modalities:
            raise
        cases = []
    scans = {case.case_id: _scan_of(case) for case in cases if case.images}
    lacking = {"problem": f"{folder} has no images of it"}
    if modalities and (others := set(wanted) - scans.keys()):
        for scan in find_scans(folder, modalities, exclude, optional=modalities[1:]):
            if (name := scan["case_id"]) in others:
                missing = lacking_channels(scan)
                scans[name] = {key: scan[key] for key in ("image", "channels", "brain") if key in scan}
                scans[name] |= {"problem": "; ".join(scan["problems"])} if "problems" in scan else {}
                scans[name]["modalities"] = [kind for place, kind in enumerate(modalities) if place not in missing]
                if missing:
                    scans[name]["channels"] = [channel for channel in scan["channels"] if channel >= 0]
    return {case.case_id: lacking for case in cases} | scans


def _scan_of(case: BratsCase) -> dict[str, Any]:
    """Returns a case of a data set with all its modalities."""
    modalities = [name for name in case.images if name in (case.channels or case.images)]
    scan: dict[str, Any] = {"modalities": modalities, "image": [str(case.images[name]) for name in modalities]}
    if case.channels:
        scan |= {"image": scan["image"][:1], "channels": [case.channels[name] for name in modalities]}
    return scan | {key: str(path) for key, path in {"label": case.label, "brain": case.brain}.items() if path}


def _summary_scan(
    row: Mapping[str, str], modalities: Sequence[str], beside: Callable[[Path], Sequence[CaseFile]]
) -> dict[str, Any]:
    """Returns the scan that a row of the summary was made from, where it is still there."""
    paths = [row["image"]] if len(modalities) == 1 else row["image"].split(";")  # a path may hold a semicolon
    images = [Path(path) for path in paths]
    if missing := [str(image) for image in images if not image.exists()]:
        return {"problem": f"{', '.join(missing)} does not exist: give the folder where scans are now as `dataset_dir`"}
    files = [file for folder in dict.fromkeys(image.parent for image in images) for file in beside(folder)]
    channels = {file.kind: file.channel for file in files if file.path == images[0] and file.channel is not None}
    names = {row["case_id"], volume_stem(images[0]) or images[0].name}
    brain = [str(file.path) for file in files if file.kind == "brain" and file.case_id in names]
    return {
        "image": paths,
        **({"modalities": list(modalities)} if modalities else {}),
        **({"channels": [channels[name] for name in modalities]} if channels else {}),
        **({"brain": brain[0]} if brain else {}),
    }


def _files_beside(folder: Path) -> list[CaseFile]:
    """Lists what the names of the volumes in a folder say, and the Decathlon's ``dataset.json`` beside it."""
    paths = [path for path in sorted(folder.glob("[!.]*")) if volume_stem(path)]
    if folder.name in ("imagesTr", "imagesTs") and (dataset := folder.parent / "dataset.json").is_file():
        paths.append(dataset)
    return [file for path in paths for file in parse_file(path, test_images=True)]
