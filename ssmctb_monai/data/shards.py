"""Scans shared out to many processes, of a batch queue (``--shard 3/16``) or of torchrun, or of both."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import distributed

__all__ = ["process_device", "take_shard", "wait_for_others"]

Item = TypeVar("Item")


def _processes() -> tuple[int, int]:
    """Rank and number of the processes that torchrun started; one where it did not."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def take_shard(items: Sequence[Item], shard: str | None = None) -> list[Item]:
    """Takes the items that are this process's to do; each is one process's.

    Args:
        items: all items, in the same order in every process.
        shard: ``"3/16"`` for the third of sixteen parts, ``None`` for all. Processes of torchrun share a part.

    Returns:
        Every n-th item.

    Raises:
        ValueError: ``shard`` is no such part.

    Example:
        >>> take_shard(["a", "b", "c", "d", "e"], "2/3")
        ['b', 'e']
    """
    match = re.fullmatch(r"(\d+)/(\d+)", str(shard).strip()) if shard is not None else None
    part, count = (int(match[1]), int(match[2])) if match else (1, 1)
    if (shard is not None and not match) or not 1 <= part <= count:
        raise ValueError(f"A shard is a part such as 3/16, from 1/16 to 16/16, got {shard!r}.")
    rank, world_size = _processes()
    return list(items[(part - 1) * world_size + rank :: count * world_size])


def process_device() -> torch.device:
    """Returns the device of this process: under torchrun each has its own GPU where there are as many."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def wait_for_others() -> None:
    """Waits until all processes that torchrun started have come here, since the end of one with an error ends all."""
    if _processes()[1] > 1:
        distributed.init_process_group("gloo", timeout=datetime.timedelta(days=7))
        distributed.barrier()
        distributed.destroy_process_group()
