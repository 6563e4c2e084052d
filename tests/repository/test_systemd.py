"""The unit fits the installation, and the default configuration shows exactly the defaults."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from firewall import settings

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd/ebpf-fw.service"
CONFIGURATION = ROOT / "systemd/config.toml"


def unit_keys() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_the_unit_starts_the_installed_command_with_the_installed_configuration() -> None:
    keys = unit_keys()
    assert keys["Type"] == "notify"
    assert keys["ExecStart"] == "/usr/bin/ebpf-fw serve --config /etc/ebpf-fw/config.toml"
    assert keys["StateDirectory"] == keys["CacheDirectory"] == "ebpf-fw"


def test_the_socket_s_directory_is_the_group_s_whatever_systemd_runs_later() -> None:
    """A RuntimeDirectory= is given back to root before each command, and then the group's members are kept out."""
    keys = unit_keys()
    assert "RuntimeDirectory" not in keys and keys["ReadWritePaths"] == "-/run/ebpf-fw"
    assert "install -d -m 2750 -g ebpf-fw /run/ebpf-fw" in UNIT.read_text()


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """systemd wants the command to exist, so a copy of the unit names one that does."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/ebpf-fw", "/bin/true"))
    analyze = shutil.which("systemd-analyze")
    if analyze is None:  # a machine without systemd cannot run the unit either
        return
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_as_hardened_as_it_says() -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    (said,) = re.findall(r"systemd-analyze security: (\d\.\d)\)", UNIT.read_text())
    assert f"**{said}**" in (ROOT / "README.md").read_text()
    limit = round(float(said) * 10)
    command = [analyze, "security", "--offline=true", "--no-pager", str(UNIT)]
    for threshold, status in ((limit, 0), (limit - 2, 1)):
        done = subprocess.run(
            [*command, f"--threshold={threshold}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout.splitlines()[-1]


def test_each_capability_of_the_unit_has_its_reason() -> None:
    bounded = unit_keys()["CapabilityBoundingSet"].split()
    reasons = re.findall(r"^#   (CAP_\w+)  +\w", UNIT.read_text(), re.MULTILINE)
    assert reasons == bounded


def test_the_service_s_sockets_reach_this_host_alone() -> None:
    keys = unit_keys()
    assert (keys["IPAddressDeny"], keys["IPAddressAllow"]) == ("any", "localhost")


def test_the_default_configuration_changes_nothing() -> None:
    assert not any(tomllib.loads(CONFIGURATION.read_text()).values())
    assert settings.load(CONFIGURATION) == settings.Settings()


def test_the_default_configuration_shows_every_default(tmp_path: Path) -> None:
    shown = tmp_path / "config.toml"
    shown.write_text(re.sub(r"^# (\w+ = )", r"\1", CONFIGURATION.read_text(), flags=re.MULTILINE))
    before_interfaces = shown.read_text().split("# [[interfaces]]")[0]
    shown.write_text(before_interfaces)
    assert tomllib.loads(before_interfaces)["api"]["listen"] == "127.0.0.1:9378"
    assert settings.load(shown) == settings.Settings()
