"""What files, metadata, configs and docs of both bundles promise each other, without running anything."""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import re
import shlex
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from pydoc import locate
from typing import Any

import monai.bundle
import pytest
import torch
from bundle_runs import BUNDLES, LGG, OVERLAYS, ROOT, messages, write_case
from monai.bundle import (
    ComponentLocator,
    ConfigComponent,
    ConfigParser,
    ReferenceResolver,
    verify_metadata,
    verify_net_in_out,
)
from monai.transforms import Compose

from ssmctb_monai import __version__
from ssmctb_monai.transforms import BrainMaskd

SCHEMA = ROOT / "tests" / "data" / "metadata_schema" / "meta_schema_20240725.json"
WORKFLOWS = ("train", "evaluate", "inference")


def as_run(config: Path) -> list[list[Path]]:
    """A workflow's config as it runs: by itself, below an overlay, and below the config for several processes."""
    several = config.with_name(f"multi_gpu_{config.name}")
    alone = [[config], *([config, overlay] for overlay in (*OVERLAYS, LGG) if overlay.parent == config.parent)]
    return [*alone, *([*files, several] for files in alone if several.is_file())]


LOCATOR = ComponentLocator()
CONFIGS = [files for bundle in BUNDLES for name in WORKFLOWS for files in as_run(bundle / "configs" / f"{name}.json")]


def name_of(files: Sequence[Path]) -> str:
    return f"{files[0].parts[-3]}/{'+'.join(file.stem for file in files)}"


over_configs = pytest.mark.parametrize("files", CONFIGS, ids=name_of)
over_overlays = pytest.mark.parametrize(
    "files", [files for files in CONFIGS if len(files) == 2 and files[1] in OVERLAYS], ids=name_of
)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def parser_of(*files: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    return parser


def used_by(files: Sequence[Path]) -> dict[str, Any]:
    """A config without what an overlay has for training alone."""
    config = parser_of(*files).get()
    if files[0].stem != "train":
        config = {**config, "system": {"name": config["system"]["name"]}}
        for part in ("anomaly", "adversary"):
            config.pop(part, None)
    return config


def strings(config: Any) -> list[str]:
    values = config.values() if isinstance(config, dict) else config if isinstance(config, list) else []
    return [config] if isinstance(config, str) else [*chain.from_iterable(map(strings, values))]


def target(config: dict[str, Any]) -> Any:
    """What a config part makes, or ``None`` where that does not exist."""
    return locate(ConfigComponent(config, locator=LOCATOR).resolve_module_name())


def can_be_set(parser: ConfigParser, id: str) -> bool:
    """Whether an id is in a config, or an argument of something that is."""
    parent, _, argument = id.rpartition("#")
    if id in parser or not parent:
        return id in parser
    part = parser.get(parent) or {}
    classes = target(part).__mro__ if "_target_" in part else ()  # what takes **kwargs hands them to its base
    return any(argument in inspect.signature(each.__init__).parameters for each in classes)


def different_ids(one: Any, other: Any, prefix: str = "") -> set[str]:
    """Ids of the smallest parts that two configs do not share."""
    if one == other:
        return set()
    if isinstance(one, dict) and isinstance(other, dict) and one.get("_target_") == other.get("_target_"):
        pairs = [(key, one.get(key), other.get(key)) for key in one.keys() | other.keys()]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other) and isinstance(one[0], dict):
        pairs = list(zip(map(str, range(len(one))), one, other, strict=True))
    else:
        return {prefix}
    ids = [different_ids(a, b, f"{prefix}#{key}" if prefix else key) for key, a, b in pairs]
    return set().union(*ids)


# ---------------------------------------------------------------------------------------------------- files, metadata


def test_links_at_the_root(bundle):
    names = ["evaluate.json", "inference.json", "logging.conf", "metadata.json", "train.json"]
    links = sorted(path for path in bundle.iterdir() if path.is_symlink())
    assert [link.name for link in links] == names
    for link in links:
        assert link.readlink() == Path("configs") / link.name
        assert link.is_file()
        assert not (bundle / "configs" / link.name).is_symlink()


@pytest.mark.parametrize("name", ["LICENSE", "docs/README.md", "configs/metadata.json", "configs/inference.json"])
def test_files_that_the_model_zoo_asks_for(bundle, name):
    assert (bundle / name).is_file()


def test_every_config_is_checked_as_it_runs(bundle):
    checked = {file for files in CONFIGS for file in files}
    elsewhere = {bundle / "configs/metadata.json", *bundle.glob("configs/images2d.json")}  # by test_bundle_images2d.py
    assert {*bundle.glob("configs/*.json")} - checked == elsewhere


def test_metadata_follows_the_schema(bundle, tmp_path):
    metadata = read(bundle / "metadata.json")
    assert SCHEMA.is_file()  # MONAI would download it
    assert metadata["schema"].endswith(f"/{SCHEMA.name}")
    verify_metadata(meta_file=str(bundle / "metadata.json"), filepath=str(SCHEMA))
    del metadata["network_data_format"]["outputs"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="'outputs' is a required property"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


def test_metadata_has_the_versions_of_package_and_constraints(bundle):
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in project["dependencies"]}
    constraints = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    metadata = read(bundle / "metadata.json")

    named = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    assert {name: metadata[key] for name, key in named.items()} == {name: constraints[name] for name in named}
    required = {name.lower(): version for name, version in metadata["required_packages_version"].items()}
    others = dependencies - named.keys()
    assert required == {"ssmctb_monai": __version__, **{name: constraints[name] for name in others}}
    assert metadata["version"] == __version__
    assert metadata["version"] in metadata["changelog"]


def test_metadata_is_complete(bundle):
    metadata, train = read(bundle / "metadata.json"), read(bundle / "train.json")
    zoo = "changelog supported_apps name task description authors copyright data_source data_type image_classes"
    zoo += " label_classes pred_classes eval_metrics intended_use references"
    assert set(zoo.split()) <= metadata.keys()
    (image,) = metadata["network_data_format"]["inputs"].values()
    (output,) = metadata["network_data_format"]["outputs"].values()
    assert [*image["channel_def"].values()] == [name.upper() for name in train["modalities"]]
    assert image["num_channels"] == len(train["modalities"])
    assert output["num_channels"] == len(output["channel_def"]) == 1
    assert image["spatial_shape"] == output["spatial_shape"]
    assert len(image["spatial_shape"]) == train["spatial_dims"]
    assert f"{train['spatial_dims']}D" in metadata["description"]


@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.parametrize("n", [1, 2])
def test_network_is_what_the_metadata_says(bundle, name, n):
    files = {"meta_file": str(bundle / "configs/metadata.json"), "config_file": str(bundle / f"configs/{name}.json")}
    verify_net_in_out(net_id="network_def", device="cpu", n=n, **files)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        verify_net_in_out(net_id="network_def", device="cpu", n=n, modalities=["flair", "t1"], **files)
    assert re.search(r"Expected \(batch, 2, \.\.\.\)|not with modalities \['flair', 't1'\]", messages(caught.value))


# ------------------------------------------------------------------------------------------------------------ configs


@over_configs
def test_every_reference_names_something(files):
    parser = parser_of(*files)
    texts = strings(used_by(files))
    references = {id for text in texts for id in ReferenceResolver.match_refs_pattern(text)}
    macros = {text[1:] for text in texts if text.startswith("%")}
    assert len(references) > 20
    assert macros
    assert [id for id in sorted(references | macros) if id not in parser] == []


@over_configs
def test_every_target_can_be_imported(files):
    def targets(config):
        if isinstance(config, dict) and "_target_" in config:
            yield config["_target_"]
        for part in config.values() if isinstance(config, dict) else config if isinstance(config, list) else []:
            yield from targets(part)

    found = set(targets(used_by(files)))
    assert len(found) > 10
    assert [name for name in sorted(found) if target({"_target_": name}) is None] == []


@over_configs
def test_every_expression_names_what_is_imported(files):
    config = used_by(files)
    names: dict[str, Any] = {}
    for line in config["imports"]:
        exec(line.removeprefix("$"), names)
    unused = names.keys() - {"__builtins__"}
    for text in strings({key: value for key, value in config.items() if key != "imports"}):
        if not text.startswith("$"):
            continue
        nodes = list(ast.walk(ast.parse(re.sub(r"@[\w#]+", "REFERENCE", text.removeprefix("$")), mode="eval")))
        bound = {node.arg for node in nodes if isinstance(node, ast.arg)}
        bound |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        used = {node.id for node in nodes if isinstance(node, ast.Name)} - bound - {"REFERENCE"}
        assert used <= names.keys() | vars(builtins).keys(), text
        unused -= used
        for node in nodes:
            dotted = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if re.fullmatch(r"\w+(\.\w+)+", dotted) and dotted.partition(".")[0] in names.keys() - bound:
                eval(dotted, names)
    assert unused == set()


def new_ids(files: Sequence[Path]) -> set[str]:
    """Ids of the last file that the others do not have."""
    base = parser_of(*files[:-1])
    return {key for key in read(files[-1]) if not can_be_set(base, key.removeprefix("+"))}


@pytest.mark.parametrize("files", [files for files in CONFIGS if "multi_gpu" in files[-1].stem], ids=name_of)
def test_configs_for_several_processes_change_what_is_there(files):
    assert new_ids(files) == {"backend", "finalize"}


@over_overlays
def test_overlays_replace_the_system(files):
    """Of training; evaluation and inference take it from the checkpoint."""
    of_training = {"adversary", "anomaly", "donors", "block_weight", "optimizer", "learning_rate"}
    assert new_ids(files) <= (of_training if files[0].stem != "train" else set())
    overlay, parser = read(files[1]), parser_of(*files)
    assert (
        overlay.keys()
        <= {"ckpt_dir", "eval_dir", "system", "roi_size", "normal_score", "planes", "context"} | of_training
    )
    assert parser["system"]["name"] == files[1].stem
    assert parser["system"].keys() >= {"network", "loss", "prepare_batch", "max_epochs", "batch_size", "num_samples"}
    for key in ("ckpt_dir", "eval_dir", "output_dir"):
        base, own = (Path(each.get_parsed_content(key)) for each in (parser_of(files[0]), parser))
        if files[1].stem == "draem":  # what train.json has
            assert own == base
        else:
            assert files[1].stem in own.parts
            assert Path(*(part for part in own.parts if part != files[1].stem)) == (
                base.with_name("trained") if base.name == "models" else base  # none of these is shipped
            )


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_lgg_is_the_same_network_on_other_data(workflow):
    files = [LGG.with_name(f"{workflow}.json"), LGG]
    base, parser = (parser_of(*each) for each in (files[:1], files))
    assert new_ids(files) <= {"iterations"}
    base["ckpt_dir"] = "nowhere"
    settings = [each.get_parsed_content("settings").content() for each in (base, parser)]
    differing = {key for key in settings[0] if settings[0][key] != settings[1][key]}
    assert differing == {"spacing", "smoothing", "background", "planes"}
    assert parser.get_parsed_content("ckpt_dir") == "bundles/brats2d/trained/lgg"
    assert Path(parser.get_parsed_content("output_dir")).is_relative_to("bundles/brats2d/eval/lgg")
    steps = parser.get_parsed_content("loading" if "loading" in base else "preprocessing#transforms")
    (mask,) = (step for step in steps if isinstance(step, BrainMaskd))
    assert mask.brain_mask.background == "skull"


@pytest.mark.parametrize("files", [[path.with_name("train.json"), path] for path in OVERLAYS], ids=name_of)
def test_networks_of_overlays_take_windows(files):
    """At evaluation the output has one channel."""
    parser = parser_of(*files)
    parser["modalities"] = ["t1ce", "flair"]
    parser["roi_size"] = [max(1, size // 2) for size in parser["roi_size"]]  # in less time
    network = parser.get_parsed_content("network_def")
    slices = 1 + len(parser["context"])
    image = torch.rand(2, 2 * slices, *parser["roi_size"][: parser["spatial_dims"]])
    trained = network.train()(image)
    # a reconstruction, of a slice or of its run, a map or classes
    expected = {image.shape, image[:, :2].shape, image[:, :1].shape, (2, 3)}
    assert (trained[0] if isinstance(trained, tuple) else trained).shape in expected
    with torch.no_grad():
        scores = network.eval()(image[:1])
    assert scores.shape == (1, 1, *image.shape[2:])
    assert scores.min() >= 0
    assert (scores.max() > scores.min()) == ("classifier" not in files[1].stem)  # which has one score a window


def test_metadata_of_the_bundles_differ_where_their_dimension_does():
    shapes = {f"network_data_format#{part}#spatial_shape" for part in ("inputs#image", "outputs#pred")}
    found = different_ids(*(read(bundle / "metadata.json") for bundle in BUNDLES))
    assert {id for id in found if not id.startswith("eval_metrics")} == {"name", "description"} | shapes


def test_what_is_trained_and_what_is_shipped_lie_apart(bundle):
    """Training must not overwrite the shipped weights, which inference and MONAI's tools take."""
    parsers = {name: parser_of(bundle / f"{name}.json") for name in WORKFLOWS}
    root = f"bundles/{bundle.name}"
    assert parsers["train"].get_parsed_content("ckpt_dir") == f"{root}/trained"
    assert parsers["evaluate"].get_parsed_content("ckpt_file") == f"{root}/trained/model.pt"
    assert parsers["inference"].get_parsed_content("ckpt_file") == f"{root}/models/model.pt"


@over_configs
def test_maps_are_smoothed_and_calibrated_alike_and_first_of_all(files):
    """In mm, whatever the voxels; before a map is brought to the grid of the scan, masked, scored or saved."""
    parser = parser_of(*files)
    steps = parser["validate#postprocessing" if "train" in files[0].stem else "postprocessing"]["transforms"]
    assert steps.startswith("$@score_transforms + ")
    assert parser["settings"]["smoothing"] == "@smoothing"
    assert parser["settings"]["normal_score"] == "@normal_score"
    parser["smoothing"], parser["spacing"], parser["normal_score"] = 3, [1, 2, 4], None
    peak, brain = torch.zeros(1, 41, 41, 41), torch.ones(1, 41, 41, 41)
    peak[0, 20, 20, 20] = 1
    found = Compose(parser.get_parsed_content("score_transforms"))(
        {"pred": peak, "reconstruction": peak, "brain": brain}
    )
    assert torch.equal(found["reconstruction"], peak)
    places = torch.arange(41.0) - 20
    for axis, voxels in enumerate((3, 1.5, 0.75)):
        along = found["pred"][0].sum(dim=[other for other in range(3) if other != axis])
        assert float((along * places**2).sum() ** 0.5) == pytest.approx((voxels**2 + 1 / 12) ** 0.5, rel=0.01)
    parser["smoothing"] = 0
    assert torch.equal(
        Compose(parser.get_parsed_content("score_transforms"))({"pred": peak, "brain": brain})["pred"], peak
    )
    parser["normal_score"] = 0.1
    calibrated = Compose(parser.get_parsed_content("score_transforms"))({"pred": 0.3 + 0.4 * peak, "brain": brain})[
        "pred"
    ]
    assert float(calibrated.median()) == pytest.approx(0.1)


def test_workflows_of_a_bundle_prepare_images_alike(bundle, tmp_path):
    write_case(tmp_path, "Made_001", spacing=(1.5, 1.5, 2), axcodes="PIR")
    image, label = (str(tmp_path / f"Made_001/Made_001_{kind}.nii.gz") for kind in ("flair", "seg"))
    scan = {"case_id": "Made_001", "patient_id": "Made_001", "image": image}
    case = {**scan, "label": label}
    train = parser_of(bundle / "train.json")
    steps = [train.get_parsed_content(key) for key in ("loading", "spatial_preprocessing", "scaling")]
    expected = Compose([*chain.from_iterable(steps)])(case)["image"]
    for name, item in (("evaluate", case), ("inference", scan)):
        image = parser_of(bundle / f"{name}.json").get_parsed_content("preprocessing")(item)["image"]
        assert torch.equal(image, expected)
        assert torch.equal(image.affine, expected.affine)


# --------------------------------------------------------------------------------------------------------------- docs


def commands(text: str) -> list[list[str]]:
    """Words behind ``monai.bundle`` of every command in the fenced blocks."""
    blocks = re.findall(r"^```(.*?)\n(.*?)^```$", text, re.M | re.S)
    lines = [
        line
        for kind, block in blocks
        if kind in ("", "bash")
        for line in block.replace("\\\n", " ").splitlines()
        if "-m monai.bundle " in line
    ]
    return [shlex.split(line.partition("-m monai.bundle ")[2], comments=True) for line in lines]


def config_files(named: str, document: Path) -> list[Path]:
    """Files that a command names, from the root of the repository or of the bundle."""
    names = ast.literal_eval(named) if named.startswith("[") else [named]
    roots = [ROOT, document.parents[1]]
    return [next((root / name for root in roots if (root / name).is_file()), ROOT / name) for name in names]


PAGES = [path for path in sorted(ROOT.glob("docs/**/*.md")) if commands(path.read_text(encoding="utf-8"))]
PAGES.remove(ROOT / "docs" / "add_a_system.md")  # whose commands need the files that it adds
DOCUMENTS = [ROOT / "README.md", *PAGES, *(bundle / "docs" / "README.md" for bundle in BUNDLES)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_docs_exist(document):
    found = commands(document.read_text(encoding="utf-8"))
    assert found
    for function, *words in found:
        own = inspect.signature(getattr(monai.bundle, function)).parameters
        options = {word[2:]: value for word, value in pairwise(words) if word.startswith("--")}
        files = config_files(options["config_file"], document)
        assert all(file.is_file() for file in files), words
        parser = parser_of(*files)
        assert [name for name in options if name not in own and not can_be_set(parser, name)] == [], words
        assert words[0].startswith("--") or words[0] in parser, words


def test_overrides_in_the_docs_exist(bundle):
    rows = re.findall(r"^\| (`--.*?) \|", (bundle / "docs" / "README.md").read_text(encoding="utf-8"), re.M)
    names = {name for row in rows for name in re.findall(r"--([\w#]+)", row)}
    known = [parser_of(*files) for files in CONFIGS if files[-1].parents[1] == bundle]
    known += [parser_of(file.with_name("train.json"), file) for file in bundle.glob("configs/images2d.json")]
    assert len(names) > 10
    assert [name for name in sorted(names) if not any(can_be_set(parser, name) for parser in known)] == []


def test_overrides_in_the_docs_stand_where_they_are_kept(bundle):
    """What passes by the option that an argument refers to is not kept in the checkpoint, and so not compared."""
    text, parser = (bundle / "docs" / "README.md").read_text(encoding="utf-8"), parser_of(bundle / "train.json")
    names = re.findall(r"--(\w+(?:#\w+)+)", "\n".join(re.findall(r"^\| (`--.*?) \|", text, re.M)))
    assert len(names) > 5
    references = {f"@{id}" for id in parser["train"]["fixed"]}
    assert [name for name in names if name in parser and str(parser[name]) in references] == []
