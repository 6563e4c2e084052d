"""Reports on their way from the kernel to listeners: who gets what, and who loses what."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from firewall.drop_log import DropLog
from firewall.errors import KernelRefused
from firewall.layout import C
from firewall.listener import Listener, Taken, Wanted
from firewall.report import CAPTURE, Limit, NotSent, Report, decode
from firewall.reporting import MOST_LISTENERS, Reporting, ReportLimits, listening_words
from tests.memory_kernel import MemoryReports
from tests.records import record
from tests.unit.host import wait_for

DROPS, PASSES = C["LISTEN_DROPPED"], C["LISTEN_PASSED"]


def nothing() -> None:
    pass


@pytest.fixture
def source() -> MemoryReports:
    return MemoryReports()


@pytest.fixture
def reporting(source: MemoryReports) -> Iterator[Reporting]:
    made = Reporting(lambda handles: {each: f"rule-{each}" for each in handles})
    made.start(source)
    yield made
    made.close()


def heard(listener: Listener, count: int) -> list[Report]:
    """Waits for so many reports."""
    found: list[Report] = []
    wait_for(lambda: (found.extend(listener.take(100).reports), len(found) >= count)[1])
    return found


def test_the_kernel_is_told_that_somebody_listens_and_that_nobody_does(
    source: MemoryReports, reporting: Reporting
) -> None:
    assert source.listening == 0
    events = reporting.listen(Wanted(), nothing)
    assert (source.listening, source.snap_length) == (DROPS | C["LISTEN_EVENTS"], 0)
    capture = reporting.listen(Wanted(snap_length=96), nothing)
    assert source.listening == DROPS | C["LISTEN_EVENTS"] | C["LISTEN_CAPTURE"]
    assert source.snap_length == 96
    reporting.leave(events)
    assert source.listening == DROPS | C["LISTEN_CAPTURE"]
    reporting.leave(capture)
    assert source.listening == 0


def test_what_all_want_together_is_asked_for() -> None:
    assert listening_words([]) == (0, 0)
    all_packets = Wanted(snap_length=64, is_all=True)
    assert listening_words([all_packets, Wanted(snap_length=1500)]) == (
        DROPS | PASSES | C["LISTEN_CAPTURE_ALL"] | C["LISTEN_CAPTURE"], 1500,
    )  # fmt: skip


def test_a_report_reaches_every_listener_that_wants_it(source: MemoryReports, reporting: Reporting) -> None:
    everything = reporting.listen(Wanted(), nothing)
    egress = reporting.listen(Wanted(hook="egress"), nothing)
    source.put(record(handle=3), record(handle=4, hook="egress"))
    assert [each.rule for each in heard(everything, 2)] == ["rule-3", "rule-4"]
    assert [each.rule for each in heard(egress, 1)] == ["rule-4"]
    assert reporting.totals()["events"].read == 2


def test_a_slow_listener_loses_and_the_other_does_not(source: MemoryReports, reporting: Reporting) -> None:
    slow = reporting.listen(Wanted(), nothing, room=10)
    quick = reporting.listen(Wanted(), nothing)
    source.put(*(record(handle=1) for _ in range(50)))
    assert len(heard(quick, 50)) == 50
    wait_for(lambda: reporting.totals()["events"].lost_by_listeners)
    taken = slow.take(100)
    assert (len(taken.reports), taken.lost) == (10, 40)
    assert slow.take(100) == Taken([], 0, 0, False)
    assert reporting.totals()["events"].lost_by_listeners == 40


def test_what_the_kernel_did_not_send_is_told_to_the_listeners_of_that_stream(
    source: MemoryReports, reporting: Reporting
) -> None:
    source.missing = [NotSent(1000, 5), NotSent(0, 0)]  # before anybody listened
    events = reporting.listen(Wanted(), nothing)
    capture = reporting.listen(Wanted(snap_length=1), nothing)
    source.missing = [NotSent(1100, 7), NotSent(30, 0)]
    source.wake()
    taken: list[Taken] = []
    wait_for(lambda: (taken.append(events.take(1)), taken[-1].suppressed)[1])
    assert (taken[-1].suppressed, taken[-1].lost) == (100, 2)
    wait_for(lambda: (taken.append(capture.take(1)), taken[-1].suppressed)[1])
    assert (taken[-1].suppressed, taken[-1].lost) == (30, 0)
    assert reporting.totals()["events"].suppressed == 1100


def test_a_listener_is_not_told_of_what_another_missed_before_it_came(
    source: MemoryReports, reporting: Reporting
) -> None:
    first = reporting.listen(Wanted(), nothing)
    source.missing = [NotSent(50, 5), NotSent(0, 0)]
    second = reporting.listen(Wanted(), nothing)
    source.missing = [NotSent(80, 6), NotSent(0, 0)]
    counts = {first: [0, 0], second: [0, 0]}

    def told() -> bool:
        for listener, (suppressed, lost) in counts.items():
            taken = listener.take(1)
            counts[listener] = [suppressed + taken.suppressed, lost + taken.lost]
        return all(suppressed >= 30 for suppressed, _ in counts.values())

    wait_for(told)
    assert (counts[first], counts[second]) == ([80, 6], [30, 1])


def test_what_came_while_nobody_listened_is_told_to_nobody(
    source: MemoryReports, reporting: Reporting
) -> None:
    source.put(record(handle=1))
    listener = reporting.listen(Wanted(), nothing)
    source.put(record(handle=2))
    assert [each.rule for each in heard(listener, 1)] == ["rule-2"]


def test_the_end_is_told_after_the_last_report(source: MemoryReports, reporting: Reporting) -> None:
    told = threading.Event()
    listener = reporting.listen(Wanted(), told.set)
    source.put(record(handle=1))
    wait_for(told.is_set)
    reporting.end_all()
    assert not listener.take(0).is_over
    taken = listener.take(10)
    assert (len(taken.reports), taken.is_over) == (1, True)
    assert source.listening == 0
    with pytest.raises(KernelRefused) as refused:
        reporting.listen(Wanted(), nothing)
    assert refused.value.code == "no_reports"


def test_there_is_a_most_of_listeners(reporting: Reporting) -> None:
    for _ in range(MOST_LISTENERS):
        last = reporting.listen(Wanted(), nothing)
    with pytest.raises(KernelRefused) as refused:
        reporting.listen(Wanted(), nothing)
    assert refused.value.code == "too_many_listeners"
    reporting.leave(last)
    reporting.listen(Wanted(), nothing)


def test_limits_reach_the_kernel_at_once(source: MemoryReports, reporting: Reporting) -> None:
    assert source.limits == (Limit(1000, 1000), Limit(5000, 5000))
    reporting.configure(ReportLimits(Limit(5, 6), Limit(7, 8)))
    assert source.limits == (Limit(5, 6), Limit(7, 8))


def test_what_another_wrote_into_the_word_is_mended(source: MemoryReports, reporting: Reporting) -> None:
    listener = reporting.listen(Wanted(snap_length=9), nothing)
    wanted = source.listening
    source.listening = 0
    source.put(record(streams=1 << CAPTURE))
    heard(listener, 1)
    wait_for(lambda: source.listening == wanted)


def test_a_failure_of_the_source_does_not_end_the_reader(source: MemoryReports, reporting: Reporting) -> None:
    listener = reporting.listen(Wanted(), nothing)
    source.put(b"too short")
    wait_for(lambda: not source.records)
    source.put(record(handle=1))
    assert len(heard(listener, 1)) == 1


# -- the log


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.lines.append((event, fields))


def reports(count: int) -> Sequence[Report]:
    return [decode(record(handle=1), 0, lambda _: "eth0", {1: "web"}) for _ in range(count)]


def test_the_log_gets_so_many_lines_a_second_and_the_number_of_the_rest(
    monkeypatch: pytest.MonkeyPatch, reporting: Reporting
) -> None:
    written, now = Log(), [0.0]
    monkeypatch.setattr("firewall.drop_log.log", written)
    reporting.configure(ReportLimits(log_drops=True, log_rate=3))
    drops = DropLog(reporting, lambda: now[0])
    drops.write(Taken(reports(2), 0, 0, False))
    drops.write(Taken(reports(5), 10, 100, False))
    assert [event for event, _ in written.lines] == ["dropped"] * 3
    fields = written.lines[0][1]
    assert (fields["rule"], fields["source"], fields["reason"]) == ("web", "10.0.0.2", "rule")
    now[0] = 1.0
    drops.write(Taken(reports(1), 0, 0, False))
    assert written.lines[3:4] == [("dropped more", {"suppressed": 114})]
    assert [event for event, _ in written.lines[4:]] == ["dropped"]


def test_the_log_is_a_listener_only_while_the_settings_say_so(
    monkeypatch: pytest.MonkeyPatch, source: MemoryReports, reporting: Reporting
) -> None:
    written = Log()
    monkeypatch.setattr("firewall.drop_log.log", written)
    drops = DropLog(reporting)
    drops.follow()
    assert source.listening == 0
    reporting.configure(ReportLimits(log_drops=True))
    drops.follow()
    assert source.listening == DROPS | C["LISTEN_EVENTS"]
    source.put(record(handle=1))
    wait_for(lambda: written.lines)
    reporting.configure(ReportLimits())
    drops.follow()
    assert source.listening == 0
    drops.close()
