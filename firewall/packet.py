"""A packet as rules see it: the fields that a filter reads of it, and nothing of its bytes.

Owns the value alone. Who makes one knows where it comes from: a question, a live connection, a frame that was kept.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Packet:
    """`hook`: number of enum hook in bpf/layout.h. `interface`: its name, None for one that no rule can name. `source`
    and `destination` are numbers, as wide as `version` (4 or 6) says. Ports, `tcp_flags` (the flags byte) and ICMP
    fields are None where the packet has none: other protocols, later fragments. `is_fragment`: first or later.
    `length`: bytes from the IP header on."""

    hook: int
    interface: str | None
    version: int
    source: int
    destination: int
    protocol: int
    source_port: int | None = None
    destination_port: int | None = None
    tcp_flags: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    is_fragment: bool = False
    is_later_fragment: bool = False
    length: int = 0
