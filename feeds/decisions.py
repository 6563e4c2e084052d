"""CrowdSec's decisions: which hold, and which entries they make.

Owns that several may hold for one address: it stays banned until the last of them goes. Knows no HTTP.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from firewall.address import BITS, Prefix
from firewall.address_list import PrefixColumns
from firewall.lists.ranges import prefixes_of
from firewall.set_entries import EntryColumns

BAN = "ban"
SKIPPED = ("type", "scope", "own", "broken")  # why a decision made no entry
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|us|µs|μs|ns|s)")
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_MOST_COMMENT = 255


def parse_go_duration(text: object) -> float:
    """Seconds of what Go writes: `3h59m49.6s`, `-1h2s`, `150ms`, `0s`. Raises ValueError."""
    if not isinstance(text, str) or len(text) > 64:
        raise ValueError(f"{text!r:.64} is not a duration")
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    total, at = 0.0, 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None:
            break
        total += float(part[1]) * _UNITS_S[part[2]]
        at = part.end()
    if not rest or at < len(rest):
        raise ValueError(f"{text!r} is not a duration")
    return sign * total


class Decision(NamedTuple):
    """`until`: seconds since 1970."""

    prefix: Prefix
    until: float
    comment: str


@dataclass(frozen=True)
class Touched:
    """`prefixes`: whose entry may be another now. `is_unsure`: something went that was never told of, so that what
    holds has to be asked for whole."""

    prefixes: frozenset[Prefix]
    is_unsure: bool = False


class Decisions:
    """`skipped`: by reason, of all that were told since the last start."""

    def __init__(self, own: Collection[Prefix] = ()) -> None:
        self.own = own
        self.skipped: Counter[str] = Counter()
        self._by_id: dict[int, Decision] = {}
        self._ids: dict[Prefix, set[int]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def addresses(self) -> int:
        return len(self._ids)

    def begin(self, new: Iterable[Mapping[str, Any]], now: float) -> None:
        """All that hold."""
        self._by_id, self._ids, self.skipped = {}, {}, Counter()
        self.change(new, (), now)

    def change(
        self, new: Iterable[Mapping[str, Any]], deleted: Iterable[Mapping[str, Any]], now: float
    ) -> Touched:
        touched: set[Prefix] = set()
        is_unsure = False
        for each in deleted:
            number = _id_of(each)
            if number is not None and number in self._by_id:
                touched.add(self._forget(number))
            else:
                # Of decisions on one address, the local API may tell the longest alone. If this is another one of them,
                # it is not ours to say what still holds.
                found = self._read(each, now)
                is_unsure = is_unsure or (isinstance(found, Decision) and found.prefix in self._ids)
        for each in new:
            found = self._read(each, now)
            number = _id_of(each)
            if not isinstance(found, Decision) or number is None:
                self.skipped[found if isinstance(found, str) else "broken"] += 1
                continue
            if number in self._by_id:
                touched.add(self._forget(number))
            if found.until > now:
                self._by_id[number] = found
                self._ids.setdefault(found.prefix, set()).add(number)
            touched.add(found.prefix)
        touched |= self._expire(now)
        return Touched(frozenset(touched), is_unsure)

    def _forget(self, number: int) -> Prefix:
        prefix = self._by_id.pop(number).prefix
        ids = self._ids[prefix]
        ids.discard(number)
        if not ids:
            del self._ids[prefix]
        return prefix

    def _expire(self, now: float) -> set[Prefix]:
        gone = [number for number, each in self._by_id.items() if each.until <= now]
        return {self._forget(number) for number in gone}

    def _read(self, document: Mapping[str, Any], now: float) -> Decision | str:
        """Or why it is none that makes an entry."""
        if not isinstance(document, Mapping):
            return "broken"
        if str(document.get("type", "")).lower() != BAN:
            return "type"
        if str(document.get("scope", "")).lower() not in ("ip", "range"):
            return "scope"
        try:
            (prefix,) = prefixes_of(str(document.get("value", ""))).prefixes
            until = now + parse_go_duration(document.get("duration"))
        except ValueError:
            return "broken"
        if any(prefix.covers(each) for each in self.own):
            return "own"
        origin, scenario = document.get("origin") or "", document.get("scenario") or ""
        return Decision(prefix, round(until, 3), f"{origin}: {scenario}".strip(": ")[:_MOST_COMMENT])

    # As entries

    def entries(self, prefixes: Iterable[Prefix] | None = None) -> list[EntryColumns]:
        """Of all addresses, or of those of these that hold: each until its last decision ends."""
        wanted = self._ids if prefixes is None else [each for each in prefixes if each in self._ids]
        return columns_of(
            [max((self._by_id[number] for number in self._ids[each]), key=_until) for each in wanted]
        )

    def gone(self, prefixes: Iterable[Prefix]) -> list[EntryColumns]:
        """Of these, those that nothing holds any more."""
        return columns_of([Decision(each, 0, "") for each in prefixes if each not in self._ids])


def _until(decision: Decision) -> float:
    return decision.until


def _id_of(document: object) -> int | None:
    number = document.get("id") if isinstance(document, Mapping) else None
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def columns_of(decisions: Sequence[Decision]) -> list[EntryColumns]:
    found = []
    for version, bits in BITS.items():
        mine = [each for each in decisions if each.prefix.version == version]
        if mine:
            packed = b"".join(each.prefix.address.to_bytes(bits // 8, "big") for each in mine)
            prefixes = PrefixColumns(
                version,
                np.array([each.prefix.length for each in mine], np.uint8),
                np.frombuffer(packed, np.uint8).reshape(-1, bits // 8),
            )
            ends = np.array([each.until for each in mine], np.float64)
            found.append(EntryColumns(prefixes, ends, [each.comment for each in mine]))
    return found
