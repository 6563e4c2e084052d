"""The config file: a default for every key, and an error that names the key for everything that is wrong."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from firewall.errors import InvalidInput
from firewall.settings import Settings, load, parse, parse_listen

SHIPPED = Path(__file__).parents[2] / "systemd" / "config.toml"
DEFAULTS: dict[str, dict[str, object]] = {
    "api": {
        "authentication": "auto",
        "insecure": False,
        "socket_group": "ebpf-fw",
        "tls_certificate": "",
        "tls_key": "",
        "client_ca": "",
        "client_scopes": {},
        "allowed_hosts": [],
        "max_connections": 512,
        "max_header_bytes": 32768,
        "max_body_bytes": 67108864,
        "header_timeout_s": 10,
        "body_timeout_s": 30,
        "write_timeout_s": 60,
        "listen": ["127.0.0.1:9378"],
    },
    "state": {
        "directory": "/var/lib/ebpf-fw",
        "cache_directory": "/var/cache/ebpf-fw",
        "audit_keep": 100000,
    },
    "bpf": {"pin_root": "/sys/fs/bpf/ebpf-fw", "max_addresses": 1048576, "max_rules": 4096},
    "service": {"on_stop": "detach", "on_drift": "heal", "log_level": "info"},
    "filter": {
        "default_ingress": "allow",
        "default_egress": "allow",
        "fragments": "match",
        "malformed": "drop",
        "never_drop": [],
        "pass_arp": True,
        "pass_neighbor_discovery": True,
        "pass_dhcp": True,
        "pass_path_mtu": True,
    },
    "events": {
        "rate": 1000,
        "burst": 1000,
        "capture_rate": 5000,
        "capture_burst": 5000,
        "log_drops": False,
        "log_rate": 10,
    },
}


def faults(text: str) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as raised:
        parse(text, "c.toml")
    assert raised.value.code == "invalid_config"
    assert raised.value.detail.startswith("c.toml: ")
    assert raised.value.hint == "every key and its default is in docs/configuration.md"
    return [(problem.pointer, problem.detail) for problem in raised.value.problems]


# --- defaults


def test_an_empty_file_means_the_defaults_of_the_contract() -> None:
    found = parse("", "c.toml").model_dump(mode="json")
    assert found.pop("crowdsec")["url"] is None
    assert found == {**DEFAULTS, "interfaces": [], "feeds": []}


def test_an_interface_needs_its_name_only() -> None:
    (interface,) = parse('[[interfaces]]\nname = "eth0"', "c.toml").interfaces
    assert (interface.name, interface.mode, interface.ingress, interface.egress) == (
        "eth0",
        "auto",
        True,
        True,
    )


def test_interfaces_keep_their_order() -> None:
    text = '[[interfaces]]\nname = "eth*"\n[[interfaces]]\nname = "eth0"\nmode = "generic"'
    assert [each.name for each in parse(text, "c.toml").interfaces] == ["eth*", "eth0"]


# --- the file that is installed


def shown_keys() -> dict[str, Any]:
    """The shipped file with the "# " before every key removed."""
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    is_key = re.compile(r"# (\w+ = |\[\[)")
    return tomllib.loads("\n".join(line.removeprefix("# ") if is_key.match(line) else line for line in lines))


def test_the_installed_file_changes_no_default() -> None:
    assert load(SHIPPED) == Settings()


def test_the_installed_file_shows_every_key_with_its_default() -> None:
    shown = shown_keys()
    (interface,) = shown.pop("interfaces")
    (feed,) = shown.pop("feeds")
    assert (feed["name"], feed["format"], feed["refresh"]) == ("spamhaus", "spamhaus", "12h")
    api = shown.pop("api")
    assert {**api, "listen": [api["listen"]]} == DEFAULTS["api"]
    assert shown == {name: keys for name, keys in DEFAULTS.items() if name != "api"}
    assert interface == {"name": "eth0", "mode": "auto", "ingress": True, "egress": True}


# --- faults


@pytest.mark.parametrize(
    ("text", "pointer", "detail"),
    [
        ("verbose = true", "/verbose", "unknown key"),
        ('[api]\nlisten_on = "x"', "/api/listen_on", "unknown key"),
        ("[bpf]\nmax_adresses = 5", "/bpf/max_adresses", "unknown key"),
        ('[[interfaces]]\nname = "eth0"\nmoed = "auto"', "/interfaces/0/moed", "unknown key"),
        ("api = 5", "/api", "valid dictionary"),
        ('[[feeds]]\nname = "a"', "/feeds/0", "needs either url or file"),
        ('[[feeds]]\nname = "a"\nurl = "ftp://x"', "/feeds/0/url", "is not an http:// or https:// URL"),
        ('[[feeds]]\nname = "a"\nurl = "http://x"\nfile = "/x"', "/feeds/0", "needs either url or file"),
        ('[[feeds]]\nname = "a"\nfile = "x"', "/feeds/0", "must be an absolute path"),
        (
            '[[feeds]]\nname = "a"\nurl = "http://x"\nrefresh = "often"',
            "/feeds/0/refresh",
            "is not a number of seconds",
        ),
        (
            '[[feeds]]\nname = "a"\nurl = "http://x"\nrefresh = 1',
            "/feeds/0/refresh",
            "greater than or equal to 10",
        ),
        (
            '[[feeds]]\nname = "a"\nurl = "http://x"\n[[feeds]]\nname = "b"\nset = "a"\nurl = "http://x"',
            "/feeds",
            "two feeds have the set a",
        ),
        ('[crowdsec]\nurl = "http://x"', "/crowdsec", "cscli bouncers add"),
        ('[crowdsec]\nurl = "x"\napi_key = "k"', "/crowdsec", "is not an http:// or https:// URL"),
        ("[api]\nlisten = 9378", "/api/listen", "valid list"),
        ("[api]\nlisten = []", "/api/listen", "at least 1 item"),
        ("[api]\nlisten = [9378]", "/api/listen/0", "valid string"),
        ("[state]\ndirectory = 5", "/state/directory", "path"),
        ('[bpf]\npin_root = "here"', "/bpf/pin_root", "must be an absolute path on a bpf file system"),
        ('[bpf]\nmax_addresses = "many"', "/bpf/max_addresses", "valid integer"),
        ("[bpf]\nmax_addresses = 1.0", "/bpf/max_addresses", "valid integer"),
        ("[bpf]\nmax_addresses = true", "/bpf/max_addresses", "valid integer"),
        ("[bpf]\nmax_addresses = 0", "/bpf/max_addresses", "greater than or equal to 1"),
        ("[bpf]\nmax_addresses = 67108865", "/bpf/max_addresses", "less than or equal to 67108864"),
        ("[bpf]\nmax_rules = 0", "/bpf/max_rules", "greater than or equal to 1"),
        ("[bpf]\nmax_rules = 16385", "/bpf/max_rules", "less than or equal to 16384"),
        ('[filter]\ndefault_ingress = "deny"', "/filter/default_ingress", "'allow' or 'drop'"),
        ('[filter]\ndefault_egress = "pass"', "/filter/default_egress", "'allow' or 'drop'"),
        ('[filter]\nfragments = "allow"', "/filter/fragments", "'match' or 'drop'"),
        ('[filter]\nmalformed = "allow"', "/filter/malformed", "'drop' or 'pass'"),
        ("[[interfaces]]\nmode = 'auto'", "/interfaces/0/name", "required"),
        ('[[interfaces]]\nname = ""', "/interfaces/0/name", "at least 1 character"),
        ('[[interfaces]]\nname = "eth0"\nmode = "skb"', "/interfaces/0/mode", "'auto', 'native', 'generic'"),
        ('[[interfaces]]\nname = "eth0"\ningress = 1', "/interfaces/0/ingress", "valid boolean"),
        ('[[interfaces]]\nname = "eth0"\negress = "no"', "/interfaces/0/egress", "valid boolean"),
        ('[interfaces]\nname = "eth0"', "/interfaces", "valid list"),
    ],
)
def test_a_fault_is_told_with_its_key(text: str, pointer: str, detail: str) -> None:
    ((at, told),) = faults(text)
    assert at == pointer
    assert detail in told


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(InvalidInput) as raised:
        parse("a = 1\n[bpf]\nmax_rules = 0", "c.toml")
    assert [problem.pointer for problem in raised.value.problems] == ["/bpf/max_rules", "/a"]
    assert "bpf.max_rules: " in raised.value.detail and "a: unknown key" in raised.value.detail


def test_what_is_not_toml_is_told_with_its_line() -> None:
    with pytest.raises(InvalidInput, match=r"c\.toml is not valid TOML: .*line 2") as raised:
        parse("[api]\nlisten: 5\n", "c.toml")
    assert raised.value.code == "invalid_config"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        with pytest.raises(InvalidInput, match=re.escape(f"cannot read the config file {path}: ")) as raised:
            load(path)
        assert raised.value.code == "invalid_config"
        assert raised.value.hint == "name another one with --config"


# --- listen addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9378", ("127.0.0.1", 9378)),
        ("127.8.9.1:80", ("127.8.9.1", 80)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("[::1]:9378", ("::1", 9378)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("unix:/run/ebpf-fw/api.sock", Path("/run/ebpf-fw/api.sock")),
    ],
)
def test_loopback_and_unix_sockets_are_listened_on(text: str, address: object) -> None:
    assert parse_listen(text) == address
    assert parse(f'[api]\nlisten = "{text}"', "c.toml").api.listen == [text]


TLS = 'tls_certificate = "/etc/ebpf-fw/tls.pem"\ntls_key = "/etc/ebpf-fw/tls.key"\n'
EVERYWHERE = ["0.0.0.0", "192.0.2.1", "[::]", "[2001:db8::1]", "126.255.255.255", "128.0.0.1"]


@pytest.mark.parametrize("host", EVERYWHERE)
@pytest.mark.parametrize(
    ("more", "lacking"),
    [
        ("", "no TLS"),
        ('authentication = "required"\n', "no TLS"),
        (f'authentication = "none"\n{TLS}', "no authentication"),
        ('authentication = "none"\n', "no TLS (set tls_certificate and tls_key) and no authentication"),
    ],
)
def test_any_other_address_is_refused_while_the_api_has_no_authentication(
    host: str, more: str, lacking: str
) -> None:
    ((pointer, detail),) = faults(f'[api]\nlisten = ["127.0.0.1:1", "{host}:9378"]\n{more}')
    assert pointer == "/api/listen"
    assert "is not a loopback address: that needs TLS and authentication" in detail and lacking in detail
    assert "listen on 127.0.0.1, [::1] or unix:/path" in detail


@pytest.mark.parametrize("host", EVERYWHERE)
@pytest.mark.parametrize(
    "more", [TLS, f'{TLS}authentication = "required"\n', 'insecure = true\nauthentication = "none"\n']
)
def test_any_other_address_may_be_with_both_or_where_somebody_says_insecure(host: str, more: str) -> None:
    api = parse(f'[api]\nlisten = "{host}:9378"\n{more}', "c.toml").api
    assert api.is_exposed and api.listen == [f"{host}:9378"]


@pytest.mark.parametrize(
    ("text", "pointer", "detail"),
    [
        ('tls_certificate = "/a"', "/api/tls_key", "need each other"),
        ('tls_key = "/a"', "/api/tls_key", "need each other"),
        ('tls_certificate = "a"\ntls_key = "/a"', "/api/tls_certificate", "absolute path"),
        ('client_ca = "/a"', "/api/client_ca", "need TLS"),
        ('client_scopes = {"a" = "read"}', "/api/client_scopes", "needs client_ca"),
        (
            f'{TLS}client_ca = "/a"\nclient_scopes = {{"a" = "root"}}',
            "/api/client_scopes/a",
            "'read', 'rules'",
        ),
        ('authentication = "yes"', "/api/authentication", "'auto', 'required' or 'none'"),
        ('insecure = "yes"', "/api/insecure", "valid boolean"),
        ('allowed_hosts = "https://fw.example.org"', "/api/allowed_hosts", "not the name of a host"),
        ('allowed_hosts = ["*"]', "/api/allowed_hosts", "not the name of a host"),
        ("max_connections = 1", "/api/max_connections", "greater than or equal to 8"),
        ("header_timeout_s = 0", "/api/header_timeout_s", "greater than or equal to 1"),
    ],
)
def test_what_guards_the_api_must_fit_together(text: str, pointer: str, detail: str) -> None:
    found = faults(f"[api]\n{text}")
    assert found[0][0] == pointer and detail in found[0][1]


def test_names_of_hosts_are_compared_in_lower_case() -> None:
    assert parse('[api]\nallowed_hosts = "FW.Example.org"', "c.toml").api.allowed_hosts == ["fw.example.org"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9378",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:http",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:١",
    ],
)
def test_what_is_no_listen_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is neither host:port nor unix:/path"):
        parse_listen(text)


@pytest.mark.parametrize("text", [":9378", "example.org:80", "eth0:80", "http://127.0.0.1:80"])
def test_a_name_is_no_listen_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an IP address; use 127.0.0.1, \[::1\] or unix:/path"):
        parse_listen(text)


@pytest.mark.parametrize("text", ["unix:", "unix:api.sock", "unix:./api.sock"])
def test_a_unix_socket_needs_an_absolute_path(text: str) -> None:
    with pytest.raises(ValueError, match="needs an absolute path"):
        parse_listen(text)
