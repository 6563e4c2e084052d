"""Changes of what is protected: asked for over the API, or because interfaces come and go.

Owns the order of a change of an interface with its store and its rules. Hooks are firewall.interfaces's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

from firewall.address import Prefix
from firewall.commit import Commits
from firewall.datapath import Change
from firewall.errors import InvalidInput, NotFound, Problem
from firewall.following import Following, tell
from firewall.in_force import About, Manner
from firewall.reads import Reads
from firewall.settings import Interface
from firewall.store import InterfaceRequest
from firewall.view import InterfaceView


class InterfaceChanges(Commits, Reads):
    """Every method may be called from any thread."""

    def attach(self, name: str, mode: str, ingress: bool, egress: bool, force: bool = False) -> InterfaceView:
        """Protects an interface, now and after a restart. `force`: puts our XDP program in the place of another
        owner's, once."""
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
            self._consider_attaching(link, request)
            before, had = self._interfaces.held(name), self._interfaces.programs(link)
            try:
                with self._store.transaction():
                    self._save_interface(name)
                    self._store.write_interface(request, name)
                    self._audit_interface("interface.attach", name, request, force or None)
                    self._apply_interfaces(self._interfaces.protected() | {name: link.ifindex})
                    hold = partial(self._interfaces.hold_strictly, force=force)
                    tell(self._following.hold(hold, link, request))
            except BaseException:
                self._interfaces.put_back(link, had, before)
                if before is None:
                    self._kernel.uncount_interface(link.ifindex)
                    self._apply_interfaces(self._interfaces.protected())
                raise
            self._kernel.forget_displaced()
            self._interfaces.remember(name, request)
            if self._is_unconfirmed:
                self._await_confirmation()
            return self.interface(name)

    def detach(self, name: str) -> None:
        with self._changing_alone():
            held = self._interfaces.held(name)
            if held is None and self._interfaces.wanted(name) is None:
                raise NotFound(f"{name!r} is not protected", "GET /v1/interfaces lists those that are",
                               code="interface_not_found")  # fmt: skip
            self._consider_detaching(name)
            is_configured = self._interfaces.is_configured(name)
            request = InterfaceRequest(name, False, "auto", True, True) if is_configured else None
            try:
                with self._store.transaction():
                    self._save_interface(name)
                    self._store.write_interface(request, name)
                    self._audit_interface("interface.detach", name, request)
                    if held is not None:
                        self._interfaces.release(held)
                        self._following.write_hits(held)
            except BaseException:
                if held is not None:
                    self._interfaces.hold(held.link, held.request)
                raise
            self._interfaces.remember(name, request)
            if held is not None:
                self._kernel.uncount_interface(held.link.ifindex)
            self._apply_interfaces(self._interfaces.protected())
            self.interfaces()
            if self._is_unconfirmed:
                self._await_confirmation()

    def _save_interface(self, name: str) -> None:
        """Inside the transaction of a change of it: what takes it back, where it goes unless confirmed."""
        if self._is_unconfirmed:
            self._begin_pending(0, 0, 0)
            self._undo_log.save_interface(self._pending_id, name, self._interfaces.request(name))

    def _audit_interface(
        self, action: str, name: str, request: InterfaceRequest | None, force: bool | None = None
    ) -> None:
        before = self._interfaces.wanted(name)
        confirm = self._pending_id if self._is_unconfirmed else None
        attached = request is not None and request.attach
        self._audit(action, name, _request_fields(before), _request_fields(request) if attached else None,
                    force=force, confirm=confirm)  # fmt: skip

    def reload(self, about: About, manner: Manner, configured: Sequence[Interface]) -> None:
        """What the config says now, without a restart. Raises where the kernel refuses; then all is as before."""
        with self._changing_alone():
            before = self._options
            options = manner.options if self._panic is None else manner.shield.panic_options
            if options != before:
                self._apply_options(options)
            try:
                self._apply_never_drop(manner.shield.never_drop)
            except BaseException:
                if options != before:
                    self._apply_options(before)
                raise
            self._manner, self._shield = manner, manner.shield
            self._about, self._watched.heals = about, manner.heals
            self._following.reconfigure(configured)
            self.reporting.configure(manner.reports)

    def _apply_options(self, options: tuple[int, int]) -> None:
        occupancy, policy = self._ruleset.addresses.occupancy, self._policy_in_force(self._ruleset)
        self._kernel.set_options(options)
        try:
            self._kernel.apply(Change((), occupancy, occupancy, policy, policy))
        except BaseException:
            self._kernel.set_options(self._options)
            raise
        self._options = options

    def _apply_never_drop(self, wanted: tuple[Prefix, ...]) -> None:
        plan = self._ruleset.plan_never_drop(self._shield.never_drop, wanted)
        if plan is not None:
            self._perform(plan, lambda: None, set(), [])

    @cached_property
    def _following(self) -> Following:
        return Following(self._store, self._kernel, self._interfaces, self._apply_interfaces)

    def _apply_interfaces(self, protected: dict[str, int]) -> None:
        """Rules that name interfaces mean these."""
        plan = self._ruleset.plan_interfaces(protected)
        if plan is not None:
            self._reserve_for(plan)
            self._apply(plan.change)
            self._committed(plan)


def _request_fields(request: InterfaceRequest | None) -> dict[str, object] | None:
    return None if request is None else request._asdict()
