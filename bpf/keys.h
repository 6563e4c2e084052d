/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Keys of prefixes: the arithmetic from an address and a prefix length to a key. No maps.
 *
 * What looks laboured here is for the verifier: it follows both sides of every branch, and a key is made for
 * every length that a loop may meet.
 */
#ifndef EBPF_FW_KEYS_H
#define EBPF_FW_KEYS_H

/* How many bits are set (Warren, Hacker's Delight, 5-1). */
static __always_inline __u32 bit_count(__u64 x)
{
	x -= (x >> 1) & 0x5555555555555555ULL;
	x = (x & 0x3333333333333333ULL) + ((x >> 2) & 0x3333333333333333ULL);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (x * 0x0101010101010101ULL) >> 56;
}

/* Index of the lowest set bit of x != 0. __builtin_ctzll crashes clang 14's BPF backend, a branching
 * search explodes the verifier's states: de Bruijn multiplication (Leiserson, Prokop, Randall 1998) has
 * neither. bcc has no constant data, so the table is a population count instead:
 * the bits below the lowest set one are (x & -x) - 1. */
static __always_inline __u32 lowest_bit(__u64 x)
{
	return bit_count((x & -x) - 1);
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

/* 1 or 0, without a branch. */
static __always_inline __u64 is_zero(__u64 x)
{
	__u64 zero = ~(x | -x) >> 63;

	asm volatile("" : "+r"(zero));
	return zero;
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

/*
 * Hashes of prefixes for the filter (layout.h, struct filter_word; firewall/presence.py makes the same). Only the upper
 * bits of a product depend on all bits of what was multiplied (Fibonacci hashing), so those are used. `size` is the
 * bit of the length in its word of struct control, which tells the lengths apart.
 */
static __always_inline __u64 number4(__u64 scope, __u64 network, __u64 size)
{
	return scope << 34 | network << 1 | size;
}

/* Of the number of a prefix, which no other prefix has. */
static __always_inline __u64 hash4(__u64 number)
{
	return number * FILTER_MULTIPLIER;
}

static __always_inline __u64 hash6(__u64 scope, __u64 word, __u64 high, __u64 low, __u64 size)
{
	__u64 hash = (high + (scope << 2 | word)) * FILTER_MULTIPLIER;

	hash = ((hash ^ hash >> 32) + low) * FILTER_MULTIPLIER;
	return ((hash ^ hash >> 32) + size) * FILTER_MULTIPLIER;
}

/* Hash of the region of an address, its first REGION_BITS bits. `word` as in hash6(), 0 for IPv4. */
static __always_inline __u64 region_hash(__u64 scope, __u64 word, __u64 region)
{
	return (scope << 34 | word << 32 | region) * FILTER_MULTIPLIER;
}

/* IPv6 lengths of an offloaded list come in three runs (struct offload_state): 0..31, 32..95 and 96..128. */
static __always_inline __u32 run_base(int run)
{
	return run == 0 ? 0 : run == 1 ? LENGTHS6_SHORTEST : LENGTHS6_SHORTEST + 64;
}

/* At most: the bound that lets the verifier see the loop over a run end. */
static __always_inline int run_lengths(int run)
{
	return run == 0 ? 32 : run == 1 ? 64 : 33;
}

#endif
