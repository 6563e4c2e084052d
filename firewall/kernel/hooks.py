"""Attaching the programs to interfaces: XDP and clsact over netlink.

Owns what is on a hook and changing it. Never touches a program that is not ours; detaching removes only what
is. What the kernel says about a refusal (extended ack) is kept: it is often the only explanation.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pyroute2.netlink import NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_GETLINK

from firewall.datapath import Attached, Link
from firewall.errors import Conflict, KernelRefused, kernel_refused
from firewall.kernel import bpf, native, owner, probe_bpf
from firewall.kernel.netlink_thread import NetlinkThread
from firewall.kernel.source import OUR_PROGRAMS

XDP_FLAGS_UPDATE_IF_NOEXIST, XDP_FLAGS_REPLACE = 1 << 0, 1 << 4
XDP_MODE_FLAGS = {"generic": 1 << 1, "native": 1 << 2, "offload": 1 << 3}
# Which attribute of IFLA_XDP names the program of a mode. (pyroute2 does not decode IFLA_XDP_ATTACHED.)
_MODE_ATTRIBUTES = {
    "IFLA_XDP_DRV_PROG_ID": "native",
    "IFLA_XDP_SKB_PROG_ID": "generic",
    "IFLA_XDP_HW_PROG_ID": "offload",
}

_CLSACT_EGRESS, _CLSACT_INGRESS, _CLSACT = 0xFFFFFFF3, 0xFFFFFFF2, 0xFFFFFFF1
_PREFERENCE, _HANDLE = 1, 1
_ETH_P_ALL = 0x0003
_TCA_BPF_ID = 11
# Link types whose frames start with an Ethernet header (include/uapi/linux/if_arp.h): Ethernet, loopback.
_ETHERNET_TYPES = frozenset((1, 772))
_LINK_HINT = "a program that a bpf link holds (`bpftool link`) can only be detached by whoever holds the link"


class NetlinkHooks:
    """Hooks of the interfaces in the network namespace where it was made."""

    def __init__(self, open_program: Callable[[int], int | None]) -> None:
        """`open_program`: as opening.open_program, for an id."""
        self._netlink = NetlinkThread()
        self._open = open_program
        self._displaced: tuple[int, int, str] | None = None  # ifindex, descriptor, mode

    def close(self) -> None:
        self.forget_displaced()
        self._netlink.close()

    def links(self) -> list[Link]:
        return [_link(message) for message in self._netlink.ask("get_links")]

    # -- ingress: XDP

    def ingress(self, index: int) -> Attached | None:
        with _netlink_errors(f"reading interface {index}"):
            xdp = self._of(index).get_attr("IFLA_XDP")
        for attribute, mode in _MODE_ATTRIBUTES.items():
            program_id = xdp.get_attr(attribute) if xdp is not None else None
            if program_id:
                return self._attached(program_id, mode)
        return None

    def _of(self, index: int) -> Any:
        """What the kernel says about an interface. Without NLM_F_ACK, which get_links(index) asks for:
        pyroute2 does not read the acknowledgement behind an answer and keeps it, and with each the heap around it."""
        return self._netlink.ask("link", (RTM_GETLINK, NLM_F_REQUEST), index=index)[0]

    def attach_ingress(self, link: Link, fd: int, mode: str, force: bool = False) -> None:
        """Puts the program there, or in the place of ours; in between none or both never see a packet. With
        `force` also in the place of another owner's, which give_back() can undo.

        Raises Conflict where another program is, KernelRefused with the driver's words.
        """
        present = self.ingress(link.ifindex)
        if present is not None and not present.is_ours:
            if not force:
                raise _foreign(link, present)
            self._remember(link, present)
        if present is not None and present.mode != mode:
            # The kernel takes no second mode beside the first, so a change of mode has a moment without.
            self._set_xdp(link, -1, present.mode, f"detaching from {link.name}", present)
            present = None
        what = f"attaching in {mode} mode to" if present is None else "replacing the program on"
        try:
            self._set_xdp(link, fd, mode, f"{what} {link.name}", present)
        except KernelRefused as refusal:
            if mode == "native":
                native.explain(refusal, link.name)
            raise

    def _remember(self, link: Link, present: Attached) -> None:
        """Keeps a program of another owner loaded, so that it can be put back."""
        self.forget_displaced()
        fd = self._open(present.program_id)
        if fd is not None:
            self._displaced = (link.ifindex, fd, present.mode)

    def give_back(self, link: Link) -> None:
        """Undoes an attach with force."""
        if self._displaced is None or self._displaced[0] != link.ifindex:
            return
        _, fd, mode = self._displaced
        try:
            self.detach_ingress(link)
            if self.ingress(link.ifindex) is None:
                self._set_xdp(link, fd, mode, f"putting back another owner's program on {link.name}", None)
        finally:
            self.forget_displaced()

    def forget_displaced(self) -> None:
        if self._displaced is not None:
            os.close(self._displaced[1])
            self._displaced = None

    def detach_ingress(self, link: Link) -> None:
        present = self.ingress(link.ifindex)
        if present is None or not present.is_ours:
            return
        self._set_xdp(link, -1, present.mode, f"detaching from {link.name}", present)

    def _set_xdp(self, link: Link, fd: int, mode: str, action: str, present: Attached | None) -> None:
        """`present`: what must be there at that moment, None for nothing."""
        flags, old = XDP_MODE_FLAGS[mode], None
        attributes: list[tuple[str, int]] = [("IFLA_XDP_FD", fd)]
        if present is None:
            flags |= XDP_FLAGS_UPDATE_IF_NOEXIST
        else:
            old = self._open(present.program_id)
            if old is None:
                raise Conflict(f"the program on {link.name} changed meanwhile", "try again")
            flags |= XDP_FLAGS_REPLACE
            attributes.append(("IFLA_XDP_EXPECTED_FD", old))
        attributes.append(("IFLA_XDP_FLAGS", flags))
        hint = _LINK_HINT if present is not None and not present.is_ours else ""
        try:
            with _netlink_errors(action, hint):
                self._netlink.ask("link", "set", index=link.ifindex, IFLA_XDP={"attrs": attributes})
        finally:
            if old is not None:
                os.close(old)

    # -- egress: clsact

    def egress(self, index: int) -> Attached | None:
        """Our filter, else what has taken its place."""
        in_our_place = None
        for message in self._filters(index, _CLSACT_EGRESS):
            found = self._attached(_filter_program_id(message.get_attr("TCA_OPTIONS")) or 0, "clsact")
            if found.is_ours:
                return found
            if (message["info"] >> 16, message["handle"]) == (_PREFERENCE, _HANDLE):
                in_our_place = found
        return in_our_place

    def before_ours(self, index: int) -> list[str]:
        """Programs that a packet at egress meets before our filter: on tcx, and filters that the kernel lists first."""
        found = [f"tcx {owner.describe(each)}" for each in probe_bpf.tcx_egress_program_ids(index)]
        for message in self._filters(index, _CLSACT_EGRESS):
            program_id = _filter_program_id(message.get_attr("TCA_OPTIONS"))
            if program_id and self._attached(program_id, "clsact").is_ours:
                return found
            what = owner.describe(program_id) if program_id else message.get_attr("TCA_KIND")
            found.append(f"clsact prio {message['info'] >> 16} {what}")
        return []  # ours is not there, which is another finding

    def attach_egress(self, link: Link, fd: int, name: str) -> None:
        """Adds our filter, or replaces it at one moment. Raises Conflict where another is in our place."""
        present = self._in_our_place(link.ifindex)
        if present is not None and not present.is_ours:
            raise _foreign_filter(link, present)
        if not self._has_clsact(link.ifindex):
            hint = f"where an ingress qdisc is in the way: `tc qdisc del dev {link.name} ingress`; clsact serves both"
            with _netlink_errors(f"adding clsact to {link.name}", hint):
                self._netlink.ask("tc", "add", "clsact", link.ifindex)
        with _netlink_errors(f"attaching to the egress of {link.name}"):
            self._netlink.ask(
                "tc", "replace-filter", "bpf", link.ifindex, handle=_HANDLE, fd=fd, name=name, parent=_CLSACT_EGRESS,
                prio=_PREFERENCE, protocol=_ETH_P_ALL, direct_action=True,
            )  # fmt: skip

    def detach_egress(self, link: Link) -> None:
        """Removes what is ours, wherever it stands, and clsact when that leaves it without any filter."""
        ours = [
            message
            for message in self._filters(link.ifindex, _CLSACT_EGRESS)
            if (program := _filter_program_id(message.get_attr("TCA_OPTIONS")))
            and self._attached(program, "clsact").is_ours
        ]
        if not ours:
            return
        with _netlink_errors(f"detaching from the egress of {link.name}"):
            for message in ours:
                self._netlink.ask(
                    "tc", "del-filter", "bpf", link.ifindex, handle=message["handle"], parent=_CLSACT_EGRESS,
                    prio=message["info"] >> 16, protocol=_ETH_P_ALL,
                )  # fmt: skip
            if not self._filters(link.ifindex, _CLSACT_EGRESS) and not self._filters(
                link.ifindex, _CLSACT_INGRESS
            ):
                self._netlink.ask("tc", "del", "clsact", link.ifindex)

    def _in_our_place(self, index: int) -> Attached | None:
        """The filter that ours would replace, whatever it is."""
        for message in self._filters(index, _CLSACT_EGRESS):
            if (message["info"] >> 16, message["handle"]) == (_PREFERENCE, _HANDLE):
                return self._attached(_filter_program_id(message.get_attr("TCA_OPTIONS")) or 0, "clsact")
        return None

    def _attached(self, program_id: int, mode: str) -> Attached:
        """Not ours where it is gone, or may not be opened."""
        fd = None
        with suppress(KernelRefused):
            fd = self._open(program_id)
        if fd is None:
            return Attached(program_id, "", mode, False)
        try:
            name = bpf.program_info(fd).name
        finally:
            os.close(fd)
        return Attached(program_id, name, mode, name in OUR_PROGRAMS)

    def _has_clsact(self, index: int) -> bool:
        return any(each.get_attr("TCA_KIND") == "clsact" for each in self._netlink.ask("get_qdiscs", index))

    def _filters(self, index: int, parent: int) -> list[Any]:
        with _netlink_errors(f"reading the filters of interface {index}"):
            if not self._has_clsact(index):
                return []
            found = self._netlink.ask("get_filters", index, parent=parent)
            return [each for each in found if each.get_attr("TCA_OPTIONS")]


def _link(message: Any) -> Link:
    return Link(
        message["index"],
        message.get_attr("IFLA_IFNAME"),
        message["ifi_type"] in _ETHERNET_TYPES,
        bool(message["flags"] & 1),
    )


def _filter_program_id(options: Any) -> int | None:
    """TCA_BPF_ID of a filter's options. pyroute2 does not decode it and leaves the attribute's bytes, header first."""
    for name, value in options.get("attrs", ()):
        if name == "UNKNOWN" and value["header"]["type"] == _TCA_BPF_ID:
            return int.from_bytes(value.data[value.offset + 4 : value.offset + 8], sys.byteorder)
    return None


def _foreign(link: Link, present: Attached) -> Conflict:
    return Conflict(
        f"another XDP program is on {link.name}: "
        + ", ".join(
            [
                f"id {present.program_id}",
                f"name {present.name or '?'}",
                f"{present.mode} mode",
                *owner.traces(present.program_id),
            ]
        ),
        f"detach it with its owner's own tool, or put ours in its place with "
        f"`ebpf-fw interface attach {link.name} --force`",
        code="program_conflict",
    )


def _foreign_filter(link: Link, present: Attached) -> Conflict:
    return Conflict(
        f"another filter is at the egress of {link.name}, prio {_PREFERENCE}, handle {_HANDLE}, our place: "
        f"{owner.describe(present.program_id)}",
        f"move it to another prio, or remove it with `tc filter delete dev {link.name} egress pref {_PREFERENCE}`",
        code="program_conflict",
    )


@contextmanager
def _netlink_errors(action: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise kernel_refused(action, error.code, hint, _said(error)) from error


def _said(error: NetlinkError) -> str:
    """The extended ack's text, when there is one beside the errno's."""
    text = str(error.args[1]) if len(error.args) > 1 and error.args[1] else ""
    return "" if text in ("", os.strerror(error.code)) else text
