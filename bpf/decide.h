/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * struct packet to verdict: the address tables and the policy each name their best rule, the smaller rank
 * decides. Nothing here changes a map; account.h counts.
 *
 * Fail-open: where a map that cannot be missing is missing, the packet passes with REASON_DEFAULT.
 */
#ifndef EBPF_FW_DECIDE_H
#define EBPF_FW_DECIDE_H

static __always_inline void decide(struct decision *decision, const struct packet *packet, __u32 hook)
{
	__u32 zero = 0, scope;
	struct control *control = control_map.lookup(&zero);
	struct policy *head;
	__u64 epoch;

	decision->reason = REASON_DEFAULT;
	if (!control)
		return;
	decision->rank = RANK_NONE;
	decision->best = BEST_NONE ^ control->always_zero;
	decision->listening = control->listening;
	epoch = *(volatile __u64 *)&control->epoch;
	scope = (epoch & 1) * HOOK_COUNT + hook;
	head = policy_heads.lookup(&scope);
	if (!head)
		return;
	decision->options = head->options;

	if (!packet->malformed && !packet->is_ip) {
		decision->reason = REASON_NOT_IP;
		if (packet->is_arp && head->options & OPTION_DROP_ARP)
			decision->verdict = VERDICT_DROP;
		return;
	}
	if (packet->malformed && (!packet->is_ip || !(head->options & OPTION_MALFORMED_PASS))) {
		without_rule(decision, packet, hook);
		return;
	}
	if (packet->is_fragment && head->options & OPTION_FRAGMENTS_DROP) {
		decision->reason = REASON_FRAGMENT;
		decision->verdict = VERDICT_DROP;
		return;
	}
	decision->scope = scope;
	decision->observe = head->options & OPTION_OBSERVE;
	best_address(decision, control, epoch, packet, hook);
	decision->rank = decision->best >> BEST_RANK_SHIFT;
	if (head->options & OPTION_PANIC && decision->rank != RANK_NEVER_DROP)
		decision->rank = RANK_NONE;
	if (head->best_rank < decision->rank) {
		/* Or the verifier would follow the search once for every entry that may have been found, and once for none. */
		decision->last = NULL;
		best_policy(decision, head, packet, scope);
	}
	if (decision->rank == RANK_NONE) {
		without_rule(decision, packet, hook);
		return;
	}
	by_rule(decision);
}

#endif
