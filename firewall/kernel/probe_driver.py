"""Owns what a network driver says of itself: its name, offloads, queues and XDP features. It only reads.

ethtool is asked by ioctl and not by netlink, because pyroute2 offers features and channels only there.
"""

import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

from pyroute2.ethtool.ioctl import IoctlEthtool, NoSuchDevice, NotSupportedError
from pyroute2.netlink import NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket, GenericNetlinkSocket

_SIOCETHTOOL, _ETHTOOL_GDRVINFO, _DRVINFO_SIZE = 0x8946, 3, 196
_NETDEV_CMD_DEV_GET = 1
_SILENT = (NotSupportedError, NoSuchDevice, OSError)


@dataclass(frozen=True)
class Feature:
    """An ethtool feature: whether it is on, and whether the driver lets it be changed."""

    on: bool
    changeable: bool


@dataclass(frozen=True)
class Channels:
    """Receive queues that an interface uses, and the most that it could use."""

    used: int
    limit: int
    separate: bool = False  # from the transmit queues


class _NetdevMessage(genlmsg):  # type: ignore[misc]
    """NETDEV_CMD_DEV_GET of Documentation/netlink/specs/netdev.yaml."""

    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


class _AsyncNetdevSocket(AsyncGenericNetlinkSocket):  # type: ignore[misc]
    module_err_level = "debug"  # a kernel older than 6.3 has no such family: that is an answer, not an error


class _NetdevSocket(GenericNetlinkSocket):  # type: ignore[misc]
    async_class = _AsyncNetdevSocket


def name(interface: str) -> str | None:
    """The driver's name as `ethtool -i` shows it: struct ethtool_drvinfo, whose second field it is."""
    answer = ctypes.create_string_buffer(struct.pack("=I", _ETHTOOL_GDRVINFO), _DRVINFO_SIZE)
    request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(answer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, request)
        except OSError:
            return None
    return answer.raw[4:36].split(b"\0")[0].decode("ascii", "replace") or None


def features(interface: str) -> dict[str, Feature]:
    """Every feature by its kernel name, such as `rx-lro`; empty where the driver tells none."""
    with _ethtool(interface) as ethtool, suppress(*_SILENT):
        return {row[0]: Feature(on=row[1], changeable=row[2]) for row in ethtool.get_features()}
    return {}


def channels(interface: str) -> Channels | None:
    with _ethtool(interface) as ethtool, suppress(*_SILENT):
        found = ethtool.get_channels()
        used = found.combined_count + found.rx_count
        return Channels(used, found.max_combined or found.max_rx, found.rx_count > 0)
    return None


def transmit_queues(interface: str) -> int | None:
    with _ethtool(interface) as ethtool, suppress(*_SILENT):
        found = ethtool.get_channels()
        return int(found.combined_count + found.tx_count)
    return None


def xdp_features(ifindex: int) -> int | None:
    """Bits of enum netdev_xdp_act; None on kernels before 6.3, which do not tell."""
    message = _NetdevMessage()
    message["cmd"], message["version"] = _NETDEV_CMD_DEV_GET, 1
    message["attrs"].append(("NETDEV_A_DEV_IFINDEX", ifindex))
    try:
        with closing(_NetdevSocket()) as netlink:
            netlink.bind("netdev", _NetdevMessage)
            answers = netlink.nlm_request(message, msg_type=netlink.prid, msg_flags=NLM_F_REQUEST)
            return next((int(found.get_attr("NETDEV_A_DEV_XDP_FEATURES") or 0) for found in answers), None)
    except (NetlinkError, OSError):
        return None


@contextmanager
def _ethtool(interface: str) -> Iterator[IoctlEthtool]:
    with closing(IoctlEthtool(interface)) as ethtool:
        yield ethtool
