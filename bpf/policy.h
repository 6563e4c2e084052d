/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The policy: the first of all rules that ask for more than an address.
 *
 * Each field's value leads to a vector of the rules that it satisfies; the first bit that is set in all of a
 * packet's vectors is its rule. Vector 0 matches nothing: a lookup that fails, which an array's cannot, finds
 * no rule.
 */
#ifndef EBPF_FW_POLICY_H
#define EBPF_FW_POLICY_H

/* Halvings of a span of 2^32 until one element is left. */
#define SEARCH_STEPS 32

/*
 * Before the end of a loop. Else clang 14 puts copies of these behind it and lets them fall through into the
 * loop's head, which the verifier of Linux 6.1 refuses ("back-edge"): it wants a jump.
 */
#define KEEP_TOGETHER(a, b, c, d) asm volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d))

/* Of the block of a crowded value of the leading bits. */
static __always_inline __u32 block_element(__u32 address)
{
	return address >> (32 - POLICY_INDEX_BITS - POLICY_BLOCK_BITS) & ((1 << POLICY_BLOCK_BITS) - 1);
}

/*
 * The intervals that the two addresses are in, by binary search: `at` stays at an interval that starts at or
 * before the address, and the one after `at + count - 1` starts beyond it. Without a branch on what is found,
 * which a processor could not foresee, and both sides in one loop, so that their waiting for memory overlaps.
 */
static __always_inline void address_vectors4(const struct packet *packet, __u32 scope, __u32 *vectors)
{
	__u64 source = bpf_ntohl(packet->source[0]), destination = bpf_ntohl(packet->destination[0]);
	__u32 at0 = scope * SIDE_COUNT << POLICY_INDEX_BITS | source >> POLICY_INDEX_BITS;
	__u32 at1 = (scope * SIDE_COUNT + 1) << POLICY_INDEX_BITS | destination >> POLICY_INDEX_BITS;
	struct span *span0 = policy_index4.lookup(&at0), *span1 = policy_index4.lookup(&at1);
	struct interval4 *interval0, *interval1;
	__u32 count0, count1, half0, half1, probe0, probe1;

	if (!span0 || !span1)
		return;
	if (!span0->count) {
		at0 = span0->first + block_element(source);
		span0 = policy_index4.lookup(&at0);
	}
	if (!span1->count) {
		at1 = span1->first + block_element(destination);
		span1 = policy_index4.lookup(&at1);
	}
	if (!span0 || !span1)
		return;
	at0 = span0->first;
	at1 = span1->first;
	count0 = span0->count;
	count1 = span1->count;
#pragma clang loop unroll(disable)
	for (int i = 0; i < SEARCH_STEPS; i++) {
		half0 = count0 >> 1;
		half1 = count1 >> 1;
		probe0 = at0 + half0;
		probe1 = at1 + half1;
		interval0 = policy_ranges4.lookup(&probe0);
		interval1 = policy_ranges4.lookup(&probe1);
		if (!interval0 || !interval1)
			return;
		at0 += half0 & ~if_negative(source - interval0->start);
		at1 += half1 & ~if_negative(destination - interval1->start);
		count0 -= half0;
		count1 -= half1;
		KEEP_TOGETHER(at0, at1, count0, count1);
		if ((count0 | count1) <= 1)
			break;
	}
	interval0 = policy_ranges4.lookup(&at0);
	interval1 = policy_ranges4.lookup(&at1);
	if (!interval0 || !interval1)
		return;
	vectors[SIDE_SOURCE] = interval0->vector;
	vectors[SIDE_DESTINATION] = interval1->vector;
}

/* All ones where the 128-bit address is before start, else 0: the borrow of a subtraction (Warren, Hacker's
 * Delight, 2-16). */
static __always_inline __u64 if_before(__u64 high, __u64 low, const __u64 *start)
{
	__u64 borrow = ((~low & start[1]) | ((~low | start[1]) & (low - start[1]))) >> 63;

	return if_negative((~high & start[0]) | ((~high | start[0]) & (high - start[0] - borrow)));
}

static __always_inline __u64 host_order(const __u32 *words)
{
	return (__u64)bpf_ntohl(words[0]) << 32 | bpf_ntohl(words[1]);
}

static __always_inline void address_vectors6(const struct packet *packet, const struct policy *head, __u32 *vectors)
{
	__u64 high0 = host_order(packet->source), low0 = host_order(packet->source + 2);
	__u64 high1 = host_order(packet->destination), low1 = host_order(packet->destination + 2);
	__u32 at0 = head->addresses[SIDE_SOURCE].first, at1 = head->addresses[SIDE_DESTINATION].first;
	__u32 count0 = head->addresses[SIDE_SOURCE].count, count1 = head->addresses[SIDE_DESTINATION].count;
	__u32 half0, half1, probe0, probe1;
	struct interval6 *interval0, *interval1;

#pragma clang loop unroll(disable)
	for (int i = 0; i < SEARCH_STEPS; i++) {
		half0 = count0 >> 1;
		half1 = count1 >> 1;
		probe0 = at0 + half0;
		probe1 = at1 + half1;
		interval0 = policy_ranges6.lookup(&probe0);
		interval1 = policy_ranges6.lookup(&probe1);
		if (!interval0 || !interval1)
			return;
		at0 += half0 & ~if_before(high0, low0, interval0->start);
		at1 += half1 & ~if_before(high1, low1, interval1->start);
		count0 -= half0;
		count1 -= half1;
		KEEP_TOGETHER(at0, at1, count0, count1);
		if ((count0 | count1) <= 1)
			break;
	}
	interval0 = policy_ranges6.lookup(&at0);
	interval1 = policy_ranges6.lookup(&at1);
	if (!interval0 || !interval1)
		return;
	vectors[SIDE_SOURCE] = interval0->vector;
	vectors[SIDE_DESTINATION] = interval1->vector;
}

static __always_inline __u32 protocol_vector(const struct packet *packet, __u32 scope)
{
	struct vector_number *number;
	__u32 row;

	if (packet->l4 == L4_ICMP) {
		row = scope * ICMP_ROWS + packet->icmp_type * 256 + packet->icmp_code;
		if (packet->protocol == PROTOCOL_ICMPV6)
			row += ICMP_ROWS / 2;
		number = policy_icmp.lookup(&row);
	} else {
		row = packet->protocol;
		if (packet->l4 == L4_TCP)
			row = PROTOCOL_ROW_TCP + packet->tcp_flags;
		else if (packet->l4 == L4_PORTS)
			row += PROTOCOL_ROW_PORTS;
		row += scope * PROTOCOL_ROWS;
		number = policy_protocol.lookup(&row);
	}
	return number ? number->vector : 0;
}

/* Rules without ports match any row, so a packet without ports asks its protocol's vector once more. */
static __always_inline __u32 port_vector(const struct packet *packet, __u32 scope, __u32 side, __u32 without)
{
	struct port_vectors *vectors;
	__u32 row;

	if (packet->l4 != L4_TCP && packet->l4 != L4_PORTS)
		return without;
	row = scope * PORT_ROWS + (side == SIDE_SOURCE ? packet->source_port : packet->destination_port);
	vectors = policy_port.lookup(&row);
	return vectors ? vectors->side[side] : 0;
}

static __always_inline __u32 interface_vector(const struct packet *packet, struct policy *head, __u32 scope,
					      __u32 without)
{
	struct interface_key key = {.ifindex = packet->ifindex, .scope = scope};
	__u32 *vector;

	if (!(head->options & OPTION_INTERFACES))
		return without;
	vector = policy_iface.lookup(&key);
	return vector ? *vector : head->any_interface;
}

/*
 * The first of the rules whose bits all six vectors have, RULE_NONE without one. Bit vectors after Lakshman
 * and Stiliadis (SIGCOMM 1998), aggregated and rearranged after Baboescu and Varghese (SIGCOMM 2001): the
 * summaries say which words can hold such a bit, and rules of the same addresses share words, so these are
 * few. Each of them names one rule, the first of its word; only the first `words` are looked into.
 */
#define RULE_NONE 0xffffffff

static __always_inline __u32 first_rule(volatile struct search *search, __u32 scope, __u32 words, __u32 n0, __u32 n1,
					__u32 n2, __u32 n3, __u32 n4, __u32 n5)
{
	struct vector *v0 = policy_vectors.lookup(&n0), *v1 = policy_vectors.lookup(&n1);
	struct vector *v2 = policy_vectors.lookup(&n2), *v3 = policy_vectors.lookup(&n3);
	struct vector *v4 = policy_vectors.lookup(&n4), *v5 = policy_vectors.lookup(&n5);
	__u64 at, candidates, word, both, better;
	struct policy_rule *rule;
	__u32 bit;

	if (!v0 || !v1 || !v2 || !v3 || !v4 || !v5)
		return RULE_NONE;
	search->candidates = 0;
	search->summaries = 0;
	search->best = 1ULL << 62 | RULE_NONE;
	search->enough = words;
#pragma clang loop unroll(disable)
	for (int i = 0; i < VECTOR_WORDS + SUMMARY_WORDS; i++) {
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
		if (word >= search->enough)
			break;
		/* Keeps the optimiser from folding both exits into one that the verifier cannot bound. */
		asm volatile("" : "+r"(word));
		if (word >= VECTOR_WORDS)
			break;
		both = v0->word[word] & v1->word[word] & v2->word[word] & v3->word[word] & v4->word[word] &
		       v5->word[word];
		if (!both)
			continue;
		bit = (scope * VECTOR_WORDS + word) * 64 + lowest_bit(both);
		rule = policy_rules.lookup(&bit);
		if (!rule)
			break;
		better = ((__u64)rule->order << 32 | bit) - search->best;
		search->best += better & if_negative(better);
		better = rule->enough - search->enough;
		search->enough += better & if_negative(better);
	}
	return search->best;
}

/* scope: generation * HOOK_COUNT + hook. */
static __always_inline void best_policy(struct decision *best, struct policy *head, const struct packet *packet,
					__u32 scope)
{
	__u32 protocol = protocol_vector(packet, scope), addresses[SIDE_COUNT] = {}, bit;
	__u32 row = best->row;
	struct search *search = policy_search.lookup(&row);
	struct policy_rule *rule;

	if (!search)
		return;
	if (packet->family == FAMILY_IPV4)
		address_vectors4(packet, scope, addresses);
	else
		address_vectors6(packet, head, addresses);
	bit = first_rule(search, scope, head->enforcing, protocol, addresses[SIDE_SOURCE], addresses[SIDE_DESTINATION],
			 port_vector(packet, scope, SIDE_SOURCE, protocol),
			 port_vector(packet, scope, SIDE_DESTINATION, protocol),
			 interface_vector(packet, head, scope, protocol));
	rule = policy_rules.lookup(&bit);
	if (!rule || rule->rank >= best->rank)
		return;
	best->rank = rule->rank;
	best->slot = rule->slot;
	best->is_policy = 1;
	best->room->outcome.handle = rule->handle;
}

#endif
