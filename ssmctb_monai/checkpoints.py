"""What lies beside a checkpoint: with which settings it is used, its thresholds, and the record of its training.

``model.pt`` is a bare state dict, as tools around MONAI take it. Beside it lie ``model_settings.json``
(:class:`Settings`), ``model_thresholds.json`` (:func:`~ssmctb_monai.metrics.load_thresholds`) and ``model_record.json``
(:class:`~ssmctb_monai.handlers.TrainingRecord`).
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib import import_module
from numbers import Real
from pathlib import Path
from pydoc import locate
from typing import Any, Literal

import torch
from monai.config import PathLike
from monai.inferers import Inferer
from torch import nn

from ssmctb_monai.checks import check_context, check_file, check_spatial_dims
from ssmctb_monai.data.brats import canonical_modalities
from ssmctb_monai.files import checksum, read_json, write_json
from ssmctb_monai.inferers.windows import window_inferer
from ssmctb_monai.networks.insertion import insert_block
from ssmctb_monai.networks.nets.slice_predictor import SlicePredictor
from ssmctb_monai.transforms.modalities import dropout_rates
from ssmctb_monai.transforms.slices import PLANES, Plane, plane_axes

logger = logging.getLogger(__name__)

BACKGROUNDS = ("constant", "skull", "noise")
_PACKAGES = ("ssmctb_monai.networks.", "monai.networks.nets.", "monai.networks.blocks.")
_ROI_SIZES_OF_VERSION_0_1 = {2: (96, 96, 1), 3: (32, 32, 32)}
_PLAIN_TEXT = re.compile(r"[\w.,\- ]*")  # names alone: no expressions, references, paths or addresses


def beside(ckpt_file: PathLike, what: Literal["settings", "thresholds", "record"]) -> Path:
    """Returns a file that lies beside a checkpoint.

    Args:
        ckpt_file: file of the checkpoint.
        what: what the file holds.

    Example:
        >>> beside("models/model.pt", "thresholds").name
        'model_thresholds.json'
    """
    return Path(ckpt_file).with_name(f"{Path(ckpt_file).stem}_{what}.json")


@dataclass(frozen=True)
class Settings:
    """All that a trained network must be used with.

    Args:
        system: name of the system, such as ``"draem"``.
        modalities: channels of the image, by their names.
        spatial_dims: number of spatial dimensions of the network, 2 or 3.
        spacing: voxel size in mm along each of the three axes.
        roi_size: window of the network in voxels, along each of the three axes.
        background: how the brain is found where a scan has no mask: ``"constant"``, ``"skull"`` or ``"noise"``.
        smoothing: standard deviation in mm of the Gaussian that smooths anomaly maps; one number, or one an axis.
        block: name of the self-supervised block, ``"none"`` for a network without; ``None`` is the same.
        planes: planes whose slices a network in 2D runs over, see `PlanesInferer`; ``None``: the axial one.
        normal_score: score of a scan's median voxel, see `CalibrateScores`; ``None`` where scores are not calibrated.
        modality_dropout: probability that training left a modality out, see `RandDropModalities`; scans may lack those
            of which it is not 0.
        context: offsets of the slices that a network in 2D sees beside each slice, see `SequenceInferer`.
        network: the network as plain data, see :func:`describe_network`; ``None`` where it is not known.
        sha256: checksum of the checkpoint; ``None`` where it is not known.

    Raises:
        ValueError: when a value is of the wrong kind or outside its range; it is named.
    """

    system: str
    modalities: Sequence[str]
    spatial_dims: int
    spacing: Sequence[float]
    roi_size: Sequence[int]
    background: str
    smoothing: float | Sequence[float]
    block: str | None
    planes: Sequence[Plane] | None = None
    normal_score: float | None = None
    modality_dropout: float | Sequence[float] = 0.0
    context: Sequence[int] = ()
    network: Mapping[str, Any] | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        text = self.modalities if isinstance(self.modalities, str) else [*_sequence("modalities", self.modalities)]
        normalised = {
            "modalities": canonical_modalities(text),
            "spacing": _three("spacing", self.spacing, lambda size: size > 0, "positive numbers"),
            "roi_size": _three(
                "roi_size", self.roi_size, lambda size: size >= 1 and size == int(size), "whole numbers"
            ),
            "smoothing": _three("smoothing", self.smoothing, lambda width: width >= 0, "numbers of at least 0"),
            "block": "none" if self.block is None else self.block,
            "planes": None if self.spatial_dims == 3 else tuple(PLANES[i] for i in plane_axes(self.planes or "axial")),
            "context": check_context(self.context, self.spatial_dims),
        }
        for name, value in normalised.items():
            object.__setattr__(self, name, value)
        check_spatial_dims(self.spatial_dims)
        for name in ("system", "block"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a name, got {getattr(self, name)!r}.")
        if self.normal_score is not None and not (_is_number(self.normal_score) and 0 < self.normal_score < 1):
            raise ValueError(f"normal_score must be between 0 and 1, got {self.normal_score!r}.")
        dropout_rates(self.modality_dropout, len(self.modalities))
        if self.context:
            self._check_context()
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background must be one of {', '.join(BACKGROUNDS)}, got {self.background!r}.")
        if self.sha256 is not None and not isinstance(self.sha256, str):
            raise ValueError(f"sha256 must be a text, got {self.sha256!r}.")

    def _check_context(self) -> None:
        context = f"context {list(self.context)}"
        if self.modality_dropout:
            raise ValueError(
                f"{context} and modality_dropout {self.modality_dropout} do not go together, since a run of slices "
                "needs all modalities: leave one of them out."
            )
        if self.network is None:
            return
        kind = locate(str(self.network.get("_target_")))
        if not (isinstance(kind, type) and issubclass(kind, SlicePredictor)):
            raise ValueError(
                f"{context} is of networks that see a slice with others, as those of the systems future, mnad and "
                f"state do (SlicePredictor), not of {self.network.get('_target_')}: leave it out, or take one of these."
            )

    @property
    def region(self) -> str:
        """What the network sees of a scan: ``"brain"`` or ``"head"``."""
        return "head" if self.background == "noise" else "brain"

    @property
    def optional_modalities(self) -> tuple[str, ...]:
        """Modalities that a scan may lack."""
        rates = dropout_rates(self.modality_dropout, len(self.modalities))
        return tuple(name for name, rate in zip(self.modalities, rates, strict=True) if rate)

    def check_dropout(self, prob: float | Sequence[float]) -> float | Sequence[float]:
        """Accepts probabilities to leave modalities out, of those that a scan may lack.

        Args:
            prob: one for all modalities but the first, or one for each.

        Returns:
            The probabilities.

        Raises:
            ValueError: when one is above 0 for a modality that the network needs.
        """
        rates = dropout_rates(prob, len(self.modalities)) if prob else ()
        needed = [name for name, rate in zip(self.modalities, rates, strict=False) if rate]
        if needed := [name for name in needed if name not in self.optional_modalities]:
            raise ValueError(
                f"The network needs {', '.join(needed)}, which --modality_dropout {prob} leaves out: take one that was "
                "trained with --modality_dropout."
            )
        return prob

    def content(self) -> dict[str, Any]:
        """Returns the settings as JSON has them."""
        return json.loads(json.dumps(asdict(self)))

    def save(self, ckpt_file: PathLike, sha256: str) -> None:
        """Writes the settings beside a checkpoint.

        Args:
            ckpt_file: file of the checkpoint.
            sha256: its checksum.
        """
        write_json({**self.content(), "sha256": sha256}, beside(ckpt_file, "settings"))


def load_settings(ckpt_file: PathLike, defaults: Mapping[str, Any]) -> Settings:
    """Reads the settings beside a checkpoint; no code in them is run.

    Args:
        ckpt_file: file of the checkpoint, which may be absent.
        defaults: settings by their names, for a checkpoint that has no such file, whose scores are not calibrated, or
            one of an earlier version that lacks some.

    Returns:
        The settings; without ``network`` where there is no such file.

    Raises:
        ValueError: when the file holds something else; it is named.
    """
    file = beside(ckpt_file, "settings")
    if not file.is_file():
        # Scores of a network from elsewhere stay as it gives them
        return Settings(**{**defaults, "normal_score": None} if Path(ckpt_file).is_file() else defaults)
    content = read_json(file)
    try:
        if not isinstance(content.get("network"), Mapping):
            content = _of_version_0_1(content, defaults)
        names = {field.name for field in fields(Settings)}
        if missing := names - {"sha256", "planes", "normal_score", "modality_dropout", "context"} - content.keys():
            raise ValueError(f"{', '.join(sorted(missing))} is missing.")
        _check_description(content["network"])
        return Settings(**{name: value for name, value in content.items() if name in names})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} holds no settings of a network: {error} Take the file that its training wrote beside {ckpt_file}."
        ) from error


def check_settings(trained: Settings, ckpt_file: PathLike, **given: Any) -> Settings:
    """Accepts settings that are those of a checkpoint's training.

    Args:
        trained: settings of the training.
        ckpt_file: file of the checkpoint, to name it.
        given: settings by their names. ``background`` may differ as long as the network sees the same region.

    Returns:
        The settings to use the network with.

    Raises:
        ValueError: when settings differ; all of them are named.
    """
    used = replace(trained, **given, modality_dropout=0.0)  # which is of the modalities of the training
    if trained.network is None:  # nothing is known of the training
        return used
    pairs = {name: (getattr(trained, name), getattr(used, name)) for name in given if name != "background"}
    pairs["region"] = trained.region, used.region
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if differing:
        wanted, got = (
            ", ".join(f"{name} {_text(pair[index])}" for name, pair in differing.items()) for index in (0, 1)
        )
        raise ValueError(
            f"{ckpt_file} was trained with {wanted}, not with {got}, as {beside(ckpt_file, 'settings').name} says: "
            "leave the override out, or name another checkpoint by --ckpt_file."
        )
    return replace(used, modality_dropout=trained.modality_dropout)


def check_checkpoint(
    ckpt_file: PathLike, settings: Settings | None = None, bundle_root: PathLike | None = None
) -> Path:
    """Accepts and logs a checkpoint that is whole and belongs to its settings.

    Args:
        ckpt_file: file of the checkpoint, a state dict.
        settings: settings beside it, for the checksum.
        bundle_root: folder of the bundle, to name its checkpoints where there is no such file.

    Returns:
        The file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is damaged, or no state dict, or another one than that of the settings.
    """
    advice = "train first, or name a checkpoint by --ckpt_file"
    if bundle_root is not None:
        shipped = Path(bundle_root) / "models/model.pt"
        advice += f": training writes below {bundle_root}/trained"
        advice += f", and {shipped} is shipped" if shipped.is_file() else ""
    checkpoint = check_file(ckpt_file, advice)
    if settings is not None and settings.sha256 not in (None, checksum(checkpoint)):
        raise ValueError(
            f"{checkpoint} is not the file that {beside(checkpoint, 'settings').name} belongs to: it is damaged, or "
            "was exchanged alone. Copy both from where they were made."
        )
    state = load_state(checkpoint, "copy it anew, or name another checkpoint by --ckpt_file")
    if not isinstance(state, Mapping):
        raise ValueError(f"{checkpoint} holds no state dict of a network: name another checkpoint by --ckpt_file.")
    logger.info("Using the checkpoint %s.", checkpoint)
    return checkpoint


def load_ensemble(ckpt_files: Sequence[PathLike], settings: Settings, device: torch.device) -> dict[nn.Module, Inferer]:
    """Loads the networks that make an ensemble with another one: of 2D and 3D, of several folds, of several systems.

    Args:
        ckpt_files: their checkpoints, with the settings beside them.
        settings: settings of the other one. Those of what is done before and after the networks must be the same.
        device: device of the networks.

    Returns:
        Networks in evaluation mode, each with its inferer.

    Raises:
        FileNotFoundError: when a checkpoint or its settings are missing.
        ValueError: when settings differ, or a file is damaged.
    """
    members: dict[nn.Module, Inferer] = {}
    for file in ckpt_files:
        check_file(beside(file, "settings"), "training writes it beside the checkpoint, which an ensemble needs")
        own = load_settings(file, {})
        names = ("modalities", "optional_modalities", "spacing", "region", "smoothing", "normal_score")
        if differing := [name for name in names if getattr(own, name) != getattr(settings, name)]:
            pairs = [f"{name} {_text(getattr(own, name))}, not {_text(getattr(settings, name))}" for name in differing]
            raise ValueError(
                f"{file} was trained with {'; '.join(pairs)}, the settings of the first checkpoint: the networks of an "
                "ensemble share them."
            )
        network = make_network(own.network)
        network.load_state_dict(load_state(check_checkpoint(file, own), "copy it anew"))
        members[network.to(device).eval()] = window_inferer(own.spatial_dims, own.roi_size, own.planes, own.context)
    return members


def thresholds_of(ckpt_files: Sequence[PathLike]) -> Path:
    """Returns the file of the thresholds that training wrote beside a checkpoint.

    Args:
        ckpt_files: the checkpoint; of several one is asked for.

    Raises:
        ValueError: when there are several checkpoints.
    """
    if len(ckpt_files) > 1:
        raise ValueError(
            "The mean of several networks' maps has a threshold of its own: make it by `python -m monai.bundle run "
            "thresholding` with these checkpoints, and name it by --thresholds_file, or give `--thresholds_file none`."
        )
    return beside(ckpt_files[0], "thresholds")


def warn_of_trained_cases(ckpt_files: Sequence[PathLike], case_ids: Sequence[str]) -> list[str]:
    """Warns of cases to test that a checkpoint was trained on, by the record beside it.

    Args:
        ckpt_files: the checkpoints; one without a record is passed over.
        case_ids: names of the cases.

    Returns:
        What a report says of it, of each checkpoint that was trained on some of them.
    """
    notes = []
    for file in ckpt_files:
        record = beside(file, "record")
        trained = set(read_json(record).get("cases", ())) if record.is_file() else set()
        if known := [case_id for case_id in case_ids if case_id in trained]:
            notes.append(f"{file} was trained on {len(known)} of these {len(case_ids)} cases")
            logger.warning("%s, so that it may look better than it is: %s.", notes[-1], ", ".join(known))
    return notes


def load_state(path: Path, advice: str) -> Any:
    """Reads what ``torch.save`` wrote, on the CPU and without running code.

    Args:
        path: file.
        advice: what to do where it cannot be read.

    Returns:
        Its content.

    Raises:
        ValueError: when the file is damaged, or of another kind.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: EOFError, RuntimeError, UnpicklingError, KeyError, …
        raise ValueError(f"{path} is damaged, or no checkpoint: {advice}.") from error


def describe_network(network: Any) -> Any:
    """Describes a network that has yet to be made as plain data: its ``_target_`` and its arguments.

    Args:
        network: ``functools.partial`` of a class or function with keyword arguments, some of which may be such partials
            again; in a configuration a component with ``"_mode_": "callable"``.

    Returns:
        The description, for :func:`make_network`.

    Raises:
        TypeError: when an argument is no plain data.

    Example:
        >>> describe_network(partial(DRAEM, spatial_dims=2))
        {'_target_': 'ssmctb_monai.networks.nets.DRAEM', 'spatial_dims': 2}
    """
    if isinstance(network, partial):
        arguments = {name: describe_network(value) for name, value in network.keywords.items()}
        return {"_target_": _name_of(network.func), **arguments}
    if isinstance(network, Mapping):
        return {name: describe_network(value) for name, value in network.items()}
    if isinstance(network, list | tuple):
        return [describe_network(value) for value in network]
    if network is None or isinstance(network, str | bool | int | float):
        return network
    raise TypeError(
        f"A network is described by plain data, got {type(network).__name__}: in a configuration give the network, and "
        'those within it, "_mode_": "callable".'
    )


def make_network(description: Any) -> Any:
    """Makes a network from its description.

    Args:
        description: what :func:`describe_network` returned.

    Returns:
        The network, with new weights.

    Raises:
        ValueError: when there is no such class.
    """
    if isinstance(description, list | tuple):
        return [make_network(value) for value in description]
    if not isinstance(description, Mapping):
        return description
    arguments = {name: make_network(value) for name, value in description.items()}
    if "_target_" not in arguments:
        return arguments
    target: Any = locate(arguments.pop("_target_"))
    if target is None:
        raise ValueError(f"There is no network {description['_target_']}: which package or version has it?")
    return target(**arguments)


def _name_of(target: Any) -> str:
    """Name by which users import a class or function: that of the outermost package that has it."""
    parts, name = target.__module__.split("."), target.__name__
    for count in range(2, len(parts) + 1):
        if getattr(import_module(".".join(parts[:count])), name, None) is target:
            return ".".join([*parts[:count], name])
    raise TypeError(f"{target!r} has no name to import it by.")


def _check_description(description: Any) -> None:
    """Raises where a description from a file would make anything but a network of this package or MONAI."""
    if isinstance(description, Mapping):
        if "_target_" in description:
            name = description["_target_"]
            target = locate(name) if isinstance(name, str) and name.startswith(_PACKAGES) else None
            is_network = isinstance(target, type) and issubclass(target, nn.Module)
            if not is_network and target is not insert_block:
                raise ValueError(f"{name!r} is no network of ssmctb_monai or MONAI; give your own by --network_def.")
        for value in description.values():
            _check_description(value)
    elif isinstance(description, list):
        for value in description:
            _check_description(value)
    elif isinstance(description, str) and not _PLAIN_TEXT.fullmatch(description):
        raise ValueError(f"{description!r} is no argument of a network.")


def _of_version_0_1(content: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as version 0.1.0 wrote them: without the network, of which they name the arguments that varied."""
    system, dims, channels = content["network"], content["spatial_dims"], len(content["modalities"])
    if system == "draem":
        names = ("reconstructive_width", "discriminative_width", "block", "block_in")
        own = {name: content[name] for name in names}
        network = {"_target_": "ssmctb_monai.networks.nets.DRAEM", "spatial_dims": dims, "in_channels": channels, **own}
    elif system in ("autoencoder", "mae"):
        inner = {"spatial_dims": dims, "in_channels": channels}
        if system == "autoencoder":
            inner |= {"_target_": "monai.networks.nets.AutoEncoder", "out_channels": channels, "norm": "batch"}
            inner |= {"channels": [16, 32, 64, 128, 16], "strides": content["strides"]}
        else:
            heads = dict(zip(("num_heads", "decoder_num_heads"), content["num_heads"], strict=True))
            inner |= {"_target_": "ssmctb_monai.networks.nets.MaskedAutoencoder", "patch_size": 8, "num_layers": 4}
            inner |= {"img_size": content["roi_size"][:dims], "masking_ratio": content["masking_ratio"], **heads}
            inner |= {"hidden_size": 128, "mlp_dim": 512, "decoder_hidden_size": 64, "decoder_mlp_dim": 256}
            inner |= {"decoder_num_layers": 2, "pos_embed_type": "learnable"}
        size = content.get("roi_size", _ROI_SIZES_OF_VERSION_0_1[dims])[:dims]
        block = {"_target_": "ssmctb_monai.networks.insert_block", "network": inner, "block": content["block"]}
        block |= {"sample": [1, channels, *size]}
        detector = "ssmctb_monai.networks.nets.ReconstructionDetector"
        network = {"_target_": detector, "spatial_dims": dims, "in_channels": channels, "network": block}
        network["score"] = content["score"]
    else:
        raise ValueError(f"network must be a description, got {system!r}.")
    background = "noise" if content["region"] == "head" else defaults["background"]
    roi_size = _ROI_SIZES_OF_VERSION_0_1[dims]
    return {"roi_size": roi_size, "background": background, **content, "system": system, "network": network}


def _three(name: str, value: Any, is_right: Any, kind: str) -> tuple[Any, ...]:
    """One value for each of the axes."""
    values = [value] * 3 if isinstance(value, Real) and name == "smoothing" else [*_sequence(name, value)]
    if len(values) != 3 or not all(_is_number(each) and is_right(each) for each in values):
        raise ValueError(f"{name} must be three {kind}, got {_text(value)}.")
    return tuple(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _sequence(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{name} must be a list, got {value!r}.")
    return value


def _text(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)
