"""Choosing the next token from logits, and turning tokens into text as they come."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moeprof.errors import UnsupportedModelError
from moeprof.runtime.kernel_call import OVERFLOWED


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: generated at most.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: the smallest set of likeliest tokens with at least this probability is drawn from.
        seed: of the draws.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"tokens to generate must be at least 1, not {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be a number from 0 up, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p must be a number above 0 and up to 1, not {self.top_p}")


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens on every device.

    Args:
        sampling: how.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = torch.Generator().manual_seed(sampling.seed)

    def draw(self, logits: Tensor) -> int:
        """The next token.

        Args:
            logits: [V] floating, on any device.

        Raises:
            UnsupportedModelError: one is not a number, or none is finite.
        """
        if self._sampling.temperature == 0:
            both = torch.stack([logits.argmax().double(), logits.max().double()])
            token_id, largest = both.tolist()  # the device is waited for once
            _check_finite(largest)
            return int(token_id)
        logits = logits.to("cpu", torch.float64)
        largest = float(logits.max())
        _check_finite(largest)
        scaled = (logits - largest) / self._sampling.temperature
        probabilities, token_ids = scaled.softmax(-1).sort(descending=True, stable=True)
        # A token stays as long as those before it do not reach top_p; the first always stays.
        before = probabilities.cumsum(-1) - probabilities
        kept = probabilities.masked_fill(before >= self._sampling.top_p, 0)
        return int(token_ids[torch.multinomial(kept, 1, generator=self._random)])


def _check_finite(largest_logit: float) -> None:
    if not math.isfinite(largest_logit):
        raise UnsupportedModelError(f"logits: the largest is {largest_logit}", OVERFLOWED)


class TextStream:
    """Writes the text of tokens as soon as it is certain.

    A token may end inside a character, and its text may depend on the token before; so the text
    of a new token is the difference of two decodings that share a beginning.

    Args:
        tokenizer: a transformers tokenizer.
        write: called with each new piece of text.
    """

    def __init__(self, tokenizer: Any, write: Callable[[str], object]) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self._write = write
        self._token_ids: list[int] = []
        self._begin = 0
        self._written = 0

    def push(self, token_id: int) -> None:
        """Take one more token."""
        self._token_ids.append(token_id)
        self._flush(at_end=False)

    def end(self) -> None:
        """Write what was held back."""
        self._flush(at_end=True)

    def _flush(self, at_end: bool) -> None:
        known = self._decode(self._begin, self._written)
        text = self._decode(self._begin, len(self._token_ids))
        incomplete = text.endswith("\N{REPLACEMENT CHARACTER}")
        if len(text) <= len(known) or (incomplete and not at_end):
            return
        self._write(text[len(known) :])
        self._begin, self._written = self._written, len(self._token_ids)

    def _decode(self, begin: int, end: int) -> str:
        text: str = self._tokenizer.decode(self._token_ids[begin:end], skip_special_tokens=True)
        return text
