"""Feeding batches of windows to a model while its routing is tapped.

The batches are our own, so that the sequence, position and phase of every row are known and need
not be inferred; padding is on the right and never recorded.
"""

import hashlib
import inspect
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeprof.capture.routing import Routed, RoutingTap
from moeprof.capture.windows import Window
from moeprof.errors import UnsupportedModelError
from moeprof.model_shape import ModelShape
from moeprof.trace.schema import CaptureSettings
from moeprof.trace.writer import TokenBlock


class Engine:
    """A model whose routing is recorded batch by batch; use as a context manager.

    Args:
        model: a causal language model of transformers, in evaluation mode on its device.
        settings: how it is driven.
        shape: the numbers that its routing must have.

    Raises:
        UnsupportedModelError: the model has no MoE layer, or not the layers of `shape`.
    """

    def __init__(self, model: nn.Module, settings: CaptureSettings, shape: ModelShape) -> None:
        self.model = model
        self.settings = settings
        self.shape = shape
        self.tap = RoutingTap(model)
        if self.tap.layers != shape.moe_layers:
            raise UnsupportedModelError(
                f"{shape.model_type}: routing seen in layers {self.tap.layers}, "
                f"the checkpoint has experts in {shape.moe_layers}"
            )
        self._device = next(model.parameters()).device
        parameters = inspect.signature(model.forward).parameters
        self._forward_options: dict[str, Any] = {"use_cache": False}
        if "logits_to_keep" in parameters:
            self._forward_options["logits_to_keep"] = 1

    def __enter__(self) -> Self:
        self.tap.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.tap.__exit__(kind, error, traceback)

    def run(self, batch: list[Window], sequences: list[int], ordinal: int) -> TokenBlock:
        """Feed one batch and return what was routed.

        Args:
            batch: the windows; of equal length when tokens are generated.
            sequences: the sequence number of each window's document.
            ordinal: index of the first window in its domain; seeds the sampling, so that a
                resumed trace samples as an uninterrupted one.

        Raises:
            UnsupportedModelError: a layer stayed silent, or rows cannot be told apart.
        """
        with torch.inference_mode():
            if self.settings.generate:
                return self._generate(batch, sequences, ordinal)
            return self._prefill(batch, sequences)

    def _prefill(self, batch: list[Window], sequences: list[int]) -> TokenBlock:
        lengths = np.array([len(window.token_ids) for window in batch])
        width = int(lengths.max())
        token_ids = np.zeros((len(batch), width), np.int64)
        valid = np.arange(width) < lengths[:, None]
        token_ids[valid] = np.concatenate([window.token_ids for window in batch])
        self.model(
            input_ids=torch.from_numpy(token_ids).to(self._device),
            attention_mask=torch.from_numpy(valid.astype(np.int64)).to(self._device),
            **self._forward_options,
        )
        rows = np.flatnonzero(valid)
        experts, weights = self._to_host([self.tap.take()], [rows], [token_ids.size])
        starts = np.array([window.start for window in batch])
        return TokenBlock(
            sequence=np.repeat(np.array(sequences, np.uint32), lengths),
            position=(np.arange(width) + starts[:, None])[valid].astype(np.uint32),
            token_id=token_ids[valid].astype(np.uint32),
            phase=np.zeros(len(rows), np.uint8),
            experts=experts,
            weights=weights,
        )

    def _generate(self, batch: list[Window], sequences: list[int], ordinal: int) -> TokenBlock:
        prompt = torch.tensor([window.token_ids for window in batch], device=self._device)
        steps: list[Routed] = []
        hook = self.model.register_forward_hook(lambda *_: steps.append(self.tap.take()))
        try:
            with torch.random.fork_rng(devices=self._rng_devices()):
                torch.manual_seed(_batch_seed(self.settings.seed, ordinal))
                output = cast(Any, self.model).generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    generation_config=self._generation_config(),
                )
        finally:
            hook.remove()
        return self._block_of_generation(batch, sequences, steps, output.cpu())

    def _generation_config(self) -> object:
        from transformers import GenerationConfig

        pad = getattr(getattr(self.model, "generation_config", None), "pad_token_id", None)
        if pad is None:
            pad = self._end_tokens[0] if self._end_tokens else 0
        sampled = self.settings.temperature > 0
        return GenerationConfig(
            # The last token is never fed, so one more than is recorded.
            max_new_tokens=self.settings.generate + 1,
            do_sample=sampled,
            temperature=self.settings.temperature if sampled else 1.0,
            top_k=0,
            top_p=1.0,
            num_beams=1,
            eos_token_id=self._end_tokens or None,
            pad_token_id=pad,
            disable_compile=True,
        )

    @property
    def _end_tokens(self) -> list[int]:
        end = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        if end is None:
            return []
        return list(end) if isinstance(end, list) else [end]

    def _rng_devices(self) -> list[torch.device]:
        return [self._device] if self._device.type == "cuda" else []

    def _block_of_generation(
        self, batch: list[Window], sequences: list[int], steps: list[Routed], output: Tensor
    ) -> TokenBlock:
        num_rows, prompt_length = len(batch), len(batch[0].token_ids)
        fed = output[:, : prompt_length + len(steps) - 1].numpy()
        alive = self._alive(fed[:, prompt_length:])
        rows = [np.arange(num_rows * prompt_length)]
        rows += [np.flatnonzero(alive[:, step]) for step in range(len(steps) - 1)]
        fed_rows = [num_rows * prompt_length] + [num_rows] * (len(steps) - 1)
        experts, weights = self._to_host(steps, rows, fed_rows)
        sequence = [np.repeat(np.array(sequences), prompt_length)]
        position = [np.tile(np.arange(prompt_length), num_rows)]
        token_id = [fed[:, :prompt_length].reshape(-1)]
        for step, kept in enumerate(rows[1:]):
            sequence.append(np.array(sequences)[kept])
            position.append(np.full(len(kept), prompt_length + step))
            token_id.append(fed[kept, prompt_length + step])
        num_prefill, num_tokens = num_rows * prompt_length, sum(map(len, rows))
        return TokenBlock(
            sequence=np.concatenate(sequence).astype(np.uint32),
            position=np.concatenate(position).astype(np.uint32),
            token_id=np.concatenate(token_id).astype(np.uint32),
            phase=(np.arange(num_tokens) >= num_prefill).astype(np.uint8),
            experts=experts,
            weights=weights,
        )

    def _alive(self, generated: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[B, steps] bool: the token was fed before its sequence ended."""
        ended = np.isin(generated, np.array(self._end_tokens, np.int64))
        alive: NDArray[np.bool_] = ~np.logical_or.accumulate(ended, axis=1)
        return alive

    def _to_host(
        self, steps: list[Routed], rows: list[NDArray[np.int64]], fed_rows: list[int]
    ) -> tuple[NDArray[np.uint16], NDArray[np.float16] | None]:
        """The wanted rows of every step as [L, T, K] arrays; one copy from the device a step.

        Args:
            steps: what each forward routed.
            rows: for each step, which of its rows are tokens to record.
            fed_rows: for each step, how many rows the model was fed.
        """
        experts, weights = [], []
        for step, wanted, num_rows in zip(steps, rows, fed_rows, strict=True):
            if step.ids.shape[1] != num_rows or step.ids.shape[2] != self.shape.top_k:
                raise UnsupportedModelError(
                    f"{self.shape.model_type}: a forward routed {tuple(step.ids.shape)} "
                    f"(layers, rows, slots), expected {num_rows} rows, {self.shape.top_k} slots",
                    "its rows cannot be told apart; please report the model",
                )
            ids = step.ids.to(torch.int32).cpu().numpy()
            experts.append(ids[:, wanted].astype(np.uint16))
            if self.settings.weights:
                weights.append(step.weights.to(torch.float16).cpu().numpy()[:, wanted])
        if not self.settings.weights:
            return np.concatenate(experts, axis=1), None
        return np.concatenate(experts, axis=1), np.concatenate(weights, axis=1)


def _batch_seed(seed: int, ordinal: int) -> int:
    """32 bits, since torch's CPU generator ignores the others."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{ordinal}".encode()).digest()[:4])
