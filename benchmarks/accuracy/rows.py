"""The rows of the accuracy tables: which bundle, with which overlays and overrides, on which data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

MODALITIES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1ce", "t2": "T2"}
DATA = {"brats": "BRATS", "lgg": "LGG"}


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Args:
        title: what it shows, in the table.
        data: data set, of `DATA`.
        bundle: name of the bundle.
        overlays: names of files in the bundle's ``configs`` that the training takes, such as that of a system.
        overrides: ids of the training. The evaluation takes from the checkpoint what it must know of them.
        modalities: modalities to train and test on; the first one is the baseline.
        reference: row that is subtracted, on the same folds and seeds.
    """

    title: str
    data: str
    bundle: str
    overlays: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    modalities: tuple[str, ...] = ("flair",)
    reference: str | None = None

    @property
    def baseline(self) -> str:
        """Name of the method that the bundle's evaluation compares with."""
        return f"baseline_{self.modalities[0]}"

    @property
    def group(self) -> str:
        """Data and modalities, which rows must share to be compared."""
        return f"{DATA[self.data]}, {' + '.join(MODALITIES[name] for name in self.modalities)}"

    @property
    def config_files(self) -> list[Path]:
        """Files of the training: the bundle's own one and the overlays."""
        return [BUNDLES / self.bundle / "configs" / f"{name}.json" for name in ("train", *self.overlays)]


BUNDLES = Path(__file__).parents[2] / "bundles"
PATHS = ("bundle_root", "ckpt_dir", "ckpt_file", "eval_dir", "output_dir", "cache_dir", "dataset_dir", "datalist_file")


def settings_of(*files: Path) -> dict[str, Any]:
    """Reads a configuration without its paths.

    Args:
        files: a workflow's file and overlays.
    """
    merged = ConfigParser.load_config_files([str(file) for file in files])
    return {key: value for key, value in merged.items() if key not in PATHS}


BLOCK_IN = "system#network#block_in"
# What the tables say of a row, what it changes in the bundle as it is shipped, and the row that is subtracted
BLOCK_ROWS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "-none": ("no block", {"block": "none"}, None),
    "": ("SSMCTB in the reconstructive sub-network", {}, "-none"),
    "-sspcab": ("SSPCAB in the reconstructive sub-network", {"block": "sspcab"}, ""),
    "-both": ("SSMCTB in both sub-networks", {BLOCK_IN: "both"}, "-none"),
    "-discriminative": ("SSMCTB in the discriminative sub-network", {BLOCK_IN: "discriminative"}, "-none"),
    "-lambda0": ("SSMCTB in the reconstructive sub-network, λ = 0", {"block_weight": 0}, ""),
    "-lambda1": ("SSMCTB in the reconstructive sub-network, λ = 1", {"block_weight": 1}, ""),
}

# One thing of the recipe taken back, minus the bundle as it is shipped
RECIPE_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "-avoid": ("lesion-free slices or crops instead of erased lesions", {"lesions": "avoid"}),
    "-single": ("one anomaly a sample", {"anomaly#count": [1, 1]}),
    "-offset0.1": ("offsets from 0.1", {"anomaly#sources#offset": [0.1, 0.3]}),
    "-unsmoothed": ("maps not smoothed", {"smoothing": 0.0}),
    "-smoothing3": ("maps smoothed by 3 mm", {"smoothing": 3.0}),
    "-uncalibrated": ("scores as the network gives them", {"normal_score": None}),
    "-contrast0.3": (
        "contrast exp(±0.3), no gamma",
        {
            "system#intensity_variation#0": {
                "_target_": "ssmctb_monai.transforms.RandContrastd",
                "keys": "image",
                "contrast": 0.3,
            }
        },
    ),
    "-thin": ("no thick slices", {"system#intensity_variation#2#prob": 0.0}),
}

# Several modalities, each with and without a block
MODALITY_ROWS = {"-t1ce": ("flair", "t1ce"), "-four": ("flair", "t1ce", "t1", "t2")}

# One network for any of the modalities
ANY = {"modality_dropout": 0.5}

# Every second anomaly with another one in its middle
OFFSET = {"_target_": "ssmctb_monai.transforms.OffsetSource", "offset": [0.03, 0.3], "modalities": "@channels"}
NESTED = {"_target_": "ssmctb_monai.transforms.NestedSource", "outer": OFFSET, "inner": OFFSET}

# Anomalies of another kind for DRAEM, which takes binary labels, minus the bundle as it is shipped
PARTS = "ssmctb_monai.transforms."
FOREIGN = {"spatial_dims": "@spatial_dims", "prob": 0.75, "label": {"_target_": f"{PARTS}BinaryLabel"}}
ANOMALY_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "-anomaly_paste": (
        "anomalies from another place of the brain",
        {"anomaly#sources": {"_target_": f"{PARTS}AnotherPlaceSource", "opacity": [1.0, 1.0]}},
    ),
    "-anomaly_nsa": (
        "anomalies of NSA",
        {"anomaly": {"_target_": f"{PARTS}RandNaturalAnomaly", **FOREIGN}, "donors": 8},
    ),
    "-anomaly_fpi": (
        "anomalies of FPI",
        {"anomaly": {"_target_": f"{PARTS}RandForeignPatch", **FOREIGN}, "donors": 8},
    ),
    "-anomaly_cutpaste": (
        "anomalies of CutPaste",
        {"anomaly": {"_target_": f"{PARTS}RandCutPaste", "spatial_dims": "@spatial_dims", "prob": 0.75}},
    ),
    "-anomaly_mixed": (
        "anomalies of several shapes and sources",
        {
            "anomaly": {
                "_target_": f"{PARTS}RandAnomaly",
                "spatial_dims": "@spatial_dims",
                "prob": 0.75,
                "shapes": [{"_target_": f"{PARTS}{shape}"} for shape in ("PerlinShape", "AreaPatchShape", "ScarShape")],
                "sources": [
                    {"_target_": f"{PARTS}OffsetSource", "offset": [0.03, 0.3]},
                    {"_target_": f"{PARTS}AnotherPlaceSource"},
                    {"_target_": f"{PARTS}TextureSource"},
                ],
                "count": [1, 3],
            }
        },
    ),
}

# What could make the block matter, on FLAIR + T1ce, minus no block: class of the network, and overrides
STUDY = "benchmarks.block_study."


def studied(network: str) -> dict[str, Any]:
    """Override of a training and its evaluation by a network that no checkpoint of the package names.

    Args:
        network: name of its class.
    """
    own = {"spatial_dims": 2, "in_channels": 2, "block_in": "reconstructive"}
    return {"network_def": {"_target_": f"{STUDY}{network}", **own}}


STUDIED_LOSS = {"loss#_target_": f"{STUDY}StudiedLoss"}
BLOCK_STUDY: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("no block", {"block": "none"}),
    "default": ("SSMCTB in the reconstructive sub-network", {}),
    "both": ("SSMCTB in both sub-networks", {BLOCK_IN: "both"}),
    "detached": ("target detached", studied("DetachedDRAEM")),
    "normalised": ("loss relative to the input", studied("NormalisedDRAEM")),
    "wide": ("masked centre of 9, dilation 4", studied("WideMaskDRAEM")),
    "scales": ("a block in every stage", studied("AllScalesDRAEM")),
    "features": ("on the input's finest features", studied("InputFeaturesDRAEM")),
    "error": ("its error as one more input", studied("ErrorInputDRAEM")),
    "rising": ("λ rises over 300 steps", {"loss#rising_steps": 300}),
    "lambda0": ("λ = 0", {"block_weight": 0}),
    "lambda1": ("λ = 1", {"block_weight": 1}),
}

# Systems besides that of train.json, by their overlay
SYSTEMS = {
    "autoencoder": "autoencoder, SSMCTB",
    "mae": "masked autoencoder, SSMCTB",
    "ssm": "SSM, SSMCTB, cells of 16, 32 and 64 mm",
}

# One thing of SSM changed, minus SSM as its overlay is; published are cells of 2, 4 and 8 pixels, here of 2 mm
SSM_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "-none": ("SSM without block", {"block": "none"}),
    "-sspcab": ("SSM, SSPCAB", {"block": "sspcab"}),
    "-unrefined": ("SSM, SSMCTB, one pass", {"system#network#num_passes": 1}),
    "-published": ("SSM, SSMCTB, cells of 4, 8 and 16 mm", {"system#network#cell_sizes": [4, 8, 16]}),
    "-msgms": ("SSM, SSMCTB, score by MSGMS", {"system#network#score": "msgms"}),
    "-mask": ("SSM, SSMCTB, score by the predicted mask", {"system#network#score": "mask"}),
    "-gaussian": ("Gaussian mean around the same cells", {"system#network#restoration": "gaussian"}),
}

# Systems of which the tables have the blocks, too: their title without block
SYSTEMS_WITH_BLOCKS = {
    "nsa": "NSA",
    "fastvit_nsa": "NSA with FastViT",
    "cutpaste": "CutPaste as a segmentation",
    "cutpaste_classifier": "CutPaste as a classifier",
    "georgescu": "autoencoder with gradient ascent on anomalies",
}
SYSTEM_BLOCK_ROWS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "-none": ("no block", {"block": "none"}, None),
    "": ("SSMCTB", {}, "-none"),
    "-sspcab": ("SSPCAB", {"block": "sspcab"}, ""),
}
# Systems that see slices with their context, each with its blocks: published are neighbours; lesions end 32 mm away
SEQUENCE_SYSTEMS = {"future": "future prediction", "mnad": "MNAD", "state": "STATE"}
FAR = {"context": [-16, 16]}
CONTEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("four slices beside it", {}),
    "-gap": ("slices 32 mm away on both sides", FAR),
}
# What predicts without learning, minus the network; what could help the network where that is better, minus it as it is
MEAN = {"system#network#prediction": "mean"}
SMOOTHER = {"smoothing": 6.0}
FUTURE_ROWS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "-mean": ("mean of the four slices beside it", MEAN, ""),
    "-gap-mean": ("mean of the slices 32 mm away", {**FAR, **MEAN}, "-gap"),
    "-copy": ("copy of the slice beside it", {"context": [-1], **MEAN}, None),
    "-gap-smoothing6": ("future prediction from 32 mm away, maps smoothed by 6 mm", {**FAR, **SMOOTHER}, "-gap"),
    "-gap-mean-smoothing6": (
        "mean of the slices 32 mm away, maps smoothed by 6 mm",
        {**FAR, **SMOOTHER, **MEAN},
        "-gap-smoothing6",
    ),
    "-gap-gamma": (
        "future prediction from 32 mm away, gamma varied, of all slices alike",
        {
            **FAR,
            "augmentation": [{"_target_": "RandAdjustContrastd", "keys": "image", "prob": 0.8, "gamma": [0.6, 1.6]}],
        },
        "-gap",
    ),
    "-gap-planes": (
        "future prediction from 32 mm away in all planes",
        {**FAR, "planes": ["axial", "coronal", "sagittal"]},
        "-gap",
    ),
}
# SSMTL++ on stacks of slices, with its blocks, and the error of the restoration alone
SSMTL_ROWS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    **SYSTEM_BLOCK_ROWS,
    "-restoration": ("SSMCTB, score by the restoration alone", {"system#network#question_share": 0}, ""),
}
# One thing of NSA changed, minus NSA with SSMCTB
NSA_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "-mixed": ("mixed gradients", {"anomaly#gradients": "mixed"}),
    "-binary": ("binary labels", {"anomaly#label": {"_target_": f"{PARTS}BinaryLabel"}}),
    "-raw": ("the change itself as label", {"anomaly#label": {"_target_": f"{PARTS}ContinuousLabel"}}),
}

ROWS = {
    **{
        f"brats{dims}d{name}": Row(
            f"{dims}D, {title}",
            "brats",
            f"brats{dims}d",
            overrides=overrides,
            reference=None if reference is None else f"brats{dims}d{reference}",
        )
        for dims in (2, 3)
        for name, (title, overrides, reference) in BLOCK_ROWS.items()
    },
    **{
        f"brats{dims}d{name}": Row(
            f"{dims}D, {title}", "brats", f"brats{dims}d", overrides=overrides, reference=f"brats{dims}d"
        )
        for dims in (2, 3)
        for name, (title, overrides) in {**RECIPE_ROWS, **ANOMALY_ROWS}.items()
    },
    "brats2d-axial": Row(
        "2D, axial slices alone", "brats", "brats2d", overrides={"planes": ["axial"]}, reference="brats2d"
    ),
    **{
        f"brats{dims}d{name}{block}": Row(
            f"{dims}D, {title}",
            "brats",
            f"brats{dims}d",
            overrides=overrides,
            modalities=modalities,
            reference=None if reference is None else f"brats{dims}d{name}{reference}",
        )
        for dims in (2, 3)
        for name, modalities in MODALITY_ROWS.items()
        for block, (title, overrides, reference) in BLOCK_ROWS.items()
        if block in ("-none", "")
    },
    **{
        f"brats{dims}d-four-nested": Row(
            f"{dims}D, SSMCTB in the reconstructive sub-network, nested anomalies",
            "brats",
            f"brats{dims}d",
            overrides={"anomaly#sources": [OFFSET, NESTED]},
            modalities=MODALITY_ROWS["-four"],
            reference=f"brats{dims}d-four",
        )
        for dims in (2, 3)
    },
    **{
        f"brats{dims}d-any": Row(
            f"{dims}D, SSMCTB in the reconstructive sub-network, modalities left out in training",
            "brats",
            f"brats{dims}d",
            overrides=ANY,
            modalities=MODALITY_ROWS["-four"],
            reference=f"brats{dims}d-four",
        )
        for dims in (2, 3)
    },
    **{
        f"brats2d-study_{name}": Row(
            f"2D, block study: {title}",
            "brats",
            "brats2d",
            overrides={**STUDIED_LOSS, **overrides},
            modalities=MODALITY_ROWS["-t1ce"],
            reference=None if name == "none" else "brats2d-study_none",
        )
        for name, (title, overrides) in BLOCK_STUDY.items()
    },
    **{
        f"brats{dims}d-{system}": Row(f"{dims}D, {title}", "brats", f"brats{dims}d", (system,))
        for dims in (2, 3)
        for system, title in SYSTEMS.items()
    },
    **{
        f"brats{dims}d-ssm{name}": Row(
            f"{dims}D, {title}", "brats", f"brats{dims}d", ("ssm",), overrides, reference=f"brats{dims}d-ssm"
        )
        for dims in (2, 3)
        for name, (title, overrides) in SSM_ROWS.items()
    },
    **{
        f"brats{dims}d-ssm-published-gaussian": Row(
            f"{dims}D, Gaussian mean around cells of 4, 8 and 16 mm",
            "brats",
            f"brats{dims}d",
            ("ssm",),
            {"system#network#cell_sizes": [4, 8, 16], "system#network#restoration": "gaussian"},
        )
        for dims in (2, 3)
    },
    **{
        f"brats{dims}d-{system}{name}": Row(
            f"{dims}D, {title}, {block}",
            "brats",
            f"brats{dims}d",
            (system,),
            overrides,
            reference=None if reference is None else f"brats{dims}d-{system}{reference}",
        )
        for dims in (2, 3)
        for system, title in SYSTEMS_WITH_BLOCKS.items()
        for name, (block, overrides, reference) in SYSTEM_BLOCK_ROWS.items()
    },
    **{
        f"brats{dims}d-nsa{name}": Row(
            f"{dims}D, NSA, {title}", "brats", f"brats{dims}d", ("nsa",), overrides, reference=f"brats{dims}d-nsa"
        )
        for dims in (2, 3)
        for name, (title, overrides) in NSA_ROWS.items()
    },
    **{
        f"brats2d-{system}{gap}{name}": Row(
            f"2D, {title}, {context}, {block}",
            "brats",
            "brats2d",
            (system,),
            {**far, **overrides},
            reference=None if reference is None else f"brats2d-{system}{gap}{reference}",
        )
        for system, title in SEQUENCE_SYSTEMS.items()
        for gap, (context, far) in CONTEXTS.items()
        for name, (block, overrides, reference) in SYSTEM_BLOCK_ROWS.items()
    },
    **{
        f"brats2d-future{name}": Row(
            f"2D, {title}",
            "brats",
            "brats2d",
            ("future",),
            overrides,
            reference=None if reference is None else f"brats2d-future{reference}",
        )
        for name, (title, overrides, reference) in FUTURE_ROWS.items()
    },
    **{
        f"brats3d-ssmtl{name}": Row(
            f"3D, SSMTL++ on slices, {title}",
            "brats",
            "brats3d",
            ("ssmtl",),
            overrides,
            reference=None if reference is None else f"brats3d-ssmtl{reference}",
        )
        for name, (title, overrides, reference) in SSMTL_ROWS.items()
    },
    "brats2d-state-perturbed": Row(
        "2D, STATE, four slices beside it, SSMCTB, input perturbed by 0.005",
        "brats",
        "brats2d",
        ("state",),
        {"system#network#perturbation": 0.005},
        reference="brats2d-state",
    ),
    "lgg2d": Row("2D, SSMCTB in the reconstructive sub-network, brain cut out", "lgg", "brats2d", ("lgg",)),
}
