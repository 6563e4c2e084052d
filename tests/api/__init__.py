"""Tests of the REST API over the real enforcer and store, with the kernel in memory."""
