"""Damage in MetaImage and NRRD files that ITK does not notice."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from ssmctb_monai.files import voxel_file

__all__ = ["check_stream"]

_META_HEADER = re.compile(rb"\A.*?^ElementDataFile\s*=[^\r\n]+\r?\n", re.DOTALL | re.MULTILINE)
_NRRD_HEADER = re.compile(rb"\ANRRD.*?(?:\r?\n\r?\n|\Z)", re.DOTALL)
_META_GEOMETRY = re.compile(rb"^(?:ElementSpacing|ElementSize)\s*=", re.MULTILINE)
_NRRD_GEOMETRY = re.compile(rb"^(?:space directions|spacings)\s*:", re.MULTILINE)
_NRRD_UNITS = re.compile(rb"^space units\s*:(?P<units>[^\r\n]*)", re.MULTILINE)
_GZIP = re.compile(rb"^encoding\s*:\s*(?:gzip|gz)\s*$", re.MULTILINE)
_COMPRESSED = re.compile(rb"^CompressedData\s*=\s*True\s*$", re.MULTILINE | re.IGNORECASE)


def check_stream(path: Path) -> None:
    """Refuses a MetaImage or NRRD file without voxel sizes, or whose compressed stream does not fit its checksum.

    (ITK takes 1 mm for voxel sizes that are not there, and returns what it could uncompress as if all were well.)

    Args:
        path: file; one of another content passes.

    Raises:
        ValueError: The file is damaged, or its header says no voxel sizes, or none in mm.
    """
    data = path.read_bytes()
    if header := _NRRD_HEADER.match(data):
        geometry, is_compressed = _NRRD_GEOMETRY, _GZIP.search(header[0])
    elif b"NDims" in data[:4096] and (header := _META_HEADER.match(data)):
        geometry, is_compressed = _META_GEOMETRY, _COMPRESSED.search(header[0])
    else:
        return
    units = _NRRD_UNITS.search(header[0])
    if units and (others := set(re.findall(rb'"([^"]*)"', units["units"])) - {b"mm", b""}):
        raise ValueError(
            f"its voxel sizes are in {b', '.join(sorted(others)).decode(errors='replace')}: give them in mm"
        )
    if not geometry.search(header[0]):
        raise ValueError("its header does not say how large a voxel is: add that")
    if not is_compressed:
        return
    voxels = voxel_file(path)
    if voxels is None:  # a list of files, or one that ITK will miss
        return
    stream = data[header.end() :] if voxels == path else voxels.read_bytes()
    inflate = zlib.decompressobj(wbits=47)  # gzip or zlib, either with its checksum
    try:
        inflate.decompress(stream)
    except zlib.error as error:
        raise ValueError(f"its compressed voxels are damaged: {error}") from error
    if not inflate.eof:
        raise ValueError("its compressed voxels are cut off")
