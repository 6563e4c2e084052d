"""The records of a BPF ring buffer, as the kernel lays them out."""

from __future__ import annotations

import struct

from firewall.kernel.ring_buffer import BUSY, DISCARDED, records

SIZE = 64


def ring(*written: tuple[int, bytes], flags: dict[int, int] | None = None) -> bytes:
    """Records at positions, in a ring of SIZE bytes that is mapped twice. `flags`: by position."""
    data = bytearray(SIZE)
    for at, body in written:
        header = struct.pack("=II", len(body) | (flags or {}).get(at, 0), 7)
        for place, byte in enumerate(header + body, at):
            data[place % SIZE] = byte
    return bytes(data) * 2


def test_records_are_read_in_order_and_each_takes_whole_words() -> None:
    data = ring((0, b"one"), (16, b"second word"), (40, b"12345678"))
    assert records(data, SIZE, 0, 56, 10) == ([b"one", b"second word", b"12345678"], 56)


def test_nothing_is_read_where_the_writer_has_not_been() -> None:
    assert records(ring((0, b"old")), SIZE, 0, 0, 10) == ([], 0)


def test_a_record_over_the_end_of_the_ring_is_whole() -> None:
    data = ring((48, b"from the end on"))
    assert records(data, SIZE, SIZE + 48, SIZE + 72, 10) == ([b"from the end on"], SIZE + 72)


def test_reading_ends_before_a_record_that_is_being_written() -> None:
    data = ring((0, b"done"), (16, b"not yet"), (32, b"done too"), flags={16: BUSY})
    assert records(data, SIZE, 0, 48, 10) == ([b"done"], 16)
    later = ring((0, b"done"), (16, b"not yet"), (32, b"done too"))
    assert records(later, SIZE, 16, 48, 10) == ([b"not yet", b"done too"], 48)


def test_a_record_that_its_writer_gave_up_is_passed_over() -> None:
    data = ring((0, b"given up"), (16, b"kept"), flags={0: DISCARDED})
    assert records(data, SIZE, 0, 32, 10) == ([b"kept"], 32)


def test_no_more_are_read_than_asked_for_and_the_rest_stays() -> None:
    data = ring((0, b"a"), (16, b"b"), (32, b"c"))
    assert records(data, SIZE, 0, 48, 2) == ([b"a", b"b"], 32)
    assert records(data, SIZE, 32, 48, 2) == ([b"c"], 48)
