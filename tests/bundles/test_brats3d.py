"""Bundle brats3d: one command trains it, a kill does not change the result (issue 2, part 6, and "Done when")."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from bundle_runs import BUNDLE, ROOT, SMALL, TRAIN, command, environment, folders, git_status, run
from monai.bundle import ConfigParser, verify_net_in_out

from ssmctb_monai import data
from ssmctb_monai.losses import DRAEMLoss
from ssmctb_monai.metrics import load_thresholds
from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB

FIGURES = ("slice_auroc", "pixel_average_precision", "slice_auroc_of_baseline", "pixel_average_precision_of_baseline")


@pytest.fixture
def training(workflow):
    """Makes the workflow of a small training."""

    def make(folder, **overrides):
        return workflow(**{**{name: str(path) for name, path in folders(folder).items()}, **SMALL, **overrides})

    return make


def train(folder, **overrides):
    return run("training", **{**folders(folder), **SMALL, **overrides})


def logged_figures(output):
    """Figures by epoch."""
    return {
        int(match[1]): dict(re.findall(r"(\w+): ([-\d.naif]+)", match[2]))
        for match in re.finditer(r"Epoch\[(\d+)\] Metrics -- (.*)", output)
    }


def load(path):
    return torch.load(path, weights_only=True)


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["train.json", "metadata.json", "logging.conf"])
def test_links_at_the_root(name):
    link = BUNDLE / name
    assert link.is_symlink()
    assert not os.path.isabs(os.readlink(link))
    assert link.resolve() == (BUNDLE / "configs" / name).resolve()
    assert not (BUNDLE / "configs" / name).is_symlink()


def test_metadata():
    metadata = json.loads((BUNDLE / "metadata.json").read_text(encoding="utf-8"))
    required = "version changelog monai_version pytorch_version numpy_version required_packages_version task"
    required += " description authors copyright network_data_format schema name intended_use references"
    assert set(required.split()) <= metadata.keys()
    assert metadata["version"] in metadata["changelog"]
    train = json.loads(TRAIN.read_text(encoding="utf-8"))
    image = metadata["network_data_format"]["inputs"]["image"]
    assert image["num_channels"] == len(image["channel_def"]) == len(train["modalities"])
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert outputs["num_channels"] == len(outputs["channel_def"]) == 1


def test_configuration_uses_no_deprecated_name():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parser = ConfigParser()
        parser.read_config(TRAIN)
        parser.read_meta(BUNDLE / "metadata.json")
    assert [str(warning.message) for warning in caught if "deprecated" in str(warning.message)] == []
    assert "ssmctb_monai" in parser["_meta_"]["required_packages_version"]


@pytest.mark.parametrize("folder", [BUNDLE, BUNDLE / "configs"])
def test_network_is_what_the_metadata_says(folder):
    files = {"meta_file": str(folder / "metadata.json"), "config_file": str(folder / "train.json")}
    verify_net_in_out(net_id="network_def", device="cpu", n=1, **files)
    with pytest.raises((ValueError, RuntimeError)):
        verify_net_in_out(net_id="network_def", device="cpu", n=1, modalities=["flair", "t1"], **files)


def test_default_folders_are_ignored_by_git():
    if git_status() is None:
        pytest.skip("not a git checkout")
    parser = ConfigParser()
    parser.read_config(TRAIN)
    for name in ("ckpt_dir", "output_dir", "cache_dir"):
        file = Path(parser.get_parsed_content(name)) / "some.file"
        assert subprocess.run(["git", "check-ignore", "-q", file], cwd=ROOT).returncode == 0, file


# ----------------------------------------------------------------------------------------------------------- in process


def test_every_reference_resolves(training, tmp_path, dataset_dir):
    made = training(tmp_path, dataset_dir=str(dataset_dir))
    ids = [key for key in made.parser.get() if key not in ("training", "run", "initialize", "_meta_")]
    ids += [f"{part}#{key}" for part in ("train", "validate") for key in made.parser[part]]
    for key in ids:
        made.parser.get_parsed_content(key)
    assert made.parser.get_parsed_content("train#trainer").state.max_epochs == 60


def test_no_property_of_monai_is_missing(training, tmp_path, dataset_dir):
    assert training(tmp_path, dataset_dir=str(dataset_dir)).check_properties() == []


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


@pytest.mark.parametrize(("block", "kind", "count"), [("ssmctb", SSMCTB, 2), ("sspcab", SSPCAB, 2), (None, None, 0)])
def test_block_and_modalities(training, tmp_path, dataset_dir, block, kind, count):
    made = training(tmp_path, dataset_dir=str(dataset_dir), block=block, modalities=["t1ce", "flair"])
    network = made.parser.get_parsed_content("network")
    assert network.in_channels == 2
    blocks = [module for module in network.modules() if isinstance(module, (SSMCTB, SSPCAB))]
    assert len(blocks) == count
    assert all(type(module) is kind for module in blocks)


def test_training_without_a_block(training, tmp_path, dataset_dir):
    made = training(
        tmp_path, dataset_dir=str(dataset_dir), block=None, val_interval=1, **{"train#trainer#max_epochs": 1}
    )
    before = {name: value.clone() for name, value in made.parser.get_parsed_content("network").state_dict().items()}
    made.run()
    assert made.parser.get_parsed_content("train#dataset").epoch == 1  # samples are those of the epoch
    loss = made.parser.get_parsed_content("loss")
    assert isinstance(loss, DRAEMLoss)
    assert loss.parts["block"] == 0
    after = made.parser.get_parsed_content("network").state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert len(changed) == len(before)
    made.parser.get_parsed_content("network_def").load_state_dict(load(tmp_path / "ckpt" / "model.pt"))


def test_gradients_hold_no_stale_memory(training, tmp_path, dataset_dir):
    """oneDNN's bfloat16 weight gradient of a 3D convolution over two slices reads memory that it never wrote."""
    parser = training(tmp_path, dataset_dir=str(dataset_dir), num_samples=1).parser
    network, inferer, loss = (parser.get_parsed_content(key) for key in ("network", "train#inferer", "loss"))
    image = torch.rand(4, 1, *parser["roi_size"], generator=torch.Generator().manual_seed(0))
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


@pytest.mark.parametrize("name", ["last.pt", "model.pt"])
def test_command_writes_checkpoints(trained, name):
    path = trained.folder / "ckpt" / name
    assert path.is_file(), f"there is only {[path.name for path in path.parent.iterdir()]}"
    state = load(path)
    weights = state.get("network", state)
    first = next(value for key, value in weights.items() if key.endswith("conv.weight"))
    assert first.shape[:2] == (8, 2)  # the width and the modalities that were asked for
    assert (name == "last.pt") == ("optimizer" in state)


def test_command_writes_thresholds_of_every_method(trained):
    thresholds = load_thresholds(trained.folder / "ckpt" / "model_thresholds.json")
    assert list(thresholds) == ["model", "baseline_flair", "baseline_t1ce"]
    for threshold in thresholds.values():
        assert 0 < threshold.value < 1.01
        assert threshold.false_positive_rate == 0.01
        assert re.fullmatch(r"\d+ voxels in lesion-free regions of 2 cases", threshold.source)


def test_command_logs_figures_and_the_baseline(trained):
    figures = logged_figures(trained.result.stdout)
    assert figures
    for by_name in figures.values():
        assert set(FIGURES) <= by_name.keys()
        assert all(0 <= float(by_name[name]) <= 1 for name in FIGURES)
    assert float(by_name["pixel_average_precision_of_baseline"]) > 0.5  # the lesions are brighter than the noise


def test_command_validates_what_it_trained(trained):
    """Figures of the last epoch are needed to see that they end above their start."""
    assert 1 in logged_figures(trained.result.stdout)


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


def test_missing_dataset_dir(tmp_path):
    result = train(tmp_path, dataset_dir=tmp_path / "nowhere")
    assert result.returncode != 0
    assert f"The data set folder {tmp_path / 'nowhere'} does not exist" in result.stderr


def test_folder_without_cases(training, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError) as caught:  # MONAI's, about the expression
        training(tmp_path, dataset_dir=str(tmp_path / "empty")).run()
    assert f"No case found below {tmp_path / 'empty'}" in str(caught.value.__cause__)


def test_command_without_a_block(tmp_path, dataset_dir):
    result = train(tmp_path, dataset_dir=dataset_dir, block="none", val_interval=1, **{"train#trainer#max_epochs": 1})
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "ckpt" / "model.pt").is_file()
    assert "block 0.0000" in result.stdout


# -------------------------------------------------------------------------------------------------------- kill, resume


def kill_behind(folder, line, **overrides):
    """Starts training and kills it as soon as a line is logged."""
    process = subprocess.Popen(
        command("training", **{**folders(folder), **SMALL, **overrides}),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for output in process.stdout:
        lines.append(output)
        if line in output:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait(60) == -signal.SIGKILL, "".join(lines)
    return "".join(lines)


def check_kill_and_resume(tmp_path, dataset_dir, **extra):
    overrides = {"dataset_dir": dataset_dir, "val_interval": 2, "train#trainer#max_epochs": 4, **extra}
    unbroken = train(tmp_path / "unbroken", **overrides)
    assert unbroken.returncode == 0, unbroken.stderr
    cached = sorted(path.name for path in (tmp_path / "unbroken" / "cache").iterdir())
    assert len(cached) == 6  # training and validation

    overrides["cache_dir"] = tmp_path / "unbroken" / "cache"
    kill_behind(tmp_path / "broken", "Epoch 2/4", **overrides)
    resumed = train(tmp_path / "broken", resume="true", **overrides)
    assert resumed.returncode == 0, resumed.stderr
    assert "Epoch 1/4" not in resumed.stdout
    assert "Epoch 4/4" in resumed.stdout

    one, other = (load(tmp_path / name / "ckpt" / "last.pt") for name in ("unbroken", "broken"))
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
    figures = [logged_figures(result.stdout) for result in (unbroken, resumed)]
    assert figures[0].keys() == {0, 2, 4}
    assert figures[1][4] == figures[0][4]
    # names of cache files are those of the other processes
    assert sorted(path.name for path in (tmp_path / "unbroken" / "cache").iterdir()) == cached


def test_killed_and_resumed_training_is_unbroken_training(tmp_path, dataset_dir):
    check_kill_and_resume(tmp_path, dataset_dir)


@pytest.mark.slow
def test_killed_and_resumed_training_with_workers(tmp_path, dataset_dir):
    check_kill_and_resume(tmp_path, dataset_dir, num_workers=2, block="sspcab", amp=False)


def test_resume_without_a_checkpoint(training, tmp_path, dataset_dir):
    made = training(tmp_path, dataset_dir=str(dataset_dir), resume=True)
    with pytest.raises(RuntimeError) as caught:  # MONAI's, about the expression
        made.run()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert "last.pt to resume from" in str(caught.value.__cause__)


# ------------------------------------------------------------------------------------------ lesions never reach a batch

REAL_CASES = ("Brats17_TCIA_639_1", "BraTS2021_00006", "brats_2013_pat0001_1")  # outliers; plain; non-zero background


def follow_lesions(config):
    """Has the lesion mask go the way of the images, so that every voxel with a share of lesion in it is above 0."""
    moved = ("Orientationd", "Spacingd", "CropForegroundd", "SpatialPadd")
    steps = config["preprocessing"]
    for step in steps:
        if step["_target_"] in moved:
            step["keys"] = [*step["keys"], "truth"]
        if step["_target_"] == "Spacingd":
            step["mode"] = [*step["mode"], step["mode"][step["keys"].index("image")]]
    first = next(index for index, step in enumerate(steps) if step["_target_"] in moved)
    steps.insert(first, {"_target_": "CopyItemsd", "keys": "label", "names": "truth"})
    for step in config["train"]["lesion_free_transforms"]:
        if step["_target_"] in ("SelectItemsd", "EnsureTyped"):
            step["keys"] = [*step["keys"], "truth"]
        if step["_target_"] == "EnsureTyped":
            step["dtype"] = step["dtype"][:-1] + ", torch.float32]"
    crop = config["train"]["random_transforms"][0]
    assert crop["_target_"].endswith("RandLesionFreeCropd")
    crop["keys"] = ["image", "brain", "truth"]


def check_real_cases(folder, tmp_path, cases, spacing):
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
    parser.read_config(TRAIN)
    follow_lesions(parser.get())
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
        for position in positions[:: max(1, len(positions) // 500)]:
            inside = (lesion >= position) & (lesion < position + 32)
            assert not inside.all(dim=1).any()
    count = 0
    for epoch in range(3):
        loader.dataset.set_epoch(epoch)
        for batch in loader:
            assert batch["truth"].max() == 0
            assert batch["image_clean"].shape[2:] == (32, 32, 32)
            assert "label" not in batch
            assert batch["image_clean"].std() > 0
            count += len(batch["truth"])
    assert count == 3 * 16 * len(cases)


def test_lesions_never_reach_a_batch(real_data, tmp_path):
    check_real_cases(real_data, tmp_path, REAL_CASES[:1], 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [2.0, 1.5])
def test_lesions_of_several_cases_never_reach_a_batch(real_data, tmp_path, spacing):
    check_real_cases(real_data, tmp_path, REAL_CASES, spacing)
