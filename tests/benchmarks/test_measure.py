"""The tables of benchmarks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.measure import HEAD, Row, ratios_of


def test_a_printed_table_stands_beside_the_next(tmp_path):
    rows = [Row("a step", "a longer step", 0.5, 2.0, "≥ 2"), Row("an evaluation", "", 1.5, None, "≤ 2 GiB", 0.5)]
    table = tmp_path / "before.md"
    table.write_text("\n".join(["4 CPU threads", "", HEAD, *map(str, rows)]))
    before = ratios_of(table)
    assert before == {"a step": "2", "an evaluation": "1.5 s"}
    faster = replace(rows[0], ratio=3.0, before=before["a step"])
    assert str(faster) == "| a step | a longer step | 500.0 ms | 2 | 3 | ≥ 2 |  |  |"


def test_no_table(tmp_path):
    table = tmp_path / "before.md"
    table.write_text("nothing measured")
    with pytest.raises(ValueError, match=r"before\.md holds no table that python -m benchmarks printed"):
        ratios_of(table)
