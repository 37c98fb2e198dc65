"""The bundles as models of MONAI Label's server; docs/howto/monai_label.md says how it is installed and started.

The server takes as its app a folder with a file ``main.py``, and writes logs into it. That folder is the user's own,
and the file one line::

    from ssmctb_monai.monai_label import AnomalyApp
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

import ssmctb_monai
from ssmctb_monai.cli.bundles import NAMES, Bundle
from ssmctb_monai.cli.workflow import parse_value, run_workflow
from ssmctb_monai.files import read_csv

FOLDERS = {"mask": "masks", "map": "maps"}  # of the results that a client may ask for
FIGURES = ("anomaly_score", "threshold", "flagged_ml", "brain_ml", "slice", "slice_axis")
LABELS = {"anomaly": 1}


class AnomalyTask(InferTask):
    """Runs the inference of a bundle on one scan, as ``ssmctb infer`` does, so that the results are the same.

    A client gets the mask, of the label ``anomaly``, or, with ``{"result": "map"}`` among its parameters, the anomaly
    map, both on the scan's own grid. With it come the figures of the scan's row in ``summary.csv``. Nothing else that a
    client sends is used: options of the bundle may be expressions, which are evaluated.

    Args:
        bundle: the bundle.
        options: options of its inference.
    """

    def __init__(self, bundle: Bundle, options: Mapping[str, Any]) -> None:
        description = json.loads(bundle.config("metadata").read_text("utf-8"))["description"]
        super().__init__(InferType.SEGMENTATION, LABELS, 3, description, config={"result": list(FOLDERS)})
        self.bundle = bundle
        self.options = options

    def is_valid(self) -> bool:
        """Tells whether clients are offered this model, always."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Makes mask or map of a scan.

        Args:
            request: with ``image``, the path of the scan, and as ``result`` what is asked for.

        Returns:
            A new NIfTI file, which the server removes once it is sent, and the figures.

        Raises:
            HTTPException: with the reason, when there is no such scan or it cannot be used.
        """
        result = request.get("result", "mask")
        if result not in FOLDERS:
            raise HTTPException(422, f"There is no result {result!r}, only {', '.join(FOLDERS)}.")
        if not request["image"]:
            raise HTTPException(404, "The studies hold no such image: GET /datastore/?output=all lists them.")
        scan = str(Path(request["image"]).absolute())  # also where a name begins as an expression does
        with tempfile.TemporaryDirectory() as folder:
            own = {"dataset_dir": scan, "output_dir": folder, "save_mask": result == "mask", "logging_file": False}
            try:
                options = {"bundle_root": str(self.bundle.root), **self.options, **own}
                run_workflow("inference", "inference", self.bundle, [], options)
            except click.ClickException as error:
                raise HTTPException(422, error.message) from error
            row = read_csv(Path(folder, "summary.csv"))[1][0]
            handle, file = tempfile.mkstemp(suffix=".nii.gz")
            os.close(handle)
            shutil.move(Path(folder, FOLDERS[result], f"{row['case_id']}.nii.gz"), file)
        figures = {name: json.loads(row[name]) for name in FIGURES if row[name]}
        return file, {"label_names": LABELS, **figures, "warning": row["warning"]}


class AnomalyApp(MONAILabelApp):
    """Both bundles as models of MONAI Label's server, ``brats2d`` and ``brats3d``.

    Args:
        app_dir: folder of the app.
        studies: folder of the scans.
        conf: what each ``--conf NAME VALUE`` of the server's command says: ``models``, names with commas between, which
            are offered; all others are options of the bundles' inference.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        name, description = "ssmctb_monai", "Anomaly detection in brain MRI. For research; this is no medical device."
        super().__init__(app_dir, studies, conf, name, description, ssmctb_monai.__version__)

    def init_infers(self) -> dict[str, InferTask]:
        """Makes the models.

        Raises:
            ValueError: when ``models`` names one that there is not.
        """
        conf = dict(self.conf)
        names = conf.pop("models", ",".join(NAMES.values())).split(",")
        if unknown := set(names) - set(NAMES.values()):
            raise ValueError(f"--conf models: there is no {', '.join(unknown)}, only {', '.join(NAMES.values())}.")
        options = {name: parse_value(name, value) for name, value in conf.items()}
        return {name: AnomalyTask(Bundle(dims), options) for dims, name in NAMES.items() if name in names}
