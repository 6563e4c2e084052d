"""Tests with the real service and real traffic in network namespaces."""
