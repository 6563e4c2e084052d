/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * struct packet to verdict: the address tables and the policy each name their best rule, the smaller rank
 * decides. Nothing here changes a map; account.h counts.
 */
#ifndef EBPF_FW_DECIDE_H
#define EBPF_FW_DECIDE_H

/* What is decided before any rule is asked. */
static __always_inline int is_decided_early(struct decision *decision, const struct packet *packet, __u32 hook)
{
	if (!packet->malformed && !packet->is_ip) {
		decision->reason = REASON_NOT_IP;
		if (packet->is_arp && decision->options & OPTION_DROP_ARP)
			decision->verdict = VERDICT_DROP;
		return 1;
	}
	if (packet->malformed && (!packet->is_ip || !(decision->options & OPTION_MALFORMED_PASS))) {
		without_rule(decision, packet, hook);
		return 1;
	}
	if (packet->is_fragment && decision->options & OPTION_FRAGMENTS_DROP) {
		decision->reason = REASON_FRAGMENT;
		decision->verdict = VERDICT_DROP;
		return 1;
	}
	return 0;
}

/* Answers 0 where a map that cannot be missing is missing: the packet passes, and is not counted. */
static __always_inline int decide(struct decision *decision, const struct packet *packet, __u32 hook)
{
	__u32 zero = 0, scope;
	struct control *control = control_map.lookup(&zero);
	struct policy *head;
	__u64 epoch;

	if (!control)
		return 0;
	epoch = *(volatile __u64 *)&control->epoch;
	scope = (epoch & 1) * HOOK_COUNT + hook;
	head = policy_heads.lookup(&scope);
	if (!head)
		return 0;
	decision->rank = RANK_NONE;
	decision->best = BEST_NONE ^ control->always_zero;
	decision->beyond = control->listening;
	decision->options = head->options;

	if ((packet->unusual || !packet->is_ip) && is_decided_early(decision, packet, hook))
		return 1;
	decision->room->scope = scope;
	decision->beyond |= decision->options & OPTION_OBSERVE;
	best_address(decision, control, epoch, packet, hook);
	decision->rank = decision->best >> BEST_RANK_SHIFT;
	decision->rank |= panic_mask(decision->options, decision->rank);
	if (head->best_rank < decision->rank) {
		/* Or the verifier would follow the search once for every entry that may have been found, and once for none. */
		decision->last = NULL;
		best_policy(decision, head, packet, scope);
	}
	if (decision->rank == RANK_NONE)
		without_rule(decision, packet, hook);
	else
		by_rule(decision);
	return 1;
}

#endif
