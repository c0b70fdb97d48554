"""What a Mixture-of-Experts model is, as frozen facts; no weights, no torch.

Dimension letters used in shape comments throughout the package:
L layers with a router, E experts, K top-k, T tokens, H hidden, F expert FFN width,
G document groups, D domains.
"""

from dataclasses import dataclass

from moeprof.errors import TraceError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that tracing, analysis and planning need of a model.

    Attributes:
        model_type: transformers' `model_type`.
        num_layers: hidden layers of the checkpoint, dense ones included.
        moe_layers: checkpoint indices of the layers with a router, ascending; row `i` of an
            array over layers is `moe_layers[i]`.
        num_experts: routed experts of each MoE layer (E).
        top_k: experts chosen per token (K).
        hidden_size: width of the residual stream (H).
        vocab_size: entries of the vocabulary.
        expert_bytes: for each MoE layer the bytes of one expert as stored in the checkpoint.
        dense_bytes: bytes of everything outside the experts as stored in the checkpoint.
        dtype: the checkpoint's element type for the experts, such as `bfloat16`.
    """

    model_type: str
    num_layers: int
    moe_layers: tuple[int, ...]
    num_experts: int
    top_k: int
    hidden_size: int
    vocab_size: int
    expert_bytes: tuple[int, ...]
    dense_bytes: int
    dtype: str

    def __post_init__(self) -> None:
        if not self.moe_layers or list(self.moe_layers) != sorted(set(self.moe_layers)):
            raise TraceError(f"model shape: moe_layers must ascend, got {self.moe_layers}")
        if not 1 <= self.top_k <= self.num_experts:
            raise TraceError(f"model shape: top_k {self.top_k} with {self.num_experts} experts")
        if len(self.expert_bytes) != len(self.moe_layers) or min(self.expert_bytes) <= 0:
            raise TraceError(
                f"model shape: {len(self.expert_bytes)} positive expert sizes expected for "
                f"{len(self.moe_layers)} MoE layers"
            )

    @property
    def num_moe_layers(self) -> int:
        """Layers with a router (L)."""
        return len(self.moe_layers)

    @property
    def num_cells(self) -> int:
        """Cells of the model, L x E."""
        return len(self.moe_layers) * self.num_experts

    @property
    def total_expert_bytes(self) -> int:
        """Bytes of all experts as stored in the checkpoint."""
        return sum(self.expert_bytes) * self.num_experts
