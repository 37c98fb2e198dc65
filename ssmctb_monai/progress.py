"""How far a loop is, and the time that it still takes."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

logger = logging.getLogger(__name__)


class Clock:
    """Tells how long a loop will still take, from the mean time of its steps so far."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def left(self, done: int, total: int) -> timedelta:
        """Estimates the time left, in whole seconds.

        Args:
            done: number of steps done, at least 1.
            total: number of all steps.
        """
        return timedelta(seconds=round((time.monotonic() - self.start) / done * (total - done)))


class Progress:
    """Logs how many steps of a loop are done, at most every few seconds, and nothing of a short one.

    Args:
        what: what is done in a step, in words.
        total: number of all steps.
        interval: least number of seconds between two lines.

    Example:
        >>> progress = Progress("Prepared case", total=9)
        >>> progress.step()  # after ten seconds logs: Prepared case 1/9 | 0:01:20 left
    """

    def __init__(self, what: str, total: int, interval: float = 10.0) -> None:
        self.what, self.total, self.interval = what, total, interval
        self.clock = Clock()
        self.done = 0
        self._logged = self.clock.start

    def step(self) -> None:
        """Counts a step."""
        self.done += 1
        now = time.monotonic()
        if self.done < self.total and now - self._logged >= self.interval:
            self._logged = now
            logger.info("%s %d/%d | %s left", self.what, self.done, self.total, self.clock.left(self.done, self.total))
