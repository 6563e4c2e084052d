/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The stage after the verdict for rules that only observe: each that matches and would have won is counted. The verdict
 * stays what it is. Runs as a program of its own (a tail call), so that who has no such rules pays nothing for it.
 */
#ifndef EBPF_FW_OBSERVE_H
#define EBPF_FW_OBSERVE_H

/* What a later stage needs to know; the packet stands in the workspace already. */
static __always_inline void keep_for_stages(struct workspace *room, const struct decision *decision)
{
	room->scope = decision->scope;
	room->rank = decision->rank;
	room->verdict = decision->verdict;
}

/*
 * Counts the rules behind the enforcing words whose bits all six vectors have and whose rank is smaller than `rank`. One
 * loop over summaries, words and bits, and where it stands is kept in map memory as in first_rule(): `best` holds the
 * bits of the word `enough` that are still to be looked at.
 */
static __always_inline void count_observers(volatile struct search *search, const struct policy *head, __u32 scope,
					    __u32 rank, __u32 length, __u32 n0, __u32 n1, __u32 n2, __u32 n3, __u32 n4,
					    __u32 n5)
{
	struct vector *v0 = policy_vectors.lookup(&n0), *v1 = policy_vectors.lookup(&n1);
	struct vector *v2 = policy_vectors.lookup(&n2), *v3 = policy_vectors.lookup(&n3);
	struct vector *v4 = policy_vectors.lookup(&n4), *v5 = policy_vectors.lookup(&n5);
	__u64 at, candidates, word, both;
	struct policy_rule *rule;
	__u32 bit;

	if (!v0 || !v1 || !v2 || !v3 || !v4 || !v5)
		return;
	search->candidates = 0;
	search->summaries = 0;
	search->best = 0;
	search->enough = 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < 2 * VECTOR_WORDS + SUMMARY_WORDS + OBSERVED_MAX; i++) {
		both = search->best;
		if (both) {
			search->best = both & (both - 1);
			bit = (scope * VECTOR_WORDS + search->enough) * 64 + lowest_bit(both);
			rule = policy_rules.lookup(&bit);
			if (!rule)
				break;
			if (rule->rank < rank)
				count_policy_rule(rule->slot, length);
			else
				search->best = 0; /* those behind it in the word are no better */
			continue;
		}
		candidates = search->candidates;
		at = search->summaries;
		if (!candidates) {
			if (at >= SUMMARY_WORDS)
				break;
			search->summaries = at + 1;
			search->candidates = v0->summary[at] & v1->summary[at] & v2->summary[at] & v3->summary[at] &
					     v4->summary[at] & v5->summary[at];
			continue;
		}
		search->candidates = candidates & (candidates - 1);
		word = (at - 1) * 64 + lowest_bit(candidates);
		/* As in first_rule(). */
		asm volatile("" : "+r"(word));
		if (word >= VECTOR_WORDS)
			break;
		if (word < head->enforcing)
			continue;
		search->best = v0->word[word] & v1->word[word] & v2->word[word] & v3->word[word] & v4->word[word] &
			       v5->word[word];
		search->enough = word;
	}
}

/* The verdict of the packet that the hook's program put into the workspace. */
static __always_inline int observe(__u32 hook)
{
	struct workspace *room = scratch.lookup(&hook);
	struct search *search = policy_search.lookup(&hook);
	__u32 scope, protocol, addresses[SIDE_COUNT] = {};
	const struct packet *packet;
	struct policy *head;

	if (!room || !search)
		return VERDICT_PASS;
	scope = room->scope;
	head = policy_heads.lookup(&scope);
	if (!head)
		return room->verdict;
	packet = &room->packet;
	protocol = protocol_vector(packet, scope);
	if (packet->family == FAMILY_IPV4)
		address_vectors4(packet, scope, addresses);
	else
		address_vectors6(packet, head, addresses);
	count_observers(search, head, scope, room->rank, packet->length, protocol, addresses[SIDE_SOURCE],
			addresses[SIDE_DESTINATION], port_vector(packet, scope, SIDE_SOURCE, protocol),
			port_vector(packet, scope, SIDE_DESTINATION, protocol),
			interface_vector(packet, head, scope, protocol));
	return room->verdict;
}

#endif
