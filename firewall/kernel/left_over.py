"""What maps have counted that programs of other sizes are put in the place of.

Reads them by the handles of the rules; nothing here writes.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np

from firewall.datapath import LeftOver
from firewall.kernel.datapath import KernelDatapath
from firewall.kernel.maps import PinnedMaps
from firewall.layout import C


def left_over(maps: PinnedMaps) -> LeftOver:
    with closing(KernelDatapath(maps, (0, 0))) as datapath:
        slots = live_slots(datapath)
        hits = datapath.policy_hits(list(slots.values()))
        by_handle = dict(zip(slots, hits, strict=True)) | datapath.all_address_hits()
        return LeftOver(by_handle, datapath.interfaces.hits())


def live_slots(datapath: KernelDatapath) -> dict[int, int]:
    """Slots by handle, from what the live generation says of its bits."""
    arrays = datapath.maps.arrays
    room = datapath.maps.vectors["word"].shape[1] * 64
    generation = datapath.epoch & 1
    slots: dict[int, int] = {}
    for hook in range(C["HOOK_COUNT"]):
        scope = generation * C["HOOK_COUNT"] + hook
        head = arrays["policy_heads"][scope]
        rows = arrays["policy_rules"][scope * room : (scope + 1) * room]
        live = rows[: int(head["words"]) * 64]
        live = live[live["handle"] != 0]
        numbers = live["slot"] & np.uint32(C["RULE_NAMES_SETS"] - 1)
        slots |= dict(zip(live["handle"].tolist(), numbers.tolist(), strict=True))
    return slots
