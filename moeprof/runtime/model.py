"""A model that runs under a placement: its forward, its tokenizer and its counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moeprof.checkpoint import Checkpoint
from moeprof.checkpoint.kv_cache import accepted, cache_name, cache_of
from moeprof.placement.manifest import Placement
from moeprof.placement.tier import Tier
from moeprof.runtime.meter import Meter
from moeprof.runtime.split import SplitExperts
from moeprof.runtime.stores import SlotTable, Store
from moeprof.runtime.vram import VramReport


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward gives.

    Attributes:
        logits: [V] of the last position, on the model's device.
        cache: the model's cache for the next step; None where none was asked for.
    """

    logits: Tensor
    cache: Any


@dataclass(frozen=True, slots=True)
class SplitModel:
    """A transformers model whose experts live in stores; `load_split` makes one.

    Attributes:
        model: the transformers model, with experts computed by the stores.
        checkpoint: the files it came from.
        experts: its experts, split over tiers.
        meter: what it routed so far.
        device: of everything outside the experts and of the vram tier.
        dtype: element type of activations and of the weights outside the experts.
        dense_format: of the linear layers outside the experts, `q8_0` or `stored` for `dtype`.
    """

    model: PreTrainedModel
    checkpoint: Checkpoint
    experts: SplitExperts
    meter: Meter
    device: torch.device
    dtype: torch.dtype
    dense_format: str

    @property
    def stores(self) -> Mapping[Tier, Store]:
        """The experts of each tier."""
        return self.experts.stores

    @property
    def table(self) -> SlotTable:
        """Which slot holds each cell."""
        return self.experts.table

    @torch.inference_mode()
    def forward(
        self,
        token_ids: list[int],
        phase: str,
        cache: Any = None,  # noqa: ANN401
        position: int = 0,
        keep_cache: bool = True,
    ) -> Step:
        """Feed consecutive tokens of one sequence and count what they route.

        Args:
            token_ids: one or more.
            phase: `prefill` or `decode`; only counted.
            cache: of the tokens before; None at the start of a sequence.
            position: place of the first token in its sequence.
            keep_cache: whether a cache is wanted.

        Raises:
            UnsupportedModelError: a layer did not go through its experts, or no cache came back.
        """
        names = accepted(type(self.model).forward)
        ids = torch.tensor([token_ids], device=self.device)
        options: dict[str, Any] = {"use_cache": keep_cache}
        if cache is not None:
            options[cache_name(self.model)] = cache
        if "position_ids" in names:
            end = position + len(token_ids)
            options["position_ids"] = torch.arange(position, end, device=self.device)[None]
        if "logits_to_keep" in names:
            options["logits_to_keep"] = 1
        self.meter.begin(phase, len(token_ids))
        output = self.model(input_ids=ids, **options)
        self.meter.finish()
        kept = cache_of(self.model, output) if keep_cache else None
        return Step(output.logits[0, -1], kept)

    def synchronize(self) -> None:
        """Wait until the device has finished, which on the host it always has.

        Raises:
            NativeError: experts could not be computed since the last time.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.experts.check()


@dataclass(frozen=True, slots=True)
class LoadedModel(SplitModel):
    """A model split as a placement says; `load` makes one.

    Attributes:
        placement: where its experts live, and what was predicted of that.
        vram: what it takes of the card beside the plan; None without a card.
    """

    placement: Placement
    vram: VramReport | None = None
