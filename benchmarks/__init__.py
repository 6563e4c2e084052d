"""Benchmarks: one module a question, the peers measured in the same run. `python -m benchmarks`; see README.md."""
