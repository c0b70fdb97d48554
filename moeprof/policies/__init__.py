"""Cache policies, written once in the native core, and their replay over a trace."""

from moeprof.policies.accesses import Accesses, read_accesses
from moeprof.policies.held_out import HeldOut, hold_out, training_counts
from moeprof.policies.policy import Policy, parse_policy
from moeprof.policies.replay import ReplayResult, replay, replay_held_out
from moeprof.policies.user_policy import CacheFacts, UserPolicy, user_policy

__all__ = [
    "Accesses",
    "CacheFacts",
    "HeldOut",
    "Policy",
    "ReplayResult",
    "UserPolicy",
    "hold_out",
    "parse_policy",
    "read_accesses",
    "replay",
    "replay_held_out",
    "training_counts",
    "user_policy",
]
