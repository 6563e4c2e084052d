"""The Debian package as dpkg sees it: what it holds, owns, needs and runs. tests/vm lives through its installation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOME = "usr/lib/ebpf-fw"
pytestmark = pytest.mark.xdist_group("install")


def run(*command: str | Path, **environment: str) -> str:
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONPATH", "VIRTUAL_ENV", "DESTDIR"}
    kept = {key: value for key, value in os.environ.items() if key not in outer}
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("package")
    run("make", "deb", DEB_DIRECTORY=str(directory), DEB_COMPRESSION="0", DEB_VERSION="1.2.3-4")
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="module")
def unpacked(package: Path) -> Path:
    directory = package.parent / "unpacked"
    run("dpkg-deb", "-R", package, directory)
    return directory


def field(package: Path, name: str) -> str:
    return run("dpkg-deb", "-f", package, name).strip()


def test_the_package_needs_this_python_and_the_distributions_bcc(package: Path) -> None:
    assert field(package, "Version") == "1.2.3-4"
    assert package.name == f"ebpf-fw_1.2.3-4_{field(package, 'Architecture')}.deb"
    needs = [each.strip() for each in field(package, "Depends").split(",")]
    minor = int(run("/usr/bin/python3", "-c", "import sys; print(sys.version_info.minor)"))
    assert {f"python3 (>= 3.{minor})", f"python3 (<< 3.{minor + 1})"} <= set(needs)
    assert {"python3-bpfcc", "linux-libc-dev", "iproute2"} <= set(needs)
    assert any(re.fullmatch(r"libc6 \(>= 2\.\d+\)", each) for each in needs)


def test_every_file_is_roots_and_none_is_writable_by_others(package: Path) -> None:
    for line in run("dpkg-deb", "-c", package).splitlines():
        mode, owner = line.split()[:2]
        assert owner == "root/root", line
        assert mode[0] == "l" or mode[5] != "w" != mode[8], line


def test_nothing_names_the_place_where_it_was_built(unpacked: Path, package: Path) -> None:
    for place in (ROOT, package.parent):
        named = ["grep", "-rlIF", str(place), str(unpacked / "usr"), str(unpacked / "etc"), "--exclude=*.pyc"]
        assert subprocess.run(named, capture_output=True, text=True, check=False).stdout == ""


def test_the_unit_and_the_command_lead_into_the_package(unpacked: Path) -> None:
    unit = (unpacked / "usr/lib/systemd/system/ebpf-fw.service").read_text()
    assert "/opt/" not in unit and "ExecStart=/usr/bin/ebpf-fw " in unit
    assert os.readlink(unpacked / "usr/bin/ebpf-fw") == f"/{HOME}/.venv/bin/ebpf-fw"
    assert (unpacked / HOME / ".venv/bin/ebpf-fw").read_text().startswith(f"#!/{HOME}/.venv/bin/python")
    assert {path.name for path in (unpacked / HOME / ".venv/bin").iterdir()} >= {"ebpf-fw", "python"}
    assert not list((unpacked / HOME).rglob("pip"))
    conffiles = "/etc/ebpf-fw/config.toml\n/etc/fail2ban/action.d/ebpf-fw.conf\n"
    assert (unpacked / "DEBIAN/conffiles").read_text() == conffiles
    action = (unpacked / "etc/fail2ban/action.d/ebpf-fw.conf").read_text()
    assert "= /usr/lib/ebpf-fw/integrations/fail2ban/bans.py" in action and "/opt/" not in action
    assert os.access(unpacked / "usr/lib/ebpf-fw/integrations/fail2ban/bans.py", os.X_OK)
    assert not (unpacked / "var").exists()


def test_the_packages_environment_is_complete(unpacked: Path) -> None:
    """Every pinned package in the pinned version, and the service's own modules import beside them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = unpacked / HOME / ".venv/bin/python"
    code = (
        "import sys, importlib.metadata as m\n"
        "for each in sys.argv[1:]:\n"
        "    name, version = each.split('=='); assert m.version(name) == version, each\n"
        "import bcc, api.wiring, cli.__main__, firewall; print(firewall.__file__)"
    )
    found = run(python, "-P", "-c", code, *project["dependencies"], PYTHONPATH=str(unpacked / HOME))
    assert found.strip() == str(unpacked / HOME / "firewall/__init__.py")


def test_everything_is_compiled_so_that_running_writes_nothing(unpacked: Path) -> None:
    tag = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
    for source in (unpacked / HOME / "firewall").glob("*.py"):
        compiled = source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc"
        # Flags 1: by hash and unchecked (PEP 552).
        assert compiled.read_bytes()[4:8] == b"\x01\0\0\0", source
