"""Changes of what is protected: asked for over the API, or because interfaces come and go.

Owns the order of a change of an interface with its store and its rules. Hooks are firewall.interfaces's.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from firewall.commit import Commits
from firewall.datapath import Link
from firewall.errors import InvalidInput, NotFound, Problem
from firewall.interfaces import Held
from firewall.reads import Reads
from firewall.store import InterfaceRequest, InterfaceTotal
from firewall.view import InterfaceView

log = structlog.get_logger()


class InterfaceChanges(Commits, Reads):
    """Every method may be called from any thread."""

    def attach(self, name: str, mode: str, ingress: bool, egress: bool) -> InterfaceView:
        """Protects an interface, now and after a restart."""
        if not ingress and not egress:
            raise InvalidInput(
                f"neither hook of {name} is asked for",
                "set ingress or egress to true, or DELETE the interface",
                (Problem("/ingress", "ingress and egress cannot both be false"),),
                "no_hook",
            )
        with self._changing_alone():
            link = self._interfaces.link(name)
            request = InterfaceRequest(name, True, mode, ingress, egress)
            before, had = self._interfaces.held(name), self._interfaces.programs(link)
            try:
                with self._store.transaction():
                    self._store.write_interface(request, name)
                    self._apply_interfaces(self._interfaces.protected() | {name: link.ifindex})
                    self._hold(self._interfaces.hold_strictly, link, request)
            except BaseException:
                self._interfaces.put_back(link, had, before)
                if before is None:
                    self._kernel.uncount_interface(link.ifindex)
                    self._apply_interfaces(self._interfaces.protected())
                raise
            self._interfaces.remember(name, request)
            return self.interface(name)

    def detach(self, name: str) -> None:
        with self._changing_alone():
            held = self._interfaces.held(name)
            if held is None and self._interfaces.wanted(name) is None:
                raise NotFound(f"{name!r} is not protected", "GET /v1/interfaces lists those that are",
                               code="interface_not_found")  # fmt: skip
            is_configured = self._interfaces.is_configured(name)
            request = InterfaceRequest(name, False, "auto", True, True) if is_configured else None
            try:
                with self._store.transaction():
                    self._store.write_interface(request, name)
                    if held is not None:
                        self._interfaces.release(held)
                        self._save_interface_hits(held)
            except BaseException:
                if held is not None:
                    self._interfaces.hold(held.link, held.request)
                raise
            self._interfaces.remember(name, request)
            if held is not None:
                self._kernel.uncount_interface(held.link.ifindex)
            self._apply_interfaces(self._interfaces.protected())
            self.interfaces()

    def _follow_interfaces(self) -> None:
        """Lets go of interfaces that went away, attaches those that came."""
        gone, come = self._interfaces.gone_and_come()
        if not gone and not come:
            return
        for held in gone:
            with self._store.transaction():
                self._save_interface_hits(held)
            self._interfaces.leave(held)
            self._kernel.uncount_interface(held.link.ifindex)
            log.warning("interface gone", interface=held.link.name)
        self._apply_interfaces(self._interfaces.protected() | {link.name: link.ifindex for link, _ in come})
        for link, request in come:
            held = self._hold(self._interfaces.hold, link, request)
            log.info("interface attached", interface=link.name, errors=list(held.errors.values()))

    def _hold(
        self, hold: Callable[[Link, InterfaceRequest], Held], link: Link, request: InterfaceRequest
    ) -> Held:
        self._kernel.count_interface(link.ifindex)
        return hold(link, request)

    def _save_interface_hits(self, held: Held) -> None:
        totals = self._kernel.interface_hits().get(held.link.ifindex, [])
        self._store.add_interface_hits(InterfaceTotal(held.link.name, *each) for each in totals)

    def _apply_interfaces(self, protected: dict[str, int]) -> None:
        """Rules that name interfaces mean these."""
        plan = self._ruleset.plan_interfaces(protected)
        if plan is not None:
            self._reserve_for(plan)
            self._kernel.apply(plan.change)
            self._ruleset.commit(plan)
