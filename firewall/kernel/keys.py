"""Keys and values of the address maps as arrays of their layout, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from firewall.address_index import Keys, encode_many, key_columns
from firewall.datapath import Entries, Entry, Key
from firewall.kernel.bpf import Records
from firewall.layout import ADDRESS_ENTRY, PREFIX4, PREFIX6, RANK_NONE

PREFIX = {4: PREFIX4, 6: PREFIX6}


def prefix_records(version: int, keys: Sequence[tuple[int, int, int]]) -> Records:
    """(scope, prefix length, address) of each, as struct prefix4 or prefix6."""
    records = np.zeros(len(keys), PREFIX[version])
    if not keys:
        return records
    scopes, lengths, addresses = zip(*keys, strict=True)
    records["scope"], records["length"] = scopes, lengths
    size = 4 if version == 4 else 16
    network_order = np.frombuffer(b"".join(address.to_bytes(size, "big") for address in addresses), "<u4")
    records["address"] = network_order if version == 4 else network_order.reshape(-1, 4)
    return records


def key_bytes(key: Key) -> bytes:
    """One, as struct prefix4 or prefix6."""
    return bytes((key.scope, key.length, 0, 0)) + key.address.to_bytes(4 if key.version == 4 else 16, "big")


def key_records(version: int, keys: Sequence[Key]) -> Records:
    return prefix_records(version, [(key.scope, key.length, key.address) for key in keys])


def entries_key_records(entries: Entries) -> Records:
    """The keys of many entries."""
    scopes, lengths, addresses = key_columns(entries.version, entries.keys)
    records = np.zeros(len(entries), PREFIX[entries.version])
    records["scope"], records["length"] = scopes, lengths
    words = np.ascontiguousarray(addresses).view("<u4")
    records["address"] = words.reshape(-1) if entries.version == 4 else words
    return records


def encoded_keys(version: int, records: Records) -> Keys:
    """Keys of a dump, encoded, in the dump's order."""
    addresses = np.ascontiguousarray(records["address"]).view(np.uint8).reshape(len(records), -1)
    encoded = encode_many(version, 0, records["length"], addresses)
    if version == 4:
        shifted: Keys = records["scope"].astype(np.uint64) << np.uint64(40)
        return np.bitwise_or(encoded, shifted)
    rows = encoded.view(np.uint8).reshape(-1, 18)
    rows[:, 0] = records["scope"]
    return rows.reshape(-1).view("S18")


def many_entry_records(entries: Entries, since: int, is_there_before: bool = False) -> Records:
    """Fresh values for many entries that come with epoch `since`, or go with it."""
    records = np.zeros(len(entries), ADDRESS_ENTRY)
    records["since"] = since
    records["rank"] = RANK_NONE if is_there_before else entries.ranks
    records["old_rank"] = entries.ranks if is_there_before else RANK_NONE
    records["handle"] = entries.handles
    return records


def keys_from_records(version: int, records: Records) -> list[Key]:
    size = 4 if version == 4 else 16
    raw = np.ascontiguousarray(records["address"]).tobytes()
    addresses = (int.from_bytes(raw[at : at + size], "big") for at in range(0, len(raw), size))
    scopes, lengths = records["scope"].tolist(), records["length"].tolist()
    return [Key(version, *each) for each in zip(scopes, lengths, addresses, strict=True)]


def entry_records(
    entries: Sequence[Entry | None], since: int, before: Sequence[Entry | None] | None = None
) -> Records:
    """Fresh address_entry values, without hits. `before`: what a packet of an epoch below `since` still sees."""
    records = np.zeros(len(entries), ADDRESS_ENTRY)
    records["since"] = since
    records["rank"] = [RANK_NONE if entry is None else entry.rank for entry in entries]
    earlier = entries if before is None else before
    records["old_rank"] = [RANK_NONE if entry is None else entry.rank for entry in earlier]
    records["handle"] = [
        (entry or old).handle if (entry or old) else 0  # type: ignore[union-attr]
        for entry, old in zip(entries, earlier, strict=True)
    ]
    return records
