"""Who computes: one function per opponent, in a registry. To add one, see ``registry``."""

from . import ffm, involution, network, other_networks, runtimes
from .registry import (
    BOTH,
    ISA_VARIABLES,
    REGISTRY,
    Build,
    Call,
    Inputs,
    Opponent,
    Requirement,
    Role,
    cxx_compiler,
    module,
    opponent,
    opponents_for,
)

involution_call = involution.involution_call
"""One call of a function of (x, weight, case), for opponents of the involution op that are registered elsewhere."""

__all__ = [
    "BOTH",
    "ISA_VARIABLES",
    "REGISTRY",
    "Build",
    "Call",
    "Inputs",
    "Opponent",
    "Requirement",
    "Role",
    "cxx_compiler",
    "ffm",
    "involution",
    "involution_call",
    "module",
    "network",
    "opponent",
    "opponents_for",
    "other_networks",
    "runtimes",
]
