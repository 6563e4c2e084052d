"""Checks that need another kernel or a whole booted system: Debian under QEMU. Run with `make test-vm` only."""
