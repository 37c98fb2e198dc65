"""Evaluates detectors on scans of other diseases and scanners, as a user would run them, beside FLAIR itself.

python -m benchmarks.accuracy transfer --data_dir SCANS [--bundle BUNDLE ...] [--ckpt_file [NAME=]FILE ...]
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, SpatialCrop, Transform, generate_spatial_bounding_box
from torch import Tensor, nn

from benchmarks.accuracy.dataset import link_files, repair_label
from benchmarks.accuracy.rows import BUNDLES, MODALITIES, settings_of
from ssmctb_monai.checkpoints import beside
from ssmctb_monai.checks import check_file
from ssmctb_monai.data import BratsCase, InvalidCasesError, PreparedDataset, find_cases, load_datalist, write_datalist
from ssmctb_monai.data.datasets import fingerprint
from ssmctb_monai.data.patients import patient_of
from ssmctb_monai.files import checksum, read_json, whole_file, write_json
from ssmctb_monai.metrics import AnomalyEvaluation, Estimate, ResampledMetrics, load_thresholds
from ssmctb_monai.transforms import RobustScaleIntensity

logger = logging.getLogger("benchmarks.accuracy")

SKULLS = ("lgg",)  # sets of heads
MEAN, IMAGE, RAW = "mean", "image", "raw"  # methods besides the detectors
SHOWN = {
    "pixel_average_precision": "AP",
    "pixel_average_precision_per_case": "AP, mean of scans",
    "best_dice_oracle": "best Dice",
    "best_dice_oracle_per_case": "best Dice, mean of scans",
    "dice_at_threshold": "label-free Dice",
    "dice_at_threshold_per_case": "label-free Dice, mean of scans",
    "slice_auroc": "slice AUROC",
    "slice_false_alarm_share": "lesion-free slices that fire",
}
COMPARED = [name for name in SHOWN if name not in ("dice_at_threshold", "dice_at_threshold_per_case")][:-1]
OF_A_SCAN = ("pixel_average_precision", "best_dice_oracle", "dice_at_threshold")


@dataclass(frozen=True)
class Detector:
    """A trained network and the bundle that uses it.

    Args:
        name: what the tables call it.
        bundle: folder of the bundle.
        ckpt_file: the trained network, beside the files that training writes there.
        overrides: ids of the bundle's evaluate.json.
        network: network in evaluation mode that the checkpoint is loaded into, in place of the bundle's.

    Example:
        >>> Detector("shipped", BUNDLES / "brats2d", BUNDLES / "brats2d/models/model.pt")
    """

    name: str
    bundle: Path
    ckpt_file: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    network: nn.Module | None = None

    @property
    def patients(self) -> set[str]:
        """Names of the patients that it was trained on, as far as there is a record."""
        file = beside(self.ckpt_file, "record")
        if not file.is_file():
            logger.warning("%s: there is no %s, so that none of its training scans is left out.", self.name, file)
            return set()
        return {patient_of(case_id) for case_id in read_json(file)["cases"]}

    @property
    def threshold(self) -> float | None:
        """The label-free threshold of its training."""
        file = beside(self.ckpt_file, "thresholds")
        return load_thresholds(file)["model"].value if file.is_file() else None

    @property
    def configuration(self) -> dict[str, Any]:
        """What its maps depend on, besides the scans."""
        return {
            "bundle": self.bundle.name,
            "evaluate.json": settings_of(self.bundle / "evaluate.json"),
            "overrides": dict(self.overrides),
            "checkpoint": checksum(self.ckpt_file),
            "threshold": self.threshold,
        }

    def parser(self, overrides: Mapping[str, Any]) -> ConfigParser:
        """Reads the bundle's evaluation.

        Args:
            overrides: ids of evaluate.json besides the detector's own.
        """
        parser = ConfigParser()
        parser.read_config(str(self.bundle / "evaluate.json"))
        given = {
            "bundle_root": str(self.bundle),
            "ckpt_file": str(self.ckpt_file),
            "raw_scores": True,  # which maps of several detectors share
            "baselines": [],
            "baseline_transforms": [],
            **self.overrides,
            **overrides,
        }
        for key, value in given.items():
            parser[key] = value
        return parser


def trained_detector(text: str) -> Detector:
    """Takes a checkpoint as a detector, with the settings that training wrote beside it.

    Args:
        text: ``FILE`` or ``NAME=FILE``; without a name it is named after the folder of the training.

    Raises:
        FileNotFoundError: when there is no such file, or no settings beside it.
    """
    name, _, path = text.rpartition("=")
    ckpt_file = check_file(path, "name a trained network").absolute()
    settings = read_json(check_file(beside(ckpt_file, "settings"), "training writes it beside the checkpoint"))
    folders = [folder for folder in ckpt_file.parts[:-1] if folder not in ("models", "trained")]
    return Detector(name or folders[-1], BUNDLES / f"brats{settings['spatial_dims']}d", ckpt_file)


def transfer(
    detectors: Sequence[Detector],
    data_dir: Path,
    work_dir: Path,
    sets: Sequence[str] | None = None,
    limit: int | None = None,
    skulls: Sequence[str] = SKULLS,
    mean_threshold: float | None = None,
) -> dict[str, Any]:
    """Evaluates detectors on sets of scans; what is finished is not done again.

    Nothing is tuned: preprocessing, inference, smoothing and thresholds are the bundles'. Scans of patients that a
    detector was trained on are left out. The methods are the detectors by their names; ``"mean"``, the mean of their
    maps at the mean of their thresholds, where there are several; ``"image"``, the first detector's input, scaled and
    smoothed like its maps; and ``"raw"``, the scan itself, by median and interquartile range of its brain.

    Args:
        detectors: the detectors.
        data_dir: folder with the sets, in any nesting; it stays as it is.
        work_dir: folder of links, of prepared scans and of what networks said of them, which all calls share, and of a
            folder of results, named after the detectors.
        sets: names of the sets to evaluate, all by default.
        limit: number of scans to take of each set, all by default.
        skulls: names of the sets of heads, out of which the brain is cut.
        mean_threshold: threshold of the mean of the maps, the mean of their thresholds by default.

    Returns:
        Results of the sets that these detectors were evaluated on, by their names, as in ``transfer.json``.

    Raises:
        ValueError: when detectors share a name, or a set is unknown.

    Example:
        >>> shipped = Detector("brats2d", BUNDLES / "brats2d", BUNDLES / "brats2d/models/model.pt")
        >>> results = transfer([shipped], Path("scans"), Path("runs/transfer"), ["ms"])
        >>> results["ms"]["methods"]["brats2d"]["figures"]["pixel_average_precision"]["value"]
    """
    names = [detector.name for detector in detectors]
    if not names or len({*names, MEAN, IMAGE, RAW}) < len(names) + 3:
        raise ValueError(f"Detectors need names of their own, none of {MEAN}, {IMAGE} and {RAW}; got {names}.")
    root = work_dir.absolute() / "data" / data_dir.resolve().name
    link_files(data_dir, root)
    found = find_sets(root)
    if unknown := {*(sets or ())} - set(found):
        raise ValueError(f"There is no set {', '.join(sorted(unknown))} in {data_dir}; there are {', '.join(found)}.")
    described = {detector.name: detector.configuration for detector in detectors}
    patients = set().union(*(detector.patients for detector in detectors))
    folder = work_dir / "+".join(names)
    for name in sets or found:
        cases = [case for case in found[name] if case.patient_id not in patients][:limit]
        overrides = {"background": "skull" if name in skulls else "constant"}
        configuration = {"detectors": described, "overrides": overrides, "mean_threshold": mean_threshold}
        file = folder / f"{name}.json"
        if file.is_file() and read_json(file)["configuration"] == {**configuration, "scans": _fingerprint(cases)}:
            logger.info("%s: done before", name)
            continue
        logger.info("%s: %d scans", name, len(cases))
        pipelines = [Pipeline(detector, overrides, cases, root, work_dir) for detector in detectors if cases]
        evaluation = evaluate(pipelines, mean_threshold)
        left_out = {case.case_id: ["trained on"] for case in found[name] if case.patient_id in patients}
        left_out |= {case_id: why for pipeline in pipelines for case_id, why in pipeline.left_out.items()}
        result = {"modality": pipelines[0].modality if pipelines else None, **_result(evaluation, names)}
        if evaluation.cases:
            ResampledMetrics.of(evaluation).save(file.with_suffix(".npz"))
        configuration["scans"] = _fingerprint(cases)  # labels may have been repaired
        write_json({"configuration": configuration, "left_out": left_out, **result}, file)
    summaries = {
        name: {key: value for key, value in content.items() if key != "evaluate.json"}
        for name, content in described.items()
    }
    results = {}
    for name in found:
        content = read_json(file) if (file := folder / f"{name}.json").is_file() else {}
        if content and content["configuration"]["detectors"] == described:
            results[name] = {key: value for key, value in content.items() if key not in ("configuration", "scans")}
    write_json({"detectors": summaries, "sets": results}, folder / "transfer.json")
    with whole_file(folder / "transfer.md") as unfinished:
        unfinished.write_text(tables(results) + "\n", encoding="utf-8")
    return results


def find_sets(root: Path) -> dict[str, list[BratsCase]]:
    """Finds the sets of scans below a folder.

    Args:
        root: the folder.

    Returns:
        The labelled cases of each set, which is named after the folder that its cases lie in, with or without folders
        of their own.

    Raises:
        ValueError: when there is no labelled case, or two sets have one name.
    """
    found: dict[Path, list[BratsCase]] = {}
    for case in find_cases(root):
        if case.label is not None:
            folder = case.label.parent
            found.setdefault(folder.parent if folder.name == case.case_id else folder, []).append(case)
    names = [folder.name for folder in found]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Expected folders of labelled scans with names of their own in {root}, got {names}.")
    return dict(sorted(zip(names, found.values(), strict=True)))


class Pipeline:
    """A detector on the scans of one set: prepared scans in, maps on the scans' own grids out.

    Args:
        detector: the detector.
        overrides: ids of its bundle's evaluate.json, besides its own.
        cases: the scans.
        root: folder that they lie in, of links; labels with a wrong origin are repaired there.
        work_dir: folder of prepared scans, and of what networks said of them.
    """

    def __init__(
        self, detector: Detector, overrides: Mapping[str, Any], cases: Sequence[BratsCase], root: Path, work_dir: Path
    ) -> None:
        parser = detector.parser(overrides)
        checkpoint, trained, preprocessing, self.inferer, self.postprocessing, self.device, self.settings = (
            parser.get_parsed_content(name)
            for name in (
                "checkpoint",
                "settings",
                "preprocessing",
                "inferer",
                "postprocessing",
                "device",
                "evaluation#settings",
            )
        )
        self.name, self.threshold, self.modality = detector.name, detector.threshold, trained.modalities[0]
        self.network = detector.network or parser.get_parsed_content("network").eval()
        self.network.load_state_dict(torch.load(checkpoint, map_location=self.device, weights_only=True))

        cache_dir = work_dir / "cache"
        datalist = cache_dir / "datalist.json"
        write_datalist({"test": cases}, root, datalist, "scans of one set")
        optional = trained.optional_modalities
        items = load_datalist(datalist, root, "test", trained.modalities, keep_invalid=True, optional=optional)
        self.left_out = {item["case_id"]: item["problems"] for item in items if "problems" in item}
        items = [item for item in items if item["case_id"] not in self.left_out]
        transform = Compose([preprocessing, Plain()]).flatten()
        try:
            self.dataset = PreparedDataset(items, transform, cache_dir, torch.get_num_threads()) if items else None
        except InvalidCasesError as error:
            beyond_repair = {
                case.case_id for case in cases if case.case_id in error.problems and not repair_label(case)
            }
            self.left_out |= {case_id: error.problems[case_id] for case_id in beyond_repair}
            items = [item for item in items if item["case_id"] not in beyond_repair]
            self.dataset = PreparedDataset(items, transform, cache_dir, torch.get_num_threads()) if items else None
        self.places = {item["case_id"]: index for index, item in enumerate(items)}
        used = pickle_hashing([detector.configuration, overrides]).decode()[:16]
        self.score_files = {
            item["case_id"]: work_dir / "scores" / used / f"{item['case_id']}_{fingerprint(item).decode()[:16]}.pt"
            for item in items
        }

    def item(self, case_id: str) -> dict[str, Any]:
        """Returns a prepared scan.

        Args:
            case_id: name of the scan.
        """
        return with_affines(self.dataset[self.places[case_id]])

    def anomaly_map(self, item: Mapping[str, Any]) -> Tensor:
        """Runs the network on a prepared scan, or takes what it said before.

        Args:
            item: the scan.

        Returns:
            Map on the scan's own grid, shape (1, height, width, depth).
        """
        file = self.score_files[item["case_id"]]
        if not file.is_file():
            with torch.no_grad():
                score = self.inferer(item["image"].as_tensor()[None].to(self.device), self.network)[0].cpu()
            with whole_file(file) as unfinished:
                torch.save(score, unfinished)
        return self.on_own_grid(torch.load(file, weights_only=True), item)

    def on_own_grid(self, score: Tensor, item: Mapping[str, Any]) -> Tensor:
        """Does with a score what the bundle does with a network's map.

        Args:
            score: score on the network's grid, shape (1, height, width, depth).
            item: the scan.

        Returns:
            Map on the scan's own grid, shape (1, height, width, depth).
        """
        return self.postprocessing({**item, "pred": MetaTensor(score, affine=item["image"].affine)})["pred"]


def evaluate(pipelines: Sequence[Pipeline], mean_threshold: float | None = None) -> AnomalyEvaluation:
    """Evaluates detectors, the mean of several, and the image itself on the scans that all of them can use.

    Args:
        pipelines: the detectors on the scans of one set.
        mean_threshold: threshold of the mean of the maps, the mean of their thresholds by default.
    """
    thresholds = {pipeline.name: pipeline.threshold for pipeline in pipelines if pipeline.threshold is not None}
    if len(thresholds) == len(pipelines) > 1:
        thresholds[MEAN] = fmean(thresholds.values()) if mean_threshold is None else mean_threshold
    evaluation = AnomalyEvaluation(thresholds, pipelines[0].settings if pipelines else None, list(SHOWN))
    case_ids = [name for name in (pipelines[0].places if pipelines else ()) if all(name in p.places for p in pipelines)]
    for index, case_id in enumerate(case_ids, start=1):
        items = [pipeline.item(case_id) for pipeline in pipelines]
        maps = {pipeline.name: pipeline.anomaly_map(item) for pipeline, item in zip(pipelines, items, strict=True)}
        if len(maps) > 1:
            maps[MEAN] = torch.stack([anomaly_map.as_tensor() for anomaly_map in maps.values()]).mean(dim=0)
        first = items[0]
        maps[IMAGE] = pipelines[0].on_own_grid(first["image"].as_tensor()[:1], first)
        scan = first["scan_image"].as_tensor()[:1].float()
        median, width = RobustScaleIntensity().ranges(scan, first["scan_brain"])[0]
        maps[RAW] = (scan - median) / width
        evaluation.add(case_id, maps, first["scan_label"], first["scan_brain"], patient_id=first["patient_id"])
        if index % 10 == 0 or index == len(case_ids):
            logger.info("%d of %d scans", index, len(case_ids))
    return evaluation


class Plain(Transform):
    """Makes the tensors of a prepared scan plain, and cuts off what lies outside the brain on the scan's own grid."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Makes a scan plain.

        Args:
            data: item with `MetaTensor`; those on the scan's own grid have keys that begin with ``scan_``.

        Returns:
            The item, with the affine of ``KEY`` as ``KEY_affine``.
        """
        start, end = generate_spatial_bounding_box((data["scan_brain"] > 0) | (data["scan_label"] > 0))
        cut = SpatialCrop(roi_start=start, roi_end=end)
        item = dict(data)
        for key, value in data.items():
            if isinstance(value, MetaTensor):
                value = cut(value) if key.startswith("scan_") else value
                item[key], item[f"{key}_affine"] = value.as_tensor().clone(), value.affine.clone()
        return item


def with_affines(item: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `Plain`, but for the cut.

    Args:
        item: item with plain tensors.
    """
    return {
        key: MetaTensor(value, affine=item[f"{key}_affine"]) if f"{key}_affine" in item else value
        for key, value in item.items()
        if not key.endswith("_affine")
    }


def tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Makes the tables.

    Args:
        results: what `transfer` returns.

    Returns:
        Markdown: figures of each set and method, differences to the image itself and to the first detector with their
        intervals, and what was left out.
    """
    lines = [*_head("set", "score", *SHOWN.values(), "nothing flagged")]
    for name, result in results.items():
        head = f"{name}: {result['number_of_cases']} scans, {result['number_of_cases_with_lesion']} with a lesion"
        for method, content in result["methods"].items():
            values = [*(content["figures"][figure]["value"] for figure in SHOWN), content["nothing_flagged_share"]]
            lines.append(_line(head, _title(method, result), ["-" if v is None else f"{v:.3f}" for v in values]))
            head = ""
    lines += ["", "Differences, with 95 % intervals over the patients; bold excludes 0:", ""]
    lines += _head("set", "score", "minus", *(SHOWN[figure] for figure in COMPARED))
    for name, result in results.items():
        head = name
        for method, content in result["methods"].items():
            for reference, differences in content["minus"].items():
                cells = [_title(reference, result), *(_difference(differences[figure]) for figure in COMPARED)]
                lines.append(_line(head, _title(method, result), cells))
                head = ""
    for name, result in results.items():
        reasons = [reason for reasons in result["left_out"].values() for reason in reasons[:1]]
        if seen := reasons.count("trained on"):
            lines += ["", f"{name}: {seen} scans are left out, since a detector was trained on their patients."]
        if unusable := len(reasons) - seen:
            lines += ["", f"{name}: {unusable} scans cannot be used."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy transfer", description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with sets of scans, in any nesting")
    parser.add_argument("--bundle", nargs="+", default=[], metavar="BUNDLE", help="shipped weights; brats2d by default")
    parser.add_argument(
        "--ckpt_file", nargs="+", default=[], metavar="[NAME=]FILE", help="trained networks, such as those of a row"
    )
    parser.add_argument("--sets", help="names of sets, separated by commas; all by default")
    parser.add_argument("--limit", type=int, help="number of scans to take of each set; all by default")
    parser.add_argument("--skulls", default=",".join(SKULLS), help="names of sets of heads, separated by commas")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/accuracy/transfer"))
    parser.add_argument(
        "--mean_thresholds",
        type=Path,
        metavar="FILE",
        help="label-free threshold of the mean of the maps, as `thresholding` writes it; by default the mean of theirs",
    )
    settings = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    bundles = settings.bundle or ([] if settings.ckpt_file else ["brats2d"])
    detectors = [Detector(name, BUNDLES / name, BUNDLES / name / "models/model.pt") for name in bundles]
    detectors += [trained_detector(text) for text in settings.ckpt_file]
    sets = settings.sets.split(",") if settings.sets else None
    skulls = settings.skulls.split(",")
    mean_threshold = load_thresholds(settings.mean_thresholds)["model"].value if settings.mean_thresholds else None
    results = transfer(
        detectors, settings.data_dir, settings.work_dir, sets, settings.limit, skulls, mean_threshold=mean_threshold
    )
    print(tables(results))


def _result(evaluation: AnomalyEvaluation, names: Sequence[str]) -> dict[str, Any]:
    """What a set shows: figures of methods and scans, differences to the image itself and to the first detector."""
    with_lesion = [case.lesion.total > 0 for case in evaluation.cases]
    methods: dict[str, Any] = {}
    scans: dict[str, Any] = {case.case_id: {} for case in evaluation.cases}
    for method, cases in evaluation.statistics.items():
        flagged = [case.flagged for case, has_lesion in zip(cases, with_lesion, strict=True) if has_lesion]
        silent = [part.normal + part.lesion == 0 for part in flagged if part is not None]
        methods[method] = {
            "figures": _shown(evaluation.estimates(method), list(SHOWN)),
            "nothing_flagged_share": _rounded(fmean(silent)) if silent else None,
        }
        references = [reference for reference in (IMAGE, names[0]) if method not in (IMAGE, RAW, reference)]
        methods[method]["minus"] = {
            reference: _shown(evaluation.differences(method, reference), COMPARED) for reference in references
        }
        for figure in OF_A_SCAN:
            for case, value in zip(cases, evaluation.per_case(method, figure), strict=True):
                scans[case.case_id].setdefault(method, {})[figure] = _rounded(value)
    return {
        "number_of_cases": len(evaluation.cases),
        "number_of_cases_with_lesion": sum(with_lesion),
        "number_of_patients": len(evaluation.patients),
        "methods": methods,
        "scans": scans,
    }


def _shown(estimates: Mapping[str, Estimate], names: Sequence[str]) -> dict[str, Any]:
    return {
        name: {
            "value": _rounded(estimates[name].value),
            "interval": [_rounded(end) for end in estimates[name].interval] if estimates[name].interval else None,
        }
        for name in names
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 4)


def _title(method: str, result: Mapping[str, Any]) -> str:
    modality = MODALITIES[result["modality"]]
    return {
        MEAN: "mean of the maps",
        IMAGE: f"{modality} itself, smoothed",
        RAW: f"{modality} itself, raw",
    }.get(method, method)


def _difference(estimate: Mapping[str, Any]) -> str:
    """Bold is what is not 0, with all of the interval."""
    if estimate["value"] is None:
        return "-"
    if estimate["interval"] is None:
        return f"{estimate['value']:+.3f}"
    low, high = estimate["interval"]
    value = f"**{estimate['value']:+.3f}**" if low > 0 or high < 0 else f"{estimate['value']:+.3f}"
    return f"{value} [{low:+.3f}, {high:+.3f}]"


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _line(set_name: str, score: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([set_name, score, *cells])} |"


def _fingerprint(cases: Sequence[BratsCase]) -> str:
    """Changes with the scans and their files."""
    files = [[*case.images.values(), *(file for file in (case.label, case.brain) if file)] for case in cases]
    return pickle_hashing([fingerprint({"files": [str(file) for file in of_case]}) for of_case in files]).decode()
