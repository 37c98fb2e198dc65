"""Inference on very many scans takes linear time and little memory, by what can be counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys, tracemalloc
from pathlib import Path
from benchmarks.scans import infer, write_scans

operations = [0]
sys.addaudithook(lambda event, _: operations.__setitem__(0, operations[0] + event.startswith(("open", "os."))))
counts, peaks = [], []
folders = [write_scans(Path(sys.argv[1]) / str(count), count) for count in (20, 200, 400)]
for folder in folders:  # of the first, what is loaded once
    operations[0] = 0
    tracemalloc.start()
    infer(folder)
    counts.append(operations[0])
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
print(json.dumps([counts[1:], peaks[1:]]))
"""


@pytest.mark.process
def test_many_scans(tmp_path):
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    root = Path(__file__).parents[2]
    result = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    (operations, more_operations), (peak, higher_peak) = json.loads(result.stdout.splitlines()[-1])
    assert operations > 200 * 5  # read, written, added to the table
    assert more_operations < 2.1 * operations
    assert higher_peak - peak < 200 * 10_000  # bytes, which one of these scans alone would take
