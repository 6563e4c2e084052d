"""Owns the words that an option may have; they are the API's."""

from enum import StrEnum


class Action(StrEnum):
    drop = "drop"
    allow = "allow"


class Direction(StrEnum):
    ingress = "ingress"
    egress = "egress"
    both = "both"


class Hook(StrEnum):
    ingress = "ingress"
    egress = "egress"


class Mode(StrEnum):
    auto = "auto"
    native = "native"
    generic = "generic"
    offload = "offload"
