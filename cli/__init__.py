"""The command line `ebpf-fw`: a client of the REST API, the host check, and the way to start the service."""
