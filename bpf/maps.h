/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Every map, a line of purpose each. The service makes them as they are described here and pins them by their names
 * (firewall/kernel/assembly.py). MAX_*, VECTOR_* and the other *_COUNT of the policy come from the loader (-D).
 *
 * BPF_F_MMAPABLE arrays are written by the service through mmap: no system call an element.
 */
#ifndef EBPF_FW_MAPS_H
#define EBPF_FW_MAPS_H

/* A vector: one bit a policy rule, lowest bit of word 0 first; before it a bit for each word that is not 0. */
#define SUMMARY_WORDS ((VECTOR_WORDS + 63) / 64)
struct vector {
	__u64 summary[SUMMARY_WORDS];
	__u64 word[VECTOR_WORDS];
};

/* Epoch, fingerprint and which address lists have entries. One element. */
BPF_F_TABLE("array", __u32, struct control, control_map, 1, BPF_F_MMAPABLE);

/*
 * Address rules by prefix, one element each: the hash map of their entries. The service makes that map (pinned
 * as address4, address6) and a larger one when it must grow, fills it and puts it here in the place of the
 * other. address*_kind are never used: they say what kind of map stands here.
 */
#pragma push_macro("BPF_ANNOTATE_KV_PAIR")
#undef BPF_ANNOTATE_KV_PAIR
/* Kinds without type information (BTF): the service makes its maps without, and Linux 5.15 to 6.1 want both alike. */
#define BPF_ANNOTATE_KV_PAIR(name, key, value)
BPF_TABLE("hash", struct prefix4, struct address_entry, address4_kind, 1);
BPF_TABLE("hash", struct prefix6, struct address_entry, address6_kind, 1);
#pragma pop_macro("BPF_ANNOTATE_KV_PAIR")
BPF_F_TABLE("array_of_maps$address4_kind", __u32, __u32, address4_maps, 1, 0);
BPF_F_TABLE("array_of_maps$address6_kind", __u32, __u32, address6_maps, 1, 0);

/* What stands before them: which prefixes they may hold. */
BPF_F_TABLE("array", __u32, struct filter_word, address_filter, FILTER_WORDS + FILTER_WORDS / 4, BPF_F_MMAPABLE);

/* IPv4 entries that are found without a call: those of small lists, nearly all. Looked at before the hash map. */
BPF_F_TABLE("array", __u32, struct front_row, address_front, FRONT_ROWS, BPF_F_MMAPABLE);

/* The policy: per generation and hook its head, then a table per field from value to vector number. */
BPF_F_TABLE("array", __u32, struct policy, policy_heads, GENERATION_COUNT * HOOK_COUNT, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct index_pair, policy_index4,
		 (POLICY_BLOCKS_BEGIN + (GENERATION_COUNT * BLOCK_COUNT << POLICY_BLOCK_BITS)) / PAIR, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct interval4, policy_ranges4, GENERATION_COUNT * INTERVAL_COUNT4, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct interval6, policy_ranges6, GENERATION_COUNT * INTERVAL_COUNT6, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct vector_number, policy_protocol, GENERATION_COUNT * HOOK_COUNT * PROTOCOL_ROWS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct port_pair, policy_port,
		 GENERATION_COUNT * HOOK_COUNT * SIDE_COUNT * PORT_ROWS / PAIR, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct vector_number, policy_icmp, GENERATION_COUNT * HOOK_COUNT * ICMP_ROWS, BPF_F_MMAPABLE);
BPF_F_TABLE("hash", struct interface_key, __u32, policy_iface, MAX_POLICY_INTERFACES, BPF_F_NO_PREALLOC);

/* The vectors themselves (both generations), those of addresses apart, and what each bit of a vector stands for. */
BPF_F_TABLE("array", __u32, struct vector, policy_vectors, GENERATION_COUNT * VECTOR_COUNT, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct line, policy_lines, GENERATION_COUNT * LINE_COUNT, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct policy_rule, policy_rules, GENERATION_COUNT * HOOK_COUNT * VECTOR_WORDS * 64, BPF_F_MMAPABLE);

/* The sets that rules of the policy name, and by rule which those are; what their entries have counted. */
BPF_F_TABLE("array", __u32, struct span, policy_sets_of, GENERATION_COUNT * GENERATION_COUNT * MAX_RULES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct named_set, policy_named, GENERATION_COUNT * NAMED_COUNT, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct set_prefix4, policy_set4, GENERATION_COUNT * SET_COUNT4, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct set_prefix6, policy_set6, GENERATION_COUNT * SET_COUNT6, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct entry_counter, entry_counters, ENTRY_COUNT, BPF_F_MMAPABLE);

/* Rows of per-CPU memory: a row a hook, and as many more for packets that are judged for a question. */
#define ROW_COUNT (2 * HOOK_COUNT)
#define TEST_ROW(hook) (HOOK_COUNT + (hook))

/*
 * Where the search for the first rule stands: the words that can hold one, of the summary word before
 * `summaries`; order and bit of the best so far; how many words from the first can hold a better. By row, and
 * in a map for the same reason as the packet (below): every turn of the loop is the same to the verifier.
 */
struct search {
	__u64 candidates;
	__u64 summaries;
	__u64 best;
	__u64 enough;
};
BPF_F_TABLE("percpu_array", __u32, struct search, policy_search, ROW_COUNT, 0);

/* Hits of policy rules by slot; packets of an interface by hook, verdict and reason. */
BPF_F_TABLE("percpu_array", __u32, struct rule_counter, policy_counters, GENERATION_COUNT * MAX_RULES, 0);
BPF_F_TABLE("array", __u32, struct interface_slot, interface_slots, SLOT_ROWS + SLOT_PROBES, BPF_F_MMAPABLE);
BPF_F_TABLE("percpu_array", __u32, struct counter, counters, (INTERFACES_MAX + 1) * COUNTERS_PER_INTERFACE, 0);

/*
 * What was decided, for the reporter, which is another program and has no stack of this one. `handle`: of the policy
 * rule that was found, or nothing; the rest is written only before the reporter is called.
 */
struct outcome {
	__u64 best; /* as in struct decision */
	__u32 handle;
	__u8 verdict;
	__u8 reason;
	__u8 is_policy;
	__u8 is_bare;
};

/* What is known of the packet at hand, and room for the keys that its lookups need. */
struct workspace {
	struct packet packet;
	__u64 last_place; /* of the IPv4 entry that was found last in the hash map: as in struct decision */
	struct prefix6 key;
	__u32 index;
	__u32 scope; /* for observe.h: of the policy that judged it, the rank that won, and bits of rules to report */
	__u32 rank;
	__u32 observed_count;
	__u32 observed[OBSERVED_REPORTS];
	__u32 counted_count; /* for set_entries.h: slots of rules that name sets, and how far they are counted */
	__u32 counted_at;
	struct span named; /* elements of policy_named that are left of the rule before counted_at */
	__u32 last_entry;  /* that was counted for this rule */
	__u32 counted[COUNTED_RULES];
	struct outcome outcome;
};

/*
 * The workspace of a packet, by row. In a map and not on the stack for two reasons: the compiler would spread the
 * struct over registers, of which it has too few, and the verifier would follow every path of the parser with
 * what it left on the stack; of map memory it knows nothing, so all paths are one. The same holds for keys. Packets of one hook on one
 * CPU never overlap: XDP runs in NAPI, clsact with bottom halves disabled. A test run may be interrupted by either, so
 * it has rows of its own.
 */
BPF_F_TABLE("percpu_array", __u32, struct workspace, scratch, ROW_COUNT, 0);

/* The program for rules that observe, the one that counts entries of sets, and the reporter, of each program type: its only element. Every set of programs has its own, so these are never kept. */
BPF_F_TABLE("prog", __u32, __u32, observe_xdp, 1, 0);
BPF_F_TABLE("prog", __u32, __u32, observe_tc, 1, 0);
BPF_F_TABLE("prog", __u32, __u32, entries_xdp, 1, 0);
BPF_F_TABLE("prog", __u32, __u32, entries_tc, 1, 0);
BPF_F_TABLE("prog", __u32, __u32, report_xdp, 1, 0);
BPF_F_TABLE("prog", __u32, __u32, report_tc, 1, 0);

/* Where a report is put together; by stream its limits at work. */
struct report_room {
	struct report report;
	__u8 bytes[SNAP_LENGTH_MAX];
};
BPF_F_TABLE("percpu_array", __u32, struct report_room, report_rooms, 1, 0);
BPF_F_TABLE("percpu_array", __u32, struct report_bucket, report_buckets, STREAM_COUNT, 0);

/* The ring that the service reads reports from (Linux 5.8). bcc's own macro cannot pin one. */
struct reports_table_t {
	int key;
	__u32 leaf;
	int (*ringbuf_output)(void *, __u64, __u64);
	void *(*ringbuf_reserve)(__u64);
	void (*ringbuf_discard)(void *, __u64);
	void (*ringbuf_submit)(void *, __u64);
	__u32 max_entries;
};
__attribute__((section("maps/ringbuf"))) struct reports_table_t reports = {.max_entries = REPORT_BYTES};

#endif
