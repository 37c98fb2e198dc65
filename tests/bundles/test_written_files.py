"""The command that writes the bundles' files from their sources."""

import json
import sys

import pytest

from bundles import __main__ as command


def test_files_are_those_of_the_sources():
    """`python -m bundles` writes them."""
    outdated = [path for path, text in command.all_contents() if path.read_text(encoding="utf-8") != text]
    assert outdated == []


@pytest.mark.parametrize(("bundle", "minutes"), [("brats2d", 51), ("brats3d", 36)])
def test_docs_say_how_long_the_shipped_network_was_trained(bundle, minutes):
    """3035 and 2189 s, by its record."""
    text = (command.ROOT / bundle / "docs/README.md").read_text(encoding="utf-8")
    assert f"({minutes} minutes on one CPU core" in text


def test_check_writes_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "same.json").write_text("{}\n")
    (tmp_path / "other.json").write_text("{}\n")
    contents = {tmp_path / "same.json": "{}\n", tmp_path / "other.json": "[]\n", tmp_path / "new.json": "1\n"}
    monkeypatch.setattr(command, "all_contents", contents.items)
    monkeypatch.setattr(command, "ROOT", tmp_path / "bundles")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["bundles", *words])
        with pytest.raises(SystemExit) as caught:
            command.main()
        return caught.value.code, capsys.readouterr().out.split()

    assert run("--check") == (1, ["other.json", "new.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "same.json"]
    assert run() == (0, ["other.json", "new.json"])
    assert {path: path.read_text() for path in tmp_path.iterdir()} == contents
    assert run("--check") == (0, [])


def test_dictionaries_are_merged_and_other_values_replaced():
    one = {"network": {"width": 8, "block": "sspcab"}, "keys": ["image", "label"], "rate": 1}
    other = {"network": {"width": None}, "keys": ["image"], "seed": 0}
    merged = {"network": {"width": None, "block": "sspcab"}, "keys": ["image"], "rate": 1, "seed": 0}
    assert command.merged(one, other) == merged
    assert one["network"]["width"] == 8


def test_what_nothing_refers_to_is_left_out():
    imports = ["$import math", "$import torch", "$from pathlib import Path", "$import ssmctb_monai.data as data"]
    config = {
        "imports": imports,
        "run": ["$@trainer.run()"],
        "trainer": {"_target_": "torch.Trainer", "loss": "@losses#first"},
        "losses": {"first": "$math.floor(@rate) + data.load(Path('x'))"},
        "rate": 1,
        "unused": "@spacing",
        "spacing": 2,
    }
    found = command.pruned(config, {"imports", "run"})
    assert list(found) == ["imports", "run", "trainer", "losses", "rate"]
    assert found["imports"] == [imports[0], *imports[2:]]


def test_options_stand_before_parts():
    config = {"run": "%training", "part": {"a": 1}, "rate": 1, "list": [{"a": 1}], "spacing": [2, 2], "imports": []}
    assert list(command.ordered(config)) == ["imports", "rate", "spacing", "part", "list", "run"]


def test_copies_of_the_sources():
    sources = {"system": {"network": {"width": 8}}}
    assert command.filled({"a": ["b"], "c": {"d": "%sources#system#network"}, "run": "%training"}, sources) == {
        "a": ["b"],
        "c": {"d": {"width": 8}},
        "run": "%training",
    }


def test_json_has_on_a_line_what_fits_there():
    config = {"short": {"a": [1, 2]}, "long": {"text": "x" * 60, "list": ["y" * 40, {"z": None}]}, "empty": []}
    text = command.as_json(config)
    assert json.loads(text) == config
    assert text.splitlines()[1] == '    "short": {"a": [1, 2]},'
    assert max(map(len, text.splitlines())) <= 120
    for width in range(20, 130):  # the widest that fits, and no wider
        line = command.as_json({"key": {"a": "x" * width, "b": 1}}).splitlines()[1]
        assert (line.endswith("{")) == (len('    "key": {"a": "", "b": 1},') + width > 120)
