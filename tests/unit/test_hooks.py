"""Questions about hooks, asked of this host's loopback interface. Nothing is attached."""

from __future__ import annotations

import socket
import threading

from firewall.kernel.hooks import NetlinkHooks


def ask_everything(hooks: NetlinkHooks, index: int) -> None:
    assert any(each.ifindex == index for each in hooks.links())
    hooks.ingress(index)
    hooks.egress(index)
    hooks.before_ours(index)


def is_nothing_left(hooks: NetlinkHooks) -> bool:
    """In the socket's own thread: its queue is another one elsewhere."""
    netlink = hooks._netlink
    return bool(netlink._thread.submit(lambda: netlink.ip.asyncore.msg_queue.root.empty()).result())


def test_a_question_leaves_no_answer_unread() -> None:
    """Else each would stay for as long as the service, and 8 KB of heap with it: 200 MB in half an hour of changes."""
    hooks = NetlinkHooks(lambda _: None)
    loopback = socket.if_nametoindex("lo")
    try:
        for _ in range(3):
            ask_everything(hooks, loopback)
        assert is_nothing_left(hooks)
    finally:
        hooks.close()


def test_threads_that_ask_leave_nothing() -> None:
    """pyroute2 makes an event loop for each call from a thread that did not make the socket, and remembers it."""
    hooks = NetlinkHooks(lambda _: None)
    loopback = socket.if_nametoindex("lo")
    asyncore = hooks._netlink.ip.asyncore
    loops = len(asyncore.status["eids"])
    try:
        for _ in range(5):
            thread = threading.Thread(target=ask_everything, args=(hooks, loopback))
            thread.start()
            thread.join()
        assert len(asyncore.status["eids"]) == loops and is_nothing_left(hooks)
    finally:
        hooks.close()
