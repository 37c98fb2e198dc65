"""`train.json` of both bundles: one command trains, a kill does not change the result, lesions are never seen."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import OWN, ROOT, folders, git_status, in_2d, in_3d, messages, run, small, start
from monai.bundle import ConfigParser

from ssmctb_monai import data
from ssmctb_monai.checkpoints import Settings, load_settings, make_network
from ssmctb_monai.files import checksum
from ssmctb_monai.losses import DRAEMLoss
from ssmctb_monai.metrics import load_thresholds
from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB

METRICS = ("slice_auroc", "pixel_average_precision", "slice_auroc_of_baseline", "pixel_average_precision_of_baseline")


@pytest.fixture
def training(bundle, workflow):
    """Makes the workflow of a small training."""

    def make(folder, **overrides):
        places = {name: str(path) for name, path in folders(folder).items()}
        return workflow(bundle / "train.json", "train", **{**places, **small(bundle.name), **overrides})

    return make


def train(bundle, folder, **overrides):
    return run(bundle.name, "training", **{**folders(folder), **small(bundle.name), **overrides})


def crop_shape(parser):
    """Shape of a crop as the network gets it."""
    return tuple(parser["roi_size"][: parser["spatial_dims"]])


def logged_metrics(output):
    """Figures by epoch."""
    return {
        int(match[1]): dict(re.findall(r"\| (\w+) ([-\d.naif]+)", match[2]))
        for match in re.finditer(r"Validation, epoch (\d+) (.*) \| [\d.]+ s", output)
    }


def load(path):
    return torch.load(path, weights_only=True)


# ---------------------------------------------------------------------------------------------------------------- files


def test_configuration_uses_no_deprecated_name(bundle):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parser = ConfigParser()
        parser.read_config(bundle / "train.json")
        parser.read_meta(bundle / "metadata.json")
    assert [str(warning.message) for warning in caught if "deprecated" in str(warning.message)] == []
    assert "ssmctb_monai" in parser["_meta_"]["required_packages_version"]


def test_default_folders_are_ignored_by_git(bundle):
    if git_status() is None:
        pytest.skip("not a git checkout")
    parser = ConfigParser()
    parser.read_config(bundle / "train.json")
    for name in ("ckpt_dir", "output_dir", "cache_dir"):
        file = Path(parser.get_parsed_content(name)) / "some.file"
        assert subprocess.run(["git", "check-ignore", "-q", file], cwd=ROOT).returncode == 0, file


def test_shipped_files_are_kept_by_git_and_exports_are_not(bundle):
    if git_status() is None:
        pytest.skip("not a git checkout")
    shipped = [f"model{ending}" for ending in (".pt", "_thresholds.json", "_settings.json", "_record.json")]
    for name in (*shipped, "model.ts", "model.onnx"):
        ignored = subprocess.run(["git", "check-ignore", "-q", bundle / "models" / name], cwd=ROOT).returncode == 0
        assert ignored == (name not in shipped), name


# ----------------------------------------------------------------------------------------------------------- in process


def test_every_reference_resolves(training, tmp_path, dataset_dir):
    made = training(tmp_path, dataset_dir=str(dataset_dir))
    ids = [key for key in made.parser.get() if key not in ("training", "run", "initialize", "_meta_")]
    ids += [f"{part}#{key}" for part in ("train", "validate") for key in made.parser[part]]
    for key in ids:
        made.parser.get_parsed_content(key)
    loader = made.parser.get_parsed_content("train#dataloader")
    epochs = made.parser.get_parsed_content("train#trainer").state.max_epochs
    assert (epochs - 1) * len(loader) < made.parser.get_parsed_content("iterations") <= epochs * len(loader)
    assert made.parser.get_parsed_content("iterations") >= 100


def test_properties_of_monai(training, tmp_path, dataset_dir):
    """Parts of the workflow are reached by their names, and may be replaced."""
    made = training(tmp_path, dataset_dir=str(dataset_dir))
    made.max_epochs = 3
    made.initialize()
    assert made.train_dataset is made.trainer.data_loader.dataset
    assert made.trainer.state.max_epochs == 3
    assert made.network_def.in_channels == 1


def test_demo_data_without_a_dataset_dir(training, tmp_path, dataset_dir, monkeypatch):
    monkeypatch.setattr(data, "make_demo_dataset", lambda: dataset_dir)
    made = training(tmp_path)
    assert made.parser.get_parsed_content("dataset_dir") == dataset_dir
    assert len(made.parser.get_parsed_content("validate#dataset")) == 2


@pytest.mark.parametrize(
    ("block", "kind", "place", "count"),
    [
        ("ssmctb", SSMCTB, {}, 1),
        ("sspcab", SSPCAB, {"system#network#block_in": "both"}, 2),
        ("none", None, {}, 0),
        (None, None, {"system#network#block_in": "both"}, 0),
    ],
)
def test_block_and_modalities(training, tmp_path, dataset_dir, block, kind, place, count):
    made = training(tmp_path, dataset_dir=str(dataset_dir), block=block, modalities=["t1ce", "flair"], **place)
    network = made.parser.get_parsed_content("network")
    assert network.in_channels == 2
    blocks = [module for module in network.modules() if isinstance(module, (SSMCTB, SSPCAB))]
    assert len(blocks) == count
    assert network.spatial_dims == made.parser["spatial_dims"]
    assert all(type(module) is kind for module in blocks)


def test_modality_dropout(training, tmp_path, dataset_dir):
    """What is left out is 0 for the network and for its loss, and anomalies show in what is left."""
    given = {"modalities": ["flair", "t1ce"], "modality_dropout": 1.0, "anomaly#prob": 1.0}
    parser = training(tmp_path, dataset_dir=str(dataset_dir), **given).parser
    assert parser.get_parsed_content("settings").optional_modalities == ("t1ce",)
    batch = next(iter(parser.get_parsed_content("train#dataloader")))
    for key in ("image", "image_clean"):
        assert batch[key].flatten(2).any(2).tolist() == [[True, False]] * len(batch[key])
    is_changed = (batch["image"] != batch["image_clean"]).any(1, keepdim=True)
    assert batch["anomaly_mask"].flatten(1).any(1).all()
    assert is_changed[batch["anomaly_mask"] > 0].float().mean() > 0.9


def section(parser, part):
    return [item["case_id"] for item in parser.get_parsed_content(f"{part}#dataset").data]


@pytest.mark.parametrize(("test_share", "count"), [(2, 6), (0, 8), (0.0, 8)])
def test_cases_without_validation_patients(training, tmp_path, dataset_dir, test_share, count):
    shares = {"validation_share": type(test_share)(0), "test_share": test_share}
    parser = training(tmp_path, dataset_dir=str(dataset_dir), **shares).parser
    assert section(parser, "train") == section(parser, "validate")
    assert len(section(parser, "train")) == count


def test_training_without_validation_patients(training, tmp_path, dataset_dir):
    """The lesion-free regions of the training patients give the thresholds."""
    overrides = {"validation_share": 0, "test_share": 5, "val_interval": 4, "train#trainer#max_epochs": 1}
    made = training(tmp_path, dataset_dir=str(dataset_dir), **overrides)
    made.run()
    cases = section(made.parser, "train")
    record = json.loads((tmp_path / "ckpt" / "model_record.json").read_text())
    assert (record["cases"], record["number_of_cases"]) == (cases, 3)
    assert [entry["epoch"] for entry in record["history"]] == [1]  # the last epoch, whatever the interval
    threshold = load_thresholds(tmp_path / "ckpt" / "model_thresholds.json")["model"]
    assert threshold.source.endswith("voxels in lesion-free regions of 3 cases")
    assert [case.case_id for case in made.parser.get_parsed_content("validate#metric").compute().cases] == cases


def test_an_empty_list_for_validation(training, tmp_path, dataset_dir):
    entries = [
        {"case_id": name, "image": {"flair": f"{name}/{name}_flair.nii.gz"}, "label": f"{name}/{name}_seg.nii.gz"}
        for name in ("Made_001", "Made_002")
    ]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries, "validation": [], "test": []}))
    given = {"dataset_dir": str(dataset_dir), "datalist_file": str(tmp_path / "datalist.json")}
    with pytest.raises(RuntimeError) as caught:
        training(tmp_path / "one", **given).run()
    assert "Section 'validation' of" in messages(caught.value)
    assert "`--validation_share 0`" in messages(caught.value)
    parser = training(tmp_path / "other", **given, validation_share=0).parser
    assert section(parser, "train") == section(parser, "validate") == ["Made_001", "Made_002"]


def test_training_without_a_block(training, tmp_path, dataset_dir):
    overrides = {"block": "none", "val_interval": 1, "train#trainer#max_epochs": 1}
    made = training(tmp_path, dataset_dir=str(dataset_dir), **overrides)
    before = {name: value.clone() for name, value in made.parser.get_parsed_content("network").state_dict().items()}
    made.run()
    assert made.parser.get_parsed_content("train#dataset").epoch == 1  # samples are those of the epoch
    loss = made.parser.get_parsed_content("loss")
    assert isinstance(loss.loss, DRAEMLoss)
    assert loss.parts["block"] == 0
    after = made.parser.get_parsed_content("network").state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert len(changed) == len(before)
    made.parser.get_parsed_content("network_def").load_state_dict(load(tmp_path / "ckpt" / "model.pt"))


def test_gradients_hold_no_stale_memory(training, tmp_path, dataset_dir):
    """oneDNN's bfloat16 weight gradient of a 3D convolution over two slices reads memory that it never wrote."""
    parser = training(tmp_path, dataset_dir=str(dataset_dir), num_samples=1).parser
    network, inferer, loss = (parser.get_parsed_content(key) for key in ("network", "train#inferer", "loss"))
    image = torch.rand(4, 1, *crop_shape(parser), generator=torch.Generator().manual_seed(0))
    gradients = []
    for stale in (0.0, 1e3, -1e5):
        blocks = [torch.full((int(1.5**exponent),), stale) for exponent in range(15, 40)]
        del blocks
        network.zero_grad()
        loss(inferer(image, network), (image, (image > 0.9).float())).backward()
        gradients.append({name: value.grad.clone() for name, value in network.named_parameters()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            assert (other[name] - gradient).norm() <= 0.05 * gradient.norm() + 1e-6, name


# --------------------------------------------------------------------------------------------------------- one command


def test_command_succeeds(trained):
    assert trained.result.returncode == 0, trained.result.stderr


@pytest.mark.parametrize("name", ["training.pt", "model.pt"])
def test_command_writes_checkpoints(trained, name):
    path = trained.folder / "ckpt" / name
    assert path.is_file(), f"there is only {[path.name for path in path.parent.iterdir()]}"
    state = load(path)
    weights = state.get("network", state)
    first = next(value for key, value in weights.items() if key.endswith("conv.weight"))
    assert first.shape[:2] == (8, 2)  # the width and the modalities that were asked for
    assert (name == "training.pt") == ("optimizer" in state)


def test_monai_label_takes_the_checkpoint_of_the_network(trained):
    first = min((trained.folder / "ckpt").glob("*.pt"), key=lambda path: len(path.name))  # as it does
    assert first.name == "model.pt"


def test_command_writes_thresholds_of_every_method(bundle, trained):
    rate = json.loads((bundle / "train.json").read_text())["false_positive_rate"]
    thresholds = load_thresholds(trained.folder / "ckpt" / "model_thresholds.json")
    assert list(thresholds) == ["model", "baseline_flair", "baseline_t1ce"]
    for threshold in thresholds.values():
        assert 0 < threshold.value < 1.01
        assert threshold.false_positive_rate == rate
        assert re.fullmatch(r"\d+ voxels in lesion-free regions of 2 cases", threshold.source)


def test_command_writes_what_the_network_must_be_used_with(trained, bundle):
    checkpoint = trained.folder / "ckpt" / "model.pt"
    settings = load_settings(checkpoint, {})
    config = {**json.loads((bundle / "train.json").read_text()), **small(bundle.name)}
    names = ("spatial_dims", "spacing", "background", "smoothing", "planes", "normal_score")
    given = {"system": "draem", **OWN, **{name: config[name] for name in names}, "network": settings.network}
    assert settings == Settings(**given, roi_size=small(bundle.name)["roi_size"], sha256=checksum(checkpoint))
    assert settings.network.items() >= {"in_channels": 2, "block": "sspcab", "discriminative_width": 8}.items()
    make_network(settings.network).load_state_dict(load(checkpoint))


def test_command_writes_a_record(trained):
    record = json.loads((trained.folder / "ckpt" / "model_record.json").read_text())
    (datalist,) = (trained.folder / "ckpt").glob("datalist_*.json")
    assert record["cases"] == [case["case_id"] for case in json.loads(datalist.read_text())["training"]]
    assert record["versions"].keys() == {"ssmctb_monai", "torch", "monai"}
    named = ("number_of_cases", "seed", "epochs", "threads", "processes")
    assert [record[name] for name in named] == [2, 0, 1, 1, 1]
    assert record["seconds"] > 0
    (entry,) = record["history"]
    logged = logged_metrics(trained.result.stdout)[1]
    assert entry["figures"] == pytest.approx({name: float(value) for name, value in logged.items()}, abs=1e-4)
    assert list(entry["losses"]) == ["loss", "l2", "ssim", "focal", "block"]
    assert f"loss {entry['losses']['loss']:.4f} " in trained.result.stdout


def test_command_logs_metrics_and_the_baseline(trained):
    metrics = logged_metrics(trained.result.stdout)
    assert metrics
    for by_name in metrics.values():
        assert set(METRICS) <= by_name.keys()
        assert all(0 <= float(by_name[name]) <= 1 for name in METRICS)
    assert float(by_name["pixel_average_precision_of_baseline"]) > 0.5  # the lesions are brighter than the noise


def test_command_validates_what_it_trained(trained):
    """Figures of the last epoch are needed to see that they end above their start."""
    assert 1 in logged_metrics(trained.result.stdout)


def test_command_logs_progress(trained):
    lines = [line for line in trained.result.stdout.splitlines() if re.search(r"Epoch 1/1\b.*loss", line)]
    assert len(lines) == 1
    assert "left" in lines[0]
    assert all(name in lines[0] for name in ("l2", "ssim", "focal", "block"))


def test_command_writes_a_readable_split(trained, dataset_dir):
    (datalist,) = (trained.folder / "ckpt").glob("datalist_*.json")
    split = json.loads(datalist.read_text())
    assert [len(split[part]) for part in ("training", "validation", "test")] == [2, 2, 4]


def test_command_leaves_the_git_tree_clean(trained):
    if trained.before is None:
        pytest.skip("not a git checkout")
    assert trained.after == trained.before


def test_missing_data_set(training, tmp_path):
    with pytest.raises(RuntimeError) as caught:  # MONAI's, about the expression
        training(tmp_path, dataset_dir=str(tmp_path / "nowhere")).run()
    assert f"The data set folder {tmp_path / 'nowhere'} does not exist" in messages(caught.value)


@pytest.mark.process
@in_3d
def test_command_names_a_missing_data_set(bundle, tmp_path):
    result = train(bundle, tmp_path, dataset_dir=tmp_path / "nowhere")
    assert result.returncode != 0
    assert f"The data set folder {tmp_path / 'nowhere'} does not exist" in result.stderr


def test_folder_without_cases(training, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError) as caught:
        training(tmp_path, dataset_dir=str(tmp_path / "empty")).run()
    assert f"No case found below {tmp_path / 'empty'}" in messages(caught.value)


@pytest.mark.process
@in_2d
def test_command_without_a_block(bundle, tmp_path, dataset_dir):
    overrides = {"block": "none", "val_interval": 1, "train#trainer#max_epochs": 1}
    result = train(bundle, tmp_path, dataset_dir=dataset_dir, **overrides)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "ckpt" / "model.pt").is_file()
    assert "block 0.0000" in result.stdout


# -------------------------------------------------------------------------------------------------------- kill, resume


def kill_behind(bundle, folder, line, **overrides):
    """Starts training and kills it as soon as a line is logged."""
    process = start(bundle.name, "training", **{**folders(folder), **small(bundle.name), **overrides})
    lines = []
    for output in process.stdout:
        lines.append(output)
        if line in output:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait(60) == -signal.SIGKILL, "".join(lines)
    return "".join(lines)


def check_kill_and_resume(bundle, training, tmp_path, dataset_dir, **extra):
    overrides = {"dataset_dir": str(dataset_dir), "val_interval": 2, "save_interval": 1}
    overrides |= {"train#trainer#max_epochs": 3, **extra}
    training(tmp_path / "unbroken", **overrides).run()
    cached = sorted(path.name for path in (tmp_path / "unbroken" / "cache").iterdir())
    assert len(cached) == 6  # training and validation

    overrides["cache_dir"] = tmp_path / "unbroken" / "cache"
    kill_behind(bundle, tmp_path / "broken", "Epoch 2/3", **overrides)
    resumed = train(bundle, tmp_path / "broken", resume="true", **overrides)
    assert resumed.returncode == 0, resumed.stderr
    assert "Epoch 1/3" not in resumed.stdout
    assert "Epoch 3/3" in resumed.stdout

    one, other = (load(tmp_path / name / "ckpt" / "training.pt") for name in ("unbroken", "broken"))
    for part in ("network", "weight_average"):
        torch.testing.assert_close(other[part], one[part], rtol=0, atol=1e-6)
    torch.testing.assert_close(other["optimizer"], one["optimizer"], rtol=0, atol=1e-6)
    written = [sorted(path.name for path in (tmp_path / name / "ckpt").glob("*.pt")) for name in ("unbroken", "broken")]
    assert written[0] == written[1]
    for name in written[0]:
        one, other = (load(tmp_path / run / "ckpt" / name) for run in ("unbroken", "broken"))
        torch.testing.assert_close(other.get("network", other), one.get("network", one), rtol=0, atol=1e-6)
    thresholds = [load_thresholds(tmp_path / run / "ckpt" / "model_thresholds.json") for run in ("unbroken", "broken")]
    assert thresholds[1] == thresholds[0]
    records = [
        json.loads((tmp_path / run / "ckpt" / "model_record.json").read_text()) for run in ("unbroken", "broken")
    ]
    assert [[entry["epoch"] for entry in record["history"]] for record in records] == [[2, 3], [2, 3]]
    for one, other in zip(*(record["history"] for record in records), strict=True):
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert other["figures"] == pytest.approx(one["figures"], rel=1e-5)
    # names of cache files are those of the other processes
    assert sorted(path.name for path in (tmp_path / "unbroken" / "cache").iterdir()) == cached


@in_3d
def test_killed_and_resumed_training_is_unbroken_training(bundle, training, tmp_path, dataset_dir):
    check_kill_and_resume(bundle, training, tmp_path, dataset_dir)


@pytest.mark.process
@in_2d
def test_killed_and_resumed_training_with_workers(bundle, training, tmp_path, dataset_dir):
    check_kill_and_resume(bundle, training, tmp_path, dataset_dir, num_workers=2, block="sspcab", amp=False)


def test_resume_without_a_checkpoint(training, tmp_path, dataset_dir):
    made = training(tmp_path, dataset_dir=str(dataset_dir), resume=True)
    with pytest.raises(RuntimeError) as caught:  # MONAI's, about the expression
        made.run()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert "training.pt to resume from" in str(caught.value.__cause__)


# ------------------------------------------------------------------------------------------ lesions never reach a batch

REAL_CASES = ("Brats17_TCIA_639_1", "BraTS2021_00006", "brats_2013_pat0001_1")  # outliers; plain; non-zero background


def follow_lesions(config, margin):
    """Has the lesion mask go the way of the images, then grow by the margin, the neighbours that must be free too.

    Every voxel with a share of lesion in it is above 0, and so is every voxel that is a margin away from one.
    """
    moved = ("Orientationd", "Spacingd", "CropForegroundd", "SpatialPadd")
    steps = config["spatial_preprocessing"]
    assert [step["_target_"] for step in steps] == list(moved)
    for step in steps:
        step["keys"] = [*step["keys"], "truth"]
        if step["_target_"] == "Spacingd":
            step["mode"] = [*step["mode"], step["mode"][step["keys"].index("image")]]
    steps.insert(0, {"_target_": "CopyItemsd", "keys": "label", "names": "truth"})
    window = [2 * voxels + 1 for voxels in margin]
    grow = {"_target_": "torch.nn.MaxPool3d", "kernel_size": window, "stride": 1, "padding": margin}
    steps.append({"_target_": "Lambdad", "keys": "truth", "func": grow})
    for step in config["train"]["lesion_free_transforms"]:
        if step["_target_"] in ("SelectItemsd", "EnsureTyped"):
            step["keys"] = [*step["keys"], "truth"]
        if step["_target_"] == "EnsureTyped":
            step["dtype"] = step["dtype"][:-1] + ", torch.float32]"
    config["sampling"]["keys"] = ["image", "brain", "truth"]
    flip = config["train"]["random_transforms"][1]
    assert flip["_target_"] == "RandFlipd"
    flip["keys"] = [*flip["keys"], "truth"]
    config["system"]["deformation"] = []  # the truth would have to be interpolated like the image


def check_real_cases(bundle, folder, tmp_path, cases, spacing, lesions):
    entries = [
        {
            "case_id": name,
            "image": {"flair": f"{name}/{name}_flair.nii.gz"},
            "label": f"{name}/{name}_seg.nii.gz",
        }
        for name in cases
    ]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries}))
    parser = ConfigParser()
    parser.read_config(bundle / "train.json")
    follow_lesions(parser.get(), [parser["margin"]] * 3)
    parser["lesions"] = lesions
    if bundle.name == "brats3d" and lesions == "avoid":  # hardly a larger crop is free of lesions
        parser["roi_size"] = [32, 32, 32]
    parser["dataset_dir"] = str(folder / "brats")
    parser["datalist_file"] = str(tmp_path / "datalist.json")
    parser["cache_dir"] = str(tmp_path / "cache")
    parser["spacing"] = [spacing] * 3
    parser["num_samples"] = 16
    loader = parser.get_parsed_content("train#dataloader")
    assert len(loader.dataset) == len(cases)
    cached = [load(path) for path in (tmp_path / "cache").iterdir()]
    assert len(cached) == len(cases)
    for item in cached:
        assert (item["truth"] > 0.5).sum() * spacing**3 > 10_000  # in mm³: the lesion is there, and could have been hit
        positions = torch.as_tensor(item["lesion_free_positions"])
        assert len(positions) > 0
        lesion = torch.nonzero(item["truth"][0] > 0)
        if lesions == "erase":
            assert (item["image"][:, item["truth"][0] > 0] == 0).all()
            assert not item["label"].any()
            continue
        for position in positions[:: max(1, len(positions) // 500)]:
            inside = (lesion >= position) & (lesion < position + torch.tensor(parser["roi_size"]))
            assert not inside.all(dim=1).any()
    count = 0
    for epoch in range(3):
        loader.dataset.set_epoch(epoch)
        for batch in loader:
            assert batch["truth"].shape == batch["image_clean"].shape
            is_lesion = batch["truth"] > 0
            assert is_lesion.any() == (lesions == "erase")
            for key in ("image", "image_clean", "brain", "anomaly_mask"):
                assert not batch[key][is_lesion].any(), key
            assert batch["image_clean"].shape[2:] == crop_shape(parser)
            assert "label" not in batch
            assert batch["image_clean"].std() > 0
            count += len(batch["truth"])
    assert count == 3 * 16 * len(cases)


def test_lesions_never_reach_a_batch(bundle, real_data, tmp_path):
    check_real_cases(bundle, real_data, tmp_path, REAL_CASES[:1], 2.0, "erase")


@pytest.mark.process
@pytest.mark.parametrize(("spacing", "lesions"), [(2.0, "avoid"), (1.5, "erase")])
def test_lesions_of_several_cases_never_reach_a_batch(bundle, real_data, tmp_path, spacing, lesions):
    check_real_cases(bundle, real_data, tmp_path, REAL_CASES, spacing, lesions)


def test_deformed_slices_hold_nothing_of_lesions(real_data, tmp_path):
    """An image that is 1 in the lesions alone is 0 in every batch, whatever interpolation and augmentation do."""
    name = REAL_CASES[1]
    folder = tmp_path / "marked" / name
    folder.mkdir(parents=True)
    scan = nibabel.load(real_data / "brats" / name / f"{name}_flair.nii.gz")
    seg = nibabel.load(real_data / "brats" / name / f"{name}_seg.nii.gz")
    lesion, brain = np.asarray(seg.dataobj) > 0, np.asarray(scan.dataobj) > 0
    noise = np.random.default_rng(0).uniform(0.4, 0.6, brain.shape)  # which scaling needs
    nibabel.save(
        nibabel.Nifti1Image(np.where(lesion, 1e4, noise * brain), scan.affine), folder / f"{name}_flair.nii.gz"
    )
    nibabel.save(nibabel.Nifti1Image(lesion.astype(np.uint8), scan.affine), folder / f"{name}_seg.nii.gz")
    entry = {"case_id": name, "image": {"flair": f"{name}/{name}_flair.nii.gz"}, "label": f"{name}/{name}_seg.nii.gz"}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [entry]}))
    parser = ConfigParser()
    parser.read_config(ROOT / "bundles/brats2d/train.json")
    given = {
        "dataset_dir": tmp_path / "marked",
        "datalist_file": tmp_path / "datalist.json",
        "cache_dir": tmp_path / "c",
    }
    for key, value in given.items():
        parser[key] = str(value)
    parser["num_samples"], parser["system#intensity_variation"], parser["anomaly#prob"] = 32, [], 0.0
    (batch,) = parser.get_parsed_content("train#dataloader")
    assert 0.6 < batch["image"].max() < 0.99  # the noise, scaled; a lesion would be 1
    assert parser.get_parsed_content("train#dataset").data


# -------------------------------------------------------------------------------------------------- slices, in brats2d


def extent(mask):
    """Number of voxels per axis from the first of a mask to the last."""
    places = mask.nonzero()
    return (places.max(dim=0).values - places.min(dim=0).values + 1).tolist()


@in_2d
@pytest.mark.parametrize(("spacing", "width"), [(2.0, 47), (0.8, 116)])
def test_slices_of_smaller_and_larger_brains(training, tmp_path, dataset_dir, spacing, width):
    """A batch holds slices of 96 x 96 voxels; what lacks is background, what is more is cropped."""
    given = {"spacing": [spacing] * 3, "batch_size": 1, "num_samples": 5, "augmentation": []}
    parser = training(tmp_path, dataset_dir=str(dataset_dir), **given).parser
    batches = list(parser.get_parsed_content("train#dataloader"))
    assert len(batches) == 4
    for batch in batches:
        for key in ("image", "image_clean", "anomaly_mask"):
            assert batch[key].shape == (5, 1, 96, 96), key
        assert (batch["brain"].float().mean(dim=(1, 2, 3)) >= 0.1).all()
    widths = [extent(image[0] != 0) for batch in batches for image in batch["image_clean"]]
    assert min(width, 96) - 8 <= max(max(each) for each in widths) <= min(width, 96)
    inferer = parser.get_parsed_content("validate#inferer")
    for item in parser.get_parsed_content("validate#dataset"):
        assert extent(item["brain"][0])[:2] == pytest.approx([width, width], abs=3)
        assert item["image"].shape[1:3] == pytest.approx([max(width, 96)] * 2, abs=3)
        shown = inferer(item["image"][None], torch.nn.Identity())
        torch.testing.assert_close(shown[0], item["image"], rtol=0, atol=1e-5)


@in_2d
@pytest.mark.parametrize(("width", "times"), [(96, 1), (120, 4)])
def test_every_axial_slice_is_looked_at_once(training, tmp_path, width, times):
    """A wider one in all its quarters; slices without brain are left out."""
    inferer = training(tmp_path, planes=["axial"]).parser.get_parsed_content("validate#inferer")
    volume = torch.arange(40.0).expand(1, 1, width, width, 40)  # a slice says where it is
    seen = []

    def network(windows):
        assert windows.shape[1:] == (1, 96, 96)
        assert (windows == windows[:, :, :1, :1]).all()
        seen.extend(windows[:, 0, 0, 0].tolist())
        return windows

    torch.testing.assert_close(inferer(volume, network), volume)
    assert sorted(seen) == sorted(times * list(range(1, 40)))
