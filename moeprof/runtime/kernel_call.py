"""What the kernels of the host and of a device take alike: element types, and a layer's tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The remedy for values that are not finite.
OVERFLOWED = (
    "values that overflow point to a damaged checkpoint, or to a --dtype that is too narrow"
)
ELEMENT_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One layer's tensors as kernels read them, kept alive until the kernel has them.

    Attributes:
        rows: [T, H] contiguous.
        ids: [T, K] int64, contiguous.
        weights: [T, K] contiguous.
        output: [T, H] in the type of `rows`, to be written.
    """

    rows: Tensor
    ids: Tensor
    weights: Tensor
    output: Tensor

    @classmethod
    def of(cls, hidden: Tensor, index: Tensor, weights: Tensor) -> "KernelCall":
        """The call for [T, H] hidden states, [T, K] expert ids and [T, K] router weights."""
        rows = hidden.contiguous()
        ids = index.to(torch.int64).contiguous()
        return cls(rows, ids, weights.contiguous(), torch.empty_like(rows))

    def arguments(self) -> tuple[int, str, int, int, str, int, int]:
        """Addresses, element types and the number of tokens, in the order of the kernels."""
        return (
            self.rows.data_ptr(),
            ELEMENT_NAMES[self.rows.dtype],
            self.ids.data_ptr(),
            self.weights.data_ptr(),
            ELEMENT_NAMES[self.weights.dtype],
            len(self.rows),
            self.output.data_ptr(),
        )
