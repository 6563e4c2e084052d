"""Owns the judgement of one interface: will both hooks attach, and in which mode. It reads nothing itself.

The limits are those of the kernel and its drivers; each stands beside its source.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from firewall.kernel import probe_obstacles
from firewall.kernel.finding import Finding, fail, ok, warn
from firewall.kernel.probe_link import EgressFilter, LinkFacts, Peer
from firewall.kernel.source import OUR_PROGRAMS

_ETHERNET = 1
_WITHOUT_LINK_HEADER = {0xFFFE, 519}  # ARPHRD_NONE (tun, wireguard), ARPHRD_RAWIP

# enum netdev_xdp_act
_XDP_BASIC, _XDP_HW_OFFLOAD = 1, 16

# Drivers with native XDP, by their ethtool name, for kernels that do not tell it (before 6.3).
# fmt: off
_NATIVE_DRIVERS = frozenset({
    "atlantic", "bnxt_en", "bonding", "ena", "fsl_dpa", "fsl_dpaa2_eth", "fsl_enetc", "hv_netvsc",
    "i40e", "ice", "igb", "igc", "ixgbe", "ixgbevf", "mana", "mlx4_en", "mlx5_core", "mvneta", "mvpp2",
    "netsec", "nfp", "nicvf", "qede", "sfc", "st_gmac", "tun", "veth", "vif", "virtio_net",
})
# fmt: on

# A packet has to fit in one page beside XDP_PACKET_HEADROOM (256) and struct skb_shared_info (320), less an
# Ethernet header and a VLAN tag: 3498 to 3506 by driver on 4 KiB pages. Some Intel drivers stop near 3050.
_PAGE_OVERHEAD = 256 + 320 + 22

# Drivers that stop earlier, with pages of 4 KiB. The Intel drivers: 3 KiB buffers less the headers that each counts.
_MTU_LIMITS = {
    **dict.fromkeys(("igc", "st_gmac", "netsec"), 1500),
    "nicvf": 1508,
    **dict.fromkeys(("i40e", "ice", "igb"), 3072 - 26),
    **dict.fromkeys(("ixgbe", "ixgbevf"), 3072 - 22),
}

_XDP_OFF = {"native": "xdpdrv", "generic": "xdpgeneric", "offload": "xdpoffload"}


@dataclass(frozen=True)
class Host:
    """What the judgement needs of the machine. `ours`: ids of the programs pinned below our pin root; `release`: of
    the kernel."""

    cpus: int
    page_size: int
    ours: frozenset[int]
    release: str = ""

    def is_ours(self, program_id: int | None, name: str | None) -> bool:
        """By its pin, or by its name, which tells also where the pins are in another directory."""
        return program_id in self.ours or name in OUR_PROGRAMS


def missing(name: str) -> Finding:
    return replace(
        fail("interface", "no such interface in this network namespace", "ip -br link"), interface=name
    )


def findings(link: LinkFacts, host: Host) -> list[Finding]:
    judged = (
        *_interface(link),
        _mode(link),
        _mtu(link, host),
        *_offloads(link),
        *probe_obstacles.findings(link),
        *_queues(link, host),
        *_ingress(link, host),
        *_egress(link, host),
    )
    return [replace(finding, interface=link.name) for finding in judged]


def _interface(link: LinkFacts) -> Iterator[Finding]:
    kind = f"{link.kind}, " if link.kind else ""
    if link.link_type != _ETHERNET and link.link_type not in _WITHOUT_LINK_HEADER:
        yield warn("interface", f"{kind}link type {link.link_type}, which has not been tested")
    elif not link.up:
        yield warn("interface", f"{kind}down", f"ip link set dev {link.name} up")
    else:
        header = "Ethernet" if link.link_type == _ETHERNET else "no link header: judged from the IP header on"
        yield ok("interface", f"{kind}up, {header}")
    if link.ports:
        yield _master(link)
    if link.port_of is None:
        return
    kind, owner = link.port_of
    if kind in ("bond", "team"):
        detail = f"a port of the {kind} {owner}: protect {owner}, or every port of it, not both"
        yield warn("port", f"{detail}; a port that runs a program cannot join a {kind} that runs one")
    else:
        yield ok(
            "port", f"a port of the {kind} {owner}: packets from outside meet the filter of the port first"
        )


def _master(link: LinkFacts) -> Finding:
    ports = ", ".join(link.ports)
    if link.kind == "bond":
        detail = (
            f"of {ports}: native XDP works where every port's driver has it and the mode is balance-rr, "
            "active-backup, balance-xor or 802.3ad (kernel 5.15), else generic"
        )
        programs = f"; no port may run a program of its own: ip link set dev {link.ports[0]} xdp off"
        return warn("ports", detail + programs)
    if link.kind == "team":
        return warn("ports", f"of {ports}: generic mode on the team, or native on every port, not both")
    return ok("ports", f"of {ports}")


def _mode(link: LinkFacts) -> Finding:
    driver = f"driver {link.driver}" if link.driver else "driver unknown"
    if link.xdp_features is None:
        known = link.driver in _NATIVE_DRIVERS
        return ok(
            "mode", f"{driver}: native XDP {'is known to work' if known else 'will be tried, then generic'}"
        )
    if not link.xdp_features & _XDP_BASIC:
        if link.driver in _NATIVE_DRIVERS:
            detail = "has native XDP, but not as this interface is set up now"
            return warn("mode", f"{driver} {detail}: generic mode, slower; what is in the way stands below")
        return warn("mode", f"{driver} has no native XDP: generic mode, slower")
    offload = " and offload" if link.xdp_features & _XDP_HW_OFFLOAD else ""
    return ok("mode", f"{driver} has native XDP{offload}")


def _mtu(link: LinkFacts, host: Host) -> Finding:
    limit = min(_MTU_LIMITS.get(link.driver or "", host.page_size), host.page_size - _PAGE_OVERHEAD)
    if link.peer is not None:
        return _peer_mtu(link, link.peer, limit)
    if link.mtu <= limit or not _may_be_native(link):
        return ok("mtu", str(link.mtu))
    who = f"{link.driver} has" if link.driver in _MTU_LIMITS else "most drivers have"
    detail = f"{link.mtu}: {who} native XDP up to about {limit}, above it generic mode, slower"
    if link.kind == "veth":
        detail += "; of a veth the peer's MTU counts: set it there"
    return warn("mtu", detail, f"ip link set dev {link.name} mtu {limit}")


def _peer_mtu(link: LinkFacts, peer: Peer, limit: int) -> Finding:
    """veth_xdp_set(): what the peer sends has to fit in a page."""
    if peer.mtu <= limit:
        return ok("mtu", f"{link.mtu}, of the peer {peer.name} {peer.mtu}")
    detail = (
        f"of the peer {peer.name} {peer.mtu}: veth has native XDP up to about {limit}, above it generic mode"
    )
    return warn("mtu", f"{detail}, slower", f"ip link set dev {peer.name} mtu {limit}")


def _offloads(link: LinkFacts) -> Iterator[Finding]:
    if not _may_be_native(link):
        return
    for option, feature in (("lro", link.lro), ("rx-gro-hw", link.gro_hw)):
        if feature is None:
            continue
        if not feature.on:
            yield ok(option, "off")
        elif probe_obstacles.turns_offloads_off_itself(link):
            yield ok(option, "on: virtio_net turns it off itself for native XDP")
        elif feature.changeable:
            mend = f"ethtool -K {link.name} {option} off"
            yield warn(option, "on: drivers may refuse native XDP with it", mend)
        else:
            yield warn(option, "on, fixed by the driver or the hypervisor: native XDP may be refused")


def _queues(link: LinkFacts, host: Host) -> Iterator[Finding]:
    queues = link.channels
    if queues is None or not queues.used:
        return
    detail = f"{queues.used} in use, {queues.limit} possible, {host.cpus} CPUs"
    useful = min(queues.limit, host.cpus)
    if link.driver == "virtio_net" and _is_before(host.release, (5, 13)):
        # virtnet_xdp_set() before Linux 5.13: a transmit queue for each CPU beside those in use.
        room = queues.limit - host.cpus
        if queues.used > room:
            detail += ": before Linux 5.13 virtio_net has native XDP only with a free queue for each CPU"
            if room > 0:
                yield warn("queues", detail, f"ethtool -L {link.name} combined {room}")
            else:
                yield warn("queues", f"{detail}; give the machine {host.cpus + 1} queues in the hypervisor")
            return
    if link.driver == "ena":
        # ena_xdp_allowed(): the transmit queues of XDP take the other half.
        useful = max(1, min(useful, queues.limit // 2))
        if queues.used > max(1, queues.limit // 2):
            detail += ": ena has native XDP only with half of its queues"
            yield warn("queues", detail, f"ethtool -L {link.name} combined {useful}")
            return
    # A virtual device has no interrupts to spread: it filters on the CPU that sends.
    if queues.used < useful and link.kind is None:
        detail += ": more CPUs could share the filtering"
        yield warn("queues", detail, f"ethtool -L {link.name} combined {useful}")
    else:
        yield ok("queues", detail)


def _ingress(link: LinkFacts, host: Host) -> Iterator[Finding]:
    if not link.xdp:
        yield ok("ingress", "no XDP program attached")
    for found in link.xdp:
        what = f"XDP {_program(found.id, found.name)} is attached, {found.mode}"
        if host.is_ours(found.id, found.name):
            yield ok("ingress", f"ebpf-fw's own {what}")
        elif found.name == "xdp_dispatcher":
            yield fail("ingress", f"libxdp's {what}: ours cannot be", f"xdp-loader unload {link.name} --all")
        else:
            held = f", {found.owner}" if found.owner else ""
            detail = f"another owner's {what}{held}: ours cannot be; stop that owner, then"
            yield fail("ingress", detail, f"ip link set dev {link.name} {_XDP_OFF[found.mode]} off")


def _egress(link: LinkFacts, host: Host) -> Iterator[Finding]:
    if "ingress" in link.qdiscs:
        detail = "a qdisc ingress holds the place of clsact: ours cannot be attached; move its filters, then"
        yield fail("egress", detail, f"tc qdisc del dev {link.name} ingress")
    elif not link.egress:
        yield ok("egress", "no filter attached")
    for found in link.egress:
        if host.is_ours(found.program_id, found.name):
            yield ok("egress", f"ebpf-fw's own {_filter(found)} is attached")
        elif found.direct:
            detail = f"another owner's {_filter(found)}: what it decides may not reach ours"
            yield warn("egress", detail, f"bpftool net show dev {link.name}  # and ask its owner")
        else:
            yield ok("egress", f"another owner's {_filter(found)} is attached")


def _is_before(release: str, version: tuple[int, int]) -> bool:
    parts = re.match(r"(\d+)\.(\d+)", release)
    return parts is not None and (int(parts[1]), int(parts[2])) < version


def _may_be_native(link: LinkFacts) -> bool:
    is_told = link.xdp_features is None or bool(link.xdp_features & _XDP_BASIC)
    return is_told or link.driver in _NATIVE_DRIVERS


def _program(program_id: int, name: str | None) -> str:
    return f"program {program_id} ({name})" if name else f"program {program_id}"


def _filter(found: EgressFilter) -> str:
    where = found.hook if found.priority is None else f"{found.hook} prio {found.priority}"
    what = found.kind if found.program_id is None else _program(found.program_id, found.name)
    return f"{where} filter {what}"
