"""Reports from the kernel to all who listen: one thread reads, each listener has a queue of its own.

Owns who listens, the words that tell the kernel so, and the count of what got lost on the way. With nobody listening
there is no thread, and the kernel makes no reports. It never takes the enforcer's lock: a change may take as long as it
likes.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from firewall.errors import FirewallError, KernelRefused
from firewall.layout import C
from firewall.listener import Listener, Wanted
from firewall.report import CAPTURE, EVENTS, STREAMS, Limit, NotSent, ReportSource, decode, handle_of

log = structlog.get_logger()

MOST_LISTENERS = 64
ROOM = 4096  # reports that wait for one listener
_MOST_AT_ONCE = 4096
# After a look at the ring the reader lets reports gather: the kernel wakes it at most so often.
_GATHER_S = 0.02
_LOOK_S = 1.0  # at counts, at names of interfaces, and at what the kernel was told
_KNOWN_RULES = 65536
_CHANGE_S = 0.03  # that a new rule may be in the kernel before it is durable, and has a name


@dataclass(frozen=True)
class ReportLimits:
    """By stream; and whether drops are logged, so many a second."""

    events: Limit = field(default=Limit(1000, 1000))
    capture: Limit = field(default=Limit(5000, 5000))
    log_drops: bool = False
    log_rate: int = 10


@dataclass(frozen=True)
class StreamTotals:
    """Since the start: reports that were read, that the limits held back, that the ring or a slow listener lost."""

    read: int = 0
    suppressed: int = 0
    lost_in_ring: int = 0
    lost_by_listeners: int = 0


class Reporting:
    """Every method may be called from any thread."""

    def __init__(
        self, rule_ids: Callable[[Sequence[int]], Mapping[int, str]], limits: ReportLimits | None = None
    ) -> None:
        """`rule_ids`: of rules that exist, by handle."""
        self._rule_ids = rule_ids
        self.limits = limits or ReportLimits()
        self._lock = threading.Lock()
        self._source: ReportSource | None = None
        self._ended: ReportSource | None = None
        self._listeners: tuple[Listener, ...] = ()
        self._thread: threading.Thread | None = None
        self._pause = threading.Event()
        self._known_rules: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._seen = [NotSent(0, 0)] * C["STREAM_COUNT"]
        self._totals = [StreamTotals()] * C["STREAM_COUNT"]

    # -- life

    def start(self, source: ReportSource) -> None:
        with self._lock:
            self._source = source
            self._seen = source.not_sent()
            source.limit((self.limits.events, self.limits.capture))

    def configure(self, limits: ReportLimits) -> None:
        with self._lock:
            self.limits = limits
            if self._source is not None:
                self._source.limit((limits.events, limits.capture))

    def end_all(self) -> None:
        """Everybody who listens is told that it is over; nobody new may."""
        with self._lock:
            source, self._source = self._source, None
            listeners, self._listeners = self._listeners, ()
            if source is not None:
                source.listen(0, 0)
                source.wake()
        self._pause.set()
        for each in listeners:
            each.end()
        if source is not None:
            self._ended = source

    def close(self) -> None:
        self.end_all()
        if self._thread is not None:
            self._thread.join()
        if self._ended is not None:
            self._ended.close()
            self._ended = None

    # -- who listens

    @property
    def listeners(self) -> Sequence[Listener]:
        return self._listeners

    def listen(self, wanted: Wanted, notify: Callable[[], None], room: int = ROOM) -> Listener:
        """From now on. Give it back with leave(). Raises KernelRefused where there are too many, or it is over."""
        with self._lock:
            if self._source is None:
                raise KernelRefused("the service gives no reports now", code="no_reports")
            if len(self._listeners) >= MOST_LISTENERS:
                raise KernelRefused(
                    f"{MOST_LISTENERS} listeners are all that the service serves at once",
                    "end one of the others",
                    code="too_many_listeners",
                )
            if self._thread is None:
                self._forget_what_was(self._source)
            listener = Listener(wanted, room, notify, self._source.not_sent()[wanted.stream])
            self._listeners = (*self._listeners, listener)
            self._tell_kernel()
            if self._thread is None:
                self._thread = threading.Thread(target=self._read, name="reports", daemon=True)
                self._thread.start()
        return listener

    def leave(self, listener: Listener) -> None:
        with self._lock:
            self._listeners = tuple(each for each in self._listeners if each is not listener)
            if self._source is not None:
                self._tell_kernel()
                self._source.wake()

    def _tell_kernel(self) -> None:
        if self._source is not None:
            words = listening_words([each.wanted for each in self._listeners])
            self._source.listen(*words)

    def totals(self) -> dict[str, StreamTotals]:
        """By stream."""
        return dict(zip(STREAMS, self._totals, strict=True))

    # -- the thread

    def _read(self) -> None:
        next_look = 0.0
        while True:
            with self._lock:
                source, listeners = self._source, self._listeners
                if source is None or not listeners:
                    self._thread = None if source is not None else self._thread
                    return
            try:
                source.wait(_LOOK_S)
                self._deliver(source.read(_MOST_AT_ONCE), self._listeners)
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + _LOOK_S
                    self._look(source)
            except Exception:
                log.exception("reading reports failed")
                self._pause.wait(_LOOK_S)
            self._pause.wait(_GATHER_S)

    def _deliver(self, records: Sequence[bytes], listeners: Sequence[Listener]) -> None:
        if not records:
            return
        rules = self._rules_of({handle for each in records if (handle := handle_of(each))})
        offset_ns = time.time_ns() - time.monotonic_ns()
        reports = [decode(each, offset_ns, self._interface, rules) for each in records]
        for stream in (EVENTS, CAPTURE):
            self._add(stream, read=sum(each.streams >> stream & 1 for each in reports))
        for listener in listeners:
            self._add(listener.wanted.stream, lost_by_listeners=listener.offer(reports))

    def _look(self, source: ReportSource) -> None:
        """At what no report tells."""
        self._names.clear()
        listeners = self._listeners  # one who comes after the count knows of it
        now = self._count_missed(source)
        for listener in listeners:
            listener.missed(now[listener.wanted.stream])
        with self._lock:
            if self._source is not None:
                self._tell_kernel()  # others may have written there

    def _count_missed(self, source: ReportSource) -> Sequence[NotSent]:
        """Adds what was lost in the ring and suppressed since the last time; answers the counts, by stream."""
        now, before = source.not_sent(), self._seen
        self._seen = now
        for stream, (n, b) in enumerate(zip(now, before, strict=True)):
            self._add(stream, suppressed=n.suppressed - b.suppressed, lost_in_ring=n.lost - b.lost)
        return now

    def _forget_what_was(self, source: ReportSource) -> None:
        """While nobody listened: no listener is to be told of it."""
        while source.read(_MOST_AT_ONCE):
            pass
        self._count_missed(source)

    def _add(self, stream: int, **more: int) -> None:
        """By the thread, or while there is none."""
        if any(more.values()):
            present = self._totals[stream]
            self._totals[stream] = StreamTotals(
                **{name: getattr(present, name) + more.get(name, 0) for name in present.__dataclass_fields__}
            )

    def _rules_of(self, handles: set[int]) -> Mapping[int, str]:
        unknown = handles - self._known_rules.keys()
        if not unknown:
            return self._known_rules
        if len(self._known_rules) > _KNOWN_RULES:
            self._known_rules.clear()
            unknown = handles
        for _ in range(2):
            with suppress(FirewallError):  # then they have no name
                self._known_rules |= self._rule_ids(sorted(unknown))
            unknown -= self._known_rules.keys()
            if not unknown or self._pause.wait(_CHANGE_S):
                break
        return self._known_rules

    def _interface(self, index: int) -> str:
        if index not in self._names:
            try:
                self._names[index] = socket.if_indextoname(index)
            except OSError:
                self._names[index] = f"#{index}"
        return self._names[index]


def listening_words(wanted: Sequence[Wanted]) -> tuple[int, int]:
    """LISTEN_* for all of them together, and the bytes that the most eager wants."""
    words = 0
    for each in wanted:
        if each.stream == EVENTS:
            words |= C["LISTEN_DROPPED"] | C["LISTEN_EVENTS"]
        elif each.is_all:
            words |= C["LISTEN_DROPPED"] | C["LISTEN_PASSED"] | C["LISTEN_CAPTURE_ALL"]
        else:
            words |= C["LISTEN_DROPPED"] | C["LISTEN_CAPTURE"]
    return words, max((each.snap_length for each in wanted), default=0)
