"""The protected interfaces: what the config and the API ask for, and what is attached.

Owns matching names with what is asked, choosing a mode, and remembering why a hook is not as asked. Writes
nothing to the store; the enforcer does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from firewall.datapath import Attached, Kernel, Link
from firewall.errors import ERRNO_HINTS, FirewallError, InvalidInput, KernelRefused, NotFound, Problem
from firewall.layout import HOOKS, C
from firewall.rule import Rule
from firewall.settings import Interface
from firewall.store import InterfaceRequest
from firewall.view import HookView, InterfaceView

INGRESS, EGRESS = C["HOOK_INGRESS"], C["HOOK_EGRESS"]
_GLOB = re.compile(r"[*?\[]")


@dataclass
class Held:
    """An interface that we attached to, or tried to. `errors` by hook; times by a clock that only goes forward."""

    link: Link
    request: InterfaceRequest
    native_unavailable: str | None = None
    errors: dict[int, str] = field(default_factory=dict)
    asked_at: float = 0.0
    ask_again_at: float = 0.0


class Interfaces:
    """Not thread-safe: used under the enforcer's lock."""

    def __init__(
        self, configured: Sequence[Interface], requests: Mapping[str, InterfaceRequest], kernel: Kernel
    ) -> None:
        self._configured = configured
        self._requests = dict(requests)
        self._kernel = kernel
        self._held: dict[str, Held] = {}

    def wanted(self, name: str) -> InterfaceRequest | None:
        """What is asked for an interface: by the API, else by the first entry of the config that fits."""
        request = self._requests.get(name)
        if request is not None:
            return request if request.attach else None
        for entry in self._configured:
            if fnmatchcase(name, entry.name):
                return InterfaceRequest(name, True, entry.mode, entry.ingress, entry.egress)
        return None

    def request(self, name: str) -> InterfaceRequest | None:
        """What the API asked for an interface."""
        return self._requests.get(name)

    def is_configured(self, name: str) -> bool:
        return any(fnmatchcase(name, entry.name) for entry in self._configured)

    def remember(self, name: str, request: InterfaceRequest | None) -> None:
        if request is None:
            self._requests.pop(name, None)
        else:
            self._requests[name] = request

    def reconfigure(self, configured: Sequence[Interface]) -> tuple[list[Held], list[Held]]:
        """With another list in the config: what is held and asked for in another way now (as it is asked for), and
        what is held and not asked for any more."""
        self._configured = configured
        changed, unwanted = [], []
        for held in self._held.values():
            request = self.wanted(held.link.name)
            if request is None:
                unwanted.append(held)
            elif request != held.request:
                changed.append(Held(held.link, request))
        return changed, unwanted

    def protected(self) -> dict[str, int]:
        """ifindex by name."""
        return {name: held.link.ifindex for name, held in self._held.items()}

    def names(self) -> set[str]:
        """Of interfaces that are there, protected or not, and of those that are asked for by name."""
        names = {link.name for link in self._kernel.links()}
        names |= {entry.name for entry in self._configured if not _GLOB.search(entry.name)}
        return names | {name for name, request in self._requests.items() if request.attach}

    def link(self, name: str) -> Link:
        links = self._kernel.links()
        for link in links:
            if link.name == name:
                return link
        known = ", ".join(link.name for link in links)
        raise NotFound(
            f"there is no interface {name!r}", f"this host has {known}", code="interface_not_found"
        )

    # -- attaching

    def gone_and_come(self) -> tuple[list[Held], list[tuple[Link, InterfaceRequest]]]:
        """What is held but no longer there (as it was), and what is there and wanted but not held."""
        links = {link.name: link for link in self._kernel.links()}
        gone = [
            held
            for name, held in self._held.items()
            if name not in links or links[name].ifindex != held.link.ifindex
        ]
        left = self._held.keys() - {held.link.name for held in gone}
        come = [
            (link, request)
            for name, link in links.items()
            if name not in left and (request := self.wanted(name)) is not None
        ]
        return gone, come

    def leave(self, held: Held) -> None:
        """Forgets an interface that went away. If it only has another name now, which nobody asked to protect,
        our programs go."""
        self._held.pop(held.link.name, None)
        for link in self._kernel.links():
            if link.ifindex == held.link.ifindex and self.wanted(link.name) is None:
                for hook in (INGRESS, EGRESS):
                    self._kernel.detach(link, hook)

    def all_held(self) -> list[Held]:
        return list(self._held.values())

    def held(self, name: str) -> Held | None:
        return self._held.get(name)

    def hold(self, link: Link, request: InterfaceRequest) -> Held:
        """Attaches what is asked and detaches what is not; a refusal is kept in `errors`."""
        held = Held(link, request)
        self._held[link.name] = held
        for hook, asked in ((INGRESS, request.ingress), (EGRESS, request.egress)):
            try:
                if asked:
                    self._attach(held, hook, keep_generic=True)
                else:
                    self._kernel.detach(link, hook)
            except FirewallError as error:
                held.errors[hook] = str(error)
        return held

    def hold_strictly(self, link: Link, request: InterfaceRequest, force: bool = False) -> Held:
        """As hold(), but a refusal of a hook is raised; put_back() undoes what was done until then. `force`: in the
        place of another owner's XDP program."""
        held = Held(link, request)
        for hook, asked in ((INGRESS, request.ingress), (EGRESS, request.egress)):
            if asked:
                self._attach(held, hook, keep_generic=False, force=force)
            else:
                self._kernel.detach(link, hook)
        self._held[link.name] = held
        return held

    def attach_again(self, held: Held, hook: int) -> None:
        """After somebody took our program away. Raises where it is refused."""
        self._attach(held, hook, keep_generic=True)

    def programs(self, link: Link) -> dict[int, Attached | None]:
        return {hook: self._kernel.attached(link, hook) for hook in (INGRESS, EGRESS)}

    def put_back(self, link: Link, had: Mapping[int, Attached | None], before: Held | None) -> None:
        """The programs that an interface had, and how it was held."""
        for hook, present in had.items():
            is_ours = present is not None and present.is_ours
            now = self._kernel.attached(link, hook)
            if present is not None and not is_ours and hook == INGRESS:
                self._kernel.give_back(link)
            elif not is_ours and now is not None and now.is_ours:
                self._kernel.detach(link, hook)
            elif is_ours and present is not None and (now is None or now.mode != present.mode):
                self._kernel.attach(link, hook, present.mode)
        if before is None:
            self._held.pop(link.name, None)
        else:
            self._held[link.name] = before

    def _attach(self, held: Held, hook: int, keep_generic: bool, force: bool = False) -> None:
        link, mode = held.link, held.request.mode
        if hook == EGRESS:
            self._kernel.attach(link, hook, "clsact")
        elif mode != "auto":
            self._kernel.attach(link, hook, mode, force)
        else:
            held.native_unavailable = self._attach_best(link, keep_generic, force)

    def _attach_best(self, link: Link, keep_generic: bool, force: bool) -> str | None:
        """Native, else generic; answers why not native. `keep_generic`: where it is generic already, do not try
        native, which would leave the hook empty for a moment."""
        present = self._kernel.attached(link, INGRESS)
        if keep_generic and present is not None and present.is_ours and present.mode == "generic":
            self._kernel.attach(link, INGRESS, "generic")
            return "it was in generic mode when the service started; attach it again to try native mode"
        try:
            self._kernel.attach(link, INGRESS, "native", force)
        except KernelRefused as refusal:
            self._kernel.attach(link, INGRESS, "generic", force)
            hint = refusal.hint or ERRNO_HINTS.get(refusal.errno, "")
            return f"{refusal.detail}; {hint}" if hint else refusal.detail
        return None

    def release(self, held: Held) -> None:
        """Detaches both hooks, the second also where the first says no."""
        with ExitStack() as leaving:
            for hook in (EGRESS, INGRESS):
                leaving.callback(self._kernel.detach, held.link, hook)
        self._held.pop(held.link.name, None)

    # -- telling

    def views(self) -> list[InterfaceView]:
        links = {link.name: link for link in self._kernel.links()}
        names = {entry.name for entry in self._configured if not _GLOB.search(entry.name)}
        names |= {name for name, request in self._requests.items() if request.attach} | self._held.keys()
        return [self._view(name, links.get(name)) for name in sorted(names) if self.wanted(name)]

    def _view(self, name: str, link: Link | None) -> InterfaceView:
        request = self.wanted(name) or self._held[name].request
        held = self._held.get(name)
        hooks = tuple(self._hook_view(hook, link, held) for hook in (INGRESS, EGRESS))
        return InterfaceView(
            name=name,
            ifindex=link.ifindex if link else None,
            present=link is not None,
            mode=request.mode,
            ingress=request.ingress,
            egress=request.egress,
            actual_mode=hooks[INGRESS].mode,
            native_unavailable=held.native_unavailable if held else None,
            hooks=hooks,
        )

    def _hook_view(self, hook: int, link: Link | None, held: Held | None) -> HookView:
        present = self._kernel.attached(link, hook) if link else None
        error = held.errors.get(hook) if held else None
        if present is None or not present.is_ours:
            return HookView(HOOKS[hook], False, error=error)
        return HookView(HOOKS[hook], True, present.mode, present.program_id, present.name, error)

    def faults(self) -> list[str]:
        """Where an interface that is present refused us."""
        faults = []
        for name, held in self._held.items():
            faults += [
                f"{name}: {HOOKS[hook]} is not attached: {error}" for hook, error in held.errors.items()
            ]
        return faults

    def check_names(self, rule: Rule, also: Collection[str] = ()) -> None:
        """Raises InvalidInput where a rule names an interface that this host does not have. Globs may wait for
        interfaces to come, and so may names that the config or the API ask to protect, and those in `also`."""
        unknown = [
            (index, name)
            for index, name in enumerate(rule.interfaces)
            if not _GLOB.search(name) and self.wanted(name) is None and name not in also
        ]
        if not unknown:
            return
        known = {link.name for link in self._kernel.links()}
        problems = [
            Problem(f"/interfaces/{i}", f"there is no interface {name!r}")
            for i, name in unknown
            if name not in known
        ]
        if problems:
            raise InvalidInput(
                problems[0].detail,
                f"this host has {', '.join(sorted(known))}; a glob may wait for an interface to come",
                tuple(problems),
                "unknown_interface",
            )
