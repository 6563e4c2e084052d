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

#define INDEX_COUNT ((1 << INDEX_COUNT_BITS) - 1)

/* Of the block that a crowded value leads to. */
static __always_inline __u32 block_begin(__u32 reach)
{
	return POLICY_BLOCKS_BEGIN + (reach >> INDEX_COUNT_BITS << POLICY_BLOCK_BITS);
}

static __always_inline __u32 index_reach(__u32 number)
{
	__u32 at = number / PAIR;
	struct index_pair *pair = policy_index4.lookup(&at);

	return pair ? pair->reach[number % PAIR] : 0;
}

/* Of both addresses the word of their leading bits: of IPv6 nobody looks at it. */
static __always_inline void first_reaches(const struct packet *packet, __u32 scope, __u32 *reaches)
{
	__u64 source = bpf_ntohl(packet->source[0]), destination = bpf_ntohl(packet->destination[0]);

	reaches[SIDE_SOURCE] = index_reach(scope * SIDE_COUNT << POLICY_INDEX_BITS | source >> POLICY_INDEX_BITS);
	reaches[SIDE_DESTINATION] =
		index_reach((scope * SIDE_COUNT + 1) << POLICY_INDEX_BITS | destination >> POLICY_INDEX_BITS);
}

/*
 * The intervals that the two addresses are in, by binary search: `at` stays at an interval that starts at or
 * before the address, and the one after `at + count - 1` starts beyond it. Without a branch on what is found,
 * which a processor could not foresee, and both sides in one loop, so that their waiting for memory overlaps.
 * `lines`: by side, the first of the class. 0 where a lookup failed.
 */
static __always_inline int address_lines4(const struct packet *packet, const __u32 *reaches, __u32 *lines)
{
	__u64 source = bpf_ntohl(packet->source[0]), destination = bpf_ntohl(packet->destination[0]);
	__u32 at0, at1, reach0 = reaches[SIDE_SOURCE], reach1 = reaches[SIDE_DESTINATION];
	struct interval4 *interval0, *interval1;
	__u32 count0, count1, half0, half1, probe0, probe1;

	if (!(reach0 & INDEX_COUNT))
		reach0 = index_reach(block_begin(reach0) + block_element(source));
	if (!(reach1 & INDEX_COUNT))
		reach1 = index_reach(block_begin(reach1) + block_element(destination));
	at0 = reach0 >> INDEX_COUNT_BITS;
	at1 = reach1 >> INDEX_COUNT_BITS;
	count0 = reach0 & INDEX_COUNT;
	count1 = reach1 & INDEX_COUNT;
#pragma clang loop unroll(disable)
	for (int i = 0; i < SEARCH_STEPS; i++) {
		half0 = count0 >> 1;
		half1 = count1 >> 1;
		probe0 = at0 + half0;
		probe1 = at1 + half1;
		interval0 = policy_ranges4.lookup(&probe0);
		interval1 = policy_ranges4.lookup(&probe1);
		if (!interval0 || !interval1)
			return 0;
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
		return 0;
	lines[SIDE_SOURCE] = interval0->line;
	lines[SIDE_DESTINATION] = interval1->line;
	return 1;
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

static __always_inline int address_lines6(const struct packet *packet, const struct policy *head, __u32 *lines)
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
			return 0;
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
		return 0;
	lines[SIDE_SOURCE] = interval0->line;
	lines[SIDE_DESTINATION] = interval1->line;
	return 1;
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
	struct port_pair *pair;
	__u32 number, at;

	if (packet->l4 != L4_TCP && packet->l4 != L4_PORTS)
		return without;
	number = side == SIDE_SOURCE ? packet->source_port : packet->destination_port;
	at = ((scope * SIDE_COUNT + side) * PORT_ROWS + number) / PAIR;
	pair = policy_port.lookup(&at);
	return pair ? pair->vector[number % PAIR] : 0;
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

/* Six vectors by their numbers; those of the addresses by the first lines of their classes, too. */
struct vectors {
	__u32 protocol;
	__u32 port[SIDE_COUNT];
	__u32 interface;
	__u32 anywhere[SIDE_COUNT];
	__u32 lines[SIDE_COUNT];
};

/* Of a word of a vector, among all of its words: one place for all vectors, so the compiler need not keep two pointers to each. */
static __always_inline __u64 behind_summary(__u64 word)
{
	__u64 place = SUMMARY_WORDS + word;

	asm volatile("" : "+r"(place));
	return place;
}

static __always_inline __u64 word_at(const struct vector *vector, __u64 place)
{
	return ((const __u64 *)vector)[place];
}

/* Number of the only bit that is set, by de Bruijn multiplication (Leiserson, Prokop, Randall 1998). */
static __always_inline __u64 bit_number(const struct policy *head, __u64 bit)
{
	return head->bit_numbers[bit * DE_BRUIJN >> 58];
}

/* How many of 8 bits are set: each at a place of its own (Warren, Hacker's Delight, 5-1), then all added. */
static __always_inline __u64 bits_in_byte(__u64 byte)
{
	return (byte * 0x08040201 >> 3 & 0x11111111) * 0x11111111 >> 28 & 15;
}

/* The word that a class has of its own, 0 where it has none. `first`: its first line. */
static __always_inline __u64 own_word(const struct line *first, __u32 number, __u64 word)
{
	const __u8 *summary = (const __u8 *)first, *below = summary + SUMMARY_WORDS * 8;
	__u64 byte = word >> 3 & 31, own = summary[byte],
	      is_own = own >> (word & 7) & 1; /* at most four summary words */
	__u64 place = 2 * SUMMARY_WORDS + below[byte] + bits_in_byte(own & ((1 << (word & 7)) - 1));
	struct line *line;

	number += place / LINE_WORDS;
	line = policy_lines.lookup(&number);
	asm volatile("" : "+r"(is_own));
	return line ? line->word[place % LINE_WORDS] & -is_own : 0;
}

/*
 * The first of the rules whose bits all six vectors have, RULE_NONE without one. Bit vectors after Lakshman
 * and Stiliadis (SIGCOMM 1998), aggregated and rearranged after Baboescu and Varghese (SIGCOMM 2001): the
 * summaries say which words can hold such a bit, and rules of the same addresses share words, so these are
 * few. Each of them names one rule, the first of its word; only the first head->enforcing are looked into.
 */
#define RULE_NONE 0xffffffff

static __always_inline __u32 first_rule(volatile struct search *search, const struct policy *head, __u32 scope,
					struct vectors *of)
{
	struct vector *v0 = policy_vectors.lookup(&of->protocol), *v1 = policy_vectors.lookup(&of->interface);
	struct vector *v2 = policy_vectors.lookup(&of->port[SIDE_SOURCE]);
	struct vector *v3 = policy_vectors.lookup(&of->port[SIDE_DESTINATION]);
	struct vector *v4 = policy_vectors.lookup(&of->anywhere[SIDE_SOURCE]);
	struct vector *v5 = policy_vectors.lookup(&of->anywhere[SIDE_DESTINATION]);
	struct line *line4 = policy_lines.lookup(&of->lines[SIDE_SOURCE]);
	struct line *line5 = policy_lines.lookup(&of->lines[SIDE_DESTINATION]);
	__u64 at, candidates, word, place, both, better, own4, own5, lowest;
	struct policy_rule *rule;
	__u32 bit;

	if (!v0 || !v1 || !v2 || !v3 || !v4 || !v5 || !line4 || !line5)
		return RULE_NONE;
	search->candidates = 0;
	search->summaries = 0;
	search->best = 1ULL << 62 | RULE_NONE;
	search->enough = head->enforcing;
#pragma clang loop unroll(disable)
	for (__u64 i = 0; i < VECTOR_WORDS + SUMMARY_WORDS; i++) {
		candidates = search->candidates;
		at = search->summaries;
		if (!candidates) {
			if (at >= SUMMARY_WORDS)
				break;
			search->summaries = at + 1;
			search->candidates = v0->summary[at] & v1->summary[at] & v2->summary[at] & v3->summary[at] &
					     (v4->summary[at] | line4->word[at]) & (v5->summary[at] | line5->word[at]);
			continue;
		}
		search->candidates = candidates & (candidates - 1);
		lowest = candidates & -candidates;
		word = (at - 1) * 64 + bit_number(head, lowest);
		if (word >= search->enough)
			break;
		/* Keeps the optimiser from folding both exits into one that the verifier cannot bound. */
		asm volatile("" : "+r"(word));
		if (word >= VECTOR_WORDS)
			break;
		own4 = own_word(line4, of->lines[SIDE_SOURCE], word);
		own5 = own_word(line5, of->lines[SIDE_DESTINATION], word);
		place = behind_summary(word);
		both = word_at(v0, place) & word_at(v1, place) & word_at(v2, place) & word_at(v3, place) &
		       (word_at(v4, place) | own4) & (word_at(v5, place) | own5);
		if (!both)
			continue;
		bit = (scope * VECTOR_WORDS + word) * 64 + bit_number(head, both & -both);
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

/*
 * 0 where a lookup failed. The first look into the index comes before what ports lead to, and that before the search of the
 * addresses: each comes from memory while the next is asked for.
 */
static __always_inline int find_vectors(struct vectors *of, const struct packet *packet, struct policy *head,
					__u32 scope)
{
	__u32 family = packet->family & 1, reaches[SIDE_COUNT];

	first_reaches(packet, scope, reaches);
	of->protocol = protocol_vector(packet, scope);
	of->port[SIDE_SOURCE] = port_vector(packet, scope, SIDE_SOURCE, of->protocol);
	of->port[SIDE_DESTINATION] = port_vector(packet, scope, SIDE_DESTINATION, of->protocol);
	of->interface = interface_vector(packet, head, scope, of->protocol);
	of->anywhere[SIDE_SOURCE] = head->anywhere[family * SIDE_COUNT + SIDE_SOURCE];
	of->anywhere[SIDE_DESTINATION] = head->anywhere[family * SIDE_COUNT + SIDE_DESTINATION];
	return packet->family == FAMILY_IPV4 ? address_lines4(packet, reaches, of->lines)
					     : address_lines6(packet, head, of->lines);
}

/* scope: generation * HOOK_COUNT + hook. */
static __always_inline void best_policy(struct decision *best, struct policy *head, const struct packet *packet,
					__u32 scope)
{
	__u32 row = best->row, bit;
	struct search *search = policy_search.lookup(&row);
	struct policy_rule *rule;
	struct vectors of = {};

	if (!search || !find_vectors(&of, packet, head, scope))
		return;
	bit = first_rule(search, head, scope, &of);
	rule = policy_rules.lookup(&bit);
	if (!rule || rule->rank >= best->rank)
		return;
	best->rank = rule->rank;
	best->slot = rule->slot & ~RULE_NAMES_SETS;
	best->beyond |= rule->slot & RULE_NAMES_SETS;
	best->is_policy = 1;
	best->room->outcome.handle = rule->handle;
}

#endif
