"""What a reader decided of scans and of candidates in them, in a table that a person can open."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from filelock import FileLock
from monai.config import PathLike
from monai.utils import ensure_tuple

from ssmctb_monai.files import text_of_cell, write_csv

Decision: TypeAlias = Literal["accept", "reject", "unsure", ""]
Key: TypeAlias = tuple[str, str, float | None, tuple[int, int, int] | None]

LONGEST_TEXT = 100_000  # characters; those who read the table refuse 131 072
SECONDS_TO_WAIT = 10  # for others who write the file
_NUMBERS: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "threshold": (float, ("threshold",)),
    "score": (float, ("score",)),
    "volume": (float, ("volume_ml",)),
    "position": (float, ("x_mm", "y_mm", "z_mm")),
    "voxel": (int, ("voxel_i", "voxel_j", "voxel_k")),
}
_TEXTS = ("case_id", "verdict", "comment")
_LAST = ("time", "map_checksum")
COLUMNS = (*_TEXTS, *(column for _, columns in _NUMBERS.values() for column in columns), *_LAST)


@dataclass(frozen=True)
class Verdict:
    """What a reader decided of a case, or of one candidate in it.

    Args:
        case_id: name of the scan.
        map_checksum: checksum of the map that was judged; a verdict does not hold for another map.
        verdict: ``accept`` (a candidate that is abnormal; a case whose map shows what there is, and nothing else),
            ``reject``, ``unsure``, or empty where there is only a comment.
        comment: anything in words.
        threshold: threshold that made the candidate; ``None`` for the case as a whole.
        voxel: index of the candidate's highest score in the scan's own array; ``None`` for the case as a whole.
        position: where that voxel is, in mm to the right, the front and the head (RAS).
        volume: volume of the candidate in ml.
        score: score of the candidate.
        time: when it was saved, by ISO 8601 with time zone; `VerdictFile.save` sets it.

    Raises:
        ValueError: when the verdict is another word, a candidate lacks threshold or voxel, a number is NaN, or a text
            holds what a table cannot.
    """

    case_id: str
    map_checksum: str
    verdict: Decision
    comment: str = ""
    threshold: float | None = None
    voxel: tuple[int, int, int] | None = None
    position: tuple[float, float, float] | None = None
    volume: float | None = None
    score: float | None = None
    time: str = ""

    def __post_init__(self) -> None:
        for name, (kind, columns) in _NUMBERS.items():
            value = getattr(self, name)
            if value is not None:
                # Lists and NumPy's numbers become plain, since they neither compare nor hash as these do
                numbers = tuple(kind(number) for number in ensure_tuple(value))
                if len(numbers) != len(columns) or any(number != number for number in numbers):
                    raise ValueError(f"{name} is {value}: expected {len(columns)} number(s), none of them NaN")
                object.__setattr__(self, name, numbers if len(columns) > 1 else numbers[0])
        if self.verdict not in get_args(Decision):
            raise ValueError(f"a verdict is accept, reject, unsure or empty, not {self.verdict!r}")
        if (self.threshold is None) != (self.voxel is None):
            raise ValueError("a candidate has a threshold and a voxel, a case as a whole has neither")
        for text in (self.case_id, self.map_checksum, self.comment):
            if "\0" in text or len(text) > LONGEST_TEXT:
                raise ValueError(f"a text is longer than {LONGEST_TEXT} characters or holds a NUL: {text[:40]!r}")

    @property
    def key(self) -> Key:
        """What the verdict is about; another one about the same replaces it."""
        return self.case_id, self.map_checksum, self.threshold, self.voxel


class VerdictFile:
    """Table of verdicts, a CSV file in UTF-8 with a row each.

    Every verdict is on disk when `save` returns. The file is whole whenever a program dies, and several programs may
    write to it: each waits for the other and then adds to what is there.

    Columns: ``case_id``, ``verdict``, ``comment``; of candidates ``threshold``, ``score``, ``volume_ml``, the position
    ``x_mm``, ``y_mm``, ``z_mm`` (RAS) and the index ``voxel_i``, ``voxel_j``, ``voxel_k`` of the highest score;
    ``time`` and ``map_checksum``. Rows stay in the order in which they were first made.

    Args:
        path: file, in a folder that is made where there is none.

    Example:
        >>> verdicts = VerdictFile("runs/scans/verdicts.csv")
        >>> verdicts.save(Verdict("P1", checksum("runs/scans/maps/P1.nii.gz"), "reject", "motion"))
        >>> verdicts.resume([("P1", "3d5f…"), ("P2", "a01c…")])
        1
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)

    def read(self) -> list[Verdict]:
        """Reads all verdicts; there are none where there is no file.

        Raises:
            ValueError: when the file is no table of verdicts; line and fault are named.
        """
        return list(self._read().values())

    def save(self, verdict: Verdict, keep: Sequence[Literal["verdict", "comment"]] = ()) -> Verdict:
        """Writes a verdict at once, in place of an earlier one about the same; an empty one removes that.

        Args:
            verdict: verdict, empty where neither verdict nor comment say anything.
            keep: what stays as the file has it, so that who changes the other does not undo what others wrote there.

        Returns:
            The verdict as written, with its time.

        Raises:
            ValueError: when the file is no table of verdicts; it stays as it is.
            PermissionError: when the file may not be written, as where another program holds it on Windows.
            TimeoutError: when others write the file for too long.
        """
        saved = replace(verdict, time=datetime.now(timezone.utc).isoformat(timespec="microseconds"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=SECONDS_TO_WAIT):
                verdicts = self._read()
                earlier = verdicts.get(saved.key)
                kept: dict[str, Any] = {name: getattr(earlier, name) if earlier else "" for name in keep}
                saved = replace(saved, **kept)
                if saved.verdict or saved.comment:
                    verdicts[saved.key] = saved
                else:
                    verdicts.pop(saved.key, None)
                self._write(verdicts.values())
        except PermissionError as error:
            raise PermissionError(
                f"{self.path} cannot be written: close it in other programs, or choose a file where you may write "
                f"({error})."
            ) from error
        return saved

    def of(self, case_id: str, map_checksum: str) -> list[Verdict]:
        """Reads the verdicts of a case and of its candidates.

        Args:
            case_id: name of the scan.
            map_checksum: checksum of its map; verdicts of other maps do not count.
        """
        return [item for item in self._read().values() if (item.case_id, item.map_checksum) == (case_id, map_checksum)]

    def resume(self, cases: Sequence[tuple[str, str]]) -> int:
        """Finds the case to go on with.

        Args:
            cases: name and checksum of the map of each case, in the order in which they are reviewed.

        Returns:
            Index of the case that was touched last, where it has no verdict as a whole yet; else of the next one,
            beginning again at the end, that has none; 0 where all have one, or nothing was touched.
        """
        verdicts = list(self._read().values())
        reviewed, listed = _reviewed(verdicts), set(cases)
        touched = [item for item in verdicts if (item.case_id, item.map_checksum) in listed]
        if not touched:
            return 0
        last = max(touched, key=lambda item: datetime.fromisoformat(item.time))
        first = cases.index((last.case_id, last.map_checksum))
        order = [*range(first, len(cases)), *range(first)]
        return next((index for index in order if cases[index] not in reviewed), 0)

    def _read(self) -> dict[Key, Verdict]:
        try:
            text = self.path.read_bytes().decode("utf-8-sig")  # spreadsheets begin files with a byte order mark
        except FileNotFoundError:
            return {}
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise self._fault(line, "it is not in UTF-8") from error
        table = csv.reader(io.StringIO(text, newline=""), strict=True)
        verdicts: dict[Key, Verdict] = {}
        line = 1
        try:
            if (header := next(table, [])) != list(COLUMNS):
                raise ValueError(f"the columns are {','.join(header)!r} instead of {','.join(COLUMNS)!r}")
            line = 2
            for row in table:
                if any(row):  # spreadsheets leave empty rows
                    verdict = _from_row(row)
                    if verdict.key in verdicts:
                        raise ValueError("an earlier line is about the same case or candidate")
                    verdicts[verdict.key] = verdict
                line = table.line_num + 1
        except (ValueError, csv.Error) as error:
            raise self._fault(line, str(error)) from error
        return verdicts

    def _fault(self, line: int, fault: str) -> ValueError:
        return ValueError(
            f"{self.path}, line {line}: {fault}. The file stays as it is: put it right (CSV in UTF-8, commas between "
            "columns, points in numbers), or choose another one for verdicts."
        )

    def _write(self, verdicts: Iterable[Verdict]) -> None:
        write_csv(COLUMNS, [_to_row(verdict) for verdict in verdicts], self.path)


def _reviewed(verdicts: Iterable[Verdict]) -> set[tuple[str, str]]:
    return {(item.case_id, item.map_checksum) for item in verdicts if item.threshold is None and item.verdict}


def _to_row(verdict: Verdict) -> dict[str, Any]:
    row = {name: getattr(verdict, name) for name in (*_TEXTS, *_LAST)}
    for name, (_, columns) in _NUMBERS.items():
        value = getattr(verdict, name)
        if value is not None:
            row |= zip(columns, ensure_tuple(value), strict=True)
    return row


def _from_row(row: Sequence[str]) -> Verdict:
    if len(row) != len(COLUMNS):
        raise ValueError(f"there are {len(row)} cells instead of {len(COLUMNS)}")
    cells = dict(zip(COLUMNS, row, strict=True))
    fields: dict[str, Any] = {name: text_of_cell(cells[name]) for name in (*_TEXTS, *_LAST)}
    for name, (kind, columns) in _NUMBERS.items():
        if any(cells[column] for column in columns):
            fields[name] = [_number(cells, column, kind) for column in columns]
    try:
        has_zone = datetime.fromisoformat(cells["time"]).tzinfo is not None
    except ValueError:
        has_zone = False
    if not has_zone:
        raise ValueError(f"time is {cells['time']!r}, no time by ISO 8601 with time zone")
    return Verdict(**fields)


def _number(cells: dict[str, str], column: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(cells[column])
    except ValueError as error:
        raise ValueError(f"{column} is {cells[column]!r}, no {'whole ' if kind is int else ''}number") from error
