"""IPv4 addresses and CIDR as text, by the million, in numpy.

Owns the fast way for text that has nothing else in it. Text that it does not take is not bad: somebody slower looks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Octets = npt.NDArray[np.uint8]  # (n, 4), network order
Lengths = npt.NDArray[np.uint8]

_ZERO, _NINE = ord("0"), ord("9")
_DOT, _SLASH, _END = ord("."), ord("/"), ord("\n")


def parse_ipv4(text: bytes) -> tuple[Lengths, Octets] | None:
    """Lines of `1.2.3.4` and `1.2.3.0/24`, the last one ended too; empty ones count for nothing. None where any line
    is something else. Host bits are kept."""
    characters = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(characters < _ZERO)  # of numbers: all three that may end one come before the digits
    if not len(ends) or ends[-1] != len(characters) - 1 or characters.max() > _NINE:
        return None
    kinds = characters[ends]
    sizes = np.diff(ends, prepend=-1) - 1
    is_empty_line = (sizes == 0) & (kinds == _END) & (np.concatenate(([_END], kinds[:-1])) == _END)
    if is_empty_line.any():
        ends, kinds, sizes = ends[~is_empty_line], kinds[~is_empty_line], sizes[~is_empty_line]
    if not len(ends):
        return np.empty(0, np.uint8), np.empty((0, 4), np.uint8)
    if sizes.min() < 1 or sizes.max() > 3:
        return None
    values = _values(characters, ends, sizes)
    lines = np.flatnonzero(kinds == _END)
    counts = np.diff(lines, prepend=-1)
    if not ((counts == 4) | (counts == 5)).all():
        return None
    fields = (lines - counts + 1)[:, None] + np.arange(4)
    has_length = counts == 5
    is_octet = np.zeros(len(ends), np.bool_)
    is_octet[fields.ravel()] = True
    leads = characters[ends - sizes]
    if (
        (kinds[fields[:, :3]] != _DOT).any()
        or (kinds[fields[has_length, 3]] != _SLASH).any()
        or (values[is_octet] > 255).any()
        or ((leads == _ZERO) & (sizes > 1) & is_octet).any()  # to some that is octal
    ):
        return None
    lengths = np.where(has_length, values[lines], 32)
    if lengths.max() > 32:
        return None
    return lengths.astype(np.uint8), values[fields].astype(np.uint8)


def _values(
    characters: npt.NDArray[np.uint8], ends: npt.NDArray[np.intp], sizes: npt.NDArray[np.intp]
) -> npt.NDArray[np.uint16]:
    """Of numbers of one to three digits, by where each ends."""
    values = characters[ends - 1].astype(np.uint16) - _ZERO
    for place, weight in ((2, 10), (3, 100)):
        wide = np.flatnonzero(sizes >= place)
        values[wide] += (characters[ends[wide] - place].astype(np.uint16) - _ZERO) * weight
    return values
