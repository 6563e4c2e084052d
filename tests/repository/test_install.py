"""Installing, upgrading and removing, below a directory of the test's own (DESTDIR)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.repository.test_docs import is_broken, links

ROOT = Path(__file__).parents[2]
HOME = "opt/ebpf-fw"


def make(target: str, destination: Path, umask: int = 0o022, **variables: str) -> str:
    # What an outer make or the test's own environment sets must not reach the inner one.
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONPATH", "VIRTUAL_ENV"}
    environment = {key: value for key, value in os.environ.items() if key not in outer}
    done = subprocess.run(
        ["make", target, f"DESTDIR={destination}", *(f"{key}={value}" for key, value in variables.items())],
        cwd=ROOT, env=environment, umask=umask, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def modes(installed: Path) -> dict[str, int]:
    """Of what is installed, but for the state, which is root's alone."""
    paths = (path for path in (installed / HOME).rglob("*") if not path.is_symlink())
    return {str(path.relative_to(installed)): path.stat().st_mode for path in paths}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("destination")
    make("install", destination, umask=0)
    return destination


@pytest.mark.xdist_group("install")
def test_everything_is_where_the_unit_expects_it(installed: Path) -> None:
    assert os.readlink(installed / "usr/bin/ebpf-fw") == f"/{HOME}/.venv/bin/ebpf-fw"
    assert (installed / "usr/lib/systemd/system/ebpf-fw.service").is_file()
    assert (installed / "etc/ebpf-fw/config.toml").read_text() == (ROOT / "systemd/config.toml").read_text()
    assert (installed / "var/lib/ebpf-fw").stat().st_mode & 0o777 == 0o700
    assert (installed / HOME / "bpf/xdp_filter.c").is_file()
    action = "integrations/fail2ban/action.d/ebpf-fw.conf"
    assert (installed / "etc/fail2ban/action.d/ebpf-fw.conf").read_text() == (ROOT / action).read_text()
    assert os.access(installed / HOME / "integrations/fail2ban/bans.py", os.X_OK)


@pytest.mark.xdist_group("install")
def test_nobody_but_root_may_write_into_it_whatever_the_umask(installed: Path) -> None:
    assert [path for path, mode in modes(installed).items() if mode & 0o022] == []


@pytest.mark.xdist_group("install")
def test_what_the_installed_documents_link_to_is_installed(installed: Path) -> None:
    documents = [installed / HOME / "README.md", *(installed / HOME / "docs").rglob("*.md")]
    assert len(documents) > 5
    for document in documents:
        assert [link for link in links(document.read_text()) if is_broken(document, link)] == []


@pytest.mark.xdist_group("install")
def test_the_installed_environment_is_complete_and_names_only_its_final_place(installed: Path) -> None:
    environment = installed / HOME / ".venv"
    assert (environment / "bin/ebpf-fw").read_text().startswith(f"#!/{HOME}/.venv/bin/python")
    code = "import bcc, fastapi, pyroute2, firewall, feeds, api, cli; print(firewall.__file__)"
    # The editable packages point to the final place, which this test must not touch: give their path by hand.
    done = subprocess.run(
        [environment / "bin/python", "-c", code],
        env={**os.environ, "PYTHONPATH": str(installed / HOME)},
        cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == str(installed / HOME / "firewall/__init__.py"), done.stderr
    named = ["grep", "-rlIF", str(installed), installed / HOME, "--exclude=*.pyc"]
    assert subprocess.run(named, capture_output=True, text=True, check=False).stdout == ""


@pytest.mark.xdist_group("install")
def test_upgrading_keeps_a_changed_configuration_and_removing_keeps_it_and_the_state(installed: Path) -> None:
    configuration, state = installed / "etc/ebpf-fw/config.toml", installed / "var/lib/ebpf-fw/rules.db"
    configuration.write_text("# mine\n")
    state.write_text("rules")

    make("install", installed, umask=0o077)
    assert [path for path, mode in modes(installed).items() if mode & 0o044 != 0o044] == []
    assert configuration.read_text() == "# mine\n"
    assert configuration.with_suffix(".toml.new").is_file()

    said = make("uninstall", installed)
    assert str(configuration.parent) in said
    assert configuration.read_text() == "# mine\n"
    assert state.read_text() == "rules"
    left = {str(path.relative_to(installed)) for path in installed.rglob("*") if not path.is_dir()}
    assert left == {"etc/ebpf-fw/config.toml", "etc/ebpf-fw/config.toml.new", "var/lib/ebpf-fw/rules.db"}

    make("uninstall", installed, PURGE="1")
    assert [path for path in installed.rglob("*") if not path.is_dir()] == []
