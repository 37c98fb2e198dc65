"""What inference leaves of every scan: maps and a row of a table, whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import MetaTensor
from monai.data.utils import pickle_hashing

from ssmctb_monai.data.datasets import fingerprint
from ssmctb_monai.data.dicom import import_highdicom, write_parametric_map, write_segmentation
from ssmctb_monai.data.oriented_case import OrientedCase
from ssmctb_monai.data.series import is_series_file
from ssmctb_monai.data.writers import write_nifti
from ssmctb_monai.files import read_csv, remove_abandoned, write_csv, write_json
from ssmctb_monai.metrics.case_statistics import CaseStatistics, CaseTruth
from ssmctb_monai.metrics.settings import EvaluationSettings

logger = logging.getLogger(__name__)

COLUMNS = (
    *("case_id", "anomaly_score", "threshold", "flagged_ml", "brain_ml", "slice", "slice_axis"),
    *("image", "made_from", "problem"),
)


class ScanResults:
    """Writes anomaly maps and a summary, scan by scan, so that a rerun does only what is missing.

    In the folder: ``maps/CASE.nii.gz``, on request ``masks/CASE.nii.gz``, ``reconstructions/CASE.nii.gz`` and
    ``dicom/CASE_map.dcm``, ``dicom/CASE_mask.dcm``; ``summary.csv`` with a row for each scan; ``settings.json`` with
    what the results were made with.

    Columns of the summary: ``anomaly_score``, that of the most suspicious axial slice (mean of its 20 highest voxels);
    ``threshold`` and ``flagged_ml``, the volume of the brain at or above it; ``brain_ml``; ``slice`` and
    ``slice_axis``, the most suspicious slice as index along that axis of the scan's voxel grid, both counted from 0;
    ``image``, the files, joined by ``;``; ``made_from``, a hash of scan and settings; ``problem``, what was wrong with
    a scan that has no result.

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
        self.output_dir = Path(output_dir)
        self.settings = {**settings, "threshold": threshold}
        self.threshold = threshold
        self.save_mask, self.save_reconstruction, self.save_dicom = save_mask, save_reconstruction, save_dicom
        self.summary = self.output_dir / "summary.csv"
        self.scans: dict[str, Mapping[str, Any]] = {}
        self.rows: dict[str, dict[str, Any]] = {}

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
        self.rows = self._read_summary()
        write_json(self.settings, self.output_dir / "settings.json")
        if self.threshold is None:
            logger.warning("There is no threshold: nothing is flagged. Training writes one beside the checkpoint.")

        self.scans = {scan["case_id"]: self._checked(scan) for scan in scans}
        to_do = [scan for scan in self.scans.values() if not self._is_done(scan)]
        if done := len(scans) - len(to_do):
            logger.info("%d of %d scans are done already, in %s.", done, len(scans), self.output_dir)
        return to_do

    def _read_summary(self) -> dict[str, dict[str, Any]]:
        if not self.summary.is_file():
            return {}
        columns, rows = read_csv(self.summary)
        if columns != list(COLUMNS):
            raise ValueError(f"{self.summary} is no summary of scans: choose another --output_dir, or remove it.")
        return {row["case_id"]: row for row in rows}

    def _checked(self, scan: Mapping[str, Any]) -> Mapping[str, Any]:
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
        if self.rows.pop(case_id, None):
            self._write_summary()
        for file in self._files(case_id).values():
            file.unlink(missing_ok=True)

    def add(
        self, case_id: str, anomaly_map: MetaTensor, brain: MetaTensor, reconstruction: MetaTensor | None = None
    ) -> None:
        """Writes the results of a scan.

        Args:
            case_id: name of the scan.
            anomaly_map: scores in [0, 1] on the scan's own grid, shape (1, height, width, depth).
            brain: brain mask of the same shape.
            reconstruction: reconstruction in the scan's intensities, shape (channels, height, width, depth).

        Raises:
            ValueError: when the map holds NaN in the brain, or no axial slice holds 20 voxels of the brain.
        """
        anomaly_map, brain = anomaly_map.cpu(), brain.cpu()
        try:
            row = self._row(case_id, anomaly_map, brain)
        except ValueError as error:
            raise ValueError(f"{case_id} has no result: {error}") from error
        self._remove(case_id)
        images = {"map": anomaly_map, "reconstruction": reconstruction}
        if self.threshold is not None:
            images["mask"] = ((anomaly_map >= self.threshold) & (brain > 0)).to(torch.uint8)
        scan = self.scans[case_id]["image"][0]
        for kind, file in self._wanted(case_id).items():
            if kind == "dicom map":
                write_parametric_map(anomaly_map, scan, file)
            elif kind == "dicom mask":
                write_segmentation(images["mask"], scan, file)
            else:
                write_nifti(images[kind], file, scan=scan)
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
        }

    def _store(self, row: dict[str, Any]) -> None:
        """Adds a row to the table."""
        row["image"] = ";".join(self.scans[row["case_id"]]["image"])
        self.rows[row["case_id"]] = {column: "" if row.get(column) is None else row[column] for column in COLUMNS}
        self._write_summary()

    def _write_summary(self) -> None:
        write_csv(COLUMNS, [self.rows[name] for name in sorted(self.rows)], self.summary)
