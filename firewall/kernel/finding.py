"""Owns the shape of one answer of the host probe. It must not read anything."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing the probe looked at.

    `fail` means the service, or that interface, cannot work as it is; `warn` means it works, but slower or
    only in part. `mend` is the shell command (or short instruction) that mends it. `interface` is None for
    the host itself.
    """

    name: str
    status: Status
    detail: str
    mend: str | None = None
    interface: str | None = None


def ok(name: str, detail: str) -> Finding:
    return Finding(name, "ok", detail)


def warn(name: str, detail: str, mend: str | None = None) -> Finding:
    return Finding(name, "warn", detail, mend)


def fail(name: str, detail: str, mend: str | None = None) -> Finding:
    return Finding(name, "fail", detail, mend)
