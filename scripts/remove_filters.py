"""Takes every program of ebpf-fw off this network namespace's interfaces, and its pins off the bpffs.

usage: remove_filters.py [CONFIGURATION]

`make uninstall` calls it when the service has stopped: programs stay in the kernel without the service, and
afterwards nothing would be left that could remove them. It knows them by the names of their functions,
touches no other program, and needs nothing but Python, ip and tc.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

XDP_PREFIX, TC_PREFIX = "fw_xdp_", "fw_tc_"
# IFLA_XDP_ATTACHED's mode, and the word of ip(8) for it.
XDP_MODES = {1: "xdpdrv", 2: "xdpgeneric", 3: "xdpoffload"}
DEFAULT_PIN_ROOT = "/sys/fs/bpf/ebpf-fw"


def run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def shown(*command: str) -> list[dict[str, Any]]:
    return list(json.loads(run(*command) or "[]"))


def remove_xdp(link: dict[str, Any]) -> None:
    for attached in link.get("xdp", {}).get("attached", []):
        if str(attached["prog"].get("name", "")).startswith(XDP_PREFIX):
            run("ip", "link", "set", "dev", link["ifname"], XDP_MODES[attached["mode"]], "off")
            print(f"ebpf-fw: {link['ifname']}: ingress filter removed")


def remove_tc(interface: str) -> None:
    ours = [entry for entry in filters(interface, "egress") if program_name(entry).startswith(TC_PREFIX)]
    for entry in ours:
        where = f"dev {interface} egress protocol {entry['protocol']} pref {entry['pref']}"
        run("tc", "filter", "delete", *where.split(), "handle", entry["options"]["handle"], "bpf")
        print(f"ebpf-fw: {interface}: egress filter removed")
    # The qdisc filters nothing by itself; it goes where nobody else uses it.
    if ours and not filters(interface, "egress") and not filters(interface, "ingress"):
        run("tc", "qdisc", "delete", "dev", interface, "clsact")


def filters(interface: str, hook: str) -> list[dict[str, Any]]:
    return shown("tc", "-j", "filter", "show", "dev", interface, hook)


def program_name(entry: dict[str, Any]) -> str:
    """Empty for what tc shows beside the programs: the chain's own entry, filters of other kinds."""
    return str(entry.get("options", {}).get("prog", {}).get("name", ""))


def has_clsact(interface: str) -> bool:
    return any(entry["kind"] == "clsact" for entry in shown("tc", "-j", "qdisc", "show", "dev", interface))


def pin_root(configuration: Path) -> Path:
    try:
        settings = tomllib.loads(configuration.read_text())
    except (OSError, tomllib.TOMLDecodeError):
        settings = {}
    return Path(settings.get("bpf", {}).get("pin_root", DEFAULT_PIN_ROOT))


def main() -> None:
    for link in shown("ip", "-j", "-d", "link", "show"):
        remove_xdp(link)
        if has_clsact(link["ifname"]):
            remove_tc(link["ifname"])
    if len(sys.argv) > 1:
        shutil.rmtree(pin_root(Path(sys.argv[1])), ignore_errors=True)


if __name__ == "__main__":
    main()
