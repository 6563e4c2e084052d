/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The address tables: the best of all rules that are one address or CIDR.
 *
 * A lookup tries every prefix length that its list has; every hit counts, so nested prefixes need no order. Before the
 * hash table stands the filter, which knows of nearly every prefix that is not in the table that it is not: the
 * table's elements are cold memory, the filter is a fiftieth of them. A lookup in an array cannot fail; where the
 * verifier wants that case handled, the filter knows nothing, or the list is taken for empty.
 */
#ifndef EBPF_FW_ADDRESS_H
#define EBPF_FW_ADDRESS_H

/*
 * What a lookup needs: `all` stands for a word that cannot be read, `zero` points to a 0. Of neither the verifier knows
 * what it is, and the keys stand in map memory: else there were a state for everything that keys may hold.
 */
struct filter_search {
	struct workspace *room;
	__u32 *zero;
	__u64 all;
	__u32 mask;
};

static __always_inline struct filter_search search_of(struct decision *best, struct control *control)
{
	return (struct filter_search){
		.room = best->room,
		.zero = &control->always_zero,
		.all = ~(__u64)control->always_zero,
		.mask = control->filter_mask,
	};
}

static __always_inline __u64 filter_bits(const struct filter_search *search, __u32 index)
{
	struct filter_word *word;

	search->room->index = index;
	word = address_filter.lookup(&search->room->index);
	return word ? word->bits : search->all;
}

/* Whether a prefix of this hash may be in a table. */
static __always_inline int may_hold(const struct filter_search *search, __u64 hash)
{
	__u64 both = 1ULL << (hash >> FILTER_BIT_SHIFT) | 1ULL << (hash >> FILTER_OTHER_BIT_SHIFT & 63);

	return (filter_bits(search, hash >> FILTER_WORD_SHIFT & search->mask) & both) == both;
}

/* Lengths that are not shorter than a region, as bits: 16..32, and 32..64 of the second word of IPv6. */
#define NEAR4 ((2ULL << REGION_BITS4) - 1)
#define NEAR6 ((2ULL << REGION_BITS6) - 1)

/*
 * Of the lengths of a list those that may occur near an address. `longer`: those that a region's word tells. Where the
 * list has few of them, trying is cheaper than asking.
 */
static __always_inline __u64 near(const struct filter_search *search, __u64 hash, __u64 lengths, __u64 longer)
{
	__u32 index = search->mask + 1 + (hash >> FILTER_WORD_SHIFT & search->mask >> FILTER_REGION_SHIFT);
	__u64 few = lengths & longer;

	few &= few - 1;
	if (!(few & (few - 1)))
		return lengths;
	return lengths & (filter_bits(search, index) | ~longer);
}

/*
 * The entry of a prefix in the rows of a large table, NULL where it has none there. All keys of the bucket are read and
 * compared by arithmetic, so that no load waits for another one.
 */
static __always_inline struct address_entry *row_entry(__u64 rows, __u64 number, __u32 *index)
{
	__u64 one, two, three, four, way, found;
	struct row_bucket *bucket;
	void *array;

	*index = rows % ROWS_SLOTS;
	array = rows_maps.lookup(index);
	if (!array)
		return NULL;
	*index = (hash4(number) >> 32) * (rows / ROWS_SLOTS) >> 32;
	bucket = bpf_map_lookup_elem(array, index);
	if (!bucket)
		return NULL;
	one = is_zero(bucket->row[0].key ^ number);
	two = is_zero(bucket->row[1].key ^ number);
	three = is_zero(bucket->row[2].key ^ number);
	four = is_zero(bucket->row[3].key ^ number);
	if (!(one | two | three | four))
		return NULL;
	way = (two | four) | (three | four) << 1;
	return &bucket->row[way & (ROW_WAYS - 1)].entry;
}

/* Best address rule of one IPv4 list. */
static __always_inline void best_address4(struct decision *best, struct control *control, __u64 epoch, __u32 scope,
					  __u32 network_order)
{
	__u64 lengths = control->lengths4[scope], size, address = bpf_ntohl(network_order), network, length;
	__u64 number, row, rows;
	struct filter_search search = search_of(best, control);
	struct address_entry *entry;
	struct front_row *front;
	struct prefix4 *key = (struct prefix4 *)&search.room->key;
	void *entries;

	lengths = near(&search, region_hash(scope, 0, address >> REGION_BITS4), lengths, NEAR4);
#pragma clang loop unroll(disable)
	for (__u64 i = 0; i < 33; i++) {
		if (!lengths)
			return;
		size = lengths & -lengths;
		lengths &= lengths - 1;
		network = address & -size;
		number = number4(scope, network, size);
		if (!may_hold(&search, hash4(number)))
			continue;
		length = size == 1 ? 32 : 32 - lowest_bit(size);
		/* Volatile: else clang makes two loops of this one, and the verifier goes through both. */
		rows = *(volatile __u64 *)&control->rows;
		search.room->rows = rows;
		if (rows) {
			entry = row_entry(rows, number, &search.room->index);
			if (entry) {
				better(best, entry, epoch, place_of(scope, length, IN_ROWS));
				continue;
			}
		} else {
			row = hash4(number) >> FRONT_SHIFT;
			search.room->index = row;
			front = address_front.lookup(&search.room->index);
			if (front && front->key == number) {
				better(best, &front->entry, epoch, place_of(scope, length, IN_FRONT | row));
				continue;
			}
		}
		entries = address4_maps.lookup(search.zero);
		if (!entries)
			return;
		key->scope = scope;
		key->length = length;
		key->padding = 0;
		key->address = bpf_htonl(network);
		entry = bpf_map_lookup_elem(entries, key);
		if (!entry)
			continue;
		better(best, entry, epoch, place_of(scope, length, 0));
		best->last = entry;
		best->room->last_place = place_of(scope, length, 0);
	}
}

/* An IPv4 entry that is not in the front, looked up once more by its key. */
static __always_inline struct address_entry *entry_again(struct workspace *room, struct prefix4 *key)
{
	__u64 number = number4(key->scope, bpf_ntohl(key->address), 1ULL << ((32 - key->length) & 63));
	struct address_entry *entry = NULL;
	__u32 zero = 0;
	void *entries;

	if (room->rows)
		entry = row_entry(room->rows, number, &room->index);
	if (entry)
		return entry;
	entries = address4_maps.lookup(&zero);
	return entries ? bpf_map_lookup_elem(entries, key) : NULL;
}

/* The same for lengths of one of an IPv6 list's words: 0; 1..64, of the upper half; 65..128, of the lower. */
static __always_inline void best_address6(struct decision *best, const struct filter_search *search, __u64 epoch,
					  __u32 scope, __u64 lengths, int word, __u64 high, __u64 low)
{
	__u64 size, network_high, network_low, length;
	struct prefix6 *key = &search->room->key;
	void *entries;

	if (word)
		lengths = near(search, region_hash(scope, word, high >> REGION_BITS6), lengths,
			       word == 1 ? NEAR6 : ~0ULL);
#pragma clang loop unroll(disable)
	for (int i = 0; i < (word ? 64 : 1); i++) {
		if (!lengths)
			return;
		size = lengths & -lengths;
		lengths &= lengths - 1;
		network_high = word == 0 ? 0 : word == 1 ? high & -size : high;
		network_low = word == 2 ? low & -size : 0;
		if (!may_hold(search, hash6(scope, word, network_high, network_low, size)))
			continue;
		entries = address6_maps.lookup(search->zero);
		if (!entries)
			return;
		length = word * 64 - lowest_bit(size);
		key->scope = scope;
		key->length = length;
		key->padding = 0;
		key->address[0] = bpf_htonl(network_high >> 32);
		key->address[1] = bpf_htonl(network_high);
		key->address[2] = bpf_htonl(network_low >> 32);
		key->address[3] = bpf_htonl(network_low);
		better(best, bpf_map_lookup_elem(entries, key), epoch, place_of(scope, length, 0));
	}
}

static __always_inline void best_addresses6(struct decision *best, struct control *control, __u64 epoch, __u32 scope,
					    const __u32 *address)
{
	__u64 high = (__u64)bpf_ntohl(address[0]) << 32 | bpf_ntohl(address[1]);
	__u64 low = (__u64)bpf_ntohl(address[2]) << 32 | bpf_ntohl(address[3]);
	const __u64 *lengths = &control->lengths6[scope * LENGTH_WORDS6];
	struct filter_search search = search_of(best, control);

	best_address6(best, &search, epoch, scope, lengths[0], 0, high, low);
	best_address6(best, &search, epoch, scope, lengths[1], 1, high, low);
	best_address6(best, &search, epoch, scope, lengths[2], 2, high, low);
}

static __always_inline void best_address(struct decision *best, struct control *control, __u64 epoch,
					 const struct packet *packet, __u32 hook)
{
	__u32 source = hook << SCOPE_HOOK_BIT | SIDE_SOURCE, destination = hook << SCOPE_HOOK_BIT | SIDE_DESTINATION;

	if (packet->family == FAMILY_IPV4) {
		if (control->lengths4[source])
			best_address4(best, control, epoch, source, packet->source[0]);
		if (control->lengths4[destination])
			best_address4(best, control, epoch, destination, packet->destination[0]);
	} else {
		best_addresses6(best, control, epoch, source, packet->source);
		best_addresses6(best, control, epoch, destination, packet->destination);
	}
}

#endif
