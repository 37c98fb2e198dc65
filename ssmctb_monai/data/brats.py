"""Finding the cases of a BRATS/BraTS data set, in any of the layouts it was released in."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from monai.config import PathLike
from monai.utils import ensure_tuple

from ssmctb_monai.data.patients import patient_of
from ssmctb_monai.files import is_file_name, printable

__all__ = [
    "COLOURS",
    "MODALITIES",
    "VOLUME_SUFFIXES",
    "BratsCase",
    "CaseFile",
    "NoCasesError",
    "canonical_modalities",
    "canonical_modality",
    "dataset_folder",
    "find_cases",
    "group_files",
    "image_entry",
    "is_label",
    "lacking_channels",
    "name_problems",
    "named_path",
    "parse_channels",
    "parse_file",
    "parse_name",
    "shared_modalities",
    "volume_stem",
    "walk_files",
]

logger = logging.getLogger(__name__)

MODALITIES = ("flair", "t1", "t1ce", "t2")
COLOURS = ("grey", "red", "green", "blue")  # channels of images in 2D, which no file is named after
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")

# The names of 2012-2015 (t1c), 2017-2021 (t1ce), 2023 and later (t2f, t1n, t1c, t2w) and the Decathlon (t1w, t1gd).
# "t1c" is the contrast-enhanced image in all of them.
_MODALITY_ALIASES = {name: name for name in MODALITIES} | {
    "t2f": "flair",
    "t1n": "t1",
    "t1w": "t1",
    "t1c": "t1ce",
    "t1gd": "t1ce",
    "t2w": "t2",
}
_KINDS = _MODALITY_ALIASES | {"seg": "label", "truth": "label", "ot": "label", "brainmask": "brain"}

_CASE_NAME = re.compile(r"(?:(?P<case>.+)[-_])?(?P<kind>[a-z0-9]+)", re.IGNORECASE)
_BRAIN_MASK = re.compile(r"(?:(?P<case>.+)[-_])?(?:brain|bet)[-_]?mask", re.IGNORECASE)

# Words in the names of segmentations of lesions that are not named CASE_seg, and of segmentations of something else
_LABEL_WORDS = re.compile(
    r"seg(?:m|mentation)?s?|lesions?|lesionseg|masks?|labels?|gtv|roi|truth|groundtruth|gt|wmh|tumou?r"
)
_PART_WORDS = re.compile(
    r"brain|bet|skull|parenchyma|tissues?|[wg]m|csf|ventricles?|aseg|aparc|cortex|probabilit(?:y|ies)"
)
_SEGMENTATION = re.compile(r"(?:lesion|tumou?r)?[-_]?(?:seg(?:m|mentation)?|mask|label)", re.IGNORECASE)
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")  # of nnU-Net's files
_BIDS = re.compile(r"sub-[a-z0-9]+(?:_ses-[a-z0-9]+)?", re.IGNORECASE)

# Folders between that of a patient and the files, and names that every patient's files may have
_PLAIN_FOLDER = re.compile(r"anat|nii|nifti|mri?|images?|img|raw|scans?|processed|preprocessed", re.IGNORECASE)
_VISIT_FOLDER = re.compile(
    r"(?:ses(?:sion)?|visit|tp|time(?:[-_ ]?point)?|scan|study|exam|follow[-_ ]?up|fu|week|month|day|baseline|t|date)"
    r"[-_ ]?[a-z]?\d*(?:[-_]\d+)*|(?:19|20)\d\d(?:[-_.]?\d\d[-_.]?\d\d)?",
    re.IGNORECASE,
)
_PLAIN_NAME = re.compile(
    r"\D*|\d{1,2}|(?:scan|image|mri?|exam|series|img|subject|patient|case)[-_ ]?\d{0,3}", re.IGNORECASE
)
_VSD_FILE = re.compile(r"(?:VSD|SMIR)\.Brain.*\.(?:MR_)?(?P<kind>[a-z0-9]+)\.\d+\.mha", re.IGNORECASE)


class NoCasesError(ValueError):
    """There is nothing in a folder that is named as the cases of a BRATS data set are."""


@dataclass(frozen=True)
class BratsCase:
    """The files of one scan.

    Args:
        case_id: name of the scan.
        patient_id: name of the patient, shared by all scans of one patient.
        images: file of each modality found, by canonical name; the same 4D file for all in the Decathlon.
        label: segmentation of the lesion, ``None`` where there is none.
        brain: brain mask, ``None`` where there is none.
        channels: index of each modality in a 4D file; empty for one file a modality.
        problems: what is wrong with how the files are named or arranged; the case cannot be used.
    """

    case_id: str
    patient_id: str
    images: Mapping[str, Path]
    label: Path | None
    brain: Path | None
    channels: Mapping[str, int]
    problems: tuple[str, ...] = ()


class CaseFile(NamedTuple):
    """What the name of a file says.

    Args:
        case_id: name of the scan.
        kind: canonical modality, ``label`` or ``brain``.
        path: the file, or the folder of a DICOM series.
        channel: index of the modality in a 4D file.
        home: folder that the case has its name from; files in another folder of this name are of another case.
        patient_id: name of the patient, where folders say it.
    """

    case_id: str
    kind: str
    path: Path
    channel: int | None = None
    home: Path | None = None
    patient_id: str | None = None


def canonical_modality(name: str) -> str:
    """Translates the name of a modality in any BraTS release into ``flair``, ``t1``, ``t1ce`` or ``t2``.

    Args:
        name: name in any case, for example ``FLAIR``, ``t2f`` or ``t1Gd``; or a channel of images in 2D, ``grey``,
            ``red``, ``green`` or ``blue``.

    Returns:
        The canonical name.

    Raises:
        ValueError: The name is not known; the known ones are in the message.

    Example:
        >>> canonical_modality("t2f"), canonical_modality("T1C")
        ('flair', 't1ce')
    """
    try:
        return (_MODALITY_ALIASES | dict(zip(COLOURS, COLOURS, strict=True)))[str(name).lower()]
    except KeyError:
        known = ", ".join((*_MODALITY_ALIASES, *COLOURS))
        raise ValueError(f"Unknown modality {name!r}; known are {known}.") from None


def canonical_modalities(modalities: Sequence[str] | str) -> tuple[str, ...]:
    """Translates the names of modalities, in their order.

    Args:
        modalities: one name or several, see :func:`canonical_modality`.

    Returns:
        The canonical names.

    Raises:
        ValueError: A name is not known, a modality is named twice, or there is none.

    Example:
        >>> canonical_modalities(["t2f", "t1c"])
        ('flair', 't1ce')
    """
    names = tuple(canonical_modality(name) for name in ensure_tuple(modalities))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Give one or more different modalities of {', '.join(MODALITIES)}; got {modalities!r}.")
    return names


def image_entry(
    images: Mapping[str, object],
    channels: Mapping[str, int],
    modalities: Sequence[str],
    optional: Sequence[str] = (),
    where: str = "",
) -> tuple[dict[str, Any], list[str]]:
    """Says where the modalities of a case are, for MONAI's transforms.

    Args:
        images: file of each modality.
        channels: index of each modality in a 4D file; empty for one file a modality.
        modalities: modalities that a network takes, in the order of its channels.
        optional: those of them that a case may lack.
        where: where images were looked for, to say it of one that is lacking.

    Returns:
        ``image``, the files, and, for `SelectChannelsd`, where it does not follow from their order, ``channels``, the
        index of each modality, -1 where the case lacks it. And what is wrong.

    Example:
        >>> image_entry({"t2": "t2.nii", "flair": "flair.nii"}, {}, ["flair", "t1", "t2"], optional=["t1", "t2"])
        ({'image': ['flair.nii', 't2.nii'], 'channels': [0, -1, 1]}, [])
    """
    found = [name for name in modalities if name in images]
    files = [str(images[name]) for name in found]
    entry: dict[str, Any] = {"image": files[:1] if channels else files}
    lacking = [name for name in modalities if name not in images and name not in optional]
    problems = [f"no {', '.join(lacking)} image {where}".rstrip()] if lacking else []
    if channels:
        entry["channels"] = [channels.get(name, -1) if name in images else -1 for name in modalities]
        if not lacking and (len(set(files)) > 1 or any(name not in channels for name in found)):
            problems.append("channels need one 4D file, and an index in it for each modality")
    elif len(found) < len(modalities) and not lacking:
        entry["channels"] = [found.index(name) if name in found else -1 for name in modalities]
    return entry, problems


def lacking_channels(item: Mapping[Any, Any], channels_key: str = "channels") -> list[int]:
    """Returns the places of the modalities that a case lacks.

    Args:
        item: item with what :func:`image_entry` returned.
        channels_key: key of the list of channel indices.
    """
    return [place for place, index in enumerate(item.get(channels_key, ())) if index < 0]


def shared_modalities(items: Iterable[Mapping[str, Any]], modalities: Sequence[str]) -> list[str]:
    """Returns the modalities that all cases have.

    Args:
        items: items with what :func:`image_entry` returned.
        modalities: modalities that were asked for there, or what is named after each of them.
    """
    lacking = {place for item in items for place in lacking_channels(item)}
    return [name for place, name in enumerate(modalities) if place not in lacking]


def dataset_folder(dataset_dir: PathLike) -> Path:
    """Returns the path of a data set's folder, and raises NotADirectoryError if there is no such folder."""
    folder = Path(dataset_dir).expanduser()
    if not folder.is_dir():
        raise NotADirectoryError(f"The data set folder {folder} does not exist or is not a folder.")
    return folder


def find_cases(dataset_dir: PathLike, modalities: Sequence[str] | str | None = None) -> list[BratsCase]:
    """Finds the cases of a BRATS data set as it was downloaded, in any nesting of folders.

    Data: https://www.synapse.org/brats, http://medicaldecathlon.com (Task01_BrainTumour); Menze et al., "The Multimodal
    Brain Tumor Image Segmentation Benchmark (BRATS)", IEEE TMI 2015, https://doi.org/10.1109/TMI.2014.2377694

    Known layouts: ``BRATS_HG0001_FLAIR.mha`` (2012, 2013), ``VSD.Brain.XX.O.MR_Flair.54512.mha`` (2013-2015),
    ``CASE_flair.nii.gz`` (2017-2021, and any data set named in this way), ``CASE-t2f.nii.gz`` (2023 and later), the
    Decathlon's ``dataset.json`` with 4D files, nnU-Net's of both generations with ``CASE_0000.nii.gz``, BIDS, and
    ``CASE/flair.nii.gz``, where the case is named after the folder that the files are in; folders of visits and such
    as ``anat`` stand for those above them. A folder named like a volume counts as the one volume in it. The
    segmentation of a case may have another public name, such as ``CASE_tumor_segmentation``, ``…_segm``, ``…_gtv``,
    ``…Mask`` or BIDS's ``…_label-lesion_mask``, where it is the only such file of the case. Hidden files and folders
    are passed over.

    Args:
        dataset_dir: folder to search.
        modalities: what is looked for; a single one is that of nnU-Net's only channel where there is no
            ``dataset.json`` to say it.

    Returns:
        The cases in the order of their names, with whichever modalities each has, and with problems where files or
        folders contradict each other or cannot be read.

    Raises:
        NotADirectoryError: ``dataset_dir`` is not a folder.
        NoCasesError: No case was found.
        ValueError: A ``dataset.json`` cannot be understood, or is missing where nnU-Net's channels need it.

    Example:
        >>> cases = find_cases("MICCAI_BraTS2020_TrainingData")  # doctest: +SKIP
        >>> sorted(cases[0].images)  # doctest: +SKIP
        ['flair', 't1', 't1ce', 't2']
    """
    root = dataset_folder(dataset_dir)
    unread: list[OSError] = []
    paths = list(walk_files(root, onerror=unread.append))
    named = {path: list(parse_file(path)) for path in paths}
    for folder in {path.parent for path in paths if path.parent.name == "imagesTr"}:
        for file in parse_channels(folder, modalities):
            named[file.path] = [file]
    cases = group_files(file for files in named.values() for file in files)
    if not cases:
        volumes = [str(path.relative_to(root)) for path in paths if volume_stem(path)]
        others = f" It holds {len(volumes)} volumes that are named otherwise, such as {volumes[0]}." if volumes else ""
        raise next(
            iter(unread),
            NoCasesError(
                f"No case found below {root}.{others} Expected are files such as CASE_flair.nii.gz, CASE-t2f.nii.gz, "
                "CASE_FLAIR.mha, VSD.Brain.XX.O.MR_Flair.1.mha, CASE/flair.nii.gz, or a folder of nnU-Net or the "
                "Decathlon with dataset.json and imagesTr."
            ),
        )
    spare = [path for path, files in named.items() if not files and volume_stem(named_path(path))]
    return sorted([*_with_labels(cases, spare), *_unread_cases(unread, root)], key=lambda case: case.case_id)


def _unread_cases(errors: Iterable[OSError], root: Path) -> Iterator[BratsCase]:
    for error in errors:
        name = "_".join(Path(error.filename).relative_to(root).parts) or root.name
        problem = f"the folder {error.filename} cannot be read: {error.strerror}"
        yield BratsCase(name, patient_of(name), {}, None, None, {}, (problem,))


def _with_labels(cases: Sequence[BratsCase], spare: Sequence[Path]) -> list[BratsCase]:
    """Gives cases without a segmentation the only file that is one by a word in its name."""
    by_name = {case.case_id: case for case in cases}
    by_folder: dict[Path, set[str]] = {}
    by_session: dict[str, set[str]] = {}
    for case in cases:
        for image in case.images.values():
            by_folder.setdefault(named_path(image).parent, set()).add(case.case_id)
        if match := _BIDS.match(case.case_id):
            by_session.setdefault(match[0].lower(), set()).add(case.case_id)

    def owner(path: Path) -> str | None:
        name = named_path(path)
        stem = str(volume_stem(name))
        ends = sorted((match.start() for match in re.finditer(r"[-_. ]|(?<=[a-z0-9])(?=[A-Z])", stem)), reverse=True)
        if found := next((stem[:end] for end in ends if stem[:end] in by_name), None):
            return found
        session = _BIDS.match(stem)
        first, folder = re.split("[-_. ]", stem)[0].lower(), name.parent.name.lower()
        beside = {
            case_id
            for case_id in by_folder.get(name.parent, set())
            # In a folder of several patients, a name that begins like that of another one may be of that
            if first.isalpha() or first in case_id.lower() or folder in case_id.lower() or case_id.lower() in folder
        }
        groups = [by_session.get(session[0].lower(), set()) if session else set(), beside]
        return next((next(iter(group)) for group in groups if len(group) == 1), None)

    candidates: dict[str, list[Path]] = {}
    for path in spare:
        if is_label(str(volume_stem(named_path(path)))) and (case_id := owner(path)):
            candidates.setdefault(case_id, []).append(path)
    return [_with_label(case, candidates.get(case.case_id, ())) for case in cases]


def _with_label(case: BratsCase, candidates: Sequence[Path]) -> BratsCase:
    if case.label is not None or not candidates:
        return case
    if len(candidates) == 1:
        named = (printable(str(candidates[0])), printable(case.case_id))
        logger.info("Taking %s for the segmentation of %s.", *named)
        return replace(case, label=candidates[0])
    names = ", ".join(str(path) for path in candidates)
    problem = f"each of {names} may be the segmentation: rename the right one {case.case_id}_seg"
    return replace(case, problems=(*case.problems, problem))


def is_label(stem: str) -> bool:
    """Tells whether a name speaks of a segmentation of lesions.

    Args:
        stem: name of a file without suffix.

    Example:
        >>> is_label("P1_tumor_segmentation"), is_label("P1_LesionMask"), is_label("P1_brain_mask")
        (True, True, False)
    """
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", stem)]
    is_part = any(_PART_WORDS.fullmatch(word) or word == "brainmask" for word in words)
    return not is_part and any(_LABEL_WORDS.fullmatch(word) for word in words)


def group_files(files: Iterable[CaseFile]) -> list[BratsCase]:
    """Groups files by case.

    Names that say nothing of the patient, such as ``MR_flair`` in the folder of each, are those of several cases, which
    are named after their folders then.

    Args:
        files: what the names of the files say.

    Returns:
        The cases in the order of their names; one of which a file was found twice, or which two folders give their
        name to, has that among its problems.

    Example:
        >>> (case,) = group_files([CaseFile("A", "t1", Path("A_t1.nii")), CaseFile("A", "label", Path("A_seg.nii"))])
        >>> case.images, case.label
        ({'t1': PosixPath('A_t1.nii')}, PosixPath('A_seg.nii'))
    """
    groups: dict[str, list[CaseFile]] = {}
    for file in files:
        groups.setdefault(file.case_id, []).append(file)
    for case_id, group in list(groups.items()):
        if _PLAIN_NAME.fullmatch(case_id) and _doubles(group):
            folders = [_folder_case((file.home or named_path(file.path)).parent) for file in group]
            if case_id in [name for name, _ in folders]:
                continue
            del groups[case_id]
            for file, (name, patient_id) in zip(group, folders, strict=True):
                renamed = file._replace(case_id=f"{name}_{case_id}", patient_id=patient_id)
                groups.setdefault(renamed.case_id, []).append(renamed)
    return [_case_of(case_id, group) for case_id, group in sorted(groups.items())]


def _doubles(group: Sequence[CaseFile]) -> list[str]:
    """Pairs of files of which a case can have only one."""
    kinds: dict[str, Path] = {}
    home: CaseFile | None = None
    doubles = []
    for file in group:
        if file.kind in kinds:
            doubles.append(f"{kinds[file.kind]} and {file.path}")
        elif home and file.home and file.home != home.home:
            doubles.append(f"{home.path} and {file.path}")
        kinds[file.kind] = file.path
        home = home or (file if file.home else None)
    return doubles


def _case_of(case_id: str, group: Sequence[CaseFile]) -> BratsCase:
    found = {file.kind: file.path for file in group}
    doubles = _doubles(group)
    patient_id = next((file.patient_id for file in group if file.patient_id), None)
    return BratsCase(
        case_id=case_id,
        patient_id=patient_id or patient_of(case_id),
        images={modality: found[modality] for modality in MODALITIES if modality in found},
        label=found.get("label"),
        brain=found.get("brain"),
        channels={file.kind: file.channel for file in group if file.channel is not None},
        problems=(
            *(f"two files have its name, keep or rename one: {pair}" for pair in doubles),
            *name_problems(case_id),
        ),
    )


def name_problems(case_id: str) -> list[str]:
    """Says what keeps a case's name from being that of its results.

    Args:
        case_id: name of the case.
    """
    return [] if is_file_name(case_id) else [f"the name {case_id!r} is none for files of results: rename it"]


def _folder_case(folder: Path) -> tuple[str, str]:
    """Names the case and the patient that a folder holds, from those above it where its own name says neither."""
    folder = Path(os.path.abspath(folder))
    if folder.parent == folder or not folder.parent.name:
        return folder.name, folder.name
    if _PLAIN_FOLDER.fullmatch(folder.name):
        return _folder_case(folder.parent)
    if _VISIT_FOLDER.fullmatch(folder.name):
        name, patient_id = _folder_case(folder.parent)
        return f"{name}_{folder.name}", patient_id
    return folder.name, patient_of(folder.name)


def walk_files(
    root: Path, exclude: Path | None = None, onerror: Callable[[OSError], object] | None = None
) -> Iterator[Path]:
    """Yields the files below a folder, one folder after the other, hidden ones passed over.

    Each folder is entered once, however many links lead to it. One that is named like a volume and empty is an error.

    Args:
        root: folder to search.
        exclude: folder below it that is not entered.
        onerror: called with the error of a folder that cannot be listed or is empty so, instead of raising it.
    """

    def fail(error: OSError) -> None:
        raise error

    excluded = exclude and exclude.resolve()
    status = root.stat()
    entered = {(status.st_dev, status.st_ino)}
    for folder, subfolders, names in os.walk(root, onerror=onerror or fail, followlinks=True):
        visible = []
        for path in (Path(folder, name) for name in sorted(subfolders) if not name.startswith(".")):
            try:
                status = path.stat()
            except OSError as error:
                (onerror or fail)(error)
                continue
            place = status.st_dev, status.st_ino
            if place not in entered and not (excluded and path.resolve() == excluded):
                visible.append(path.name)
            entered.add(place)
        subfolders[:] = visible
        names = [name for name in sorted(names) if not name.startswith(".")]
        if not names and not visible and volume_stem(Path(folder)):
            (onerror or fail)(FileNotFoundError(errno.ENOENT, "it is named like a volume, but is empty", folder))
        yield from (Path(folder, name) for name in names)


def named_path(path: Path) -> Path:
    """Returns the path whose name counts: the folder's where that is named like a volume and holds this one alone.

    Args:
        path: a volume.

    Example:
        >>> named_path(Path("P1_flair.nii/00000057_brain_flair.nii"))  # doctest: +SKIP
        PosixPath('P1_flair.nii')
    """
    if volume_stem(path.parent) is None:
        return path
    volumes = [other.name for other in path.parent.glob("[!.]*") if volume_stem(other)]
    return path.parent if volumes == [path.name] else path


def parse_file(path: Path, test_images: bool = False) -> Iterator[CaseFile]:
    """Yields what a file says about cases: its name, or the content of the Decathlon's ``dataset.json``.

    Args:
        path: any file.
        test_images: whether the Decathlon's ``imagesTs``, which have no labels, are cases too.

    Raises:
        ValueError: A ``dataset.json`` cannot be understood.

    Example:
        >>> [(file.case_id, file.kind) for file in parse_file(Path("Brats17_TCIA_639_1_t1ce.nii.gz"))]
        [('Brats17_TCIA_639_1', 't1ce')]
    """
    if path.name == "dataset.json":
        yield from _parse_decathlon(path, ("imagesTr", "imagesTs") if test_images else ("imagesTr",))
    elif match := _VSD_FILE.fullmatch(path.name):
        if kind := _KINDS.get(match["kind"].lower()):
            folder = next(parent for parent in path.parents if not parent.name.startswith(("VSD.", "SMIR.")))
            # The same names stand in the folders of both grades
            is_graded = folder.parent.name.upper() in ("HG", "LG", "HGG", "LGG")
            case_id = f"{folder.parent.name}_{folder.name}" if is_graded else folder.name
            yield CaseFile(case_id, kind, path, home=folder)
    elif volume_stem(path):
        name = named_path(path)
        if file := parse_name(name, str(volume_stem(name))):
            yield file._replace(path=path)


def parse_name(path: Path, stem: str) -> CaseFile | None:
    """Returns what a name says: ``CASE_kind``, ``CASE-kind``, or a kind alone in the folder of the case.

    Args:
        path: the file, or the folder of a DICOM series.
        stem: its name without suffix.

    Returns:
        Case and kind, or ``None`` where the name does not end in a kind.

    Example:
        >>> parse_name(Path("P1/flair.nii.gz"), "flair").case_id
        'P1'
    """
    mask = _BRAIN_MASK.fullmatch(stem)
    match = mask or _CASE_NAME.fullmatch(stem)
    kind = "brain" if mask else _KINDS.get(match["kind"].lower()) if match else None
    if not match or not kind:
        return None
    if match["case"]:
        last_word = re.split(r"[-_]", match["case"])[-1]
        if kind in MODALITIES and last_word != match["case"] and _SEGMENTATION.fullmatch(last_word):
            return None  # 1-LesionSeg-Flair is no FLAIR
        return CaseFile(match["case"], kind, path)
    home = Path(os.path.abspath(path.parent))
    case_id, patient_id = _folder_case(home)
    return CaseFile(case_id, kind, path, home=home, patient_id=patient_id if patient_id != case_id else None)


def volume_stem(path: Path, suffixes: Sequence[str] = VOLUME_SUFFIXES) -> str | None:
    """Returns the name of a volume without its suffix, or ``None`` where it has none of ``suffixes``.

    Example:
        >>> volume_stem(Path("scans/P1.nii.gz")), volume_stem(Path("notes.txt"))
        ('P1', None)
    """
    name = path.name
    return next((name[: -len(suffix)] for suffix in suffixes if name.lower().endswith(suffix)), None)


def parse_channels(folder: Path, modalities: Sequence[str] | str | None) -> Iterator[CaseFile]:
    """Yields the files of a folder of nnU-Net that lacks its ``dataset.json``, without which only one channel is plain.

    Args:
        folder: folder with files such as ``CASE_0000.nii.gz``, with its labels in one beside it; another yields none.
        modalities: what is looked for.

    Raises:
        ValueError: The channels may be any of several modalities.
    """
    stems = {path: volume_stem(path) for path in sorted(folder.glob("[!.]*"))}
    files = {path: match for path, stem in stems.items() if stem and (match := _CHANNEL.fullmatch(stem))}
    channels = sorted({match["channel"] for match in files.values()})
    if "0000" not in channels or (folder.parent / "dataset.json").exists():
        return
    names = canonical_modalities(modalities or MODALITIES)
    if len(channels) > 1 or len(names) > 1:
        example = json.dumps(
            {"channel_names": {int(key): name for key, name in zip(channels, MODALITIES, strict=False)}}
        )
        raise ValueError(
            f"{folder} has nnU-Net's channels {', '.join(channels)}, but there is no {folder.parent / 'dataset.json'} "
            f"to say which is which: write one, such as {example}, or name the files CASE_flair and so on."
        )
    name = printable(str(folder))
    logger.warning("Taking the only channel in %s as %s, since there is no dataset.json.", name, names[0].upper())
    for path, match in files.items():
        yield CaseFile(match["case"], names[0], path)
        name = match["case"] + path.name.removeprefix(match[0])
        label = folder.with_name(folder.name.replace("images", "labels")) / name
        if label.exists():
            yield CaseFile(match["case"], "label", label)


def _parse_decathlon(path: Path, image_folders: Sequence[str]) -> Iterator[CaseFile]:
    """The cases of a folder of the Decathlon (4D files) or of nnU-Net (CASE_0000.nii.gz for the first channel)."""
    folders = [path.parent / name for name in image_folders if (path.parent / name).is_dir()]
    if not folders:
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ending = str(content.get("file_ending", ".nii.gz"))
        names = content["channel_names"] if "channel_names" in content else content["modality"]
        known = {int(channel): _MODALITY_ALIASES.get(str(name).lower()) for channel, name in names.items()}
        channels = {modality: channel for channel, modality in known.items() if modality}
        if not channels:
            raise ValueError(f"none of {', '.join(map(str, names.values()))} is known")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} does not say which channel is which modality ("modality"): {error}') from error
    for folder in folders:
        labels = path.parent / folder.name.replace("images", "labels")
        for image in sorted(path for path in folder.glob("[!.]*") if path.name.endswith(ending)):
            stem = image.name.removesuffix(ending)
            channel = _CHANNEL.fullmatch(stem)
            if channel and ("channel_names" in content or not (labels / image.name).exists()):
                modality = known.get(int(channel["channel"]))
                if modality:
                    yield CaseFile(channel["case"], modality, image)
                label, is_first = labels / (channel["case"] + ending), int(channel["channel"]) == min(known)
            else:
                for modality, index in channels.items():
                    yield CaseFile(stem, modality, image, index)
                label, is_first = labels / image.name, True
            if is_first and label.exists():
                yield CaseFile(channel["case"] if channel else stem, "label", label)
