"""The sufficient statistics of a trace: additive, small, independent of its length."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.native import NO_EXPERT, count_assignments
from moeprof.trace import schema

if TYPE_CHECKING:
    from moeprof.trace.writer import TokenBlock

PARTS_KEY = b"moeprof.parts"


class Tally:
    """Assignments and weight mass per (domain, document group, phase, layer, expert).

    Memory is 2 * 64 * 2 * L * E numbers for each domain, whatever the length of the trace.

    Args:
        metadata: of the trace that is counted.
    """

    def __init__(self, metadata: schema.TraceMetadata) -> None:
        self.metadata = metadata
        shape = metadata.shape
        size = (schema.NUM_DOCUMENT_GROUPS, 2, shape.num_moe_layers, shape.num_experts)
        self.assignments = {d.name: np.zeros(size, np.int64) for d in metadata.domains}
        self.weight_mass = {d.name: np.zeros(size, np.float64) for d in metadata.domains}
        self.empty_slots = {d.name: 0 for d in metadata.domains}

    def add(self, domain: str, block: "TokenBlock", groups: NDArray[np.uint32]) -> None:
        """Count a block's rows.

        Args:
            domain: the domain of all rows.
            block: rows of every MoE layer.
            groups: [T] uint32, document group of each token.

        Raises:
            ValueError: an expert id or group is out of range, or an id stands twice in a row.
        """
        keys = groups * 2 + block.phase
        for row, experts in enumerate(block.experts):
            weights = None if block.weights is None else block.weights[row]
            self.add_layer(domain, row, keys, experts, weights)

    def add_layer(
        self,
        domain: str,
        row: int,
        keys: NDArray[np.uint32],
        experts: NDArray[np.uint16],
        weights: NDArray[np.float16] | None,
    ) -> None:
        """Count rows of one layer; `row` is its index, `keys` [T] is group * 2 + phase."""
        num_experts = self.metadata.shape.num_experts
        num_keys = 2 * schema.NUM_DOCUMENT_GROUPS
        counted = count_assignments(
            np.ascontiguousarray(experts), keys.astype(np.uint32), num_keys, num_experts
        )
        self.assignments[domain][:, :, row] += counted.reshape(-1, 2, num_experts)
        chosen = experts != NO_EXPERT
        self.empty_slots[domain] += int(experts.size - np.count_nonzero(chosen))
        if weights is None:
            return
        cells = keys[:, None].astype(np.int64) * num_experts + experts
        mass = np.bincount(
            cells[chosen], weights[chosen].astype(np.float64), minlength=num_keys * num_experts
        )
        self.weight_mass[domain][:, :, row] += mass.reshape(-1, 2, num_experts)

    def check(self, metadata: schema.TraceMetadata) -> None:
        """Compare the counts with the tokens that `metadata` says were recorded.

        Raises:
            TraceError: in some domain, assignments are not tokens x top_k x layers.
        """
        for domain in metadata.domains:
            found = int(self.assignments[domain.name].sum()) + self.empty_slots[domain.name]
            shape = metadata.shape
            expected = sum(domain.tokens) * shape.top_k * shape.num_moe_layers
            if found != expected:
                raise TraceError(
                    f"domain {domain.name}: {found} assignments recorded, expected {expected} "
                    f"({sum(domain.tokens)} tokens x {shape.top_k} x {shape.num_moe_layers} layers)"
                )

    def to_frame(self) -> pd.DataFrame:
        """One row per cell, group and phase with an assignment: the content of counts.parquet."""
        shape = self.metadata.shape
        names = [domain.name for domain in self.metadata.domains]
        layers = np.asarray(shape.moe_layers, np.uint16)
        frames = []
        for name in names:
            counts = self.assignments[name]
            group, phase, row, expert = np.nonzero(counts)
            mass = self.weight_mass[name][group, phase, row, expert]
            frames.append(
                pd.DataFrame(
                    {
                        "domain": pd.Categorical([name] * len(group), categories=names),
                        "document_group": group.astype(np.uint16),
                        "phase": pd.Categorical(
                            np.array(schema.PHASES)[phase], categories=list(schema.PHASES)
                        ),
                        "layer": layers[row],
                        "expert": expert.astype(np.uint16),
                        "assignments": counts[group, phase, row, expert],
                        "weight_mass": mass if self.metadata.capture.weights else np.nan,
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def to_table(self, digest: str) -> pa.Table:
        """The content of counts.parquet; `digest` names the parts that were counted."""
        table = pa.Table.from_pandas(
            self.to_frame(), schema=schema.COUNTS_SCHEMA, preserve_index=False
        )
        return table.replace_schema_metadata({PARTS_KEY: digest.encode()})
