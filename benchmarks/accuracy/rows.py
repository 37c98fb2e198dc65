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
        reference: row that is subtracted, on the same folds and seeds. Where the training is the same, its networks are
            taken.
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
# Ids that change how a network is used, and nothing that it learns
EVALUATED = {
    "smoothing",
    "normal_score",
    *(
        f"system#network#{argument}"
        for argument in ("score", "perturbation", "num_passes", "distance_weight", "question_share")
    ),
}
PATHS = ("bundle_root", "ckpt_dir", "ckpt_file", "eval_dir", "output_dir", "cache_dir", "dataset_dir", "datalist_file")


def settings_of(*files: Path) -> dict[str, Any]:
    """Reads a configuration without its paths.

    Args:
        files: a workflow's file and overlays.
    """
    merged = ConfigParser.load_config_files([str(file) for file in files])
    return {key: value for key, value in merged.items() if key not in PATHS}


BLOCK_IN = "system#network#block_in"
# Rows by the ends of their names: what the tables say, what it changes, and the end of the name of the row that is
# subtracted, if there is one
Changes = Mapping[str, tuple[str, Mapping[str, Any], str | None]]


def minus_plain(changes: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Changes:
    """Lets the row without an end be subtracted from all others.

    Args:
        changes: of each row, as in `Changes`, what the tables say, and what it changes.

    Example:
        >>> minus_plain({"-thin": ("no thick slices", {})})
        {'-thin': ('no thick slices', {}, '')}
    """
    return {name: (*change, "") for name, change in changes.items()}


def rows_of(
    changes: Changes,
    name: str = "",
    title: str = "",
    overrides: Mapping[str, Any] | None = None,
    overlays: tuple[str, ...] = (),
    modalities: tuple[str, ...] = ("flair",),
    dims: tuple[int, ...] = (2, 3),
) -> dict[str, Row]:
    """Makes the rows of a system on BRATS.

    Args:
        changes: what differs between them.
        name: what stands between the bundle and the end in the names of all.
        title: what the tables say of all.
        overrides: ids of the training that all have.
        overlays: as in `Row`.
        modalities: as in `Row`.
        dims: numbers of dimensions.

    Returns:
        Rows by their names.

    Example:
        >>> list(rows_of({"": ("SSMCTB", {}, None)}, "-mae", dims=(2,)))
        ['brats2d-mae']
    """
    return {
        f"brats{dim}d{name}{end}": Row(
            f"{dim}D, {title}{text}",
            "brats",
            f"brats{dim}d",
            overlays,
            {**(overrides or {}), **changed},
            modalities,
            None if reference is None else f"brats{dim}d{name}{reference}",
        )
        for dim in dims
        for end, (text, changed, reference) in changes.items()
    }


# Of the bundle as it is shipped
BLOCK_ROWS: Changes = {
    "-none": ("no block", {"block": "none"}, None),
    "": ("SSMCTB in the reconstructive sub-network", {}, "-none"),
    "-sspcab": ("SSPCAB in the reconstructive sub-network", {"block": "sspcab"}, ""),
    "-both": ("SSMCTB in both sub-networks", {BLOCK_IN: "both"}, "-none"),
    "-discriminative": ("SSMCTB in the discriminative sub-network", {BLOCK_IN: "discriminative"}, "-none"),
    "-lambda0": ("SSMCTB in the reconstructive sub-network, λ = 0", {"block_weight": 0}, ""),
    "-lambda1": ("SSMCTB in the reconstructive sub-network, λ = 1", {"block_weight": 1}, ""),
}

# One thing of the recipe taken back, minus the bundle as it is shipped
RECIPE_ROWS = minus_plain(
    {
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
    },
)

# Several modalities, each with and without a block
MODALITY_ROWS = {"-t1ce": ("flair", "t1ce"), "-four": ("flair", "t1ce", "t1", "t2")}

# Every second anomaly with another one in its middle
OFFSET = {"_target_": "ssmctb_monai.transforms.OffsetSource", "offset": [0.03, 0.3], "modalities": "@channels"}
NESTED = {"_target_": "ssmctb_monai.transforms.NestedSource", "outer": OFFSET, "inner": OFFSET}

# One thing changed with all four modalities, minus the bundle with them
FOUR_ROWS = minus_plain(
    {
        "-nested": ("nested anomalies", {"anomaly#sources": [OFFSET, NESTED]}),
        "-any": ("modalities left out in training", {"modality_dropout": 0.5}),
    },
)

# Anomalies of another kind for DRAEM, which takes binary labels, minus the bundle as it is shipped
PARTS = "ssmctb_monai.transforms."
FOREIGN = {"spatial_dims": "@spatial_dims", "prob": 0.75, "label": {"_target_": f"{PARTS}BinaryLabel"}}
ANOMALY_ROWS = minus_plain(
    {
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
                    "shapes": [
                        {"_target_": f"{PARTS}PerlinShape", "coverage": [0.001, 0.5]},
                        {"_target_": f"{PARTS}AreaPatchShape"},
                        {"_target_": f"{PARTS}ScarShape"},
                    ],
                    "sources": [
                        OFFSET,
                        {"_target_": f"{PARTS}AnotherPlaceSource"},
                        {"_target_": f"{PARTS}TextureSource"},
                    ],
                    "count": [1, 3],
                }
            },
        ),
    },
)

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
PUBLISHED = {"system#network#cell_sizes": [4, 8, 16]}
GAUSSIAN = {"system#network#restoration": "gaussian"}
SSM_ROWS: Changes = {
    **minus_plain(
        {
            "-none": ("SSM without block", {"block": "none"}),
            "-sspcab": ("SSM, SSPCAB", {"block": "sspcab"}),
            "-unrefined": ("SSM, SSMCTB, one pass", {"system#network#num_passes": 1}),
            "-published": ("SSM, SSMCTB, cells of 4, 8 and 16 mm", PUBLISHED),
            "-msgms": ("SSM, SSMCTB, score by MSGMS", {"system#network#score": "msgms"}),
            "-mask": ("SSM, SSMCTB, score by the predicted mask", {"system#network#score": "mask"}),
            "-gaussian": ("Gaussian mean around the same cells", GAUSSIAN),
        },
    ),
    "-published-gaussian": (
        "Gaussian mean around cells of 4, 8 and 16 mm",
        {**PUBLISHED, **GAUSSIAN},
        "-published",
    ),
}

# Systems of which the tables have the blocks, too: their title without block
SYSTEMS_WITH_BLOCKS = {
    "nsa": "NSA",
    "fastvit_nsa": "NSA with FastViT",
    "cutpaste": "CutPaste as a segmentation",
    "cutpaste_classifier": "CutPaste as a classifier",
    "georgescu": "autoencoder with gradient ascent on anomalies",
}
SYSTEM_BLOCK_ROWS: Changes = {
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
FUTURE_ROWS: Changes = {
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
    "-gap-squared": (
        "future prediction from 32 mm away, by the squared error alone",
        {**FAR, "system#loss": {"_target_": "torch.nn.MSELoss"}, "adversary": None},
        "-gap",
    ),
    "-gap-planes": (
        "future prediction from 32 mm away in all planes",
        {**FAR, "planes": ["axial", "coronal", "sagittal"]},
        "-gap",
    ),
}
# SSMTL++ on stacks of slices, with its blocks, and what could help it
SSMTL_ROWS: Changes = {
    **SYSTEM_BLOCK_ROWS,
    **minus_plain(
        {
            "-restoration": ("SSMCTB, score by the restoration alone", {"system#network#question_share": 0}),
            "-questions": ("SSMCTB, score by the questions alone", {"system#network#question_share": 1}),
            "-smoothing6": ("SSMCTB, maps smoothed by 6 mm", SMOOTHER),
        },
    ),
}
# What MNAD's memory brings: the distance from it left out of the map
ERROR = {"system#network#distance_weight": 0}
MNAD_ROWS: Changes = {
    "-error": ("MNAD, four slices beside it, SSMCTB, score by the error alone", ERROR, ""),
    "-gap-error": ("MNAD, slices 32 mm away on both sides, SSMCTB, score by the error alone", {**FAR, **ERROR}, "-gap"),
}
# What could help STATE, minus it from the same slices
STATE_REMEDIES: dict[str, tuple[str, dict[str, Any]]] = {
    "-perturbed": ("input perturbed by 0.005", {"system#network#perturbation": 0.005}),
    "-smoothing6": ("maps smoothed by 6 mm", SMOOTHER),
    "-ssim": ("score by SSIM", {"system#network#score": "ssim"}),
}
STATE_ROWS: Changes = {
    f"{gap}{name}": (f"{context}, SSMCTB, {text}", {**far, **changed}, gap)
    for gap, (context, far) in CONTEXTS.items()
    for name, (text, changed) in STATE_REMEDIES.items()
}
# One thing of NSA changed, minus NSA with SSMCTB
NSA_ROWS = minus_plain(
    {
        "-mixed": ("mixed gradients", {"anomaly#gradients": "mixed"}),
        "-binary": ("binary labels", {"anomaly#label": {"_target_": f"{PARTS}BinaryLabel"}}),
        "-raw": ("the change itself as label", {"anomaly#label": {"_target_": f"{PARTS}ContinuousLabel"}}),
    },
)

ROWS = {
    **rows_of(BLOCK_ROWS),
    **rows_of(RECIPE_ROWS),
    **rows_of(minus_plain({"-axial": ("axial slices alone", {"planes": ["axial"]})}), dims=(2,)),
    **rows_of(ANOMALY_ROWS),
    **{
        name: row
        for modalities, names in MODALITY_ROWS.items()
        for name, row in rows_of({end: BLOCK_ROWS[end] for end in ("-none", "")}, modalities, modalities=names).items()
    },
    **rows_of(FOUR_ROWS, "-four", "SSMCTB in the reconstructive sub-network, ", modalities=MODALITY_ROWS["-four"]),
    **rows_of(
        {
            name: (title, overrides, None if name == "none" else "none")
            for name, (title, overrides) in BLOCK_STUDY.items()
        },
        "-study_",
        "block study: ",
        STUDIED_LOSS,
        modalities=MODALITY_ROWS["-t1ce"],
        dims=(2,),
    ),
    **{
        name: row
        for system, title in SYSTEMS.items()
        for name, row in rows_of({"": (title, {}, None)}, f"-{system}", overlays=(system,)).items()
    },
    **rows_of(SSM_ROWS, "-ssm", overlays=("ssm",)),
    **{
        name: row
        for system, title in SYSTEMS_WITH_BLOCKS.items()
        for name, row in rows_of(SYSTEM_BLOCK_ROWS, f"-{system}", f"{title}, ", overlays=(system,)).items()
    },
    **rows_of(NSA_ROWS, "-nsa", "NSA, ", overlays=("nsa",)),
    **{
        name: row
        for system, title in SEQUENCE_SYSTEMS.items()
        for gap, (context, far) in CONTEXTS.items()
        for name, row in rows_of(
            SYSTEM_BLOCK_ROWS, f"-{system}{gap}", f"{title}, {context}, ", far, (system,), dims=(2,)
        ).items()
    },
    **rows_of(FUTURE_ROWS, "-future", overlays=("future",), dims=(2,)),
    **rows_of(MNAD_ROWS, "-mnad", overlays=("mnad",), dims=(2,)),
    **rows_of(SSMTL_ROWS, "-ssmtl", "SSMTL++ on slices, ", overlays=("ssmtl",), dims=(3,)),
    **rows_of(STATE_ROWS, "-state", "STATE, ", overlays=("state",), dims=(2,)),
    "lgg2d": Row("2D, SSMCTB in the reconstructive sub-network, brain cut out", "lgg", "brats2d", ("lgg",)),
}


def source_of(name: str) -> str | None:
    """Finds the row whose trained networks another one takes: its reference, if both are trained alike.

    Args:
        name: name of the row that may take them.

    Returns:
        Name of the row that is trained, or ``None``.

    Example:
        >>> source_of("brats2d-unsmoothed"), source_of("brats2d-avoid")
        ('brats2d', None)
    """
    row = ROWS[name]
    if row.reference is None:
        return None
    reference = ROWS[row.reference]
    trained, others = (
        (
            item.bundle,
            item.overlays,
            item.modalities,
            {key: value for key, value in item.overrides.items() if key not in EVALUATED},
        )
        for item in (row, reference)
    )
    return row.reference if trained == others else None
