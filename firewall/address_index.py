"""Entries of address tables by the million: sorted arrays, and beside them what changed since.

Owns the encoding of a key as one sortable value: IPv4 as scope | length | address in 64 bits, IPv6 as the same
in 18 bytes. 16 bytes an IPv4 entry, 26 an IPv6 one; a change costs a dictionary entry until it is merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.address_entries import Entries, Entry, Key

_MERGE_AT = 1 << 16
_SCOPE_SHIFT, _LENGTH_SHIFT = 40, 32
_DTYPES: dict[int, Any] = {4: np.dtype(np.uint64), 6: np.dtype("S18")}
Keys = npt.NDArray[Any]
Codes = npt.NDArray[np.uint64]  # an entry as one number: the smaller wins
NO_CODE = np.uint64((1 << 64) - 1)
_RANK_SHIFT = np.uint64(32)


def no_entries(version: int) -> Entries:
    empty = np.zeros(0, np.uint32)
    return Entries(version, np.zeros(0, _DTYPES[version]), empty, empty)


def decoded(entries: Entries) -> Iterator[tuple[Key, Entry]]:
    """One by one: for few, or for tests."""
    fields = key_fields(entries.version, entries.keys)
    for scope, length, address, rank, handle in zip(
        *fields, entries.ranks.tolist(), entries.handles.tolist(), strict=True
    ):
        yield Key(entries.version, scope, length, address), Entry(rank, handle)


def encoded(version: int, entries: Iterable[tuple[Key, Entry]]) -> Entries:
    """As columns, sorted."""
    rows = [(encode(key), *entry) for key, entry in entries]
    if not rows:
        return no_entries(version)
    keys, ranks, handles = zip(*rows, strict=True)
    columns = np.array(ranks, np.uint32), np.array(handles, np.uint32)
    return sorted_entries(Entries(version, np.array(keys, _DTYPES[version]), *columns))


def encode(key: Key) -> Any:
    if key.version == 4:
        return key.scope << _SCOPE_SHIFT | key.length << _LENGTH_SHIFT | key.address
    return bytes((key.scope, key.length)) + key.address.to_bytes(16, "big")


def encode_many(
    version: int, scope: int, lengths: npt.NDArray[np.uint8], addresses: npt.NDArray[np.uint8]
) -> Keys:
    """`addresses`: (n, 4 or 16) bytes in network order."""
    if version == 4:
        numbers = np.ascontiguousarray(addresses).view(">u4").reshape(-1).astype(np.uint64)
        return (
            np.uint64(scope << _SCOPE_SHIFT) | lengths.astype(np.uint64) << np.uint64(_LENGTH_SHIFT) | numbers
        )
    rows = np.empty((len(lengths), 18), np.uint8)
    rows[:, 0], rows[:, 1], rows[:, 2:] = scope, lengths, addresses
    return rows.reshape(-1).view("S18")


def key_columns(
    version: int, keys: Keys
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Scopes, lengths and addresses (n, 4 or 16 bytes in network order) of encoded keys."""
    if version == 4:
        scopes = (keys >> np.uint64(_SCOPE_SHIFT)).astype(np.uint8)
        lengths = (keys >> np.uint64(_LENGTH_SHIFT)).astype(np.uint8)
        return scopes, lengths, keys.astype(">u4").view(np.uint8).reshape(-1, 4)
    rows = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, 18)
    return rows[:, 0], rows[:, 1], np.ascontiguousarray(rows[:, 2:])


def key_fields(version: int, keys: Keys) -> tuple[list[int], list[int], list[int]]:
    """Scopes, lengths and addresses as Python integers."""
    scopes, lengths, addresses = key_columns(version, keys)
    raw, size = addresses.tobytes(), addresses.shape[1]
    numbers = [int.from_bytes(raw[at : at + size], "big") for at in range(0, len(raw), size)]
    return scopes.tolist(), lengths.tolist(), numbers


def place_of(keys: Keys, encoded: Any) -> int | None:
    """Of a key among sorted ones."""
    wanted = np.array(encoded, keys.dtype)  # of no dimension: half of what one element costs
    at = int(keys.searchsorted(wanted))
    return at if at < len(keys) and keys[at] == wanted else None


def codes_of(ranks: npt.NDArray[Any], handles: npt.NDArray[Any]) -> Codes:
    return np.asarray(ranks.astype(np.uint64) << _RANK_SHIFT | handles.astype(np.uint64))


def code_columns(codes: Codes) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Ranks and handles."""
    return (codes >> _RANK_SHIFT).astype(np.uint32), codes.astype(np.uint32)


class AddressIndex:
    """Entry by key, for one IP version."""

    def __init__(self, version: int) -> None:
        self.version = version
        self._base = no_entries(version)
        self._changed: dict[Key, Entry | None] = {}

    @property
    def is_empty(self) -> bool:
        return not self._changed and not len(self._base)

    def get(self, key: Key) -> Entry | None:
        if key in self._changed:
            return self._changed[key]
        at = place_of(self._base.keys, encode(key))
        return None if at is None else Entry(int(self._base.ranks[at]), int(self._base.handles[at]))

    def get_many(self, keys: Sequence[Key]) -> list[tuple[Key, Entry]]:
        """Of few keys those that are there, with one search."""
        found = [(key, entry) for key in keys if (entry := self._changed.get(key)) is not None]
        asked = [key for key in keys if key not in self._changed]
        base = self._base
        if asked and len(base):
            wanted = np.array([encode(key) for key in asked], base.keys.dtype)
            at = np.searchsorted(base.keys, wanted)
            at[at == len(base)] = 0
            for number in np.flatnonzero(base.keys[at] == wanted).tolist():
                place = int(at[number])
                found.append((asked[number], Entry(int(base.ranks[place]), int(base.handles[place]))))
        return found

    def put(self, key: Key, entry: Entry | None) -> None:
        self._changed[key] = entry
        if len(self._changed) > _MERGE_AT:
            self._merge()

    def contains(self, keys: Keys) -> npt.NDArray[np.bool_]:
        self._merge()
        base = self._base.keys
        if not len(base):
            return np.zeros(len(keys), np.bool_)
        at = np.searchsorted(base, keys).clip(max=len(base) - 1)
        return np.asarray(base[at] == keys)

    def find(self, keys: Keys) -> Entries:
        """Those of the given keys that are there, with their entries."""
        present = keys[self.contains(keys)]
        at = np.searchsorted(self._base.keys, present)
        return Entries(self.version, present, self._base.ranks[at], self._base.handles[at])

    def codes(self, keys: Keys) -> Codes:
        """Of each of the keys its entry, or NO_CODE."""
        self._merge()
        base = self._base
        if not len(base):
            return np.full(len(keys), NO_CODE)
        at = np.searchsorted(base.keys, keys).clip(max=len(base) - 1)
        return np.where(base.keys[at] == keys, codes_of(base.ranks[at], base.handles[at]), NO_CODE)

    def add(self, fresh: Entries) -> None:
        """Sorted entries whose keys are not there yet."""
        self._merge()
        base = self._base
        if not len(base):
            self._base = fresh
            return
        at = np.searchsorted(base.keys, fresh.keys)
        columns = zip(_columns(base), _columns(fresh), strict=True)
        self._base = Entries(self.version, *(np.insert(old, at, new) for old, new in columns))

    def set(self, entries: Entries) -> None:
        """Other entries for keys that are there."""
        self._merge()
        at = np.searchsorted(self._base.keys, entries.keys)
        ranks, handles = self._base.ranks.copy(), self._base.handles.copy()
        ranks[at], handles[at] = entries.ranks, entries.handles
        self._base = Entries(self.version, self._base.keys, ranks, handles)

    def remove(self, keys: Keys) -> None:
        """Keys that are there."""
        self._merge()
        if len(keys) == len(self._base):
            self._base = no_entries(self.version)
            return
        stays = np.ones(len(self._base), np.bool_)
        stays[np.searchsorted(self._base.keys, keys)] = False
        self._base = self._base.only(stays)

    def entries(self) -> Entries:
        self._merge()
        return self._base

    def frozen(self) -> AddressIndex:
        """A copy that no change reaches; the columns are shared."""
        copy = AddressIndex(self.version)
        copy._base = self.entries()
        return copy

    def _merge(self) -> None:
        if not self._changed:
            return
        changed, self._changed = self._changed, {}
        touched = np.array([encode(key) for key in changed], _DTYPES[self.version])
        present = touched[self.contains(touched)]
        if len(present):
            self.remove(present)
        alive = [(key, entry) for key, entry in changed.items() if entry is not None]
        if alive:
            self.add(encoded(self.version, alive))


def _columns(entries: Entries) -> tuple[Keys, npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    return entries.keys, entries.ranks, entries.handles


def sorted_entries(entries: Entries) -> Entries:
    order = np.argsort(entries.keys, kind="stable")
    return Entries(entries.version, entries.keys[order], entries.ranks[order], entries.handles[order])
