from __future__ import annotations

import errno
import gzip
import json
import math
import os
import time
from pathlib import Path

import pytest
import torch

from ssmctb_monai import files
from ssmctb_monai.checks import check_file
from ssmctb_monai.files import (
    checksum,
    content_keys,
    is_undamaged,
    raise_from_environment,
    remove_abandoned,
    whole_file,
    write_json,
)


def test_json_in_a_new_folder(tmp_path):
    write_json({"a": [1, 2.5]}, tmp_path / "new" / "file.json")
    assert json.loads((tmp_path / "new" / "file.json").read_text(encoding="utf-8")) == {"a": [1, 2.5]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json({"a": 1}, path)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json({"a": math.nan}, path)

    def die(self, text, **keywords):
        self.write_bytes(text[:3].encode())
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", die)
    with pytest.raises(OSError, match="no space"):
        write_json({"a": 2}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}


def test_check_file(tmp_path):
    (tmp_path / "file").touch()
    assert check_file(str(tmp_path / "file"), "make it") == tmp_path / "file"
    for missing in (tmp_path, tmp_path / "other"):
        with pytest.raises(FileNotFoundError, match=f"There is no file {missing}: make it."):
            check_file(missing, "make it")


def test_whole_file_keeps_the_suffixes(tmp_path):
    with whole_file(tmp_path / "new" / "map.nii.gz") as unfinished:
        assert unfinished.name.startswith(".unfinished-")
        assert unfinished.name.endswith("map.nii.gz")
        assert unfinished.parent == tmp_path / "new"
        unfinished.write_text("all")
        assert not (tmp_path / "new" / "map.nii.gz").exists()
    assert (tmp_path / "new" / "map.nii.gz").read_text() == "all"
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whole_file_of_an_interrupted_write(tmp_path, error):
    def write():
        with whole_file(tmp_path / "map") as unfinished:
            unfinished.write_text("ha")
            raise error

    (tmp_path / "map").write_text("old")
    with pytest.raises(error):
        write()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("map", "old")]


def test_checksum(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")  # the example of FIPS 180-2
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checksum(tmp_path / "file") == expected


def test_whole_file_of_the_longest_name(tmp_path):
    name = "M" * 248 + ".nii.gz"
    with whole_file(tmp_path / name) as unfinished:
        unfinished.touch()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_only_abandoned_files_are_removed(tmp_path):
    (tmp_path / "maps").mkdir()
    old, fresh, other = tmp_path / "maps" / ".unfinished-1-a", tmp_path / ".unfinished-2-b", tmp_path / "a"
    old_folder, fresh_folder = tmp_path / ".unfinished-3", tmp_path / ".unfinished-4"
    for file in (old, fresh, other, old_folder / "maps" / "a", fresh_folder / "maps" / "a"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    aged = (old, other, old_folder / "maps" / "a", old_folder / "maps", old_folder, fresh_folder / "maps", fresh_folder)
    for path in aged:
        os.utime(path, (time.time() - 1e5,) * 2)
    remove_abandoned(tmp_path)
    assert [path.exists() for path in (old, old_folder, fresh, fresh_folder, other)] == [False, False, True, True, True]


def test_any_changed_bit_of_the_content_is_noticed(tmp_path):
    file = tmp_path / "entry.pt"
    torch.save({"image": torch.arange(1000.0)}, file)
    data = file.read_bytes()
    assert is_undamaged(file)
    start = data.index(torch.arange(1000.0).numpy().tobytes())
    for place in (start, start + 1999, start + 3999):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert not is_undamaged(file)
    for content in (b"", data[:-100], b"text"):
        file.write_bytes(content)
        assert not is_undamaged(file)
    assert not is_undamaged(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    ("cause", "is_raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError(), True),
        (OSError(errno.ENAMETOOLONG, "File name too long"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (ValueError("no volume"), False),
    ],
)
def test_errors_of_the_machine_are_told_from_those_of_a_file(cause, is_raised):
    error = RuntimeError("applying transform")
    error.__cause__ = OSError("A cannot be read")
    error.__cause__.__context__ = cause
    if is_raised:
        with pytest.raises(type(cause)):
            raise_from_environment(error)
    else:
        raise_from_environment(error)


def test_what_files_of_the_same_content_share(tmp_path):
    one, other = b"a" * 200_000, b"a" * 100_000 + b"b" + b"a" * 99_999  # which samples do not tell apart
    contents = {
        "one.nii": one,
        "copy.nii": one,
        "other.nii": other,
        "one.nii.gz": gzip.compress(one, 9, mtime=1),
        "copy.nii.gz": gzip.compress(one, 1, mtime=2),
        "other.nii.gz": gzip.compress(other),
        "cut.nii.gz": gzip.compress(one)[:-1],
        "empty": b"",
        "also_empty": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to("other.nii")
    keys = content_keys([*tmp_path.iterdir(), tmp_path, tmp_path / "absent"])
    groups: dict[object, set[str]] = {}
    for path, key in keys.items():
        groups.setdefault(key, set()).add(path.name)
    shared = sorted(sorted(group) for group in groups.values() if len(group) > 1)
    assert shared == [["copy.nii", "one.nii"], ["copy.nii.gz", "one.nii.gz"], ["link", "other.nii"]]


def test_only_files_that_may_be_copies_are_read(tmp_path, monkeypatch):
    for k in range(50):
        (tmp_path / f"{k}.nii").write_bytes(bytes([k]) * 100_000)
        (tmp_path / f"{k}.nii.gz").write_bytes(gzip.compress(bytes([k]) * 100_000))
    read = []
    monkeypatch.setattr(files, "_content_checksum", lambda path: read.append(path.name) or path.read_bytes())
    content_keys(tmp_path.iterdir())
    assert read == []
    (tmp_path / "copy.nii").write_bytes(bytes([7]) * 100_000)
    content_keys(tmp_path.iterdir())
    assert sorted(read) == ["7.nii", "copy.nii"]
