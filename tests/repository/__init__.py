"""Tests of the repository itself: style, types, layering, links, packaging."""
