from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ssmctb_monai.checks import check_file
from ssmctb_monai.files import write_json


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
