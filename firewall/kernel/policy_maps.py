"""Writes a compiled policy into one generation of the policy maps.

Owns the offsets that turn a Policy's numbers, counted from 0, into indexes of the maps. Nothing reads a
generation while it is written; datapath.py sees to that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.address import BITS
from firewall.kernel.bpf import Map, Records
from firewall.kernel.maps import PinnedMaps
from firewall.kernel.named_maps import write_named
from firewall.layout import BIT_NUMBERS, INTERFACE_KEY, SPAN, C
from firewall.policy import HookPolicy, Policy
from firewall.policy_addresses import Classes, Reaches, Words, index_reaches

_HOOKS = C["HOOK_COUNT"]
_AT_ONCE = 1 << 20  # of the index
_NUMBER = np.dtype([("vector", "<u4")])
Lines = npt.NDArray[Any]


class Packed(NamedTuple):
    """A policy, and its classes of addresses as they stand in the maps: what can be worked out before the generation
    is free that it will be written to."""

    policy: Policy
    classes: list[tuple[Words, Lines]]


def pack(maps: PinnedMaps, policy: Policy) -> Packed:
    size = summary_words(maps)
    return Packed(policy, [packed(classes, size) for _, classes in policy.classes])


def summary_words(maps: PinnedMaps) -> int:
    """Of each vector."""
    return int(maps.vectors["summary"].shape[1])


def write_policy(maps: PinnedMaps, generation: int, ready: Packed, options: tuple[int, int]) -> None:
    policy = ready.policy
    capacity = len(maps.vectors) // C["GENERATION_COUNT"]
    base = generation * capacity
    for first, vectors in policy.pieces:
        _write_vectors(maps.vectors[base + first : base + first + len(vectors)], vectors)
    spans = _write_intervals(maps, generation, policy, _write_classes(maps, generation, ready))
    write_named(maps, generation, policy.named)
    naming = np.array(list(policy.named.rules), np.uint32)
    for hook, image in enumerate(policy.hooks):
        if image.words:
            _write_arrays(maps, generation * _HOOKS + hook, image, base, naming)
        _write_head(maps, generation * _HOOKS + hook, image, base, options[hook], spans[hook])
    interfaces = [
        (ifindex, generation * _HOOKS + hook, vector + base)
        for hook, image in enumerate(policy.hooks)
        for ifindex, vector in image.interfaces.items()
    ]
    keys_array = np.array([each[:2] for each in interfaces], INTERFACE_KEY)
    _replace(
        maps["policy_iface"],
        keys_array,
        [each[2] for each in interfaces],
        lambda key: key["scope"] // _HOOKS == generation,
    )


def _write_vectors(records: Records, vectors: Words) -> None:
    """Each with its summary: a bit for every word that is not 0. Where the last one that stood here had no bit, the
    words are 0 already; until the words are written its bits stay beside the new ones, so that this is true at every
    moment."""
    in_use = vectors.shape[1]
    summaries = np.zeros(records["summary"].shape, np.uint64)
    bits = np.packbits(vectors != 0, axis=1, bitorder="little")
    summaries.view(np.uint8)[:, : bits.shape[1]] = bits
    records["summary"] |= summaries
    stood = _highest_bit(np.bitwise_or.reduce(records["summary"], axis=0)) + 1
    records["word"][:, :in_use] = vectors
    records["word"][:, in_use:stood] = 0
    records["summary"] = summaries


def _highest_bit(words: Words) -> int:
    return int.from_bytes(words.astype("<u8").tobytes(), "little").bit_length() - 1


def _write_classes(maps: PinnedMaps, generation: int, ready: Packed) -> Lines:
    """The first line of each class. Class 0 has no words of its own: all are 0."""
    records = maps.arrays["policy_lines"]["word"]
    at = generation * (len(records) // C["GENERATION_COUNT"])
    records[at] = 0
    firsts, at = [np.array([at])], at + 1
    for words, begins in ready.classes:
        lines = words.reshape(-1, C["LINE_WORDS"])
        records[at : at + len(lines)] = lines
        firsts.append(at + begins // C["LINE_WORDS"])
        at += len(lines)
    return np.concatenate(firsts).astype(np.uint32)


def packed(classes: Classes, summary_size: int) -> tuple[Words, Lines]:
    """As bpf/layout.h says (struct line), one class after the other; and the place of each one's first word."""
    is_own = classes.is_own
    header = 2 * summary_size
    summaries = np.zeros((len(classes), summary_size * 8), np.uint8)
    bits = np.packbits(is_own, axis=1, bitorder="little")
    summaries[:, : bits.shape[1]] = bits
    by_byte = np.bitwise_count(summaries)
    counts = by_byte.sum(axis=1, dtype=np.int64)
    before = (np.cumsum(by_byte, axis=1) - by_byte).astype(np.uint8)
    sizes = -(-(counts + header) // C["LINE_WORDS"]) * C["LINE_WORDS"]
    begins = np.cumsum(sizes) - sizes
    words = np.zeros(int(sizes.sum()), np.uint64)
    words[begins[:, None] + np.arange(header)] = np.hstack((summaries, before)).view("<u8")
    rows = np.repeat(np.arange(len(classes)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    words[begins[rows] + header + within] = classes.vectors[is_own]
    return words, begins


def _write_intervals(
    maps: PinnedMaps, generation: int, policy: Policy, lines: Lines
) -> list[list[tuple[int, int]]]:
    """Where the IPv6 ones stand, first and count, by hook and side. `lines`: the first of each class."""
    at4, at6 = (
        generation * (len(maps.arrays[f"policy_ranges{version}"]) // C["GENERATION_COUNT"])
        for version in BITS
    )
    index = maps.arrays["policy_index4"]["reach"].reshape(-1)
    buckets = 1 << C["POLICY_INDEX_BITS"]
    room = (len(index) - C["POLICY_BLOCKS_BEGIN"]) // C["GENERATION_COUNT"]
    blocks_at = C["POLICY_BLOCKS_BEGIN"] + generation * room
    spans = []
    for hook, image in enumerate(policy.hooks):
        mine = []
        for side in range(C["SIDE_COUNT"]):
            four, six = image.intervals4[side], image.intervals6[side]
            mine.append((at6, len(six)))
            if not image.words:  # no packet asks
                continue
            rows = maps.arrays["policy_ranges4"][at4 : at4 + len(four)]
            rows["start"], rows["line"] = four.starts, lines[four.classes]
            scope = (generation * _HOOKS + hook) * C["SIDE_COUNT"] + side
            buckets_reached, blocks = index_reaches(four, at4, blocks_at)
            size = len(blocks.firsts)
            for first in range(0, size, _AT_ONCE):
                end = min(first + _AT_ONCE, size)
                index[blocks_at + first : blocks_at + end] = _encoded(blocks.part(first, end))
            index[scope * buckets : (scope + 1) * buckets] = _encoded(buckets_reached)
            blocks_at += size
            rows = maps.arrays["policy_ranges6"][at6 : at6 + len(six)]
            rows["start"] = six.starts.view(">u8").reshape(-1, 2)
            rows["line"] = lines[six.classes]
            at4, at6 = at4 + len(four), at6 + len(six)
        spans.append(mine)
    return spans


def _encoded(reaches: Reaches) -> npt.NDArray[np.uint32]:
    """As policy_index4 has them (bpf/layout.h): blocks by their numbers."""
    first, count = reaches
    blocks = (first - np.uint32(C["POLICY_BLOCKS_BEGIN"])) >> np.uint32(C["POLICY_BLOCK_BITS"])
    return np.where(count == 0, blocks, first) << np.uint32(C["INDEX_COUNT_BITS"]) | count


def _replace(table: Map, keys: Records, vectors: list[int], is_ours: object) -> None:
    """Makes `keys` the only ones of a generation."""
    wanted = {key.tobytes() for key in keys}
    stale = []
    for found, _ in table.dump(keys.dtype, _NUMBER):
        mine = found[is_ours(found)]  # type: ignore[operator]
        stale += [key for key in mine if key.tobytes() not in wanted]
    if stale:
        table.delete_batch(np.array(stale, keys.dtype))
    table.update_batch(keys, np.array(vectors, "<u4").view(_NUMBER))


def _write_arrays(
    maps: PinnedMaps, scope: int, image: HookPolicy, base: int, naming: npt.NDArray[np.uint32]
) -> None:
    """`naming`: slots of rules that name sets."""
    arrays = maps.arrays

    def rows(name: str, count: int) -> Records:
        return arrays[name][scope * count : (scope + 1) * count]

    rows("policy_protocol", C["PROTOCOL_ROWS"])["vector"] = image.protocol + np.uint32(base)
    ports = arrays["policy_port"]["vector"].reshape(-1, C["SIDE_COUNT"], C["PORT_ROWS"])
    ports[scope] = image.port.T + np.uint32(base)
    rows("policy_icmp", C["ICMP_ROWS"])["vector"] = image.icmp + np.uint32(base)
    room = maps.vectors["word"].shape[1] * 64
    # A restart reads the slots back from here, up to the last word in use.
    table = image.rules.copy()
    table["slot"][np.isin(table["slot"], naming) & (table["handle"] != 0)] |= np.uint32(C["RULE_NAMES_SETS"])
    rows("policy_rules", room)[: len(table)] = table


def _write_head(
    maps: PinnedMaps, scope: int, image: HookPolicy, base: int, options: int, spans: list[tuple[int, int]]
) -> None:
    head = maps.arrays["policy_heads"][scope : scope + 1]
    head["best_rank"] = image.best_rank
    head["words"] = image.words
    head["options"] = (
        options
        | (C["OPTION_INTERFACES"] if image.uses_interfaces else 0)
        | (C["OPTION_OBSERVE"] if image.observes else 0)
    )
    head["enforcing"] = image.enforcing
    head["bit_numbers"] = BIT_NUMBERS
    head["any_interface"] = image.any_interface + base
    head["addresses"] = np.array(spans, SPAN)
    head["anywhere"] = np.array(image.anywhere4 + image.anywhere6) + base
