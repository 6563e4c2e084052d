"""Which prefix lengths the address lists have, as words of struct control (bpf/layout.h), and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from firewall.datapath import Occupancy
from firewall.layout import C

_WORDS6 = C["LENGTH_WORDS6"]
_WORD = (1 << 64) - 1


def read_occupancy(control: np.void) -> Occupancy:
    four = [_reverse(word, 33) for word in control["lengths4"].tolist()]
    six = [_from_words6(words) for words in control["lengths6"].reshape(-1, _WORDS6).tolist()]
    return Occupancy((four[0], four[1], four[2], four[3]), (six[0], six[1], six[2], six[3]))


def write_occupancy(control: np.void, occupancy: Occupancy) -> None:
    """Word by word, because packets read them meanwhile."""
    for scope, lengths in enumerate(occupancy.lengths4):
        control["lengths4"][scope] = _reverse(lengths, 33)
    for scope, lengths in enumerate(occupancy.lengths6):
        for at, word in enumerate(_words6(lengths), scope * _WORDS6):
            control["lengths6"][at] = word


def _reverse(bits: int, count: int) -> int:
    """Length n is bit 32 - n or 128 - n of the words."""
    return int(f"{bits:0{count}b}"[::-1], 2)


def _words6(lengths: int) -> tuple[int, int, int]:
    reverse = _reverse(lengths, 129)
    return reverse >> 128, reverse >> 64 & _WORD, reverse & _WORD


def _from_words6(words: Sequence[int]) -> int:
    return _reverse(words[0] << 128 | words[1] << 64 | words[2], 129)
