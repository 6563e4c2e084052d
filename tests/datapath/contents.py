"""What the maps of a loaded program set hold, and what they should hold: the stored rules compiled anew.

The comparison is exact where a difference would be a fault now or later. Numbers of vectors are compared by
what the vectors hold, since they depend on history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from firewall.address import BITS, Prefix
from firewall.addresses import address_keys
from firewall.datapath import Key
from firewall.kernel.keys import PREFIX
from firewall.kernel.maps import PinnedMaps
from firewall.layout import ADDRESS_ENTRY, BIT_NUMBERS, FRONT_ROW, HOOKS, INTERFACE_KEY, RANK_NONE, C
from firewall.named_sets import hashed_name
from firewall.policy import HookPolicy, Policy, PolicyRule, compile_columns
from firewall.policy_columns import rule_columns
from firewall.store import Record
from tests.datapath.loaded import Loaded

NUMBER = np.dtype([("vector", "<u4")])
SIDES = C["SIDE_COUNT"]
FRONT_ROWS = C["FRONT_ROWS"]


class Entry(NamedTuple):
    """What a packet sees of an address entry, and what it has counted."""

    rank: int
    handle: int
    packets: int
    bytes: int


def keys_of(version: int, records: npt.NDArray[np.void]) -> list[Key]:
    """The keys of a dump; addresses stand in network order."""
    size = {4: 4, 6: 16}[version]
    raw = np.ascontiguousarray(records["address"]).tobytes()
    return [
        Key(version, int(record["scope"]), int(record["length"]), int.from_bytes(raw[at : at + size], "big"))
        for record, at in zip(records, range(0, len(raw), size), strict=True)
    ]


def behind(loaded: Loaded) -> set[Key]:
    """The keys that the hash maps hold."""
    return {
        key
        for version, dtype in PREFIX.items()
        for keys, _ in loaded.kernel._set.maps[f"address{version}"].dump(dtype, ADDRESS_ENTRY)
        for key in keys_of(version, keys)
    }


def raw_entries(loaded: Loaded) -> dict[Key, np.void]:
    """By what packets meet: they look into rows first."""
    found: dict[Key, np.void] = {}
    for version, dtype in PREFIX.items():
        for keys, values in loaded.kernel._set.maps[f"address{version}"].dump(dtype, ADDRESS_ENTRY):
            found |= dict(zip(keys_of(version, keys), values, strict=True))
    return found | in_rows(loaded)


def in_rows(loaded: Loaded) -> dict[Key, np.void]:
    """Those that stand in rows, with their own hits; each stands where packets look for it."""
    maps = loaded.kernel._set.maps
    word = int(maps.control["rows"])
    if not word:
        return rows_of(maps.arrays["address_front"], FRONT_ROWS, 1)
    assert not maps.arrays["address_front"]["key"].any(), "nobody looks into the front"
    table, buckets = maps[f"address_rows{word & 1}"], word >> 1
    assert table.info.max_entries == buckets
    assert maps[f"address_rows{~word & 1}"].info.max_entries == 1, "nobody looks into the other rows"
    return rows_of(table.mapped_part(FRONT_ROW, 0, 4 * buckets), buckets, 4)


def rows_of(rows: npt.NDArray[np.void], buckets: int, ways: int) -> dict[Key, np.void]:
    found: dict[Key, np.void] = {}
    for place, row in enumerate(rows):
        if number := int(row["key"]):
            key = key_of(number)
            assert bucket_of(key, buckets) == place // ways
            assert key not in found, "two rows for one prefix"
            entry = row["entry"].copy()
            for field in ("packets", "bytes"):
                entry[field] = int(entry[field]) - int(row[f"{field}_before"]) & (1 << 64) - 1
            found[key] = entry
    return found


def key_of(number: int) -> Key:
    """What hash4() multiplies (bpf/keys.h), back to a prefix."""
    size = number & -number
    return Key(4, number >> 34, 33 - size.bit_length(), ((number & (1 << 34) - 1) ^ size) >> 1)


def number_of(key: Key) -> int:
    return key.scope << 34 | key.address << 1 | 1 << (32 - key.length)


def bucket_of(key: Key, buckets: int = FRONT_ROWS) -> int:
    return (times(number_of(key)) >> 32) * buckets >> 32


def visible_entries(loaded: Loaded) -> dict[Key, Entry]:
    epoch = loaded.kernel._datapath.epoch
    entries = {}
    for key, raw in raw_entries(loaded).items():
        rank = int(raw["rank"] if raw["since"] <= epoch else raw["old_rank"])
        if rank != RANK_NONE:
            entries[key] = Entry(rank, int(raw["handle"]), int(raw["packets"]), int(raw["bytes"]))
    return entries


def wanted_entries(records: Iterable[Record]) -> dict[Key, tuple[int, int]]:
    """Rank and handle of the winner of every prefix: the lowest rank, then the older rule."""
    wanted: dict[Key, tuple[int, int]] = {}
    for record in records:
        if record.rule.enabled and record.rule.is_addresses_only:
            claim = (record.rule.rank, record.handle)
            wanted |= {key: min(claim, wanted.get(key, claim)) for key in address_keys(record.rule)}
    return wanted


def with_entries(records: Iterable[Record], sets: Mapping[str, Sequence[Prefix]]) -> list[Record]:
    """Address rules with the entries of the sets that they name in their place."""
    expanded = []
    for record in records:
        rule = record.rule
        if rule.is_addresses_only and rule.sets:
            entries = tuple(prefix for name in rule.sets for prefix in sets[name])
            side = "sources" if rule.asks_sources else "destinations"
            prefixes = (*getattr(rule, side), *entries)
            if not prefixes:
                continue
            plain = {side: prefixes, "source_sets": (), "destination_sets": ()}
            expanded.append(replace(record, rule=replace(rule, **plain)))
        else:
            expanded.append(record)
    return expanded


def stored_sets(loaded: Loaded) -> dict[str, list[Prefix]]:
    enforcer = loaded.enforcer
    return {each.name: [one.prefix for one in enforcer.all_entries(each.name)] for each in enforcer.sets()}


def wanted_policy(loaded: Loaded, records: Iterable[Record]) -> Policy:
    rules = [
        PolicyRule(record.rule, record.handle, slot=0)
        for record in records
        if record.rule.enabled and not record.rule.is_addresses_only
    ]
    store = loaded.enforcer._set_store
    sets = {each.name: store.keys(each.number) for each in store.sets()}
    return compile_columns(rule_columns(rules, sets), loaded.interfaces)


def assert_exact(loaded: Loaded) -> None:
    """The maps hold the stored rules and nothing else, once the last change is settled."""
    loaded.kernel.settle()
    records = list(loaded.enforcer._store.all())
    maps, epoch = loaded.kernel._set.maps, loaded.kernel._datapath.epoch
    raw, wanted = raw_entries(loaded), wanted_entries(with_entries(records, stored_sets(loaded)))
    assert {key: (int(each["rank"]), int(each["handle"])) for key, each in raw.items()} == wanted
    assert behind(loaded).isdisjoint(in_rows(loaded)), "entries stand in two places"
    assert all(each["since"] <= epoch for each in raw.values()), "an entry waits for an epoch to come"
    assert_filter_complete(loaded)
    assert control_words(maps) == wanted_control_words(wanted)
    assert list(policy_differences(loaded, wanted_policy(loaded, records))) == []
    assert counting_prefixes(loaded) == wanted_prefixes(loaded, records)


Prefixes = dict[tuple[int, int], dict[int, list[tuple[int, int]]]]  # by rule and side, by hashed name


def counting_prefixes(loaded: Loaded) -> Prefixes:
    """Address and length of what counts for each rule of the policy that names sets, as the maps lead to it; no two
    entries share a counter."""
    maps, generation = loaded.kernel._set.maps, loaded.kernel._datapath.epoch & 1
    room = maps.vectors["word"].shape[1] * 64
    found: Prefixes = {}
    counters: dict[int, tuple[int, int, int]] = {}
    spans = maps.arrays["policy_sets_of"].reshape(2, -1)[generation]
    for hook in range(len(HOOKS)):
        scope = generation * len(HOOKS) + hook
        words = int(maps.arrays["policy_heads"]["words"][scope])
        for rule in maps.arrays["policy_rules"][scope * room :][: words * 64]:
            if not int(rule["handle"]) or not int(rule["slot"]) & C["RULE_NAMES_SETS"]:
                continue
            first, count = spans[int(rule["slot"]) & ~C["RULE_NAMES_SETS"]].tolist()
            for named in maps.arrays["policy_named"][first : first + count]:
                name, prefixes = int(named["name"]), list(read_prefixes(maps, named))
                found.setdefault((int(rule["handle"]), int(named["side"])), {})[name] = [
                    each[:2] for each in prefixes
                ]
                for address, length, counter in prefixes:
                    assert counters.setdefault(counter, (name, address, length)) == (name, address, length)
    return found


def read_prefixes(maps: PinnedMaps, named: np.void) -> Iterator[tuple[int, int, int]]:
    """Address, length and counter, as bpf/layout.h says (struct named_set)."""
    first, count = named["prefixes4"].tolist()
    for start, counter in maps.arrays["policy_set4"][first : first + count].tolist():
        yield start, counter & 63, counter >> 6
    first, count = named["prefixes6"].tolist()
    for (high, low), counter in maps.arrays["policy_set6"][first : first + count].tolist():
        yield int(high) << 64 | int(low), counter & 255, counter >> 8


def wanted_prefixes(loaded: Loaded, records: Iterable[Record]) -> Prefixes:
    wanted: Prefixes = {}
    sets = {name: outermost(entries) for name, entries in stored_sets(loaded).items()}
    for record in records:
        rule = record.rule
        if rule.enabled and not rule.is_addresses_only:
            for side, names in enumerate((rule.source_sets, rule.destination_sets)):
                for name in names:
                    wanted.setdefault((record.handle, side), {})[hashed_name(name)] = sets[name]
    return wanted


def outermost(entries: Sequence[Prefix]) -> list[tuple[int, int]]:
    """Those that lie in no other, sorted, IPv4 first."""
    shortest = {
        version: min((e.length for e in entries if e.version == version), default=0) for version in BITS
    }
    known = set(entries)
    found = []
    for each in entries:
        bits = BITS[each.version]
        around = (
            Prefix(each.version, each.address >> bits - length << bits - length, length)
            for length in range(shortest[each.version], each.length)
        )
        if not any(one in known for one in around):
            found.append(each)
    return [
        (each.address, each.length) for each in sorted(found, key=lambda each: (each.version, each.address))
    ]


def assert_filter_complete(loaded: Loaded) -> None:
    """Every entry of the tables has its bits in the filter, visible or not. Packets would not find it otherwise."""
    missing = [key for key in raw_entries(loaded) if not has_bits(loaded, key)]
    assert not missing, missing[:5]


def has_bits(loaded: Loaded, key: Key) -> bool:
    """Worked out anew from bpf/layout.h and bpf/keys.h, in Python's integers."""
    maps = loaded.kernel._set.maps
    words, mask = maps.arrays["address_filter"]["bits"], int(maps.control["filter_mask"])
    version, scope, length, address = key
    if version == 4:
        word, size = 0, 1 << (32 - length)
        hashed = times(number_of(key))
        region = address >> 16 if length >= 16 else None
    else:
        word = -(-length // 64)
        size = 1 << (64 * word - length)
        high, low = address >> 64, address & (1 << 64) - 1
        hashed = times(high + (scope << 2 | word))
        hashed = times((hashed ^ hashed >> 32) + low)
        hashed = times((hashed ^ hashed >> 32) + size)
        region = high >> 32 if length >= 32 else None
    both = 1 << (hashed >> 58) | 1 << (hashed >> 52 & 63)
    if int(words[hashed >> 30 & mask]) & both != both:
        return False
    if region is None:
        return True
    hashed = times(scope << 34 | word << 32 | region)
    return bool(int(words[mask + 1 + (hashed >> 30 & mask >> 2)]) & size)


def times(number: int) -> int:
    return number * 0x9E3779B97F4A7C15 & (1 << 64) - 1


def bits_set(loaded: Loaded) -> int:
    """How many bits the filter has."""
    return int(np.bitwise_count(loaded.kernel._set.maps.arrays["address_filter"]["bits"]).sum())


def control_words(maps: PinnedMaps) -> tuple[list[int], list[int]]:
    return maps.control["lengths4"].tolist(), maps.control["lengths6"].tolist()


def wanted_control_words(keys: Iterable[Key]) -> tuple[list[int], list[int]]:
    """By what bpf/layout.h says."""
    four, six = [0] * 4, [0] * 12
    for key in keys:
        if key.version == 4:
            four[key.scope] |= 1 << (32 - key.length)
        else:
            word = 0 if key.length == 0 else 1 if key.length <= 64 else 2
            six[key.scope * 3 + word] |= 1 << (64 * word - key.length)
    return four, six


def policy_differences(loaded: Loaded, policy: Policy) -> Iterator[str]:
    """Where the live generation is not this policy."""
    maps, generation = loaded.kernel._set.maps, loaded.kernel._datapath.epoch & 1
    for hook, image in enumerate(policy.hooks):
        scope = generation * len(HOOKS) + hook
        if image.words:  # else no packet asks the tables
            for what, wanted, found in tables(maps, scope, image):
                if not same_vectors(all_vectors(policy, maps), wanted, maps.vectors["word"], found):
                    yield f"{HOOKS[hook]}: {what}"
            yield from (f"{HOOKS[hook]}: {what}" for what in class_differences(policy, maps, scope, image))
        for what, wanted_value, found_value in plain_values(maps, scope, image):
            if not np.array_equal(wanted_value, found_value):
                yield f"{HOOKS[hook]}: {what}"


def all_vectors(policy: Policy, maps: PinnedMaps) -> npt.NDArray[np.uint64]:
    """As long as those in the maps."""
    vectors = np.zeros((policy.vector_count, maps.vectors["word"].shape[1]), np.uint64)
    for first, rows in policy.pieces:
        vectors[first : first + len(rows), : rows.shape[1]] = rows
    return vectors


Numbers = npt.NDArray[np.int64]
T = TypeVar("T")


def tables(maps: PinnedMaps, scope: int, image: HookPolicy) -> Iterator[tuple[str, Numbers, Numbers]]:
    """Vector numbers: as compiled, and as found."""

    def rows(name: str, count: int, field: str) -> Numbers:
        return maps.arrays[name][scope * count : (scope + 1) * count][field].reshape(-1).astype(np.int64)

    head = maps.arrays["policy_heads"][scope]
    yield "protocol", image.protocol.astype(np.int64), rows("policy_protocol", C["PROTOCOL_ROWS"], "vector")
    yield "icmp", image.icmp.astype(np.int64), rows("policy_icmp", C["ICMP_ROWS"], "vector")
    ports = maps.arrays["policy_port"]["vector"].reshape(-1, SIDES, C["PORT_ROWS"])[scope]
    yield "port", image.port.T.reshape(-1).astype(np.int64), ports.reshape(-1).astype(np.int64)
    yield "any_interface", np.array([image.any_interface]), np.array([int(head["any_interface"])])
    anywhere = np.array(image.anywhere4 + image.anywhere6, np.int64)
    yield "anywhere", anywhere, head["anywhere"].astype(np.int64)
    interfaces: dict[int, int] = {}
    for each_key, each_value in maps["policy_iface"].dump(INTERFACE_KEY, NUMBER):
        mine = each_key["scope"] == scope
        interfaces |= dict(
            zip(each_key["ifindex"][mine].tolist(), each_value["vector"][mine].tolist(), strict=True)
        )
    yield "policy_iface", *aligned(dict(image.interfaces), interfaces)


def class_differences(policy: Policy, maps: PinnedMaps, scope: int, image: HookPolicy) -> Iterator[str]:
    """Vectors of addresses, interval by interval; neighbours of one vector are one, for where they are divided depends
    on history."""
    room = maps.vectors["word"].shape[1]
    for version in (4, 6):
        for side, (starts, lines) in enumerate(written_intervals(maps, scope, version)):
            anywhere = maps.arrays["policy_heads"]["anywhere"][scope, (version == 6) * SIDES + side]
            found = {line: class_vector(maps, line, int(anywhere)).tobytes() for line in set(lines.tolist())}
            intervals = image.intervals(version)[side]
            wanted = {}
            for number in set(intervals.classes.tolist()):
                known = policy.address_vector(number)
                wanted[number] = np.append(known, np.zeros(room - len(known), np.uint64)).tobytes()
            asked = [int.from_bytes(each, "big") for each in big_endian(intervals.starts)]
            if merged(asked, [wanted[each] for each in intervals.classes.tolist()]) != merged(
                starts, [found[each] for each in lines.tolist()]
            ):
                yield f"policy_ranges{version}, side {side}"


def merged(starts: Sequence[int], vectors: Sequence[bytes]) -> list[tuple[int, bytes]]:
    pairs = list(zip(starts, vectors, strict=True))
    return [pair for at, pair in enumerate(pairs) if not at or pairs[at - 1][1] != pair[1]]


def class_vector(maps: PinnedMaps, line: int, anywhere: int) -> npt.NDArray[np.uint64]:
    """As bpf/layout.h has it (struct line), in Python's integers."""
    vector = maps.vectors["word"][anywhere].copy()
    size = maps.vectors["summary"].shape[1]
    words = maps.arrays["policy_lines"]["word"].reshape(-1)[line * C["LINE_WORDS"] :]
    summary, below = words[:size].tobytes(), words[size : 2 * size].tobytes()
    for byte, bits in enumerate(summary):
        place = 2 * size + below[byte]
        for bit in range(8):
            if bits >> bit & 1:
                vector[8 * byte + bit] = words[place]
                place += 1
    return vector


def aligned(wanted: Mapping[T, int], found: Mapping[T, int]) -> tuple[Numbers, Numbers]:
    """Both in one order; of different length where the keys are not the same."""
    if wanted.keys() != found.keys():
        return np.zeros(1, np.int64), np.zeros(0, np.int64)
    return np.array(list(wanted.values()), np.int64), np.array([found[key] for key in wanted], np.int64)


def same_vectors(
    wanted_vectors: npt.NDArray[np.uint64],
    wanted: Numbers,
    found_vectors: npt.NDArray[np.uint64],
    found: Numbers,
) -> bool:
    if len(wanted) != len(found):
        return False
    # Rows come in long runs; one of each run is enough.
    starts = np.ones(len(wanted), np.bool_)
    starts[1:] = (wanted[1:] != wanted[:-1]) | (found[1:] != found[:-1])
    return np.array_equal(wanted_vectors[wanted[starts]], found_vectors[found[starts]])


def plain_values(maps: PinnedMaps, scope: int, image: HookPolicy) -> Iterator[tuple[str, object, object]]:
    head = maps.arrays["policy_heads"][scope]
    yield "best_rank", image.best_rank, int(head["best_rank"])
    yield "words", image.words, int(head["words"])
    yield "enforcing", image.enforcing, int(head["enforcing"])
    yield "bit_numbers", BIT_NUMBERS, head["bit_numbers"]
    yield "observes", image.observes, bool(head["options"] & C["OPTION_OBSERVE"])
    words = maps.vectors["word"]
    holds = np.zeros((len(words), maps.vectors["summary"].shape[1] * 64), np.bool_)
    holds[:, : words.shape[1]] = words != 0
    yield "summaries", np.packbits(holds, axis=1, bitorder="little"), maps.vectors["summary"].view(np.uint8)
    room = words.shape[1] * 64
    rules = maps.arrays["policy_rules"][scope * room : (scope + 1) * room][: image.words * 64]
    for field in ("rank", "handle", "order", "enough"):
        yield f"policy_rules.{field}", image.rules[field], rules[field]


def big_endian(starts: npt.NDArray[Any]) -> list[bytes]:
    size = starts.dtype.itemsize
    raw = starts.astype(">u8").tobytes() if starts.dtype == np.uint64 else starts.tobytes()
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def written_intervals(
    maps: PinnedMaps, scope: int, version: int
) -> Iterator[tuple[list[int], npt.NDArray[np.uint32]]]:
    """Starts and first lines of each side; of IPv4 as the index leads to them."""
    records = maps.arrays[f"policy_ranges{version}"]
    for side in range(SIDES):
        if version == 4:
            first, last = indexed(maps, scope * SIDES + side)
            assert (first <= last).all() and (first[1:] <= last[:-1] + 1).all()
            found = records[int(first[0]) : int(last[-1]) + 1]
            yield found["start"].tolist(), found["line"]
        else:
            span = maps.arrays["policy_heads"]["addresses"][scope, side]
            found = records[int(span["first"]) : int(span["first"]) + int(span["count"])]
            yield [high << 64 | low for high, low in found["start"].tolist()], found["line"]


def indexed(maps: PinnedMaps, scope: int) -> tuple[Numbers, Numbers]:
    """The first and the last interval of every bucket, those of blocks too, in the order of addresses."""
    index = maps.arrays["policy_index4"]["reach"].reshape(-1)
    first, last = [], []
    for reach in index[scope << C["POLICY_INDEX_BITS"] : scope + 1 << C["POLICY_INDEX_BITS"]].tolist():
        block = (8 << 16) + (reach >> 9 << 8)
        reaches = (
            index[block : block + (1 << C["POLICY_BLOCK_BITS"])].tolist() if not reach & 511 else [reach]
        )
        first += [each >> 9 for each in reaches]
        last += [(each >> 9) + (each & 511) - 1 for each in reaches]
    return np.array(first, np.int64), np.array(last, np.int64)
