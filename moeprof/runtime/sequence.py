"""One sequence that grows token by token, on the host and on a device."""

from typing import Any

import torch
from torch import Tensor

from moeprof.runtime.decoding import Decoder
from moeprof.runtime.formats import STORED
from moeprof.runtime.model import SplitModel
from moeprof.trace.schema import PHASES


class Sequence:
    """Feeds a prompt, then one token after the other; a new prompt starts anew.

    Attributes:
        notes: sentences on what of the fast path the model does without, and why.

    Args:
        loaded: the model.
        context_tokens: tokens that the sequence may grow to.
        compiled: whether to compile the layers of a decode step on CUDA.
    """

    def __init__(self, loaded: SplitModel, context_tokens: int, compiled: bool = True) -> None:
        self._loaded = loaded
        self._position = 0
        self._cache: Any = None
        self._decoder: Decoder | None = None
        self.notes: tuple[str, ...] = ()
        # torch's own experts need their routing on the host, so no step of theirs is captured.
        if loaded.device.type == "cuda" and loaded.experts.weight_format != STORED:
            loaded.meter.begin(PHASES[1], 0)
            with torch.cuda.device(loaded.device):
                self._decoder = Decoder(
                    loaded.model,
                    context_tokens,
                    loaded.checkpoint.shape.num_experts,
                    compiled=compiled,
                )
            loaded.synchronize()
            loaded.meter.reset()
            if loaded.experts.clock is not None:
                loaded.experts.clock.reset()
            self.notes = (*self._decoder.notes, *loaded.experts.notes)

    def prefill(self, token_ids: list[int]) -> Tensor:
        """Logits, [V], after a prompt of one token or more.

        Raises:
            UnsupportedModelError: the model gives no cache back.
        """
        self._position = len(token_ids)
        if self._decoder is not None:
            self._loaded.meter.begin(PHASES[0], len(token_ids))
            return self._decoder.prefill(token_ids)
        step = self._loaded.forward(token_ids, PHASES[0])
        self._cache = step.cache
        return step.logits

    def step(self, token_id: int) -> Tensor:
        """Logits, [V], after one more token."""
        self._position += 1
        if self._decoder is not None:
            self._loaded.meter.begin(PHASES[1], 1)
            return self._decoder.step(token_id)
        step = self._loaded.forward([token_id], PHASES[1], self._cache, self._position - 1)
        self._cache = step.cache
        return step.logits
