"""Time left of a loop."""

from __future__ import annotations

import time
from datetime import timedelta


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
