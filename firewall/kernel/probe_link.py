"""Owns the facts about one network interface: what it is and what sits on its hooks. It only reads.

It answers with facts and judges none; a fact that the kernel or the driver does not tell is None.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from firewall.kernel import owner, probe_bpf, probe_driver
from firewall.kernel.source import OUR_PROGRAMS

_ARPHRD_LOOPBACK = 772
_IFF_UP = 1
_DEVICES = Path("/sys/class/net")
_EGRESS_PARENT = 0xFFFFFFF3  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS)
_TCA_BPF_FLAG_ACT_DIRECT, _TCA_BPF_ID = 1, 11
_XDP_PROGRAMS = {
    "IFLA_XDP_DRV_PROG_ID": "native",
    "IFLA_XDP_SKB_PROG_ID": "generic",
    "IFLA_XDP_HW_PROG_ID": "offload",
}


@dataclass(frozen=True)
class XdpProgram:
    """`owner`: where it is pinned and which processes hold it, in words; empty where nothing is found."""

    mode: str
    id: int
    name: str | None
    owner: str = ""


@dataclass(frozen=True)
class EgressFilter:
    """A filter on egress. `hook` is "tcx" or "clsact"; `direct` says that its verdict ends the chain."""

    hook: str
    kind: str
    priority: int | None
    program_id: int | None
    name: str | None
    direct: bool


@dataclass(frozen=True)
class Peer:
    """The other end of a veth."""

    name: str
    mtu: int
    transmit_queues: int | None = None


@dataclass(frozen=True)
class LinkFacts:
    name: str
    ifindex: int
    link_type: int  # ARPHRD_*
    kind: str | None  # rtnl link kind: veth, bond, vlan, ...; None for hardware
    up: bool
    mtu: int
    driver: str | None
    port_of: tuple[str, str] | None  # kind and name of the bond, team or bridge it belongs to
    xdp_features: int | None  # NETDEV_XDP_ACT_*; kernel 6.3
    lro: probe_driver.Feature | None
    gro_hw: probe_driver.Feature | None
    channels: probe_driver.Channels | None
    xdp: tuple[XdpProgram, ...]
    qdiscs: tuple[str, ...]
    egress: tuple[EgressFilter, ...]
    ports: tuple[str, ...] = ()  # of a bond, team or bridge
    peer: Peer | None = None  # None also where it is in another network namespace
    virtio: frozenset[int] | None = None  # feature bits that the device and virtio_net agreed on
    virtual_functions: int = 0


def interface_names() -> list[str]:
    """Every interface of this network namespace but the loopback."""
    with IPRoute() as ip:
        links = [link for link in ip.get_links() if link["ifi_type"] != _ARPHRD_LOOPBACK]
        return [link.get_attr("IFLA_IFNAME") for link in links]


def read(name: str) -> LinkFacts | None:
    """None if there is no such interface."""
    with IPRoute() as ip:
        indexes = ip.link_lookup(ifname=name)
        if not indexes:
            return None
        link = ip.link("get", index=indexes[0])[0]
        info = link.get_attr("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") if info else None
        features = probe_driver.features(name)
        return LinkFacts(
            name=name,
            ifindex=indexes[0],
            link_type=link["ifi_type"],
            kind=kind,
            up=bool(link["flags"] & _IFF_UP),
            mtu=link.get_attr("IFLA_MTU") or 0,
            driver=probe_driver.name(name) or kind,
            port_of=_port_of(ip, link, info),
            xdp_features=probe_driver.xdp_features(indexes[0]),
            lro=features.get("rx-lro"),
            gro_hw=features.get("rx-gro-hw"),
            channels=probe_driver.channels(name),
            xdp=tuple(_xdp_programs(link)),
            qdiscs=tuple(q.get_attr("TCA_KIND") for q in ip.get_qdiscs(index=indexes[0])),
            egress=(*_tcx(indexes[0]), *_clsact(ip, indexes[0])),
            ports=tuple(each.get_attr("IFLA_IFNAME") for each in ip.get_links(master=indexes[0])),
            peer=_peer(ip, link) if kind == "veth" else None,
            virtio=virtio_features(_DEVICES / name / "device" / "features"),
            virtual_functions=_number(_DEVICES / name / "device" / "sriov_numvfs"),
        )


def _peer(ip: IPRoute, link: Any) -> Peer | None:
    index = link.get_attr("IFLA_LINK")
    if not index or link.get_attr("IFLA_LINK_NETNSID") is not None:
        return None
    with contextlib.suppress(NetlinkError):
        peer = ip.link("get", index=index)[0]
        name = peer.get_attr("IFLA_IFNAME")
        return Peer(name, peer.get_attr("IFLA_MTU") or 0, probe_driver.transmit_queues(name))
    return None


def virtio_features(path: Path) -> frozenset[int] | None:
    """The file holds a digit for each bit, the lowest first; devices of other kinds have none like it."""
    try:
        digits = path.read_text().strip()
    except OSError:
        return None
    if len(digits) < 32 or set(digits) - {"0", "1"}:
        return None
    return frozenset(bit for bit, digit in enumerate(digits) if digit == "1")


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _port_of(ip: IPRoute, link: Any, info: Any) -> tuple[str, str] | None:
    index = link.get_attr("IFLA_MASTER")
    if not index or info is None:
        return None
    with contextlib.suppress(NetlinkError):
        master = ip.link("get", index=index)[0]
        return info.get_attr("IFLA_INFO_SLAVE_KIND") or "master", master.get_attr("IFLA_IFNAME")
    return None


def _xdp_programs(link: Any) -> Iterator[XdpProgram]:
    xdp = link.get_attr("IFLA_XDP")
    if xdp is None:
        return
    for attribute, mode in _XDP_PROGRAMS.items():
        if program_id := xdp.get_attr(attribute):
            name = probe_bpf.program(program_id).name
            found = "" if name in OUR_PROGRAMS else ", ".join(owner.traces(program_id))
            yield XdpProgram(mode, program_id, name, found)


def _tcx(ifindex: int) -> Iterator[EgressFilter]:
    for program_id in probe_bpf.tcx_egress_program_ids(ifindex):
        yield EgressFilter("tcx", "bpf", None, program_id, probe_bpf.program(program_id).name, direct=True)


def _clsact(ip: IPRoute, ifindex: int) -> Iterator[EgressFilter]:
    try:
        filters = list(ip.get_filters(index=ifindex, parent=_EGRESS_PARENT))
    except NetlinkError:
        return
    for found in filters:
        options = found.get_attr("TCA_OPTIONS")
        if not hasattr(options, "get_attr"):
            continue  # the head of a chain, which the kernel lists beside its filters
        kind = found.get_attr("TCA_KIND")
        program_id = _cls_bpf_program_id(options) if kind == "bpf" else None
        yield EgressFilter(
            hook="clsact",
            kind=kind,
            priority=found["info"] >> 16,
            program_id=program_id,
            name=probe_bpf.program(program_id).name if program_id else None,
            direct=kind == "bpf"
            and bool((options.get_attr("TCA_BPF_FLAGS") or 0) & _TCA_BPF_FLAG_ACT_DIRECT),
        )


def _cls_bpf_program_id(options: Any) -> int | None:
    """TCA_BPF_ID, which pyroute2 does not decode: it leaves the attribute's bytes, header first."""
    for name, value in options["attrs"]:
        if name == "UNKNOWN" and value["header"]["type"] == _TCA_BPF_ID:
            return int.from_bytes(value.data[value.offset + 4 : value.offset + 8], sys.byteorder)
    return None
