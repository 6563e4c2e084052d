"""Owns what single drivers ask of an interface before they take an XDP program, beside MTU, offloads and queues.

Each condition is the driver's own; the function that refuses stands beside it. It reads nothing itself.
"""

from collections.abc import Iterator

from firewall.kernel.finding import Finding, warn
from firewall.kernel.probe_link import LinkFacts

# include/uapi/linux/virtio_net.h, virtio_config.h
_CTRL_GUEST_OFFLOADS, _MRG_RXBUF, _ANY_LAYOUT, _VERSION_1 = 2, 15, 27, 32
# fmt: off
_GUEST_OFFLOADS = {
    1: "guest_csum", 7: "guest_tso4", 8: "guest_tso6", 9: "guest_ecn", 10: "guest_ufo",
    54: "guest_uso4", 55: "guest_uso6",
}
# fmt: on


def findings(link: LinkFacts) -> Iterator[Finding]:
    yield from _virtio(link)
    yield from _veth(link)
    yield from _virtual_functions(link)
    yield from _separate_queues(link)


def turns_offloads_off_itself(link: LinkFacts) -> bool:
    """virtnet_xdp_set() does where the device lets it."""
    return link.driver == "virtio_net" and link.virtio is not None and _CTRL_GUEST_OFFLOADS in link.virtio


def _virtio(link: LinkFacts) -> Iterator[Finding]:
    """virtnet_xdp_set(): "host is implementing GRO_HW/CSUM", "any_header_sg required"."""
    if link.virtio is None or link.driver != "virtio_net":
        return
    offloads = [name for bit, name in _GUEST_OFFLOADS.items() if bit in link.virtio]
    if offloads and not turns_offloads_off_itself(link):
        switches = ",".join(f"{name}=off" for name in offloads)
        detail = (
            f"the device has {', '.join(offloads)}, and no way to turn them off from here: virtio_net refuses "
            "native XDP (GRO_HW/CSUM). Turn them off in the hypervisor; QEMU's option is"
        )
        yield warn("virtio", detail, f"-device virtio-net-pci,{switches}")
    if _MRG_RXBUF in link.virtio and not {_ANY_LAYOUT, _VERSION_1} & link.virtio:
        detail = "a legacy device with merged buffers and without any_layout: virtio_net refuses native XDP"
        yield warn("virtio", f"{detail}. QEMU's option is", "-device virtio-net-pci,disable-legacy=on")


def _veth(link: LinkFacts) -> Iterator[Finding]:
    """veth_xdp_set(): "XDP expects number of rx queues not less than peer tx queues"."""
    if link.peer is None or link.channels is None or not link.channels.used:
        return
    sends, receives = link.peer.transmit_queues or 0, link.channels.used
    if sends <= receives:
        return
    detail = f"the peer {link.peer.name} sends on {sends} queues, {link.name} receives on {receives}"
    can_grow = sends <= link.channels.limit
    mend = f"{link.name} rx {sends}" if can_grow else f"{link.peer.name} tx {receives}"
    yield warn("peer", f"{detail}: veth refuses native XDP", f"ethtool -L {mend}")


def _virtual_functions(link: LinkFacts) -> Iterator[Finding]:
    """ixgbe_xdp_setup() takes none beside SR-IOV."""
    if link.driver == "ixgbe" and link.virtual_functions:
        detail = f"{link.virtual_functions} virtual functions: ixgbe refuses native XDP beside SR-IOV"
        yield warn("sriov", detail, f"echo 0 > /sys/class/net/{link.name}/device/sriov_numvfs")


def _separate_queues(link: LinkFacts) -> Iterator[Finding]:
    """bnxt_xdp_set(): "ethtool rx/tx channels must be combined"."""
    if link.driver == "bnxt_en" and link.channels is not None and link.channels.separate:
        detail = "receive and transmit queues are separate: bnxt_en has native XDP only with combined ones"
        yield warn("channels", detail, f"ethtool -L {link.name} rx 0 tx 0 combined {link.channels.used}")
