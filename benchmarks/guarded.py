"""The firewall in this process on the guarded interface: for what is about packets, not about the service.

Owns an enforcer over the real kernel side, started and stopped here. Rules come by the enforcer, as from the API.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from api.wiring import build, linux_kernel
from benchmarks.world import BPFFS, GUARDED, World
from firewall.address_list import PrefixColumns
from firewall.datapath import Kernel
from firewall.kernel.linux import LinuxKernel
from firewall.kernel.source import XDP_PROGRAMS
from firewall.rule import DEFAULT_PRIORITY, rule_from_fields
from firewall.settings import Settings

Verdicts = dict[tuple[str, str], int]
_numbers = itertools.count()


class Guarded:
    """A context: the firewall with no rules, attached natively."""

    def __init__(self, world: World, max_rules: int = 4096, default: str = "allow") -> None:
        """`default`: what happens to a packet at ingress that no rule matches."""
        name = f"guarded-{next(_numbers)}"
        self._directory: Path = world.directory / name
        self.enforcer = build(
            Settings.model_validate(
                {
                    "state": {"directory": str(self._directory)},
                    "bpf": {"pin_root": str(BPFFS / name), "max_rules": max_rules, "max_addresses": 1 << 20},
                    "filter": {"default_ingress": default},
                    "interfaces": [{"name": GUARDED, "mode": "native", "egress": False}],
                }
            ),
            self._kernel_of,
        )

    def _kernel_of(self, settings: Settings) -> Kernel:
        made = linux_kernel(settings)
        assert isinstance(made, LinuxKernel)
        self.kernel = made
        return made

    def __enter__(self) -> Guarded:
        self.enforcer.start()
        faults = self.enforcer.not_ready()
        assert not faults, faults
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.enforcer.stop()

    @property
    def program(self) -> int:
        """Descriptor of the ingress program; another one after the policy's tables grew."""
        return self.kernel._set.programs[XDP_PROGRAMS[True]]

    @property
    def programs(self) -> Mapping[str, int]:
        return self.kernel._set.programs

    def list_addresses(self, columns: Sequence[PrefixColumns], priority: int = DEFAULT_PRIORITY) -> None:
        self.enforcer.import_list(columns, "drop", priority, "ingress")
        self.kernel.settle()

    def add_rules(self, fields: Iterable[Mapping[str, object]]) -> None:
        self.enforcer.batch([rule_from_fields(each, str(each["id"]), 0.0) for each in fields], [])
        self.kernel.settle()

    def attach(self) -> None:
        self.enforcer.attach(GUARDED, "native", True, False)

    def detach(self) -> None:
        self.enforcer.detach(GUARDED)

    def counted(self) -> Verdicts:
        """Packets at ingress by verdict and reason."""
        return {
            (each.verdict, each.reason): each.packets for each in self.enforcer.counters() if each.packets
        }

    def since(self, before: Verdicts) -> Verdicts:
        now = self.counted()
        return {key: count - before.get(key, 0) for key, count in now.items() if count != before.get(key, 0)}
