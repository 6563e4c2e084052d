/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The last step of deciding: the rank that won, or none, to verdict and reason. Reads no map.
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

/* What a rule decided. In panic the rules of the policy are the connections that it keeps. */
static __always_inline void by_rule(struct decision *decision)
{
	decision->reason = REASON_RULE;
	decision->verdict = decision->rank & RANK_ALLOW ? VERDICT_PASS : VERDICT_DROP;
	if (decision->rank == RANK_NEVER_DROP)
		decision->reason = REASON_NEVER_DROP;
	else if (decision->options & OPTION_PANIC)
		decision->reason = REASON_PANIC;
}

#endif
