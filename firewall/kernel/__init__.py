"""What touches the kernel: the only package that imports bcc and pyroute2. It knows bytes and names, not rules."""
