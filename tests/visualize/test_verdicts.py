"""Verdicts on disk: what comes back, what is refused, and what survives other writers and killed programs."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from ssmctb_monai.visualize import verdicts as module
from ssmctb_monai.visualize.verdicts import COLUMNS, Verdict, VerdictFile

THRESHOLD = 0.29345712065696716
CANDIDATE = {
    "threshold": THRESHOLD,
    "voxel": (120, 4, 77),
    "position": (-31.5, 1 / 3, 40.0),
    "volume": 4.187,
    "score": 0.9731,
}
LINE = "P1,accept,,0.5,0.9,1.5,1.0,2.0,3.0,7,8,9,2024-05-01T10:00:00.000000+00:00,abc"
HEADER = ",".join(COLUMNS)


@pytest.fixture
def file(tmp_path):
    return VerdictFile(tmp_path / "new" / "verdicts.csv")


def names(verdicts):
    return [(item.case_id, item.voxel and item.voxel[0], item.verdict) for item in verdicts]


def write(file, *lines, encoding="utf-8"):
    file.path.parent.mkdir(exist_ok=True)
    file.path.write_bytes("".join(f"{line}\r\n" for line in lines).encode(encoding))
    return file.path.read_bytes()


def set_time(monkeypatch, hour, zone=timezone.utc):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2024, 5, 1, hour, tzinfo=zone).astimezone(tz)

    monkeypatch.setattr(module, "datetime", Clock)


# ------------------------------------------------------------------------------------------------- there and back


def test_no_file(file):
    assert file.read() == file.of("P1", "abc") == []
    assert file.resume([("P1", "abc")]) == 0
    assert not file.path.parent.exists()


def test_what_is_saved_is_read(file):
    before = datetime.now(timezone.utc)
    whole = file.save(Verdict("P1", "abc", "unsure"))
    candidate = file.save(Verdict("P1", "abc", "reject", "motion", **CANDIDATE))
    assert VerdictFile(str(file.path)).read() == [whole, candidate]
    assert (candidate.voxel, candidate.position, candidate.threshold) == ((120, 4, 77), (-31.5, 1 / 3, 40.0), THRESHOLD)
    assert (candidate.volume, candidate.score, candidate.comment) == (4.187, 0.9731, "motion")
    assert [type(number) for number in (*candidate.voxel, candidate.threshold)] == [int] * 3 + [float]
    assert (whole.threshold, whole.voxel, whole.position, whole.volume, whole.score) == (None,) * 5
    assert before <= datetime.fromisoformat(whole.time) <= datetime.fromisoformat(candidate.time)
    assert datetime.fromisoformat(whole.time).utcoffset() == timedelta(0)


def test_the_table(file):
    file.save(Verdict("P1", "abc", "accept", "", 0.5, (7, 8, 9), (1, 2, 3), 1.5, 0.9))
    file.save(Verdict("P1", "abc", "", 'a, "b"'))
    with file.path.open(newline="", encoding="utf-8") as text:
        candidate, whole = csv.DictReader(text)
    assert tuple(candidate) == COLUMNS
    time = candidate.pop("time")
    assert ",".join(candidate.values()) == "P1,accept,,0.5,0.9,1.5,1.0,2.0,3.0,7,8,9,abc"
    assert time.endswith("+00:00")
    assert {key for key, cell in whole.items() if cell} == {"case_id", "comment", "time", "map_checksum"}
    assert whole["comment"] == 'a, "b"'


def test_texts_that_a_spreadsheet_would_execute(file):
    """They get an apostrophe, which is none of the comment's; negative numbers stay as they are."""
    saved = file.save(Verdict("@P1", "abc", "reject", "=HYPERLINK(1)", **CANDIDATE))
    with file.path.open(newline="", encoding="utf-8") as text:
        (row,) = csv.DictReader(text)
    assert (row["case_id"], row["comment"], row["x_mm"]) == ("'@P1", "'=HYPERLINK(1)", "-31.5")
    assert file.read() == [saved]


@pytest.mark.parametrize(
    "comment",
    [
        "- no lesion",
        "'= 2 ml",
        "Läsion, 脳 🧠",
        "two\nlines\r\nor\rthree\n",
        '"quoted", with; all\tsigns "',
        "  spaces  ",
        "'",
        ",,,",
        "=1+1",
        "\u2028\x85\ufeff",
        "x" * 100_000,
    ],
)
def test_any_comment_comes_back(file, comment):
    saved = file.save(Verdict(comment[:50] + "!", "abc", "reject", comment))
    other = file.save(Verdict("P2", "abc", "accept"))
    assert file.read() == [saved, other]
    assert saved.comment == comment


@pytest.mark.parametrize(
    "threshold", [0.1 + 0.2, 1 / 3, 5e-324, 1e300, -0.7, 0.0, 12, np.float32(0.1), np.float64(0.7)]
)
def test_thresholds_come_back_as_they_were(file, threshold):
    saved = file.save(Verdict("P1", "abc", "reject", threshold=threshold, voxel=(1, 2, 3)))
    assert file.read()[0].threshold == saved.threshold == threshold
    again = file.save(Verdict("P1", "abc", "accept", threshold=float(threshold), voxel=(1, 2, 3)))
    assert file.read() == [again]


def test_numbers_of_a_browser_or_numpy(file):
    plain = file.save(Verdict("P1", "abc", "reject", **CANDIDATE))
    lists = Verdict("P1", "abc", "unsure", **CANDIDATE | {"voxel": [120, 4, 77], "position": [-31.5, 1 / 3, 40]})
    arrays = Verdict("P1", "abc", "accept", **CANDIDATE | {"voxel": np.array([120, 4, 77]), "score": np.float32(0.5)})
    assert plain.key == lists.key == arrays.key
    assert hash(plain.key) == hash(arrays.key)
    file.save(lists)
    file.save(arrays)
    assert names(file.read()) == [("P1", 120, "accept")]
    assert (file.read()[0].position, file.read()[0].score) == ((-31.5, 1 / 3, 40.0), 0.5)


# -------------------------------------------------------------------------------------------------------- identity


def test_a_verdict_replaces_that_of_the_same_candidate_only(file):
    kinds = [
        ("P1", "abc", None, None),
        ("P1", "abc", 0.5, (1, 2, 3)),
        ("P1", "abc", 0.5, (1, 2, 4)),
        ("P1", "abc", 0.25, (1, 2, 3)),
        ("P1", "new", 0.5, (1, 2, 3)),
        ("P2", "abc", 0.5, (1, 2, 3)),
        ("P1", "new", None, None),
    ]
    for name, digits, threshold, voxel in kinds:
        file.save(Verdict(name, digits, "accept", threshold=threshold, voxel=voxel))
    assert [item.key for item in file.read()] == kinds
    for index, (name, digits, threshold, voxel) in enumerate(kinds):
        file.save(Verdict(name, digits, "reject", str(index), threshold, voxel))
        found = file.read()
        assert [item.key for item in found] == kinds  # in the order in which they were first made
        assert [item.verdict for item in found] == ["reject"] * (index + 1) + ["accept"] * (6 - index)
        assert found[index].comment == str(index)
    assert [item.key for item in file.of("P1", "new")] == [kinds[4], kinds[6]]


def test_an_empty_verdict_removes_only_its_own(file):
    for name in ("P1", "P2", "P3"):
        file.save(Verdict(name, "abc", "accept"))
    file.save(Verdict("P2", "abc", "accept", **CANDIDATE))
    removed = file.save(Verdict("P2", "abc", ""))
    assert removed.verdict == removed.comment == ""
    assert removed.time
    assert names(file.read()) == [("P1", None, "accept"), ("P3", None, "accept"), ("P2", 120, "accept")]
    file.save(Verdict("P9", "abc", ""))
    assert len(file.read()) == 3
    file.save(Verdict("P1", "abc", "", "only a comment"))
    assert file.read()[0].comment == "only a comment"


def test_removing_where_there_is_nothing(file):
    file.save(Verdict("P1", "abc", ""))
    assert file.read() == []


def test_a_case_is_reviewed_by_a_verdict_on_the_whole_of_it_and_this_map(file):
    """The next review passes over it."""

    def is_reviewed(name, digits):
        file.save(Verdict(name, digits, "accept", **CANDIDATE | {"voxel": (0, 0, 0)}))  # the last one touched
        return file.resume([("P8", "abc"), (name, digits)]) == 0

    file.save(Verdict("P1", "abc", "accept", **CANDIDATE))
    file.save(Verdict("P1", "abc", "", "look again"))
    assert not is_reviewed("P1", "abc")
    file.save(Verdict("P1", "abc", "unsure", "look again"))
    assert is_reviewed("P1", "abc")
    assert not is_reviewed("P1", "another map")
    assert not is_reviewed("P2", "abc")
    file.save(Verdict("P1", "abc", ""))
    assert not is_reviewed("P1", "abc")


# --------------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("details", [{}, CANDIDATE], ids=["case", "candidate"])
def test_what_is_kept_stays_as_the_file_has_it(file, details):
    file.save(Verdict("P1", "abc", "reject", "motion", **details))
    saved = file.save(Verdict("P1", "abc", "accept", "of the browser", **details), keep=("comment",))
    assert (saved.verdict, saved.comment) == ("accept", "motion")
    assert file.read() == [saved]
    saved = file.save(Verdict("P1", "abc", "unsure", "vessel", **details), keep=["verdict"])
    assert (saved.verdict, saved.comment) == ("accept", "vessel")
    assert file.read() == [saved]
    before = saved.time
    saved = file.save(Verdict("P1", "abc", "", "", **details), keep=("verdict", "comment"))
    assert (saved.verdict, saved.comment) == ("accept", "vessel")
    assert datetime.fromisoformat(saved.time) > datetime.fromisoformat(before)
    assert file.read() == [saved]


def test_what_another_program_wrote_meanwhile_is_kept(file):
    first, second = VerdictFile(file.path), VerdictFile(file.path)
    first.save(Verdict("P1", "abc", "accept", "of the first"))
    second.save(Verdict("P1", "abc", "", "of the second"), keep=("verdict",))
    first.save(Verdict("P1", "abc", "reject", "of the first"), keep=("comment",))
    assert [(item.verdict, item.comment) for item in file.read()] == [("reject", "of the second")]
    second.save(Verdict("P1", "abc", ""))  # removes it
    first.save(Verdict("P1", "abc", "unsure", "of the first"), keep=("comment",))
    assert [(item.verdict, item.comment) for item in file.read()] == [("unsure", "")]


def test_only_that_of_the_same_place_is_kept(file):
    file.save(Verdict("P1", "abc", "reject", "of the case"))
    file.save(Verdict("P1", "abc", "reject", "another candidate", **CANDIDATE | {"voxel": (1, 2, 3)}))
    file.save(Verdict("P1", "abc", "reject", "another threshold", **CANDIDATE | {"threshold": 0.5}))
    file.save(Verdict("P1", "old", "reject", "another map", **CANDIDATE))
    file.save(Verdict("P2", "abc", "reject", "another case", **CANDIDATE))
    saved = file.save(Verdict("P1", "abc", "accept", "lost", **CANDIDATE), keep=("comment",))
    assert (saved.verdict, saved.comment) == ("accept", "")
    assert len(file.read()) == 6


def test_a_row_goes_only_when_nothing_is_left_of_it(file):
    file.save(Verdict("P1", "abc", "reject", "motion"))
    file.save(Verdict("P1", "abc", ""), keep=("comment",))
    assert [(item.verdict, item.comment) for item in file.read()] == [("", "motion")]
    file.save(Verdict("P1", "abc", ""), keep=("verdict",))
    assert file.read() == []
    file.save(Verdict("P1", "abc", "accept", "x"), keep=("verdict", "comment"))
    assert file.read() == []  # nothing was kept of what was never there


def test_fields_of_two_notebooks_at_the_same_time(file):
    """Neither undoes what the other one writes."""

    def review(field):
        own = VerdictFile(file.path)
        other = "comment" if field == "verdict" else "verdict"
        for index in range(12):
            fields = {"verdict": "reject", "comment": ""} if field == "verdict" else {"verdict": "", "comment": "x"}
            own.save(Verdict("P1", "abc", **fields, threshold=0.5, voxel=(index, 0, 0)), keep=(other,))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(review, ["verdict", "comment"]))
    assert [(item.verdict, item.comment) for item in file.read()] == [("reject", "x")] * 12


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"verdict": "maybe"}, "not 'maybe'"),
        ({"verdict": "Accept"}, "not 'Accept'"),
        ({"verdict": None}, "not None"),
        ({"threshold": 0.5}, "threshold and a voxel"),
        ({"voxel": (1, 2, 3)}, "threshold and a voxel"),
        ({"threshold": float("nan"), "voxel": (1, 2, 3)}, "threshold is nan"),
        ({"score": float("nan")}, "score is nan"),
        ({"threshold": 0.5, "voxel": (1, 2)}, "3 number"),
        ({"threshold": 0.5, "voxel": (1, 2, 3, 4)}, "3 number"),
        ({"position": (1.0, 2.0, float("nan"))}, "position"),
        ({"volume": (1.0, 2.0)}, "1 number"),
        ({"comment": "a\0b"}, "NUL"),
        ({"comment": "x" * 100_001}, "longer than 100000"),
        ({"case_id": "\0"}, "NUL"),
    ],
)
def test_what_is_no_verdict(fields, fault):
    with pytest.raises(ValueError, match=fault):
        Verdict(**{"case_id": "P1", "map_checksum": "abc", "verdict": "accept", **fields})


# --------------------------------------------------------------------------------------------------- files of others


@pytest.mark.parametrize("newline", ["\r\n", "\n", "\r"])
def test_a_file_that_a_spreadsheet_saved(file, newline):
    """With a byte order mark, empty rows, and numbers to 15 digits."""
    saved = [file.save(Verdict("P1", "abc", "reject", 'Läsion, "rechts"')), file.save(Verdict("P2", "abc", "accept"))]
    text = file.path.read_bytes().decode()
    text = text.replace("\r\n", newline) + "," * (len(COLUMNS) - 1) + newline + newline
    file.path.write_bytes(text.encode("utf-8-sig"))
    assert file.read() == saved
    added = file.save(Verdict("P3", "abc", "unsure"))
    assert file.read() == [*saved, added]


@pytest.mark.parametrize(
    ("lines", "line", "fault"),
    [
        ([], 1, "the columns are ''"),
        ([""], 1, "the columns are ''"),
        (["case_id,note", "P1,x"], 1, "'case_id,note'"),
        ([HEADER.replace(",", ";"), LINE.replace(",", ";")], 1, "case_id;verdict"),
        ([HEADER.replace(",", "\t")], 1, "the columns are"),
        ([HEADER + ",reader", LINE + ",me"], 1, "reader"),
        ([HEADER.replace("case_id,verdict", "verdict,case_id")], 1, "the columns are"),
        ([LINE], 1, "the columns are"),
        ([HEADER, LINE, LINE.replace("accept", "maybe").replace("P1", "P2")], 3, "not 'maybe'"),
        ([HEADER, LINE + ","], 2, "15 cells instead of 14"),
        ([HEADER, LINE.replace(",abc", "")], 2, "13 cells instead of 14"),
        ([HEADER, f'"{LINE}"'], 2, "1 cells instead of 14"),
        ([HEADER, LINE.replace(",0.5,", ',"0,5",')], 2, "threshold is '0,5', no number"),
        ([HEADER, LINE.replace(",7,", ",7.5,")], 2, "voxel_i is '7.5', no whole number"),
        ([HEADER, LINE.replace(",8,9,", ",,9,")], 2, "voxel_j is '', no whole number"),
        ([HEADER, LINE.replace(",1.0,2.0,3.0,", ",1.0,2.0,,")], 2, "z_mm is '', no number"),
        ([HEADER, LINE.replace(",0.5,", ",,")], 2, "threshold and a voxel"),
        ([HEADER, LINE.replace(",0.5,", ",nan,")], 2, "threshold is"),
        ([HEADER, LINE.replace("2024-05-01T10:00:00.000000+00:00", "01.05.24 10:00")], 2, "'01.05.24 10:00'"),
        ([HEADER, LINE.replace("+00:00", "")], 2, "with time zone"),
        ([HEADER, LINE.replace("2024-05-01T10:00:00.000000+00:00", "")], 2, "time is ''"),
        ([HEADER, LINE, LINE.replace("P1", "P2"), LINE.replace("accept", "reject")], 4, "an earlier line"),
        ([HEADER, LINE.replace("accept,,", 'accept,"two\nlines",'), LINE.replace("P1,accept", "P2,x")], 4, "not 'x'"),
        ([HEADER, LINE, LINE.replace("accept,,", 'accept,"cut off')], 3, "unexpected end"),
        ([HEADER, LINE.replace("accept,,", 'accept,"a"b,')], 2, "expected after"),
        ([HEADER, LINE.replace("accept,,", f"accept,{'x' * 140_000},")], 2, "field limit"),
        ([HEADER, HEADER], 2, "threshold is 'threshold'"),
    ],
)
def test_what_is_refused_and_left_as_it_is(file, lines, line, fault):
    content = write(file, *lines)
    for use in (file.read, lambda: file.save(Verdict("P9", "abc", "accept")), lambda: file.resume([("P1", "abc")])):
        with pytest.raises(ValueError, match=f"line {line}: ") as caught:
            use()
        assert str(caught.value).startswith(str(file.path))
        assert fault in str(caught.value)
        assert "put it right" in str(caught.value)
    assert file.path.read_bytes() == content


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_another_encoding(file, encoding):
    content = write(file, HEADER, LINE, LINE.replace("accept,,", "accept,Läsion,"), encoding=encoding)
    with pytest.raises(ValueError, match=r"verdicts.csv, line \d: it is not in UTF-8"):
        file.save(Verdict("P9", "abc", "accept"))
    if encoding == "cp1252":
        with pytest.raises(ValueError, match="line 3"):
            file.read()
    assert file.path.read_bytes() == content


# ------------------------------------------------------------------------------------------------ writers and deaths


def test_a_write_that_fails_leaves_the_old_file(file, monkeypatch):
    old = file.save(Verdict("P1", "abc", "accept"))
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space"):
        file.save(Verdict("P2", "abc", "accept"))
    monkeypatch.undo()
    assert file.read() == [old]
    with pytest.raises(ValueError, match="surrogates"):
        file.save(Verdict("P2", "abc", "accept", "half of a sign: \ud83e"))
    assert file.read() == [old]
    assert {path.name for path in file.path.parent.iterdir()} <= {"verdicts.csv", ".verdicts.csv.lock"}


def test_a_file_that_another_program_holds(file, monkeypatch):
    file.save(Verdict("P1", "abc", "accept"))

    def held(*_):
        raise PermissionError(13, "The process cannot access the file")

    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(PermissionError, match=r"verdicts.csv cannot be written: close it .*cannot access") as caught:
        file.save(Verdict("P2", "abc", "accept"))
    assert isinstance(caught.value.__cause__, PermissionError)


def test_waits_for_another_writer_but_not_for_ever(file, monkeypatch):
    file.save(Verdict("P1", "abc", "accept"))
    monkeypatch.setattr(module, "SECONDS_TO_WAIT", 0.2)
    with FileLock(file.path.with_name(".verdicts.csv.lock")):
        with ThreadPoolExecutor(1) as pool, pytest.raises(TimeoutError):
            pool.submit(file.save, Verdict("P2", "abc", "accept")).result()
        assert names(file.read()) == [("P1", None, "accept")]  # reading needs no lock
    file.save(Verdict("P2", "abc", "accept"))
    assert len(file.read()) == 2


def test_several_notebooks_on_one_file(file):
    def review(reader):
        own = VerdictFile(file.path)
        for index in range(12):
            own.save(Verdict(f"P{reader}", "abc", "reject", threshold=0.5, voxel=(index, 0, 0)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(review, range(4)))
    assert sorted(names(file.read())) == [(f"P{reader}", index, "reject") for reader in range(4) for index in range(12)]


def _save_for_ever(path, pipe):
    file = VerdictFile(path)
    for index in range(100_000):
        file.save(Verdict("P1", "abc", "accept", "x" * 50_000, threshold=0.5, voxel=(index, 0, 0)))
        pipe.send(index)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start at once")
@pytest.mark.parametrize("saves", [0, 3, 8])
def test_a_kernel_that_is_killed_loses_nothing(file, saves):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(file.path, sender))
    process.start()
    sender.close()
    while receiver.recv() < saves:
        pass
    time.sleep(0.0007 * saves)  # in the middle of a later one
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    last = saves
    try:
        while True:
            last = receiver.recv()
    except EOFError:
        pass
    found = file.read()
    assert [item.voxel[0] for item in found] == list(range(len(found)))
    assert len(found) - last in (1, 2)  # a save may be killed before it says that it is done
    file.save(Verdict("P2", "abc", "accept"))  # the dead hold no lock
    assert len(file.read()) == len(found) + 1


# --------------------------------------------------------------------------------------------------- where to go on

CASES = [("P1", "a"), ("P2", "b"), ("P3", "c"), ("P4", "d")]


@pytest.mark.parametrize(
    ("touched", "expected"),
    [
        ([], 0),
        (["P1"], 1),
        (["P1", "P2"], 2),
        (["P3"], 3),
        (["P4"], 0),  # begins again at the end
        (["P1", "P4"], 1),
        (["P4", "P1"], 1),
        (["P2", "P3", "P4"], 0),
        (["P1", "P2", "P4", "P3"], 0),  # all are done
        (["P2?"], 1),  # only a candidate or a comment: not done
        (["P1", "P3?"], 2),
        (["P3?", "P1"], 1),
        (["P2", "P2?"], 2),  # a candidate of one that is done
        (["P2?", "P2"], 2),
        (["P4", "P3", "P1", "P4?"], 1),
        (["P9"], 0),  # not in the list
        (["P1", "P9"], 1),
        (["P2 of another map"], 0),
        (["P3?", "P1 of another map"], 2),
    ],
)
def test_the_case_to_go_on_with(file, monkeypatch, touched, expected):
    digits = dict(CASES)
    for hour, what in enumerate(touched):
        set_time(monkeypatch, hour)
        name = what[:2]
        if what.endswith("?"):
            file.save(Verdict(name, digits[name], "accept", **CANDIDATE))
        else:
            file.save(Verdict(name, "old" if "another" in what else digits.get(name, "z"), "reject"))
    assert file.resume(CASES) == expected


def test_the_case_touched_last_is_that_of_the_latest_time(file, monkeypatch):
    """Not that of the last row, nor of the text that sorts last: 20:00 in Tokyo is before 12:00 in Greenwich."""
    for hour, name in enumerate(["P1", "P3", "P1"]):
        set_time(monkeypatch, hour)
        file.save(Verdict(name, dict(CASES)[name], "", "so far"))
    assert names(file.read()) == [("P1", None, ""), ("P3", None, "")]
    assert file.resume(CASES) == 0
    line = "{},,so far,,,,,,,,,,2024-05-01T{},{}"
    write(file, HEADER, line.format("P2", "12:00:00+00:00", "b"), line.format("P3", "20:00:00+09:00", "c"))
    assert file.resume(CASES) == 1


def test_a_comment_alone_is_no_verdict_to_pass_over(file, monkeypatch):
    set_time(monkeypatch, 1)
    file.save(Verdict("P2", "b", "", "later"))
    set_time(monkeypatch, 2)
    file.save(Verdict("P1", "a", "accept"))
    assert file.resume(CASES) == 1


def test_no_cases(file):
    file.save(Verdict("P1", "abc", "accept"))
    assert file.resume([]) == 0
