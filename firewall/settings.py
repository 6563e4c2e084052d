"""The service's settings: /etc/ebpf-fw/config.toml with a default for every key.

Owns reading and checking the file. An unknown key, a wrong type or a listen address that would open the API to the
network without TLS and authentication is an error that names the key.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from firewall.address import parse_prefix
from firewall.errors import InvalidInput, Problem
from firewall.match import parse_duration

DEFAULT_PATH = Path("/etc/ebpf-fw/config.toml")
DEFAULT_LISTEN = "127.0.0.1:9378"
NEVER_DROP_MAX = 1024
FEEDS_MAX = 64

Action = Literal["allow", "drop"]
Mode = Literal["auto", "native", "generic", "offload"]
Scope = Literal["read", "rules", "admin"]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def parse_listen(address: str) -> tuple[str, int] | Path:
    """`host:port` with an IP address, or the path of `unix:/path`. Raises ValueError."""
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        if not path.is_absolute():
            raise ValueError(f"{address!r} needs an absolute path, as in unix:/run/ebpf-fw/api.sock")
        return path
    host, colon, port = address.rpartition(":")
    is_number = port.isascii() and port.isdecimal() and len(port) <= 5
    if not colon or not is_number or int(port) > 65535:
        raise ValueError(f"{address!r} is neither host:port nor unix:/path")
    host = host.removeprefix("[").removesuffix("]")
    if host == "localhost":
        return "127.0.0.1", int(port)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"{address!r}: {host!r} is not an IP address; use 127.0.0.1, [::1] or unix:/path"
        ) from None
    return host, int(port)


def is_exposed(address: str) -> bool:
    """Whether others than this host can reach a listen address."""
    where = parse_listen(address)
    return not isinstance(where, Path) and not ipaddress.ip_address(where[0]).is_loopback


_Bytes = Annotated[int, Field(ge=1024, le=1 << 30)]
_Seconds = Annotated[int, Field(ge=1, le=3600)]


class Api(_Section):
    """`authentication`: "auto" asks every TCP client for it, but one on a loopback address while no token was ever
    made; "required" all of them, "none" nobody. Paths are empty where there is none. `client_scopes`: of client
    certificates by their names, `*` for any other. `listen` is the last, for what it may be depends on the others."""

    authentication: Literal["auto", "required", "none"] = "auto"
    insecure: bool = False
    socket_group: Annotated[str, Field(max_length=64)] = "ebpf-fw"
    tls_certificate: str = ""
    tls_key: Annotated[str, Field(validate_default=True)] = ""
    client_ca: str = ""
    client_scopes: dict[str, Scope] = {}
    allowed_hosts: Annotated[list[str], BeforeValidator(_as_list)] = []
    max_connections: Annotated[int, Field(ge=8, le=100_000)] = 512
    max_header_bytes: _Bytes = 32 << 10
    max_body_bytes: _Bytes = 64 << 20
    header_timeout_s: _Seconds = 10
    body_timeout_s: _Seconds = 30
    write_timeout_s: _Seconds = 60
    listen: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)] = [DEFAULT_LISTEN]

    @field_validator("tls_certificate", "tls_key", "client_ca")
    @classmethod
    def _check_path(cls, value: str) -> str:
        if value and not Path(value).is_absolute():
            raise ValueError("must be an absolute path")
        return value

    @field_validator("tls_key")
    @classmethod
    def _check_pair(cls, value: str, info: ValidationInfo) -> str:
        if bool(value) != bool(info.data.get("tls_certificate", value)):
            raise ValueError("tls_certificate and tls_key need each other")
        return value

    @field_validator("client_ca")
    @classmethod
    def _check_client_ca(cls, value: str, info: ValidationInfo) -> str:
        if value and not info.data.get("tls_certificate", value):
            raise ValueError("certificates of clients need TLS: set tls_certificate and tls_key")
        return value

    @field_validator("client_scopes")
    @classmethod
    def _check_scopes(cls, value: dict[str, Scope], info: ValidationInfo) -> dict[str, Scope]:
        if value and not info.data.get("client_ca", "?"):
            raise ValueError("needs client_ca, which signs the certificates of clients")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: list[str]) -> list[str]:
        for host in value:
            if not host or "/" in host or ":" in host or "*" in host:
                raise ValueError(f"{host!r} is not the name of a host, such as fw.example.org")
        return [host.lower() for host in value]

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: list[str], info: ValidationInfo) -> list[str]:
        for address in value:
            if is_exposed(address) and not info.data.get("insecure"):
                cls._check_exposed(address, info)
        return value

    @classmethod
    def _check_exposed(cls, address: str, info: ValidationInfo) -> None:
        lacking = []
        if not info.data.get("tls_certificate", "?"):
            lacking.append("TLS (set tls_certificate and tls_key)")
        if info.data.get("authentication") == "none":
            lacking.append('authentication (set authentication = "required")')
        if lacking:
            raise ValueError(
                f"{address!r} is not a loopback address: that needs TLS and authentication, or anyone on the way could"
                f" change the rules. The API has no {' and no '.join(lacking)}. Set it; or listen on 127.0.0.1, [::1]"
                " or unix:/path; or say insecure = true, where something else guards the way"
            )

    @property
    def has_tls(self) -> bool:
        return bool(self.tls_certificate)

    @property
    def is_exposed(self) -> bool:
        return any(is_exposed(address) for address in self.listen)


class State(_Section):
    """`cache_directory`: of compiled programs, None for none."""

    directory: Annotated[Path, Field(strict=False)] = Path("/var/lib/ebpf-fw")
    cache_directory: Annotated[Path | None, Field(strict=False), BeforeValidator(_none_if_empty)] = Path(
        "/var/cache/ebpf-fw"
    )
    audit_keep: Annotated[int, Field(ge=1000, le=100_000_000)] = 100_000


class Bpf(_Section):
    pin_root: Annotated[Path, Field(strict=False)] = Path("/sys/fs/bpf/ebpf-fw")
    max_addresses: Annotated[int, Field(ge=1, le=1 << 26)] = 1 << 20
    max_rules: Annotated[int, Field(ge=1, le=16384)] = 4096

    @field_validator("pin_root")
    @classmethod
    def _check_pin_root(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError("must be an absolute path on a bpf file system")
        return value


class Filter(_Section):
    default_ingress: Action = "allow"
    default_egress: Action = "allow"
    fragments: Literal["match", "drop"] = "match"
    malformed: Literal["drop", "pass"] = "drop"
    never_drop: Annotated[list[str], BeforeValidator(_as_list), Field(max_length=NEVER_DROP_MAX)] = []
    pass_arp: bool = True
    pass_neighbor_discovery: bool = True
    pass_dhcp: bool = True
    pass_path_mtu: bool = True

    @field_validator("never_drop")
    @classmethod
    def _check_never_drop(cls, value: list[str]) -> list[str]:
        """In canonical text, each once."""
        return list(dict.fromkeys(str(parse_prefix(address)) for address in value))


class Service(_Section):
    """`on_stop`: whether the filters go when the service is stopped (a restart never takes them away)."""

    on_stop: Literal["detach", "keep"] = "detach"
    on_drift: Literal["heal", "report"] = "heal"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Events(_Section):
    """Reports of packets. Rates are a second and CPU; `log_rate` is lines a second."""

    rate: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    capture_rate: Annotated[int, Field(ge=1, le=1_000_000)] = 5000
    capture_burst: Annotated[int, Field(ge=1, le=1_000_000)] = 5000
    log_drops: bool = False
    log_rate: Annotated[int, Field(ge=1, le=100_000)] = 10


class Interface(_Section):
    """An interface to protect; `name` may be a glob."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    mode: Mode = "auto"
    ingress: bool = True
    egress: bool = True


def _seconds(value: object) -> object:
    """Of a duration such as "1h"; a number is seconds already."""
    return parse_duration(value) if isinstance(value, str) else value


Seconds = Annotated[int, BeforeValidator(_seconds)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]


class FeedFields(_Section):
    """A list that is fetched again and again. `set`: where its entries go; the feed's name if nothing is said.
    `refresh`, `timeout`: seconds, or a duration such as "1h". `max_shrink`: the share of a list that may go at once."""

    url: Annotated[str, Field(max_length=2048)] | None = None
    set: Name | None = None
    format: Literal["plain", "ipset", "nft", "csv", "ndjson", "spamhaus"] | None = None
    refresh: Annotated[Seconds, Field(ge=10, le=31_536_000)] = 3600
    timeout: Annotated[Seconds, Field(ge=1, le=3600)] = 120
    max_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 64 << 20
    max_shrink: Annotated[float, Field(ge=0, le=1, strict=False)] = 0.5
    reserved: Literal["leave_out", "keep"] = "leave_out"
    strict: bool = False
    enabled: bool = True

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/?#\s]", value):
            raise ValueError(f"{value!r} is not an http:// or https:// URL")
        return value


class Feed(FeedFields):
    """A feed of the config: a URL or a file."""

    name: Name
    file: Annotated[Path, Field(strict=False)] | None = None

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        if (self.url is None) == (self.file is None):
            raise ValueError(f"feed {self.name!r} needs either url or file")
        if self.file is not None and not self.file.is_absolute():
            raise ValueError(f"feed {self.name!r}: file must be an absolute path")
        return self

    @property
    def target(self) -> str:
        return self.set or self.name


class CrowdSec(_Section):
    """The decisions of a CrowdSec local API. None are fetched without `url`. `scenarios`: words of which the scenario
    has one; all scenarios where none is given. `origins` likewise, whole names."""

    url: Annotated[str, Field(max_length=2048)] | None = None
    api_key: str | None = None
    api_key_file: Annotated[Path, Field(strict=False)] | None = None
    set: Name = "crowdsec"
    refresh: Annotated[Seconds, Field(ge=1, le=86_400)] = 10
    timeout: Annotated[Seconds, Field(ge=1, le=3600)] = 60
    scopes: list[Literal["Ip", "Range"]] = ["Ip", "Range"]
    origins: list[str] = []
    scenarios: list[str] = []
    not_scenarios: list[str] = []
    ca_file: Annotated[Path, Field(strict=False)] | None = None
    cert_file: Annotated[Path, Field(strict=False)] | None = None
    key_file: Annotated[Path, Field(strict=False)] | None = None
    insecure_skip_verify: bool = False

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.url is None:
            return self
        if not re.match(r"https?://[^/?#\s]", self.url):
            raise ValueError(f"url {self.url!r} is not an http:// or https:// URL")
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("needs api_key or api_key_file, not both")
        if self.api_key is None and self.api_key_file is None and self.cert_file is None:
            raise ValueError(
                "needs api_key, api_key_file or cert_file; `cscli bouncers add ebpf-fw` makes a key"
            )
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("needs cert_file and key_file together")
        return self


class Settings(_Section):
    """Every setting. `interfaces` are matched in order, the first that fits a name counts."""

    service: Service = Service()
    api: Api = Api()
    state: State = State()
    bpf: Bpf = Bpf()
    filter: Filter = Filter()
    events: Events = Events()
    interfaces: list[Interface] = []
    feeds: Annotated[list[Feed], Field(max_length=FEEDS_MAX)] = []
    crowdsec: CrowdSec = CrowdSec()

    @field_validator("feeds")
    @classmethod
    def _check_feeds(cls, value: list[Feed]) -> list[Feed]:
        for what, names in (
            ("name", [each.name for each in value]),
            ("set", [each.target for each in value]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two feeds have the {what} {', '.join(twice)}")
        return value


def parse(text: str, origin: str) -> Settings:
    """Raises InvalidInput that names every wrong key of `origin`."""
    try:
        return Settings.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{origin} is not valid TOML: {error}", code="invalid_config") from error
    except ValidationError as error:
        problems = tuple(
            Problem(
                "/" + "/".join(str(part) for part in fault["loc"]), _describe(fault["type"], fault["msg"])
            )
            for fault in error.errors()
        )
        listed = "; ".join(
            f"{problem.pointer[1:].replace('/', '.')}: {problem.detail}" for problem in problems
        )
        raise InvalidInput(
            f"{origin}: {listed}",
            "every key and its default is in docs/configuration.md",
            problems,
            "invalid_config",
        ) from error


def _describe(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "unknown key"
    return message.removeprefix("Value error, ")


def load(path: Path) -> Settings:
    """Reads a config file. Raises InvalidInput where it is missing, unreadable or wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"cannot read the config file {path}: {error}",
            "name another one with --config",
            code="invalid_config",
        ) from error
    return parse(text, str(path))
