import json

import monai.bundle
import pytest
from monai.bundle import ConfigParser

from ssmctb_monai.options import configuration, differences

CONFIG = {
    "imports": ["$import ssmctb_monai.options as options"],
    "initialize": ["$options.check_options()"],
    "folder": "$'here'",
    "resume": False,
    "rate": 0.1,
    "spacing": [2.0, 2.0],
    "unused": 1,
    "part": {"inner": {"_target_": "dict", "width": 2}, "other": 3},
    "loader": {"_target_": "monai.data.DataLoader", "dataset": "@spacing", "batch_size": 2},
    "inferer": {"_target_": "ssmctb_monai.inferers.window_inferer", "spatial_dims": 3, "roi_size": [8, 8, 8]},
    "network": {"_target_": "ssmctb_monai.networks.nets.DRAEM", "_mode_": "callable"},
    "made": ["@folder", "@resume", "@rate", "@part#inner", "@loader", "@inferer", "@network"],
    "training": ["$print(@made)"],
}


@pytest.fixture
def run(tmp_path):
    """Runs the configuration, with an overlay where there is one."""

    def run(overlay=None, **overrides):
        files = []
        for name, content in {"train": CONFIG, **({"overlay": overlay} if overlay else {})}.items():
            files.append(str(tmp_path / f"{name}.json"))
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        (tmp_path / "metadata.json").write_text("{}")
        monai.bundle.run("training", config_file=files, **overrides)

    return run


def refused(run, match, **overrides):
    with pytest.raises(RuntimeError) as caught:
        run(**overrides)
    assert isinstance(caught.value.__cause__, ValueError)
    assert match in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"folder": 2021},
        {"resume": "False"},
        {"rate": 1, "spacing": [1, 1]},
        {"spacing": 3},
        {"rate": [[1, 2], [3, 4]]},
        {"rate": "$1 / 3"},
        {"part#inner#width": 3},
        {"part::inner::width": 3},
        {"loader#num_workers": 0},  # an argument that the configuration leaves to its default
        {"loader#drop_last": True},  # one that the class hands on to its base
        {"inferer#sw_device": "cpu"},  # one that the function hands on
        {"part#inner": {"_target_": "dict"}},
    ],
)
def test_known_options(run, capsys, overrides):
    run(**overrides)
    assert ("'here'" in capsys.readouterr().out) == ("folder" not in overrides)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("foldr", "training has no option --foldr, or makes no use of it. Did you mean --folder?"),
        ("width", "Did you mean --part#inner#width?"),
        ("unused", "makes no use of it. There are --folder, --resume, --rate, --spacing"),
        ("part#other", "makes no use of it"),
        ("network#perturbation", "no option --network#perturbation"),  # of its base, to which the class hands none on
        ("loader#batchsize", "Did you mean --loader#batch_size"),
    ],
)
def test_unknown_options(run, name, advice):
    refused(run, advice, **{name: 1})


def test_options_of_an_overlay(run):
    run({"own": 1, "+made": ["@own"]}, own=2)
    refused(run, "no option --own", own=2)
    refused(lambda **given: run({"own": 1}, **given), "makes no use of it", own=2)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("resume", "maybe", "--resume must be true or false, got 'maybe'"),
        ("rate", "fast", "--rate must be of numbers, as the default 0.1 is, got 'fast'"),
        ("rate", True, "--rate must be of numbers"),
        ("spacing", "wide", "--spacing must be of numbers"),
        ("spacing", [1, "a"], "--spacing must be of numbers"),
    ],
)
def test_values_of_another_kind(run, name, value, words):
    refused(run, words, **{name: value})


def test_configuration_sees_overrides():
    parser = ConfigParser({**CONFIG, "seen": "$options.configuration(['rate', 'part', 'none'])"})
    parser["part#inner#width"] = 5
    seen = parser.get_parsed_content("seen")
    assert seen == {"rate": 0.1, "part": {"inner": {"_target_": "dict", "width": 5}, "other": 3}, "none": None}
    with pytest.raises(RuntimeError, match="expressions of a configuration"):
        configuration(["rate"])


def test_differences():
    before = {"rate": 0.1, "part": {"inner": {"width": 2}}, "list": [1, 2], "gone": 1}
    now = {"rate": 0.1, "part": {"inner": {"width": 3, "depth": 1}}, "list": [1, 3]}
    assert differences(before, now) == {
        "part#inner#width": (2, 3),
        "part#inner#depth": (None, 1),
        "list": ([1, 2], [1, 3]),
        "gone": (1, None),
    }
    assert differences(before, before) == {}
