"""Time to import the package, in new processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.measure import Row, compare


def rows() -> Iterator[Row]:
    ours, theirs = (
        lambda name=name: subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
        for name in ("ssmctb_monai", "monai")
    )
    seconds, share = compare(ours, theirs, rounds=5, min_seconds=0)
    yield Row("import ssmctb_monai", "import monai", seconds, share, "≤ 1.05")
