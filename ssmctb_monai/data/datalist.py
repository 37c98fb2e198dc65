"""Patient-level splits: made once, kept on disk as a datalist that people can read and edit, and loaded by bundles."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any

from monai.config import PathLike

from ssmctb_monai.data.brats import BratsCase, canonical_modalities, dataset_folder, find_cases, image_entry
from ssmctb_monai.data.checks import check_cases, report_invalid
from ssmctb_monai.data.patients import patient_of, read_patients, warn_of_shared_stems
from ssmctb_monai.files import content_keys, is_file_name, printable, read_json, write_json

__all__ = ["load_datalist", "patient_folds", "prepare_datalist", "split_patients", "write_datalist"]

logger = logging.getLogger(__name__)


def split_patients(
    cases: Sequence[BratsCase],
    *,
    training: int | float | None = None,
    validation: int | float = 0.2,
    test: int | float = 0.2,
    seed: int = 0,
) -> dict[str, list[BratsCase]]:
    """Splits cases by patient: all scans of one patient fall into the same part.

    Patients are ranked by a hash of seed and name. The same patients therefore give the same split on every machine,
    in whichever order they are listed, and a different size of the training or validation part leaves the test part
    as it is.

    Args:
        cases: the cases to split.
        training: number of patients (int), their share (float from 0 to 1), or ``None`` for all that the other parts
            leave.
        validation: number or share of patients.
        test: number or share of patients.
        seed: another seed gives another split.

    Returns:
        The cases of ``training``, ``validation`` and ``test``, each in the order of their names. Where counts or shares
        do not take all patients, the others are in no part.

    Raises:
        ValueError: A size is not a count or share, more patients are asked for than there are, or the training part
            would be empty.

    Example:
        >>> parts = split_patients(cases, training=125, validation=0, test=180)  # doctest: +SKIP
        >>> {name: len(part) for name, part in parts.items()}  # doctest: +SKIP
        {'training': 125, 'validation': 0, 'test': 180}
    """
    patients = _ranked_patients(cases, seed)
    total = len(patients)
    asked = f"training={training}, validation={validation} and test={test} of {total} patients"
    sizes = [test, validation] if training is None else [test, validation, training]
    # Rounding the running total keeps counts exact and lets shares that sum to 1 take every patient
    ends = [math.floor(end + 0.5) for end in accumulate(_amount(size, total) for size in sizes)]
    if ends[-1] > total:
        raise ValueError(f"There are not enough patients for {asked}.")
    ends.append(total)
    parts = {
        "training": patients[ends[1] : ends[2]],
        "validation": patients[ends[0] : ends[1]],
        "test": patients[: ends[0]],
    }
    if not parts["training"]:
        raise ValueError(f"The training part would be empty with {asked}.")
    return {name: _cases_of(part, cases) for name, part in parts.items()}


def patient_folds(cases: Sequence[BratsCase], count: int = 3, seed: int = 0) -> list[list[BratsCase]]:
    """Deals the patients out to the folds of a cross-validation: all scans of one patient fall into the same fold.

    Patients are ranked as in :func:`split_patients`, and each fold takes every ``count``-th of them.

    Args:
        cases: the cases.
        count: number of folds, at least 2.
        seed: another seed gives other folds.

    Returns:
        The cases of each fold, in the order of their names; the numbers of patients differ by at most one.

    Raises:
        ValueError: ``count`` is below 2, or there are fewer patients than folds.

    Example:
        >>> folds = patient_folds(find_cases("BraTS2020"), count=5)  # doctest: +SKIP
        >>> training = [case for fold in folds[1:] for case in fold]  # doctest: +SKIP
    """
    patients = _ranked_patients(cases, seed)
    if not 2 <= count <= len(patients):
        raise ValueError(f"The number of folds must be from 2 to the number of patients, {len(patients)}; got {count}.")
    return [_cases_of(patients[fold::count], cases) for fold in range(count)]


def datalist_path(folder: PathLike, dataset_dir: PathLike, modalities: Sequence[str] | str) -> Path:
    """Returns the file in a folder for the split of a data set.

    Args:
        folder: folder, such as that of the checkpoint that the split belongs to.
        dataset_dir: folder of the data set; its name is part of the file's.
        modalities: modalities that each case must have; the split depends on them.

    Example:
        >>> datalist_path("models", "data/BraTS2021", ["flair", "t1ce"]).name
        'datalist_BraTS2021_flair-t1ce.json'
    """
    return (
        Path(folder) / f"datalist_{Path(dataset_dir).resolve().name}_{'-'.join(canonical_modalities(modalities))}.json"
    )


def prepare_datalist(
    dataset_dir: PathLike,
    datalist_file: PathLike,
    modalities: Sequence[str] | str,
    *,
    training: int | float | None = None,
    validation: int | float = 0.2,
    test: int | float = 0.2,
    seed: int = 0,
    skip_invalid: bool = False,
    patients: PathLike | None = None,
) -> Path:
    """Returns the datalist to use, and makes it where there is none yet.

    It is ``datalist_file`` if that exists, else a copy of ``datalist.json`` in the data set's folder if that exists,
    whatever the other arguments say. Else cases are found, checked and split, and ``datalist_file`` is written. It
    lists all images of a case; those of ``modalities`` were checked.

    Args:
        dataset_dir: folder of the data set, see :func:`~ssmctb_monai.data.brats.find_cases`.
        datalist_file: where the datalist is or is to be written.
        modalities: modalities that each case must have.
        training: see :func:`split_patients`, and so for ``validation``, ``test`` and ``seed``.
        validation: number or share of patients.
        test: number or share of patients.
        seed: another seed gives another split.
        skip_invalid: leave cases with problems out and log them, instead of raising.
        patients: table of cases and their patients, see :func:`~ssmctb_monai.data.patients.read_patients`, where names
            do not say whom a scan is of, as :func:`~ssmctb_monai.data.patients.patient_of` reads them; cases that it
            lacks are read by their names.

    Returns:
        Path of the datalist.

    Raises:
        InvalidCasesError: Cases have problems, and ``skip_invalid`` is false.
        NotADirectoryError: ``dataset_dir`` is not a folder.
        ValueError: As :func:`~ssmctb_monai.data.brats.find_cases`, :func:`split_patients` and
            :func:`~ssmctb_monai.data.patients.read_patients`; or there is a datalist with other patients already.

    Example:
        >>> prepare_datalist("BraTS2021", "runs/datalist.json", ["flair"], training=125, test=180)  # doctest: +SKIP
        PosixPath('runs/datalist.json')
    """
    datalist_file, root = Path(datalist_file), dataset_folder(dataset_dir)
    table = {} if patients is None else read_patients(patients)
    if datalist_file.is_file():
        _check_patients(datalist_file, root, table)
        logger.info("Using the split of %s; it stays as it is until the file is removed.", datalist_file)
        return datalist_file
    if (own := root / "datalist.json").is_file():
        _check_patients(own, root, table)
        write_json(read_json(own), datalist_file)
        logger.info("Using the split of %s, and copied it to %s.", own, datalist_file)
        return datalist_file

    modalities = canonical_modalities(modalities)
    cases = [
        replace(case, patient_id=table.get(case.case_id, case.patient_id)) for case in find_cases(root, modalities)
    ]
    if unknown := sorted(table.keys() - {case.case_id for case in cases}):
        logger.warning("%s names cases that are not in %s: %s.", patients, root, ", ".join(unknown[:5]))
    warn_of_shared_stems({case.case_id: case.patient_id for case in cases if case.case_id not in table})
    cases = join_owners(cases)
    problems = check_cases(cases, modalities)
    report_invalid(problems, skip_invalid)
    valid = [case for case in cases if case.case_id not in problems]
    parts = split_patients(valid, training=training, validation=validation, test=test, seed=seed)
    counts = ", ".join(
        f"{name} {len({case.patient_id for case in part})} patients ({len(part)} cases)" for name, part in parts.items()
    )
    description = (
        f"{len(cases)} cases found, {len(problems)} invalid and left out; checked for {', '.join(modalities)}; "
        f"split by patient with seed {seed}: {counts}"
    )
    write_datalist(parts, root, datalist_file, description)
    logger.info("Wrote %s: %s.", datalist_file, description)
    return datalist_file


def write_datalist(
    parts: Mapping[str, Sequence[BratsCase]], dataset_dir: PathLike, datalist_file: PathLike, description: str
) -> None:
    """Writes a datalist for :func:`load_datalist`.

    Args:
        parts: the cases of each section.
        dataset_dir: folder of the data set, as it was given to :func:`~ssmctb_monai.data.brats.find_cases`.
        datalist_file: file to write.
        description: how the cases were chosen, in words.

    Example:
        >>> write_datalist({"training": cases[:9], "test": cases[9:]}, "BraTS2021", "datalist.json", "the first nine")
    """
    root = dataset_folder(dataset_dir)
    sections = {name: [_entry(case, root) for case in part] for name, part in parts.items()}
    write_json({"name": root.resolve().name, "description": description, **sections}, Path(datalist_file))


def load_datalist(
    datalist_file: PathLike,
    dataset_dir: PathLike,
    section: str,
    modalities: Sequence[str] | str,
    *,
    skip_invalid: bool = False,
    keep_invalid: bool = False,
    optional: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Loads one section of a datalist as items for MONAI's data sets and transforms.

    Args:
        datalist_file: datalist made by :func:`prepare_datalist` or by hand.
        dataset_dir: folder that the paths in the datalist are relative to.
        section: ``training``, ``validation``, ``test`` or another list in the file.
        modalities: modalities to load, in the order of the channels.
        skip_invalid: leave out and log cases that lack a modality or a file, instead of raising.
        keep_invalid: return such cases too, for :class:`~ssmctb_monai.data.datasets.ValidCases` to report; takes
            precedence over ``skip_invalid``.
        optional: those of the modalities that a case may lack.

    Returns:
        One dictionary a case: ``case_id``, ``patient_id``, ``image`` (a path for each modality, in their order; for a
        4D file that one path), ``channels`` (the index of each modality in a 4D file, or, where some are lacking, in
        ``image``; -1 for those), ``label``, and ``brain`` where there is a brain mask. All paths are absolute.
        ``anomalous`` is whether an image in 2D, which may have no label, has something to find, or for a video which
        runs of frames have, from a first one to one behind the last. Cases that ``keep_invalid`` kept have ``problems``
        besides, the list of what they lack.

    Raises:
        InvalidCasesError: Cases lack a modality or a file, and ``skip_invalid`` and ``keep_invalid`` are false.
        NotADirectoryError: ``dataset_dir`` is not a folder.
        ValueError: The file is not a datalist, has no such section or no case to return in it, lists a case twice or
            a patient in two sections.

    Example:
        >>> items = load_datalist("datalist.json", "BraTS2021", "training", ["flair", "t1ce"])  # doctest: +SKIP
        >>> items[0]["image"]  # doctest: +SKIP
        ['/data/BraTS2021/BraTS2021_00006/BraTS2021_00006_flair.nii.gz', ...]
    """
    modalities, root = canonical_modalities(modalities), dataset_folder(dataset_dir).absolute()
    sections = _read_sections(Path(datalist_file), root)
    if section not in sections:
        raise ValueError(f"{datalist_file} has no section {section!r}; it has {', '.join(sections) or 'none'}.")
    items = [_item(entry, root, modalities, optional) for entry in sections[section]]
    if keep_invalid:
        kept = [{**item, "problems": problems} if problems else item for item, problems in items]
    else:
        report_invalid({item["case_id"]: problems for item, problems in items if problems}, skip_invalid)
        kept = [item for item, problems in items if not problems]
    if not kept:
        raise ValueError(
            f"Section {section!r} of {datalist_file} has no usable case: add some to its list or choose another section"
            " (in a bundle's evaluation `--section`; without validation patients train with `--validation_share 0`)."
        )
    return kept


def _check_patients(datalist_file: Path, root: Path, table: Mapping[str, str]) -> None:
    """Refuses a table of patients that a datalist, which counts, contradicts."""
    if not table:
        return
    entries = [entry for section in _read_sections(datalist_file, root).values() for entry in section]
    listed = {entry["case_id"]: entry["patient_id"] for entry in entries}
    if differing := [name for name, patient in listed.items() if table.get(name, patient) != patient]:
        raise ValueError(
            f"{datalist_file} has other patients than the table for {', '.join(differing[:5])}: remove that file to "
            "have the cases split anew."
        )


def join_owners(cases: Sequence[BratsCase]) -> list[BratsCase]:
    """Makes those who share an image one patient, so that no part of a split has what another one has.

    Args:
        cases: the cases; those that share an image are logged.

    Returns:
        The cases in their order, with the patients that they are of.

    Example:
        >>> [case.patient_id for case in join_owners(cases)]  # doctest: +SKIP
        ['P1', 'P1', 'P2']
    """
    files = {(case.case_id, path): case.patient_id for case in cases for path in case.images.values()}
    patients = {case.case_id: case.patient_id for case in cases}
    for (case_id, path), others in _shared(files).items():
        joined = {patients[name] for name in (case_id, *others)}
        if len(joined) > 1:
            logger.warning(
                "%s is an image of %s, too: they count as one patient. Keep one where it is a copy by mistake.",
                printable(str(path)),
                printable(", ".join(others)),
            )
        patients = {name: min(joined) if patient in joined else patient for name, patient in patients.items()}
    return [replace(case, patient_id=patients[case.case_id]) for case in cases]


def _shared(files: Mapping[tuple[str, Path], str]) -> dict[tuple[str, Path], list[str]]:
    """Returns for each file of a case the cases of other patients that have it, by whichever name, or a copy of it."""
    keys = content_keys(path for _, path in files)
    owners: defaultdict[Hashable, dict[str, str]] = defaultdict(dict)
    for (case_id, path), patient_id in files.items():
        owners[keys[path]][case_id] = patient_id
    found = {
        (case_id, path): sorted(name for name, other in owners[keys[path]].items() if other != patient_id)
        for (case_id, path), patient_id in files.items()
    }
    return {key: others for key, others in found.items() if others}


def _ranked_patients(cases: Sequence[BratsCase], seed: int) -> list[str]:
    return sorted(
        {case.patient_id for case in cases}, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest()
    )


def _cases_of(patients: Sequence[str], cases: Sequence[BratsCase]) -> list[BratsCase]:
    """The cases of some patients, in the order of their names."""
    chosen = set(patients)
    return [case for case in sorted(cases, key=lambda case: case.case_id) if case.patient_id in chosen]


def _amount(size: int | float, total: int) -> float:
    """Number of patients that a count or a share stands for, not yet rounded."""
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    if isinstance(size, float) and 0 <= size <= 1:
        return size * total
    raise ValueError(f"The size of a part is a count of patients (int) or a share (float from 0 to 1); got {size!r}.")


def _entry(case: BratsCase, root: Path) -> dict[str, Any]:
    def relative(path: Path) -> str:
        return path.relative_to(root).as_posix()

    optional = {"label": case.label, "brain": case.brain}
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "image": {modality: relative(path) for modality, path in case.images.items()},
        **{key: relative(path) for key, path in optional.items() if path},
        **({"channels": dict(case.channels)} if case.channels else {}),
    }


def _read_sections(path: Path, root: Path) -> dict[str, list[dict[str, Any]]]:
    content = read_json(path)
    sections = {name: entries for name, entries in content.items() if isinstance(entries, list)}
    for name, entries in sections.items():
        for entry in entries:
            if not isinstance(entry, dict) or "case_id" not in entry or not isinstance(entry.get("image"), dict):
                raise ValueError(f"{path}: a case in {name!r} lacks its case_id or its image by modality: {entry!r}.")
            if wrong := _wrong_values(entry):
                raise ValueError(f"{path}: the case {entry['case_id']!r} in {name!r} has {'; '.join(wrong)}.")
            entry.setdefault("patient_id", patient_of(entry["case_id"]))

    entries = [entry for section in sections.values() for entry in section]
    images = {
        (entry["case_id"], root / image): entry["patient_id"] for entry in entries for image in entry["image"].values()
    }
    for (case_id, image), others in _shared(images).items():
        raise ValueError(f"{path}: {image} is an image of {case_id} and of {', '.join(others)}, another patient.")
    patients = {name: {entry["patient_id"] for entry in entries} for name, entries in sections.items()}
    for one, other in combinations(patients, 2):
        if shared := sorted(patients[one] & patients[other]):
            raise ValueError(f"{path}: patients both in {one!r} and in {other!r}: {', '.join(shared)}.")
    listed = Counter(entry["case_id"] for entries in sections.values() for entry in entries)
    if twice := [case_id for case_id, count in listed.items() if count > 1]:
        raise ValueError(f"{path}: cases listed more than once: {', '.join(twice)}.")
    return sections


def _wrong_values(entry: Mapping[str, Any]) -> list[str]:
    """Says which values of a case are not what they stand for."""

    def is_text(value: Any) -> bool:
        return isinstance(value, str) and bool(value.strip()) and "\0" not in value

    wrong = []
    if not isinstance(entry["case_id"], str) or not is_file_name(entry["case_id"]):
        wrong.append("a case_id that is no text by which a file can be named")
    if not is_text(entry.get("patient_id", "default")):
        wrong.append(f"the patient_id {entry['patient_id']!r}, which is no text")
    paths = {**entry["image"], **{key: entry[key] for key in ("label", "brain") if entry.get(key) is not None}}
    wrong += [f"the {key} {value!r}, which is no path" for key, value in paths.items() if not is_text(value)]
    if not (isinstance(anomalous := entry.get("anomalous", False), bool) or _are_runs(anomalous)):
        wrong.append(f"anomalous {anomalous!r}, which is neither true nor false, nor runs of frames such as [[3, 9]]")
    channels = entry.get("channels") or {}
    if not isinstance(channels, dict) or not all(type(index) is int and index >= 0 for index in channels.values()):
        wrong.append(f"the channels {channels!r}, which are no indices by modality")
    return wrong


def _are_runs(value: Any) -> bool:
    """Whether it is a list of pairs of a first frame and one behind the last."""
    return isinstance(value, list) and all(
        isinstance(run, list) and [type(end) for end in run] == [int, int] and 0 <= run[0] < run[1] for run in value
    )


def _item(
    entry: Mapping[str, Any], root: Path, modalities: Sequence[str], optional: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Returns the item for a case of a datalist, and what makes it unusable."""
    paths = {name: str(root / path) for name, path in entry["image"].items()}
    image, problems = image_entry(paths, entry.get("channels") or {}, modalities, optional, "in the datalist")
    if not entry.get("label") and "anomalous" not in entry:
        problems.append("no segmentation in the datalist")

    item: dict[str, Any] = {"case_id": entry["case_id"], "patient_id": entry["patient_id"], **image}
    item |= {key: str(root / entry[key]) for key in ("label", "brain") if entry.get(key)}
    item |= {"anomalous": entry["anomalous"]} if "anomalous" in entry else {}

    files = [*item["image"], *(item[key] for key in ("label", "brain") if key in item)]
    problems += [f"{file} does not exist" for file in dict.fromkeys(files) if not os.path.exists(file)]
    return item, problems
