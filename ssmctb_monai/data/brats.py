"""Finding the cases of a BRATS/BraTS data set, in any of the layouts it was released in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from monai.config import PathLike
from monai.utils import ensure_tuple

__all__ = [
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
    "parse_file",
    "parse_name",
    "patient_of",
    "volume_stem",
    "walk_files",
]

MODALITIES = ("flair", "t1", "t1ce", "t2")
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
_VSD_FILE = re.compile(r"(?:VSD|SMIR)\.Brain.*\.(?:MR_)?(?P<kind>[a-z0-9]+)\.\d+\.mha", re.IGNORECASE)

# Case names that end in the number or the date of a scan, after the name of the patient
_SCANS = re.compile(
    r"""(?P<patient>
        BraTS-\w+-\d+(?=-\d+$)              # BraTS-GLI-00002-000
        | Brats1[789]_\w+(?=_\d+$)          # Brats17_TCIA_639_1
        | (?:[HL]GG?_)?brats_\w+_pat_?\d+(?=_\d+$)  # HGG_brats_2013_pat0001_1, brats_tcia_pat100_0001
        | TCGA[-_]\w{2}[-_]\w{4}(?=[-_]\d+$)  # TCGA_CS_4942_19970222
    )""",
    re.IGNORECASE | re.VERBOSE,
)


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
    """

    case_id: str
    patient_id: str
    images: Mapping[str, Path]
    label: Path | None
    brain: Path | None
    channels: Mapping[str, int]


class CaseFile(NamedTuple):
    """What the name of a file says.

    Args:
        case_id: name of the scan.
        kind: canonical modality, ``label`` or ``brain``.
        path: the file, or the folder of a DICOM series.
        channel: index of the modality in a 4D file.
        home: folder that the case has its name from; files in another folder of this name are of another case.
    """

    case_id: str
    kind: str
    path: Path
    channel: int | None = None
    home: Path | None = None


def canonical_modality(name: str) -> str:
    """Translates the name of a modality in any BraTS release into ``flair``, ``t1``, ``t1ce`` or ``t2``.

    Args:
        name: name in any case, for example ``FLAIR``, ``t2f`` or ``t1Gd``.

    Returns:
        The canonical name.

    Raises:
        ValueError: The name is not known; the known ones are in the message.

    Example:
        >>> canonical_modality("t2f"), canonical_modality("T1C")
        ('flair', 't1ce')
    """
    try:
        return _MODALITY_ALIASES[str(name).lower()]
    except KeyError:
        raise ValueError(f"Unknown modality {name!r}; known are {', '.join(_MODALITY_ALIASES)}.") from None


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


def patient_of(case_id: str) -> str:
    """Returns the patient whom a scan belongs to: the name without the scan's number, where the naming has one.

    Args:
        case_id: name of the scan.

    Example:
        >>> patient_of("BraTS-GLI-00002-001"), patient_of("BraTS2021_00006")
        ('BraTS-GLI-00002', 'BraTS2021_00006')
    """
    match = _SCANS.match(case_id)
    return match["patient"] if match else case_id


def dataset_folder(dataset_dir: PathLike) -> Path:
    """Returns the path of a data set's folder, and raises NotADirectoryError if there is no such folder."""
    folder = Path(dataset_dir).expanduser()
    if not folder.is_dir():
        raise NotADirectoryError(f"The data set folder {folder} does not exist or is not a folder.")
    return folder


def find_cases(dataset_dir: PathLike) -> list[BratsCase]:
    """Finds the cases of a BRATS data set as it was downloaded, in any nesting of folders.

    Data: https://www.synapse.org/brats, http://medicaldecathlon.com (Task01_BrainTumour); Menze et al., "The Multimodal
    Brain Tumor Image Segmentation Benchmark (BRATS)", IEEE TMI 2015, https://doi.org/10.1109/TMI.2014.2377694

    Known layouts: ``BRATS_HG0001_FLAIR.mha`` (2012, 2013), ``VSD.Brain.XX.O.MR_Flair.54512.mha`` (2013-2015),
    ``CASE_flair.nii.gz`` (2017-2021, and any data set named in this way), ``CASE-t2f.nii.gz`` (2023 and later), the
    Decathlon's ``dataset.json`` with 4D files, and ``CASE/flair.nii.gz``, where the case is named after the folder that
    the files are in. Hidden files and folders are passed over.

    Args:
        dataset_dir: folder to search.

    Returns:
        The cases in the order of their names, with whichever modalities each has.

    Raises:
        NotADirectoryError: ``dataset_dir`` is not a folder.
        NoCasesError: No case was found.
        ValueError: A file of a case was found twice, two folders give their name to a case, or a ``dataset.json``
            cannot be understood.

    Example:
        >>> cases = find_cases("MICCAI_BraTS2020_TrainingData")  # doctest: +SKIP
        >>> sorted(cases[0].images)  # doctest: +SKIP
        ['flair', 't1', 't1ce', 't2']
    """
    root = dataset_folder(dataset_dir)
    cases = group_files(file for path in walk_files(root) for file in parse_file(path))
    if not cases:
        raise NoCasesError(
            f"No case found below {root}. Expected are files such as CASE_flair.nii.gz, CASE-t2f.nii.gz, "
            "CASE_FLAIR.mha, VSD.Brain.XX.O.MR_Flair.1.mha, CASE/flair.nii.gz, or a Decathlon folder with dataset.json "
            "and imagesTr."
        )
    return cases


def group_files(files: Iterable[CaseFile]) -> list[BratsCase]:
    """Groups files by case.

    Args:
        files: what the names of the files say.

    Returns:
        The cases in the order of their names.

    Raises:
        ValueError: A file of a case was found twice, or two folders give their name to a case; all pairs are named.

    Example:
        >>> (case,) = group_files([CaseFile("A", "t1", Path("A_t1.nii")), CaseFile("A", "label", Path("A_seg.nii"))])
        >>> case.images, case.label
        ({'t1': PosixPath('A_t1.nii')}, PosixPath('A_seg.nii'))
    """
    kinds: dict[str, dict[str, Path]] = {}
    channels: dict[str, dict[str, int]] = {}
    homes: dict[str, CaseFile] = {}
    doubles = []
    for file in files:
        case_id, kind, path, channel, home = file
        known = kinds.setdefault(case_id, {})
        if kind in known:
            doubles.append(f"{case_id}, {kind}: {known[kind]} and {path}")
        elif home and (first := homes.setdefault(case_id, file)).home != home:
            doubles.append(f"{case_id}: {first.path} and {path}")
        known[kind] = path
        if channel is not None:
            channels.setdefault(case_id, {})[kind] = channel
    if doubles:
        raise ValueError("Two cases have the same name; keep or rename one of each pair:\n" + "\n".join(doubles))
    return [
        BratsCase(
            case_id=case_id,
            patient_id=patient_of(case_id),
            images={modality: found[modality] for modality in MODALITIES if modality in found},
            label=found.get("label"),
            brain=found.get("brain"),
            channels=channels.get(case_id, {}),
        )
        for case_id, found in sorted(kinds.items())
    ]


def walk_files(
    root: Path, exclude: Path | None = None, onerror: Callable[[OSError], object] | None = None
) -> Iterator[Path]:
    """Yields the files below a folder, one folder after the other, hidden ones passed over.

    Args:
        root: folder to search.
        exclude: folder below it that is not entered.
        onerror: called with the error of a folder that cannot be listed, instead of raising it.
    """

    def fail(error: OSError) -> None:
        raise error

    excluded = exclude and exclude.resolve()
    for folder, subfolders, names in os.walk(root, onerror=onerror or fail, followlinks=True):
        visible = sorted(name for name in subfolders if not name.startswith("."))
        subfolders[:] = [name for name in visible if not excluded or Path(folder, name).resolve() != excluded]
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


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
    elif (stem := volume_stem(path)) and (file := parse_name(path, stem)):
        yield file


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
    match = _CASE_NAME.fullmatch(stem)
    kind = _KINDS.get(match["kind"].lower()) if match else None
    if not match or not kind:
        return None
    if match["case"]:
        return CaseFile(match["case"], kind, path)
    home = Path(os.path.abspath(path.parent))
    return CaseFile(home.name, kind, path, home=home)


def volume_stem(path: Path, suffixes: Sequence[str] = VOLUME_SUFFIXES) -> str | None:
    """Returns the name of a volume without its suffix, or ``None`` where it has none of ``suffixes``.

    Example:
        >>> volume_stem(Path("scans/P1.nii.gz")), volume_stem(Path("notes.txt"))
        ('P1', None)
    """
    name = path.name
    return next((name[: -len(suffix)] for suffix in suffixes if name.lower().endswith(suffix)), None)


def _parse_decathlon(path: Path, image_folders: Sequence[str]) -> Iterator[CaseFile]:
    folders = [path.parent / name for name in image_folders if (path.parent / name).is_dir()]
    if not folders:
        return
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["modality"]
        channels = {canonical_modality(name): int(channel) for channel, name in names.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} does not say which channel is which modality ("modality"): {error}') from error
    for image in [image for folder in folders for image in sorted(folder.glob("[!.]*.nii.gz"))]:
        case_id = image.name.removesuffix(".nii.gz")
        for modality, channel in channels.items():
            yield CaseFile(case_id, modality, image, channel)
        label = path.parent / image.parent.name.replace("images", "labels") / image.name
        if label.exists():
            yield CaseFile(case_id, "label", label)
