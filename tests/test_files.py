from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ssmctb_monai.checks import check_file
from ssmctb_monai.files import checksum, whole_file, write_json


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
