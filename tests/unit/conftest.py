"""How hypothesis runs here: a busy machine is no failure, and what failed once is told by its example alone."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None, print_blob=True)
settings.load_profile("unit")
