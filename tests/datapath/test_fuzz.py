"""The packet parser under random and broken frames, for a bounded time; `make fuzz FRAMES=10000000` goes on longer.

FUZZ_FRAMES: how many frames, instead of FUZZ_SECONDS of them. FUZZ_SEED: other frames.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from tests import oracle
from tests.datapath.fuzz import BATCH, SETTINGS, Batch, Disagreement, batches, run, write_failure
from tests.datapath.fuzz_frames import as_rows, mutated
from tests.datapath.loaded import Loaded
from tests.packets import CASES
from tests.random_rules import random_frame, random_rules
from tests.vector_judge import Frames, Parsed, judge

FRAMES = int(os.environ.get("FUZZ_FRAMES", "0"))
SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
FAILURES = Path(__file__).parents[2] / "build" / "fuzz"


def test_every_frame_gets_the_verdict_and_reason_that_an_independent_parser_gives(firewall: Loaded) -> None:
    started, done, reported = time.monotonic(), 0, 0.0
    for batch, frames in batches(SEED):
        try:
            done += run(firewall, batch, frames)
        except Disagreement as error:
            pytest.fail(f"{error}\n(kept in {write_failure(FAILURES, error)})", pytrace=False)
        seconds = time.monotonic() - started
        if seconds - reported > 30:
            print(f"{done:,} frames in {seconds:.0f} s", flush=True)
            reported = seconds
        if done >= FRAMES if FRAMES else seconds > SECONDS:
            break
    print(f"{done:,} frames in {time.monotonic() - started:.0f} s, seed {SEED}", flush=True)
    assert done >= (FRAMES or BATCH)


@pytest.mark.parametrize("link", ["ethernet", "ip"])
def test_the_fast_judge_finds_in_every_case_what_was_written_down_by_hand(link: str) -> None:
    cases = [case for case in CASES if case.link == link and len(case.frame) <= 2000]
    data = np.zeros((len(cases), 2000), np.uint8)
    for row, case in zip(data, cases, strict=True):
        row[: len(case.frame)] = np.frombuffer(case.frame, np.uint8)
    found = Parsed(Frames(data, np.array([len(case.frame) for case in cases])), link)
    for number, case in enumerate(cases):
        expect = case.expect
        assert found.reason[number] == expect.reason, case.name
        ports = (found.source_port[number], found.destination_port[number])
        assert ports == (expect.ports or (-1, -1)), case.name
        assert (found.icmp_type[number], found.icmp_code[number]) == (expect.icmp or (-1, -1)), case.name
        if expect.version is not None and expect.reason == "default":
            assert found.version[number] == expect.version, case.name
            assert found.protocol[number] == expect.protocol, case.name
            assert found.fragment[number] == expect.fragment, case.name


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("hook", ["ingress", "egress"])
def test_the_fast_judge_agrees_with_the_naive_one(hook: str, settings: dict[str, str]) -> None:
    rng = random.Random(7)
    for link in ("ethernet", "ip"):
        batch = Batch(7, hook, link, settings, random_rules(rng, 6))
        plain = [random_frame(rng, link)[:320] for _ in range(300)]
        broken = mutated(11, link, 1500)
        for frames in (as_rows(plain), broken):
            verdicts, reasons = judge(batch.rules, Parsed(frames, link), hook, settings)
            for row, size in enumerate(frames.size.tolist()):
                frame = bytes(frames.data[row, :size])
                expected = batch.naive(frame)
                assert (["pass", "drop"][verdicts[row]], reasons[row]) == expected, frame.hex()


def test_the_frames_reach_every_branch_of_the_parser() -> None:
    """A fuzzer whose frames all end at the first check would find nothing."""
    seen = {"ethernet": set[tuple[str, int | None]](), "ip": set[tuple[str, int | None]]()}
    for link, found in seen.items():
        frames = mutated(3, link, 8000)
        for row, size in enumerate(frames.size.tolist()):
            packet = oracle.parse(bytes(frames.data[row, :size]), link)
            found.add((packet.reason, packet.protocol))
    for link, found in seen.items():
        reasons = {reason for reason, _ in found}
        wanted = {"default", "malformed_link", "malformed_ipv4", "malformed_ipv6", "malformed_extension"}
        wanted |= {"malformed_l4", "malformed_fragment"} | ({"not_ip"} if link == "ethernet" else set())
        assert reasons == wanted
        whole = {protocol for reason, protocol in found if reason == "default"}
        assert {1, 6, 17, 33, 58, 132, 136} <= whole
        assert {0, 43, 44, 51, 60, 135} <= {
            protocol for reason, protocol in found if reason == "malformed_extension"
        }


def test_a_wrong_verdict_is_found_and_told(firewall: Loaded) -> None:
    """The same frames, judged by rules that are not the ones in force."""
    batch = Batch(5, "ingress", "ethernet", {}, [])
    frames = mutated(5, "ethernet", 2000)
    assert run(firewall, batch, frames) == 2000
    firewall.rules({"protocols": ["dccp"]})
    firewall.rules = lambda *rules: None  # type: ignore[assignment,method-assign,return-value]
    try:
        with pytest.raises(
            Disagreement, match=r"judged .*'drop', reason='rule'.*\n.*seed 5[\s\S]*frame [0-9a-f]+"
        ):
            run(firewall, batch, frames)
    finally:
        del firewall.rules
