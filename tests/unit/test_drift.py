"""What others change is told, and put back where it is ours. The kernel is in memory."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager

import pytest

from firewall.datapath import Attached
from tests.unit.failing_database import fail_on
from tests.unit.host import Host, wait_for

FOREIGN = Attached(99, "other", "native", False)


@pytest.fixture
def attached(host: Host) -> Host:
    host.firewall.attach("eth0", "auto", True, True)
    return host


@pytest.fixture
def reporting(host: Host) -> Host:
    host.stop()
    host.start(service={"on_drift": "report"}, interfaces=[{"name": "eth0"}])
    return host


def seen(host: Host) -> dict[str, int]:
    return host.firewall.status().drift_detected


def healed(host: Host) -> dict[str, int]:
    return host.firewall.status().drift_healed


@pytest.mark.parametrize("hook", [0, 1])
def test_a_program_that_was_detached_is_attached_again(attached: Host, hook: int) -> None:
    before = attached.kernel.on("eth0")
    del attached.kernel.hooks["eth0", hook]
    wait_for(lambda: attached.kernel.on("eth0") == before)
    wait_for(lambda: healed(attached) == {"hook": 1})
    assert seen(attached) == {"hook": 1} and attached.firewall.not_ready() == []


def test_an_older_program_of_ours_is_replaced(attached: Host) -> None:
    attached.kernel.hooks["eth0", 0] = Attached(7, "fw_xdp_ethernet", "native", True)
    wait_for(lambda: attached.kernel.hooks["eth0", 0].program_id == 40)


def test_a_program_of_another_owner_stays_and_is_told_until_it_goes(attached: Host) -> None:
    attached.kernel.hooks["eth0", 0] = FOREIGN
    wait_for(lambda: seen(attached) == {"hook": 1})
    [reason] = attached.firewall.not_ready()
    assert "program 99" in reason and "--force" in reason
    assert attached.kernel.hooks["eth0", 0] == FOREIGN and healed(attached) == {}
    del attached.kernel.hooks["eth0", 0]
    wait_for(lambda: attached.firewall.not_ready() == [])
    assert attached.kernel.hooks["eth0", 0].is_ours


def test_a_filter_before_ours_is_told_and_left_alone(attached: Host) -> None:
    attached.kernel.first_at_egress["eth0"] = ["clsact prio 1 program 99 (other)"]
    wait_for(lambda: seen(attached) == {"order": 1})
    [reason] = attached.firewall.not_ready()
    assert "clsact prio 1 program 99" in reason
    attached.kernel.first_at_egress.clear()
    wait_for(lambda: attached.firewall.not_ready() == [])


def test_pins_and_maps_are_put_back(attached: Host) -> None:
    attached.add("a", sources="10.0.0.1")
    entries = dict(attached.kernel.entries)
    attached.kernel.lost_pins.append("/sys/fs/bpf/ebpf-fw/maps/address4")
    attached.kernel.edited.append("address4 lacks 1 entries")
    attached.kernel.entries.clear()
    wait_for(lambda: healed(attached) == {"pin": 1, "map": 1})
    assert attached.kernel.entries == entries and attached.kernel.lost_pins == []


def test_where_it_only_reports_nothing_is_put_back(reporting: Host) -> None:
    reporting.kernel.lost_pins.append("maps/address4")
    reporting.kernel.edited.append("the control words were changed")
    del reporting.kernel.hooks["eth0", 1]
    wait_for(lambda: seen(reporting) == {"pin": 1, "map": 1, "hook": 1})
    reasons = "\n".join(reporting.firewall.not_ready())
    assert "maps/address4" in reasons and "control words" in reasons and "egress" in reasons
    assert healed(reporting) == {} and ("eth0", 1) not in reporting.kernel.hooks
    reporting.kernel.lost_pins.clear()
    reporting.kernel.edited.clear()
    reporting.firewall.attach("eth0", "auto", True, True)
    wait_for(lambda: reporting.firewall.not_ready() == [])


def test_what_cannot_be_put_back_is_tried_again(attached: Host) -> None:
    attached.kernel.refuse["attach"] = errno.EBUSY
    del attached.kernel.hooks["eth0", 0]
    wait_for(lambda: seen(attached) == {"hook": 1})
    assert attached.firewall.not_ready() != []
    attached.kernel.refuse.clear()
    wait_for(lambda: attached.firewall.not_ready() == [])


def test_a_hook_that_was_refused_at_the_start_is_asked_again(host: Host) -> None:
    host.stop()
    host.kernel.hooks["eth0", 0] = FOREIGN
    host.start(interfaces=[{"name": "eth0"}])
    assert "not attached" in host.firewall.not_ready()[0]
    del host.kernel.hooks["eth0", 0]
    wait_for(lambda: host.firewall.not_ready() == [])
    assert host.kernel.hooks["eth0", 0].is_ours


def test_a_store_that_cannot_be_written_is_told_until_it_can(attached: Host) -> None:
    with fail_on(attached.firewall._store, "COMMIT"):
        with pytest.raises(Exception, match="failed"):
            attached.add("a", sources="10.0.0.1")
        assert "cannot be changed" in attached.firewall.not_ready()[0]
    wait_for(lambda: attached.firewall.not_ready() == [])


def test_a_full_disk_does_not_keep_an_interface_without_filter(host: Host) -> None:
    host.stop()
    host.start(interfaces=[{"name": "eth*"}])
    with fail_on(host.firewall._store, "INSERT INTO interface_hits"):
        host.kernel.remove_link("eth0")
        host.kernel.add_link("eth7", 77)
        wait_for(lambda: host.kernel.on("eth7") != {})
        wait_for(lambda: host.kernel.on("eth0") == {})


class CountedLock:
    """The lock, and how often it was taken."""

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self.times = 0

    def __enter__(self) -> None:
        self._lock.__enter__()
        self.times += 1

    def __exit__(self, *error: object) -> None:
        self._lock.__exit__(*error)  # type: ignore[arg-type]


def test_every_look_takes_the_lock_anew_so_that_changes_come_between(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a real kernel a look takes milliseconds, and a change that waits for all of them is late."""
    lock = CountedLock(host.firewall._lock)
    looked: dict[str, int] = {}
    for name in ("look_at_some_hooks", "look_at_pins", "look_at_maps"):

        def look(name: str = name) -> None:
            looked[name] = lock.times

        monkeypatch.setattr(host.firewall._watched, name, look)
    monkeypatch.setattr(host.firewall, "_lock", lock)
    wait_for(lambda: len(looked) == 3)
    assert len(set(looked.values())) == 3
