"""Whom a scan is of: by the public ways to name scans, or by a table."""

from __future__ import annotations

import csv
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from monai.config import PathLike

__all__ = ["patient_of", "read_patients", "warn_of_shared_stems"]

logger = logging.getLogger(__name__)

# Names of scans that begin with that of the patient, in the data sets that are named so
_PUBLIC = re.compile(
    r"""(?P<patient>
        sub-[a-z0-9]+(?=_|$)                # BIDS: sub-001_ses-01
        | BraTS-[\w-]+?-\d+(?=-\d+$)        # BraTS-GLI-00002-000, BraTS-MEN-RT-0106-2
        | BraTSReg_\d+(?=_\d\d(?:_\d+)?$)   # BraTSReg_001_01_0106
        | Brats1[789]_\w+(?=_\d+$)          # Brats17_TCIA_639_1
        | (?:[HL]GG?_)?brats_\w+_pat_?\d+(?=_\d+$)  # HGG_brats_2013_pat0001_1, brats_tcia_pat100_0001
        | TCGA[-_]\w{2}[-_]\w{4}(?=[-_]\d+$)  # TCGA_CS_4942_19970222
        | UPENN-GBM-\d+(?=_\d+$)            # UPENN-GBM-00001_11, _21
        | UCS[FD]-\w+-\d+(?=_)              # UCSF-PDGM-0409_FU003d, UCSD-PTGBM-0002_01
        | OAS3\d+(?=_)                      # OAS30001_MR_d0129
        | (?:RHUH|CFB-GBM|ReMIND)-\d+(?=[-_])
        | (?:training|test)\d\d(?=_\d\d$)   # training01_02 of the MS challenge of 2015
    )""",
    re.IGNORECASE | re.VERBOSE,
)

# What names a visit in names of any data set; words of the second kind also name other things
_VISIT = re.compile(
    r"""(?P<patient>.+?) [-_. ] (?:
        (?:ses(?:s|sion)?|visit|tp|time[-_ ]?point|follow[-_ ]?up|fu|week|wk)[-_ ]?[a-z]?\d+[a-z]?
        | (?:baseline|bl|follow[-_ ]?up|(?:pre|post)(?:[-_ ]?(?:op|rt|tx|surgery|treatment|therapy))?)
        | (?:19|20)\d\d(?P<dash>[-_.]?)(?:0[1-9]|1[0-2])(?P=dash)(?:0[1-9]|[12]\d|3[01])
        | (?<=\d[-_. ])(?:t|time|scan|study|exam|mr|day|d|month|m|year|y|v)[-_ ]?\d+
    ) (?:[-_. ].*)?""",
    re.IGNORECASE | re.VERBOSE,
)
_NUMBERS = re.compile(r"(?:[-_. ]+\d+[a-z]?)+$", re.IGNORECASE)
FEW = 12  # scans of one patient


def patient_of(case_id: str) -> str:
    """Returns the patient whom a scan belongs to: the name without what names the visit.

    Known are BIDS, the releases of BraTS, TCGA, UPENN-GBM, UCSF-PDGM and others, and words such as ``ses-2``,
    ``Timepoint_2``, ``FU001d``, ``week-44``, ``baseline`` or a date behind the name.

    Args:
        case_id: name of the scan.

    Example:
        >>> patient_of("BraTS-GLI-00002-001"), patient_of("BraTS2021_00006"), patient_of("sub-1_ses-2")
        ('BraTS-GLI-00002', 'BraTS2021_00006', 'sub-1')
    """
    match = _PUBLIC.match(case_id) or _VISIT.fullmatch(case_id)
    return match["patient"] if match else case_id


def read_patients(file: PathLike) -> dict[str, str]:
    """Reads a table of patients: a line a case, its name and that of its patient, separated by comma or tab.

    Args:
        file: table, with the header ``case,patient`` or without a header.

    Returns:
        The patient of each case.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such table, or gives a case two patients.

    Example:
        >>> read_patients("patients.csv")  # doctest: +SKIP
        {'scan_1': 'P1', 'scan_2': 'P1'}
    """
    path = Path(str(file)).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no table of patients {path}: give a file with the columns case,patient.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    lines = csv.reader(text.splitlines(), delimiter="\t" if "\t" in text else ",")
    try:
        rows = [[cell.strip() for cell in row] for row in lines if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{path} is no table: {error}. Expected is a case and its patient in each line.") from error
    if rows and [cell.lower() for cell in rows[0][:2]] in (["case", "patient"], ["case_id", "patient_id"]):
        rows = rows[1:]
    patients: dict[str, str] = {}
    for row in rows:
        if len(row) != 2 or not all(row):
            raise ValueError(f"{path}: expected is a case and its patient in each line, got {','.join(row)!r}.")
        if patients.setdefault(*row) != row[1]:
            raise ValueError(f"{path} gives the case {row[0]} two patients, {patients[row[0]]} and {row[1]}.")
    if not patients:
        raise ValueError(f"{path} is empty: expected are lines such as scan_1,P1.")
    return patients


def warn_of_shared_stems(patients: Mapping[str, str]) -> None:
    """Warns where cases look like visits of one patient by their names but count as patients of their own.

    Args:
        patients: the patient of each case.
    """
    if suspects := _shared_stems(set(patients.values())):
        shown = [f"{stem} ({', '.join(names[:3])})" for stem, names in list(suspects.items())[:5]]
        logger.warning(
            "The names of %d groups of patients begin alike, such as %s. If these are visits of one patient, give a "
            "table with the columns case,patient (in a bundle: `--patients FILE`), since visits must not be split.",
            len(suspects),
            "; ".join(shown),
        )


def _shared_stems(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups of names that are one name and numbers behind it, where not all of the data set are numbered so."""
    known = set(names)
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(known):
        groups[_NUMBERS.sub("", name) or name].append(name)
    few = {stem: group for stem, group in groups.items() if 1 < len(group) <= FEW}
    return {stem: group for stem, group in few.items() if stem in known or (len(groups) > 1 and re.search(r"\d", stem))}
