"""The script for a machine with a GPU, on any device, in small."""

from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[2]


def test_rows(monkeypatch):
    monkeypatch.setattr(gpu, "VARIANTS", {name: flags for name, flags in gpu.VARIANTS.items() if not flags[2]})
    rows = list(gpu.rows({2: (2, 32)}, 0.0))
    assert [row.what.split(", ", 3)[1] for row in rows] == ["training step"] * 3 + ["inference"] * 3
    assert [row.what.partition("2x1x32x32, ")[2] for row in rows[:3]] == list(gpu.VARIANTS)[1:]
    assert all(row.seconds > 0 and row.ratio > 0 for row in rows)


@pytest.mark.parametrize("variant", gpu.VARIANTS)
def test_flags_are_what_the_name_says(variant):
    in_half, channels_last, compiled = gpu.VARIANTS[variant]
    assert (in_half, channels_last, compiled) == tuple(
        word in variant for word in ("bfloat16", "channels last", "compiled")
    )


def test_files_of_the_tests_exist():
    assert all((ROOT / name).is_file() for name in gpu.TESTS)
