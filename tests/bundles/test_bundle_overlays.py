"""Overlays of both bundles: reconstruction networks are trained, evaluated and applied by the workflows of DRAEM."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import OVERLAYS, ROI_SIZES, ROOT, folders, messages, run, run_on_two, workflows, write_case
from monai.bundle import ConfigParser
from torch import nn

from ssmctb_monai.checkpoints import load_settings, make_network
from ssmctb_monai.files import write_json
from ssmctb_monai.losses import MaskedReconstructionLoss, SelfSupervisedLoss
from ssmctb_monai.metrics import load_thresholds
from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB, SelfSupervisedBlock
from ssmctb_monai.networks.error_maps import error_map
from ssmctb_monai.networks.insertion import InsertedBlock
from ssmctb_monai.reports import report as report_module
from ssmctb_monai.transforms import RobustScaleIntensity

MODALITIES = ["flair", "t1ce"]
SMALL = {  # what training is told, and evaluation and inference are not
    "mae": {"modalities": MODALITIES, "system#backbone#num_layers": 1, "system#backbone#decoder_num_layers": 1},
    "autoencoder": {"modalities": MODALITIES, "block": "sspcab"},
}
LOSSES = {"mae": MaskedReconstructionLoss, "autoencoder": nn.L1Loss}
RECONSTRUCTING = [path for path in OVERLAYS if path.stem in SMALL]
AUTOENCODER, MAE, AUTOENCODER_3D, MAE_3D = RECONSTRUCTING
STRIDES = json.loads(AUTOENCODER.read_text(encoding="utf-8"))["system"]["backbone"]["strides"]
PLACES = {"mae": "network.patch_embedding", "autoencoder": f"network.decode.decode_{len(STRIDES) - 2}.conv.conv"}
SCORES = ["l1", "l2", "ssim", "msgms", "block"]


def named(path):
    return f"{path.parts[-3]}/{path.stem}"


@pytest.fixture(
    scope="module",
    params=[AUTOENCODER, MAE, *(pytest.param(path, marks=pytest.mark.process) for path in (AUTOENCODER_3D, MAE_3D))],
    ids=lambda path: named(path),
)
def overlay(request):
    """Name and bundle of each overlay, the files of each workflow, and what training is told."""
    path = request.param
    return SimpleNamespace(
        name=path.stem,
        bundle=path.parts[-3],
        dims={"brats2d": 2, "brats3d": 3}[path.parts[-3]],
        given=SMALL[path.stem],
        **{name: [path.with_name(f"{name}.json"), path] for name in ("train", "evaluate", "inference")},
    )


def only(path):
    return pytest.mark.parametrize("overlay", [path], ids=named, indirect=True)


def small_training(overlay, folder, dataset_dir):
    """Overrides of a training with two patients for validation and four for the test."""
    places = {name: str(path) for name, path in folders(folder).items()}
    shares = {"dataset_dir": str(dataset_dir), "validation_share": 2, "test_share": 4}
    return {**places, **shares, "num_samples": 2, "roi_size": ROI_SIZES[overlay.bundle], **overlay.given}


@pytest.fixture(scope="module")
def trained(overlay, dataset_dir, tmp_path_factory):
    """Two epochs, those of the masked autoencoder by the command that users copy."""
    folder = tmp_path_factory.mktemp("trained")
    given = {**small_training(overlay, folder, dataset_dir), "max_epochs": 2}
    output = ""
    if overlay.name == "mae":
        result = run(overlay.bundle, "training", overlay.name, **given)
        assert result.returncode == 0, result.stderr
        output = result.stdout
    else:
        with workflows() as make:
            make(overlay.train, "train", **given).run()
    return SimpleNamespace(ckpt=folder / "ckpt", cache=folder / "cache", output=output)


@pytest.fixture
def training(overlay, workflow, trained, dataset_dir, tmp_path):
    """Makes the workflow of a training that validates nothing, with the cache of the other one."""

    def make(name="run", **overrides):
        quick = {"cache_dir": str(trained.cache), "train#handler#validation#_disabled_": True}
        given = {**small_training(overlay, tmp_path / name, dataset_dir), "max_epochs": 1, **quick, **overrides}
        return workflow(overlay.train, "train", **given)

    return make


@pytest.fixture
def using(overlay, workflow, trained, dataset_dir, monkeypatch, tmp_path):
    """Makes the workflow of an evaluation, with few resamples and without the page, or of inference."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(report_module, "render_html", lambda *arguments: "")

    def make(name="evaluate", **overrides):
        given = {
            "ckpt_file": str(trained.ckpt / "model.pt"),
            "dataset_dir": str(dataset_dir),
            "output_dir": str(tmp_path / "out"),
        }
        given |= {"evaluation#settings#resamples": 10} if name == "evaluate" else {}
        return workflow(getattr(overlay, name), "infer", **{**given, **overrides})

    return make


@pytest.fixture
def unsmoothed(trained, tmp_path):
    """The checkpoint, as if its maps had never been smoothed, averaged over planes, calibrated or scaled."""
    shutil.copytree(trained.ckpt, tmp_path / "ckpt")
    settings = json.loads((tmp_path / "ckpt/model_settings.json").read_text(encoding="utf-8"))
    raw = {"smoothing": 0, "planes": None, "normal_score": None}
    write_json({**settings, **raw}, tmp_path / "ckpt/model_settings.json")
    return {"ckpt_file": str(tmp_path / "ckpt/model.pt"), "raw_scores": True}


@pytest.fixture
def two_cases(trained, tmp_path):
    """Datalist of two cases of the test part, one without lesion."""
    split = json.loads(next(trained.ckpt.glob("datalist_*.json")).read_text(encoding="utf-8"))
    split = {"test": [entry for entry in split["test"] if entry["case_id"] in ("Made_003", "Made_004")]}
    (tmp_path / "two_cases.json").write_text(json.dumps(split))
    return str(tmp_path / "two_cases.json")


def load(path):
    return torch.load(path, weights_only=True)


def blocks_of(network):
    return [module for module in network.modules() if isinstance(module, SelfSupervisedBlock)]


def check_refused(make, *words):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        make()
    assert all(word in messages(caught.value) for word in words), messages(caught.value)


# ------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize("path", [MAE, AUTOENCODER, AUTOENCODER_3D])
@pytest.mark.parametrize("name", ["max_epochs", "train#trainer#max_epochs"])
def test_epochs_reach_all_that_depends_on_them(path, name):
    """Interval of the validation and learning rates are shares of their number."""
    shares, rates = [], []
    for given in (300, 120):
        parser = ConfigParser()
        parser.read_config([str(path.with_name("train.json")), str(path)])
        parser[name] = given
        parser["optimizer"] = None
        parser["lr_scheduler#_target_"] = "dict"
        assert parser.get_parsed_content("train#trainer#max_epochs") == given
        shares.append(parser.get_parsed_content("val_interval") / given)
        rate = parser.get_parsed_content("lr_scheduler")["lr_lambda"]
        rates.append([rate(share * given) for share in (0.5, 0.75, 0.9)])
    assert shares[0] == shares[1] < 1
    assert rates[0] == pytest.approx(rates[1])
    assert rates[0][0] > rates[0][2] > 0


def test_default_checkpoint_is_that_of_training(overlay):
    def content(files, key):
        parser = ConfigParser()
        parser.read_config([str(file) for file in files])
        return Path(parser.get_parsed_content(key))

    folder = content(overlay.train, "ckpt_dir")
    assert folder == Path("bundles", overlay.bundle, "trained", overlay.name)
    for files in (overlay.evaluate, overlay.inference):
        assert content(files, "ckpt_file") == folder / "model.pt"


def test_an_evaluation_and_inference_have_folders_of_their_own(overlay):
    """Both may write maps of the same cases."""
    found = []
    for files in (overlay.evaluate, overlay.inference, overlay.evaluate[:1], overlay.inference[:1]):
        parser = ConfigParser()
        parser.read_config([str(file) for file in files])
        found.append(parser.get_parsed_content("output_dir"))
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("block", "kind", "score"),
    [
        ("ssmctb", SSMCTB, "l1"),
        ("sspcab", SSPCAB, "msgms"),
        ("sspcab", SSPCAB, "block"),
        ("none", None, "ssim"),
        (None, None, "l2"),
        (None, None, "block"),
    ],
)
def test_block_and_score(overlay, block, kind, score):
    """One block: in a transformer before its first layer, in an autoencoder after the penultimate convolution."""
    parser = ConfigParser()
    parser.read_config([str(file) for file in overlay.train])
    parser["block"], parser["system#network#score"] = block, score
    if score == "block" and kind is None:
        check_refused(lambda: parser.get_parsed_content("network_def"), "contains no SSPCAB or SSMCTB block")
        return
    detector = parser.get_parsed_content("network_def")
    assert detector.score == score
    assert [type(module) for module in blocks_of(detector)] == ([kind] if kind else [])
    places = [name for name, module in detector.named_modules() if isinstance(module, InsertedBlock)]
    assert places == ([PLACES[overlay.name]] if kind else [])
    image = torch.rand(1, 1, *parser["roi_size"][: overlay.dims])
    with torch.no_grad():
        assert detector.eval()(image).shape == image.shape


def test_unknown_score(training):
    content = training(**{"system#network#score": "l3"}).parser.get_parsed_content
    check_refused(lambda: content("network_def"), "l3", ", ".join(SCORES))


# ------------------------------------------------------------------------------------------------------------ training


def test_training_writes_what_the_network_must_be_used_with(overlay, trained):
    settings = load_settings(trained.ckpt / "model.pt", {})
    assert (settings.system, settings.modalities, settings.region) == (overlay.name, tuple(MODALITIES), "brain")
    assert settings.network["score"] == "l1"
    assert settings.network["network"]["block"] == settings.block == overlay.given.get("block", "ssmctb")
    backbone = settings.network["network"]["network"]
    assert backbone["_target_"].startswith(("monai.networks.nets.", "ssmctb_monai.networks.nets."))
    assert backbone.get("num_layers", 1) == 1


def test_thresholds_of_the_reconstruction_error(overlay, trained):
    thresholds = load_thresholds(trained.ckpt / "model_thresholds.json")
    assert list(thresholds) == ["model", "baseline_flair", "baseline_t1ce"]
    assert thresholds["model"].value > 0.05
    config = json.loads(overlay.train[0].read_text(encoding="utf-8"))
    assert thresholds["model"].false_positive_rate == config["false_positive_rate"]
    assert re.fullmatch(r"\d+ voxels in lesion-free regions of 2 cases", thresholds["model"].source)


def test_training_trains_everything(overlay, trained):
    """The block, too; only what MONAI's layers hold for cross-attention stands idle."""
    network = make_network(load_settings(trained.ckpt / "model.pt", {}).network)
    weights, before = load(trained.ckpt / "model.pt"), network.state_dict()
    assert weights.keys() == before.keys()
    network.load_state_dict(weights)
    steps = load(trained.ckpt / "training.pt")["optimizer"]["state"]
    parameters = dict(network.named_parameters())
    trainable = {index: name for index, (name, value) in enumerate(parameters.items()) if value.requires_grad}
    idle = {name for index, name in trainable.items() if index not in steps}
    assert {name for name in idle if "cross_attn" not in name} == set()
    assert any(".block." in name for name in trainable.values())


@only(MAE)
def test_command_logs_loss_and_metrics(trained):
    lines = re.findall(r"Epoch (\d)/2 \| loss ([\d.]+) \(task ([\d.]+) \+ block ([\d.]+)\) \|", trained.output)
    assert [line[0] for line in lines] == ["1", "2"]
    for _, loss, task, block in lines:
        assert float(block) > 0
        assert float(loss) == pytest.approx(float(task) + 0.1 * float(block), abs=2e-4)
    assert float(lines[1][2]) < 0.9 * float(lines[0][2])  # it learns
    assert re.findall(r"Validation, epoch (\d) .*pixel_average_precision [\d.]+", trained.output) == ["0", "1", "2"]


def test_images_are_their_own_targets(overlay, training):
    """No anomaly is put into them."""
    parser = training().parser
    (batch, *_) = parser.get_parsed_content("train#dataloader")
    assert not batch.keys() & {"image_clean", "anomaly_mask"}
    assert batch["image"].shape[1:] == (2, *parser["roi_size"][: overlay.dims])
    prepared, target = parser.get_parsed_content("train#trainer").prepare_batch(batch, "cpu")
    assert torch.equal(prepared, batch["image"])
    assert torch.equal(target, batch["image"])


@only(AUTOENCODER)
def test_weight_of_the_block_loss(training):
    losses, weights = {}, {}
    for weight in (0, 0.1, 10):
        made = training(f"weight {weight}", block_weight=weight, learning_rate=0.01)
        made.run()
        loss = made.parser.get_parsed_content("loss")
        assert loss.parts["block"] > 1e-4
        total = torch.as_tensor(made.parser.get_parsed_content("train#trainer").state.output["loss"])
        torch.testing.assert_close(total, loss.parts["task"] + weight * loss.parts["block"])
        losses[weight] = total
        weights[weight] = blocks_of(made.parser.get_parsed_content("network"))[0].convolution.bias
    assert losses[0] < losses[10]
    assert not torch.equal(weights[0], weights[0.1])


def test_training_without_a_block(overlay, training, using, tmp_path, caplog):
    made = training(block="none")
    with caplog.at_level("INFO"):
        made.run()
    loss = made.parser.get_parsed_content("loss")
    assert type(loss.loss) is LOSSES[overlay.name]
    assert loss.parts["block"] == 0
    assert re.search(r"Epoch 1/1 \| loss [\d.]+ ", caplog.text)
    checkpoint = tmp_path / "run/ckpt/model.pt"
    for given in ({}, {"block": "none"}, {"block": None}):
        content = using(ckpt_file=str(checkpoint), **given).parser.get_parsed_content
        assert content("checkpoint") == checkpoint
        content("network_def").load_state_dict(load(checkpoint))
        assert blocks_of(content("network_def")) == []


@only(MAE)
def test_loss_of_the_block_is_added_to_that_of_the_hidden_patches(training):
    loss = training().parser.get_parsed_content("loss")
    assert isinstance(loss, SelfSupervisedLoss)
    assert isinstance(loss.loss, MaskedReconstructionLoss)


@only(MAE)
def test_resumed_training_is_unbroken_training(training, tmp_path):
    """Patches are hidden as in the epoch of the unbroken run."""
    same_rate = {"lr_scheduler#lr_lambda": "$lambda epoch: 1.0"}
    training("unbroken", max_epochs=2, **same_rate).run()
    training("broken", max_epochs=1, **same_rate).run()
    first = load(tmp_path / "broken/ckpt/training.pt")
    training("broken", max_epochs=2, resume=True, **same_rate).run()
    one, other = (load(tmp_path / name / "ckpt/training.pt") for name in ("unbroken", "broken"))
    for part in ("network", "weight_average", "optimizer"):
        torch.testing.assert_close(other[part], one[part], rtol=0, atol=1e-6)
    assert not torch.equal(first["network"]["network.cls_token"], one["network"]["network.cls_token"])


@pytest.mark.process
@only(MAE)
def test_training_on_two_processes(overlay, dataset_dir, tmp_path):
    files = [*overlay.train, overlay.train[0].with_name("multi_gpu_train.json")]
    result = run_on_two("training", *files, **{**small_training(overlay, tmp_path, dataset_dir), "max_epochs": 2})
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Epoch 2/2 | loss ") + result.stderr.count("Epoch 2/2 | loss ") == 1
    assert load(tmp_path / "ckpt/training.pt")["processes"] == 2
    assert not any(name.startswith("module.") for name in load(tmp_path / "ckpt/model.pt"))


@only(MAE)
def test_windows_of_whole_patches(training):
    check_refused(lambda: training(roi_size=[90, 90, 1]).parser.get_parsed_content("network"), "patch_size", "(90, 90)")
    assert training(roi_size=[64, 48, 1]).parser.get_parsed_content("network_def").network.img_size == (64, 48)


# ---------------------------------------------------------------------------------------------- evaluation, inference


def test_evaluation(using, trained, two_cases, tmp_path):
    using(datalist_file=two_cases).run()
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert (report["cases"], report["failed_cases"]) == (2, [])
    threshold = load_thresholds(trained.ckpt / "model_thresholds.json")["model"]
    assert report["methods"]["model"]["threshold"]["value"] == 0.5
    assert report["methods"]["model"]["threshold"]["source"] == threshold.source
    metrics = {name: method["figures"] for name, method in report["methods"].items()}
    for name in ("pixel_auroc", "slice_auroc", "dice_at_threshold", "lesion_sensitivity"):
        assert 0 <= metrics["model"][name]["value"] <= 1
    assert metrics["model"]["pixel_auroc"]["value"] != metrics["baseline_flair"]["pixel_auroc"]["value"]


@only(AUTOENCODER)
@pytest.mark.parametrize("score", SCORES[1:])
def test_reports_of_other_scores(using, trained, two_cases, dataset_dir, tmp_path, score):
    """A network may be trained for any of them; the map of a case on the network's grid is what it says."""
    settings = load_settings(trained.ckpt / "model.pt", {})
    for name in ("model.pt", "model_thresholds.json"):
        shutil.copy(trained.ckpt / name, tmp_path / name)
    raw = {"smoothing": 0, "planes": None, "normal_score": None}
    other = dataclasses.replace(settings, **raw, network={**settings.network, "score": score})
    other.save(tmp_path / "model.pt", settings.sha256)
    given = {"ckpt_file": str(tmp_path / "model.pt"), "datalist_file": two_cases, "save_maps": True, "raw_scores": True}
    made = using(**given)
    made.run()
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert 0 < report["methods"]["model"]["figures"]["pixel_auroc"]["value"] < 1
    detector = made.parser.get_parsed_content("network_def").eval()
    item = next(item for item in made.parser.get_parsed_content("dataset") if item["case_id"] == "Made_004")
    slices = item["image"].as_tensor().movedim(-1, 0)
    with torch.no_grad():
        reconstruction = detector.reconstruct(slices).clamp(0, 1)
        expected = detector(slices) if score == "block" else error_map(reconstruction, slices, score)
    brain = nibabel.load(dataset_dir / "Made_004/Made_004_flair.nii.gz").get_fdata() > 0
    found = nibabel.load(tmp_path / "out/maps/Made_004.nii.gz").get_fdata()[brain]
    np.testing.assert_allclose(np.sort(found), np.sort(expected[slices[:, :1] > 0]), atol=1e-4 * found.max())


@pytest.fixture
def scan(tmp_path):
    """A scan on the grid that networks see."""
    write_case(tmp_path / "scans", "Made_009")
    folder = tmp_path / "scans" / "Made_009"
    return np.stack([nibabel.load(folder / f"Made_009_{kind}.nii.gz").get_fdata() for kind in MODALITIES])


def test_inference(overlay, using, trained, unsmoothed, scan, tmp_path):
    """The map is the distance of the reconstruction from the scan, in the network's intensities."""
    given = {"dataset_dir": str(tmp_path / "scans"), **unsmoothed}
    using("inference", **given).run()
    map_file = tmp_path / "out/maps/Made_009.nii.gz"
    threshold = round(float(np.quantile(nibabel.load(map_file).get_fdata()[scan[0] > 0], 0.9)), 3)
    using("inference", save_mask=True, save_reconstruction=True, threshold=threshold, **given).run()
    found = {
        kind: nibabel.load(tmp_path / "out" / kind / "Made_009.nii.gz").get_fdata()
        for kind in ("maps", "masks", "reconstructions")
    }
    brain = torch.from_numpy(scan[:1] > 0)
    median, width = RobustScaleIntensity().ranges(torch.from_numpy(scan), brain).numpy().T[..., None, None, None]
    reconstruction = 0.5 + (np.moveaxis(found["reconstructions"], -1, 0) - median) / width
    image = RobustScaleIntensity()(torch.from_numpy(scan), brain).numpy()
    distance = np.abs(reconstruction.clip(0, 1) - image).mean(axis=0) * brain.numpy()[0]
    assert distance.max() > 0.1
    if overlay.bundle == "brats3d":  # where windows overlap, the map is the mean of their distances
        least = 0.8 if overlay.name == "mae" else 0.9  # which hides other patches in each window
        assert np.corrcoef(found["maps"][brain[0]], distance[brain[0]])[0, 1] > least
    else:
        np.testing.assert_allclose(found["maps"], distance, atol=1e-3)
    np.testing.assert_array_equal(found["masks"], (found["maps"] >= threshold) & brain.numpy()[0])
    assert 0 < found["masks"].sum() < brain.sum()
    with (tmp_path / "out/summary.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["case_id"], row["threshold"], row["problem"]) == ("Made_009", str(threshold), "")
    settings = json.loads((tmp_path / "out/settings.json").read_text(encoding="utf-8"))
    assert (settings["system"], settings["network"]["score"]) == (overlay.name, "l1")


@only(AUTOENCODER)
def test_inference_takes_the_threshold_of_training(using, trained, scan, tmp_path):
    using("inference", dataset_dir=str(tmp_path / "scans")).run()
    settings = json.loads((tmp_path / "out/settings.json").read_text(encoding="utf-8"))
    threshold = load_thresholds(trained.ckpt / "model_thresholds.json")["model"]
    assert (settings["threshold"], settings["scale"]) == (0.5, [threshold.value, threshold.median])


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", ["evaluate", "inference"])
def test_checkpoint_alone_is_enough(overlay, trained, workflow, name):
    """The overlay is only where the checkpoint lies as a default."""
    content = workflow(getattr(overlay, name)[:1], "infer", ckpt_file=str(trained.ckpt / "model.pt")).parser
    content.get_parsed_content("network_def").load_state_dict(load(content.get_parsed_content("checkpoint")))
    assert content.get_parsed_content("settings") == load_settings(trained.ckpt / "model.pt", {})


@pytest.mark.parametrize("name", ["evaluate", "inference"])
def test_checkpoint_of_another_system(overlay, using, name, tmp_path):
    shutil.copy(ROOT / "bundles" / overlay.bundle / "models/model.pt", tmp_path)
    shutil.copy(ROOT / "bundles" / overlay.bundle / "models/model_settings.json", tmp_path)
    made = using(name, ckpt_file=str(tmp_path / "model.pt"))
    check_refused(made.run, "trained with system draem", f"not with system {overlay.name}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["evaluate", "inference"])
def test_settings_that_training_did_not_have(overlay, using, name):
    block = overlay.given.get("block", "ssmctb")
    window = "96, 96, 1" if overlay.dims == 2 else "32, 32, 32"
    others = {
        "spacing": ([1.5] * 3, "spacing [2.0, 2.0, 2.0], not with spacing [1.5, 1.5, 1.5]"),
        "block": ("none", f"block {block}, not with block none"),
        "roi_size": ([64, 64, 1], f"roi_size [{window}], not with roi_size [64, 64, 1]"),
    }
    for key, (value, words) in others.items():
        parser = using(name, **{key: value}).parser
        check_refused(lambda parser=parser: parser.get_parsed_content("checkpoint"), f"trained with {words}")
    parser = using(name, spatial_dims=5 - overlay.dims).parser
    check_refused(lambda: parser.get_parsed_content("checkpoint"), f"trained with spatial_dims {overlay.dims}")
    using(name, block=block).parser.get_parsed_content("checkpoint")
