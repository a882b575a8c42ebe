"""CRCs and frames of record files."""

import os

import numpy as np
import pytest

from agentlace.errors import DecodeError
from agentlace.rlds.crc32c import LANE, PIECE, SHORT, crc32c
from agentlace.rlds.tfrecord import framed, framed_nbytes, read_records, scan_records


def bit_by_bit(data, crc=0):
    """The definition of the CRC."""
    register = crc ^ 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
)
def test_known_crcs(data, crc):
    assert crc32c(data) == crc
    assert crc32c(data[5:], crc32c(data[:5])) == crc


SIZES = (0, 1, SHORT - 1, SHORT, SHORT + 1, LANE - 1, LANE, LANE + 1, 7 * LANE, 8 * LANE + 5)


@pytest.mark.parametrize("size", SIZES)
def test_crcs_are_those_of_the_definition(size):
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == bit_by_bit(data)
    assert crc32c(memoryview(data), 0x12345678) == bit_by_bit(data, 0x12345678)


def test_crcs_of_several_pieces_add_up():
    data = np.random.default_rng(0).bytes(2 * PIECE + 3 * LANE + 11)
    crc = 0
    for at in range(0, len(data), 70_001):
        crc = crc32c(data[at : at + 70_001], crc)
    assert crc32c(data) == crc


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.tfrecord"


RECORDS = [b"", b"a", os.urandom(300), b"last"]


def write(path, records=RECORDS):
    path.write_bytes(b"".join(part for record in records for part in framed(record)))
    assert path.stat().st_size == sum(map(framed_nbytes, records))


def test_records_come_back(path):
    write(path)
    assert list(read_records(path)) == RECORDS
    assert list(read_records(path, skip=2)) == RECORDS[2:]
    assert list(read_records(path, skip=9)) == []


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_damaged_record_is_told_and_those_after_it_are_read(path):
    write(path)
    begin = sum(map(framed_nbytes, RECORDS[:2]))
    flip(path, begin + 12 + 100)
    found = list(scan_records(path))
    assert [at for at, _ in found][2] == begin
    assert [r for _, r in found if not isinstance(r, DecodeError)] == RECORDS[:2] + RECORDS[3:]
    with pytest.raises(DecodeError, match=rf"some\.tfrecord.*record at byte {begin}.*CRC"):
        list(read_records(path))


def test_behind_a_damaged_length_nothing_is_read(path):
    write(path)
    begin = sum(map(framed_nbytes, RECORDS[:2]))
    flip(path, begin + 1)
    *good, (at, problem) = scan_records(path)
    assert [record for _, record in good] == RECORDS[:2]
    assert at == begin and "length" in str(problem)


@pytest.mark.parametrize("cut", [1, 4, 5, 8, 12, 15])
def test_a_file_that_ends_within_a_record(path, cut):
    write(path)
    os.truncate(path, path.stat().st_size - cut)
    *good, (_, problem) = scan_records(path)
    assert [record for _, record in good] == RECORDS[:3]
    assert "ends within" in str(problem)
