"""Threads beside other programs."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path

import torch
from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)

STATISTICS = Path("/proc/stat")  # where Linux says how busy it was


class FreeCores:
    """Lowers the number of threads to that of the cores that other programs leave free, while the engine runs.

    A step lasts as long as its slowest thread: two threads of which one shares its core with another program are slower
    than one. The number only falls, until the run is over; one that ``OMP_NUM_THREADS`` gives stays. Where the
    system does not tell how busy it is, nothing changes.

    Args:
        interval: seconds from one look at the other programs to the next.

    Raises:
        ValueError: when ``interval`` is not positive.

    Example:
        >>> FreeCores().attach(trainer)
    """

    def __init__(self, interval: float = 10.0) -> None:
        if interval <= 0:
            raise ValueError(f"interval must be positive, got {interval}.")
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Attaches the handler.

        Args:
            engine: trainer or evaluator.
        """
        if not STATISTICS.is_file() or "OMP_NUM_THREADS" in os.environ:
            return
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self.ended)

    def started(self) -> None:
        """Keeps the number of threads."""
        self._threads = torch.get_num_threads()
        self._look()

    def ended(self) -> None:
        """Gives what follows in the process the number of threads from before."""
        torch.set_num_threads(self._threads)

    def iteration_completed(self) -> None:
        """Looks at the other programs, when it is time."""
        seconds = time.monotonic() - self._time
        if seconds < self.interval:
            return
        taken = (_busy_seconds() - self._busy - (time.process_time() - self._own)) / seconds
        cores, threads = os.cpu_count() or 1, torch.get_num_threads()
        free = max(1, math.floor(cores - taken + 0.25))  # a core of which others take less than a quarter counts
        if free < threads:
            torch.set_num_threads(free)
            logger.info(
                "Other programs take %.1f of %d cores, and threads wait for each other: %d instead of %d from here on.",
                taken,
                cores,
                free,
                threads,
            )
        self._look()

    def _look(self) -> None:
        self._time, self._own, self._busy = time.monotonic(), time.process_time(), _busy_seconds()


def _busy_seconds() -> float:
    """Time that all cores were busy since the system started."""
    total = STATISTICS.read_text(encoding="ascii").partition("\n")[0].split()
    user, nice, system, _, _, *others = map(int, total[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")
