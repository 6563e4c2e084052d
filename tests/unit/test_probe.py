"""The host probe's judgement, from facts made up for the purpose; nothing here needs root or a real NIC."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firewall.kernel import probe_bpf, probe_driver, probe_host, probe_interface, probe_link
from firewall.kernel.finding import Finding
from firewall.kernel.probe import probe
from firewall.kernel.probe_driver import Channels, Feature
from firewall.kernel.probe_interface import Host
from firewall.kernel.probe_link import EgressFilter, LinkFacts, XdpProgram

HOST = Host(cpus=4, page_size=4096, ours=frozenset({7}))
PLAIN = LinkFacts(
    name="eth7",
    ifindex=7,
    link_type=1,
    kind=None,
    up=True,
    mtu=1500,
    driver="ixgbe",
    port_of=None,
    xdp_features=1,
    lro=Feature(on=False, changeable=True),
    gro_hw=Feature(on=False, changeable=True),
    channels=Channels(used=4, limit=8),
    xdp=(),
    qdiscs=("mq",),
    egress=(),
)


def judged(name: str, **facts: Any) -> list[Finding]:
    findings = probe_interface.findings(replace(PLAIN, **facts), HOST)
    assert {finding.interface for finding in findings} == {"eth7"}
    return [finding for finding in findings if finding.name == name]


# the host


@pytest.mark.parametrize(
    ("held", "status", "missing"),
    [
        ("000001fffeffffff", "ok", ""),
        ("0000000000000000", "fail", "CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON"),
        (f"{1 << 12 | 1 << 38:016x}", "fail", "CAP_BPF"),
        (f"{1 << 21:016x}", "fail", "CAP_NET_ADMIN"),
        (f"{1 << 12 | 1 << 38 | 1 << 39:016x}", "warn", "CAP_SYS_ADMIN"),
    ],
)
def test_missing_capabilities_are_named(held: str, status: str, missing: str) -> None:
    finding = probe_host.privileges(f"Name:\tpython3\nCapPrm:\t0000000000000000\nCapEff:\t{held}\n")
    assert finding.status == status
    assert missing in finding.detail


@pytest.mark.parametrize(
    ("release", "status"),
    [("6.1.0-13-amd64", "ok"), ("5.10.0", "ok"), ("5.4.0-100", "fail"), ("4.19", "fail"), ("odd", "warn")],
)
def test_a_kernel_older_than_5_10_fails(release: str, status: str) -> None:
    assert probe_host.kernel(release).status == status


def test_a_refused_bpf_call_is_named_with_its_errno() -> None:
    finding = probe_host.bpf_syscall(OSError(errno.EPERM, "Operation not permitted"))
    assert (finding.status, finding.detail) == ("fail", "bpf() is refused: Operation not permitted (EPERM)")
    assert finding.mend is not None
    assert probe_host.bpf_syscall(OSError("no number")).detail == "bpf() is refused: no number"
    assert probe_host.bpf_syscall(24).status == "ok"


def test_bpffs_that_is_not_mounted_is_a_warning_because_the_service_mounts_it() -> None:
    assert probe_host.bpffs("bpf /sys/fs/bpf bpf rw 0 0\n").status == "ok"
    assert probe_host.bpffs("sysfs /sys sysfs rw 0 0\ntmpfs /sys/fs/bpf tmpfs rw 0 0\n\n").status == "warn"


@pytest.mark.parametrize(
    ("version", "error", "on_system", "status", "mend"),
    [
        ("0.26.0", None, True, "ok", None),
        ("0.18.0", None, True, "warn", None),
        ("unknown", None, True, "warn", None),
        (None, "No module named 'bcc'", False, "fail", "apt-get install python3-bpfcc"),
        (None, "No module named 'bcc'", True, "fail", "--system-site-packages"),
        (None, "libbcc.so.0: cannot open shared object file", True, "fail", "apt-get install python3-bpfcc"),
    ],
)
def test_bcc_that_is_missing_is_told_from_bcc_that_is_not_seen(
    version: str | None, error: str | None, on_system: bool, status: str, mend: str | None
) -> None:
    finding = probe_host.bcc(version, error, on_system=on_system)
    assert finding.status == status
    assert mend is None if finding.mend is None else str(mend) in finding.mend


def test_headers_of_the_c_library_that_are_missing_are_named() -> None:
    finding = probe_host.headers(["/usr/include/linux/bpf.h"])
    assert (finding.status, finding.mend) == ("fail", "apt-get install linux-libc-dev")
    assert "/usr/include/linux/bpf.h" in finding.detail
    assert probe_host.headers([]).status == "ok"


@pytest.mark.parametrize(
    ("setting", "tried", "status"),
    [
        ("1", 24, "ok"),
        ("0", 0, "warn"),
        ("2", 24, "warn"),
        (None, 24, "ok"),
        (None, 0, "warn"),
        (None, OSError(errno.EPERM, ""), "warn"),
    ],
)
def test_the_jit_is_judged_by_the_sysctl_or_by_a_loaded_program(
    setting: str | None, tried: int | OSError, status: str
) -> None:
    assert probe_host.jit(setting, tried).status == status


# an interface


def test_a_plain_interface_has_only_ok_findings() -> None:
    findings = probe_interface.findings(PLAIN, HOST)
    assert {finding.status for finding in findings} == {"ok"}
    assert [finding.name for finding in findings] == [
        *("interface", "mode", "mtu", "lro", "rx-gro-hw", "queues", "ingress", "egress")
    ]


def test_an_interface_that_does_not_exist_fails() -> None:
    assert probe_interface.missing("nix").status == "fail"
    assert probe_interface.missing("nix").interface == "nix"


def test_an_interface_that_is_down_or_of_an_untested_type_is_a_warning() -> None:
    [down] = judged("interface", up=False)
    assert (down.status, down.mend) == ("warn", "ip link set dev eth7 up")
    [unknown] = judged("interface", link_type=512)
    assert "512" in unknown.detail
    [tun] = judged("interface", link_type=0xFFFE, kind="tun")
    assert (tun.status, tun.detail) == ("ok", "tun, up, no link header: judged from the IP header on")


def test_a_port_of_a_bond_is_a_warning_and_of_a_bridge_is_not() -> None:
    assert judged("port") == []
    assert [finding.status for finding in judged("port", port_of=("bond", "bond0"))] == ["warn"]
    assert [finding.status for finding in judged("port", port_of=("bridge", "br0"))] == ["ok"]


def test_a_master_tells_of_its_ports() -> None:
    assert judged("ports") == []
    [bond] = judged("ports", kind="bond", ports=("eth0", "eth1"))
    assert bond.status == "warn" and "eth0, eth1" in bond.detail and "802.3ad" in bond.detail
    [team] = judged("ports", kind="team", ports=("eth0",))
    assert team.status == "warn" and "not both" in team.detail
    assert [each.status for each in judged("ports", kind="bridge", ports=("eth0",))] == ["ok"]


@pytest.mark.parametrize(
    ("release", "used", "limit", "mend"),
    [
        ("5.10.0-33-amd64", 8, 8, "ethtool -L eth7 combined 4"),
        ("5.10.0-33-amd64", 4, 8, None),
        ("5.10.0-33-amd64", 1, 1, None),
        ("6.1.0-28-amd64", 8, 8, None),
    ],
)
def test_virtio_net_once_needed_a_free_queue_for_each_cpu(
    release: str, used: int, limit: int, mend: str | None
) -> None:
    facts = replace(PLAIN, driver="virtio_net", channels=Channels(used=used, limit=limit))
    host = replace(HOST, release=release)
    [finding] = [each for each in probe_interface.findings(facts, host) if each.name == "queues"]
    assert finding.mend == mend
    assert ("5.13" in finding.detail) == (release.startswith("5.10") and used > limit - 4)


def test_our_programs_are_known_by_their_names_where_the_pins_are_elsewhere() -> None:
    own = judged("ingress", xdp=(XdpProgram("native", 4711, "fw_xdp_ethernet"),))
    assert [each.status for each in own] == ["ok"]
    [other] = judged("ingress", xdp=(XdpProgram("native", 4711, "x", "held by lb (pid 7)"),))
    assert other.status == "fail" and "held by lb (pid 7)" in other.detail


@pytest.mark.parametrize(
    ("features", "driver", "status", "text"),
    [
        (1, "ixgbe", "ok", "driver ixgbe has native XDP"),
        (17, "nfp", "ok", "driver nfp has native XDP and offload"),
        (0, "e1000e", "warn", "driver e1000e has no native XDP: generic mode, slower"),
        (None, "veth", "ok", "driver veth: native XDP is known to work"),
        (None, "brandnew", "ok", "driver brandnew: native XDP will be tried, then generic"),
        (None, None, "ok", "driver unknown: native XDP will be tried, then generic"),
    ],
)
def test_the_mode_is_told_by_the_kernel_or_else_by_the_driver(
    features: int | None, driver: str | None, status: str, text: str
) -> None:
    [finding] = judged("mode", xdp_features=features, driver=driver)
    assert (finding.status, finding.detail) == (status, text)


def test_an_mtu_that_does_not_fit_in_a_page_is_a_warning_where_native_is_possible() -> None:
    assert [finding.status for finding in judged("mtu", mtu=3498, driver="mlx5_core")] == ["ok"]
    [large] = judged("mtu", mtu=9000, driver="mlx5_core")
    assert (large.status, large.mend) == ("warn", "ip link set dev eth7 mtu 3498")
    assert [finding.status for finding in judged("mtu", mtu=9000, xdp_features=0, driver="e1000e")] == ["ok"]


def test_offloads_that_native_xdp_may_not_have_are_named_with_the_command() -> None:
    [lro] = judged("lro", lro=Feature(on=True, changeable=True))
    assert (lro.status, lro.mend) == ("warn", "ethtool -K eth7 lro off")
    [gro] = judged("rx-gro-hw", gro_hw=Feature(on=True, changeable=True))
    assert gro.mend == "ethtool -K eth7 rx-gro-hw off"
    [fixed] = judged("rx-gro-hw", gro_hw=Feature(on=True, changeable=False))
    assert (fixed.status, fixed.mend) == ("warn", None)
    assert judged("lro", lro=None) == []
    assert judged("lro", lro=Feature(on=True, changeable=True), xdp_features=0, driver="e1000e") == []
    [in_the_way] = judged("lro", lro=Feature(on=True, changeable=True), xdp_features=0)
    assert in_the_way.mend == "ethtool -K eth7 lro off"


@pytest.mark.parametrize(
    ("driver", "kind", "channels", "status", "mend"),
    [
        ("ixgbe", None, Channels(4, 8), "ok", None),
        ("ixgbe", None, Channels(8, 8), "ok", None),
        ("ixgbe", None, Channels(1, 1), "ok", None),
        ("ixgbe", None, Channels(1, 8), "warn", "ethtool -L eth7 combined 4"),
        ("veth", "veth", Channels(1, 8), "ok", None),
        ("ena", None, Channels(4, 4), "warn", "ethtool -L eth7 combined 2"),
        ("ena", None, Channels(2, 4), "ok", None),
        ("ena", None, Channels(8, 16), "ok", None),
        ("ena", None, Channels(1, 16), "warn", "ethtool -L eth7 combined 4"),
    ],
)
def test_queues_are_compared_with_the_cpus(
    driver: str, kind: str | None, channels: Channels, status: str, mend: str | None
) -> None:
    [finding] = judged("queues", driver=driver, kind=kind, channels=channels)
    assert (finding.status, finding.mend) == (status, mend)


def test_no_queues_are_no_finding() -> None:
    assert judged("queues", channels=None) == []
    assert judged("queues", channels=Channels(0, 0)) == []


def test_another_owners_xdp_program_fails_and_our_own_does_not() -> None:
    [own] = judged("ingress", xdp=(XdpProgram("native", 7, "xdp_filter"),))
    assert own.status == "ok"
    [other] = judged("ingress", xdp=(XdpProgram("generic", 8, None),))
    assert (other.status, other.mend) == ("fail", "ip link set dev eth7 xdpgeneric off")
    [libxdp] = judged("ingress", xdp=(XdpProgram("native", 9, "xdp_dispatcher"),))
    assert libxdp.mend == "xdp-loader unload eth7 --all"


def test_a_filter_that_may_decide_before_ours_is_a_warning() -> None:
    own = EgressFilter("clsact", "bpf", 1, 7, "tc_filter", direct=True)
    other = replace(own, program_id=8, name="cil_to_netdev")
    tcx = EgressFilter("tcx", "bpf", None, 9, None, direct=True)
    flower = EgressFilter("clsact", "flower", 3, None, None, direct=False)
    findings = judged("egress", egress=(own, other, tcx, flower))
    assert [finding.status for finding in findings] == ["ok", "warn", "warn", "ok"]
    assert "clsact prio 1 filter program 8 (cil_to_netdev)" in findings[1].detail
    assert "tcx filter program 9:" in findings[2].detail
    assert "clsact prio 3 filter flower" in findings[3].detail


def test_an_ingress_qdisc_holds_the_place_of_clsact() -> None:
    [finding] = judged("egress", qdiscs=("mq", "ingress"))
    assert (finding.status, finding.mend) == ("fail", "tc qdisc del dev eth7 ingress")
    assert [found.status for found in judged("egress", qdiscs=("clsact",))] == ["ok"]


# all of it


def test_the_probe_asks_for_the_interfaces_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_host, "findings", lambda: [Finding("kernel", "ok", "6.1")])
    monkeypatch.setattr(probe_link, "interface_names", lambda: ["eth7", "eth8"])
    monkeypatch.setattr(probe_link, "read", lambda name: replace(PLAIN, name=name) if name != "nix" else None)
    monkeypatch.setattr(probe_bpf, "pinned_program_ids", lambda root: frozenset({len(str(root))}))
    assert {finding.interface for finding in probe()} == {None, "eth7", "eth8"}
    [*_, missing] = probe(["eth8", "nix"], pin_root=Path("/elsewhere"))
    assert (missing.interface, missing.status) == ("nix", "fail")


def test_reading_the_loopback_finds_a_driver_free_interface() -> None:
    link = probe_link.read("lo")
    assert link is not None
    assert (link.link_type, link.kind, link.port_of) == (772, None, None)
    assert "lo" not in probe_link.interface_names()
    assert probe_link.read("no-such-nic") is None


def test_what_an_interface_does_not_tell_is_none() -> None:
    assert probe_driver.name("no-such-nic") is None
    assert probe_driver.channels("no-such-nic") is None
    assert probe_driver.features("no-such-nic") == {}
    assert probe_driver.xdp_features(999_999) is None


def test_a_pin_root_that_does_not_exist_holds_no_programs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not pinned")
    assert probe_bpf.pinned_program_ids(tmp_path) == frozenset()
    assert probe_bpf.pinned_program_ids(tmp_path / "absent") == frozenset()
