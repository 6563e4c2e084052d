/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The stage after the verdict for rules that only observe: each that matches and would have won is counted. The verdict
 * stays what it is. Runs as a program of its own (a tail call), so that who has no such rules pays nothing for it.
 */
#ifndef EBPF_FW_OBSERVE_H
#define EBPF_FW_OBSERVE_H

/* Beside the outcome (report.h). */
static __always_inline void hand_over_to_observers(const struct decision *decision)
{
	decision->room->rank = decision->rank;
}

/* Remembers a rule that would have dropped the packet. */
static __always_inline void note_observer(volatile struct workspace *room, __u32 bit)
{
	__u32 count = room->observed_count;

	if (count >= OBSERVED_REPORTS)
		return;
	/* Linux 5.10 would not know that the register it compared and the one that is used are the same. */
	asm volatile("" : "+r"(count));
	room->observed[count & (OBSERVED_REPORTS - 1)] = bit;
	room->observed_count = count + 1;
}

/*
 * Counts the rules behind the enforcing words whose bits all six vectors have and whose rank is smaller than the winner's. One
 * loop over summaries, words and bits, and where it stands is kept in map memory as in first_rule(): `best` holds the
 * bits of the word `enough` that are still to be looked at.
 */
static __always_inline void count_observers(struct workspace *room, volatile struct search *search,
					    const struct policy *head, struct vectors *of)
{
	struct vector *v0 = policy_vectors.lookup(&of->protocol), *v1 = policy_vectors.lookup(&of->interface);
	struct vector *v2 = policy_vectors.lookup(&of->port[SIDE_SOURCE]);
	struct vector *v3 = policy_vectors.lookup(&of->port[SIDE_DESTINATION]);
	struct vector *v4 = policy_vectors.lookup(&of->anywhere[SIDE_SOURCE]);
	struct vector *v5 = policy_vectors.lookup(&of->anywhere[SIDE_DESTINATION]);
	struct line *line4 = policy_lines.lookup(&of->lines[SIDE_SOURCE]);
	struct line *line5 = policy_lines.lookup(&of->lines[SIDE_DESTINATION]);
	__u64 at, candidates, word, place, both, own4, own5, lowest;
	struct policy_rule *rule;
	__u32 bit;

	if (!v0 || !v1 || !v2 || !v3 || !v4 || !v5 || !line4 || !line5)
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
			bit = (room->scope * VECTOR_WORDS + search->enough) * 64 + bit_number(head, both & -both);
			rule = policy_rules.lookup(&bit);
			if (!rule)
				break;
			if (rule->rank >= room->rank) {
				search->best = 0; /* those behind it in the word are no better */
				continue;
			}
			count_policy_rule(rule->slot & ~RULE_NAMES_SETS, room->packet.length);
			note_counted(room, rule->slot);
			if (!(rule->rank & RANK_ALLOW))
				note_observer(room, bit);
			continue;
		}
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
		/* As in first_rule(). */
		asm volatile("" : "+r"(word));
		if (word >= VECTOR_WORDS)
			break;
		if (word < head->enforcing)
			continue;
		own4 = own_word(line4, of->lines[SIDE_SOURCE], word);
		own5 = own_word(line5, of->lines[SIDE_DESTINATION], word);
		place = behind_summary(word);
		search->best = word_at(v0, place) & word_at(v1, place) & word_at(v2, place) & word_at(v3, place) &
			       (word_at(v4, place) | own4) & (word_at(v5, place) | own5);
		search->enough = word;
	}
}

/* Reports what was noted, as far as there are tokens for it. Apart from the loop above, or the verifier would meet all of
 * this in each of its turns. */
static __always_inline void report_observers(const struct control *control, volatile struct workspace *room, __u32 hook)
{
	__u32 zero = 0, bit;
	struct report_room *made = report_rooms.lookup(&zero);
	struct policy_rule *rule;

	if (!made)
		return;
#pragma clang loop unroll(disable)
	for (int i = 0; i < OBSERVED_REPORTS; i++) {
		if (i >= room->observed_count)
			break;
		bit = room->observed[i];
		rule = policy_rules.lookup(&bit);
		if (!rule || !take_token(&control->report_limits[STREAM_EVENTS], STREAM_EVENTS))
			break;
		fill_report(&made->report, (struct workspace *)room, hook, 1 << STREAM_EVENTS, rule->handle);
		made->report.verdict = VERDICT_DROP;
		made->report.reason = REASON_RULE;
		made->report.kind = REPORT_OBSERVED;
		send_report(made, 0);
	}
}

/* All rules that observe, of the packet in the workspace. */
static __always_inline void observe(struct workspace *room, __u32 hook)
{
	__u32 scope = room->scope, place = hook, zero = 0;
	struct search *search = policy_search.lookup(&place);
	struct control *control = control_map.lookup(&zero);
	struct policy *head = policy_heads.lookup(&scope);
	const struct packet *packet = &room->packet;
	struct vectors of = {};

	if (!search || !control || !head)
		return;
	room->observed_count = 0;
	if (find_vectors(&of, packet, head, scope))
		count_observers(room, search, head, &of);
	if (control->listening & LISTEN_EVENTS)
		report_observers(control, room, hook);
}

#endif
