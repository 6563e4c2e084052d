/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The last step of deciding: the rank that won, or none, to verdict and reason. And what the program answers. Reads no map.
 */
#ifndef EBPF_FW_VERDICT_H
#define EBPF_FW_VERDICT_H

/* What decides where no rule does. */
static __always_inline void without_rule(struct decision *decision, const struct packet *packet, __u32 hook)
{
	if (packet->malformed) {
		decision->reason = packet->malformed;
		decision->verdict = decision->options & OPTION_MALFORMED_PASS ? VERDICT_PASS : VERDICT_DROP;
	} else if (!(decision->options & OPTION_DEFAULT_DROP)) {
		decision->reason = REASON_DEFAULT;
	} else if (is_essential(packet, decision->options, hook)) {
		decision->reason = REASON_ESSENTIAL;
	} else {
		decision->reason = decision->options & OPTION_PANIC ? REASON_PANIC : REASON_DEFAULT;
		decision->verdict = VERDICT_DROP;
	}
}

/*
 * What a rule decided. In panic the rules of the policy are the connections that it keeps. The verdict is arithmetic up to
 * what the program answers: it is the last thing that is known of a packet, and a processor that guessed it wrong would
 * begin anew.
 */
static __always_inline void by_rule(struct decision *decision)
{
	__u64 allows = decision->rank & RANK_ALLOW;

	asm volatile("" : "+r"(allows));
	decision->reason = REASON_RULE;
	decision->verdict = VERDICT_DROP - allows;
	if (decision->rank == RANK_NEVER_DROP)
		decision->reason = REASON_NEVER_DROP;
	else if (decision->options & OPTION_PANIC)
		decision->reason = REASON_PANIC;
}

_Static_assert(VERDICT_PASS == 0 && VERDICT_DROP == 1 && RANK_ALLOW == 1, "arithmetic of verdicts");

/* XDP_PASS or XDP_DROP. */
static __always_inline int xdp_action(__u64 verdict)
{
	asm volatile("" : "+r"(verdict));
	return XDP_PASS - verdict * (XDP_PASS - XDP_DROP);
}

/* TC_ACT_UNSPEC (whatever comes after this filter is asked) or TC_ACT_SHOT. */
static __always_inline int tc_action(__u64 verdict)
{
	asm volatile("" : "+r"(verdict));
	return TC_ACT_UNSPEC + verdict * (TC_ACT_SHOT - TC_ACT_UNSPEC);
}

#endif
