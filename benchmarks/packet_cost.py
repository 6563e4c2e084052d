"""What does a packet cost? Nanoseconds by BPF_PROG_TEST_RUN, every packet another one (driver.c).

A ladder: nothing, one rule, a million addresses, thousands of policy rules; beside it xdp-filter with one address.
Every row first shows that the verdicts are the right ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks import address_lists, peers, policies
from benchmarks.address_lists import MixedList, Random
from benchmarks.driver import FRAMES_MAX, XDP_DROP, XDP_PASS, Driver, Frames, run_program
from benchmarks.frames import Addresses4, ipv4_frames, ipv6_frames, round_robin
from benchmarks.guarded import Guarded
from benchmarks.measure import Answers, Goal, Plan, Row
from benchmarks.policies import SHAPES, Packets, PolicySet, policy_set
from benchmarks.world import World, on_one_cpu

QUESTION = "packet cost"
MILLION = 1_000_000
ONE_ADDRESS = 0x0B010203
POLICY_PACKETS = 8192
CHECKED = 256
FEW_NS = 5.0  # the goal says that policy is not evaluated; this much could go unnoticed


@dataclass(frozen=True)
class Ladder:
    """What every rung needs."""

    world: World
    driver: Driver
    plan: Plan
    answers: Answers
    random: Random

    def measure(self, name: str, frames: Frames, program: int, note: str = "") -> Row:
        """A program on frames, and in the same rounds the harness with a bare program."""
        self.driver.load_frames(frames)
        ns, baseline = [], []
        with on_one_cpu(self.world):
            self.driver.cost(program, min(len(frames), self.plan.packets))
            for _ in range(self.plan.rounds):
                baseline.append(float(self.driver.cost(self.driver.bare_pass, self.plan.packets).ns))
                ns.append(float(self.driver.cost(program, self.plan.packets).ns))
        return self.answers.add(Row(QUESTION, name, "ns", ns, baseline=min(baseline), note=note))

    def judged(
        self, name: str, guarded: Guarded, frames: Frames, verdict: str, reason: str, note: str = ""
    ) -> Row:
        """The same for the firewall: all of the packets must have got this verdict."""
        before = guarded.counted()
        row = self.measure(name, frames, guarded.program, note)
        since = guarded.since(before)
        assert set(since) == {(verdict, reason)}, f"{name}: {since}"
        return row


def run(world: World, plan: Plan) -> Answers:
    ladder = Ladder(world, Driver(world.guarded), plan, Answers(), np.random.default_rng(3))
    for measure in (_bare, _few_rules, _xdp_filter, _many_addresses, _mixed, _policies):
        measure(ladder, world)
    _compare(ladder.answers)
    return ladder.answers


def _bare(ladder: Ladder, world: World) -> None:
    ladder.driver.load_frames(ipv4_frames(address_lists.random_hosts(ladder.random, FRAMES_MAX)))
    packets, program = ladder.plan.packets, ladder.driver.bare_pass
    with on_one_cpu(world):
        ns = [float(ladder.driver.cost(program, packets).ns) for _ in range(ladder.plan.rounds)]
    ladder.answers.add(
        Row(QUESTION, "bare XDP_PASS (harness)", "ns", ns, note="copying a frame and a tail call")
    )


def _hits(addresses: Addresses4, random: Random) -> Frames:
    return ipv4_frames(round_robin_addresses(random.permutation(addresses)))


def round_robin_addresses(addresses: Addresses4) -> Addresses4:
    return np.asarray(addresses[np.arange(FRAMES_MAX) % len(addresses)], np.uint32)


def _one_address() -> Addresses4:
    return np.array([ONE_ADDRESS], np.uint32)


def _strangers(ladder: Ladder, listed: Addresses4) -> Frames:
    return ipv4_frames(address_lists.hosts_without(ladder.random, FRAMES_MAX, listed))


def _few_rules(ladder: Ladder, world: World) -> None:
    one = _one_address()
    strangers = _strangers(ladder, one)
    with Guarded(world) as guarded:
        ladder.answers.verified_instructions |= verified_instructions(guarded)
        ladder.judged("no rules", guarded, strangers, "pass", "default")
        guarded.list_addresses([address_lists.host_columns(one)])
        ladder.judged("1 address, miss", guarded, strangers, "pass", "default")
        ladder.judged("1 address, hit", guarded, _hits(one, ladder.random), "drop", "rule")


def _xdp_filter(ladder: Ladder, world: World) -> None:
    address = address_lists.text(_one_address())[0]
    with peers.xdp_filter(address) as program:
        hit = ipv4_frames(round_robin_addresses(_one_address()))
        for name, frames, verdict in (
            ("1 address, miss", _strangers(ladder, _one_address()), XDP_PASS),
            ("1 address, hit", hit, XDP_DROP),
        ):
            ladder.measure(f"xdp-filter, {name}", frames, program)
            assert ladder.driver.cost(program, 1).verdict == verdict, f"xdp-filter, {name}"


def _many_addresses(ladder: Ladder, world: World) -> None:
    hosts = address_lists.random_hosts(ladder.random, MILLION)
    strangers = _strangers(ladder, hosts)
    sizes = (1000, 100_000, MILLION)
    with Guarded(world) as guarded:
        for begun, size in zip((0, *sizes), sizes, strict=False):
            guarded.list_addresses([address_lists.host_columns(hosts[begun:size])])
            name = f"{size:,} addresses"
            ladder.judged(f"{name}, miss", guarded, strangers, "pass", "default")
            ladder.judged(f"{name}, hit", guarded, _hits(hosts[:size], ladder.random), "drop", "rule")
    _listed_beside_policy(ladder, world, hosts[: sizes[0]])


def _listed_beside_policy(ladder: Ladder, world: World, hosts: Addresses4) -> None:
    """A list that the caches hold: what a miss costs differs by more than the goal from one run to the next."""
    with Guarded(world) as guarded:
        guarded.list_addresses([address_lists.host_columns(hosts)])
        frames = _hits(hosts, ladder.random)
        alone = ladder.judged(f"{len(hosts):,} addresses, hit, alone", guarded, frames, "drop", "rule")
        guarded.add_rules(policy_set(ladder.random, SHAPES["acl"], 4096).rule_fields())
        name = f"{len(hosts):,} addresses, hit, 4,096 policy rules present"
        listed = ladder.judged(name, guarded, frames, "drop", "rule")
    name, more = "listed source: 4,096 policy rules add", listed.net - alone.net
    ladder.answers.goals.append(Goal(name, more, FEW_NS, "ns", rests_on=(listed, alone)))


def _mixed(ladder: Ladder, world: World) -> None:
    blocklist = address_lists.mixed_list(ladder.random, MILLION)
    with Guarded(world) as guarded:
        guarded.list_addresses(blocklist.columns())
        hits4 = blocklist.hosts_in4(ladder.random, FRAMES_MAX)
        hits6 = blocklist.hosts_in6(ladder.random, FRAMES_MAX)
        others = address_lists.random_hosts(ladder.random, FRAMES_MAX)
        note = "/8 to /32, nested, 5% IPv6"
        ladder.judged("1,000,000 mixed, IPv4 hit", guarded, ipv4_frames(hits4), "drop", "rule", note)
        ladder.judged("1,000,000 mixed, IPv6 hit", guarded, ipv6_frames(hits6), "drop", "rule", note)
        # Of random hosts some are in the list's larger networks, so there are two verdicts.
        _check_mixed(guarded, blocklist, others[:CHECKED])
        ladder.measure("1,000,000 mixed, random IPv4", ipv4_frames(others), guarded.program, note)
        _count_probes(ladder, guarded, blocklist, others)


def _check_mixed(guarded: Guarded, blocklist: MixedList, hosts: Addresses4) -> None:
    """Against trying every prefix of the list."""
    masks = address_lists.masks4(blocklist.lengths4)
    for host, frame in zip(hosts, ipv4_frames(hosts), strict=True):
        is_listed = bool(((host & masks) == blocklist.networks4).any())
        verdict = run_program(guarded.program, frame.tobytes(), 1).verdict
        assert verdict == (XDP_DROP if is_listed else XDP_PASS)


def _count_probes(ladder: Ladder, guarded: Guarded, blocklist: MixedList, others: Addresses4) -> None:
    maps, occupancy = guarded.kernel._set.maps, guarded.enforcer._ruleset.addresses.occupancy
    lengths = {4: occupancy.lengths4[0], 6: occupancy.lengths6[0]}
    words, mask = maps.arrays["address_filter"]["bits"], int(maps.control["filter_mask"])

    def probes(version: int, sources: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        return address_lists.probes(words, mask, version, lengths[version], sources)

    four = probes(4, address_lists.rows4(blocklist.hosts_in4(ladder.random, 1 << 18)))
    six = probes(6, blocklist.hosts_in6(ladder.random, 1 << 18))
    stranger = probes(4, address_lists.rows4(others))
    share = address_lists.SHARE_OF_IPV6
    listed = float(four.mean() * (1 - share) + six.mean() * share)
    for name, counts in (("listed IPv4", four), ("listed IPv6", six), ("random IPv4", stranger)):
        note = f"most: {int(counts.max())}"
        ladder.answers.add(
            Row(QUESTION, f"probes, mixed list, {name}", "probes", [float(counts.mean())], note=note)
        )
    worst = max(listed, float(stranger.mean()))
    ladder.answers.goals.append(Goal("1,000,000 mixed: probes on average", worst, 4.0, "probes"))


def _policies(ladder: Ladder, world: World) -> None:
    most = max(ladder.plan.policy_sizes)
    for name in ladder.plan.policy_shapes:
        with Guarded(world, max_rules=max(most, 4096)) as guarded:
            for size in ladder.plan.policy_sizes:
                policy = policy_set(ladder.random, SHAPES[name], size)
                guarded.enforcer.replace_all([], None)
                guarded.add_rules(policy.rule_fields())
                for traffic, packets in _traffic(ladder.random, policy):
                    _check_verdicts(guarded, policy, packets)
                    frames = round_robin(packets.frames(), POLICY_PACKETS)
                    ladder.measure(f"policy {name} {size:,}, {traffic}", frames, guarded.program)


def _traffic(random: Random, policy: PolicySet) -> Iterator[tuple[str, Packets]]:
    kinds: Sequence[tuple[str, Callable[[], Packets]]] = (
        ("friendly", partial(policies.friendly, random, policy, POLICY_PACKETS)),
        ("adversarial, last rule", partial(policies.adversarial, random, policy, POLICY_PACKETS, True)),
        ("adversarial, no rule", partial(policies.adversarial, random, policy, POLICY_PACKETS, False)),
    )
    for name, make in kinds:
        packets = make()
        assert len(packets) >= CHECKED, f"{len(packets)} packets that are {name}"
        yield name, packets


def _check_verdicts(guarded: Guarded, policy: PolicySet, packets: Packets) -> None:
    """Against trying every rule in turn."""
    some = packets.only(np.arange(len(packets)) < CHECKED)
    winners = policies.first_match(policy, some)
    drops = np.append(policy.drops, False)[winners]
    for frame, drop in zip(some.frames(), drops, strict=True):
        verdict = run_program(guarded.program, frame.tobytes(), 1).verdict
        assert verdict == (XDP_DROP if drop else XDP_PASS)


def verified_instructions(guarded: Guarded) -> dict[str, int]:
    """Instructions that the verifier went through, by program (bpf_prog_info.verified_insns, Linux 5.16)."""
    from firewall.kernel import bpf

    counts = {}
    for name, fd in guarded.programs.items():
        info = bpf._info(fd, 224)
        counts[name] = int.from_bytes(info[216:220], "little")
    return counts


def _compare(answers: Answers) -> None:
    rows = {row.name: row for row in answers.rows}
    for kind in ("hit", "miss"):
        ours, other = rows[f"1 address, {kind}"], rows[f"xdp-filter, 1 address, {kind}"]
        goal = Goal(
            f"1 address, {kind}: ns ours / xdp-filter", ours.net / other.net, 0.7, "×", rests_on=(ours, other)
        )
        answers.goals.append(goal)
    for size, limit in ((4096, 100.0), (16384, 300.0)):
        over = _over_one_rule(rows, size)
        for traffic in ("friendly", "adversarial"):
            some = [(value, pair) for name, (value, pair) in over.items() if f", {traffic}" in name]
            if some:
                worst, pair = max(some, key=lambda each: each[0])
                name = f"policy {size:,}, {traffic}: over 1 rule"
                answers.goals.append(Goal(name, worst, limit, "ns", rests_on=pair))


def _over_one_rule(rows: Mapping[str, Row], size: int) -> dict[str, tuple[float, tuple[Row, Row]]]:
    """By row, what it costs more than the same shape's friendly traffic with one rule, and the two rows."""
    over = {}
    for name, row in rows.items():
        words = name.split()
        if words[0] == "policy" and words[2] == f"{size:,},":
            one = rows[f"policy {words[1]} 1, friendly"]
            over[name] = (row.net - one.net, (row, one))
    return over
