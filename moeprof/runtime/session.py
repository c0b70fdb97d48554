"""Generating text with a loaded model, prefill and decode timed apart."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from moeprof.placement.manifest import Placement
from moeprof.runtime.loader import LoadOptions, load, planned_checkpoint
from moeprof.runtime.model import LoadedModel
from moeprof.runtime.prompts import Message, Prompts
from moeprof.runtime.report import RunReport, make_report
from moeprof.runtime.sampling import Sampler, Sampling, TextStream
from moeprof.runtime.sequence import Sequence
from moeprof.trace.schema import PHASES

Write = Callable[[str], object]
_INTERRUPT = "interrupt"


@dataclass(frozen=True, slots=True)
class Generation:
    """What one prompt gave.

    Attributes:
        token_ids: generated tokens; the last is the end token where that ended it.
        text: their text.
        stopped_by: `eos`, `max_new_tokens`, `context` where the planned context was full,
            `positions` where that of the model was, or `interrupt`.
    """

    token_ids: tuple[int, ...]
    text: str
    stopped_by: str

    @property
    def is_interrupted(self) -> bool:
        """Whether `Session.interrupt` ended it."""
        return self.stopped_by == _INTERRUPT


class Session:
    """One model and what it generated so far.

    Attributes:
        loaded: the model.
        prompts: turns texts into its tokens.
        generations: one for each prompt, in order.

    Args:
        loaded: a model from `load`.
        compiled: whether to compile the layers of a decode step on CUDA.
        prompts: of the model, where they were needed before it was loaded.
    """

    def __init__(
        self, loaded: LoadedModel, compiled: bool = True, prompts: Prompts | None = None
    ) -> None:
        self.loaded = loaded
        context = loaded.placement.budget.context_tokens
        self.prompts = prompts or Prompts(loaded.checkpoint, context)
        self._compiled = compiled
        self.generations: list[Generation] = []
        self._seconds = [0.0] * len(PHASES)
        self._is_interrupted = False

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """See `Prompts.tokenizer`."""
        return self.prompts.tokenizer

    @cached_property
    def sequence(self) -> Sequence:
        """What is fed; on CUDA it is made ready for decoding, which takes a moment."""
        context = self.loaded.placement.budget.context_tokens
        return Sequence(self.loaded, context, self._compiled)

    def generate(self, prompt: str, sampling: Sampling, write: Write | None = None) -> Generation:
        """Continue a text.

        Args:
            prompt: the text.
            sampling: how tokens are chosen.
            write: called with each piece of generated text as it comes.

        Raises:
            MoeprofError: the prompt has no tokens, or fills the planned context or the model's.
        """
        return self._continue(self.prompts.text(prompt), sampling, write)

    def reply(
        self, messages: list[Message], sampling: Sampling, write: Write | None = None
    ) -> Generation:
        """Answer a conversation through the model's chat template.

        Args:
            messages: each with `role` and `content`.
            sampling: how tokens are chosen.
            write: called with each piece of generated text as it comes.

        Raises:
            UnsupportedModelError: the tokenizer has no chat template, or it fails or refuses them.
            CapacityError: the conversation fills the planned context or that of the model.
        """
        return self._continue(self.prompts.conversation(messages), sampling, write)

    def interrupt(self) -> None:
        """End the generation that is running after the token it is at; for signal handlers."""
        self._is_interrupted = True

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of a block to a phase; the device is waited for at both ends only."""
        self.loaded.synchronize()
        begin = time.perf_counter()
        yield
        self.loaded.synchronize()
        self._seconds[PHASES.index(phase)] += time.perf_counter() - begin

    def report(self) -> RunReport:
        """What was measured so far."""
        last = self.generations[-1:]
        return replace(
            make_report(self.loaded, self._seconds),
            token_ids=tuple(token for g in self.generations for token in g.token_ids),
            text="".join(g.text for g in self.generations),
            stopped_by=last[0].stopped_by if last else None,
        )

    def _continue(
        self, token_ids: list[int], sampling: Sampling, write: Write | None
    ) -> Generation:
        self._is_interrupted = False
        pieces: list[str] = []

        def keep(piece: str) -> None:
            pieces.append(piece)
            if write is not None:
                write(piece)

        stream = TextStream(self.tokenizer, keep)
        generated, stopped_by = self._decode(token_ids, sampling, stream.push)
        stream.end()
        generation = Generation(tuple(generated), "".join(pieces), stopped_by)
        self.generations.append(generation)
        return generation

    def _decode(
        self, token_ids: list[int], sampling: Sampling, push: Callable[[int], None]
    ) -> tuple[list[int], str]:
        """Prefill, then one token at a time; the last token is not fed any more."""
        sampler, ends = Sampler(sampling), self._end_tokens()
        sequence = self.sequence
        room, at_its_end = self.prompts.room(len(token_ids))
        limit = min(sampling.max_new_tokens, room)
        with self.timed(PHASES[0]):
            generated = [sampler.draw(sequence.prefill(token_ids))]
        with self.timed(PHASES[1]):
            while generated[-1] not in ends:
                push(generated[-1])
                if self._is_interrupted:
                    return generated, _INTERRUPT
                if len(generated) == limit:
                    return generated, at_its_end if limit == room else "max_new_tokens"
                generated.append(sampler.draw(sequence.step(generated[-1])))
        return generated, "eos"

    def _end_tokens(self) -> frozenset[int]:
        model = self.loaded.model
        declared = getattr(model.generation_config, "eos_token_id", None)
        if declared is None:
            declared = self.tokenizer.eos_token_id
        if declared is None:
            return frozenset()
        return frozenset(declared if isinstance(declared, list) else [declared])


def run(
    placement: Placement,
    prompt: str,
    *,
    model: str | Path | None = None,
    sampling: Sampling | None = None,
    **options: Unpack[LoadOptions],
) -> RunReport:
    """Load a model under a placement, continue a text, and report what was measured.

    Args:
        placement: which expert lives in which tier.
        prompt: the text.
        model: directory or hub id; None for the one that the placement names.
        sampling: how tokens are chosen; None for 128 greedy tokens.
        options: see `LoadOptions`.

    Raises:
        PlacementError: the placement is for another checkpoint, or uses the nvme tier.
        UnsupportedModelError: the model cannot be found or run.
        CapacityError: as `load`, or the prompt fills the context.
        MoeprofError: the prompt has no tokens.
    """
    checkpoint = planned_checkpoint(placement, model)
    prompts = Prompts(checkpoint, placement.budget.context_tokens)
    prompts.text(prompt)
    session = Session(load(placement, checkpoint, **options), prompts=prompts)
    session.generate(prompt, sampling or Sampling())
    return session.report()
