"""Lists of addresses from outside: feeds that are fetched again and again, and CrowdSec's decisions.

It is an HTTP client. What lists look like is firewall.lists', what sets are is the enforcer's.
"""
