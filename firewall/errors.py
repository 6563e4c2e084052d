"""The one tree of errors that this package raises, each with what an operator needs to go on.

    FirewallError                 code, detail, hint, problems
    ├── InvalidInput              what was asked breaks the contract; `problems` point at each place
    ├── NotFound                  no such rule or interface
    ├── AlreadyExists             the id or name is taken by another one
    ├── NotAuthenticated          credentials that are not accepted
    ├── NotPermitted              credentials that do not suffice for what this is about
    ├── PreconditionFailed        the rule set is not the one the client saw
    ├── Conflict                  the host is in a state that forbids it (another program on the hook, ...)
    │   └── Lockout               it would cut off who manages this host
    ├── TableFull                 a map has no room; nothing was written
    ├── KernelRefused             a system call or netlink request failed; errno by name
    │   └── ProgramRejected       the compiler or the verifier said no; their last lines
    └── StoreFailed               the database cannot be read or written

Which HTTP status each gets is api/errors.py's business.
"""

from __future__ import annotations

import errno as errno_names
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """One fault of an input: a JSON pointer (RFC 6901) to it and what is wrong there."""

    pointer: str
    detail: str


@dataclass
class FirewallError(Exception):
    """What went wrong (`detail`), what to do (`hint`), where in the input (`problems`)."""

    detail: str
    hint: str = ""
    problems: tuple[Problem, ...] = ()
    code: str = field(default="error", init=False)

    def __str__(self) -> str:
        return self.detail if not self.hint else f"{self.detail} ({self.hint})"


@dataclass
class InvalidInput(FirewallError):
    code: str = field(default="invalid_rule")


@dataclass
class NotFound(FirewallError):
    code: str = field(default="rule_not_found")


@dataclass
class AlreadyExists(FirewallError):
    code: str = field(default="rule_exists")


@dataclass
class NotAuthenticated(FirewallError):
    """Credentials that are not accepted; `code` says why."""

    code: str = field(default="invalid_token")


@dataclass
class NotPermitted(FirewallError):
    code: str = field(default="insufficient_scope", init=False)


@dataclass
class PreconditionFailed(FirewallError):
    code: str = field(default="ruleset_changed", init=False)


@dataclass
class Conflict(FirewallError):
    code: str = field(default="conflict")


@dataclass
class Lockout(Conflict):
    """`connections`: each that would be dropped, as the API tells it (firewall.view.LockoutView)."""

    connections: tuple[object, ...] = ()
    code: str = field(default="lockout", init=False)


@dataclass
class TableFull(FirewallError):
    """`table` has room for `capacity` entries and `wanted` are asked for; `setting` makes it larger."""

    table: str = ""
    capacity: int = 0
    wanted: int = 0
    setting: str = ""
    code: str = field(default="table_full", init=False)


@dataclass
class KernelRefused(FirewallError):
    """`errno` is the positive number; `detail` carries its name."""

    errno: int = 0
    code: str = field(default="kernel_refused")


@dataclass
class ProgramRejected(KernelRefused):
    """`log`: the compiler's or verifier's last lines."""

    log: str = ""
    code: str = field(default="program_rejected")


@dataclass
class StoreFailed(FirewallError):
    code: str = field(default="store_failed", init=False)


def errno_name(number: int) -> str:
    """`EPERM` for 1; the number itself where the C library has no name for it."""
    if (
        number == errno_names.EOPNOTSUPP
    ):  # ENOTSUP is the same number; the kernel's name is the one that people search
        return "EOPNOTSUPP"
    return errno_names.errorcode.get(number, f"errno {number}")


def kernel_refused(action: str, number: int, hint: str = "", said: str = "") -> KernelRefused:
    """The error for a failed system call: `action` in words, the errno's name, what the kernel said."""
    told = f": {said}" if said else ""
    return KernelRefused(
        f"{action} failed with {errno_name(number)}{told}", hint or ERRNO_HINTS.get(number, ""), errno=number
    )


def table_full(table: str, capacity: int, wanted: int, setting: str, what: str) -> TableFull:
    return TableFull(
        f"{table} holds at most {capacity} {what} and this change makes {wanted}",
        f"raise {setting} in the config and restart, or delete rules",
        table=table,
        capacity=capacity,
        wanted=wanted,
        setting=setting,
    )


ERRNO_HINTS = {
    errno_names.EPERM: "run the service as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
    errno_names.EACCES: "run the service as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
    errno_names.ENOMEM: "the kernel has no memory for this; lower bpf.max_addresses or free memory",
    errno_names.EOPNOTSUPP: 'the driver does not support this; use mode "generic" or "auto"',
    errno_names.EBUSY: "another program holds this hook; see `ip link show` and detach it first",
    errno_names.ENOSPC: "the kernel's limit is reached; remove unused programs or maps",
}
