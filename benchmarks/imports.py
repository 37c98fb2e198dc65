"""Time to import the package, in new processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.measure import Row, compare


def rows() -> Iterator[Row]:
    ours, theirs = (
        lambda line=line: subprocess.run([sys.executable, "-c", line], check=True)
        for line in ("from ssmctb_monai import *", "import monai")
    )
    seconds, share = compare(ours, theirs, rounds=5, min_seconds=0)
    yield Row("from ssmctb_monai import *", "import monai", seconds, share, "≤ 1.05")
