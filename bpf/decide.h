/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * struct packet to verdict: the address tables and the policy each name their best rule, the smaller rank
 * decides. Nothing here changes a map; account.h counts.
 *
 * Fail-open or fail-closed: a lookup in an array cannot fail, and where the verifier wants that case
 * handled the packet is judged as if the structure were empty.
 */
#ifndef EBPF_FW_DECIDE_H
#define EBPF_FW_DECIDE_H

struct decision {
	__u64 best; /* rank << 16 | scope << 8 | prefix length of the best address rule, BEST_NONE without one */
	__u64 rank;
	__u32 slot; /* of policy_counters, when the winner is a policy rule */
	__u32 options;
	__u8 verdict;
	__u8 reason;
	__u8 is_policy;
};

#define BEST_NONE ((__u64)RANK_NONE << 16)

/* Index of the lowest set bit of x != 0. __builtin_ctzll crashes clang 14's BPF backend, a branching
 * search explodes the verifier's states: de Bruijn multiplication (Leiserson, Prokop, Randall 1998) has
 * neither. bcc has no constant data, so the table is six population counts instead:
 * the bits below the lowest set one are (x & -x) - 1. */
static __always_inline __u32 lowest_bit(__u64 x)
{
	x = (x & -x) - 1;
	x -= (x >> 1) & 0x5555555555555555ULL;
	x = (x & 0x3333333333333333ULL) + ((x >> 2) & 0x3333333333333333ULL);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (x * 0x0101010101010101ULL) >> 56;
}

/* Index of the highest set bit of x != 0: smear it down, count. */
static __always_inline __u32 highest_bit(__u64 x)
{
	x |= x >> 1;
	x |= x >> 2;
	x |= x >> 4;
	x |= x >> 8;
	x |= x >> 16;
	x |= x >> 32;
	x -= (x >> 1) & 0x5555555555555555ULL;
	x = (x & 0x3333333333333333ULL) + ((x >> 2) & 0x3333333333333333ULL);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return ((x * 0x0101010101010101ULL) >> 56) - 1;
}

/* The first `length` (0..32) bits of a network-order word. */
static __always_inline __u32 leading_bits(__u32 word, __u32 length)
{
	__u64 mask = 0xffffffff00000000ULL >> (length & 63);

	return word & bpf_htonl((__u32)mask);
}

static __always_inline void key4(struct prefix4 *key, __u32 scope, __u32 address, __u32 length)
{
	key->scope = scope;
	key->length = length;
	key->padding = 0;
	key->address = leading_bits(address, length);
}

/* The `bits` (0..64) leading bits set. Two shifts, because one by 64 is none. */
static __always_inline __u64 leading_mask(__u64 bits)
{
	return ~(~0ULL >> (bits >> 1) >> (bits - (bits >> 1)));
}

/*
 * All ones where x < 0, else 0. The verifier follows both sides of a branch but only one of arithmetic; the
 * empty asm keeps the compiler from turning what is done with the mask back into a branch.
 */
static __always_inline __u64 if_negative(__s64 x)
{
	__u64 mask = x >> 63;

	asm volatile("" : "+r"(mask));
	return mask;
}

/* The two halves get min(length, 64) and the rest. */
static __always_inline void key6(struct prefix6 *key, __u32 scope, const __u32 *address, __u64 length)
{
	__u64 beyond = length - 64, is_short = if_negative(beyond);
	__u64 high, low;

	high = leading_mask(64 + (beyond & is_short));
	low = leading_mask(beyond & ~is_short);
	key->scope = scope;
	key->length = length;
	key->padding = 0;
	key->address[0] = address[0] & bpf_htonl(high >> 32);
	key->address[1] = address[1] & bpf_htonl(high);
	key->address[2] = address[2] & bpf_htonl(low >> 32);
	key->address[3] = address[3] & bpf_htonl(low);
}

static __always_inline __u32 bucket4(__u32 address)
{
	return bpf_ntohl(address) >> 16;
}

/* Fibonacci hashing (Knuth, TAOCP 3, 6.4) of the top 32 bits to `bits` bits. */
static __always_inline __u32 bucket6(const __u32 *address, __u32 bits)
{
	return (bpf_ntohl(address[0]) * BUCKET6_MULTIPLIER) >> (32 - bits);
}

/*
 * Keeps the smaller of the best so far and the entry that a probe found. By arithmetic: the verifier sees
 * one state after every probe and not one for every order of hits before it. That is also why the entry's
 * key is kept and not a pointer to it.
 */
static __always_inline void better(struct decision *best, const struct address_entry *entry, __u64 epoch, __u32 scope,
				   __u32 length)
{
	__u64 is_future, candidate;

	if (!entry)
		return;
	is_future = if_negative(epoch - entry->since);
	candidate = (entry->rank & ~is_future) | (entry->old_rank & is_future);
	candidate = candidate << 16 | scope << 8 | length;
	candidate -= best->best;
	best->best += candidate & if_negative(candidate);
}

/* Best address rule of one IPv4 list: probes every prefix length that occurs below the address's bucket. */
static __always_inline void best_address4(struct decision *best, __u64 epoch, __u32 scope, __u32 address)
{
	__u32 bucket = scope * BUCKET_COUNT + bucket4(address);
	struct lengths4 *present = lengths4.lookup(&bucket);
	struct prefix4 key;
	__u64 lengths;
	__u32 length;

	if (!present)
		return;
	lengths = present->lengths;
#pragma clang loop unroll(disable)
	for (int i = 0; i < 33; i++) {
		if (!lengths)
			return;
		length = lowest_bit(lengths);
		lengths &= lengths - 1;
		key4(&key, scope, address, length);
		better(best, address4.lookup(&key), epoch, scope, length);
	}
}

/* IPv6 lengths come in three runs: 0..31 (short_lengths6), 32..95 and 96..128 (struct lengths6). */
static __always_inline __u32 run_base(int run)
{
	return run == 0 ? 0 : run == 1 ? BUCKET6_SHORTEST : BUCKET6_SHORTEST + 64;
}

/* At most: the bound that lets the verifier see the loop over a run end. */
static __always_inline int run_lengths(int run)
{
	return run == 0 ? 32 : run == 1 ? 64 : 33;
}

static __always_inline void best_address6(struct decision *best, __u64 epoch, __u32 scope, const __u32 *address,
					  __u32 short_lengths)
{
	__u32 bucket = scope * BUCKET_COUNT + bucket6(address, 16);
	struct lengths6 *present = lengths6.lookup(&bucket);
	struct prefix6 key;
	__u64 lengths;
	__u32 length;

	if (!present)
		return;
#pragma clang loop unroll(disable)
	for (int run = 0; run < 3; run++) {
		lengths = run == 0 ? short_lengths : run == 1 ? present->word[0] : present->word[1];
#pragma clang loop unroll(disable)
		for (int i = 0; i < run_lengths(run); i++) {
			if (!lengths)
				break;
			length = run_base(run) + lowest_bit(lengths);
			lengths &= lengths - 1;
			key6(&key, scope, address, length);
			better(best, address6.lookup(&key), epoch, scope, length);
		}
	}
}

static __always_inline void best_address(struct decision *best, struct control *control, __u64 epoch,
					 const struct packet *packet, __u32 hook)
{
	__u32 source = hook << SCOPE_HOOK_BIT | SIDE_SOURCE, destination = hook << SCOPE_HOOK_BIT | SIDE_DESTINATION;
	__u32 occupied = control->occupied >> packet->family * ADDRESS_SCOPE_COUNT;

	if (!(occupied >> source & 3))
		return;
	if (packet->family == FAMILY_IPV4) {
		if (occupied >> source & 1)
			best_address4(best, epoch, source, packet->source[0]);
		if (occupied >> destination & 1)
			best_address4(best, epoch, destination, packet->destination[0]);
	} else {
		if (occupied >> source & 1)
			best_address6(best, epoch, source, packet->source, control->short_lengths6[source]);
		if (occupied >> destination & 1)
			best_address6(best, epoch, destination, packet->destination,
				      control->short_lengths6[destination]);
	}
}

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

/* What decides where no rule does. */
static __always_inline void without_rule(struct decision *decision, const struct packet *packet)
{
	if (packet->malformed) {
		decision->reason = packet->malformed;
		decision->verdict = decision->options & OPTION_MALFORMED_PASS ? VERDICT_PASS : VERDICT_DROP;
	} else {
		decision->reason = REASON_DEFAULT;
		decision->verdict = decision->options & OPTION_DEFAULT_DROP ? VERDICT_DROP : VERDICT_PASS;
	}
}

/*
 * The verifier follows every path of the parser with the constants that it left (which header, which
 * reason) and would verify all that follows once for each. `zero` is 0, which the verifier cannot know:
 * after the xor all those paths are one.
 */
static __always_inline void forget(struct packet *packet, __u32 zero)
{
	packet->protocol ^= zero;
	packet->l4 ^= zero;
	packet->tcp_flags ^= zero;
	packet->icmp_type ^= zero;
	packet->icmp_code ^= zero;
	packet->source_port ^= zero;
	packet->destination_port ^= zero;
	packet->is_fragment ^= zero;
	packet->malformed ^= zero;
}

static __always_inline void decide(struct decision *decision, struct packet *packet, __u32 hook)
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
	forget(packet, control->always_zero);
	epoch = *(volatile __u64 *)&control->epoch;
	scope = (epoch & 1) * HOOK_COUNT + hook;
	head = policy_heads.lookup(&scope);
	if (!head)
		return;
	decision->options = head->options;

	if (!packet->malformed && !packet->is_ip) {
		decision->reason = REASON_NOT_IP;
		return;
	}
	if (packet->malformed && (!packet->is_ip || !(head->options & OPTION_MALFORMED_PASS))) {
		without_rule(decision, packet);
		return;
	}
	if (packet->is_fragment && head->options & OPTION_FRAGMENTS_DROP) {
		decision->reason = REASON_FRAGMENT;
		decision->verdict = VERDICT_DROP;
		return;
	}
	best_address(decision, control, epoch, packet, hook);
	decision->rank = decision->best >> 16;
	if (head->best_rank < decision->rank)
		best_policy(decision, head, packet, scope);
	if (decision->rank == RANK_NONE) {
		without_rule(decision, packet);
		return;
	}
	decision->reason = REASON_RULE;
	decision->verdict = decision->rank & RANK_ALLOW ? VERDICT_PASS : VERDICT_DROP;
}

#endif
