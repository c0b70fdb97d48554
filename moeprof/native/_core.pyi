import numpy as np
from numpy.typing import NDArray

NO_EXPERT: int

def count_assignments(
    experts: NDArray[np.uint16],
    groups: NDArray[np.uint32],
    num_groups: int,
    num_experts: int,
) -> NDArray[np.int64]: ...
