/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Bytes to struct packet. No maps, no policy.
 *
 * A cursor runs over the frame. `left` is how many bytes the outermost length field that was read so far
 * still grants (the frame, then the IP length: Ethernet padding is not part of a packet), `end` is where
 * the directly readable bytes stop. A header is there only when both hold; `take` checks once and
 * advances. Every parse_* function returns 0 or the reason why the packet is malformed.
 *
 * Addresses stay in network order, ports and protocol in host order.
 */
#ifndef EBPF_FW_PARSE_H
#define EBPF_FW_PARSE_H

#define VLAN_TAGS_MAX 2
#define EXTENSIONS_MAX 10
#define ICMP_HEADER_SIZE 8

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_ARP 0x0806
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_VLAN 0x8100
#define ETHERTYPE_QINQ 0x88a8
#define ETHERTYPE_QINQ_LEGACY 0x9100

#define PROTOCOL_HOP_BY_HOP 0
#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_DCCP 33
#define PROTOCOL_ROUTING 43
#define PROTOCOL_FRAGMENT 44
#define PROTOCOL_AH 51
#define PROTOCOL_ICMPV6 58
#define PROTOCOL_DESTINATION 60
#define PROTOCOL_SCTP 132
#define PROTOCOL_MOBILITY 135
#define PROTOCOL_UDPLITE 136

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET 0x1fff
#define IPV6_MORE_FRAGMENTS 0x0001
#define IPV6_OFFSET 0xfff8

enum l4 {
	L4_NONE = 0, /* protocol without fields of ours, later fragment, or malformed: read nothing below IP */
	L4_TCP,	     /* ports and flags */
	L4_PORTS,    /* ports */
	L4_ICMP,     /* type and code */
};

struct packet {
	__u32 source[4]; /* IPv4: the first word, the rest 0 */
	__u32 destination[4];
	__u32 length; /* of the frame, bytes */
	__u32 ifindex;
	__u16 source_port;
	__u16 destination_port;
	__u8 family; /* FAMILY_*; only where is_ip */
	__u8 is_ip;
	__u8 protocol;
	__u8 l4; /* enum l4; nobody reads ports, flags or type without it */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 is_later_fragment;
	union {
		struct {
			__u16 is_fragment; /* not 0: first or later */
			__u8 malformed;	   /* the reason, or 0 */
			__u8 is_arp;
		};
		__u32 unusual; /* not 0: one of these */
	};
	__u8 hop_limit;	       /* of IPv6 */
} __attribute__((aligned(8))); /* cleared by words of 8 bytes */

struct cursor {
	void *at;
	void *end;
	__u64 left; /* of 32 bits every use would begin with two shifts */
};

struct vlan_tag {
	__be16 tci;
	__be16 ethertype;
};

struct ipv6_fragment {
	__u8 next;
	__u8 reserved;
	__be16 offset_and_flags;
	__be32 identification;
};

struct l4_ports {
	__be16 source;
	__be16 destination;
};

/* The bytes that follow, or NULL when the packet ends before `size` of them. Does not advance. */
static __always_inline void *peek(struct cursor *cursor, __u64 size)
{
	if (cursor->left < size || cursor->at + size > cursor->end)
		return NULL;
	if (!cursor->at) /* or callers would test it once more */
		__builtin_unreachable();
	return cursor->at;
}

static __always_inline void advance(struct cursor *cursor, __u64 size)
{
	cursor->at += size;
	cursor->left -= size;
}

static __always_inline void *take(struct cursor *cursor, __u64 size)
{
	void *header = peek(cursor, size);

	if (header)
		advance(cursor, size);
	return header;
}

/* Sets *ethertype (host order) to the one below at most two VLAN tags. */
static __always_inline int parse_ethernet(struct cursor *cursor, __u16 *ethertype)
{
	struct ethhdr *ethernet = take(cursor, sizeof(*ethernet));
	struct vlan_tag *tag;

	if (!ethernet)
		return REASON_MALFORMED_LINK;
	*ethertype = bpf_ntohs(ethernet->h_proto);
	if (*ethertype == ETHERTYPE_IPV4)
		return 0;
#pragma unroll
	for (int i = 0; i < VLAN_TAGS_MAX; i++) {
		if (*ethertype != ETHERTYPE_VLAN && *ethertype != ETHERTYPE_QINQ && *ethertype != ETHERTYPE_QINQ_LEGACY)
			return 0;
		tag = take(cursor, sizeof(*tag));
		if (!tag)
			return REASON_MALFORMED_LINK;
		*ethertype = bpf_ntohs(tag->ethertype);
	}
	return 0;
}

/* A device without link header: the version nibble says what follows. */
static __always_inline int parse_bare(struct cursor *cursor, __u16 *ethertype)
{
	__u8 *version = peek(cursor, 1);

	if (!version)
		return REASON_MALFORMED_LINK;
	if (*version >> 4 == 4)
		*ethertype = ETHERTYPE_IPV4;
	else if (*version >> 4 == 6)
		*ethertype = ETHERTYPE_IPV6;
	else
		return REASON_MALFORMED_LINK;
	return 0;
}

static __always_inline int parse_ipv4(struct cursor *cursor, struct packet *packet)
{
	struct iphdr *ip = peek(cursor, sizeof(*ip));
	__u64 header, total;
	__u16 fragment;

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return REASON_MALFORMED_IPV4;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	/* A GSO packet of more than 64 KB (BIG TCP, egress, Linux 6.3) has no room for its length and says 0. */
	if (total == 0 && cursor->left > 65535)
		total = cursor->left;
	if (total < header || total > cursor->left)
		return REASON_MALFORMED_IPV4;
	cursor->left = total;

	packet->family = FAMILY_IPV4;
	packet->is_ip = 1;
	packet->protocol = ip->protocol;
	packet->source[0] = ip->saddr;
	packet->destination[0] = ip->daddr;
	fragment = bpf_ntohs(ip->frag_off);
	packet->is_later_fragment = (fragment & IPV4_OFFSET) != 0;
	packet->is_fragment = fragment & (IPV4_OFFSET | IPV4_MORE_FRAGMENTS);
	/* The options are inside the packet by `total`; whether they are readable shows at the next header. */
	advance(cursor, header);
	return 0;
}

/*
 * The two functions below are arithmetic without branches. A branch a header kind would leave the verifier
 * with a state a kind and header, 6^10 of them; arithmetic leaves one. The empty asm keeps the compiler
 * from turning it back into compares.
 */
static __always_inline __u64 is_equal(__u64 a, __u64 b)
{
	__u64 x = (a ^ b) - 1;

	asm volatile("" : "+r"(x));
	return x >> 63;
}

#define EXTENSIONS_BELOW_64                                                                                         \
	(1ULL << PROTOCOL_HOP_BY_HOP | 1ULL << PROTOCOL_ROUTING | 1ULL << PROTOCOL_FRAGMENT | 1ULL << PROTOCOL_AH | \
	 1ULL << PROTOCOL_DESTINATION)

static __always_inline __u64 is_extension(__u64 protocol)
{
	__u64 below_64 = protocol - 64;

	asm volatile("" : "+r"(below_64));
	return (EXTENSIONS_BELOW_64 >> (protocol & 63) & below_64 >> 63) | is_equal(protocol, PROTOCOL_MOBILITY);
}

/* Bytes: (length + 1) * 8; of AH (length + 2) * 4; of a fragment header, whose second byte is no length, 8. */
static __always_inline __u32 extension_size(__u64 is_ah, __u64 is_fragment, __u64 length)
{
	length &= is_fragment - 1;
	return (length + 1 + is_ah) * (8 - 4 * is_ah);
}

static __always_inline int parse_extensions(struct cursor *cursor, struct packet *packet)
{
	struct ipv6_fragment *extension; /* the others start with the same byte and have their length in `reserved` */
	__u64 is_fragment, offset;
	__u32 size;

#pragma clang loop unroll(disable)
	for (int i = 0; i < EXTENSIONS_MAX; i++) {
		if (!is_extension(packet->protocol))
			return 0;
		extension = peek(cursor, sizeof(*extension));
		if (!extension)
			return REASON_MALFORMED_EXTENSION;
		is_fragment = is_equal(packet->protocol, PROTOCOL_FRAGMENT);
		size = extension_size(is_equal(packet->protocol, PROTOCOL_AH), is_fragment, extension->reserved);
		if (size > cursor->left)
			return REASON_MALFORMED_EXTENSION;
		packet->protocol = extension->next;
		advance(cursor, size);
		offset = bpf_ntohs(extension->offset_and_flags) & -is_fragment;
		packet->is_fragment |= offset & (IPV6_OFFSET | IPV6_MORE_FRAGMENTS);
		if (offset & IPV6_OFFSET) {
			packet->is_later_fragment = 1;
			return 0;
		}
	}
	return is_extension(packet->protocol) ? REASON_MALFORMED_EXTENSION : 0;
}

static __always_inline int parse_ipv6(struct cursor *cursor, struct packet *packet)
{
	struct ipv6hdr *ip = take(cursor, sizeof(*ip));
	__u64 payload;

	if (!ip || ip->version != 6)
		return REASON_MALFORMED_IPV6;
	payload = bpf_ntohs(ip->payload_len);
	/* A jumbogram (RFC 2675) and a GSO packet of more than 64 KB say 0. */
	if (payload == 0 && (ip->nexthdr == PROTOCOL_HOP_BY_HOP || cursor->left > 65535))
		payload = cursor->left;
	if (payload > cursor->left)
		return REASON_MALFORMED_IPV6;
	cursor->left = payload;

	packet->family = FAMILY_IPV6;
	packet->is_ip = 1;
	packet->protocol = ip->nexthdr;
	packet->hop_limit = ip->hop_limit;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		packet->source[i] = ip->saddr.in6_u.u6_addr32[i];
		packet->destination[i] = ip->daddr.in6_u.u6_addr32[i];
	}
	return parse_extensions(cursor, packet);
}

static __always_inline int parse_tcp(struct cursor *cursor, struct packet *packet)
{
	struct tcphdr *tcp = peek(cursor, sizeof(*tcp));

	if (!tcp || tcp->doff < 5 || tcp->doff * 4 > cursor->left)
		return REASON_MALFORMED_L4;
	packet->source_port = bpf_ntohs(tcp->source);
	packet->destination_port = bpf_ntohs(tcp->dest);
	packet->tcp_flags = ((__u8 *)tcp)[13];
	packet->l4 = L4_TCP;
	return 0;
}

static __always_inline int parse_ports(struct cursor *cursor, struct packet *packet)
{
	int small = packet->protocol == PROTOCOL_UDP || packet->protocol == PROTOCOL_UDPLITE;
	struct l4_ports *ports = peek(cursor, sizeof(struct udphdr));
	__u16 length;

	if (!ports || (!small && cursor->left < 12))
		return REASON_MALFORMED_L4;
	length = bpf_ntohs(((struct udphdr *)ports)->len);
	if (packet->protocol == PROTOCOL_UDP && length && length < sizeof(struct udphdr))
		return REASON_MALFORMED_L4;
	packet->source_port = bpf_ntohs(ports->source);
	packet->destination_port = bpf_ntohs(ports->destination);
	packet->l4 = L4_PORTS;
	return 0;
}

static __always_inline int parse_icmp(struct cursor *cursor, struct packet *packet)
{
	__u8 *icmp = peek(cursor, 4);

	if (!icmp || (packet->protocol == PROTOCOL_ICMP && cursor->left < ICMP_HEADER_SIZE))
		return REASON_MALFORMED_L4;
	packet->icmp_type = icmp[0];
	packet->icmp_code = icmp[1];
	packet->l4 = L4_ICMP;
	return 0;
}

static __always_inline int parse_l4(struct cursor *cursor, struct packet *packet)
{
	switch (packet->protocol) {
	case PROTOCOL_TCP:
		return parse_tcp(cursor, packet);
	case PROTOCOL_UDP:
	case PROTOCOL_UDPLITE:
	case PROTOCOL_SCTP:
	case PROTOCOL_DCCP:
		return parse_ports(cursor, packet);
	case PROTOCOL_ICMP:
	case PROTOCOL_ICMPV6:
		return parse_icmp(cursor, packet);
	default:
		return 0;
	}
}

/* The whole packet below the link header. Not IP: is_ip stays 0 and 0 is returned. */
static __always_inline int parse_ip(struct cursor *cursor, __u16 ethertype, struct packet *packet)
{
	int reason;

	if (ethertype == ETHERTYPE_IPV4)
		reason = parse_ipv4(cursor, packet);
	else if (ethertype == ETHERTYPE_IPV6)
		reason = parse_ipv6(cursor, packet);
	else {
		packet->is_arp = ethertype == ETHERTYPE_ARP;
		return 0;
	}
	if (reason || packet->is_later_fragment)
		return reason;
	reason = parse_l4(cursor, packet);
	if (reason && packet->is_fragment)
		return REASON_MALFORMED_FRAGMENT;
	return reason;
}

/* `bare`: the device has no link header. Constant at every call, so one branch is left. */
static __always_inline void parse(struct cursor *cursor, int bare, struct packet *packet)
{
	__u16 ethertype = 0;
	int reason = bare ? parse_bare(cursor, &ethertype) : parse_ethernet(cursor, &ethertype);

	packet->malformed = reason ? reason : parse_ip(cursor, ethertype, packet);
}

#endif
