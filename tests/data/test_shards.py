"""Scans shared out to many processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssmctb_monai.data import take_shard


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("count", [1, 4, 16])
def test_each_scan_is_one_process_s(monkeypatch, count, world_size):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    taken = []
    for part in range(1, count + 1):
        for rank in range(world_size):
            monkeypatch.setenv("RANK", str(rank))
            taken.append(take_shard(range(50), f"{part}/{count}" if count > 1 else None))
    assert sorted(item for shard in taken for item in shard) == list(range(50))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


@pytest.mark.parametrize("shard", ["0/4", "5/4", "4", "1/0", "-1/4", "1/4/2", "a/b", "", 3, True, 0.25])
def test_part_that_is_none(shard):
    with pytest.raises(ValueError, match="from 1/16 to 16/16, got"):
        take_shard([1, 2], shard)


PROGRAM = """
import sys, torch
from monai.data import MetaTensor
from ssmctb_monai.data.checks import InvalidCasesError
from ssmctb_monai.data.shards import take_shard, wait_for_others
from ssmctb_monai.reports import ScanResults

results = ScanResults(sys.argv[1], {})
scans = [{"case_id": f"s{k:02d}", "patient_id": "p", "image": [f"/s{k}.nii"]} for k in range(20)]
score = MetaTensor(torch.rand(1, 9, 9, 9), affine=torch.eye(4))
for scan in results.pending(take_shard(scans)):
    if scan["case_id"] == "s00":
        results.fail("s00", "damaged")
    else:
        results.add(scan["case_id"], score, MetaTensor(torch.ones(1, 9, 9, 9), affine=torch.eye(4)))
wait_for_others()
results.finish()
if results.problems:
    sys.exit(3)
"""


@pytest.mark.process
def test_processes_of_torchrun_write_one_table_and_none_ends_the_others(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "program.py", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode, run.stderr
    lines = (tmp_path / "out" / "summary.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [f"s{k:02d}" for k in range(20)], run.stderr
    assert len(list((tmp_path / "out" / "maps").iterdir())) == 19
