"""The independent judge once more, over arrays: many frames and one rule set in, verdicts and reasons out.

Written from the contract for the fuzzer's millions of frames. It must import neither the product nor the oracle, which
judge the same frames as the second and third opinion. Offsets are columns: each frame's header may begin elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Rule = Mapping[str, Any]

REASONS = (
    "default", "rule", "not_ip", "fragment", "malformed_link", "malformed_ipv4", "malformed_ipv6",
    "malformed_extension", "malformed_l4", "malformed_fragment", "never_drop", "essential",
)  # fmt: skip
PASS, DROP = 0, 1
# Bytes that a transport header must have, by protocol.
SHORTEST = {6: 20, 17: 8, 136: 8, 132: 12, 33: 12, 1: 8, 58: 4}
WITH_PORTS = (6, 17, 136, 132, 33)
NUMBERS = {
    "tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "dccp": 33, "udplite": 136, "gre": 47, "esp": 50,
}  # fmt: skip
BITS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}


def is_one_of(values: Ints, choices: Sequence[int]) -> Bools:
    return np.isin(values, np.array(choices))


@dataclass
class Frames:
    """`data`: a row a frame, 0 behind its `size` bytes."""

    data: Bytes
    size: Ints

    def byte(self, at: Ints) -> Ints:
        """What stands at an offset; whether that is in the frame is the caller's to know."""
        inside = np.clip(at, 0, self.data.shape[1] - 1)
        return self.data[np.arange(len(at)), inside].astype(np.int64)

    def word(self, at: Ints) -> Ints:
        return self.byte(at) << 8 | self.byte(at + 1)

    def row(self, at: Ints, count: int) -> Bytes:
        columns = np.clip(at[:, None] + np.arange(count), 0, self.data.shape[1] - 1)
        return self.data[np.arange(len(at))[:, None], columns]


class Parsed:
    """Columns of what was found. `version` 0: no IP header that could be believed; -1 in a field: not there."""

    def __init__(self, frames: Frames, link: str) -> None:
        count = len(frames.size)
        self.frames = frames
        self.reason = np.full(count, "default", "U20")
        self.version, self.protocol = np.zeros(count, np.int64), np.full(count, -1)
        self.fragment, self.later = np.zeros(count, bool), np.zeros(count, bool)
        self.source, self.destination = np.zeros((count, 16), np.uint8), np.zeros((count, 16), np.uint8)
        self.source_port, self.destination_port = np.full(count, -1), np.full(count, -1)
        self.icmp_type, self.icmp_code = np.full(count, -1), np.full(count, -1)
        self.flags = np.full(count, -1)
        self.hops, self.is_arp = np.full(count, -1), np.zeros(count, bool)
        at, claims = self._ethernet() if link == "ethernet" else self._bare()
        start4, end4 = self._ipv4(at, claims == 4)
        start6, end6 = self._ipv6(at, claims == 6)
        start, end = np.where(claims == 4, start4, start6), np.where(claims == 4, end4, end6)
        self._transport(start, end)

    def _ethernet(self) -> tuple[Ints, Ints]:
        """Where the network header begins, and the IP version that the type claims (0: another)."""
        frames = self.frames
        at = np.full(len(frames.size), 14)
        kind = frames.word(at - 2)
        self.reason[frames.size < 14] = "malformed_link"
        for _ in range(2):
            tagged = is_one_of(kind, (0x8100, 0x88A8, 0x9100)) & (self.reason == "default")
            self.reason[tagged & (at + 4 > frames.size)] = "malformed_link"
            kind = np.where(tagged, frames.word(at + 2), kind)
            at = np.where(tagged, at + 4, at)
        claims = np.select([kind == 0x0800, kind == 0x86DD], [4, 6], 0)
        self.reason[(claims == 0) & (self.reason == "default")] = "not_ip"
        self.is_arp = (kind == 0x0806) & (self.reason == "not_ip")
        return at, claims

    def _bare(self) -> tuple[Ints, Ints]:
        at = np.zeros(len(self.frames.size), np.int64)
        claims = self.frames.byte(at) >> 4
        self.reason[(self.frames.size == 0) | ((claims != 4) & (claims != 6))] = "malformed_link"
        return at, claims

    def _ipv4(self, at: Ints, claimed: Bools) -> tuple[Ints, Ints]:
        """Where the transport header begins and where the packet ends."""
        frames, left = self.frames, self.frames.size - at
        first, total, cut = frames.byte(at), frames.word(at + 2), frames.word(at + 6)
        header = (first & 15) * 4
        possible = (left >= 20) & (first >> 4 == 4) & (header >= 20) & (total >= header) & (total <= left)
        asked = claimed & (self.reason == "default")
        self.reason[asked & ~possible] = "malformed_ipv4"
        good = asked & possible
        self.version[good] = 4
        self.protocol[good] = frames.byte(at + 9)[good]
        self.later |= good & ((cut & 0x1FFF) > 0)
        self.fragment |= good & ((cut & 0x3FFF) > 0)
        self.source[good, :4] = frames.row(at + 12, 4)[good]
        self.destination[good, :4] = frames.row(at + 16, 4)[good]
        return at + header, at + total

    def _ipv6(self, at: Ints, claimed: Bools) -> tuple[Ints, Ints]:
        frames, left = self.frames, self.frames.size - at - 40
        payload, following = frames.word(at + 4), frames.byte(at + 6)
        # A jumbogram says 0 and has its length in a hop-by-hop option.
        payload = np.where((payload == 0) & (following == 0), left, payload)
        possible = (left >= 0) & (frames.byte(at) >> 4 == 6) & (payload <= left)
        asked = claimed & (self.reason == "default")
        self.reason[asked & ~possible] = "malformed_ipv6"
        good = asked & possible
        self.version[good] = 6
        self.protocol[good] = following[good]
        self.hops[good] = frames.byte(at + 7)[good]
        self.source[good] = frames.row(at + 8, 16)[good]
        self.destination[good] = frames.row(at + 24, 16)[good]
        end = at + 40 + payload
        return self._extensions(at + 40, end, good), end

    def _extensions(self, at: Ints, end: Ints, good: Bools) -> Ints:
        """Ten headers are walked; an eleventh is one too many."""
        frames = self.frames
        for number in range(11):
            ahead = good & (self.reason == "default") & ~self.later
            ahead &= is_one_of(self.protocol, (0, 43, 44, 51, 60, 135))
            if not ahead.any():
                break
            is_fragment, is_ah = self.protocol == 44, self.protocol == 51
            length = frames.byte(at + 1)
            size = np.select([is_fragment, is_ah], [8, length * 4 + 8], length * 8 + 8)
            impossible = ahead & ((at + 8 > end) | (at + size > end) | (number == 10))
            self.reason[impossible] = "malformed_extension"
            # A fragment header that is there was read, though what it leads to may be malformed.
            walked = ahead & ~impossible
            cut = np.where(walked & is_fragment, frames.word(at + 2), 0)
            self.fragment |= (cut & 0xFFF9) > 0
            self.later |= (cut & 0xFFF8) > 0
            self.protocol = np.where(walked, frames.byte(at), self.protocol)
            at = np.where(walked, at + size, at)
        return at

    def _transport(self, at: Ints, end: Ints) -> None:
        frames = self.frames
        read = (self.version > 0) & (self.reason == "default") & ~self.later
        shortest = np.zeros(256, np.int64)
        for protocol, size in SHORTEST.items():
            shortest[protocol] = size
        needed = shortest[np.clip(self.protocol, 0, 255)]
        read &= needed > 0
        left = end - at
        tcp_size, udp_length = (frames.byte(at + 12) >> 4) * 4, frames.word(at + 4)
        is_tcp, is_udp = self.protocol == 6, self.protocol == 17
        short = left < needed
        short |= is_tcp & ((tcp_size < 20) | (tcp_size > left))
        short |= is_udp & (udp_length > 0) & (udp_length < 8)
        self.reason[read & short & ~self.fragment] = "malformed_l4"
        self.reason[read & short & self.fragment] = "malformed_fragment"
        read &= ~short
        ports, icmp = read & is_one_of(self.protocol, WITH_PORTS), read & is_one_of(self.protocol, (1, 58))
        self.source_port[ports] = frames.word(at)[ports]
        self.destination_port[ports] = frames.word(at + 2)[ports]
        self.icmp_type[icmp], self.icmp_code[icmp] = frames.byte(at)[icmp], frames.byte(at + 1)[icmp]
        self.flags[read & is_tcp] = frames.byte(at + 13)[read & is_tcp]


def judge(
    rules: Sequence[Rule], parsed: Parsed, hook: str, settings: Mapping[str, Any]
) -> tuple[Ints, npt.NDArray[np.str_]]:
    """Verdicts (PASS, DROP) and reasons. The rules name no interfaces."""
    reason = parsed.reason.copy()
    broken = (reason != "default") & (reason != "not_ip")
    default_drops = settings.get(f"default_{hook}", "allow") == "drop"
    malformed_drops = settings.get("malformed", "drop") == "drop"
    verdict = np.where(broken, int(malformed_drops), int(default_drops))
    verdict[reason == "not_ip"] = PASS
    if default_drops and not settings.get("pass_arp", True):
        verdict[parsed.is_arp] = DROP
    asked = parsed.version > 0
    if malformed_drops:
        asked &= ~broken
    if settings.get("fragments", "match") == "drop":
        cut = asked & parsed.fragment
        reason[cut], verdict[cut] = "fragment", DROP
        asked &= ~cut
    remote = parsed.source if hook == "ingress" else parsed.destination
    for prefix in settings.get("never_drop", ()):
        spared = asked & _inside(prefix, remote, parsed.version)
        reason[spared], verdict[spared] = "never_drop", PASS
        asked &= ~spared
    best = np.full(len(reason), 1 << 30)
    for rule in rules:
        is_asked = rule.get("enabled", True) and rule.get("mode", "enforce") == "enforce"
        if is_asked and rule.get("direction", "ingress") in (hook, "both"):
            rank = rule.get("priority", 1000) * 2 + (rule.get("action", "drop") == "allow")
            best = np.where(_matches(rule, parsed), np.minimum(best, rank), best)
    decided = asked & (best < 1 << 30)
    reason[decided] = "rule"
    verdict[decided] = np.where(best[decided] % 2, PASS, DROP)
    if default_drops:
        needed = asked & ~decided & ~broken & _essential(parsed, hook, settings)
        reason[needed], verdict[needed] = "essential", PASS
    return verdict, reason


def _essential(parsed: Parsed, hook: str, settings: Mapping[str, Any]) -> Bools:
    four, six = parsed.version == 4, parsed.version == 6
    kind, icmp4, icmp6 = parsed.icmp_type, parsed.protocol == 1, parsed.protocol == 58
    neighbors = six & icmp6 & (kind >= 133) & (kind <= 137) & (parsed.hops == 255)
    path_mtu = (four & icmp4 & (kind == 3) & (parsed.icmp_code == 4)) | (six & icmp6 & (kind == 2))
    server, client = np.where(four, 67, 547), np.where(four, 68, 546)
    first, second = (server, client) if hook == "ingress" else (client, server)
    dhcp = (parsed.protocol == 17) & (parsed.source_port == first) & (parsed.destination_port == second)
    found = np.zeros(len(kind), bool)
    for name, which in (("neighbor_discovery", neighbors), ("dhcp", dhcp), ("path_mtu", path_mtu)):
        if settings.get(f"pass_{name}", True):
            found |= which
    return found & ~parsed.fragment


def _matches(rule: Rule, parsed: Parsed) -> Bools:
    if unknown := set(rule) - _FIELDS:
        raise ValueError(f"no such rule field: {sorted(unknown)}")
    matching = parsed.version > 0
    if rule.get("family", "any") != "any":
        matching &= parsed.version == int(rule["family"][-1])
    for field, side in (("sources", parsed.source), ("destinations", parsed.destination)):
        if asked := _listed(rule, field):
            matching &= np.logical_or.reduce([_inside(each, side, parsed.version) for each in asked])
    sides = (("source_ports", parsed.source_port), ("destination_ports", parsed.destination_port))
    for field, port in sides:
        if asked := _listed(rule, field):
            ranges = [[int(end) for end in re.findall(r"\d+", str(each))] for each in asked]
            matching &= np.logical_or.reduce([(port >= ends[0]) & (port <= ends[-1]) for ends in ranges])
    if asked := _listed(rule, "icmp_types"):
        kinds = [[int(part) for part in str(each).split("/")] for each in asked]
        matching &= np.logical_or.reduce(
            [
                (parsed.icmp_type == kind[0]) & ((parsed.icmp_code == kind[-1]) | (len(kind) == 1))
                for kind in kinds
            ]
        )
    flags = rule.get("tcp_flags") or {}
    must, must_not = (sum(BITS[name] for name in flags.get(which, [])) for which in ("set", "unset"))
    if must or must_not:
        matching &= (parsed.flags >= 0) & (parsed.flags & must == must) & (parsed.flags & must_not == 0)
    return matching & _protocol(rule, parsed)


_FIELDS = {
    "id", "enabled", "action", "priority", "direction", "family", "sources", "destinations", "source_ports",
    "destination_ports", "icmp_types", "tcp_flags", "protocols", "mode",
}  # fmt: skip


def _protocol(rule: Rule, parsed: Parsed) -> Bools:
    numbers = [NUMBERS[each] if each in NUMBERS else int(each) for each in _listed(rule, "protocols")]
    if numbers:
        return is_one_of(parsed.protocol, numbers)
    # Without protocols, ports mean tcp and udp. What flags and types ask for, only their protocols have.
    if _listed(rule, "source_ports") or _listed(rule, "destination_ports"):
        return is_one_of(parsed.protocol, (6, 17))
    return np.ones(len(parsed.protocol), bool)


def _listed(rule: Rule, field: str) -> list[Any]:
    value = rule.get(field) or []
    return value if isinstance(value, list) else [value]


def _inside(prefix: str, side: Bytes, version: Ints) -> Bools:
    network = ip_network(prefix)
    wanted = np.frombuffer(network.network_address.packed, np.uint8)
    mask = np.frombuffer(network.netmask.packed, np.uint8)
    inside: Bools = ((side[:, : len(mask)] & mask) == wanted).all(axis=1) & (version == network.version)
    return inside
