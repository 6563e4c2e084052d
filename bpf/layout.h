/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The contract with Python: every struct, enum and limit that both sides use is defined here and nowhere
 * else. firewall/layout.py reads this very file; tests/datapath/test_layout.py compares what it read with
 * what the compiler laid out. Padding is explicit, sizes are asserted at the end.
 *
 * Numbers of enums that leave the kernel (hooks, verdicts, reasons) are append-only: they index counters
 * that outlive a program and they name metric labels.
 */
#ifndef EBPF_FW_LAYOUT_H
#define EBPF_FW_LAYOUT_H

enum hook {
	HOOK_INGRESS = 0,
	HOOK_EGRESS = 1,
	HOOK_COUNT = 2,
};

enum side {
	SIDE_SOURCE = 0,
	SIDE_DESTINATION = 1,
	SIDE_COUNT = 2,
};

enum verdict {
	VERDICT_PASS = 0,
	VERDICT_DROP = 1,
	VERDICT_COUNT = 2,
};

/* Why a packet got its verdict. docs/drop-reasons.md says each in words. */
enum reason {
	REASON_DEFAULT = 0,
	REASON_RULE = 1,
	REASON_NOT_IP = 2,
	REASON_FRAGMENT = 3,
	REASON_MALFORMED_LINK = 4,
	REASON_MALFORMED_IPV4 = 5,
	REASON_MALFORMED_IPV6 = 6,
	REASON_MALFORMED_EXTENSION = 7,
	REASON_MALFORMED_L4 = 8,
	REASON_MALFORMED_FRAGMENT = 9,
	REASON_NEVER_DROP = 10,
	REASON_ESSENTIAL = 11,
	REASON_PANIC = 12,
	REASON_COUNT = 13,
};

/* Room for reasons to come, so that counters keep their layout when one is appended. */
#define REASON_CAPACITY 32

/*
 * A rank orders rules: RANK_FIRST + priority * 2, plus 1 for allow. The smallest wins, and at equal priority drop
 * wins because it is the smaller number. Entries of `never_drop` beat every rule, RANK_NONE is worse than any.
 */
#define RANK_ALLOW 1
#define RANK_NEVER_DROP 1
#define RANK_FIRST 2
#define RANK_NONE 0xffffffff

/*
 * Scope of an address key: which list the prefix belongs to.
 *
 *   bit   7 ... 2   1      0
 *         0         hook   side
 */
#define SCOPE_SIDE_BIT 0
#define SCOPE_HOOK_BIT 1
#define ADDRESS_SCOPE_COUNT 4

struct prefix4 {
	__u8 scope;
	__u8 length; /* of the prefix, bits */
	__u16 padding;
	__u32 address; /* network order, masked */
};

struct prefix6 {
	__u8 scope;
	__u8 length;
	__u16 padding;
	__u32 address[4]; /* network order, masked */
};

/*
 * An address rule. A packet of epoch E sees `rank` where E >= since, else `old_rank`: a change of many
 * entries becomes visible with the one store that advances the epoch.
 */
struct address_entry {
	__u64 since; /* epoch */
	__u32 rank;
	__u32 old_rank;
	__u64 packets;
	__u64 bytes;
	__u32 handle;	/* of the rule */
	__u32 last_hit; /* TICK_SHIFT'ed jiffies, 0 = never */
};

/* last_hit counts units of 32 jiffies: 2^32 of them are years at any HZ. */
#define TICK_SHIFT 5

/*
 * The filter that stands before the tables of addresses: W words (a power of two) and W / 4 more behind them.
 *
 * W words: each prefix of the tables has two bits in one of them, and one that lacks a bit is in none. Of
 * the 64 bits of a prefix's hash (bpf/keys.h):
 *
 *   bit   63 ... 58     57 ... 52     51 ... 30            29 ... 0
 *         one bit       other bit     word                 unused
 *
 * W / 4 words: which lengths occur near an address. The word is found by the same bits of the hash of the address's
 * first REGION_BITS bits; its bits are lengths as in struct control, those that are not shorter than a region.
 */
#define FILTER_BIT_SHIFT 58
#define FILTER_OTHER_BIT_SHIFT 52
#define FILTER_WORD_SHIFT 30
#define FILTER_WORDS 262144 /* W at most */
#define FILTER_REGION_SHIFT 2
#define FILTER_MULTIPLIER 0x9e3779b97f4a7c15
#define REGION_BITS4 16
#define REGION_BITS6 32

struct filter_word {
	__u64 bits;
};

/*
 * The front of the IPv4 table: an entry stands in it or in the hash map behind, and nowhere else in the front than in
 * the row that the uppermost bits of its prefix's hash name. `key` is what hash4() multiplies, 0 in a free row.
 */
#define FRONT_ROWS 2048
#define FRONT_SHIFT 53

struct front_row {
	__u64 key;
	struct address_entry entry;
	__u64 packets_before; /* of the entry's counters, what another rule's prefix or place had counted: the service's alone */
	__u64 bytes_before;
};

/*
 * The rows of a large IPv4 table, which stand in the place of the front: as many buckets as the entries need. An entry
 * stands in one of the rows of the bucket that the upper half of its prefix's hash names, (half * buckets) >> 32, or in
 * the hash map behind. `control.rows` says which of the two arrays in rows_maps is in use and how many buckets
 * it has; 0: the front is in use.
 */
#define ROW_WAYS 4
#define ROWS_SLOTS 2

struct row_bucket {
	struct front_row row[ROW_WAYS];
};

/* The live words. `epoch` is what a packet reads once; its lowest bit chooses the policy generation. */
#define GENERATION_COUNT 2

/*
 * Prefix lengths of an address list: IPv4 length n is bit 32 - n of its word, so that the bit is the size of such
 * a network. An IPv6 list has three words: the first for length 0 alone (bit 0), the second for 1..64
 * (bit 64 - n), the third for 65..128 (bit 128 - n).
 */
#define LENGTH_WORDS6 3

/*
 * Reports of packets to whoever listens. A report goes out on streams, each with a limit of its own: events, and captures
 * with the packet's bytes. Of a limit every CPU has a bucket of tokens: `rate` more at each tick of jiffies64, `most` at
 * most, and a report costs `cost` of them. (With cost = HZ a rate is in reports a second, without a division.)
 *
 * Bits of control.listening. The lowest two are 1 << verdict, so that a program asks with one shift whether anybody
 * wants to know of a packet; the others say what for.
 */
enum stream {
	STREAM_EVENTS = 0,
	STREAM_CAPTURE = 1,
	STREAM_COUNT = 2,
};

#define LISTEN_PASSED 1
#define LISTEN_DROPPED 2
#define LISTEN_EVENTS 4	      /* of dropped packets */
#define LISTEN_CAPTURE 8      /* of dropped packets */
#define LISTEN_CAPTURE_ALL 16 /* of all judged packets */
#define SNAP_LENGTH_MAX 2048

struct report_limit {
	__u32 rate;
	__u32 most;
	__u32 cost;
	__u32 padding;
};

struct control {
	__u64 epoch;
	__u64 lengths4[4];  /* by scope */
	__u32 filter_mask;  /* W - 1 of the address filter */
	__u32 always_zero;  /* which the verifier cannot know: see decide() */
	__u32 listening;    /* LISTEN_*: what reports are wanted of; 0 = nobody listens */
	__u32 snap_length;  /* bytes of a packet that a capture wants at most, up to SNAP_LENGTH_MAX */
	__u64 lengths6[12]; /* by scope * LENGTH_WORDS6 + word */
	__u64 program;	    /* fingerprint of the program text and its capacities */
	__u64 layout;	    /* fingerprint of layout.h and maps.h */
	__u64 owner;	    /* whose rules these are: the service's database */
	__u64 rows;	    /* buckets << 1 | number of the array */
	struct report_limit report_limits[2]; /* by stream */
};

#define FAMILY_IPV4 0
#define FAMILY_IPV6 1
#define FAMILY_COUNT 2

/* Elements of arrays are multiples of 8 bytes, so those of 4 go in pairs: number n is pair n / 2, half n % 2. */
#define PAIR 2

/* Consecutive elements of an array. */
struct span {
	__u32 first;
	__u32 count;
};

/*
 * What one generation of the policy says for one hook. Vector numbers index policy_vectors. `anywhere`: by family and
 * side, the vector of an address that is in no prefix.
 */
#define OPTION_DEFAULT_DROP 1
#define OPTION_FRAGMENTS_DROP 2
#define OPTION_MALFORMED_PASS 4
#define OPTION_INTERFACES 8 /* some rule names interfaces */
#define OPTION_OBSERVE 64   /* some rule only observes; none of LISTEN_* */
/* What passes though the default is drop and no rule matched. ARP is no IP and passes but with DROP_ARP. */
#define OPTION_PASS_NEIGHBORS 1024
#define OPTION_PASS_DHCP 2048
#define OPTION_PASS_PATH_MTU 4096
#define OPTION_DROP_ARP 8192
#define OPTION_PANIC 16384 /* of the address entries those of never_drop alone count; the policy is panic's own */

struct policy {
	__u32 best_rank;	  /* of the policy rules that enforce; RANK_NONE = there are none */
	__u32 words;		  /* of a vector that are in use */
	__u32 options;		  /* OPTION_* */
	__u32 any_interface;	  /* vector for an interface that no rule names */
	struct span addresses[2]; /* by side: of policy_ranges6 */
	__u32 anywhere[4];	  /* family * SIDE_COUNT + side */
	__u32 enforcing;	  /* words of rules that enforce; rules of the words behind them observe */
	__u32 padding;
	__u8 bit_numbers[64]; /* which bit x = 1 << n is, at x * DE_BRUIJN >> 58: the same in all */
};
#define DE_BRUIJN 0x03f79d71b4cb0a89ULL

/*
 * The vector of a class of addresses is that of an address in no prefix, but for some words: those are stored alone,
 * so that the vectors of thousands of classes stay in a processor's cache. A class is consecutive elements of
 * policy_lines, seen as words (S: summary words of a vector, bpf/maps.h):
 *
 *   0 ... S-1      bit w of word w / 64: word w differs, and stands below
 *   S ... 2S-1     a byte for each byte of the former: how many bits are set before it
 *   2S ...         the words that differ, lowest first
 *
 * An interval names a class by its first element.
 */
#define LINE_WORDS 8

struct line {
	__u64 word[LINE_WORDS]; /* 64 bytes, as a cache line */
};

/*
 * Rules that observe. Where a hook has some, its program ends in another that looks into all words behind the enforcing
 * ones and counts each rule that would have won; after OBSERVED_MAX of a packet it may leave out the rest. The first
 * OBSERVED_REPORTS of them are reported, where they would have dropped the packet.
 */
#define OBSERVED_MAX 64
#define OBSERVED_REPORTS 8 /* of a packet */

/*
 * Addresses between two ends of prefixes are in the same prefixes, all of them: such an interval reaches from
 * `start` (host order) to the next element's, and names the class of its addresses. The first of a list
 * starts at 0.
 *
 * For IPv4 policy_index4 has for every 16 leading bits which intervals reach into them:
 *
 *   bit   31 ... 9     8 ... 0
 *         the first    how many
 *
 * Where these are many (POLICY_CROWD; in lists longer than POLICY_LONG, POLICY_LONG_CROWD), it says 0 and, in the place of
 * the first, the number of a block, which has one such word for each value of the next 8 bits. Blocks stand behind all of
 * the former.
 */
#define POLICY_INDEX_BITS 16
#define POLICY_BLOCK_BITS 8
#define POLICY_CROWD 16
#define INDEX_COUNT_BITS 9 /* a block's number stands for 256 addresses, which 257 intervals may reach into */
#define POLICY_LONG 131072
#define POLICY_LONG_CROWD 64
#define POLICY_SCOPE_COUNT 8 /* (generation * HOOK_COUNT + hook) * SIDE_COUNT + side */
#define POLICY_BLOCKS_BEGIN 524288

struct index_pair {
	__u32 reach[PAIR];
};

struct interval4 {
	__u32 start;
	__u32 line;
};

struct interval6 {
	__u64 start[2]; /* upper and lower half */
	__u64 line;
};

/*
 * Row of the protocol table that stands for a packet. Rules that ask for L4 fields are only in the rows of
 * packets that carry them.
 *
 *   0..255    protocol, no L4 fields could be read or the protocol has none
 *   256..511  TCP, by its flags byte
 *   512..767  protocol with ports other than TCP
 */
#define PROTOCOL_ROW_TCP 256
#define PROTOCOL_ROW_PORTS 512
#define PROTOCOL_ROWS 768
#define PORT_ROWS 65536
/* ICMP rows: type * 256 + code, ICMP first, then ICMPv6. */
#define ICMP_ROWS 131072

struct vector_number {
	__u64 vector;
};

/* Number (scope * SIDE_COUNT + side) * PORT_ROWS + port. */
struct port_pair {
	__u32 vector[PAIR];
};

struct interface_key {
	__u32 ifindex;
	__u32 scope; /* generation * HOOK_COUNT + hook */
};

/*
 * What a bit stands for. Bits of a word stand in winning order, words in the order of the first of each, so a
 * rule that was found leaves only the words before `enough` to be looked into for an earlier one.
 */
struct policy_rule {
	__u32 rank;
	__u32 slot; /* of policy_counters */
	__u32 handle;
	__u16 order; /* of winning, among the rules of the hook */
	__u16 enough;
};

struct rule_counter {
	__u64 packets;
	__u64 bytes;
	__u64 last_hit; /* TICK_SHIFT'ed jiffies, 0 = never */
	__u64 padding;	/* none lies in two cache lines */
};

/*
 * Entries of sets that rules of the policy name. Where an address lies in several of a set's prefixes, the widest counts:
 * so of each set those are here that lie in no other, disjoint and sorted by their starts. Of a rule that names sets,
 * policy_rule.slot has RULE_NAMES_SETS beside the number, and policy_sets_of says by that number which elements of
 * policy_named tell its sets: one for each set and side, those of one set side by side.
 */
#define RULE_NAMES_SETS 0x80000000

struct named_set {
	__u64 name; /* a hash of it, for the service alone */
	struct span prefixes4;
	struct span prefixes6;
	struct span steps6;
	__u32 index4; /* of the first element of its index */
	__u32 bits;   /* of an address that the index asks */
	__u32 side;
	__u32 padding;
};

/*
 * `counter`, in either: an element of entry_counters, and the length of the prefix in the bits below.
 *
 * What leads to the prefixes of a set stands behind them, in elements of the same kind. Of IPv4 an index: for each value
 * of the leading bits which prefixes an address that begins so can lie in, the first in the place of `start` and how many
 * in that of `counter`. Of IPv6, whose addresses begin alike, steps: of SET_STEP neighbours the start of the first, and
 * in the place of `counter` which element that is.
 */
#define SET_LENGTH_BITS4 6
#define SET_LENGTH_BITS6 8
#define SET_STEP 16
#define SET_INDEX_SHARE 16 /* prefixes for a value of the index */

struct set_prefix4 {
	__u32 start; /* host order */
	__u32 counter;
};

struct set_prefix6 {
	__u64 start[2]; /* upper and lower half */
	__u64 counter;
};

struct entry_counter {
	__u64 packets;
	__u64 bytes;
	__u32 last_hit; /* TICK_SHIFT'ed jiffies, 0 = never */
	__u32 padding;
};

/* Rules of a packet whose entries are counted: the one that won, and of those that observe those that were found first. */
#define COUNTED_RULES 64

struct counter {
	__u64 packets;
	__u64 bytes;
};

/*
 * Counters of interfaces: element (slot * COUNTERS_PER_INTERFACE + (hook * VERDICT_COUNT + verdict) *
 * REASON_CAPACITY + reason) of counters. An interface's slot stands in interface_slots, in one of the
 * SLOT_PROBES elements from ifindex modulo SLOT_ROWS on; slot numbers start at 1, 0 is a free row.
 */
#define COUNTERS_PER_INTERFACE 128
#define INTERFACES_MAX 256
#define SLOT_ROWS 4096
#define SLOT_PROBES 4

struct interface_slot {
	__u32 ifindex;
	__u32 slot;
};

/*
 * Everything that an offloaded filter has beside its two address tables (bpf/offload_filter.c). Lengths are
 * those of the whole list, by side: bit n = length n. IPv6 in three runs: 0..31 in short_lengths6, then two words from
 * LENGTHS6_SHORTEST on. Counters: verdict * REASON_CAPACITY + reason.
 */
#define LENGTHS6_SHORTEST 32
#define OFFLOAD_COUNTERS 64

struct offload_state {
	__u64 lengths4[2];
	__u64 lengths6[4];
	__u32 short_lengths6[2];
	__u32 options;
	__u32 always_zero;
	struct counter by[OFFLOAD_COUNTERS];
};

/*
 * One packet that is judged for a question (bpf/test_filter.c), by hook: what is asked of it, then what was found.
 * TEST_PREFIX bytes stand before the frame, since a test run wants so many. `length`: of the frame as it was on the
 * wire; fewer bytes of it may be there. `has`: REPORT_HAS_*.
 */
#define TEST_PREFIX 14

struct test_run {
	__u32 ifindex;
	__u32 length;
	__u32 is_bare;
	__u32 is_judged; /* 0 where nothing was found out */
	__u32 rank;	 /* of the winner, RANK_NONE without one */
	__u32 handle;	 /* of the winner, when it is a policy rule */
	__u8 scope;	 /* of the winner's prefix, when it is an address rule */
	__u8 prefix;	 /* its length */
	__u8 is_policy;
	__u8 verdict;
	__u32 source[4]; /* as in struct packet, from here on */
	__u32 destination[4];
	__u16 source_port;
	__u16 destination_port;
	__u8 family;
	__u8 is_ip;
	__u8 protocol;
	__u8 has;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 is_later_fragment;
	__u16 is_fragment;
	__u8 malformed;
	__u8 reason;
};

/* What a report tells of: a verdict, or what a rule that only observes would have done. */
enum report_kind {
	REPORT_JUDGED = 0,
	REPORT_OBSERVED = 1,
	REPORT_COUNT = 2,
};

/* Which of the fields below IP the packet has. */
#define REPORT_HAS_PORTS 1
#define REPORT_HAS_FLAGS 2
#define REPORT_HAS_ICMP 4

/* A report, before `captured` bytes of the packet. Addresses in network order, ports in host order. */
struct report {
	__u64 time; /* CLOCK_MONOTONIC, ns */
	__u32 source[4];
	__u32 destination[4];
	__u32 ifindex;
	__u32 length; /* of the frame, bytes */
	__u32 handle; /* of the rule that decided, 0 = none */
	__u32 captured;
	__u16 source_port;
	__u16 destination_port;
	__u8 hook;
	__u8 verdict;
	__u8 reason;
	__u8 kind;    /* REPORT_* */
	__u8 streams; /* 1 << STREAM_*: whose token was taken */
	__u8 is_bare; /* the device has no Ethernet header */
	__u8 family;
	__u8 is_ip;
	__u8 protocol;
	__u8 has; /* REPORT_HAS_* */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 padding[7];
};

/* Of one CPU and stream: its bucket, and reports that went nowhere. */
struct report_bucket {
	__u64 tick; /* when it was filled last, jiffies */
	__u64 tokens;
	__u64 suppressed; /* for want of a token */
	__u64 lost;	  /* for want of room in the ring */
};

_Static_assert(POLICY_BLOCKS_BEGIN == POLICY_SCOPE_COUNT << POLICY_INDEX_BITS, "blocks");

#define LAYOUT_SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)

LAYOUT_SIZE(struct prefix4, 8);
LAYOUT_SIZE(struct prefix6, 20);
LAYOUT_SIZE(struct address_entry, 40);
LAYOUT_SIZE(struct front_row, 64);
LAYOUT_SIZE(struct row_bucket, 256);
LAYOUT_SIZE(struct report_limit, 16);
LAYOUT_SIZE(struct control, 216);
LAYOUT_SIZE(struct span, 8);
LAYOUT_SIZE(struct policy, 120);
LAYOUT_SIZE(struct line, 64);
LAYOUT_SIZE(struct interval4, 8);
LAYOUT_SIZE(struct interval6, 24);
LAYOUT_SIZE(struct index_pair, 8);
LAYOUT_SIZE(struct port_pair, 8);
LAYOUT_SIZE(struct interface_key, 8);
LAYOUT_SIZE(struct policy_rule, 16);
LAYOUT_SIZE(struct rule_counter, 32);
LAYOUT_SIZE(struct named_set, 48);
LAYOUT_SIZE(struct set_prefix4, 8);
LAYOUT_SIZE(struct set_prefix6, 24);
LAYOUT_SIZE(struct entry_counter, 24);
LAYOUT_SIZE(struct interface_slot, 8);
LAYOUT_SIZE(struct counter, 16);
LAYOUT_SIZE(struct offload_state, 1088);
LAYOUT_SIZE(struct test_run, 76);
LAYOUT_SIZE(struct report, 80);
LAYOUT_SIZE(struct report_bucket, 32);

#endif
