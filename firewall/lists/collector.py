"""What has been read of a list so far: its entries as columns, its faults by their numbers.

Owns the rules that all formats share: host bits are masked and counted, what has expired is left out, bad lines are
told and end nothing unless the list is read strictly. It must not know a format.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from firewall.address import BITS
from firewall.address_list import PrefixColumns
from firewall.errors import InvalidInput, Problem
from firewall.lists.ipv4_text import parse_ipv4
from firewall.lists.prefix_text import Parsed, masks, parse_texts
from firewall.lists.ranges import prefixes_of
from firewall.set_entries import EntryColumns

PROBLEMS_TOLD = 100
MOST_ENTRIES = 1 << 23
MOST_COMMENT_CHARACTERS = 255  # as ipset's; the rest is cut off
_FEW = 16  # rows that are looked at one by one where one of them is bad

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Manner:
    """How a list is to be read. `ttl_s`: of entries that say nothing of their time; `now`: seconds since 1970.
    `strict`: one bad line, or host bits, and nothing is read."""

    now: float
    ttl_s: int | None = None
    strict: bool = False
    most_entries: int = MOST_ENTRIES


@dataclass(frozen=True)
class Rows:
    """Entries as text, with the number of the line of each. `expires_at`: 0 where one stays, None where nothing is
    said of any; `comments` likewise, ""."""

    texts: Sequence[str]
    numbers: Sequence[int]
    expires_at: Sequence[float | None] | None = None
    comments: Sequence[str] | None = None

    def halves(self) -> Iterator[Rows]:
        middle = len(self.texts) // 2
        for part in (slice(middle), slice(middle, None)):
            yield Rows(
                self.texts[part],
                self.numbers[part],
                None if self.expires_at is None else self.expires_at[part],
                None if self.comments is None else self.comments[part],
            )


@dataclass(frozen=True)
class ReadList:
    """A list as it was read. `bad`: how many lines; `problems`: the first hundred of them. `host_bits`: entries that
    were taken as the network around them; `expired`: entries whose time was over."""

    format: str
    columns: tuple[EntryColumns, ...]
    bad: int = 0
    problems: tuple[Problem, ...] = ()
    host_bits: int = 0
    expired: int = 0

    @property
    def entries(self) -> int:
        """Duplicates count each time."""
        return sum(len(each) for each in self.columns)


@dataclass
class _Column:
    lengths: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    addresses: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    expires_at: list[Times] = field(default_factory=list)
    comments: list[Sequence[str]] = field(default_factory=list)


class Collector:
    """`place`: what the numbers of `Rows` count: "line" or "element"."""

    def __init__(self, manner: Manner, place: str = "line") -> None:
        self._manner, self._place = manner, place
        self._columns = {version: _Column() for version in BITS}
        self._default_end = 0.0 if manner.ttl_s is None else round(manner.now + manner.ttl_s, 3)
        self._entries = self._bad = self._host_bits = self._expired = 0
        self._problems: list[Problem] = []
        self._texts: dict[str, str] = {}

    @property
    def now(self) -> float:
        return self._manner.now

    def bad(self, number: int, detail: str) -> None:
        self._bad += 1
        if len(self._problems) < PROBLEMS_TOLD:
            self._problems.append(Problem(f"/{self._place}/{number}", detail))

    def take(self, rows: Rows) -> None:
        if not rows.texts:
            return
        parsed = parse_texts(rows.texts)
        if parsed is None or (self._manner.strict and any(_have_host_bits(each) for each in parsed)):
            if len(rows.texts) <= _FEW:
                self._take_slowly(rows)
            else:
                for part in rows.halves():
                    self.take(part)
            return
        for each in parsed:
            self.take_parsed(each, rows)

    def take_ipv4(self, lines: bytes) -> bool:
        """Whether these were lines of IPv4 addresses and CIDR and nothing else, which is the fastest way."""
        parsed = parse_ipv4(lines)
        if parsed is None or (self._manner.strict and _have_host_bits(Parsed(4, *parsed))):
            return False
        self.take_parsed(Parsed(4, *parsed))
        return True

    def take_parsed(self, parsed: Parsed, rows: Rows | None = None) -> None:
        """`rows`: where the texts say more than addresses."""
        count = len(parsed.lengths)
        ends, comments = self._times(parsed, rows), self._comments(parsed, rows)
        kept = (ends == 0) | (ends > self._manner.now)
        if not kept.all():
            self._expired += count - int(kept.sum())
            comments = [text for text, is_kept in zip(comments, kept.tolist(), strict=True) if is_kept]
            ends = ends[kept]
            parsed = Parsed(parsed.version, parsed.lengths[kept], parsed.addresses[kept])
        masked = parsed.addresses & masks(parsed.lengths, parsed.addresses.shape[1])
        self._host_bits += int((masked != parsed.addresses).any(axis=1).sum())
        self._put(parsed.version, parsed.lengths, masked, ends, comments)

    def _times(self, parsed: Parsed, rows: Rows | None) -> Times:
        if rows is None or rows.expires_at is None:
            return np.full(len(parsed.lengths), self._default_end)
        told = [self._default_end if each is None else each for each in rows.expires_at]
        ends = np.array(told, np.float64)
        return ends if parsed.rows is None else ends[parsed.rows]

    def _comments(self, parsed: Parsed, rows: Rows | None) -> Sequence[str]:
        if rows is None or rows.comments is None:
            return [""] * len(parsed.lengths)
        told = [self._kept_text(each) for each in rows.comments]
        return told if parsed.rows is None else [told[row] for row in parsed.rows.tolist()]

    def _kept_text(self, comment: str) -> str:
        """Each text once in memory: the comments of a list are few that come often."""
        comment = comment[:MOST_COMMENT_CHARACTERS]
        return self._texts.setdefault(comment, comment)

    def _take_slowly(self, rows: Rows) -> None:
        found: dict[int, tuple[list[int], list[bytes], list[int]]] = {
            version: ([], [], []) for version in BITS
        }
        for row, text in enumerate(rows.texts):
            try:
                named = prefixes_of(text)
                if named.had_host_bits and self._manner.strict:
                    raise ValueError(f"{text!r} has host bits set; the network is {named.prefixes[0]}")
            except ValueError as error:
                self.bad(rows.numbers[row], str(error))
                continue
            self._host_bits += named.had_host_bits
            for prefix in named.prefixes:
                lengths, addresses, origins = found[prefix.version]
                lengths.append(prefix.length)
                addresses.append(prefix.address.to_bytes(BITS[prefix.version] // 8, "big"))
                origins.append(row)
        for version, (lengths, addresses, origins) in found.items():
            if lengths:
                packed = np.frombuffer(b"".join(addresses), np.uint8).reshape(-1, BITS[version] // 8)
                each = Parsed(version, np.array(lengths, np.uint8), packed, np.array(origins, np.intp))
                self.take_parsed(each, rows)

    def _put(
        self,
        version: int,
        lengths: npt.NDArray[np.uint8],
        addresses: npt.NDArray[np.uint8],
        ends: Times,
        comments: Sequence[str],
    ) -> None:
        self._entries += len(lengths)
        if self._entries > self._manner.most_entries:
            detail = f"the list names more than {self._manner.most_entries:,} prefixes"
            raise InvalidInput(detail, "split it, or write networks instead of ranges", code="list_too_long")
        column = self._columns[version]
        column.lengths.append(lengths)
        column.addresses.append(addresses)
        column.expires_at.append(ends)
        column.comments.append(comments)

    def finish(self, form: str) -> ReadList:
        """Raises InvalidInput for bad lines where the list is read strictly."""
        if self._manner.strict and self._bad:
            raise self._refusal()
        columns = tuple(self._joined(version) for version, each in self._columns.items() if each.lengths)
        return ReadList(form, columns, self._bad, tuple(self._problems), self._host_bits, self._expired)

    def _refusal(self) -> InvalidInput:
        more = f" (and {self._bad - 1} more)" if self._bad > 1 else ""
        first = self._problems[0]
        return InvalidInput(
            f"{first.pointer[1:].replace('/', ' ')}: {first.detail}{more}",
            "mend or remove these, or leave strict out: then they are counted and left out",
            tuple(self._problems),
            "invalid_list",
        )

    def _joined(self, version: int) -> EntryColumns:
        column = self._columns[version]
        prefixes = PrefixColumns(version, np.concatenate(column.lengths), np.concatenate(column.addresses))
        ends = np.concatenate(column.expires_at)
        comments = [text for part in column.comments for text in part] if len(self._texts) else []
        return EntryColumns(prefixes, ends if ends.any() else None, comments if any(comments) else None)


def _have_host_bits(parsed: Parsed) -> bool:
    return bool((parsed.addresses & ~masks(parsed.lengths, parsed.addresses.shape[1])).any())
