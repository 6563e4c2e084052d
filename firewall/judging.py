"""What the filters in force would do with a packet, and which rules have to do with it.

Owns the question's way: the loaded programs judge (firewall.datapath, Kernel.judge), the rules in force are matched
beside, and both must name the same winner. Counts nothing and changes nothing. A question waits for the lock, so rules
and maps are those of one moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import structlog

from firewall.datapath import Answer, Question
from firewall.departing import Departing
from firewall.described import Description, frame_of
from firewall.errors import InvalidInput, NotFound, Problem
from firewall.layout import HOOKS, REASONS, VERDICTS
from firewall.matching import MatchingRule, matching_rules
from firewall.packet import Packet
from firewall.rule import Rule
from firewall.view import JudgementView, MatchView, RuleQuery

log = structlog.get_logger()

MOST_MATCHES = 100  # told of one packet
_PASS = VERDICTS.index("pass")
_AFTER_RULES = ("rule", "default", "never_drop", "essential", "panic")


class Place(NamedTuple):
    """Where a packet is judged. `attached`: packets there are judged now; `mode`: of the program there."""

    hook: int
    interface: str
    ifindex: int
    has_ethernet: bool
    attached: bool
    mode: str | None


class Judging(Departing):
    """Every method may be called from any thread."""

    def place(self, hook: int, interface: str | None) -> Place:
        """A hook of a protected interface; where none is named, of the only one. Raises NotFound or InvalidInput."""
        with self._lock:
            protected = {held.link.name: held for held in self._interfaces.all_held()}
            known = ", ".join(sorted(protected)) or "none"
            if interface is None and len(protected) != 1:
                problem = Problem("/interface", f"must be one of the protected interfaces: {known}")
                raise InvalidInput(
                    f"{problem.pointer}: {problem.detail}", "name one", (problem,), "unknown_interface"
                )
            name = next(iter(protected)) if interface is None else interface
            held = protected.get(name)
            if held is None:
                raise NotFound(
                    f"{name!r} is not protected; protected are: {known}",
                    f"attach it with PUT /v1/interfaces/{name}, or name one of the others",
                    code="interface_not_found",
                )
            present = self._kernel.attached(held.link, hook)
            is_ours = present is not None and present.is_ours
            mode = present.mode if present is not None and is_ours else None
            return Place(hook, name, held.link.ifindex, held.link.has_ethernet, is_ours, mode)

    def judge_described(self, place: Place, packet: Description) -> JudgementView:
        frame = frame_of(packet, place.has_ethernet)
        return self.judge_frame(place, frame, len(frame), place.has_ethernet)

    def judge_frame(self, place: Place, frame: bytes, length: int, has_ethernet: bool) -> JudgementView:
        """`length`: of the frame on the wire, of which `frame` may be the beginning."""
        with self._lock:
            answer = self._kernel.judge(Question(place.hook, place.ifindex, has_ethernet, frame, length))
            packet = _packet(place, answer, length)
            matching = matching_rules(packet, self._ruleset) if packet and _asked_rules(answer) else []
            # What has fallen is told by memory until it was taken out.
            is_expected = self._has_fallen or _is_expected(answer, matching)
            is_consistent = self._panic is not None or is_expected
            matching = [each for each in matching if each.handle]  # never_drop is no rule
            # A rule with several prefixes around an address matches by each of them.
            distinct = {each.handle: each for each in reversed(matching)}
            others = [
                each for each in matching if distinct[each.handle] is each and each.handle != answer.handle
            ]
            rules = self._rules_of({each.handle for each in others[:MOST_MATCHES]} | _set_of(answer.handle))
            is_panic = self._panic is not None
        if not is_consistent:
            log.error(
                "maps and rules name different winners",
                hook=HOOKS[place.hook],
                interface=place.interface,
                packet=str(packet),
                in_maps=answer.handle,
                in_rules=[each.handle for each in matching[:1]],
            )
        return JudgementView(
            hook=HOOKS[place.hook],
            interface=place.interface,
            verdict=VERDICTS[answer.verdict],
            reason=REASONS[answer.reason],
            rule=_match(rules.get(answer.handle)) if answer.handle is not None else None,
            also_matched=_matches(others, rules),
            also_matched_total=len(others),
            consistent=is_consistent,
            packet=packet,
            notes=tuple(_notes(place, answer, len(frame), length, is_consistent, is_panic)),
        )

    def _rules_of(self, handles: set[int]) -> dict[int | None, Rule]:
        among = sorted(handles)
        records, _ = self._store.page(RuleQuery(), 0, len(among), among)
        return {each.handle: each.rule for each in records}


def _set_of(handle: int | None) -> set[int]:
    return set() if handle is None else {handle}


def _asked_rules(answer: Answer) -> bool:
    """Whether rules had a say: other reasons come before them."""
    reason = REASONS[answer.reason]
    return reason in _AFTER_RULES or (reason.startswith("malformed") and answer.verdict == _PASS)


def _is_expected(answer: Answer, matching: Sequence[MatchingRule]) -> bool:
    """Whether the maps name the winner that the rules name."""
    if REASONS[answer.reason] == "never_drop":
        return any(each.handle == 0 for each in matching)
    return answer.handle == next((each.handle for each in matching if not each.observes), None)


def _packet(place: Place, answer: Answer, length: int) -> Packet | None:
    read = answer.read
    if not read.version:
        return None
    ports = read.ports or (None, None)
    icmp = read.icmp or (None, None)
    return Packet(
        hook=place.hook,
        interface=place.interface,
        version=read.version,
        source=read.source,
        destination=read.destination,
        protocol=read.protocol,
        source_port=ports[0],
        destination_port=ports[1],
        tcp_flags=read.tcp_flags,
        icmp_type=icmp[0],
        icmp_code=icmp[1],
        is_fragment=read.is_fragment,
        is_later_fragment=read.is_later_fragment,
        length=length,
    )


def _match(rule: Rule | None) -> MatchView | None:
    return None if rule is None else MatchView(rule.id, rule.action, rule.priority, rule.mode)


def _matches(others: Sequence[MatchingRule], rules: dict[int | None, Rule]) -> tuple[MatchView, ...]:
    found = (_match(rules.get(each.handle)) for each in others[:MOST_MATCHES])
    return tuple(each for each in found if each is not None)


def _notes(
    place: Place, answer: Answer, there: int, length: int, consistent: bool, is_panic: bool
) -> list[str]:
    """What an operator should know beside the verdict."""
    notes = []
    if is_panic:
        notes.append("panic is on: rules decide nothing until it ends")
    if not place.attached:
        notes.append(
            f"{HOOKS[place.hook]} of {place.interface} is not attached: real packets pass there unjudged"
        )
    if place.mode == "offload":
        notes.append(
            f"{place.interface} filters ingress in hardware, with its own copy of the address rules; "
            "this is what the filter in software answers"
        )
    if there < length and REASONS[answer.reason].startswith("malformed"):
        notes.append(f"only {there} of the frame's {length} bytes were captured, which may be why")
    if not consistent:
        notes.append("the maps and the rules name different winners: see drift in GET /v1/status")
    return notes
