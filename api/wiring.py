"""The one place that puts the parts together: settings to a running enforcer's parts."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from firewall.address import parse_prefix
from firewall.datapath import Kernel
from firewall.enforcer import Enforcer
from firewall.in_force import About, Limits, Manner
from firewall.interfaces import Interfaces
from firewall.kernel.linux import LinuxKernel
from firewall.layout import C
from firewall.report import Limit
from firewall.reporting import ReportLimits
from firewall.settings import Events, Filter, Settings, parse_listen
from firewall.shield import Listening, Shield
from firewall.store import Store

DATABASE = "rules.db"


def version() -> str:
    try:
        return importlib.metadata.version("ebpf-fw")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def filter_options(settings: Filter) -> tuple[int, int]:
    """OPTION_* of bpf/layout.h, by hook."""
    shared = C["OPTION_FRAGMENTS_DROP"] * (settings.fragments == "drop")
    shared |= C["OPTION_MALFORMED_PASS"] * (settings.malformed == "pass")
    kinds = (
        ("neighbors", settings.pass_neighbor_discovery),
        ("dhcp", settings.pass_dhcp),
        ("path_mtu", settings.pass_path_mtu),
    )
    for name, passes in kinds:
        shared |= C[f"OPTION_PASS_{name.upper()}"] * passes
    drop = C["OPTION_DEFAULT_DROP"] | C["OPTION_DROP_ARP"] * (not settings.pass_arp)
    ingress, egress = (
        shared | drop * (default == "drop") for default in (settings.default_ingress, settings.default_egress)
    )
    return ingress, egress


def shield(settings: Settings) -> Shield:
    """Panic is a default of drop on both hooks that nothing loosens. ARP and neighbour discovery pass: the connections
    that it keeps end without them."""
    panics = {
        "default_ingress": "drop",
        "default_egress": "drop",
        "malformed": "drop",
        "pass_arp": True,
        "pass_neighbor_discovery": True,
    }
    ingress, egress = filter_options(settings.filter.model_copy(update=panics))
    return Shield(
        tuple(parse_prefix(address) for address in settings.filter.never_drop),
        (ingress | C["OPTION_PANIC"], egress | C["OPTION_PANIC"]),
        tuple(_listening(settings)),
    )


def _listening(settings: Settings) -> Iterator[Listening]:
    for each in settings.api.listen:
        parsed = parse_listen(each)
        if not isinstance(parsed, Path) and parsed[1]:
            yield parse_prefix(parsed[0]), parsed[1]


def about(settings: Settings) -> About:
    return About(
        version(), str(settings.bpf.pin_root), settings.filter.default_ingress, settings.filter.default_egress
    )


def manner(settings: Settings) -> Manner:
    return Manner(
        filter_options(settings.filter),
        settings.service.on_drift == "heal",
        report_limits(settings.events),
        shield(settings),
    )


def report_limits(settings: Events) -> ReportLimits:
    return ReportLimits(
        events=Limit(settings.rate, settings.burst),
        capture=Limit(settings.capture_rate, settings.capture_burst),
        log_drops=settings.log_drops,
        log_rate=settings.log_rate,
    )


def linux_kernel(settings: Settings) -> Kernel:
    limits = settings.bpf
    return LinuxKernel(
        limits.pin_root,
        limits.max_addresses,
        limits.max_rules,
        filter_options(settings.filter),
        settings.state.cache_directory,
    )


def build(
    settings: Settings,
    kernel: Callable[[Settings], Kernel] = linux_kernel,
    clock: Callable[[], float] = time.time,
) -> Enforcer:
    """An enforcer that is not started yet. Raises StoreFailed where the state cannot be opened."""
    store = Store(settings.state.directory / DATABASE)
    host = kernel(settings)
    interfaces = Interfaces(settings.interfaces, store.interfaces(), host)
    limits = Limits(settings.bpf.max_addresses, settings.bpf.max_rules, settings.state.audit_keep)
    return Enforcer(store, host, interfaces, limits, about(settings), manner(settings), clock)
