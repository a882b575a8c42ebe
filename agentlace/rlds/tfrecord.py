"""Files of records as TensorFlow has them: length, its CRC, the record, its CRC; all masked.

::

    8 bytes  length of the record, little endian
    4 bytes  masked CRC-32C of the length
    n bytes  the record
    4 bytes  masked CRC-32C of the record
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import IO

from agentlace.errors import DecodeError
from agentlace.rlds.crc32c import crc32c

HEADER_NBYTES = 12
FOOTER_NBYTES = 4
_MASK = 0xA282EAD8


def framed(record: bytes) -> tuple[bytes, bytes, bytes]:
    """Return header, record and footer, to be written one after the other."""
    length = struct.pack("<Q", len(record))
    header = length + struct.pack("<I", _masked(crc32c(length)))
    return header, record, struct.pack("<I", _masked(crc32c(record)))


def framed_nbytes(record: bytes) -> int:
    """Return the bytes that a record takes in a file."""
    return HEADER_NBYTES + len(record) + FOOTER_NBYTES


def read_records(path: str | os.PathLike[str], skip: int = 0) -> Iterator[bytes]:
    """Yield the records of a file.

    Args:
        path: of the file.
        skip: so many records at the beginning are left out, and not looked at.

    Raises:
        DecodeError: the file ends within a record, or a CRC is not what it should be.
    """
    for _, found in scan_records(path, skip):
        if isinstance(found, DecodeError):
            raise found
        yield found


def scan_records(
    path: str | os.PathLike[str], skip: int = 0
) -> Iterator[tuple[int, bytes | DecodeError]]:
    """Yield where each record begins, in bytes, and the record, or what is wrong with it.

    A record whose own CRC is wrong does not keep from those after it; a wrong length does.
    """
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        number = 0
        while (begin := file.tell()) < end:
            try:
                length = _length(file, begin, end)
            except DecodeError as error:
                yield begin, DecodeError(f"{path}: {error}")
                return
            number += 1
            if number <= skip:
                file.seek(length + FOOTER_NBYTES, os.SEEK_CUR)
                continue
            record, footer = file.read(length), file.read(FOOTER_NBYTES)
            if struct.unpack("<I", footer)[0] == _masked(crc32c(record)):
                yield begin, record
            else:
                reason = f"the record at byte {begin:,} is damaged (CRC)"
                yield begin, DecodeError(f"{path}: {reason}")


def _length(file: IO[bytes], begin: int, end: int) -> int:
    """Return the length of the record that begins here and is sure to be there, whole."""
    header = file.read(HEADER_NBYTES)
    if len(header) < HEADER_NBYTES:
        raise DecodeError(f"the file ends within the record at byte {begin:,}")
    length, crc = struct.unpack("<QI", header)
    if crc != _masked(crc32c(header[:8])):
        raise DecodeError(f"the length at byte {begin:,} is damaged (CRC)")
    if begin + HEADER_NBYTES + length + FOOTER_NBYTES > end:
        raise DecodeError(f"the file ends within the record at byte {begin:,}")
    return int(length)


def _masked(crc: int) -> int:
    """Return a CRC as TensorFlow stores it."""
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF
