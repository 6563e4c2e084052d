"""Frames for the machine and the verdicts that they must get under RULES, made here because scapy starts
slowly under emulation.

Owns rules and frames together. Every frame that is dropped stands beside one that differs in the one thing
that the rule asks for, and passes.
"""

from __future__ import annotations

import json
from pathlib import Path

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

RULES = [
    {"id": "host4", "sources": ["203.0.113.7"], "direction": "both"},
    {"id": "net4", "sources": ["198.51.100.0/24"], "direction": "both"},
    {"id": "host4-allow", "sources": ["198.51.100.9"], "action": "allow", "priority": 10,
     "direction": "both"},
    {"id": "net6", "destinations": ["2001:db8:7::/48"], "direction": "both"},
    {"id": "ports", "protocols": ["tcp"], "destination_ports": ["22", "8000-8100"], "direction": "both"},
    {"id": "flow", "sources": ["192.0.2.0/24"], "destinations": ["10.1.0.0/16"], "protocols": ["udp"],
     "source_ports": ["53"], "direction": "both"},
    {"id": "ping", "icmp_types": ["8"], "protocols": ["icmp"], "direction": "both"},
    {"id": "syn", "tcp_flags": {"set": ["syn"], "unset": ["ack"]}, "destinations": ["10.2.0.1"],
     "direction": "both"},
    {"id": "flow6", "sources": ["2001:db8:1::/48"], "destination_ports": ["53"], "direction": "both"},
]  # fmt: skip

_ETHER = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
_TEN, _SIX = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")
# What a TCP header to port 22 would be, were it one.
_LIKE_THE_PORT = Raw(b"\0\x16" * 12)
FRAMES: list[tuple[str, bool, Packet]] = [
    ("listed host", True, IP(src="203.0.113.7", dst="10.0.0.2") / UDP()),
    ("its neighbour", False, IP(src="203.0.113.8", dst="10.0.0.2") / UDP()),
    ("listed network", True, IP(src="198.51.100.8", dst="10.0.0.2") / UDP()),
    ("the host in it that is allowed", False, IP(src="198.51.100.9", dst="10.0.0.2") / UDP()),
    ("listed IPv6 network", True, IPv6(src="2001:db8::1", dst="2001:db8:7::9") / UDP()),
    ("the network beside it", False, IPv6(src="2001:db8::1", dst="2001:db8:8::9") / UDP()),
    ("listed port", True, _TEN / TCP(dport=22)),
    ("port in a range", True, _TEN / TCP(dport=8100)),
    ("port after the range", False, _TEN / TCP(dport=8101)),
    ("the port over UDP", False, _TEN / UDP(dport=22)),
    ("the port over IPv6", True, _SIX / TCP(dport=22)),
    ("the port behind an extension header", True, _SIX / IPv6ExtHdrDestOpt() / TCP(dport=22)),
    ("the port behind IPv4 options", True, IP(src="10.0.0.1", options=b"\1\1\1\0") / TCP(dport=22)),
    ("the port behind a VLAN tag", True, Dot1Q(vlan=7) / _TEN / TCP(dport=22)),
    ("a later fragment", False, IP(src="10.0.0.1", frag=1, proto=6) / _LIKE_THE_PORT),
    ("a later IPv6 fragment", False, _SIX / IPv6ExtHdrFragment(offset=1, nh=6) / _LIKE_THE_PORT),
    ("flow", True, IP(src="192.0.2.1", dst="10.1.2.3") / UDP(sport=53, dport=9)),
    ("flow from another port", False, IP(src="192.0.2.1", dst="10.1.2.3") / UDP(sport=54, dport=9)),
    ("flow to another network", False, IP(src="192.0.2.1", dst="10.3.2.3") / UDP(sport=53, dport=9)),
    ("IPv6 flow", True, IPv6(src="2001:db8:1::1", dst="2001:db8::2") / UDP(dport=53)),
    ("IPv6 flow from elsewhere", False, _SIX / UDP(dport=53)),
    ("echo request", True, _TEN / ICMP(type=8)),
    ("echo reply", False, _TEN / ICMP(type=0)),
    ("SYN", True, IP(src="10.0.0.1", dst="10.2.0.1") / TCP(flags="S")),
    ("SYN and ACK", False, IP(src="10.0.0.1", dst="10.2.0.1") / TCP(flags="SA")),
    ("total length beyond the frame", True, IP(src="10.0.0.1", dst="10.0.0.2", len=200) / UDP()),
    ("ARP", False, ARP(psrc="203.0.113.7", pdst="10.0.0.2")),
]  # fmt: skip


def write(directory: Path) -> None:
    """rules.json and frames.json, whose records are (name, dropped, hex)."""
    frames = [
        (name, dropped, bytes(_ETHER / packet / Raw(bytes(32))).hex()) for name, dropped, packet in FRAMES
    ]
    (directory / "rules.json").write_text(json.dumps(RULES), encoding="ascii")
    (directory / "frames.json").write_text(json.dumps(frames), encoding="ascii")
