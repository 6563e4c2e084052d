"""Every cause for which a driver refuses native XDP is found, with the command that mends it."""

from __future__ import annotations

from dataclasses import replace
from errno import EINVAL, EOPNOTSUPP
from pathlib import Path
from typing import Any, ClassVar

import pytest

from firewall.errors import KernelRefused
from firewall.kernel import native, probe_bpf, probe_driver, probe_link
from firewall.kernel.probe_driver import Channels, Feature
from firewall.kernel.probe_link import Peer
from tests.unit.test_probe import PLAIN, judged

ON = Feature(on=True, changeable=True)
FIXED = Feature(on=True, changeable=False)
CSUM, CONTROL, TSO4, MERGED, ANY_LAYOUT, VERSION_1 = 1, 2, 7, 15, 27, 32
MODERN = frozenset({VERSION_1, MERGED})


@pytest.mark.parametrize(
    ("driver", "limit"),
    [
        *(("igc", 1500), ("st_gmac", 1500), ("nicvf", 1508), ("i40e", 3046), ("ice", 3046)),
        *(("ixgbevf", 3050), ("bnxt_en", 3498), ("ena", 3498), ("mlx5_core", 3498), ("virtio_net", 3498)),
    ],
)
def test_each_driver_has_its_largest_mtu(driver: str, limit: int) -> None:
    [fits] = judged("mtu", driver=driver, mtu=limit)
    assert fits.status == "ok"
    [large] = judged("mtu", driver=driver, mtu=limit + 1)
    assert (large.status, large.mend) == ("warn", f"ip link set dev eth7 mtu {limit}")


def test_of_a_veth_the_peers_mtu_counts() -> None:
    [large] = judged("mtu", driver="veth", kind="veth", peer=Peer("there", 9000))
    assert (large.status, large.mend) == ("warn", "ip link set dev there mtu 3498")
    [fits] = judged("mtu", driver="veth", kind="veth", mtu=9000, peer=Peer("there", 1500))
    assert fits.status == "ok"
    [elsewhere] = judged("mtu", driver="veth", kind="veth", mtu=9000)
    assert elsewhere.status == "warn" and "peer" in elsewhere.detail


@pytest.mark.parametrize(
    ("channels", "sends", "mend"),
    [
        (Channels(1, 4), 4, ["ethtool -L eth7 rx 4"]),
        (Channels(1, 1), 4, ["ethtool -L there tx 1"]),
        (Channels(4, 4), 4, []),
        (Channels(1, 1), None, []),
    ],
)
def test_a_veth_receives_on_as_many_queues_as_its_peer_sends(
    channels: Channels, sends: int | None, mend: list[str]
) -> None:
    found = judged("peer", driver="veth", kind="veth", channels=channels, peer=Peer("there", 1500, sends))
    assert [each.mend for each in found] == mend


@pytest.mark.parametrize(
    ("features", "mend"),
    [
        (MODERN | {CSUM, TSO4}, ["-device virtio-net-pci,guest_csum=off,guest_tso4=off"]),
        (MODERN | {CSUM}, ["-device virtio-net-pci,guest_csum=off"]),
        (MODERN | {CSUM, TSO4, CONTROL}, []),
        (MODERN, []),
        (frozenset({MERGED}), ["-device virtio-net-pci,disable-legacy=on"]),
        (frozenset({MERGED, ANY_LAYOUT}), []),
        (None, []),
    ],
)
def test_a_virtio_device_that_does_not_let_go_of_its_offloads_is_told(
    features: frozenset[int] | None, mend: list[str]
) -> None:
    assert [each.mend for each in judged("virtio", driver="virtio_net", virtio=features)] == mend


def test_virtio_net_turns_its_offloads_off_where_the_device_lets_it() -> None:
    lets = MODERN | {CSUM, TSO4, CONTROL}
    [found] = judged("rx-gro-hw", driver="virtio_net", gro_hw=FIXED, virtio=lets)
    assert found.status == "ok"
    [found] = judged("rx-gro-hw", driver="virtio_net", gro_hw=ON, virtio=MODERN | {TSO4})
    assert (found.status, found.mend) == ("warn", "ethtool -K eth7 rx-gro-hw off")


def test_ixgbe_refuses_beside_virtual_functions() -> None:
    [found] = judged("sriov", driver="ixgbe", virtual_functions=2)
    assert (found.status, found.mend) == ("warn", "echo 0 > /sys/class/net/eth7/device/sriov_numvfs")
    assert judged("sriov", driver="ice", virtual_functions=2) == []
    assert judged("sriov", driver="ixgbe") == []


def test_bnxt_wants_combined_queues() -> None:
    [found] = judged("channels", driver="bnxt_en", channels=Channels(4, 8, separate=True))
    assert found.mend == "ethtool -L eth7 rx 0 tx 0 combined 4"
    assert judged("channels", driver="bnxt_en", channels=Channels(4, 8)) == []
    assert judged("channels", driver="igb", channels=Channels(4, 8, separate=True)) == []


# what a refusal says

REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"mtu": 9000, "driver": "bnxt_en"}, "ip link set dev eth7 mtu 3498"),
    ({"lro": ON, "driver": "mlx5_core"}, "ethtool -K eth7 lro off"),
    ({"gro_hw": ON, "driver": "mlx5_core"}, "ethtool -K eth7 rx-gro-hw off"),
    ({"driver": "virtio_net", "virtio": MODERN | {CSUM}}, "guest_csum=off"),
    ({"driver": "ena", "channels": Channels(4, 4)}, "ethtool -L eth7 combined"),
    ({"driver": "veth", "kind": "veth", "peer": Peer("there", 9000)}, "ip link set dev there mtu 3498"),
    ({"driver": "ixgbe", "virtual_functions": 1}, "sriov_numvfs"),
    ({"driver": "e1000e", "xdp_features": 0}, "the driver has no native XDP"),
    ({"port_of": ("bond", "bond0")}, "bond0"),
]


@pytest.mark.parametrize(("facts", "advice"), REFUSALS)
def test_a_refusal_of_native_mode_names_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], advice: str
) -> None:
    monkeypatch.setattr(probe_link, "read", lambda name: replace(PLAIN, **facts))
    refusal = KernelRefused("attaching in native mode to eth7 failed with EOPNOTSUPP", "", errno=EOPNOTSUPP)
    native.explain(refusal, "eth7")
    assert advice in refusal.hint


def test_where_nothing_is_found_the_kernels_own_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_link, "read", lambda name: PLAIN)
    refusal = KernelRefused("attaching failed with EINVAL: the driver's words", "as it was", errno=EINVAL)
    native.explain(refusal, "eth7")
    assert refusal.hint == "as it was"


# reading


def test_features_of_a_virtio_device_are_a_digit_a_bit(tmp_path: Path) -> None:
    file = tmp_path / "features"
    file.write_text("01000001" + "0" * 24 + "1" + "0" * 31 + "\n")
    assert probe_link.virtio_features(file) == {1, 7, 32}
    file.write_text("0x1234\n")
    assert probe_link.virtio_features(file) is None
    assert probe_link.virtio_features(tmp_path / "absent") is None


class Message(dict[str, Any]):
    """An answer of rtnetlink."""

    def get_attr(self, name: str) -> Any:
        return self.get(name)


def link(name: str, **more: Any) -> Message:
    return Message(ifi_type=1, flags=1, IFLA_IFNAME=name, IFLA_MTU=1500, **more)


class FakeRoute:
    """A kernel with a bond of two ports: not every kernel that tests run on has bonding."""

    LINKS: ClassVar = {
        2: link("bond9", IFLA_LINKINFO=Message(IFLA_INFO_KIND="bond")),
        3: link("port1", IFLA_MASTER=2, IFLA_LINKINFO=Message(IFLA_INFO_SLAVE_KIND="bond")),
        4: link("port2", IFLA_MASTER=2, IFLA_LINKINFO=Message(IFLA_INFO_SLAVE_KIND="bond")),
    }

    def __enter__(self) -> FakeRoute:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def link_lookup(self, ifname: str) -> list[int]:
        return [index for index, each in self.LINKS.items() if each["IFLA_IFNAME"] == ifname]

    def link(self, _: str, index: int) -> list[Message]:
        return [self.LINKS[index]]

    def get_links(self, master: int) -> list[Message]:
        return [each for each in self.LINKS.values() if each.get("IFLA_MASTER") == master]

    def get_qdiscs(self, index: int) -> list[Message]:
        return []

    def get_filters(self, index: int, parent: int) -> list[Message]:
        return []


def test_a_bond_and_its_ports_are_read_from_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_link, "IPRoute", FakeRoute)
    monkeypatch.setattr(probe_bpf, "tcx_egress_program_ids", lambda index: ())
    monkeypatch.setattr(probe_driver, "xdp_features", lambda index: None)
    master, port = probe_link.read("bond9"), probe_link.read("port1")
    assert master is not None and port is not None
    assert (master.kind, master.ports) == ("bond", ("port1", "port2"))
    assert port.port_of == ("bond", "bond9")
