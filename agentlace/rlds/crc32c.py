"""CRC-32C (Castagnoli) over numpy: Python has only the other CRC-32.

The register is linear in the data. So a buffer can be cut into lanes of one length, which are
worked off side by side, eight bytes at a time, and then joined in pairs: the left lane's register
is moved over as many zero bytes as the right lane is long. A register of zero stays zero over
zeros, so that lanes and pairs are filled up in front.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

POLYNOMIAL = 0x82F63B78
LANE = 256
"""Bytes of a lane."""
PIECE = 4096 * LANE
"""Bytes worked off at a time."""
SHORT = 64
"""Fewer bytes are worked off one by one."""

Array = np.ndarray[Any, Any]


def _byte_table() -> Array:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    return table


_BYTES = _byte_table()
_PLAIN: list[int] = _BYTES.tolist()


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """Return the CRC-32C of data, or of what had ``crc`` followed by the data."""
    register = crc ^ 0xFFFFFFFF
    for at in range(0, len(data), PIECE):
        piece = memoryview(data)[at : at + PIECE]
        register = _short(piece, register) if len(piece) < SHORT else _lanes(piece, register)
    return register ^ 0xFFFFFFFF


def _short(data: memoryview, register: int) -> int:
    for byte in data:
        register = _PLAIN[(register ^ byte) & 255] ^ (register >> 8)
    return register


def _lanes(data: memoryview, register: int) -> int:
    lanes = -(-len(data) // LANE)
    filled = np.zeros(lanes * LANE, np.uint8)
    begin = len(filled) - len(data)
    filled[begin:] = np.frombuffer(data, np.uint8)
    # A register before the data is the same as none, and itself in the data's first bytes.
    filled[begin : begin + 4] ^= np.frombuffer(register.to_bytes(4, "little"), np.uint8)
    tables = _word_tables()
    registers = np.zeros(lanes, np.uint32)
    for halves in filled.view("<u2").reshape(lanes, -1, 4).transpose(1, 2, 0).copy():
        ahead = registers.astype("<u4", copy=False).view("<u2").reshape(lanes, 2)
        registers = tables[0][halves[0] ^ ahead[:, 0]]
        registers ^= tables[1][halves[1] ^ ahead[:, 1]]
        registers ^= tables[2][halves[2]]
        registers ^= tables[3][halves[3]]
    return _joined(registers)


def _joined(registers: Array) -> int:
    """Return the register of all lanes together."""
    nbytes = LANE
    while len(registers) > 1:
        if len(registers) % 2:
            registers = np.concatenate([np.zeros(1, np.uint32), registers])
        registers = _moved(registers[::2], _zeros_tables(nbytes)) ^ registers[1::2]
        nbytes *= 2
    return int(registers[0])


@cache
def _word_tables() -> Array:
    """Return what each half word (16 bits) of a word of eight bytes does, by place; (4, 65536)."""
    by_byte = [_BYTES]
    for _ in range(7):
        by_byte.insert(0, (by_byte[0] >> 8) ^ _BYTES[by_byte[0] & 255])
    halves = np.arange(1 << 16)
    low, high = halves & 255, halves >> 8
    return np.stack([by_byte[i][low] ^ by_byte[i + 1][high] for i in range(0, 8, 2)])


@cache
def _zeros_tables(nbytes: int) -> Array:
    """Return what each byte of a register becomes after so many zero bytes; shape (4, 256).

    Args:
        nbytes: a power of two.
    """
    values = np.arange(256, dtype=np.uint32)
    if nbytes == 1:
        return np.stack([_BYTES, values, values << np.uint32(8), values << np.uint32(16)])
    half = _zeros_tables(nbytes // 2)
    return _moved(half, half)


def _moved(registers: Array, tables: Array) -> Array:
    found: Array = tables[0][registers & 255]
    for place in range(1, 4):
        found = found ^ tables[place][(registers >> np.uint32(8 * place)) & 255]
    return found
