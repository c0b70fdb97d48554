"""Decoding one token at a time, on CUDA as one captured graph per step.

A prompt runs through the model as it is. Then each token is the replay of one CUDA graph: the
model's forward over a cache of fixed place, with attention, routers and linear layers computed by
our kernels and the rest of each layer compiled. What a model does not allow is left out and said
in a sentence.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moeprof.checkpoint.kv_cache import cache_name, cache_of
from moeprof.errors import CapacityError, UnsupportedModelError
from moeprof.runtime.attention import use_own_attention
from moeprof.runtime.compiled_layers import CompiledLayers
from moeprof.runtime.decode_cache import DecodeCache
from moeprof.runtime.dense_ops import HAS_KERNELS
from moeprof.runtime.routers import fuse_routers
from moeprof.runtime.row_linear import use_row_products

_TRIAL_PROMPT = 4
_TRIAL_STEPS = 2
_LONG_PROMPTS = (24, 41)  # trials of compiled prompts; shorter ones run as they are


class Decoder:
    """One sequence of a model, prompt first, then token by token.

    Attributes:
        notes: sentences that say what of the fast path this model does without, and why.
        is_captured: whether a step is the replay of one CUDA graph.
        is_compiled: whether its layers are compiled.

    Args:
        model: in evaluation mode, on one device, with its experts in place.
        context_tokens: tokens of a sequence, prompt and generated together, at most.
        num_experts: routed experts of a layer.
        compiled: whether to compile the layers of a captured step.
        captured: whether to capture steps; only on CUDA.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        context_tokens: int,
        num_experts: int,
        *,
        compiled: bool = True,
        captured: bool = True,
    ) -> None:
        self.notes: tuple[str, ...] = ()
        self.is_captured = False
        self.is_compiled = False
        self._model = model
        self._context_tokens = context_tokens
        self._device = model.device
        self._position = 0
        self._own_cache: Any = None  # of the model, where steps are not captured
        self._cache: DecodeCache | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._prompt_layers: CompiledLayers | None = None
        self._token = torch.zeros((1, 1), dtype=torch.int64, device=self._device)
        self._logits: Tensor | None = None
        if self._device.type == "cuda":
            if not HAS_KERNELS:
                self._note("moeprof was built without a CUDA compiler, so decoding is slow")
            else:
                self._prepare(num_experts, compiled, captured)

    @property
    def greedy(self) -> Tensor:
        """[1, 1] int64 on the device: the likeliest token after the last one."""
        return self._token

    @torch.no_grad()
    def prefill(self, token_ids: list[int]) -> Tensor:
        """Start a sequence.

        Args:
            token_ids: the prompt, one token or more.

        Returns:
            [V], logits of the next token, on the model's device; valid until the next call.

        Raises:
            CapacityError: the prompt does not fit the context.
            UnsupportedModelError: the model gives no cache back.
        """
        self._check_room(0, len(token_ids))
        if self._cache is not None:
            logits = self._prefill_compiled(self._cache, token_ids)
        else:
            self._own_cache = None
            logits = self._forward(torch.tensor([token_ids], device=self._device), 0)
        self._position = len(token_ids)
        return self._keep(logits)

    @torch.no_grad()
    def step(self, token_id: int | None = None) -> Tensor:
        """Feed one token.

        Args:
            token_id: the token; None for the likeliest after the last.

        Returns:
            As `prefill`.

        Raises:
            CapacityError: the context is full.
        """
        self._check_room(self._position, 1)
        if token_id is not None:
            self._token.fill_(token_id)
        self._position += 1
        if self._graph is not None:
            self._graph.replay()
            assert self._logits is not None
            return self._logits
        return self._keep(self._forward(self._token, self._position - 1))

    def _check_room(self, position: int, num_tokens: int) -> None:
        if position + num_tokens > self._context_tokens:
            raise CapacityError(
                f"context: {position + num_tokens} tokens, planned for {self._context_tokens}",
                "plan again with a larger --context",
            )

    def _keep(self, logits: Tensor) -> Tensor:
        self._token.copy_(logits.argmax().view(1, 1))
        return logits

    def _forward(self, token_ids: Tensor, position: int) -> Tensor:
        """A forward with the model's own cache."""
        end = position + token_ids.shape[1]
        output = self._model(
            input_ids=token_ids,
            position_ids=torch.arange(position, end, device=self._device)[None],
            use_cache=True,
            **{cache_name(self._model): self._own_cache},
        )
        self._own_cache = cache_of(self._model, output)
        logits: Tensor = output.logits[0, -1]
        return logits

    def _prefill_compiled(self, cache: DecodeCache, token_ids: list[int]) -> Tensor:
        """As `_prefill_static`, through compiled layers where they serve this length."""
        layers = self._prompt_layers
        if layers is not None and len(token_ids) >= min(_LONG_PROMPTS):
            try:
                with layers.installed():
                    return self._prefill_static(cache, token_ids)
            except torch._dynamo.exc.RecompileError as error:
                self._note(f"prompts of some lengths are not compiled: {_line(error)}")
                self._prompt_layers = None
        return self._prefill_static(cache, token_ids)

    def _prefill_static(self, cache: DecodeCache, token_ids: list[int]) -> Tensor:
        cache.start()
        output = self._model(
            input_ids=torch.tensor([token_ids], device=self._device),
            position_ids=torch.arange(len(token_ids), device=self._device)[None],
            use_cache=True,
            logits_to_keep=1,
            **{cache_name(self._model): cache},
        )
        cache.decode_from(len(token_ids))
        logits: Tensor = output.logits[0, -1]
        return logits

    def _step_static(self, cache: DecodeCache) -> None:
        """What is captured: from token and position to logits, next token and next position."""
        output = self._model(
            input_ids=self._token,
            position_ids=cache.clock.position[None],
            use_cache=True,
            logits_to_keep=1,
            **{cache_name(self._model): cache},
        )
        logits = output.logits[0, -1]
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)
        self._token.copy_(logits.argmax().view(1, 1))
        cache.clock.position.add_(1)

    def _note(self, sentence: str) -> None:
        self.notes = (*self.notes, sentence)

    @torch.no_grad()
    def _prepare(self, num_experts: int, compiled: bool, captured: bool) -> None:
        use_row_products(self._model)
        fuse_routers(self._model, num_experts)
        own_attention = self._model.config._attn_implementation
        reason = use_own_attention(self._model)
        if reason is not None:
            self._note(f"{reason}, which is slower")
        if not captured:
            return
        try:
            cache = DecodeCache(self._model.config, self._context_tokens, self._device)
            try:
                expected = self._trial(cache, lambda: self._step_static(cache))
            except UnsupportedModelError as error:
                self._note(f"{error}, so the model keeps its own attention, which is slower")
                self._model.set_attn_implementation(own_attention)
                expected = self._trial(cache, lambda: self._step_static(cache))
        except Exception as error:  # any code of any model ran
            self._note(f"decoding is not captured as a CUDA graph: {_line(error)}")
            return
        layers = self._compile(cache, expected) if compiled else None
        self._capture(cache, expected, layers)
        if self.is_compiled and self._context_tokens >= max(_LONG_PROMPTS):
            self._compile_prompts(cache)

    def _compile(self, cache: DecodeCache, expected: Tensor) -> CompiledLayers | None:
        try:
            layers = CompiledLayers(self._model, cache, compile_folder())
            with layers.installed():
                found = self._trial(cache, lambda: self._step_static(cache))
        except Exception as error:  # any code of any model was compiled
            self._note(f"decoding is not compiled: {_line(error)}")
            return None
        if not _alike(found, expected):
            self._note("decoding is not compiled: compiled layers gave other logits")
            return None
        expected.copy_(found)
        self.is_compiled = True
        return layers

    def _compile_prompts(self, cache: DecodeCache) -> None:
        """Compile the layers for prompts: run as they are, they wait for Python."""
        try:
            layers = CompiledLayers(self._model, cache, compile_folder(), any_length=True)
            for length in _LONG_PROMPTS:
                prompt = [1 + i % _TRIAL_PROMPT for i in range(length)]
                expected = self._prefill_static(cache, prompt).clone()
                with layers.installed():
                    found = self._prefill_static(cache, prompt)
                if not _alike(found, expected):
                    self._note("prompts are not compiled: compiled layers gave other logits")
                    return
                layers.settle()
        except Exception as error:  # any code of any model was compiled
            self._note(f"prompts are not compiled: {_line(error)}")
            return
        self._prompt_layers = layers

    def _capture(self, cache: DecodeCache, expected: Tensor, layers: CompiledLayers | None) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with nullcontext() if layers is None else layers.installed():
                self._prefill_static(cache, self._trial_prompt())
                with _side_stream(self._device):
                    self._step_static(cache)
                with torch.cuda.graph(graph):
                    self._step_static(cache)
            found = self._trial(cache, graph.replay)
        except Exception as error:  # any code of any model ran
            self._note(f"decoding is not captured as a CUDA graph: {_line(error)}")
            self.is_compiled = False
            return
        if not _alike(found, expected):
            self._note("decoding is not captured as a CUDA graph: it gave other logits")
            self.is_compiled = False
            return
        self._cache, self._graph, self.is_captured = cache, graph, True

    def _trial(self, cache: DecodeCache, step: Callable[[], None]) -> Tensor:
        """[steps, V]: logits of a few greedy tokens after a short prompt."""
        self._token.copy_(self._prefill_static(cache, self._trial_prompt()).argmax().view(1, 1))
        rows = []
        for _ in range(_TRIAL_STEPS):
            step()
            assert self._logits is not None
            rows.append(self._logits.clone())
        return torch.stack(rows)

    def _trial_prompt(self) -> list[int]:
        return list(range(1, 1 + min(_TRIAL_PROMPT, self._context_tokens - _TRIAL_STEPS)))


def compile_folder() -> Path:
    """Where compiled decode steps are kept for later starts."""
    chosen = os.environ.get("MOEPROF_CACHE_DIR")
    base = Path(chosen) if chosen else Path.home() / ".cache" / "moeprof"
    return base / "compiled"


def _alike(found: Tensor, expected: Tensor) -> bool:
    """Whether logits differ by no more than roundings of their type can make them."""
    if not torch.isfinite(expected).all():
        return False
    similarity = torch.cosine_similarity(found.double(), expected.double(), dim=-1)
    return bool((similarity > 1 - 4 * torch.finfo(expected.dtype).eps).all())


def _line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Run on another stream, as torch wants it before a capture."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
