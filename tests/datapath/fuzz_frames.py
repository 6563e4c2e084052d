"""Frames by the hundred thousand for the fuzzer: a corpus, cut at every byte, and random mutations of it.

Owns making them, as rows of bytes; the same generator state gives the same frames. No verdict is computed here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt

from tests.packets import CASES, with_ip_length
from tests.random_rules import random_frame
from tests.vector_judge import Frames

Bytes = npt.NDArray[np.uint8]
WIDTH = 320
SHORTEST = 14  # of a test run, whatever the link
# Numbers that headers ask about: protocols, lengths, types, version and length nibbles, all and nothing.
TELLING = np.array(
    [0, 1, 2, 4, 5, 6, 7, 8, 17, 33, 43, 44, 50, 51, 58, 59, 60, 132, 135, 136, 0x08, 0x40, 0x45, 0x46, 0x4F, 0x54,
     0x5F, 0x60, 0x65, 0x81, 0x86, 0x88, 0x91, 0xA8, 0xDD, 0x7F, 0x80, 0xFE, 0xFF], np.uint8,
)  # fmt: skip
FRESH_SEEDS = 3000


def ip_start(frame: bytes, link: str) -> int:
    """Where the IP header would begin; only a hint, for mutations that mean it."""
    at = 14 if link == "ethernet" else 0
    while link == "ethernet" and frame[at - 2 : at] in (b"\x81\0", b"\x88\xa8", b"\x91\0") and at < 22:
        at += 4
    return at


@cache
def corpus(link: str) -> list[bytes]:
    found = [case.frame for case in CASES if case.link == link and SHORTEST <= len(case.frame) <= WIDTH]
    return list(dict.fromkeys(found))


def every_cut(link: str) -> Iterator[bytes]:
    """Every frame of the corpus cut at every byte: as it is, and with an IP length that agrees."""
    for frame in corpus(link):
        start = ip_start(frame, link)
        for size in range(SHORTEST, len(frame) + 1):
            yield frame[:size]
            yield with_ip_length(frame[:size], start)


def as_rows(frames: list[bytes]) -> Frames:
    data = np.zeros((len(frames), WIDTH), np.uint8)
    for row, frame in zip(data, frames, strict=True):
        row[: len(frame)] = np.frombuffer(frame, np.uint8)
    return Frames(data, np.array([len(frame) for frame in frames]))


def mutated(seed: int, link: str, count: int) -> Frames:
    """`count` frames: one in eight as some parser made it, the others changed in one to four ways."""
    rng, source = np.random.default_rng(seed), random.Random(seed)
    fresh = [random_frame(source, link) for _ in range(FRESH_SEEDS)]
    parents = [*corpus(link), *(frame for frame in fresh if len(frame) <= WIDTH)]
    starts = np.array([ip_start(frame, link) for frame in parents])
    rows = as_rows(parents)
    chosen = rng.integers(len(parents), size=count)
    data, size, start = rows.data[chosen], rows.size[chosen], starts[chosen]
    for mutate in (_replace_bytes, _flip_bit, _change_header, _change_behind_header, _insert_or_delete):
        mutate(rng, data, size, start)
    size = _cut(rng, data, size)
    _agree(rng, data, size, start)
    _randomise(rng, data, size, start)
    data[np.arange(WIDTH) >= size[:, None]] = 0
    return Frames(data, size)


def _some(rng: np.random.Generator, count: int, share: float) -> npt.NDArray[np.intp]:
    return np.flatnonzero(rng.random(count) < share)


def _values(rng: np.random.Generator, count: int) -> Bytes:
    """Half of them any byte, half of them telling ones."""
    any_byte = rng.integers(256, size=count, dtype=np.uint8)
    return np.where(rng.random(count) < 0.5, rng.choice(TELLING, count), any_byte)


def _replace_bytes(rng: np.random.Generator, data: Bytes, size: Bytes, start: Bytes) -> None:
    for _ in range(2):
        rows = _some(rng, len(data), 0.2)
        data[rows, rng.integers(size[rows])] = _values(rng, len(rows))


def _flip_bit(rng: np.random.Generator, data: Bytes, size: Bytes, start: Bytes) -> None:
    rows = _some(rng, len(data), 0.15)
    data[rows, rng.integers(size[rows])] ^= np.uint8(1) << rng.integers(8, size=len(rows), dtype=np.uint8)


def _change_header(rng: np.random.Generator, data: Bytes, size: Bytes, start: Bytes) -> None:
    """Version and header length, total or payload length, fragment field, next header."""
    rows = _some(rng, len(data), 0.2)
    at = start[rows] + rng.choice([0, 2, 3, 4, 5, 6, 7, 9], len(rows))
    data[rows, np.clip(at, 0, WIDTH - 1)] = _values(rng, len(rows))


def _change_behind_header(rng: np.random.Generator, data: Bytes, size: Bytes, start: Bytes) -> None:
    """The first bytes of what follows: next header and length of extensions, ports, data offset, flags."""
    rows = _some(rng, len(data), 0.25)
    behind = np.where(data[rows, np.clip(start[rows], 0, WIDTH - 1)] >> 4 == 6, 40, 20)
    at = start[rows] + behind + 8 * rng.integers(11, size=len(rows)) + rng.integers(4, size=len(rows))
    data[rows, np.clip(at, 0, WIDTH - 1)] = _values(rng, len(rows))


def _insert_or_delete(rng: np.random.Generator, data: Bytes, size: Bytes, start: Bytes) -> None:
    """Everything behind one place moves by some bytes, so that fields are read at other offsets."""
    rows = _some(rng, len(data), 0.08)
    at = rng.integers(size[rows])[:, None]
    by = rng.choice([-8, -4, -2, -1, 1, 2, 4, 8], len(rows))[:, None]
    columns = np.arange(WIDTH)
    moved = np.where(columns >= at, columns - by, columns)
    data[rows] = np.take_along_axis(data[rows], np.clip(moved, 0, WIDTH - 1), axis=1)
    size[rows] = np.clip(size[rows] + by[:, 0], SHORTEST, WIDTH)


def _cut(rng: np.random.Generator, data: Bytes, size: Bytes) -> Bytes:
    rows = _some(rng, len(data), 0.25)
    size = size.copy()
    size[rows] = SHORTEST + rng.integers(np.maximum(size[rows] - SHORTEST, 1))
    longer = _some(rng, len(data), 0.05)
    size[longer] = np.minimum(size[longer] + rng.integers(1, 40, len(longer)), WIDTH)
    return size


def _agree(rng: np.random.Generator, data: Bytes, size: Bytes, start: Bytes) -> None:
    """Makes the IP length agree with the frame, or nearly: else most mutations would end at that one check."""
    rows = _some(rng, len(data), 0.6)
    is6 = data[rows, np.clip(start[rows], 0, WIDTH - 1)] >> 4 == 6
    wrong = np.where(rng.random(len(rows)) < 0.1, rng.integers(-9, 2, len(rows)), 0)
    length = np.clip(size[rows] - start[rows] - np.where(is6, 40, 0) + wrong, 0, 65535)
    at = np.clip(start[rows] + np.where(is6, 4, 2), 0, WIDTH - 2)
    data[rows, at], data[rows, at + 1] = length >> 8, length & 255


def _randomise(rng: np.random.Generator, data: Bytes, size: Bytes, start: Bytes) -> None:
    """A few are noise behind their link header."""
    rows = _some(rng, len(data), 0.03)
    noise = rng.integers(256, size=(len(rows), WIDTH), dtype=np.uint8)
    behind = np.arange(WIDTH) >= start[rows][:, None]
    data[rows] = np.where(behind, noise, data[rows])
