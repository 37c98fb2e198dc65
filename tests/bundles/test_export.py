"""What MONAI and the tools around it do with the bundles, offline: load, export, unpack elsewhere, serve."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import socket
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import nibabel
import numpy as np
import onnxruntime
import pytest
import torch
from bundle_runs import environment, write_case
from monai.bundle import ConfigParser, ckpt_export, load, onnx_export
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose, LoadImaged, MapTransform
from monai.utils import set_determinism

from ssmctb_monai.checkpoints import load_settings
from ssmctb_monai.files import checksum
from ssmctb_monai.networks.nets import DRAEM

SIZES = [(1, 32, 32, 32), (2, 64, 32, 32), (1, 40, 50, 33), (3, 31, 7, 5)]  # batch and axes


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"something wants to connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def unchanged_logging():
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    set_determinism(None)
    root.setLevel(level)
    root.handlers[:] = handlers


def parser_of(file, **overrides):
    parser = ConfigParser()
    parser.read_config(str(file))
    parser.update({"device": "$torch.device('cpu')", **overrides})
    return parser


@pytest.fixture(scope="module")
def bundle(bundle, tmp_path_factory):
    """A bundle as it is handed on, with a checkpoint; its maps are no flat ones."""
    folder = tmp_path_factory.mktemp("bundles") / bundle.name
    shutil.copytree(bundle, folder, symlinks=True, ignore=shutil.ignore_patterns("cache", "models", "trained", "eval"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = parser_of(folder / "configs" / "inference.json").get_parsed_content("network_def").eval()
    with torch.no_grad():
        network.discriminative[1].output.weight *= 200
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    load_settings(bundle / "models" / "model.pt", {}).save(
        folder / "models" / "model.pt", checksum(folder / "models" / "model.pt")
    )
    thresholds = {"model": {"value": 0.5, "false_positive_rate": 0.01, "source": "made"}}
    (folder / "models" / "model_thresholds.json").write_text(json.dumps(thresholds))
    return SimpleNamespace(folder=folder, name=folder.name, network=network)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three cases, each on another grid."""
    folder = tmp_path_factory.mktemp("dataset")
    for name, grid in {
        "Made_000": {},
        "Made_001": {"spacing": (1.5, 1.5, 2), "axcodes": "LPS"},
        "Made_002": {"axcodes": "PIR"},
    }.items():
        write_case(folder, name, **grid)
    return folder


@pytest.fixture(scope="module")
def scan(dataset):
    return dataset / "Made_001" / "Made_001_flair.nii.gz"


@pytest.fixture(scope="module")
def elsewhere(bundle, tmp_path_factory):
    """The bundle as an archive, unpacked in a folder of its own; runs commands there, as the model zoo does."""
    folder = tmp_path_factory.mktemp("elsewhere") / bundle.name
    archive = shutil.make_archive(str(folder), "zip", bundle.folder.parent, bundle.name)
    shutil.unpack_archive(archive, folder.parent)

    def run(run_id, config, **overrides):
        words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
        files = ["--config_file", f"configs/{config}.json", "--bundle_root", "."]
        return subprocess.run(
            [sys.executable, "-m", "monai.bundle", "run", run_id, *files, *words],
            cwd=folder,
            env={**environment(), "PYTHONSAFEPATH": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return SimpleNamespace(folder=folder, run=run)


@pytest.fixture(scope="module")
def inference(elsewhere, scan):
    result = elsewhere.run("inference", "inference", dataset_dir=scan, output_dir=elsewhere.folder / "results")
    return SimpleNamespace(folder=elsewhere.folder / "results", result=result)


@pytest.fixture(scope="module")
def expected_map(inference):
    """The anomaly map that the bundle's own evaluator gives."""
    image = nibabel.load(inference.folder / "maps" / "Made_001.nii.gz")
    expected = image.get_fdata(dtype=np.float32)
    assert expected.std() > 0.01  # else nothing below would mean much
    return SimpleNamespace(array=expected, affine=image.affine)


def images(bundle):
    generator = torch.Generator().manual_seed(0)
    for batch, *axes in SIZES:
        yield torch.rand(batch, 1, *axes[: bundle.network.spatial_dims], generator=generator)


# --------------------------------------------------------------------------------------------------- the bundle's ids


def test_properties_of_training(workflow, bundle, dataset, tmp_path):
    folders = {f"{name}_dir": str(tmp_path / name) for name in ("ckpt", "output", "cache")}
    file = bundle.folder / "configs" / "train.json"
    made = workflow(file, "train", dataset_dir=str(dataset), validation_share=1, test_share=0, **folders)
    assert made.check_properties() == []
    assert made.val_dataset is made.evaluator.data_loader.dataset
    assert made.network_def.spatial_dims == bundle.network.spatial_dims


@pytest.mark.parametrize("name", ["evaluate", "inference"])
def test_properties_of_evaluation_and_inference(workflow, bundle, dataset, tmp_path, name):
    folders = {"bundle_root": str(bundle.folder), "dataset_dir": str(dataset), "output_dir": str(tmp_path)}
    if name == "evaluate":
        made_up = {key: [] for key in ("training", "validation", "test")}
        case = {"case_id": "Made_000", "patient_id": "Made_000", "image": {"flair": "Made_000/Made_000_flair.nii.gz"}}
        made_up["test"] = [{**case, "label": "Made_000/Made_000_seg.nii.gz"}]
        (tmp_path / "datalist.json").write_text(json.dumps(made_up))
        ckpt_file = str(bundle.folder / "models" / "model.pt")
        folders |= {"datalist_file": str(tmp_path / "datalist.json"), "ckpt_file": ckpt_file}
    made = workflow(bundle.folder / "configs" / f"{name}.json", "inference", **folders)
    assert made.check_properties() == []
    assert len(made.dataset_data) == (1 if name == "evaluate" else 3)
    assert made.inferer is made.evaluator.inferer


# -------------------------------------------------------------------------------------------------------- load, export


@pytest.mark.parametrize("workflow_type", ["train", "inference"])
def test_load(bundle, workflow_type):
    loaded = load(bundle.name, bundle_dir=bundle.folder.parent, workflow_type=workflow_type, device="cpu")
    assert isinstance(loaded, DRAEM)
    torch.testing.assert_close(loaded.state_dict(), bundle.network.state_dict(), rtol=0, atol=0)


@pytest.fixture(scope="module")
def torchscript(bundle):
    """Exported with everything left to its default, from inside the bundle but for the paths."""
    config = bundle.folder / "configs" / "inference.json"
    ckpt_export(config_file=str(config), bundle_root=str(bundle.folder))
    return bundle.folder / "models" / "model.ts"


@pytest.mark.process
@torch.no_grad()
def test_torchscript_gives_what_the_network_gives(bundle, torchscript):
    exported = torch.jit.load(torchscript)
    for image in images(bundle):
        torch.testing.assert_close(exported(image), bundle.network(image), rtol=0, atol=1e-5)


@pytest.mark.process
@torch.no_grad()
def test_load_of_torchscript_brings_metadata_and_configs_back(bundle, torchscript):
    names = {"load_ts_module": True, "config_files": ("inference.json",), "device": "cpu"}
    exported, metadata, extra = load(bundle.name, bundle_dir=bundle.folder.parent, **names)
    image = next(images(bundle))
    torch.testing.assert_close(exported(image), bundle.network(image), rtol=0, atol=1e-5)
    configs = bundle.folder / "configs"
    assert json.loads(extra["inference.json"]) == json.loads((configs / "inference.json").read_text())
    assert metadata.items() >= json.loads((configs / "metadata.json").read_text()).items()


@pytest.mark.process
@torch.no_grad()
def test_onnx_gives_what_the_network_gives(bundle, tmp_path):
    axes = {0: "batch", 2: "height", 3: "width", 4: "depth"}
    axes = {axis: name for axis, name in axes.items() if axis < bundle.network.spatial_dims + 2}
    onnx_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.onnx"),
        ckpt_file=str(bundle.folder / "models" / "model.pt"),
        meta_file=str(bundle.folder / "configs" / "metadata.json"),
        config_file=str(bundle.folder / "configs" / "inference.json"),
        use_trace=True,
        converter_kwargs={
            "dynamo": False,
            "input_names": ["image"],
            "output_names": ["pred"],
            "dynamic_axes": {"image": axes, "pred": axes},
        },
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for image in images(bundle):
        (output,) = session.run(["pred"], {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), bundle.network(image), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------- an archive, elsewhere


def test_archive_is_whole(elsewhere):
    assert not [path for path in elsewhere.folder.rglob("*") if path.is_symlink()]
    assert {"LICENSE", "train.json", "metadata.json"} <= {path.name for path in elsewhere.folder.iterdir()}


@pytest.mark.process
def test_inference_elsewhere(inference):
    assert inference.result.returncode == 0, inference.result.stderr
    with (inference.folder / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case_id"], row["problem"]) for row in rows] == [("Made_001", "")]


@pytest.mark.process
def test_map_lies_on_the_scan(expected_map, scan):
    image = nibabel.load(scan)
    assert expected_map.array.shape == image.shape
    assert np.allclose(expected_map.affine, image.affine)
    assert not expected_map.array[image.get_fdata() == 0].any()


@pytest.fixture(scope="module")
def training(inference, elsewhere, dataset):
    """One short epoch, after the inference with the checkpoint that the archive brought along."""
    shares = {"validation_share": 1, "test_share": 0, "num_samples": 2}
    return elsewhere.run("training", "train", dataset_dir=dataset, **shares, **{"train#trainer#max_epochs": 1})


@pytest.mark.process
def test_training_elsewhere(training, elsewhere, bundle):
    assert training.returncode == 0, training.stderr
    assert "Epoch 1/1" in training.stdout
    names = {"bundle_dir": elsewhere.folder.parent, "model_file": "trained/model.pt", "device": "cpu"}
    trained = load(bundle.name, **names).state_dict()
    assert any(not torch.equal(value, trained[key]) for key, value in bundle.network.state_dict().items())
    made = {path.name for path in elsewhere.folder.iterdir()} - {path.name for path in bundle.folder.iterdir()}
    assert made <= {"cache", "eval", "results", "trained"}


# -------------------------------------------------------------------------------------------- MONAI Label, MONAI Deploy


def network_io(metadata):
    return (next(iter(metadata["network_data_format"][part])) for part in ("inputs", "outputs"))


@pytest.mark.process
@torch.no_grad()
def test_monai_label_gets_the_same_map(bundle, scan, expected_map):
    """MONAI Label builds a task from config, metadata and checkpoint, and gives it the path of an image alone."""
    parser = parser_of(bundle.folder / "configs" / "inference.json", bundle_root=str(bundle.folder), device="cpu")
    image_key, pred_key = network_io(json.loads((bundle.folder / "configs" / "metadata.json").read_text()))
    assert (image_key, pred_key) == ("image", "pred")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle.folder / "models" / "model.pt", weights_only=True))
    network.eval()

    data = {"model": bundle.name, "image": str(scan), "device": "cpu"}
    loaders = 0
    for transform in parser.get_parsed_content("preprocessing").transforms:
        if isinstance(transform, LoadImaged):  # its wrapper asks for every key, since arrays may come as well
            loaders += 1
            assert all(isinstance(data[key], str) for key in transform.keys)
            transform._loader.image_only = False
        data = transform(data)
    assert loaders == 1
    inferer = parser.get_parsed_content("inferer")
    assert isinstance(inferer, Inferer)
    data["pred"] = inferer(data["image"][None], network)[0]
    for transform in parser.get_parsed_content("postprocessing").transforms:
        data = transform(data)

    # what it needs to give the map the shape and the place of the scan: nothing is left to resize
    assert data["pred"].shape[1:] == tuple(data["image"].meta["spatial_shape"])
    assert np.allclose(data["image"].meta["original_affine"], expected_map.affine)
    np.testing.assert_allclose(data["pred"][0].numpy(), expected_map.array, atol=1e-5)


@pytest.mark.process
@torch.no_grad()
def test_monai_deploy_gets_the_same_map(bundle, torchscript, scan, expected_map, tmp_path, monkeypatch):
    """MONAI Deploy has the TorchScript file alone, and an image from DICOM instead of a path."""
    (tmp_path / "bundles").symlink_to(bundle.folder.parent)
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(torchscript) as archive:
        metadata = json.loads(archive.read("model/extra/metadata.json"))
        (tmp_path / "inference.json").write_bytes(archive.read("model/extra/inference.json"))
    parser = parser_of(tmp_path / "inference.json")
    parser.parse()
    image_key, pred_key = network_io(metadata)

    def transforms(key):
        kept = [
            transform
            for transform in parser.get_parsed_content(key).transforms
            if not any(name in type(transform).__name__ for name in ("LoadImage", "SaveImage"))
        ]
        assert isinstance(kept[0], MapTransform)  # else it would hand over single images
        return Compose(kept)

    stored = nibabel.load(scan)
    meta = {
        "affine": stored.affine.copy(),
        "original_affine": stored.affine.copy(),
        "original_channel_dim": "no_channel",
    }
    meta |= {"space": "LPS", "spatial_shape": np.asarray(stored.shape)}  # the affine is NIfTI's, and yet it says LPS
    image = MetaTensor.ensure_torch_and_prune_meta(np.asarray(stored.dataobj), meta)
    prepared = transforms("preprocessing")({image_key: image})
    tensors = {key: value[None] for key, value in prepared.items() if isinstance(value, torch.Tensor)}
    network = torch.jit.load(torchscript).eval()
    output = parser.get_parsed_content("inferer")(inputs=tensors.pop(image_key), network=network, **tensors)
    result = transforms("postprocessing")({pred_key: output[0], **prepared})
    np.testing.assert_allclose(result[pred_key][0].numpy(), expected_map.array, atol=1e-5)
