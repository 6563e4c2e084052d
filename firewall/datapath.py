"""What the enforcer asks of the kernel side: values that say a change, and the protocol that performs it.

firewall/kernel implements it with BPF maps, the tests also in memory. No rules here, only what they compile to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from firewall.address_entries import Entries as Entries
from firewall.address_entries import Entry as Entry
from firewall.address_entries import Key as Key
from firewall.hits import Hits, InterfaceHits
from firewall.named_sets import NO_COUNTERS, Counters, CountingSet
from firewall.policy import Policy
from firewall.report import ReportSource


class Edit(NamedTuple):
    """A prefix's entry before and after, None where there is none."""

    key: Key
    old: Entry | None
    new: Entry | None


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Which prefix lengths the address lists have: by scope, bit n for length n."""

    lengths4: tuple[int, int, int, int] = (0, 0, 0, 0)
    lengths6: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Change:
    """One change of what packets meet, all of it at one moment; without `at_once` each entry may go or change at a
    moment of its own. `policy` None: as it is. `come` and `gone`: entries by the million, of keys that no edit names,
    that were not there before or are not there after. `changed`: the same of those that are another rule's or of
    another rank after it, before and after, key by key. `fresh_slots` and `fresh_entries`: counters of rules, and of
    entries of sets, that start at 0."""

    edits: Sequence[Edit]
    before: Occupancy
    after: Occupancy
    policy_before: Policy | None = None
    policy: Policy | None = None
    come: Sequence[Entries] = ()
    gone: Sequence[Entries] = ()
    changed: Sequence[tuple[Entries, Entries]] = ()
    fresh_slots: Sequence[int] = ()
    at_once: bool = True
    fresh_entries: Counters = field(default_factory=lambda: NO_COUNTERS)

    def without_policy(self) -> Change:
        return replace(self, policy_before=None, policy=None)

    def inverse(self) -> Change:
        return replace(
            self,
            edits=[Edit(key, new, old) for key, old, new in reversed(self.edits)],
            before=self.after,
            after=self.before,
            policy_before=self.policy,
            policy=self.policy_before,
            come=self.gone,
            gone=self.come,
            changed=[(after, before) for before, after in self.changed],
            fresh_slots=(),
            at_once=True,
            fresh_entries=NO_COUNTERS,
        )


@dataclass(frozen=True)
class Image:
    """Everything that the maps hold."""

    entries: Mapping[int, Entries]
    occupancy: Occupancy
    policy: Policy
    fresh_slots: Sequence[int]
    fresh_entries: Counters = field(default_factory=lambda: NO_COUNTERS)


class MapFill(NamedTuple):
    name: str
    used: int
    capacity: int
    setting: str


class Question(NamedTuple):
    """A packet to be judged as if it met a hook. `length`: of the frame on the wire; less of it may be in `frame`."""

    hook: int
    ifindex: int
    has_ethernet: bool
    frame: bytes
    length: int


class Read(NamedTuple):
    """What the programs read of a frame. `version` 0: it is not IP, or that far it could not be read; ports, flags and
    type with code are None where the packet has none. Addresses as numbers."""

    version: int
    source: int
    destination: int
    protocol: int
    is_fragment: bool
    is_later_fragment: bool
    ports: tuple[int, int] | None
    tcp_flags: int | None
    icmp: tuple[int, int] | None


class Answer(NamedTuple):
    """Numbers of the enums verdict and reason; `handle`: of the rule that won, None where no rule did."""

    verdict: int
    reason: int
    handle: int | None
    read: Read


class Link(NamedTuple):
    """An interface of the host. `has_ethernet`: its frames start with an Ethernet header."""

    ifindex: int
    name: str
    has_ethernet: bool
    is_up: bool


class Attached(NamedTuple):
    """A program on a hook. `mode`: native, generic, offload; clsact on egress. `is_ours`: loaded by ebpf-fw."""

    program_id: int
    name: str
    mode: str
    is_ours: bool


class Connection(NamedTuple):
    """A live TCP connection of this host; addresses are numbers. An IPv4 one of an IPv6 socket has version 4.
    `is_ssh`: a session of an SSH server of this host."""

    version: int
    local: int
    local_port: int
    remote: int
    remote_port: int
    is_ssh: bool = False


@dataclass(frozen=True)
class Happened:
    """What the host told of its interfaces, by index; `everything`: messages were lost, or nobody knows."""

    ifindexes: Collection[int] = frozenset()
    everything: bool = False

    def concerns(self, ifindex: int) -> bool:
        return self.everything or ifindex in self.ifindexes

    def __bool__(self) -> bool:
        return self.everything or bool(self.ifindexes)


@dataclass(frozen=True)
class LeftOver:
    """Hits by handle of rules, and by ifindex."""

    rules: Mapping[int, Hits] = field(default_factory=dict)
    interfaces: Mapping[int, list[InterfaceHits]] = field(default_factory=dict)


class Expected(Protocol):
    """The entries that the address tables should hold, by IP version."""

    def find(self, version: int, keys: npt.NDArray[Any]) -> Entries: ...

    def winners(self, version: int) -> Entries: ...


class Kernel(Protocol):
    """The loaded programs, their maps and the hooks. Methods raise KernelRefused when the kernel says no, and
    then packets are judged as before the call. Hooks are numbers of enum hook."""

    bcc: str | None

    def start(self, owner: int) -> dict[int, int]:
        """Loads or finds the programs, those of this owner (a number of the store). Answers the slots of policy
        rules by handle that the maps already count."""

    def report_source(self) -> ReportSource:
        """Of the programs that start() found or loaded, for as long as they run. Whoever asks closes it."""

    def stop(self, keep: bool = False) -> None:
        """Unpins everything and lets go of it (detach first), or, to `keep` it, lets go alone: what hooks run goes
        on judging, and the next start finds it."""

    def reserve(self, entries: Mapping[int, int], policy: Policy) -> None:
        """Makes the tables large enough for so many address entries by IP version, and for the policy."""

    def reconcile(self, image: Image) -> None:
        """Makes the maps hold just this, whatever they held."""

    def set_options(self, options: tuple[int, int]) -> None:
        """OPTION_* by hook; in force with the next change that has a policy."""

    def apply(self, change: Change) -> dict[int, Hits]:
        """Performs a change; answers the hits of entries that went or went over to another rule, by the handle
        of the rule before."""

    def settle(self) -> None:
        """Finishes what a change left for later, when no packet needs it any more."""

    def tidy(self) -> bool:
        """A part of settle(), if no packet needs to be waited for; else another time will do. Whether the next part is
        better done soon."""

    def survey(self) -> bool:
        """Looks at a part of the address tables for entries that were hit; whether it has seen all by now. Until
        forget_survey() a change that is not at_once then reads the counters of those alone."""

    def forget_survey(self) -> None: ...

    def doom(self, entries: Sequence[Entries]) -> None:
        """More entries that are to go together, with fall(): those that are there as they are told. Until then packets
        meet them as before. They stay in the tables; one that is changed meanwhile is as the change says, and stays."""

    def are_doomed(self) -> bool:
        """Gets a part of them ready; whether all are, as far as nobody wrote them otherwise."""

    def fall(self) -> None:
        """No packet that starts after this meets any that is ready. One store, however many there are."""

    def spare(self, entries: Sequence[Entries]) -> None:
        """Those of some entries that are among these are not any more, and packets meet them, also after fall()."""

    def forget_doomed(self) -> None:
        """They are gone, or spared. After it doom() begins anew."""

    def address_hits(self, keys: Sequence[Key]) -> list[Hits]:
        """By key, in order; NO_HITS where there is no such entry."""

    def all_address_hits(self) -> dict[int, Hits]:
        """By handle, of every entry that was hit."""

    def hits_of(self, entries: Sequence[Entries]) -> dict[int, Hits]:
        """By handle, of entries by the million those that were hit."""

    def address_rules_hit_since(self, moment: float) -> npt.NDArray[np.uint32]:
        """Handles, of entries that were hit at a moment or after it: seconds since 1970."""

    def policy_hits(self, slots: Sequence[int]) -> list[Hits]: ...

    def hits_of_entries(self, counters: Counters) -> list[Hits]:
        """Of entries of sets that rules of the policy name, in order."""

    def counting_sets(self) -> Mapping[int, CountingSet]:
        """After start(): the sets whose entries the maps already count, by their hashed names."""

    def count_interface(self, ifindex: int) -> None:
        """Makes room for an interface's counters."""

    def uncount_interface(self, ifindex: int) -> list[InterfaceHits]:
        """Gives that room back, and what had been counted."""

    def interface_hits(self) -> Mapping[int, list[InterfaceHits]]: ...

    def fills(self, policy_rules: int, addresses: Mapping[int, int]) -> list[MapFill]: ...

    def links(self) -> list[Link]: ...

    def attached(self, link: Link, hook: int) -> Attached | None:
        """On ingress any XDP program, on egress our filter."""

    def attach(self, link: Link, hook: int, mode: str, force: bool = False) -> None:
        """`mode`: native, generic or offload (ingress). Replaces our own program at one moment. With `force` another
        owner's XDP program as well, which stays loaded until give_back() or forget_displaced()."""

    def give_back(self, link: Link) -> None:
        """Puts back the program that an attach with force replaced, if one did."""

    def forget_displaced(self) -> None: ...

    def detach(self, link: Link, hook: int) -> None: ...

    def detach_from_others(self, ifindexes: Collection[int]) -> list[tuple[Link, int]]:
        """Detaches our programs from all other interfaces than these; answers which hooks were freed."""

    def expected_program(self, link: Link, hook: int) -> int:
        """Id of the program that belongs on the hook."""

    def before_ours(self, link: Link) -> list[str]:
        """In words, the programs of others that see packets at egress before ours and may decide alone."""

    def describe(self, program_id: int) -> str:
        """Id, name and, where it can be found, the owner of a program."""

    def judge(self, question: Question) -> Answer:
        """What the programs would do with a packet. It is counted nowhere."""

    # -- whom the host talks to

    def connections(self) -> list[Connection]:
        """Established TCP connections."""

    def ssh_sessions(self) -> list[Connection]:
        """Of these, the sessions of this host's SSH servers: cheap also where there are very many others."""

    def route_to(self, version: int, address: int) -> int | None:
        """Index of the interface that packets to an address leave by, None where there is no route."""

    # -- what others do

    def wait(self, timeout_s: float) -> Happened:
        """Until something happens to interfaces, qdiscs or filters, or wake() is called, or the time is over."""

    def wake(self) -> None: ...

    def boot_id(self) -> str:
        """Another one after each boot of the host."""

    def missing_pins(self) -> list[str]: ...

    def pin_again(self) -> None: ...

    def audit(self, expected: Expected) -> list[str]:
        """What others changed in the maps, in words; of large tables a part at each call."""

    def restore(self) -> None:
        """Before reconcile(): puts back the words that it stands on."""

    def release(self) -> LeftOver:
        """Lets go of programs that start() or reserve() put others in place of. Call when all hooks are attached.
        Answers what the maps that went with them had counted."""
