"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from monai.config import PathLike

UNFINISHED = ".unfinished-"
GZIP = b"\x1f\x8b"
# In the header of a MetaImage, whose last line it is, or of an NRRD file, which ends with an empty line
_VOXEL_FILE = re.compile(
    rb"(?:(?!NRRD).*?^ElementDataFile\s*=|NRRD(?:(?!\r?\n\r?\n).)*?^data ?file\s*:)\s*(?P<file>[^\r\n]+)",
    re.DOTALL | re.MULTILINE,
)
SAMPLE = 16384  # bytes
LONGEST_NAME = 255  # bytes that file systems allow
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a cell begins with that a spreadsheet would execute
ABANDONED = 3600.0  # s after which an unfinished file is one of a killed program

# What the machine lacks, not the file that is being read or written
_ENVIRONMENT = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS", "ENOMEM", "EMFILE", "ENFILE", "ESTALE", "ENODEV", "ENXIO")
    if hasattr(errno, name)
}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Lets a file be written beside its place, which it takes when all went well.

    Args:
        path: file, in a folder that is made where there is none.

    Yields:
        Where to write, with the same suffixes; a killed program leaves at most this hidden file.

    Example:
        >>> with whole_file(Path("maps/case.nii.gz")) as unfinished:
        ...     nibabel.save(image, unfinished)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{UNFINISHED}{secrets.token_hex(4)}-{path.name[-16:]}")  # a name may have 255 bytes
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_folder(folder: Path) -> Path:
    """Returns a hidden folder for files that :func:`whole_files` is to put into another one.

    Args:
        folder: the other one, in which it lies.
    """
    return folder / f"{UNFINISHED}{secrets.token_hex(4)}"


@contextmanager
def whole_files(folder: Path, last: str, *unfinished: Path) -> Iterator[Path]:
    """Lets files be written beside their places, which they take together when all went well.

    Args:
        folder: folder of the files, which is made where there is none.
        last: name of the file that tells that the others are there: where there is one of an earlier run, it goes
            before the first of them is replaced, and the new one comes behind the last, so that a killed program
            leaves it beside none but its own.
        unfinished: folders of :func:`unfinished_folder` whose files take their places together with these.

    Yields:
        Folder to write to.

    Example:
        >>> with whole_files(Path("report"), "report.json") as unfinished:
        ...     write_csv(columns, rows, unfinished / "cases.csv")
        ...     write_json(report, unfinished / "report.json")
    """
    remove_abandoned(folder)
    own = unfinished_folder(folder)
    try:
        own.mkdir(parents=True)
        yield own
        places = {
            file: folder / file.relative_to(source)
            for source in (*unfinished, own)
            for file in source.rglob("*")
            if file.is_file()
        }
        for place in places.values():
            place.parent.mkdir(parents=True, exist_ok=True)
        (folder / last).unlink(missing_ok=True)
        for file, place in sorted(places.items(), key=lambda pair: pair[1] == folder / last):
            file.replace(place)
    finally:
        for source in (*unfinished, own):
            shutil.rmtree(source, ignore_errors=True)


def printable(name: str) -> str:
    """Returns a name as text that can be written, also one of bytes that are no UTF-8.

    Args:
        name: name of a file, as Python lists it.
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def is_file_name(name: str) -> bool:
    """Tells whether a name from outside names files in a folder: no path, nothing hidden, unprintable, or too long.

    Args:
        name: name of a case.

    Example:
        >>> is_file_name("BraTS2021_00006"), is_file_name("../../evil"), is_file_name("")
        (True, False, False)
    """
    is_plain = not name.startswith(".") and not set(name) & set("/\\") and name.isprintable()
    return is_plain and bool(name.strip()) and len(f"{name}.nii.gz".encode()) <= LONGEST_NAME


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes the whole file or nothing.

    Args:
        content: what to write; all numbers finite.
        path: file, in a folder that is made where there is none.
    """
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Writes a table with a header, the whole file or nothing.

    Texts that a spreadsheet would take for formulas get an apostrophe in front, numbers stay as they are; see
    https://owasp.org/www-community/attacks/CSV_Injection.

    Args:
        columns: names of the columns.
        rows: values by the names of their columns; ``None`` leaves a cell empty.
        path: file, in a folder that is made where there is none.
    """
    with whole_file(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows({column: _as_cell(value) for column, value in row.items()} for row in rows)


def append_csv(columns: Sequence[str], row: Mapping[str, Any], path: Path) -> None:
    """Adds a row to a table that :func:`write_csv` wrote; a killed program leaves at most a part of this line.

    Args:
        columns: names of the columns, those of the table.
        row: values by the names of their columns.
        path: file.
    """
    line = io.StringIO(newline="")
    csv.DictWriter(line, columns).writerow({column: _as_cell(value) for column, value in row.items()})
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        is_cut = file.read(1) != b"\n"
        file.write((b"\r\n" if is_cut else b"") + line.getvalue().encode("utf-8"))


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Reads a table that :func:`write_csv` wrote.

    Args:
        path: file.

    Returns:
        Names of the columns, and the rows; cells that a row lacks are empty.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = (line.replace("\0", "\N{REPLACEMENT CHARACTER}") for line in file)  # Python 3.10 refuses NUL
        table = csv.DictReader(lines, restval="")
        rows = [{name: text_of_cell(cell) for name, cell in row.items() if name is not None} for row in table]
        return list(table.fieldnames or ()), rows


def text_of_cell(cell: str) -> str:
    """Returns the text that :func:`write_csv` wrote a cell for.

    Args:
        cell: the cell as read.

    Example:
        >>> text_of_cell("'=1+1"), text_of_cell("'tis")
        ('=1+1', "'tis")
    """
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def _as_cell(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.lstrip("'").startswith(FORMULA)
    return f"'{value}" if is_formula else value


def read_json(path: PathLike) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
        path: file.

    Returns:
        Its content.

    Raises:
        ValueError: when it holds something else, or a key twice; it is named.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        if twice := [key for key, count in counts.items() if count > 1]:
            raise ValueError(f"it has {', '.join(map(repr, twice))} more than once")
        return dict(pairs)

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except (RecursionError, ValueError) as error:  # of JSON, or of text
        raise ValueError(f"{path} is damaged, or no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def remove_abandoned(folder: Path) -> None:
    """Removes what killed programs left unfinished, and nothing that another program may be writing.

    Args:
        folder: folder, with its subfolders.
    """
    for pattern in (f"{UNFINISHED}*", f"*/{UNFINISHED}*"):
        for leftover in folder.glob(pattern):
            with suppress(FileNotFoundError):
                written = max(path.stat().st_mtime for path in (leftover, *leftover.rglob("*")))
                if time.time() - written <= ABANDONED:
                    continue
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink()


def is_undamaged(path: Path) -> bool:
    """Tells whether all content of a file that ``torch.save`` wrote fits its checksums, which ``torch.load`` ignores.

    Args:
        path: file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, FileNotFoundError, NotImplementedError, RuntimeError, ValueError, zlib.error):
        return False


def raise_from_environment(error: BaseException) -> None:
    """Raises an error again where the machine is its cause, such as a full disk: no case is to blame for that.

    Args:
        error: what a case ended with.

    Raises:
        OSError, MemoryError: when that is the error or one behind it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or (
            isinstance(cause, OSError) and cause.errno in _ENVIRONMENT
        ):
            raise cause
        cause = cause.__cause__ or cause.__context__


def voxel_file(path: Path) -> Path | None:
    """Returns the file that holds the voxels of a volume: of a MetaImage or NRRD header the one that it names.

    Args:
        path: file of a volume.

    Returns:
        The file; ``None`` where the header names several, or one that is not there.

    Example:
        >>> voxel_file(Path("P1/flair.nii.gz"))
        PosixPath('P1/flair.nii.gz')
    """
    if path.suffix.lower() not in (".mha", ".mhd", ".nrrd", ".nhdr") or not path.is_file():
        return path
    with path.open("rb") as file:
        named = _VOXEL_FILE.match(file.read(2**16))
    if named is None or named["file"].strip().upper() == b"LOCAL":
        return path
    voxels = path.parent / os.fsdecode(named["file"].strip())
    return voxels if voxels.is_file() else None


def content_keys(paths: Iterable[Path]) -> dict[Path, Hashable]:
    """Returns for each file what those of the same content share, by whichever name and gzip's level of compression.

    The content of a header without voxels is that of their file. Only files that may be copies are read in full: of the
    others a few bytes tell that they differ, gzip's own checksum or samples.

    Args:
        paths: files; one that is empty, a folder or not there is like no other.
    """
    real = {path: Path(os.path.realpath(voxel_file(path) or path)) for path in paths}
    quick = {path: _quick_key(path) for path in set(real.values())}
    counts = Counter(quick.values())
    keys = {path: key if counts[key] == 1 else (key, _content_checksum(path)) for path, key in quick.items()}
    return {path: keys[place] for path, place in real.items()}


def _quick_key(path: Path) -> Hashable:
    try:
        size = path.stat().st_size
        if not size or not path.is_file():
            return path
        with path.open("rb") as file:
            if file.read(2) == GZIP:
                file.seek(-8, os.SEEK_END)
                return file.read(8)  # checksum and length of the content
            samples = []
            for quarter in range(4):
                file.seek(size * quarter // 4)
                samples.append(file.read(SAMPLE))
            return size, hashlib.sha256(b"".join(samples)).digest()
    except OSError:
        return path


def _content_checksum(path: Path) -> str:
    """Checksum of what a file holds, uncompressed where it is sound."""
    digest = hashlib.sha256()
    with suppress(EOFError, OSError, zlib.error), gzip.open(path) as file:
        while block := file.read(2**20):
            digest.update(block)
        return digest.hexdigest()
    return checksum(path)


def checksum(path: PathLike) -> str:
    """Returns the SHA-256 checksum of a file, as hexadecimal digits.

    Args:
        path: file.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
