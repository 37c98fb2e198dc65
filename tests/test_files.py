from __future__ import annotations

import errno
import json
import math
import os
import time
from pathlib import Path

import pytest
import torch

from ssmctb_monai.checks import check_file
from ssmctb_monai.files import (
    checksum,
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
    for file in (old, fresh, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (time.time() - 1e5,) * 2)
    remove_abandoned(tmp_path)
    assert [file.exists() for file in (old, fresh, other)] == [False, True, True]


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
