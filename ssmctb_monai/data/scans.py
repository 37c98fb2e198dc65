"""Finding the scans that a trained model is to look at: files, folders and DICOM series, with or without labels."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from monai.config import PathLike

from ssmctb_monai.data.brats import (
    MODALITIES,
    VOLUME_SUFFIXES,
    BratsCase,
    CaseFile,
    NoCasesError,
    canonical_modalities,
    group_files,
    image_entry,
    is_label,
    name_problems,
    named_path,
    parse_channels,
    parse_file,
    parse_name,
    volume_stem,
    walk_files,
)
from ssmctb_monai.data.nifti import nifti_header
from ssmctb_monai.data.patients import patient_of
from ssmctb_monai.data.series import find_series, is_dicom, is_series_file
from ssmctb_monai.files import printable

__all__ = ["find_scans"]

logger = logging.getLogger(__name__)

# What names speak of that are not made as those of BRATS are: "T2 FLAIR" is a FLAIR, "t2_fse" no t2f, "patient1" no T1
_WORDS = re.compile(
    r"""
    (?P<flair> flair | (?<![a-z])t2f(?![a-z0-9]) | tirm | dark[-_ ]?fluid )
    | (?<![a-z]) (?:[23]d|ax|sag|cor|tra|pre|post)* (?:
        (?P<t1ce> t1[-_ ]?(?:ce?|gd|post)(?![a-z0-9]) )
        | (?P<t1> t1(?!\d) | mp2?rage )
        | (?P<t2> t2(?!\d|[-_ ]?(?:flair|\*|star|ffe|gre)) )
    )
    | (?<![a-z0-9]) (?:
        (?P<label>
            seg | segmentations? | labels?(?:t[rs])? | masks? | brainmasks? | truth | gt | maps? | reconstructions
        )
        | (?P<other>
            e?adc | asl | bold | ct | diff(?:usion)? | dti | dwi | locali[sz]er | mra | pd | perf(?:usion)? | pet
            | phase | scout | survey | swan | swi | t2[-_ ]?(?:\*|star|ffe|gre) | tof | trace
        )
    ) (?![a-z0-9])
    """,
    re.IGNORECASE | re.VERBOSE,
)
_CONTRAST = re.compile(r"contrast|gado|post[-_ ]?t1|\+ ?c|(?<![a-z])(?:ce|gad|gd|km|pc|post)(?![a-z])", re.IGNORECASE)


class _Loose(NamedTuple):
    """A volume or a DICOM series whose name does not end in a modality.

    Args:
        path: the file, or the folder of the series.
        stem: its name without suffix.
        case_id: name of the scan.
        said: what its names or the series' description speak of; empty where they say nothing.
    """

    path: Path
    stem: str
    case_id: str
    said: set[str]


class _Described(NamedTuple):
    """A DICOM series and what it says of itself."""

    file: Path
    description: str
    said: set[str]


def find_scans(
    path: PathLike,
    modalities: Sequence[str] | str,
    exclude: PathLike | None = None,
    optional: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Finds the scans in a file or a folder, with or without labels.

    What names say counts: a scan whose name or DICOM series description speaks of another modality is never taken for
    the one asked for, and one that says nothing is, with a warning.

    - A file is one scan. A brain mask beside it, such as ``CASE_brainmask.nii.gz``, is used.
    - A folder with DICOM files directly in it is one scan, named after the folder. Of several series in it, those are
      taken whose descriptions alone speak of the modalities; a file stands for its series then.
    - Below any other folder, found are cases in the layouts of :func:`~ssmctb_monai.data.brats.find_cases` (the
      Decathlon's ``imagesTs`` too), other volumes, and folders with DICOM files directly in them. These folders are
      named as files are, ``P1_flair`` or ``P1/flair``. Passed over is what is hidden or a label, and what is named
      after a case or lies in the folder of a case without being one of its images. Maps, masks and
      reconstructions of earlier runs count as labels.

    Args:
        path: file or folder.
        modalities: modalities that the model wants, in the order of its channels.
        exclude: folder that is not entered, such as the one that results are written to.
        optional: those of the modalities that a scan may lack, the first one never.

    Returns:
        One dictionary a scan, in the order of their names: ``case_id``, ``patient_id``, ``image`` (a path for each
        modality, in their order, a folder for a DICOM series; for a 4D file that one path), ``channels`` (the index of
        each modality in a 4D file, or, where some are lacking, in ``image``; -1 for those), and ``brain`` where
        there is a brain mask. All paths are absolute. Scans that
        cannot be used have ``problems`` besides, the list of what is wrong, for
        :class:`~ssmctb_monai.data.datasets.ValidCases` to report.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        NoCasesError: There is no scan in the folder.
        ValueError: The file is no volume, its name says something else, or several modalities are asked for; a modality
            is not known.

    Example:
        >>> find_scans("clinic/P1_flair.nii.gz", "flair")  # doctest: +SKIP
        [{'case_id': 'P1', 'patient_id': 'P1', 'image': ['/data/clinic/P1_flair.nii.gz']}]
    """
    names = canonical_modalities(modalities)
    root = Path(path).expanduser().absolute()
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist: name a scan, or a folder of scans.")
    if not root.is_dir():
        items = [_file_item(root, names, optional)]
    elif _holds_dicom(root.glob("[!.]*")):
        items = [_study_item(root, root.parent, _described(root), names, optional)]
        results = exclude and Path(exclude).expanduser().absolute()
        if others := [folder for folder in sorted(root.glob("[!.]*")) if folder.is_dir() and folder != results]:
            logger.warning(
                "%s holds DICOM files itself and is one study; %d folders in it are not looked at: %s. Where they hold "
                "others, move these files into a folder of their own.",
                printable(str(root)),
                len(others),
                _first_five(others, root),
            )
    else:
        items = _folder_items(root, names, optional, Path(exclude).expanduser() if exclude else None)
    unusable = sum("problems" in item for item in items)
    logger.info("Found %d scans in %s, of which %d cannot be used.", len(items), printable(str(root)), unusable)
    return items


def _file_item(path: Path, modalities: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    if volume_stem(path) is None and is_dicom(path):
        raise ValueError(f"{path} is a DICOM file: name the folder of its series, {path.parent}.")
    stem = volume_stem(path)
    if stem is None:
        raise ValueError(f"{path} is no volume: expected is {', '.join(VOLUME_SUFFIXES)}, or the folder of a series.")
    if channels := [file for file in _decathlon_beside(path.parent) if file.path == path]:
        return _case_item(group_files(channels)[0], modalities, optional)
    needed = _needed(modalities, optional)
    if len(needed) > 1:
        raise ValueError(
            f"{path} is one file, but {', '.join(needed)} are asked for: name its folder, with files named "
            f"{_file_names(needed)}."
        )
    named = next(parse_file(path), None)
    said = {named.kind} if named else _said([stem])
    if said - set(needed):
        raise ValueError(f"The name of {path} says {_listing(said)}, but {needed[0]} is asked for.")
    file = named or CaseFile(stem, needed[0], path)
    beside = (other for name in sorted(path.parent.glob("[!.]*")) if volume_stem(name) for other in parse_file(name))
    masks = [other for other in beside if (other.case_id, other.kind) == (file.case_id, "brain")]
    return _case_item(group_files([file, *masks])[0], modalities, optional)


def _folder_items(
    root: Path, modalities: Sequence[str], optional: Sequence[str], exclude: Path | None
) -> list[dict[str, Any]]:
    files = [file for file in _decathlon_beside(root) if file.path.parent == root]
    volumes: list[_Loose] = []
    studies: list[tuple[Path, dict[str, Any]]] = []
    refused: list[tuple[Path, dict[str, Any]]] = []
    unread: list[OSError] = []
    for folder, group in groupby(walk_files(root, exclude, unread.append), key=lambda path: path.parent):
        if _holds_results(folder):
            continue
        paths = list(group)
        if _holds_dicom(paths):
            series = _described(folder)
            if named := parse_name(folder, folder.name):
                files.append(named._replace(path=_chosen(series, named.kind) or folder))
            elif len(series) > 1:
                studies.append((folder, _study_item(folder, root, series, modalities, optional)))
            else:
                volumes.append(_loose(folder, folder.name, root, series))
        if folder.name in ("imagesTr", "imagesTs"):
            try:
                files += (channels := list(parse_channels(folder, modalities)))
            except ValueError as error:
                refused.append((folder, {**_names(folder, root), "image": [], "problems": [str(error)]}))
                continue
            paths = [path for path in paths if path not in {file.path for file in channels}]
        for path in paths:
            try:
                named_here = list(parse_file(path, test_images=True))
            except ValueError as error:  # a dataset.json
                refused.append((path, {**_names(path.parent, root), "image": [], "problems": [str(error)]}))
                continue
            files += named_here
            if not named_here and (stem := volume_stem(named_path(path))):
                volumes.append(_loose(path, stem, root))

    cases = [case for case in group_files(file for file in files if file.kind != "label") if case.images]
    loose = _without_belongings(volumes, files, cases, root)
    masks = {file.path.parent / file.case_id: file.path for file in files if file.kind == "brain"}
    found = [(next(iter(case.images.values())), _case_item(case, modalities, optional)) for case in cases]
    found += [
        (scan.path, _loose_item(scan, modalities, optional, masks.get(scan.path.parent / scan.stem))) for scan in loose
    ]
    found += [(Path(error.filename), _unread_item(error, root)) for error in unread]
    found += studies + refused
    if not found:
        raise NoCasesError(
            f"No scan found below {root}. Looked for are volumes ({', '.join(VOLUME_SUFFIXES)}) and folders with DICOM "
            "files; labels, masks, maps and hidden files are no scans."
        )
    found.sort(key=lambda pair: pair[1]["case_id"])
    found = [_only_one(list(group)) for _, group in groupby(found, key=lambda pair: pair[1]["case_id"])]
    silent = {scan.case_id for scan in loose if not scan.said}
    if taken := [path for path, item in found if item["case_id"] in silent and item["image"]]:
        logger.warning(
            "%d taken as %s, since their names say nothing else: %s.",
            len(taken),
            modalities[0].upper(),
            _first_five(taken, root),
        )
    return [item for _, item in found]


def _only_one(found: Sequence[tuple[Path, dict[str, Any]]]) -> tuple[Path, dict[str, Any]]:
    """Takes the only scan of its name; several cannot be used, since their results would have one name too."""
    if len(found) > 1:
        problem = f"several scans have this name; rename all but one of {', '.join(str(path) for path, _ in found)}"
        return found[0][0], {**found[0][1], "image": [], "problems": [problem]}
    return found[0]


def _unread_item(error: OSError, root: Path) -> dict[str, Any]:
    problems = [f"the folder {error.filename} cannot be read: {error.strerror}"]
    return {**_names(Path(error.filename), root), "image": [], "problems": problems}


def _names(folder: Path, root: Path) -> dict[str, str]:
    name = printable("_".join(folder.relative_to(root).parts) or _folder_name(root))
    return {"case_id": name, "patient_id": patient_of(name)}


def _holds_results(folder: Path) -> bool:
    """Tells whether an earlier run wrote the files of a folder, whatever they are named after."""
    is_named_so = folder.name in ("maps", "masks", "reconstructions", "dicom")
    return is_named_so and any((folder.parent / name).is_file() for name in ("summary.csv", "report.json"))


def _loose(path: Path, stem: str, root: Path, series: Sequence[_Described] = ()) -> _Loose:
    folders = named_path(path).parent.relative_to(root).parts

    def texts() -> Iterator[str]:
        yield stem
        yield from (one.description for one in series)
        yield from reversed(folders)

    said = _said(texts())
    return _Loose(path, stem, "_".join([*folders, stem]), said | {"label"} if is_label(stem) and not said else said)


def _said(texts: Iterable[str]) -> set[str]:
    """Returns what the first of the texts that says anything speaks of: modalities, ``label``, other kinds of scan."""
    for text in texts:
        said = {match[0].lower() if match["other"] else str(match.lastgroup) for match in _WORDS.finditer(text)}
        if "t1" in said and _CONTRAST.search(text):
            said = said - {"t1"} | {"t1ce"}
        if "flair" in said:
            said -= {"t2"}  # a FLAIR is T2-weighted, and its description may say so
        if said:
            return said
    return set()


def _without_belongings(
    volumes: Sequence[_Loose], files: Sequence[CaseFile], cases: Sequence[BratsCase], root: Path
) -> list[_Loose]:
    """Leaves out labels, and what is named after a case or lies in the folder of a case; says so."""
    known = {case.case_id for case in cases}
    names = {(named_path(file.path).parent, file.case_id) for file in files if file.case_id in known}
    folders = {folder for folder, case_id in names if _folder_name(folder) == case_id}
    used = {file.path for file in files}
    kept: list[_Loose] = []
    left_out: list[_Loose] = []
    for scan in volumes:
        starts = (scan.stem[: match.start()] for match in re.finditer(r"[-_.]", scan.stem))
        folder = named_path(scan.path).parent
        is_owned = folder in folders or any((folder, start) in names for start in starts)
        if scan.path not in used:
            (left_out if "label" in scan.said or is_owned else kept).append(scan)
    if left_out:
        logger.info(
            "Passed over labels and what else belongs to cases: %s.",
            _first_five([scan.path for scan in left_out], root),
        )
    return kept


def _needed(modalities: Sequence[str], optional: Sequence[str]) -> list[str]:
    """Returns the modalities that a scan must have."""
    return [name for name in modalities if name not in optional]


def _case_item(case: BratsCase, modalities: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    where = f"beside {next(iter(case.images.values()))}"
    image, wrong = image_entry(case.images, case.channels, modalities, optional, where)
    item = {"case_id": printable(case.case_id), "patient_id": printable(case.patient_id), **image}
    problems = [*(case.problems or name_problems(case.case_id)), *wrong]
    if case.brain:
        item["brain"] = str(case.brain)
    folders = [Path(file) for file in item["image"] if Path(file).is_dir()]
    problems += [problem for folder in folders for problem in _series_problems(folder)]
    return {**item, "problems": problems} if problems else item


def _loose_item(
    scan: _Loose, modalities: Sequence[str], optional: Sequence[str], brain: Path | None = None
) -> dict[str, Any]:
    needed = _needed(modalities, optional)
    others = scan.said - set(needed)
    patient_id = patient_of(scan.case_id)
    if len(needed) == 1 and not others:
        case = BratsCase(scan.case_id, patient_id, {needed[0]: scan.path}, None, brain, {})
        return _case_item(case, modalities, optional)
    said = _listing(others) or "nothing of which it is"
    problem = (
        f"no {', '.join(needed)} image: names or series description of {scan.path} say {said}; "
        f"name files, or the folders of series, {_file_names(needed)}"
    )
    return {"case_id": printable(scan.case_id), "patient_id": patient_id, "image": [], "problems": [problem]}


def _decathlon_beside(folder: Path) -> list[CaseFile]:
    """Returns what the ``dataset.json`` beside a folder of the Decathlon's images says, where it is such a folder."""
    dataset = folder.parent / "dataset.json"
    is_images = folder.name in ("imagesTr", "imagesTs") and dataset.is_file()
    return list(parse_file(dataset, test_images=True)) if is_images else []


def _holds_dicom(paths: Iterable[Path]) -> bool:
    """Tells whether there is a DICOM file that is neither an index of others nor a result of this package."""
    candidates = (path for path in paths if path.name.upper() != "DICOMDIR" and volume_stem(path) is None)
    return any("label" not in _said([path.stem]) and is_dicom(path) for path in candidates)


def _described(folder: Path) -> list[_Described]:
    """Returns the series in a folder, none where a file is damaged: `_series_problems` says so."""
    try:
        series = find_series(folder).values()
    except ValueError:
        return []
    words = ("SeriesDescription", "ProtocolName")
    texts = [next((str(header.get(word)) for word in words if header.get(word)), "") for header, _ in series]
    return [_Described(Path(files[0]), text, _said([text])) for text, (_, files) in zip(texts, series, strict=True)]


def _chosen(series: Sequence[_Described], modality: str) -> Path | None:
    """Returns the one of several series that says a modality."""
    matching = [one.file for one in series if one.said == {modality}]
    return matching[0] if len(series) > 1 and len(matching) == 1 else None


def _study_item(
    folder: Path, root: Path, series: Sequence[_Described], modalities: Sequence[str], optional: Sequence[str]
) -> dict[str, Any]:
    """Returns the scan in a folder whose name does not end in a modality."""
    item = _names(folder, root)
    if len(series) < 2:
        return _loose_item(_loose(folder, folder.name, root, series), modalities, optional)
    said = {name for one in series for name in one.said if len(one.said) == 1}
    images = {name: _chosen(series, name) for name in modalities if name in said}
    image, wrong = image_entry(images, {}, modalities, optional)
    if not wrong and all(images.values()):
        logger.info(
            "Of %d series in %s taken: %s.", len(series), *map(printable, (str(folder), ", ".join(image["image"])))
        )
        return {**item, **image}
    return {**item, "image": [], "problems": [_several_series(folder, series)]}


def said_by_header(path: Path) -> set[str]:
    """Returns the modalities that header or sidecar of a scan speak of: a DICOM series' description, NIfTI's texts.

    Args:
        path: file, or folder with a DICOM series.
    """
    texts: list[str] = []
    if path.is_dir() or is_series_file(path):
        texts = [one.description for one in _described(path if path.is_dir() else path.parent)]
        texts = texts if len(texts) == 1 else []
    elif path.is_file() and volume_stem(path):
        header = nifti_header(path)
        fields = () if header is None else ("descrip", "intent_name", "aux_file")
        texts = [header[field].item().decode(errors="replace") for field in fields]
        sidecar = path.with_name(f"{volume_stem(path)}.json")
        if sidecar.is_file():
            with suppress(ValueError, AttributeError):
                content = json.loads(sidecar.read_text(encoding="utf-8"))
                texts += [str(content.get(key) or "") for key in ("SeriesDescription", "ProtocolName")]
    return _said(texts) & set(MODALITIES)


def _several_series(folder: Path, series: Sequence[_Described]) -> str:
    names = ", ".join(one.description or one.file.name for one in series)
    return f"{folder} holds {len(series)} DICOM series ({names}): put each series into a folder of its own"


def _series_problems(folder: Path) -> list[str]:
    try:
        count = len(find_series(folder))
    except ValueError as error:
        return [str(error)]
    if count > 1:
        return [_several_series(folder, _described(folder))]
    return [] if count else [f"{folder} holds no DICOM series that can be read"]


def _folder_name(folder: Path) -> str:
    return Path(os.path.abspath(folder)).name


def _file_names(modalities: Sequence[str]) -> str:
    return ", ".join(f"CASE_{name}" for name in modalities)


def _listing(said: Iterable[str]) -> str:
    return ", ".join("brain mask" if word == "brain" else word for word in sorted(said))


def _first_five(paths: Sequence[Path], root: Path) -> str:
    rest = [f"and {len(paths) - 5} more"] if len(paths) > 5 else []
    return ", ".join([*(printable(path.relative_to(root).as_posix()) for path in paths[:5]), *rest])
