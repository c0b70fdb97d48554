"""The definition of every native operation in plain numpy; the compiled ones must equal it.

Every float32 operation here is one IEEE-754 operation rounded to nearest even, with subnormal
numbers kept; a fused multiply-add is never used. An implementation that performs the operations
which the docstrings state, in the order they state, gives the same bits, except that the sign and
the payload of a NaN are left open. One file per idea:

- `formats`: how weights are stored in 32-value blocks, and what they mean;
- `dots`: activations as int8, block dot products, the order of summation;
- `units`: the exponential and the gated units;
- `experts`: one expert, one layer, the sum over slots;
- `layout`: the order of the bytes that both devices read;
- `counting`: assignments per expert;
- `replay`: reuse distances, and caches of experts with their policies (plain Python);
- `routed_tokens`: statistics over the tokens of a layer.
"""

from moeprof.native.reference.counting import count_assignments
from moeprof.native.reference.dots import (
    accumulate,
    block_dots,
    project,
    quantize_activations,
    tree_sum,
)
from moeprof.native.reference.experts import ExpertWeights, decode_layer, expert_forward, slot_sum
from moeprof.native.reference.formats import BLOCK_BYTES, BLOCK_SIZE, dequantize, quantize
from moeprof.native.reference.layout import (
    expert_bytes,
    pack_expert,
    pack_rows,
    unpack_rows,
    xor_words,
)
from moeprof.native.reference.replay import look_up_sets, replay_lookups, reuse_distances
from moeprof.native.reference.routed_tokens import (
    candidate_ranks,
    chosen_pairs,
    lag_overlap,
    pair_counts,
)
from moeprof.native.reference.units import UNIT_KINDS, GatedUnit, exponential, gelu_tanh, silu

__all__ = [
    "BLOCK_BYTES",
    "BLOCK_SIZE",
    "UNIT_KINDS",
    "ExpertWeights",
    "GatedUnit",
    "accumulate",
    "block_dots",
    "candidate_ranks",
    "chosen_pairs",
    "count_assignments",
    "decode_layer",
    "dequantize",
    "expert_bytes",
    "expert_forward",
    "exponential",
    "gelu_tanh",
    "lag_overlap",
    "look_up_sets",
    "pack_expert",
    "pack_rows",
    "pair_counts",
    "project",
    "quantize",
    "quantize_activations",
    "replay_lookups",
    "reuse_distances",
    "silu",
    "slot_sum",
    "tree_sum",
    "unpack_rows",
    "xor_words",
]
