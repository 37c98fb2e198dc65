import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from monai.networks.nets import AutoEncoder
from torch import nn

from ssmctb_monai.checkpoints import (
    Settings,
    beside,
    check_checkpoint,
    check_settings,
    describe_network,
    load_ensemble,
    load_settings,
    make_network,
    warn_of_trained_cases,
)
from ssmctb_monai.files import checksum
from ssmctb_monai.inferers import PlanesInferer, window_inferer
from ssmctb_monai.networks import insert_block
from ssmctb_monai.networks.blocks import SSPCAB, named_blocks
from ssmctb_monai.networks.nets import DRAEM, FuturePredictor, ReconstructionDetector

TINY = {"spatial_dims": 2, "in_channels": 2, "reconstructive_width": 2, "discriminative_width": 2, "block": "sspcab"}
NETWORK = {"_target_": "ssmctb_monai.networks.nets.DRAEM", **TINY}
GIVEN = {
    "system": "draem",
    "modalities": ["flair", "t1c"],
    "spatial_dims": 2,
    "spacing": [2, 2, 2.0],
    "roi_size": [32, 32, 1],
    "background": "constant",
    "smoothing": 3,
    "block": "sspcab",
}
OLD = {  # as version 0.1.0 wrote it
    "network": "draem",
    "modalities": ["flair", "t1ce"],
    "spatial_dims": 2,
    "spacing": [2.0, 2.0, 2.0],
    "region": "brain",
    "smoothing": [3.0, 3.0, 6.0],
    "block": "sspcab",
    "block_in": "both",
    "reconstructive_width": 2,
    "discriminative_width": 2,
}


@pytest.fixture
def checkpoint(tmp_path):
    """A network and its settings."""
    file = tmp_path / "best.pt"
    torch.save(DRAEM(**TINY).state_dict(), file)
    Settings(**GIVEN, network=NETWORK).save(file, checksum(file))
    return file


def load(file):
    return load_settings(file, {**GIVEN, "spacing": [9, 9, 9]})


def rewrite(checkpoint, **changes):
    content = json.loads(beside(checkpoint, "settings").read_text())
    beside(checkpoint, "settings").write_text(json.dumps({**content, **changes}))


def test_files_beside_a_checkpoint():
    assert beside(Path("x", "best.pt"), "settings") == Path("x", "best_settings.json")
    assert beside("x/best.pt", "record") == Path("x", "best_record.json")


# ------------------------------------------------------------------------------------------------------------ settings


def test_settings_come_back(checkpoint):
    settings = load(checkpoint)
    assert settings == Settings(**GIVEN, network=NETWORK, sha256=checksum(checkpoint))
    assert (settings.modalities, settings.spacing, settings.smoothing) == (("flair", "t1ce"), (2, 2, 2), (3, 3, 3))
    assert settings.region == "brain"
    make_network(settings.network).load_state_dict(torch.load(checkpoint, weights_only=True))
    rewrite(checkpoint, of_a_later_version=1)
    assert load(checkpoint) == settings
    content = json.loads(beside(checkpoint, "settings").read_text())
    del content["modality_dropout"], content["context"]  # as an earlier version wrote it
    beside(checkpoint, "settings").write_text(json.dumps(content))
    assert load(checkpoint) == settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spacing": [0, 0, 0]}, r"spacing must be three positive numbers, got \[0, 0, 0\]"),
        ({"spacing": [1, 1]}, "spacing must be three"),
        ({"spacing": 2.0}, "spacing must be a list"),
        ({"spacing": [True, 1, 1]}, "spacing must be three"),
        ({"roi_size": [32, 32, 0.5]}, "roi_size must be three whole numbers"),
        ({"smoothing": -1}, "smoothing must be three numbers of at least 0"),
        ({"smoothing": "3"}, "smoothing must be a list"),
        ({"modalities": []}, "Give one or more"),
        ({"modalities": 3}, "modalities must be a list"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3"),
        ({"background": "black"}, "background must be one of constant, skull, noise, got 'black'"),
        ({"block": 3}, "block must be a name, got 3"),
        ({"system": None}, "system must be a name"),
        ({"sha256": 5}, "sha256 must be a text"),
        ({"context": [0]}, "context must be whole numbers"),
        ({"context": [-1], "modality_dropout": 0.5}, r"context \[-1\] and modality_dropout 0.5 do not"),
        ({"context": [-1], "spatial_dims": 3}, r"context \[-1\] is of networks in 2D: leave it out in 3D"),
        (
            {"context": [-1], "network": NETWORK},
            r"context \[-1\] is of networks that see .*, not of ssmctb.*DRAEM: leave",
        ),
        ({"modality_dropout": 2}, r"modality_dropout must be in \[0, 1\], got 2"),
        ({"modality_dropout": [0.5, 0]}, "modality_dropout must be one number for all modalities behind the first"),
    ],
)
def test_values_of_another_kind(checkpoint, changes, words):
    with pytest.raises(ValueError, match=words):
        Settings(**{**GIVEN, **changes})
    rewrite(checkpoint, **changes)
    with pytest.raises(ValueError, match=rf"best_settings\.json holds no settings of a network: {words}"):
        load(checkpoint)


@pytest.mark.parametrize("text", ["", '{"spacing": [2.0,', "[]", "{}", '{"network": {}}', '{"network": "unet"}'])
def test_a_file_of_something_else(checkpoint, text):
    beside(checkpoint, "settings").write_text(text)
    with pytest.raises(ValueError, match=r"best_settings\.json"):
        load(checkpoint)


def test_modalities_that_a_scan_may_lack():
    four = {**GIVEN, "modalities": ["flair", "t1ce", "t1", "t2"]}
    assert Settings(**four).optional_modalities == ()
    assert Settings(**four, modality_dropout=0.5).optional_modalities == ("t1ce", "t1", "t2")
    settings = Settings(**four, modality_dropout=[0, 0.5, 0, 1])
    assert settings.optional_modalities == ("t1ce", "t2")
    for prob in (0, [0, 0, 0, 0], [0, 1.0, 0, 0.5]):
        assert settings.check_dropout(prob) == prob
    with pytest.raises(ValueError, match=r"needs t1, which --modality_dropout 1\.0 leaves out: take one"):
        settings.check_dropout(1.0)


def test_modalities_are_not_chosen_by_an_override(checkpoint):
    rewrite(checkpoint, modality_dropout=0.5)
    settings = load(checkpoint)
    assert check_settings(settings, checkpoint, modalities=["flair", "t1ce"]).optional_modalities == ("t1ce",)
    with pytest.raises(
        ValueError, match=r"trained with modalities \['flair', 't1ce'\], not with modalities \['flair'\]"
    ):
        check_settings(settings, checkpoint, modalities=["flair"])


def test_file_of_version_0_1(checkpoint):
    beside(checkpoint, "settings").write_text(json.dumps(OLD))
    settings = load(checkpoint)
    assert (settings.system, settings.block, settings.smoothing) == ("draem", "sspcab", (3, 3, 6))
    assert (settings.roi_size, settings.background, settings.sha256) == ((96, 96, 1), "constant", None)  # the defaults
    assert (settings.planes, settings.normal_score) == (("axial",), None)  # as it worked
    assert settings.network == {**NETWORK, "block_in": "both"}
    beside(checkpoint, "settings").write_text(json.dumps({**OLD, "region": "head"}))
    assert load(checkpoint).background == "noise"


@pytest.mark.parametrize(
    ("old", "system"),
    [
        ({"network": "autoencoder", "strides": [2, 2, 2, 2, 1], "score": "l2"}, "AutoEncoder"),
        ({"network": "mae", "masking_ratio": 0.5, "num_heads": [2, 4], "roi_size": [32, 32, 1]}, "MaskedAutoencoder"),
    ],
)
def test_overlays_of_version_0_1(checkpoint, old, system):
    content = {name: value for name, value in OLD.items() if "width" not in name and name != "block_in"}
    beside(checkpoint, "settings").write_text(json.dumps({**content, "score": "l1", **old}))
    network = make_network(load(checkpoint).network)
    assert type(network.network).__name__ == system
    assert network.score == old.get("score", "l1")
    assert [type(block) for block in named_blocks(network).values()] == [SSPCAB]
    assert network.eval()(torch.rand(1, 2, 32, 32)).shape == (1, 1, 32, 32)


def test_nothing_is_known_of_the_training(tmp_path):
    settings = load(tmp_path / "model.pt")
    assert settings.network is None
    assert check_settings(settings, tmp_path / "model.pt", spacing=[4, 4, 4]).spacing == (4, 4, 4)


# ------------------------------------------------------------------------------------------------------- what is given


def test_equal_settings_pass(checkpoint):
    settings = load(checkpoint)
    given = {**GIVEN, "spacing": (2, 2, 2), "smoothing": [3.0, 3.0, 3.0]}
    assert check_settings(settings, checkpoint, **given) == settings
    assert check_settings(settings, checkpoint, background="skull").background == "skull"  # the same region


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("modalities", ["t1ce"], r"modalities \['flair', 't1ce'\], not with modalities \['t1ce'\]"),
        ("spacing", [1, 1, 1], r"spacing \[2, 2, 2.0\], not with spacing \[1, 1, 1\]"),
        ("roi_size", [64, 64, 1], r"roi_size \[32, 32, 1\], not with"),
        ("background", "noise", "region brain, not with region head"),
        ("block", None, "block sspcab, not with block none"),
        ("system", "mae", "system draem, not with system mae"),
        ("spatial_dims", 3, "spatial_dims 2, not with spatial_dims 3"),
    ],
)
def test_other_settings_are_refused(checkpoint, name, value, words):
    with pytest.raises(ValueError, match=rf"best\.pt was trained with {words}.* best_settings\.json says: leave"):
        check_settings(load(checkpoint), checkpoint, **{name: value})


def test_members_of_an_ensemble_see_slices_with_their_own_context(checkpoint, tmp_path):
    network, file = {"spatial_dims": 2, "in_channels": 6, "out_channels": 2, "channels": [4, 8]}, tmp_path / "future.pt"
    torch.save(FuturePredictor(**network).state_dict(), file)
    described = {"_target_": "ssmctb_monai.networks.nets.FuturePredictor", **network}
    Settings(**{**GIVEN, "system": "future", "context": [-2, 1]}, network=described).save(file, checksum(file))
    settings, device = load(checkpoint), torch.device("cpu")
    ((member, inferer),) = load_ensemble([file], settings, device).items()
    volume = torch.rand(1, 2, 32, 32, 5)
    with torch.no_grad():
        torch.testing.assert_close(
            inferer(volume, member), window_inferer(2, (32, 32, 1), "axial", [-2, 1])(volume, member)
        )
    (alone,) = load_ensemble([checkpoint], replace(settings, system="mae"), device).values()
    assert type(alone) is PlanesInferer


# ------------------------------------------------------------------------------------------------------- a network only


@pytest.mark.parametrize(
    "network",
    [
        {"_target_": "os.system", "command": "true"},
        {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
        {"_target_": "ssmctb_monai.networks.insertion.locate", "path": "os"},
        {"_target_": "monai.networks.nets.HoVerNet", "pretrained_url": "https://example.org/weights.pt"},
        {**NETWORK, "block": "$__import__('os').system('true')"},
        {**NETWORK, "block": "@network"},
        {**NETWORK, "block": {"_target_": "subprocess.run", "args": "true"}},
        {**NETWORK, "block": [{"_target_": 5}]},
        {"_target_": "ssmctb_monai.networks.nets.Nothing"},
    ],
)
def test_no_code_is_run(checkpoint, network):
    rewrite(checkpoint, network=network)
    with pytest.raises(ValueError, match=r"best_settings\.json holds no settings of a network: .* is no "):
        load(checkpoint)


def test_description_of_a_network_with_networks_in_it():
    backbone = partial(AutoEncoder, spatial_dims=2, in_channels=1, out_channels=1, channels=(4, 8), strides=(2, 2))
    block = partial(insert_block, network=backbone, block="sspcab", sample=[1, 1, 16, 16])
    description = describe_network(
        partial(ReconstructionDetector, spatial_dims=2, in_channels=1, network=block, score="l2")
    )
    assert description == json.loads(json.dumps(description))
    assert description["_target_"] == "ssmctb_monai.networks.nets.ReconstructionDetector"
    assert description["network"]["_target_"] == "ssmctb_monai.networks.insert_block"
    assert description["network"]["network"]["channels"] == [4, 8]
    network = make_network(description)
    assert network.score == "l2"
    assert [type(block) for block in named_blocks(network).values()] == [SSPCAB]
    with pytest.raises(TypeError, match=r'plain data, got Identity.*"_mode_": "callable"'):
        describe_network(partial(ReconstructionDetector, spatial_dims=2, in_channels=1, network=nn.Identity()))
    with pytest.raises(ValueError, match=r"There is no network x\.y"):
        make_network({"_target_": "x.y"})


# ------------------------------------------------------------------------------------------------------ the checkpoint


def test_checkpoint_that_is_whole(checkpoint, caplog):
    with caplog.at_level("INFO"):
        assert check_checkpoint(str(checkpoint), load(checkpoint)) == checkpoint
    assert f"Using the checkpoint {checkpoint}." in caplog.text
    rewrite(checkpoint, sha256=None)  # of an earlier version
    assert check_checkpoint(checkpoint, load(checkpoint)) == checkpoint


def test_exchanged_or_damaged_checkpoint(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"best\.pt is not the file that best_settings\.json belongs to"):
        check_checkpoint(checkpoint, load(checkpoint))


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04"])
def test_checkpoint_that_is_none(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pt is damaged, or no checkpoint"):
        check_checkpoint(tmp_path / "model.pt")
    torch.save([1], tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt holds no state dict"):
        check_checkpoint(tmp_path / "model.pt")


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.pt: train first, or name a checkpoint by --ckpt_file"):
        check_checkpoint(tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=rf"writes below {tmp_path}/trained\.$"):
        check_checkpoint(tmp_path / "model.pt", bundle_root=tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").touch()
    with pytest.raises(
        FileNotFoundError, match=rf"below {tmp_path}/trained, and {tmp_path}/models/model\.pt is shipped"
    ):
        check_checkpoint(tmp_path / "model.pt", bundle_root=tmp_path)


def test_cases_that_a_checkpoint_was_trained_on(tmp_path, caplog):
    files = [tmp_path / name for name in ("first.pt", "second.pt", "old.pt", "bare.pt")]
    for file, content in zip(files, ({"cases": ["a", "b"]}, {"cases": ["c", "d", "e"]}, {}), strict=False):
        beside(file, "record").write_text(json.dumps(content))
    assert warn_of_trained_cases(files, ["x", "y"]) == []
    assert not caplog.records
    assert warn_of_trained_cases(files, ["x", "e", "y", "c"]) == [f"{files[1]} was trained on 2 of these 4 cases"]
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "WARNING",
        f"{files[1]} was trained on 2 of these 4 cases, so that it may look better than it is: e, c.",
    )
