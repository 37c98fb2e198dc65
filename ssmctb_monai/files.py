"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.config import PathLike

UNFINISHED = ".unfinished-"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Lets a file be written beside its place, which it takes when all went well.

    Args:
        path: file, in a folder that is made where there is none.

    Yields:
        Where to write, with the same suffixes; a killed program leaves at most this hidden file.

    Example:
        >>> with whole_file(Path("maps/case.nii.gz")) as unfinished:
        ...     nibabel.save(image, unfinished)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{UNFINISHED}{secrets.token_hex(4)}-{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes the whole file or nothing.

    Args:
        content: what to write; all numbers finite.
        path: file, in a folder that is made where there is none.
    """
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def checksum(path: PathLike) -> str:
    """Returns the SHA-256 checksum of a file, as hexadecimal digits.

    Args:
        path: file.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
