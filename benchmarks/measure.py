"""How the benchmarks measure: interleaved times, and peak memory in processes of their own."""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

Run = Callable[[], object]


@dataclass
class Row:
    """A line of the table: what was measured, against what, and what it should be.

    Args:
        what: what was measured.
        reference: against what.
        seconds: median time of a call, if times were measured.
        ratio: ``None`` where there is no reference; see `goal` for the direction.
        goal: ``"≥ 3"``: times faster than the reference; ``"≤ 1.05"``: share of the reference's time; also without a
            number, ``"≥"`` or ``"≤"``.
        memory: peak memory in GiB.
        memory_ratio: share of the reference's peak memory.
        note: what else there is to say.
        before: ratio, or without one time, of the same row in another table.
    """

    what: str
    reference: str
    seconds: float | None
    ratio: float | None
    goal: str
    memory: float | None = None
    memory_ratio: float | None = None
    note: str = ""
    before: str = ""

    def __str__(self) -> str:
        duration = "" if self.seconds is None else f"{1e3 * self.seconds:.1f} ms"
        if self.seconds is not None and self.seconds >= 1:
            duration = f"{self.seconds:.1f} s"
        ratio = "" if self.ratio is None else f"{self.ratio:.3g}" if self.goal.startswith("≥") else f"{self.ratio:.3f}"
        memory = "" if self.memory is None else f"{self.memory:.2f} GiB"
        memory += "" if self.memory_ratio is None else f", {self.memory_ratio:.2f} of the reference's"
        cells = (self.what, self.reference, duration, self.before, ratio, self.goal, memory, self.note)
        return "| " + " | ".join(cells) + " |"


HEAD = "| what | reference | time | before | ratio | goal | peak memory | |\n|---|---|---|---|---|---|---|---|"


def ratios_of(table: Path) -> dict[str, str]:
    """Reads the ratios of a table that was printed before, and the times of its rows without ratio.

    Args:
        table: file with the printed table.

    Returns:
        Ratio or time by what was measured.
    """
    lines = [line for line in table.read_text().splitlines() if line.startswith("| ")]
    if not lines or "what" not in lines[0]:
        raise ValueError(f"{table} holds no table that python -m benchmarks printed.")
    head, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    named = [dict(zip(head, row, strict=False)) for row in rows]
    return {row["what"]: row["ratio"] or row["time"] for row in named}


def interleaved(runs: list[Run], rounds: int = 5, min_seconds: float = 0.4, warm_up: bool = True) -> list[list[float]]:
    """Times calls in turn, so that what else runs on the machine touches all of them alike.

    Args:
        runs: what to time.
        rounds: number of rounds.
        min_seconds: time that each gets in each round; at least one call.
        warm_up: whether each is called once before.

    Returns:
        For each run the median time of a call in each round, in seconds.
    """
    times: list[list[float]] = [[] for _ in runs]
    for run in runs if warm_up else ():
        run()
    for _ in range(rounds):
        for run, found in zip(runs, times, strict=True):
            calls: list[float] = []
            while not calls or sum(calls) < min_seconds:
                _synchronize()
                start = time.perf_counter()
                run()
                _synchronize()
                calls.append(time.perf_counter() - start)
            found.append(median(calls))
    return times


def compare(this: Run, reference: Run, **kwargs: Any) -> tuple[float, float]:
    """Median time of a call, and the median over the rounds of its share of the reference's time.

    Args:
        this: what to time.
        reference: what to time it against.
        kwargs: as for `interleaved`.
    """
    ours, theirs = interleaved([this, reference], **kwargs)
    return median(ours), median(a / b for a, b in zip(ours, theirs, strict=True))


def in_fresh_process(function: Callable[..., Any], *arguments: object) -> tuple[Any, float]:
    """Calls a function in a process of its own.

    Args:
        function: importable function with a result that can be pickled.
        arguments: its arguments.

    Returns:
        The result, and the process's peak memory in GiB.
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_report, args=(function, arguments, results))
    process.start()
    while process.is_alive() and results.empty():
        process.join(0.1)
    if results.empty() and process.exitcode:
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}.")
    return results.get()


def growth(what: str, run: Callable[[Any], object], few: tuple[Any, int], many: tuple[Any, int]) -> Row:
    """Compares time and peak memory of many with those of few.

    Args:
        what: what is done with each.
        run: importable function of the few or the many.
        few: the few, and their number.
        many: the same of the many.

    Returns:
        A row with the ratio of the times of one of them.
    """
    seconds, share = compare(lambda: run(many[0]), lambda: run(few[0]), rounds=1, min_seconds=0, warm_up=False)
    memory, other = (in_fresh_process(run, argument)[1] for argument in (many[0], few[0]))
    return Row(
        f"{many[1]} {what}",
        f"{few[1]} of them",
        seconds,
        share * few[1] / many[1],
        "≤ 1.1",
        memory,
        memory / other,
        note="ratio of the times of one of them",
    )


def _report(function: Callable[..., Any], arguments: tuple, results: multiprocessing.Queue) -> None:
    result = function(*arguments)
    results.put((result, _status("VmHWM")))  # ru_maxrss would start from the parent's


def peak_memory(make: Callable[..., Run], *arguments: object) -> float:
    """Memory that one call takes beyond what there was before, in GiB.

    Args:
        make: importable function that makes the call's inputs and returns the call.
        arguments: its arguments.
    """
    if torch.cuda.is_available():
        run = make(*arguments)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    return in_fresh_process(_peak_of_call, make, arguments)[0]


def compare_with_memory(make: Callable[..., Run], *arguments: object) -> tuple[float, float, float, float]:
    """`compare`, and the same of the peak memory.

    Args:
        make: importable function that makes a call; its last argument says whether ours or the reference's.
        arguments: its other arguments.

    Returns:
        Seconds, share of the reference's time, peak memory in GiB, share of the reference's memory.
    """
    seconds, share = compare(make(*arguments, True), make(*arguments, False))
    memory, other = (peak_memory(make, *arguments, is_ours) for is_ours in (True, False))
    return seconds, share, memory, memory / other


def _peak_of_call(make: Callable[..., Run], arguments: tuple) -> float:
    run = make(*arguments)
    run()  # what the first call loads and compiles is not its memory
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20


def device() -> torch.device:
    """The device that is measured: the first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def goal(on_cpu: str, on_gpu: str) -> str:
    """The goal on the device that is measured."""
    return on_gpu if torch.cuda.is_available() else on_cpu


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
