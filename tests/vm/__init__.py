"""Checks that need another kernel or a whole booted system: Debian in QEMU. Run by `make test-vm` alone."""
