"""The REST API: HTTP in, calls of the firewall's enforcer, JSON out. It decides nothing about packets."""
