"""Runs inside the machine, with a netdevsim device: does the filter go into hardware and out again?

`python -m tests.vm.guest_offload`, one report line a check (guest.py). They build on each other, in order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from firewall.enforcer import Enforcer
from firewall.errors import Conflict, FirewallError, TableFull
from tests.vm.guest import refusal, run, run_checks
from tests.vm.guest_programs import PIN_ROOT, add, build_enforcer
from tests.vm.netdevsim import MAX_KEYS

DEVICE = "eni1np1"
REFUSE = Path("/sys/kernel/debug/netdevsim/netdevsim1/bpf_bind_accept")
DIRECTORY = "offload"


class Checks:
    def __init__(self) -> None:
        self._enforcer: Enforcer | None = None

    @property
    def enforcer(self) -> Enforcer:
        if self._enforcer is None:
            self._enforcer = build_enforcer(DIRECTORY)
        return self._enforcer

    def attaches(self) -> dict[str, Any]:
        add(self.enforcer, id="before", sources=["203.0.113.7"])
        view = self.enforcer.attach(DEVICE, "offload", True, False)
        assert view.actual_mode == "offload", view
        shown = run(f"ip -d link show dev {DEVICE}")
        assert "xdpoffload" in shown, shown
        maps = device_maps()
        assert {"offload4", "offload6", "offload_state"} <= set(maps), maps
        assert not self.enforcer.not_ready(), self.enforcer.not_ready()
        return {"maps": {name: each["max_entries"] for name, each in maps.items()}}

    def holds_address_rules(self) -> dict[str, Any]:
        """The one from before attaching, and those that come and go afterwards."""
        assert entries("offload4") == 1, entries("offload4")
        add(self.enforcer, id="after4", destinations=["198.51.100.0/24"])
        add(self.enforcer, id="after6", sources=["2001:db8::/32"])
        add(self.enforcer, id="egress", sources=["192.0.2.9"], direction="egress")
        held = entries("offload4"), entries("offload6")
        assert held == (2, 1), held
        for rule in ("before", "after4", "after6", "egress"):
            self.enforcer.delete(rule)
        held = entries("offload4"), entries("offload6")
        assert held == (0, 0), held
        return {}

    def refuses_a_rule_it_cannot_judge(self) -> dict[str, Any]:
        error = refusal(Conflict, lambda: add(self.enforcer, id="ports", destination_ports=["22"]))
        assert error.code == "offload_unsupported" and error.hint, error
        self._nothing_changed()
        return {"error": str(error)}

    def refuses_more_than_fits(self) -> dict[str, Any]:
        sources = [f"10.0.{n}.1" for n in range(MAX_KEYS + 1)]
        error = refusal(TableFull, lambda: add(self.enforcer, id="many", sources=sources))
        assert error.table == "offload4" and error.capacity == MAX_KEYS, error
        self._nothing_changed()
        return {"error": str(error)}

    def _nothing_changed(self) -> None:
        assert self.enforcer.count() == 0, "a rule that was refused is stored"
        assert entries("offload4") == 0, "a rule that was refused is in the device"

    def takes_as_many_as_fit(self) -> dict[str, Any]:
        add(self.enforcer, id="full", sources=[f"10.0.{n}.1" for n in range(MAX_KEYS)])
        assert entries("offload4") == MAX_KEYS, entries("offload4")
        self.enforcer.delete("full")
        assert entries("offload4") == 0, entries("offload4")
        return {}

    def detaching_leaves_nothing(self) -> dict[str, Any]:
        self.enforcer.detach(DEVICE)
        shown = run(f"ip -d link show dev {DEVICE}")
        assert "xdp" not in shown, shown
        assert device_maps() == {}, device_maps()
        left = list((PIN_ROOT / DIRECTORY / "offload").rglob("*"))
        assert not left, left
        return {}

    def a_device_that_refuses_is_an_error(self) -> dict[str, Any]:
        """And nothing stays behind."""
        REFUSE.write_text("N\n", encoding="ascii")
        try:
            error = refusal(FirewallError, lambda: self.enforcer.attach(DEVICE, "offload", True, False))
        finally:
            REFUSE.write_text("Y\n", encoding="ascii")
        assert device_maps() == {}, device_maps()
        assert all(each.name != DEVICE for each in self.enforcer.interfaces()), self.enforcer.interfaces()
        return {"error": str(error)}

    def works_again_afterwards(self) -> dict[str, Any]:
        view = self.enforcer.attach(DEVICE, "offload", True, False)
        assert view.actual_mode == "offload", view
        self.enforcer.stop()
        assert device_maps() == {}, device_maps()
        assert "xdp" not in run(f"ip -d link show dev {DEVICE}")
        return {}


def device_maps() -> dict[str, dict[str, Any]]:
    """Maps that live in the device, by name."""
    maps = json.loads(run("bpftool -j map show"))
    return {each["name"]: each for each in maps if each.get("dev", {}).get("ifname") == DEVICE}


def entries(name: str) -> int:
    """How many a map of the device holds, read from the device."""
    return len(json.loads(run(f"bpftool -j map dump id {device_maps()[name]['id']}")))


def main() -> None:
    checks = Checks()
    names = [name for name in vars(Checks) if not name.startswith("_") and name != "enforcer"]
    run_checks({name: getattr(checks, name) for name in names})


if __name__ == "__main__":
    main()
