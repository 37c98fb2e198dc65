"""Finding the cases of a BRATS/BraTS data set, in any of the layouts it was released in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monai.config import PathLike
from monai.utils import ensure_tuple

__all__ = [
    "MODALITIES",
    "BratsCase",
    "NoCasesError",
    "canonical_modalities",
    "canonical_modality",
    "dataset_folder",
    "find_cases",
    "patient_of",
]

MODALITIES = ("flair", "t1", "t1ce", "t2")

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

_CASE_FILE = re.compile(r"(?P<case>.+)[-_](?P<kind>[a-z0-9]+)\.(?:nii|nii\.gz|mha)", re.IGNORECASE)
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
    ``CASE_flair.nii.gz`` (2017-2021, and any data set named in this way), ``CASE-t2f.nii.gz`` (2023 and later), and the
    Decathlon's ``dataset.json`` with 4D files. Hidden files and folders are passed over.

    Args:
        dataset_dir: folder to search.

    Returns:
        The cases in the order of their names, with whichever modalities each has.

    Raises:
        NotADirectoryError: ``dataset_dir`` is not a folder.
        NoCasesError: No case was found.
        ValueError: A file of a case was found twice, or a ``dataset.json`` cannot be understood.

    Example:
        >>> cases = find_cases("MICCAI_BraTS2020_TrainingData")  # doctest: +SKIP
        >>> sorted(cases[0].images)  # doctest: +SKIP
        ['flair', 't1', 't1ce', 't2']
    """
    root = dataset_folder(dataset_dir)
    files: dict[str, dict[str, Path]] = {}
    channels: dict[str, dict[str, int]] = {}
    doubles = []
    for path in _walk(root):
        for case_id, kind, file, channel in _parse(path):
            known = files.setdefault(case_id, {})
            if kind in known:
                doubles.append(f"{case_id}, {kind}: {known[kind]} and {file}")
            known[kind] = file
            if channel is not None:
                channels.setdefault(case_id, {})[kind] = channel
    if doubles:
        raise ValueError("Two cases have the same name; keep one of each pair of files:\n" + "\n".join(doubles))
    if not files:
        raise NoCasesError(
            f"No case found below {root}. Expected are files such as CASE_flair.nii.gz, CASE-t2f.nii.gz, "
            "CASE_FLAIR.mha, VSD.Brain.XX.O.MR_Flair.1.mha, or a Decathlon folder with dataset.json and imagesTr."
        )
    return [
        BratsCase(
            case_id=case_id,
            patient_id=patient_of(case_id),
            images={modality: kinds[modality] for modality in MODALITIES if modality in kinds},
            label=kinds.get("label"),
            brain=kinds.get("brain"),
            channels=channels.get(case_id, {}),
        )
        for case_id, kinds in sorted(files.items())
    ]


def _walk(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _parse(path: Path) -> Iterator[tuple[str, str, Path, int | None]]:
    """Yields case name, kind (modality, label or brain), file and channel of what a file says about cases."""
    if path.name == "dataset.json":
        yield from _parse_decathlon(path)
    elif match := _VSD_FILE.fullmatch(path.name):
        if kind := _KINDS.get(match["kind"].lower()):
            folder = next(parent for parent in path.parents if not parent.name.startswith(("VSD.", "SMIR.")))
            # The same names stand in the folders of both grades
            is_graded = folder.parent.name.upper() in ("HG", "LG", "HGG", "LGG")
            case_id = f"{folder.parent.name}_{folder.name}" if is_graded else folder.name
            yield case_id, kind, path, None
    elif (match := _CASE_FILE.fullmatch(path.name)) and (kind := _KINDS.get(match["kind"].lower())):
        yield match["case"], kind, path, None


def _parse_decathlon(path: Path) -> Iterator[tuple[str, str, Path, int | None]]:
    if not (path.parent / "imagesTr").is_dir():
        return
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["modality"]
        channels = {canonical_modality(name): int(channel) for channel, name in names.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} does not say which channel is which modality ("modality"): {error}') from error
    for image in sorted((path.parent / "imagesTr").glob("[!.]*.nii.gz")):
        case_id = image.name.removesuffix(".nii.gz")
        for modality, channel in channels.items():
            yield case_id, modality, image, channel
        if (label := path.parent / "labelsTr" / image.name).exists():
            yield case_id, "label", label, None
