"""What the kernel tells of one packet, and of the reports that it did not send.

Owns the Report value: from a record's bytes (bpf/layout.h, struct report) to the words of the API. Knows neither who
asked for it nor how records come here.
"""

from __future__ import annotations

import socket
import struct
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson

from firewall.layout import HOOKS, LAYOUT, REASONS, VERDICTS, C
from firewall.match import FLAG_BITS, format_protocol

RECORD = LAYOUT.structs["report"]
STREAMS = LAYOUT.names("stream", "STREAM_")
KINDS = LAYOUT.names("report_kind", "REPORT_")
EVENTS, CAPTURE = C["STREAM_EVENTS"], C["STREAM_CAPTURE"]
_SIZES = {C["FAMILY_IPV4"]: 4, C["FAMILY_IPV6"]: 16}


class Limit(NamedTuple):
    """Reports a second and CPU, and how many at once after a pause."""

    rate: int
    burst: int


class NotSent(NamedTuple):
    """Of one stream, since the programs were loaded: for want of a token, and of room in the ring."""

    suppressed: int
    lost: int


class ReportSource(Protocol):
    """Reports as the kernel side gives them. One thread reads; wake() may be called from any."""

    def limit(self, limits: Sequence[Limit]) -> None:
        """By stream."""

    def listen(self, listening: int, snap_length: int) -> None:
        """`listening`: LISTEN_* of bpf/layout.h."""

    @property
    def listening(self) -> int: ...

    def wait(self, timeout_s: float) -> None:
        """Until there is a report, wake() was called or the time is over."""

    def wake(self) -> None: ...

    def read(self, most: int) -> list[bytes]:
        """Records of struct report, each with the bytes that were captured."""

    def not_sent(self) -> list[NotSent]:
        """By stream."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Report:
    """One packet. `time_ns`: since 1970; `source`, `destination`: 4 or 16 bytes, empty where it is not IP; `content`:
    the bytes that were captured of `length`."""

    time_ns: int
    hook: str
    interface: str
    rule: str | None
    reason: str
    verdict: str
    kind: str
    source: bytes
    destination: bytes
    ports: tuple[int, int] | None
    protocol: int | None
    icmp: tuple[int, int] | None
    tcp_flags: int | None
    length: int
    streams: int
    is_bare: bool
    content: bytes

    def fields(self) -> dict[str, Any]:
        """As the API says it."""
        return {
            "time": format_time_ns(self.time_ns),
            "hook": self.hook,
            "interface": self.interface,
            "rule": self.rule,
            "reason": self.reason,
            "verdict": self.verdict,
            "kind": self.kind,
            "source": _address(self.source),
            "destination": _address(self.destination),
            "source_port": self.ports[0] if self.ports else None,
            "destination_port": self.ports[1] if self.ports else None,
            "protocol": None if self.protocol is None else format_protocol(self.protocol),
            "icmp_type": None if self.icmp is None else f"{self.icmp[0]}/{self.icmp[1]}",
            "tcp_flags": None if self.tcp_flags is None else _flags(self.tcp_flags),
            "length": self.length,
        }

    @cached_property
    def json(self) -> bytes:
        """Made once for all who listen."""
        return orjson.dumps(self.fields())

    @property
    def comment(self) -> str:
        """Rule and reason in one line, for captures."""
        rule = f"rule={self.rule} " if self.rule is not None else ""
        kind = f" kind={self.kind}" if self.kind != KINDS[0] else ""
        return f"{rule}reason={self.reason} verdict={self.verdict}{kind}"


_UNSIGNED = {1: "B", 2: "H", 4: "I", 8: "Q"}


def _format_of(record: np.dtype[np.void]) -> str:
    """For struct.unpack, much faster for one record than numpy: numbers as such, arrays as bytes, padding skipped."""
    parts = []
    for name in record.names or ():
        kind = record[name]
        is_bytes = kind.subdtype is not None
        parts.append(
            f"{kind.itemsize}{'x' if name == 'padding' else 's'}" if is_bytes else _UNSIGNED[kind.itemsize]
        )
    return "=" + "".join(parts)


_NAMES = [name for name in RECORD.names or () if name != "padding"]
_FIELDS = struct.Struct(_format_of(RECORD))
_Row = namedtuple("_Row", _NAMES)  # type: ignore[misc]  # the names are those of layout.h
_HANDLE_AT = RECORD.fields["handle"][1] if RECORD.fields else 0


def handle_of(record: bytes) -> int:
    """Of the rule, 0 for none."""
    return int.from_bytes(record[_HANDLE_AT : _HANDLE_AT + 4], "little")


def decode(
    record: bytes, offset_ns: int, interface_name: Callable[[int], str], rule_ids: Mapping[int, str]
) -> Report:
    """`offset_ns`: from the kernel's clock to the time since 1970; `rule_ids`: by handle."""
    row: Any = _Row(*_FIELDS.unpack_from(record))
    size = _SIZES[row.family] if row.is_ip else 0
    return Report(
        time_ns=row.time + offset_ns,
        hook=HOOKS[row.hook],
        interface=interface_name(row.ifindex),
        rule=rule_ids.get(row.handle),
        reason=REASONS[row.reason],
        verdict=VERDICTS[row.verdict],
        kind=KINDS[row.kind],
        source=row.source[:size],
        destination=row.destination[:size],
        ports=(row.source_port, row.destination_port) if row.has & C["REPORT_HAS_PORTS"] else None,
        protocol=row.protocol if row.is_ip else None,
        icmp=(row.icmp_type, row.icmp_code) if row.has & C["REPORT_HAS_ICMP"] else None,
        tcp_flags=row.tcp_flags if row.has & C["REPORT_HAS_FLAGS"] else None,
        length=row.length,
        streams=row.streams,
        is_bare=bool(row.is_bare),
        content=record[RECORD.itemsize : RECORD.itemsize + row.captured],
    )


def format_time_ns(time_ns: int) -> str:
    """RFC 3339, UTC, to the microsecond."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06}Z"


def _address(address: bytes) -> str | None:
    if not address:
        return None
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _flags(bits: int) -> list[str]:
    return [name for name, bit in FLAG_BITS.items() if bits & bit]
