/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Decision to report, when somebody listens. Decides nothing, and a report that cannot be made is counted and forgotten:
 * packets never wait for whoever reads.
 *
 * Reports are made by programs of their own, which the filters end with a tail call into: nobody's path is longer for
 * them but by a test of control.listening, and the verifier meets them apart. If the call fails, the filter returns its
 * verdict itself.
 */
#ifndef EBPF_FW_REPORT_H
#define EBPF_FW_REPORT_H

/* -- the filter's side */

static __always_inline int is_listened_to(const struct decision *decision)
{
	return decision->beyond >> decision->verdict & 1;
}

static __always_inline void hand_over(const struct decision *decision, int bare)
{
	struct outcome *outcome = &decision->room->outcome;

	outcome->best = decision->best;
	outcome->verdict = decision->verdict;
	outcome->reason = decision->reason;
	outcome->is_policy = decision->is_policy;
	outcome->is_bare = bare;
}

/* The same, of the packet in the workspace, for programs between the filter and the reporter. */
static __always_inline int is_reported(const struct workspace *room)
{
	__u32 zero = 0;
	struct control *control = control_map.lookup(&zero);

	return control && control->listening >> (room->outcome.verdict & 1) & 1;
}

/* -- the reporter's side */

/* Which streams a packet of this verdict goes out on, as bits. */
static __always_inline __u32 wanted_streams(__u32 listening, __u32 verdict)
{
	__u32 streams = 0;

	if (verdict == VERDICT_DROP && listening & LISTEN_EVENTS)
		streams |= 1 << STREAM_EVENTS;
	if (listening & LISTEN_CAPTURE_ALL || (verdict == VERDICT_DROP && listening & LISTEN_CAPTURE))
		streams |= 1 << STREAM_CAPTURE;
	return streams;
}

/* The stream's bit if this CPU's bucket has a token, else 0 and one more suppressed. */
static __always_inline __u32 take_token(const struct report_limit *limit, __u32 stream)
{
	struct report_bucket *bucket = report_buckets.lookup(&stream);
	__u64 now = bpf_jiffies64(), tokens;

	if (!bucket)
		return 0;
	tokens = bucket->tokens + (now - bucket->tick) * limit->rate;
	bucket->tick = now;
	if (tokens > limit->most)
		tokens = limit->most;
	bucket->tokens = tokens;
	if (tokens < limit->cost) {
		bucket->suppressed++;
		return 0;
	}
	bucket->tokens = tokens - limit->cost;
	return 1 << stream;
}

/* Those of the streams that want the packet and have a token for it. */
static __always_inline __u32 admitted(const struct control *control, const struct outcome *outcome)
{
	__u32 wanted = wanted_streams(control->listening, outcome->verdict), streams = 0;

	if (wanted & 1 << STREAM_EVENTS)
		streams |= take_token(&control->report_limits[STREAM_EVENTS], STREAM_EVENTS);
	if (wanted & 1 << STREAM_CAPTURE)
		streams |= take_token(&control->report_limits[STREAM_CAPTURE], STREAM_CAPTURE);
	return streams;
}

/* The handle of the address rule that won: its entry is looked up once more. 0 where it has gone meanwhile. */
static __always_inline __u32 address_handle(struct workspace *room)
{
	__u64 best = room->outcome.best;
	__u32 scope = best >> BEST_SCOPE_SHIFT & 0xff, length = best >> BEST_LENGTH_SHIFT & 0xff, zero = 0;
	__u32 row = best & (FRONT_ROWS - 1);
	const __u32 *address = scope & SIDE_DESTINATION ? room->packet.destination : room->packet.source;
	struct address_entry *entry = NULL;
	struct front_row *front;
	struct prefix4 small;
	struct prefix6 large;
	void *entries;

	if (best & FRONT_ROWS) {
		front = address_front.lookup(&row);
		return front ? front->entry.handle : 0;
	}
	if (room->packet.family == FAMILY_IPV4) {
		key4(&small, scope, address[0], length);
		entries = address4_maps.lookup(&zero);
		if (entries)
			entry = bpf_map_lookup_elem(entries, &small);
	} else {
		key6(&large, scope, address, length);
		entries = address6_maps.lookup(&zero);
		if (entries)
			entry = bpf_map_lookup_elem(entries, &large);
	}
	return entry ? entry->handle : 0;
}

static __always_inline __u32 winner(struct workspace *room)
{
	if (room->outcome.reason != REASON_RULE)
		return 0;
	return room->outcome.is_policy ? room->outcome.handle : address_handle(room);
}

/* REPORT_HAS_* */
static __always_inline __u8 fields_of(__u8 l4)
{
	switch (l4) {
	case L4_TCP:
		return REPORT_HAS_PORTS | REPORT_HAS_FLAGS;
	case L4_PORTS:
		return REPORT_HAS_PORTS;
	case L4_ICMP:
		return REPORT_HAS_ICMP;
	default:
		return 0;
	}
}

static __always_inline void fill_report(struct report *report, struct workspace *room, __u32 hook, __u32 streams,
					__u32 handle)
{
	const struct packet *packet = &room->packet;

	report->time = bpf_ktime_get_ns();
#pragma unroll
	for (int i = 0; i < 4; i++) {
		report->source[i] = packet->source[i];
		report->destination[i] = packet->destination[i];
	}
	report->ifindex = packet->ifindex;
	report->length = packet->length;
	report->handle = handle;
	report->source_port = packet->source_port;
	report->destination_port = packet->destination_port;
	report->hook = hook;
	report->verdict = room->outcome.verdict;
	report->reason = room->outcome.reason;
	report->kind = REPORT_JUDGED;
	report->streams = streams;
	report->is_bare = room->outcome.is_bare;
	report->family = packet->family;
	report->is_ip = packet->is_ip;
	report->protocol = packet->protocol;
	report->has = fields_of(packet->l4);
	report->tcp_flags = packet->tcp_flags;
	report->icmp_type = packet->icmp_type;
	report->icmp_code = packet->icmp_code;
}

static __always_inline void count_lost(__u32 streams, __u32 stream)
{
	struct report_bucket *bucket = report_buckets.lookup(&stream);

	if (bucket && streams & 1 << stream)
		bucket->lost++;
}

/* Into the ring, with so many bytes of the packet. The kernel wakes the reader only where it had read everything. */
static __always_inline void send_report(struct report_room *made, __u32 captured)
{
	__u64 size = captured;

	made->report.captured = captured;
	asm volatile("" : "+r"(size));
	if (size > SNAP_LENGTH_MAX)
		return;
	if (!reports.ringbuf_output(made, sizeof(made->report) + size, 0))
		return;
	count_lost(made->report.streams, STREAM_EVENTS);
	count_lost(made->report.streams, STREAM_CAPTURE);
}

/* How many bytes a capture gets of a packet of which so many can be had. (Of map memory the verifier knows nothing.) */
static __always_inline __u32 snapped(const struct control *control, const volatile struct report *report, __u32 there)
{
	if (!(report->streams & 1 << STREAM_CAPTURE))
		return 0;
	if (there > control->snap_length)
		there = control->snap_length;
	return there > SNAP_LENGTH_MAX ? SNAP_LENGTH_MAX : there;
}

#endif
