"""Runs inside the machine, on a system that has the package's dependencies and nothing of the project: the life of
the service under systemd, from installing it to purging it, with traffic.

`python3 -m tests.vm.guest_system CHECK...`. Standard library only; the order of the checks is that of their names here.
"""

from __future__ import annotations

import grp
import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.vm.guest import PATIENCE_S, Check, eventually, run, run_checks
from tests.vm.guest_traffic import FLOODER, THEIRS, Flood, answers, fraction_passed, join

SHARE = Path("/share")
CONFIG = Path("/etc/ebpf-fw/config.toml")
NETWORK = Path("/etc/systemd/network/eth0.network")
UNIT = "ebpf-fw.service"
CHECKOUT = Path("/root/checkout")
# Where something of the project may lie. /share and /root/checkout hold the tests themselves.
PLACES = ("/etc", "/lib/systemd", "/opt", "/run", "/sys/fs/bpf", "/usr", "/var")


# An emulated machine, on a host that may be busy, needs minutes to end. (For its starts the service asks itself.)
PATIENCE = Path("/etc/systemd/system/ebpf-fw.service.d/patience.conf")
HURRY = PATIENCE.with_name("hurry.conf")
# api.slow_start looks that often whether a start works.
SLOW_START_LOOKS_S = 6
RUNTIME = Path("/run/ebpf-fw")
SOCKET = RUNTIME / "api.sock"
GROUP = "ebpf-fw"
# CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF (linux/capability.h).
CAPABILITIES = 1 << 12 | 1 << 38 | 1 << 39
# Asks over the socket that it is given, and says the status of the answer or why there was none.
ASKING = """
import socket, sys
try:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(sys.argv[1])
        channel.sendall(b"GET /v1/rules HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
        print(channel.makefile("rb").readline().split()[1].decode())
except OSError as error:
    print(type(error).__name__)
"""


def be_patient() -> None:
    PATIENCE.parent.mkdir(parents=True, exist_ok=True)
    PATIENCE.write_text("[Service]\nTimeoutStopSec=600\n")
    run("systemctl daemon-reload")


# -- asking


def call(method: str, path: str, body: Any = None, expected: tuple[int, ...] = (200, 201, 204)) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", 9378, timeout=PATIENCE_S)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status in expected, f"{method} {path}: {answer.status} {content.decode(errors='replace')}"
    return json.loads(content) if content else None


def shown(field: str) -> str:
    return run(f"systemctl show -p {field} --value {UNIT}").strip()


def interface(name: str = "eth0") -> dict[str, Any]:
    return dict(call("GET", f"/v1/interfaces/{name}"))


def program_ids() -> list[int]:
    return [hook["program_id"] for hook in interface()["hooks"]]


def is_filtering(name: str = "eth0") -> tuple[bool, bool]:
    """Ingress, egress, as ip and tc say it."""
    return (
        "fw_xdp_ethernet" in run(f"ip -d link show dev {name}"),
        "fw_tc_ethernet" in run(f"tc filter show dev {name} egress", status=None),
    )


def assert_ready() -> None:
    state = shown("ActiveState")
    assert state == "active", f"{state}: {run(f'journalctl --no-pager -n 60 -u {UNIT}')}"
    call("GET", "/readyz")


def assert_confined() -> None:
    """It has the capabilities that the unit names and no others; systemd finds it as hardened as the unit says."""
    status = Path(f"/proc/{shown('MainPID')}/status").read_text()
    held = dict(re.findall(r"^Cap(\w+):\s*(\w+)$", status, re.MULTILINE))
    assert all(int(held[kind], 16) == CAPABILITIES for kind in ("Eff", "Prm", "Bnd")), held
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status, status
    run(f"systemd-analyze security --no-pager --threshold=20 {UNIT}")


def assert_socket_is_the_group_s() -> None:
    """A member of the group may use the Unix socket without being root, nobody else may."""
    group = grp.getgrnam(GROUP).gr_gid
    for path, mode in ((RUNTIME, 0o2750), (SOCKET, 0o660)):
        found = path.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, group, mode), (path, found)
    assert asks(65534, [group]) == "200"
    assert asks(65534, []) == "PermissionError"


def asks(user: int, groups: list[int]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ASKING, str(SOCKET)],
        user=user, group=user, extra_groups=groups, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def groups_of_ours() -> list[str]:
    return [each.gr_name for each in grp.getgrall() if each.gr_name == GROUP]


def remains() -> list[str]:
    """Files of ours that are on the system. dpkg keeps a package's name in its log and its list of old packages."""
    known = (str(PATIENCE.parent), "/var/log/dpkg", "/var/lib/dpkg/", "/var/log/journal", "/run/log/journal")
    found = run(f"find {' '.join(PLACES)} -xdev -iname *ebpf*fw*", status=None).splitlines()
    return [path for path in found if path.startswith("/") and not path.startswith(known)]


# -- the package


def install_package() -> dict[str, Any]:
    assert not remains(), remains()
    be_patient()
    started = time.monotonic()
    said = run("dpkg -i /share/first.deb")
    assert run("dpkg-query -W -f ${db:Status-Abbrev} ebpf-fw").strip() == "ii"
    assert_ready()
    assert run(f"systemctl is-enabled {UNIT}").strip() == "enabled"
    assert is_filtering() == (False, False), "nobody asked for a filter"
    assert_confined()
    status = json.loads(run("ebpf-fw --json status"))
    return {"seconds": round(time.monotonic() - started, 1), "bcc": status["bcc"], "said": said[-200:]}


def protect_by_config() -> dict[str, Any]:
    join()
    assert all(fraction_passed()), "the flood passes while nothing is filtered"
    listen = f'[api]\nlisten = ["127.0.0.1:9378", "unix:{SOCKET}"]\n'
    assert "[api]\n" in CONFIG.read_text()
    CONFIG.write_text(CONFIG.read_text().replace("[api]\n", listen) + '\n[[interfaces]]\nname = "eth0"\n')
    run(f"systemctl restart {UNIT}")
    assert_ready()
    assert_socket_is_the_group_s()
    assert is_filtering() == (True, True)
    sent, passed = fraction_passed()
    assert passed > 0, "the flood passes without a rule"
    assert answers(), "ping passes without a rule"
    run(f"ebpf-fw rule add --id flooder --source {FLOODER}")
    sent, passed = fraction_passed()
    assert sent and not passed, (sent, passed)
    call("POST", "/v1/rules", {"id": "peer", "sources": [THEIRS], "protocols": ["icmp"]})
    assert not answers(), "the rule drops pings"
    call("DELETE", "/v1/rules/peer")
    assert answers(), "ping passes again"
    return {"mode": interface()["actual_mode"], "native_unavailable": interface()["native_unavailable"]}


def native_mode() -> dict[str, Any]:
    view = interface()
    assert view["actual_mode"] == "native", view
    return {"mode": view["actual_mode"]}


def refused_native_mode() -> dict[str, Any]:
    """eth2's host does GRO for it and cannot be told to stop: the field's most frequent refusal."""
    run("ip link set eth2 up")
    view = call("PUT", "/v1/interfaces/eth2", {"mode": "auto"})
    assert view["actual_mode"] == "generic", view
    assert "GRO_HW" in view["native_unavailable"], view
    refused = call("PUT", "/v1/interfaces/eth2", {"mode": "native"}, (503,))
    call("DELETE", "/v1/interfaces/eth2")
    return {"native_unavailable": view["native_unavailable"], "refusal": refused["detail"]}


def during(action: Any) -> dict[str, Any]:
    """No frame of the flood passes while something happens to the service."""
    before = call("GET", "/v1/rules/flooder")["stats"]["packets"]
    started = time.monotonic()
    with Flood() as flood:
        action()
        time.sleep(0.5)
    facts = {"sent": flood.sent, "passed": flood.passed, "seconds": round(time.monotonic() - started, 1)}
    assert flood.sent > 100 and not flood.passed, facts
    eventually(lambda: shown("ActiveState") != "reloading", "a reload has an end")
    assert_ready()
    assert is_filtering() == (True, True)
    counted = call("GET", "/v1/rules/flooder")["stats"]["packets"] - before
    return {**facts, "counted": counted}


def restart() -> dict[str, Any]:
    return during(partial(run, f"systemctl restart {UNIT}"))


def reload() -> dict[str, Any]:
    process = shown("MainPID")
    call("PUT", "/v1/interfaces/eth2", {"mode": "generic"}, (200, 201))
    facts = during(partial(run, f"systemctl reload {UNIT}"))
    assert shown("MainPID") == process, "a reload is not a restart"
    call("DELETE", "/v1/interfaces/eth2")
    return facts


def a_broken_config_is_refused_by_a_reload() -> dict[str, Any]:
    good = CONFIG.read_text()
    CONFIG.write_text(good + "nonsense = 1\n")
    try:
        return during(partial(run, f"systemctl reload {UNIT}", status=None))
    finally:
        CONFIG.write_text(good)


def kill() -> dict[str, Any]:
    process = shown("MainPID")

    def kill_and_wait() -> None:
        os.kill(int(process), signal.SIGKILL)
        eventually(lambda: shown("MainPID") not in (process, "0"), "systemd starts it again")
        eventually(lambda: shown("ActiveState") == "active", "it is active again")

    return during(kill_and_wait)


def hang() -> dict[str, Any]:
    """The process stops running without ending; the unit's watchdog notices."""
    process = shown("MainPID")

    def hang_and_wait() -> None:
        os.kill(int(process), signal.SIGSTOP)
        eventually(lambda: shown("MainPID") not in (process, "0"), "systemd ends it and starts it again")
        eventually(lambda: shown("ActiveState") == "active", "it is active again")

    facts = during(hang_and_wait)
    assert "Watchdog timeout" in run(f"journalctl --no-pager -u {UNIT}")
    return facts


def upgrade() -> dict[str, Any]:
    programs = program_ids()
    facts = during(partial(run, "dpkg -i /share/second.deb"))
    assert program_ids() != programs, "the second version has other programs"
    version = run("dpkg-query -W -f ${Version} ebpf-fw")
    return {**facts, "version": version, "config": '[[interfaces]]\nname = "eth0"' in CONFIG.read_text()}


def stop_and_start() -> dict[str, Any]:
    """The start has to compile, which takes longer than the unit is made to allow: it asks for more time."""
    # The last one had not to compile, and was asking long before it was over.
    allowed = last_start_s() / 2 + SLOW_START_LOOKS_S
    run(f"systemctl stop {UNIT}")
    assert is_filtering() == (False, False), "a stop takes the filters off"
    assert not Path("/sys/fs/bpf/ebpf-fw").exists()
    sent, passed = fraction_passed()
    assert passed, "the flood passes while the service is stopped"
    shutil.rmtree("/var/cache/ebpf-fw")
    HURRY.write_text(f"[Service]\nTimeoutStartSec={allowed:.0f}\n")
    run("systemctl daemon-reload")
    run(f"systemctl start {UNIT}")
    # "started" means filtering: no waiting here.
    assert is_filtering() == (True, True)
    sent, passed = fraction_passed()
    assert sent and not passed
    HURRY.unlink()
    run("systemctl daemon-reload")
    took = last_start_s()
    assert took > allowed or took < SLOW_START_LOOKS_S, "an emulated machine's start takes longer"
    return {"seconds": round(took, 1), "allowed": round(allowed, 1)}


def last_start_s() -> float:
    began, ended = (int(shown(f"{state}TimestampMonotonic")) for state in ("InactiveExit", "ActiveEnter"))
    return (ended - began) / 1e6


def an_upgrade_leaves_a_stopped_service_alone() -> dict[str, Any]:
    run(f"systemctl stop {UNIT}")
    run("dpkg -i /share/second.deb")
    assert shown("ActiveState") == "inactive"
    run(f"systemctl start {UNIT}")
    return {}


def prepare_reboot() -> dict[str, Any]:
    """The network is brought up by systemd-networkd at boot, as on a server."""
    NETWORK.write_text("[Match]\nName=eth0\n[Network]\nAddress=10.91.0.1/24\nIPv6AcceptRA=no\n")
    run("systemctl enable systemd-networkd")
    call("POST", "/v1/rules", {"id": "kept", "sources": ["198.51.100.0/24"], "priority": 7})
    return {}


def kept_counts() -> dict[str, int]:
    """Packets by hook that were counted before this boot: the counters of the API go on from them."""
    store = sqlite3.connect("file:/var/lib/ebpf-fw/rules.db?mode=ro", uri=True)
    rows = dict(store.execute("SELECT hook, sum(packets) FROM interface_hits GROUP BY hook").fetchall())
    store.close()
    return {"ingress": rows.get(0, 0), "egress": rows.get(1, 0)}


def packets_of_the_card() -> dict[str, int]:
    card = json.loads(run("ip -j -s link show dev eth0"))[0]["stats64"]
    return {side: card[side]["packets"] for side in ("rx", "tx")}


def counts_since_boot() -> dict[str, int]:
    """Packets by hook."""
    counted = {hook: -before for hook, before in kept_counts().items()}
    for each in call("GET", "/v1/counters")["items"]:
        counted[each["hook"]] += each["packets"]
    return counted


def after_reboot() -> dict[str, Any]:
    """Ready before network-pre.target; and every packet that eth0 ever sent or got went through its hooks."""
    eventually(lambda: "UP" in run("ip -br link show dev eth0"), "networkd brings eth0 up")
    assert_ready()
    ready_us = int(shown("ActiveEnterTimestampMonotonic"))
    network_us = int(run("systemctl show -p ActiveEnterTimestampMonotonic --value network-pre.target"))
    networkd_us = int(run("systemctl show -p ExecMainStartTimestampMonotonic --value systemd-networkd"))
    assert ready_us <= network_us <= networkd_us, (ready_us, network_us, networkd_us)
    run("ip netns add peer")
    run("ip link set eth1 netns peer")
    run(f"ip -n peer address add {THEIRS}/24 dev eth1")
    run("ip -n peer link set eth1 up")
    eventually(answers, "ping passes")
    sent, passed = fraction_passed()
    assert sent and not passed
    assert call("GET", "/v1/rules/kept")["priority"] == 7
    card, counted = packets_of_the_card(), counts_since_boot()

    def is_each_counted() -> bool:
        """Counters are told as last seen while something else has the firewall, which is long on this machine."""
        counted.update(counts_since_boot())
        return counted["egress"] >= card["tx"] and counted["ingress"] >= card["rx"]

    eventually(is_each_counted, f"what the card saw, {card}, is counted")
    assert card["tx"] > 0 and card["rx"] > 0
    return {
        "ready_before_network_ms": (network_us - ready_us) // 1000,
        "counted": counted,
        "card": card,
    }


def remove() -> dict[str, Any]:
    assert is_filtering() == (True, True)
    run("dpkg -r ebpf-fw")
    assert is_filtering() == (False, False), "removing takes the filters off"
    assert "clsact" not in run("tc qdisc show dev eth0")
    left = remains()
    expected = {"/etc/ebpf-fw", "/etc/fail2ban/action.d/ebpf-fw.conf", "/var/lib/ebpf-fw"}
    # systemd's mask of the removed unit and debhelper's memory of it go when the package is purged.
    others = {path for path in left if "systemd" not in path}
    assert others == expected, left
    return {"left": left}


def purge() -> dict[str, Any]:
    run("dpkg -P ebpf-fw")
    assert not remains(), remains()
    assert shown("LoadState") == "not-found"
    assert not groups_of_ours()
    return {}


# -- make install


def make_install() -> dict[str, Any]:
    be_patient()
    shutil.copytree(SHARE / "project", CHECKOUT)
    started = time.monotonic()
    make("install")
    seconds = round(time.monotonic() - started, 1)
    run(f"systemctl enable --now {UNIT}")
    assert_ready()
    assert_confined()
    return {"seconds": seconds}


def make(target: str, **variables: str) -> str:
    """Without a network: pip takes the wheels from the share."""
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/share/wheels"}
    done = subprocess.run(
        ["make", "-C", str(CHECKOUT), target, *(f"{key}={value}" for key, value in variables.items())],
        env={**os.environ, **index}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def make_install_again() -> dict[str, Any]:
    """An upgrade in place: other programs, the same configuration, the filters on all the time."""
    programs = program_ids()
    program = CHECKOUT / "bpf/decide.h"
    program.write_text(program.read_text().replace("#endif", "/* later */\n#endif"))

    def upgrade_and_restart() -> None:
        make("install")
        run(f"systemctl restart {UNIT}")

    facts = during(upgrade_and_restart)
    assert program_ids() != programs
    return facts


def make_uninstall() -> dict[str, Any]:
    make("uninstall")
    assert is_filtering() == (False, False)
    assert {path for path in remains() if "systemd" not in path} == {"/etc/ebpf-fw", "/var/lib/ebpf-fw"}
    make("uninstall", PURGE="1")
    assert not remains(), remains()
    assert not groups_of_ours()
    return {}


CHECKS: tuple[Check, ...] = (
    install_package, make_install, protect_by_config, native_mode, refused_native_mode, restart, reload,
    a_broken_config_is_refused_by_a_reload, kill, hang, stop_and_start, upgrade, make_install_again,
    an_upgrade_leaves_a_stopped_service_alone, prepare_reboot, after_reboot, remove, purge, make_uninstall,
)  # fmt: skip


def main() -> None:
    by_name = {check.__name__: check for check in CHECKS}
    run_checks({name: by_name[name] for name in sys.argv[1:]})


if __name__ == "__main__":
    main()
