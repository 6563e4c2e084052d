"""Questions about hooks, asked of this host's loopback interface. Nothing is attached."""

from __future__ import annotations

import socket

from firewall.kernel.hooks import NetlinkHooks


def test_a_question_leaves_no_answer_unread() -> None:
    """Else each would stay for as long as the service, and 8 KB of heap with it: 200 MB in half an hour of changes."""
    hooks = NetlinkHooks(lambda _: None)
    loopback = socket.if_nametoindex("lo")
    try:
        for _ in range(3):
            assert any(each.ifindex == loopback for each in hooks.links())
            hooks.ingress(loopback)
            hooks.egress(loopback)
            hooks.before_ours(loopback)
        assert hooks._netlink.asyncore.msg_queue.root.empty()
    finally:
        hooks.close()
