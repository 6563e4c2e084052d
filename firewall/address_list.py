"""Lists of addresses as text, by the million: one address or CIDR a line, `#` and `;` start comments.

Owns reading such a list into columns. Fast while every line is good; a list with bad lines is read again,
slowly, to name each of them.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firewall.address import BITS, parse_prefix
from firewall.errors import InvalidInput, Problem

_COMMENT = re.compile(r"[#;][^\n]*")
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_PROBLEMS_TOLD = 100


@dataclass(frozen=True)
class PrefixColumns:
    """Prefixes of one IP version: `lengths` (n,), `addresses` (n, 4 or 16) in network order."""

    version: int
    lengths: npt.NDArray[np.uint8]
    addresses: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.lengths)


def parse_list(text: str) -> list[PrefixColumns]:
    """Columns by IP version, in the list's order. Raises InvalidInput that names every bad line."""
    if "\r" in text:  # of Windows, and of old Macs: a comment must not reach into the next line
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    plain = _COMMENT.sub("", text) if "#" in text or ";" in text else text
    tokens = [stripped for line in plain.split("\n") if (stripped := line.strip())]
    try:
        six = [token for token in tokens if ":" in token]
        four = tokens if not six else [token for token in tokens if ":" not in token]
        return [prefix_columns(4, four), prefix_columns(6, six)]
    except (OSError, ValueError):
        raise _bad_lines(plain) from None


def prefix_columns(version: int, tokens: list[str]) -> PrefixColumns:
    """Addresses before those with a length. Raises OSError or ValueError where a token is no prefix."""
    size = BITS[version] // 8
    with_length = [token for token in tokens if "/" in token]
    alone = tokens if not with_length else [token for token in tokens if "/" not in token]
    pairs = [token.split("/") for token in with_length]
    family = _FAMILY[version]
    packed = b"".join([socket.inet_pton(family, token) for token in alone])
    packed += b"".join([socket.inet_pton(family, address) for address, _ in pairs])
    lengths = np.full(len(tokens), BITS[version], np.int64)
    if pairs:
        if not all(length.isascii() and length.isdecimal() and len(length) <= 3 for _, length in pairs):
            raise ValueError("a prefix length is not a number")
        lengths[len(alone) :] = [int(length) for _, length in pairs]
    if len(lengths) and lengths.max() > BITS[version]:
        raise ValueError("a prefix length is too large")
    addresses = np.frombuffer(packed, np.uint8).reshape(-1, size)
    if pairs and (addresses[len(alone) :] & ~_masks(lengths[len(alone) :], size)).any():
        raise ValueError("host bits are set")
    return PrefixColumns(version, lengths.astype(np.uint8), addresses)


def _masks(lengths: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.uint8]:
    """A row of `size` bytes a length, its leading bits set."""
    bits = np.clip(lengths[:, None] - np.arange(size) * 8, 0, 8)
    return np.asarray(0xFF00 >> bits & 0xFF, np.uint8)


def _bad_lines(plain: str) -> InvalidInput:
    problems = []
    for number, line in enumerate(plain.split("\n"), start=1):
        if token := line.strip():
            try:
                parse_prefix(token)
            except ValueError as error:
                problems.append(Problem(f"/line/{number}", str(error)))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InvalidInput(
        f"line {problems[0].pointer.removeprefix('/line/')}: {problems[0].detail}{more}",
        "nothing was imported; mend or remove these lines",
        tuple(problems[:_PROBLEMS_TOLD]),
        "invalid_list",
    )
