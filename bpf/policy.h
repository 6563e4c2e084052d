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

/* Vector of the longest policy prefix that covers an address; `any` where none does. */
static __always_inline __u32 address_vector4(__u32 scope, __u32 address, __u32 any)
{
	__u32 bucket = scope * BUCKET_COUNT + bucket4(address), length, *vector;
	struct lengths4 *present = policy_lengths4.lookup(&bucket);
	struct prefix4 key;
	__u64 lengths;

	if (!present)
		return any;
	lengths = present->lengths;
#pragma clang loop unroll(disable)
	for (int i = 0; i < 33; i++) {
		if (!lengths)
			return any;
		length = highest_bit(lengths);
		lengths &= ~(1ULL << (length & 63));
		key4(&key, scope, address, length);
		vector = policy_prefix4.lookup(&key);
		if (vector)
			return *vector;
	}
	return any;
}

static __always_inline __u32 address_vector6(__u32 scope, const __u32 *address, __u32 any, __u32 short_lengths)
{
	__u32 bucket = scope * POLICY_BUCKET6_COUNT + bucket6(address, 12), length, *vector;
	struct lengths6 *present = policy_lengths6.lookup(&bucket);
	struct prefix6 key;
	__u64 lengths;

	if (!present)
		return any;
#pragma clang loop unroll(disable)
	for (int run = 2; run >= 0; run--) {
		lengths = run == 0 ? short_lengths : run == 1 ? present->word[0] : present->word[1];
#pragma clang loop unroll(disable)
		for (int i = 0; i < run_lengths(run); i++) {
			if (!lengths)
				break;
			length = highest_bit(lengths);
			lengths &= ~(1ULL << (length & 63));
			key6(&key, scope, address, run_base(run) + length);
			vector = policy_prefix6.lookup(&key);
			if (vector)
				return *vector;
		}
	}
	return any;
}

static __always_inline __u32 address_vector(const struct packet *packet, struct policy *head, __u32 scope, __u32 side)
{
	__u32 any = head->any_address[(packet->family & 1) * SIDE_COUNT + side];
	const __u32 *address = side == SIDE_SOURCE ? packet->source : packet->destination;

	scope = scope << SCOPE_HOOK_BIT | side;
	if (packet->family == FAMILY_IPV4)
		return address_vector4(scope, address[0], any);
	return address_vector6(scope, address, any, head->short_lengths6[side]);
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
 * First set bit of the AND of six vectors, or VECTOR_WORDS * 64. After Lakshman and Stiliadis (SIGCOMM
 * 1998): linear in words of 64 rules, whatever the packet is.
 */
static __always_inline __u32 first_rule(__u32 words, __u32 n0, __u32 n1, __u32 n2, __u32 n3, __u32 n4, __u32 n5)
{
	struct vector *v0 = policy_vectors.lookup(&n0), *v1 = policy_vectors.lookup(&n1);
	struct vector *v2 = policy_vectors.lookup(&n2), *v3 = policy_vectors.lookup(&n3);
	struct vector *v4 = policy_vectors.lookup(&n4), *v5 = policy_vectors.lookup(&n5);
	__u64 both;

	if (!v0 || !v1 || !v2 || !v3 || !v4 || !v5)
		return VECTOR_WORDS * 64;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < VECTOR_WORDS; i++) {
		if (i >= words)
			break;
		/* Hides i from the optimiser, which would fold both exits into one that the verifier cannot bound. */
		asm volatile("" : "+r"(i));
		if (i >= VECTOR_WORDS)
			break;
		both = v0->word[i] & v1->word[i] & v2->word[i] & v3->word[i] & v4->word[i] & v5->word[i];
		if (both)
			return i * 64 + lowest_bit(both);
	}
	return VECTOR_WORDS * 64;
}

/* scope: generation * HOOK_COUNT + hook. */
static __always_inline void best_policy(struct decision *best, struct policy *head, const struct packet *packet,
					__u32 scope)
{
	__u32 protocol = protocol_vector(packet, scope);
	__u32 bit = first_rule(head->words, protocol, address_vector(packet, head, scope, SIDE_SOURCE),
			       address_vector(packet, head, scope, SIDE_DESTINATION),
			       port_vector(packet, scope, SIDE_SOURCE, protocol),
			       port_vector(packet, scope, SIDE_DESTINATION, protocol),
			       interface_vector(packet, head, scope, protocol));
	struct policy_rule *rule;

	if (bit >= MAX_RULES)
		return;
	bit += scope * MAX_RULES;
	rule = policy_rules.lookup(&bit);
	if (!rule || rule->rank >= best->rank)
		return;
	best->rank = rule->rank;
	best->slot = rule->slot;
	best->is_policy = 1;
}

#endif
