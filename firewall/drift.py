"""Notices that the host is not as the service left it, tells it, and puts back what is ours.

Owns what is known to be wrong at this moment, by place, and how often that happened. It never touches a program or
a filter of another owner: where one is in the way, that is told until somebody takes it away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from errno import ENODEV
from functools import partial

import structlog

from firewall.datapath import Expected, Happened, Image, Kernel
from firewall.errors import FirewallError, KernelRefused
from firewall.interfaces import EGRESS, INGRESS, Held, Interfaces
from firewall.layout import HOOKS

log = structlog.get_logger()

KINDS = ("hook", "order", "pin", "map", "store")
_HOOKS_A_LOOK = 16
_ORDER = 2  # beside the two hooks, the third thing to look at on an interface


@dataclass(frozen=True)
class Fault:
    """`heal` None: only a person can."""

    kind: str
    detail: str
    heal: Callable[[], None] | None = None


class DriftWatch:
    """Used under the enforcer's lock. `detected`, `healed`: how often, by kind."""

    def __init__(
        self,
        kernel: Kernel,
        interfaces: Interfaces,
        expected: Callable[[], Expected],
        image: Callable[[], Image],
    ) -> None:
        self._kernel = kernel
        self._interfaces = interfaces
        self._expected = expected
        self._image = image
        self._faults: dict[Hashable, Fault] = {}
        self._descriptions: dict[int, str] = {}
        self._next_hook = 0
        self.heals = True
        self.detected: Counter[str] = Counter()
        self.healed: Counter[str] = Counter()

    def details(self) -> list[str]:
        """What is wrong: hooks as they are now, all else as it was at the last look."""
        places = [(held, hook) for held in self._interfaces.all_held() for hook in self._asked(held)]
        hooks = [fault.detail for place in places if (fault := self._hook_fault(*place))]
        return hooks + [
            fault.detail for fault in self._faults.values() if fault.kind not in ("hook", "store")
        ]

    def store_fault(self) -> list[str]:
        """Why the rules cannot be changed, where they cannot."""
        return [fault.detail for fault in self._faults.values() if fault.kind == "store"]

    # -- looking

    def look_at_hooks(self, happened: Happened) -> None:
        """Of the interfaces that something happened to."""
        self._forget_the_gone()
        for held in self._interfaces.all_held():
            if happened.concerns(held.link.ifindex):
                self._look_at(held)

    def look_at_some_hooks(self) -> None:
        """Interfaces that no message told of, by turns."""
        held = self._interfaces.all_held()
        self._forget_the_gone()
        for number in range(min(_HOOKS_A_LOOK, len(held))):
            self._look_at(held[(self._next_hook + number) % len(held)])
        self._next_hook += _HOOKS_A_LOOK

    def look_at_pins(self) -> None:
        self._note("pin", self._pin_fault())

    def look_at_maps(self) -> None:
        """A part of them at each look."""
        self._note("map", self._map_fault())

    def note_store(self, problem: str | None) -> None:
        """Rules cannot be made durable, or can be again."""
        detail = f"the rules cannot be changed: {problem}"
        self._note("store", None if problem is None else Fault("store", detail))

    @property
    def store_failed(self) -> bool:
        return "store" in self._faults

    def _look_at(self, held: Held) -> None:
        for hook in (INGRESS, EGRESS):
            place = (held.link.ifindex, hook)
            self._note(place, self._hook_fault(held, hook) if hook in self._asked(held) else None)
        self._note((held.link.ifindex, _ORDER), self._order_fault(held))

    def _forget_the_gone(self) -> None:
        present = {held.link.ifindex for held in self._interfaces.all_held()}
        self._faults = {
            place: fault
            for place, fault in self._faults.items()
            if not isinstance(place, tuple) or place[0] in present
        }

    @staticmethod
    def _asked(held: Held) -> list[int]:
        """Hooks that we hold. Those that refused us are told elsewhere and asked again (following.py)."""
        asked = ((INGRESS, held.request.ingress), (EGRESS, held.request.egress))
        return [hook for hook, wanted in asked if wanted and hook not in held.errors]

    def _hook_fault(self, held: Held, hook: int) -> Fault | None:
        place = f"{held.link.name}: {HOOKS[hook]} does not run our program any more"
        try:
            present = self._kernel.attached(held.link, hook)
        except KernelRefused as error:
            # The interface went away a moment ago: following.py sees to that.
            return None if error.errno == ENODEV else Fault("hook", f"{place}: {error.detail}")
        if present is None:
            return Fault(
                "hook", f"{place}: it was detached", partial(self._interfaces.attach_again, held, hook)
            )
        if present.program_id == self._kernel.expected_program(held.link, hook):
            return None
        what = f"{place}: {self._described(present.program_id)} is there"
        if present.is_ours:
            return Fault("hook", what, partial(self._interfaces.attach_again, held, hook))
        return Fault("hook", f"{what}; stop its owner, or {_way_out(held.link.name, hook)}")

    def _described(self, program_id: int) -> str:
        """Finding an owner takes a while, so it is done once."""
        if program_id not in self._descriptions:
            self._descriptions = {program_id: self._kernel.describe(program_id)}
        return self._descriptions[program_id]

    def _order_fault(self, held: Held) -> Fault | None:
        if EGRESS not in self._asked(held):
            return None
        try:
            first = self._kernel.before_ours(held.link)
        except KernelRefused as error:
            if error.errno == ENODEV:
                return None
            raise
        where = f"{held.link.name}: packets at egress may not reach our filter: before it"
        return Fault("order", f"{where} is {', '.join(first)}") if first else None

    def _pin_fault(self) -> Fault | None:
        missing = self._kernel.missing_pins()
        if not missing:
            return None
        detail = f"{len(missing)} pins are gone or lead elsewhere: {', '.join(missing[:3])}"
        return Fault("pin", detail, self._kernel.pin_again)

    def _map_fault(self) -> Fault | None:
        found = self._kernel.audit(self._expected())
        detail = f"somebody else wrote into our maps: {'; '.join(found)}"
        return Fault("map", detail, self._write_maps) if found else None

    def _write_maps(self) -> None:
        self._kernel.restore()
        self._kernel.reconcile(self._image())

    # -- telling and healing

    def _note(self, place: Hashable, fault: Fault | None) -> None:
        before = self._faults.pop(place, None)
        if fault is None:
            if before is not None:
                log.info("drift is over", kind=before.kind, detail=before.detail)
            return
        self._faults[place] = fault
        if before is None:
            self.detected[fault.kind] += 1
        is_news = before is None or before.detail != fault.detail
        if is_news:
            log.warning("drift", kind=fault.kind, detail=fault.detail)
        if self.heals and fault.heal is not None:
            self._heal(place, fault, fault.heal, is_news)

    def _heal(self, place: Hashable, fault: Fault, heal: Callable[[], None], is_news: bool) -> None:
        try:
            heal()
        except FirewallError as error:
            if is_news:
                log.error("drift could not be healed", kind=fault.kind, detail=fault.detail, error=str(error))
            return
        self._faults.pop(place, None)
        self.healed[fault.kind] += 1
        log.info("drift healed", kind=fault.kind, detail=fault.detail)


def _way_out(interface: str, hook: int) -> str:
    """Only an XDP program of another owner is ever replaced."""
    if hook == EGRESS:
        return f"remove it with `tc filter del dev {interface} egress pref 1`"
    return f"replace it with `ebpf-fw interface attach {interface} --force`"
