"""What inference leaves of every scan: maps and a row of a table, whole or not at all."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from monai.config import PathLike
from monai.data import MetaTensor
from monai.data.utils import pickle_hashing
from monai.utils import ensure_tuple

from ssmctb_monai.data.brats import lacking_channels
from ssmctb_monai.data.datasets import fingerprint
from ssmctb_monai.data.dicom import import_highdicom, write_parametric_map, write_segmentation
from ssmctb_monai.data.oriented_case import OrientedCase
from ssmctb_monai.data.scans import said_by_header
from ssmctb_monai.data.series import is_series_file
from ssmctb_monai.data.writers import write_nifti
from ssmctb_monai.files import (
    LONGEST_NAME,
    append_csv,
    is_file_name,
    printable,
    read_csv,
    remove_abandoned,
    write_csv,
    write_json,
)
from ssmctb_monai.metrics.case_statistics import CaseStatistics, CaseTruth
from ssmctb_monai.metrics.settings import EvaluationSettings

logger = logging.getLogger(__name__)

COLUMNS = (
    *("case_id", "anomaly_score", "threshold", "flagged_ml", "brain_ml", "slice", "slice_axis"),
    *("modalities", "image", "made_from", "problem", "warning"),
)
OUTDATED = "its map is of other settings or files: run inference again"
STOPPED = "it was being written when inference was stopped: run inference again"
BRAIN_ML = (600, 2200)  # of an adult; beyond, a part of the brain is missing, or more than the brain is there


class ScanResults:
    """Writes anomaly maps and a summary, scan by scan, so that a rerun does only what is missing.

    In the folder: ``maps/CASE.nii.gz``, on request ``masks/CASE.nii.gz``, ``reconstructions/CASE.nii.gz`` and
    ``dicom/CASE_map.dcm``, ``dicom/CASE_mask.dcm``; ``summary.csv`` with a row for each scan; ``settings.json`` with
    what the results were made with.

    Columns of the summary: ``anomaly_score``, that of the most suspicious axial slice (mean of its 20 highest voxels);
    ``threshold`` and ``flagged_ml``, the volume of the brain at or above it; ``brain_ml``; ``slice`` and
    ``slice_axis``, the most suspicious slice as index along that axis of the scan's voxel grid, both counted from 0;
    ``modalities``, those that the scan has of the network's, and ``image``, their files, joined by ``;``;
    ``made_from``, a hash of scan and settings; ``problem``, what was wrong with a scan that has no result; ``warning``,
    what is implausible: a skull, a brain outside of 600 to 2200 ml, nothing flagged, an image that calls itself another
    modality.

    Several programs may write into one folder at a time: each row is added to what the others have written.

    Args:
        output_dir: folder of the results.
        settings: what results are made with, such as checkpoint, modalities and spacing; a scan is done again when they
            change.
        threshold: voxels with at least this score are flagged; ``None`` flags none.
        save_mask: whether to write what is flagged.
        save_reconstruction: whether to write the reconstruction.
        save_dicom: whether to write map and mask as DICOM too, from scans that are DICOM series.

    Raises:
        ImportError: when DICOM is asked for and highdicom is missing.
        ValueError: when the threshold is not a number in [0, 1], or masks are asked for without one.

    Example:
        >>> results = ScanResults("runs/scans", {"checkpoint": "…"}, threshold=0.8, save_mask=True)
        >>> for scan in results.pending(find_scans("scans", ["flair"])):
        ...     results.add(scan["case_id"], anomaly_map, brain)
    """

    def __init__(
        self,
        output_dir: PathLike,
        settings: Mapping[str, Any],
        threshold: float | None = None,
        save_mask: bool = False,
        save_reconstruction: bool = False,
        save_dicom: bool = False,
    ) -> None:
        if threshold is not None and (not isinstance(threshold, int | float) or not 0 <= threshold <= 1):
            raise ValueError(f"The threshold must be a number in [0, 1], as the scores are, got {threshold!r}.")
        if save_mask and threshold is None:
            raise ValueError(
                "There is no threshold for masks: training writes one beside the checkpoint; or give `--threshold`."
            )
        if save_dicom:
            import_highdicom()
        self.output_dir = Path(output_dir).expanduser()
        self.settings = {**settings, "threshold": threshold}
        self.threshold = threshold
        self.save_mask, self.save_reconstruction, self.save_dicom = save_mask, save_reconstruction, save_dicom
        self.summary = self.output_dir / "summary.csv"
        self.scans: dict[str, Mapping[str, Any]] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self._added = 0

    @property
    def problems(self) -> dict[str, str]:
        """What was wrong with scans of :meth:`pending`'s, by their names."""
        return {name: row["problem"] for name, row in self.rows.items() if name in self.scans and row["problem"]}

    def pending(self, scans: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Chooses the scans that have no result of the same files and settings, and prepares the folder.

        Args:
            scans: scans such as those of `find_scans`.

        Returns:
            Those to do; where DICOM is asked for, one that is no DICOM series has that among its ``problems``.

        Raises:
            ValueError: when the folder holds another ``summary.csv``.
        """
        remove_abandoned(self.output_dir)
        with self._alone():
            self.rows = self._read_summary()
            if self.rows:
                self._write_summary()
        write_json(self.settings, self.output_dir / "settings.json")
        if self.threshold is None:
            logger.warning("There is no threshold: nothing is flagged. Training writes one beside the checkpoint.")

        self.scans = {scan["case_id"]: self._checked(scan) for scan in scans}
        to_do = [scan for scan in self.scans.values() if not self._is_done(scan)]
        for name in {scan["case_id"] for scan in to_do} & self.rows.keys():
            if not self.rows[name]["problem"]:  # what is there was made with others than the settings beside it
                self._put({**self.rows[name], "problem": OUTDATED})
        if done := len(scans) - len(to_do):
            logger.info("%d of %d scans are done already, in %s.", done, len(scans), self.output_dir)
        return to_do

    def _read_summary(self) -> dict[str, dict[str, Any]]:
        if not self.summary.is_file():
            return {}
        columns, rows = read_csv(self.summary)
        if not {"case_id", "made_from", "problem"} <= set(columns) <= set(COLUMNS):
            raise ValueError(f"{self.summary} is no summary of scans: choose another --output_dir, or remove it.")
        # The last row of a scan counts; one of a killed program may be cut off
        return {row["case_id"]: row for row in rows if row["made_from"] or row["problem"]}

    def _checked(self, scan: Mapping[str, Any]) -> Mapping[str, Any]:
        name = scan["case_id"]
        if not is_file_name(name):
            return {**scan, "problems": [f"{name!r} names no file of results: rename the scan"]}
        if max(len(file.name.encode()) for file in self._files(name).values()) > LONGEST_NAME:
            return {**scan, "problems": [f"{name} is too long for the names of results: rename the scan"]}
        if not self.save_dicom or scan.get("problems"):
            return scan
        image = Path(scan["image"][0])
        if image.is_dir() or is_series_file(image):
            return scan
        return {**scan, "problems": [f"{scan['image'][0]} is no DICOM series, and from other scans no DICOM is made"]}

    def _is_done(self, scan: Mapping[str, Any]) -> bool:
        row = self.rows.get(scan["case_id"], {"made_from": None, "problem": None})
        is_same = row["made_from"] == self._made_from(scan) and not row["problem"]
        return is_same and all(file.is_file() for file in self._wanted(scan["case_id"]).values())

    def _made_from(self, scan: Mapping[str, Any]) -> str:
        return pickle_hashing([fingerprint(scan), self.settings]).decode()[:16]

    def _files(self, case_id: str) -> dict[str, Path]:
        """All files that a scan may have, by their kind."""
        return {
            "map": self.output_dir / "maps" / f"{case_id}.nii.gz",
            "mask": self.output_dir / "masks" / f"{case_id}.nii.gz",
            "reconstruction": self.output_dir / "reconstructions" / f"{case_id}.nii.gz",
            "dicom map": self.output_dir / "dicom" / f"{case_id}_map.dcm",
            "dicom mask": self.output_dir / "dicom" / f"{case_id}_mask.dcm",
        }

    def _wanted(self, case_id: str) -> dict[str, Path]:
        """The files that are asked for."""
        wanted = {
            "map": True,
            "mask": self.save_mask,
            "reconstruction": self.save_reconstruction,
            "dicom map": self.save_dicom,
            "dicom mask": self.save_dicom and self.save_mask,
        }
        return {kind: file for kind, file in self._files(case_id).items() if wanted[kind]}

    def _remove(self, case_id: str) -> None:
        """Removes the results of an earlier run, the row first: without it, they count as missing."""
        if case_id in self.rows:
            self._put({"case_id": case_id, "problem": STOPPED})
        for file in self._files(case_id).values():
            if len(file.name.encode()) <= LONGEST_NAME:
                file.unlink(missing_ok=True)

    def add(
        self, case_id: str, anomaly_map: MetaTensor, brain: MetaTensor, reconstruction: MetaTensor | None = None
    ) -> None:
        """Writes the results of a scan.

        Args:
            case_id: name of the scan.
            anomaly_map: scores in [0, 1] on the scan's own grid, shape (1, height, width, depth).
            brain: brain mask of the same shape.
            reconstruction: reconstruction in the scan's intensities, shape (channels, height, width, depth); modalities
                that the scan lacks are left out.

        Raises:
            ValueError: when the map holds NaN in the brain, no axial slice holds 20 voxels of the brain, or the scan's
                name is too long for files of this disk.
        """
        anomaly_map, brain = anomaly_map.cpu(), brain.cpu()
        try:
            row = self._row(case_id, anomaly_map, brain)
        except ValueError as error:
            raise ValueError(f"{case_id} has no result: {error}") from error
        self._remove(case_id)
        images = {"map": anomaly_map}
        if reconstruction is not None:
            missing = lacking_channels(self.scans[case_id])
            images["reconstruction"] = reconstruction[[i for i in range(len(reconstruction)) if i not in missing]]
        if self.threshold is not None:
            images["mask"] = ((anomaly_map >= self.threshold) & (brain > 0)).to(torch.uint8)
        scan = self.scans[case_id]["image"][0]
        try:
            for kind, file in self._wanted(case_id).items():
                if kind == "dicom map":
                    write_parametric_map(anomaly_map, scan, file)
                elif kind == "dicom mask":
                    write_segmentation(images["mask"], scan, file)
                else:
                    write_nifti(images[kind], file, scan=scan)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise ValueError(f"{case_id} is too long for the names of results: rename the scan") from error
        self._store(row)

    def fail(self, case_id: str, problem: str) -> None:
        """Writes down a scan that has no result.

        Args:
            case_id: name of the scan.
            problem: what was wrong.
        """
        self._remove(case_id)
        self._store({"case_id": case_id, "problem": problem})

    def _row(self, case_id: str, anomaly_map: MetaTensor, brain: MetaTensor) -> dict[str, Any]:
        scan = OrientedCase(case_id, {"map": anomaly_map}, brain=brain)
        settings = EvaluationSettings()
        statistics = CaseStatistics.of("map", CaseTruth(scan, settings), self.threshold)
        slices = statistics.slices
        if not len(slices["slice"]):
            raise ValueError(f"no axial slice holds {settings.top_k} voxels of the brain.")
        highest = slices["slice"][slices["score"].argmax()]  # from the feet up
        axis = int(np.argmax(scan.orientation[:, 0] == 2))
        flagged = statistics.flagged
        return {
            "case_id": case_id,
            "anomaly_score": f"{statistics.volume_score:.6g}",
            "threshold": self.threshold,
            "flagged_ml": None if flagged is None else f"{flagged.normal * statistics.voxel_volume:.6g}",
            "brain_ml": f"{statistics.brain_volume:.6g}",
            "slice": highest if scan.orientation[axis, 1] > 0 else len(scan.brain) - 1 - highest,
            "slice_axis": axis,
            "made_from": self._made_from(self.scans[case_id]),
            "warning": self._doubts(case_id, scan, statistics, brain),
        }

    def _modalities(self, case_id: str) -> list[str]:
        """Those of the network's modalities that a scan has."""
        missing = lacking_channels(self.scans[case_id])
        names = ensure_tuple(self.settings.get("modalities", ()))
        return [name for place, name in enumerate(names) if place not in missing]

    def _doubts(self, case_id: str, scan: OrientedCase, statistics: CaseStatistics, brain: MetaTensor) -> str:
        """What is implausible in a result; the log warns of it."""
        doubts = [f"the image {brain.meta['doubt']}"] if brain.meta.get("doubt") else []
        images = self.scans[case_id]["image"]
        wanted = self._modalities(case_id)
        for image, modality in zip(images, wanted, strict=True) if len(images) == len(wanted) else ():
            said = said_by_header(Path(image))
            if said and modality not in said:
                doubts.append(f"{image} calls itself {', '.join(sorted(said))}, but is taken as {modality}")
        low, high = BRAIN_ML
        background = self.settings.get("background")
        if not low <= statistics.brain_volume <= high and background != "noise":  # of which the mask is the head
            what = f"the brain measures {statistics.brain_volume:.0f} ml, outside of {low} to {high}"
            is_head = statistics.brain_volume > high and background != "skull"
            doubts.append(f"{what}: is there a skull (`--background skull`), or no background?" if is_head else what)
        if self.threshold is not None and statistics.flagged is not None and not statistics.flagged.normal:
            is_above = float(scan.anomaly_maps["map"][scan.brain].max()) < self.threshold
            doubts.append("the threshold lies above every score" if is_above else "nothing is flagged")
        text = printable("; ".join(doubts))
        if doubts:
            logger.warning("%s: %s.", case_id, text)
        return text

    def _store(self, row: dict[str, Any]) -> None:
        """Adds the row of a scan to the table."""
        image = printable(";".join(self.scans[row["case_id"]]["image"]))
        modalities = None if row.get("problem") else ";".join(self._modalities(row["case_id"]))
        self._put({**row, "modalities": modalities, "image": image, "problem": printable(row.get("problem") or "")})

    def _put(self, row: Mapping[str, Any]) -> None:
        """Writes a row, beside those of other programs.

        A long table is written anew once it has grown by a hundredth, and else added to, so that the time of all rows
        is linear in their number.
        """
        row = {column: "" if row.get(column) is None else row[column] for column in COLUMNS}
        with self._alone():
            self._added += 1
            if self._added * 100 >= len(self.rows) or not self.summary.is_file():
                self.rows = {**self._read_summary(), row["case_id"]: row}
                self._write_summary()
            else:
                self.rows[row["case_id"]] = row
                append_csv(COLUMNS, row, self.summary)

    def finish(self) -> None:
        """Puts the table in the order of the scans' names."""
        with self._alone():
            self.rows = self._read_summary()
            if self.rows:
                self._write_summary()

    def _alone(self) -> FileLock:
        """Lets one program at a time read and write the table."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        return FileLock(self.output_dir / ".summary.lock")

    def _write_summary(self) -> None:
        self._added = 0
        write_csv(COLUMNS, [self.rows[name] for name in sorted(self.rows)], self.summary)
