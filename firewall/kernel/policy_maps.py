"""Writes a compiled policy into one generation of the policy maps.

Owns the offsets that turn a Policy's numbers, counted from 0, into indexes of the maps. Nothing reads a
generation while it is written; datapath.py sees to that.
"""

from __future__ import annotations

import numpy as np

from firewall.kernel.bpf import Map, Records
from firewall.kernel.keys import prefix_records
from firewall.kernel.maps import PinnedMaps
from firewall.layout import INTERFACE_KEY, C
from firewall.policy import HookPolicy, Policy

_HOOKS = C["HOOK_COUNT"]
_NUMBER = np.dtype([("vector", "<u4")])


def write_policy(maps: PinnedMaps, generation: int, policy: Policy, options: tuple[int, int]) -> None:
    capacity = len(maps.vectors) // C["GENERATION_COUNT"]
    base = generation * capacity
    maps.vectors[base : base + len(policy.vectors)] = policy.vectors
    for hook, image in enumerate(policy.hooks):
        _write_arrays(maps, generation * _HOOKS + hook, image, base)
        _write_head(maps, generation * _HOOKS + hook, image, base, options[hook])
    for version, name in ((4, "policy_prefix4"), (6, "policy_prefix6")):
        keys, vectors = [], []
        for hook, image in enumerate(policy.hooks):
            for side, address, length, vector in image.prefixes4 if version == 4 else image.prefixes6:
                keys.append(((generation * _HOOKS + hook) << C["SCOPE_HOOK_BIT"] | side, length, address))
                vectors.append(vector + base)
        _replace(
            maps[name], prefix_records(version, keys), vectors, lambda key: key["scope"] >> 2 == generation
        )
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


def _write_arrays(maps: PinnedMaps, scope: int, image: HookPolicy, base: int) -> None:
    arrays = maps.arrays

    def rows(name: str, count: int) -> Records:
        return arrays[name][scope * count : (scope + 1) * count]

    sides = C["SIDE_COUNT"]
    buckets4, buckets6 = C["BUCKET_COUNT"] * sides, C["POLICY_BUCKET6_COUNT"] * sides
    rows("policy_lengths4", buckets4)["lengths"] = image.lengths4.reshape(-1)
    rows("policy_lengths6", buckets6)["word"] = image.lengths6.reshape(-1, 2)
    rows("policy_protocol", C["PROTOCOL_ROWS"])["vector"] = image.protocol + np.uint64(base)
    rows("policy_port", C["PORT_ROWS"])["side"] = image.port + np.uint32(base)
    rows("policy_icmp", C["ICMP_ROWS"])["vector"] = image.icmp + np.uint64(base)
    rules = rows("policy_rules", maps["policy_rules"].info.max_entries // (C["GENERATION_COUNT"] * _HOOKS))
    rules[: len(image.rules)] = image.rules
    # A restart reads the slots back from here, up to the end of the last word: no older policy's rule may stand there.
    rules[len(image.rules) : image.words * 64] = np.zeros(1, rules.dtype)


def _write_head(maps: PinnedMaps, scope: int, image: HookPolicy, base: int, options: int) -> None:
    head = maps.arrays["policy_heads"][scope : scope + 1]
    head["best_rank"] = image.best_rank
    head["words"] = image.words
    head["options"] = options | (C["OPTION_INTERFACES"] if image.uses_interfaces else 0)
    head["any_interface"] = image.any_interface + base
    head["any_address"] = np.array(image.any_address, np.uint32) + np.uint32(base)
    head["short_lengths6"] = image.short_lengths6
