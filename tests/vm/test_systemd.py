"""The unit under the real systemd: stop, restart, reload and kill, with traffic that a rule drops."""

from __future__ import annotations

import pytest

from tests.vm.conftest import Guest, check

LINE = "6.1"


@pytest.mark.parametrize(
    "name",
    [
        "starts",
        "restarts_without_a_gap",
        "restarts_without_a_gap_where_there_is_no_dbus",
        "comes_back_after_a_kill",
        "reloads",
        "stops",
        "keeps_the_filters_where_the_config_says_so",
    ],
)
def test_systemd(systemd_in: Guest, name: str) -> None:
    check(systemd_in(LINE), name)
