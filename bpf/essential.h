/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * What a host cannot live without: packets that pass where no rule matched and the default is drop, each kind unless
 * its option is off. Only whole packets: none of these needs fragments (RFC 6980 forbids them to neighbour discovery).
 */
#ifndef EBPF_FW_ESSENTIAL_H
#define EBPF_FW_ESSENTIAL_H

#define PORT_DHCP4_SERVER 67
#define PORT_DHCP4_CLIENT 68
#define PORT_DHCP6_CLIENT 546
#define PORT_DHCP6_SERVER 547

#define ICMP_UNREACHABLE 3
#define ICMP_FRAGMENTATION_NEEDED 4 /* code */
#define ICMPV6_PACKET_TOO_BIG 2
#define ICMPV6_ROUTER_SOLICITATION 133
#define ICMPV6_REDIRECT 137
#define NEIGHBOR_HOP_LIMIT 255 /* RFC 4861: no router passed it on */

/* This host is the client: servers' packets come in, its own go out. */
static __always_inline int is_dhcp(const struct packet *packet, __u32 hook)
{
	__u32 server = packet->family == FAMILY_IPV4 ? PORT_DHCP4_SERVER : PORT_DHCP6_SERVER;
	__u32 client = packet->family == FAMILY_IPV4 ? PORT_DHCP4_CLIENT : PORT_DHCP6_CLIENT;

	if (packet->l4 != L4_PORTS || packet->protocol != PROTOCOL_UDP)
		return 0;
	if (hook == HOOK_INGRESS)
		return packet->source_port == server && packet->destination_port == client;
	return packet->source_port == client && packet->destination_port == server;
}

static __always_inline int is_path_mtu(const struct packet *packet)
{
	if (packet->family == FAMILY_IPV4)
		return packet->protocol == PROTOCOL_ICMP && packet->icmp_type == ICMP_UNREACHABLE &&
		       packet->icmp_code == ICMP_FRAGMENTATION_NEEDED;
	return packet->protocol == PROTOCOL_ICMPV6 && packet->icmp_type == ICMPV6_PACKET_TOO_BIG;
}

static __always_inline int is_neighbor_discovery(const struct packet *packet)
{
	return packet->family == FAMILY_IPV6 && packet->protocol == PROTOCOL_ICMPV6 &&
	       packet->icmp_type >= ICMPV6_ROUTER_SOLICITATION && packet->icmp_type <= ICMPV6_REDIRECT &&
	       packet->hop_limit == NEIGHBOR_HOP_LIMIT;
}

static __always_inline int is_essential(const struct packet *packet, __u32 options, __u32 hook)
{
	if (packet->is_fragment)
		return 0;
	if (packet->l4 != L4_ICMP)
		return options & OPTION_PASS_DHCP && is_dhcp(packet, hook);
	return (options & OPTION_PASS_PATH_MTU && is_path_mtu(packet)) ||
	       (options & OPTION_PASS_NEIGHBORS && is_neighbor_discovery(packet));
}

#endif
