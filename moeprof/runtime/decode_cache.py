"""A cache of fixed size and place, which a captured decode step can write and read.

Transformers' static cache counts its tokens per layer and, where a window slides, on the host;
here all layers share one position, on the host for the prompt and on the device for each token
after it, and a sliding window is a ring.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, StaticCache
from transformers.cache_utils import (
    CacheLayerMixin,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from moeprof.errors import UnsupportedModelError


@dataclass(slots=True)
class Clock:
    """Where a sequence stands.

    Attributes:
        position: [1] int64 on the device, place of the token that is decoded.
        is_decoding: whether `position` counts; the prompt always begins at 0.
    """

    position: Tensor
    is_decoding: bool = field(default=False)


class FullLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of every position, [B, G, L, D].

    Args:
        length: positions (L).
        clock: of the sequence.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, length: int, clock: Clock) -> None:
        super().__init__()
        self.length = length
        self.clock = clock

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for states of these shapes, types and device."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.batch_size = key_states.shape[0]
        self.keys, self.values = (
            states.new_zeros((*states.shape[:2], self.length, states.shape[3]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """Store the states of one token, or of a prompt.

        Args:
            key_states: [B, G, S, Dk].
            value_states: [B, G, S, Dv].
            args: none.
            kwargs: none.

        Returns:
            Keys and values to attend to.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.clock.is_decoding:
            place = self._place()
            self.keys.index_copy_(2, place, key_states)
            self.values.index_copy_(2, place, value_states)
            return self.keys, self.values
        return self._store_prompt(key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int | Tensor]:
        """Positions that `update` returns, and the place of the first."""
        return self.length, 0

    def get_seq_length(self) -> int | Tensor:
        """Tokens before the one that comes."""
        return self.clock.position[0] if self.clock.is_decoding else 0

    def get_max_length(self) -> int:
        """Positions that there is room for."""
        return self.length

    def reset(self) -> None:
        """Nothing: what a new sequence has not written yet, its mask hides."""

    def _place(self) -> Tensor:
        return self.clock.position

    def _store_prompt(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[:, :, : keys.shape[2]].copy_(keys)
        self.values[:, :, : values.shape[2]].copy_(values)
        return self.keys, self.values


class RingLayer(FullLayer):
    """Keys and values of the last positions; position p lies in slot p modulo the window.

    Attention does not depend on the order of what it sees, so slots need no sorting.
    """

    is_sliding = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int | Tensor]:
        """Positions that `update` returns, and the place of the first.

        Once the ring is full, the mask is made for its positions in order; a window hides none of
        them, so their order in the ring does not matter.
        """
        if self.clock.is_decoding:
            return self.length, (self.clock.position[0] + 1 - self.length).clamp(min=0)
        return max(query_length, self.length), 0

    def _place(self) -> Tensor:
        return self.clock.position.remainder(self.length)

    def _store_prompt(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        num_tokens = keys.shape[2]
        if num_tokens <= self.length:
            return FullLayer._store_prompt(self, keys, values)
        last = torch.arange(num_tokens - self.length, num_tokens, device=keys.device)
        slots = last.remainder(self.length)
        self.keys.index_copy_(2, slots, keys[:, :, -self.length :])
        self.values.index_copy_(2, slots, values[:, :, -self.length :])
        return keys, values


class DecodeCache(StaticCache):  # type: ignore[misc]
    """The cache of one model for sequences of at most a planned length.

    Attributes:
        clock: of the sequence.

    Args:
        config: of the model.
        length: tokens of a sequence, prompt and generated together.
        device: of the model.

    Raises:
        UnsupportedModelError: the model keeps something that has no fixed place.
    """

    def __init__(self, config: PretrainedConfig, length: int, device: torch.device) -> None:
        name = type(config).__name__
        try:
            super().__init__(config=config, max_cache_len=length)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnsupportedModelError(f"{name}: has no static cache ({error})") from error
        self.clock = Clock(torch.zeros(1, dtype=torch.int64, device=device))
        for i, layer in enumerate(self.layers):
            if type(layer) is StaticSlidingWindowLayer and not _is_chunked(config, i):
                self.layers[i] = RingLayer(layer.max_cache_len, self.clock)
            elif type(layer) in (StaticLayer, StaticSlidingWindowLayer):
                self.layers[i] = FullLayer(length, self.clock)
            elif hasattr(layer, "cumulative_length_int") or not layer.is_compileable:
                raise UnsupportedModelError(
                    f"{name}: its layer {i} counts tokens on the host ({type(layer).__name__})"
                )

    def start(self) -> None:
        """Forget the sequence; a prompt is to follow."""
        for layer in self.layers:
            layer.reset()
        self.clock.is_decoding = False

    def decode_from(self, position: int) -> None:
        """From now on tokens come one by one, the first at this position."""
        self.clock.position.fill_(position)
        self.clock.is_decoding = True


def _is_chunked(config: PretrainedConfig, layer: int) -> bool:
    """Whether a layer sees the chunk that its token is in; a ring would not keep its order."""
    text = config.get_text_config(decoder=True)
    layer_types = getattr(text, "layer_types", None)
    if layer_types is None:
        return getattr(text, "sliding_window", None) is None
    kind: str = layer_types[layer]
    return kind == "chunked_attention"
