"""The widget that reviews anomaly maps in a notebook."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import torch
import traitlets
from monai.config import PathLike
from monai.data import MetaTensor

from ssmctb_monai.data.readers import grid_distance
from ssmctb_monai.data.writers import write_nifti
from ssmctb_monai.files import checksum, is_file_name
from ssmctb_monai.visualize.heatmap import case_names, check_arrays, check_item, load_heatmap, load_volume, map_file
from ssmctb_monai.visualize.verdicts import Verdict, VerdictFile
from ssmctb_monai.visualize.viewer import ViewerScan, asset, colormaps

logger = logging.getLogger(__name__)

REVIEW_FILE = "review.csv"
Answer = tuple[dict[str, Any], list[bytes]]  # message and volumes
CORRECTED = "corrected_masks"  # folder beside the maps: what lies in theirs would be taken for maps


class Review(anywidget.AnyWidget):
    """Widget that shows scans with their anomaly maps, and writes what a reader decides and draws to files at once.

    The volumes of a case go to the browser once, so that scrolling needs no answer of the kernel. A case that cannot be
    shown says why, and the others go on.

    Args:
        cases: items such as `load_heatmap` takes, each with a name of its own.
        threshold: threshold to begin with, for all cases; ``None`` takes that of each item, else the score that one in
            a hundred voxels of the brain exceeds.
        review_file: where verdicts are written; ``None`` takes ``review.csv`` beside the first map, in the working
            directory where maps are arrays.
        title: what stands above the views, such as the name of the method.

    Attributes:
        start: index of the case that was opened last.
        verdicts: the file of the verdicts. Masks that were corrected lie in ``corrected_masks/CASE.nii.gz`` beside the
            maps, or beside this file where maps are arrays, with the geometry of the map.

    Raises:
        TypeError: when a case is no dictionary.
        KeyError: when a case lacks image or map.
        ValueError: when there is no case, two have one name, arrays of one have different shapes, or the file is no
            file of verdicts.
    """

    _esm = asset("viewer.js") + asset("review.js")
    _css = asset("viewer.css") + asset("review.css")
    colormaps = traitlets.Dict(colormaps()).tag(sync=True)
    cases: traitlets.List[dict[str, str]] = traitlets.List().tag(sync=True)
    start = traitlets.Int().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    linked = traitlets.Bool().tag(sync=True)
    crosshair: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)  # case and position, where reviews are linked

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        threshold: float | None = None,
        review_file: PathLike | None = None,
        title: str = "",
    ) -> None:
        if not cases:
            raise ValueError("There is no case to review.")
        for item in cases:
            check_item(item)
            check_arrays(item)
        names = case_names(cases)
        super().__init__(title=title)
        given = {} if threshold is None else {"threshold": threshold}
        self.items = [{**item, "case_id": name, **given} for item, name in zip(cases, names, strict=True)]
        beside = next((file.parent for item in cases if (file := map_file(item))), Path())
        self.verdicts = VerdictFile(beside / REVIEW_FILE if review_file is None else review_file)
        self._checksums: dict[int, str] = {}
        self._scans: dict[int, Future[ViewerScan]] = {}
        self._loader = ThreadPoolExecutor(max_workers=1)
        self.start = self.verdicts.resume(self._keys(self.verdicts.read()))
        self._list_cases()
        self.on_msg(self._receive)

    def _keys(self, verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
        """Name and map's checksum of each case; only maps of cases with verdicts are read for it."""
        judged = {verdict.case_id for verdict in verdicts}
        names = [item["case_id"] for item in self.items]
        return [(name, self._checksum(index) if name in judged else "") for index, name in enumerate(names)]

    def _checksum(self, case: int) -> str:
        """Checksum of a case's map as it was loaded last."""
        if case not in self._checksums:
            self._checksums[case] = _map_checksum(self.items[case])
        return self._checksums[case]

    def _list_cases(self) -> None:
        """Tells the browser which cases are done."""
        verdicts = self.verdicts.read()
        of_cases = {(item.case_id, item.map_checksum): item.verdict for item in verdicts if item.threshold is None}
        self.cases = [
            {"case_id": name, "verdict": of_cases.get((name, digits), "")} for name, digits in self._keys(verdicts)
        ]

    def _receive(self, _: Any, message: Mapping[str, Any], buffers: Sequence[memoryview]) -> None:
        """Answers the browser, see review.js."""
        answers: dict[str, Callable[..., Answer]] = {
            "open": self._open,
            "layer": self._layer,
            "threshold": self._threshold,
            "judge": self._judge,
            "mask": self._mask,
            "correct": self._correct,
        }
        content = {key: value for key, value in message.items() if key not in ("type", "view")}
        content |= {"mask": bytes(buffers[0])} if buffers else {}
        try:
            answer, volumes = answers[message["type"]](**content)
        except Exception as error:  # a callback's error would go unseen
            problem = f"{type(error).__name__}: {error}"
            answer, volumes = {"type": "failed", "number": message.get("number"), "problem": problem}, []
        self.send(answer | {"view": message.get("view")}, volumes)  # to all views of the widget

    def _open(self, case: int) -> Answer:
        name = self.items[case]["case_id"]
        self.start = case  # where another view of this widget begins
        answer: dict[str, Any] = {"type": "case", "case": case}
        try:
            scan = self._scan(case)
            corrected = self._corrected(case)
        except Exception as error:
            self._scans.pop(case, None)  # another try may find it mended
            decision = _decision(self._decided(case).get((None, None)))
            problem = f"{name} cannot be shown: {error}"
            logger.warning("%s", problem)
            return answer | {"problem": problem} | decision, []
        header = scan.header()
        volumes = {"map": scan.anomaly_map(), "image": scan.layer(0), "label": scan.label(), "mask": corrected}
        present = {name: volume for name, volume in volumes.items() if volume is not None}
        answer |= {"header": header | self._candidates(case, header["threshold"]), "volumes": list(present)}
        answer |= _decision(self._decided(case).get((None, None)))
        self._begin(case + 1)
        return answer, list(present.values())

    def _scan(self, case: int) -> ViewerScan:
        """Loads a case; of the others only the next one is kept."""
        self._scans = {index: scan for index, scan in self._scans.items() if index in (case, case + 1)}
        self._begin(case)
        return self._scans[case].result()

    def _begin(self, case: int) -> None:
        """Begins to load a case in the background."""
        if case < len(self.items) and case not in self._scans:
            self._scans[case] = self._loader.submit(self._load, case)

    def _load(self, case: int) -> ViewerScan:
        self._checksums[case] = _map_checksum(self.items[case])  # the file may be another one by now
        return ViewerScan(load_heatmap(self.items[case]))

    def _layer(self, case: int, layer: int) -> Answer:
        return {"type": "layer", "case": case, "layer": layer}, [self._scan(case).layer(layer)]

    def _threshold(self, case: int, threshold: float) -> Answer:
        return {"type": "candidates", "case": case, **self._candidates(case, threshold)}, []

    def _mask(self, case: int, threshold: float, replace: bool) -> Answer:
        """What a brush then corrects: what was corrected before, else or to replace it what is flagged."""
        mask = (None if replace else self._corrected(case)) or self._scan(case).flagged(threshold)
        return {"type": "mask", "case": case, "replace": replace}, [mask]

    def corrected_file(self, case: int) -> Path:
        """Names the file of a case's corrected mask.

        Args:
            case: index of the case.

        Returns:
            The file, whether it is there or not.

        Raises:
            ValueError: when the case has a name that no file can have.
        """
        item = self.items[case]
        if not is_file_name(item["case_id"]):
            raise ValueError(f"{item['case_id']!r} can be the name of no file: give the case another `case_id`")
        file = map_file(item)
        return (file or self.verdicts.path).parent / CORRECTED / f"{item['case_id']}.nii.gz"

    def _corrected(self, case: int) -> bytes | None:
        """The mask that was corrected before, as the viewer takes it."""
        if not is_file_name(self.items[case]["case_id"]) or not (file := self.corrected_file(case)).is_file():
            return None
        scan, mask = self._scan(case), load_volume(file)
        affine, shape = scan.heatmap.scan_affine, scan.heatmap.to_scan(scan.heatmap.brain).shape
        if mask.shape[1:] != shape or grid_distance(mask.affine.numpy(), affine, shape):
            raise ValueError(f"{file} lies on another grid than the map: move the file away, or bring it back")
        return scan.mask(mask.numpy()[0])

    def _correct(self, case: int, number: float, mask: bytes) -> Answer:
        """Writes a corrected mask with the geometry of the map; other views of the widget go on from it."""
        scan, file = self._scan(case), self.corrected_file(case)
        image = MetaTensor(torch.from_numpy(np.ascontiguousarray(scan.scan_mask(mask)))[None], scan.heatmap.scan_affine)
        write_nifti(image, file, map_file(self.items[case]))
        time = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        return {"type": "saved", "number": number, "case": case, "time": time, "file": str(file)}, [mask]

    def _decided(self, case: int) -> dict[tuple[float | None, tuple[int, ...] | None], Verdict]:
        """Verdicts on a case by threshold and voxel; that on the case as a whole has neither."""
        verdicts = self.verdicts.of(self.items[case]["case_id"], self._checksum(case))
        return {(verdict.threshold, verdict.voxel): verdict for verdict in verdicts}

    def _candidates(self, case: int, threshold: float) -> dict[str, Any]:
        """Lists candidates with the verdicts on them, and those on the same place at another threshold."""
        listed = self._scan(case).candidates(threshold)
        decided = self._decided(case)
        for entry in listed["candidates"]:
            voxel = tuple(entry["scan_voxel"])
            earlier = [
                f"{other.verdict} at {other.threshold:g}"
                + ("" if other.volume is None else f" ({other.volume:.1f} ml)")
                for other in decided.values()
                if other.voxel == voxel and other.threshold != listed["threshold"] and other.verdict
            ]
            entry |= _decision(decided.get((listed["threshold"], voxel))) | {"earlier": "; ".join(earlier)}
        return listed

    def _judge(
        self, case: int, number: float, threshold: float | None, voxel: list[int] | None, **decided: str
    ) -> Answer:
        """Writes a verdict or a comment, on the case (no threshold, no voxel) or on a candidate."""
        details: dict[str, Any] = {}
        if (threshold is None) != (voxel is None):
            raise ValueError("a candidate has a threshold and a voxel, a case as a whole has neither")
        if threshold is not None:
            listed = self._scan(case).candidates(threshold)["candidates"]
            found = next((entry for entry in listed if entry["scan_voxel"] == voxel), None)
            if found is None:
                raise ValueError("the map has no such candidate any more: open the case again")
            details = {key: tuple(found[name]) for key, name in {"voxel": "scan_voxel", "position": "position"}.items()}
            details |= {"threshold": threshold, "volume": found["volume"], "score": found["score"]}
        fields: dict[str, Any] = {"verdict": "", "comment": ""} | decided
        verdict = Verdict(self.items[case]["case_id"], self._checksum(case), **fields, **details)
        saved = self.verdicts.save(verdict, keep=[name for name in ("verdict", "comment") if name not in decided])
        self._list_cases()
        place = {"case": case, "threshold": threshold, "voxel": voxel}
        file = {"time": saved.time, "file": str(self.verdicts.path)}
        return {"type": "saved", "number": number} | place | file | _decision(saved), []


def _decision(verdict: Verdict | None) -> dict[str, str]:
    """What the browser shows of a verdict."""
    return {"verdict": verdict.verdict if verdict else "", "comment": verdict.comment if verdict else ""}


def _map_checksum(item: Mapping[str, Any]) -> str:
    """Checksum of an item's map; empty where its file is not there."""
    file = map_file(item)
    if file is None:
        return hashlib.sha256(load_volume(item["anomaly_map"]).numpy().tobytes()).hexdigest()[:16]
    return checksum(file)[:16] if file.is_file() else ""
