"""Tracing: drive a model over a corpus and write down what every MoE layer routed."""

import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import torch
import transformers
from torch import nn

from moeprof.capture.corpora import CorpusDomain, open_corpus, printable
from moeprof.capture.engine import Engine
from moeprof.capture.windows import Window, batches, chain_digest, encoder, windows
from moeprof.checkpoint import Checkpoint, load_tokenizer, read_checkpoint
from moeprof.checkpoint.device import resolve_device
from moeprof.checkpoint.loading import load_model
from moeprof.checkpoint.skeleton import build_skeleton, load_config
from moeprof.checkpoint.weights import TensorReader, element_type, lazy_weights
from moeprof.errors import TraceError, UnsupportedModelError
from moeprof.trace import Trace, open_trace, schema
from moeprof.trace.writer import PART_BYTES, Document, TraceWriter


class Progress(Protocol):
    """What a caller may show while tracing goes on."""

    def advance(self, domain: str, tokens: int, fraction: float | None) -> None:
        """Called after each batch.

        Args:
            domain: being traced.
            tokens: tokens of it recorded so far, both phases, by earlier runs too.
            fraction: share of it that is done; None where its length is unknown.
        """


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """What to trace and how.

    Attributes:
        model: local directory or hub id.
        data: `[DOMAIN=]SPEC` each, see `open_corpus`.
        output: the trace directory.
        settings: how the model is driven; `dtype` may be `auto`, `device` may be `auto`.
        resume: continue a trace that was interrupted.
        force: replace a trace that is there.
        skip_empty: leave documents without tokens out instead of refusing them.
        commit_seconds: rows are made durable at least this often.
    """

    model: str
    data: tuple[str, ...]
    output: Path
    settings: schema.CaptureSettings
    resume: bool = False
    force: bool = False
    skip_empty: bool = False
    commit_seconds: float = 30.0


def trace(request: TraceRequest, progress: Progress | None = None) -> Trace:
    """Record which experts the model chooses on the data.

    Args:
        request: what to trace and how.
        progress: told after each batch.

    Returns:
        The finished trace.

    Raises:
        TraceError: the data cannot be read, the output exists, cannot be written, or is a trace of
            something else than `resume` was asked for.
        UnsupportedModelError: the model cannot be found, has no MoE layer or routes in an unknown
            way.
    """
    _check_settings(request)
    existing = _existing_trace(request)
    corpus = open_corpus(request.data, request.settings.text_column)
    checkpoint = read_checkpoint(request.model)
    settings = _resolved(request.settings, checkpoint)
    metadata = _metadata(settings, corpus, checkpoint)
    if existing is not None:
        metadata = _resumed(existing, metadata)
    encode = encoder(load_tokenizer(checkpoint.path), settings)
    streams = {
        domain.name: windows(domain, encode, settings, skip_empty=request.skip_empty)
        for domain in corpus
    }
    engine = Engine(_load_model(checkpoint, settings), settings, metadata.shape)
    with _output(request, metadata) as writer, engine:
        sequence = 0
        for domain in corpus:
            entry = next(d for d in writer.metadata.domains if d.name == domain.name)
            session = _DomainSession(writer, engine, domain, entry, sequence)
            session.run(streams[domain.name], request.commit_seconds, progress)
            sequence += session.entry.documents
        return writer.finish()


class _DomainSession:
    """One domain being traced: its progress, and the batches that are still to come."""

    def __init__(
        self,
        writer: TraceWriter,
        engine: Engine,
        domain: CorpusDomain,
        entry: schema.Domain,
        first_sequence: int,
    ) -> None:
        self.writer = writer
        self.engine = engine
        self.domain = domain
        self.entry = entry
        self.first_sequence = first_sequence

    def run(
        self, stream: Iterator[Window], commit_seconds: float, progress: Progress | None
    ) -> None:
        """Trace the rest of the domain and commit it."""
        self._skip_recorded(stream)
        if self.entry.complete:
            return
        committed = time.monotonic()
        for batch in batches(stream, self.engine.settings):
            self._record(batch)
            if progress is not None:
                tokens = sum(self.entry.tokens)
                progress.advance(self.entry.name, tokens, self._fraction(batch[-1]))
            due = time.monotonic() - committed >= commit_seconds
            if due or self.writer.buffered_bytes >= PART_BYTES:
                self.writer.commit(self.entry)
                committed = time.monotonic()
        self.entry = replace(self.entry, complete=True)
        self.writer.commit(self.entry)

    def _skip_recorded(self, stream: Iterator[Window]) -> None:
        """Pass over what an earlier run recorded, and make sure that it is the same text."""
        digest = ""
        for _ in range(self.entry.windows):
            window = next(stream, None)
            if window is None:
                break
            digest = chain_digest(digest, window)
        longer = self.entry.complete and next(stream, None) is not None
        if longer or digest != self.entry.digest:
            raise TraceError(
                f"{self.writer.path}: the data of domain {self.entry.name} changed since the trace "
                "was begun",
                "restore the data, or trace anew with --force",
            )

    def _record(self, batch: list[Window]) -> None:
        documents = []
        for window in batch:
            sequence = self.first_sequence + window.document
            group = window.document % schema.NUM_DOCUMENT_GROUPS
            documents.append(Document(sequence, window.name, group))
        block = self.engine.run(batch, [d.sequence for d in documents], self.entry.windows)
        self.writer.append(block, documents)
        digest = self.entry.digest
        for window in batch:
            digest = chain_digest(digest, window)
        num_decode = int(block.phase.sum())
        prefill, decode = self.entry.tokens
        self.entry = replace(
            self.entry,
            windows=self.entry.windows + len(batch),
            documents=batch[-1].document + 1,
            tokens=(prefill + block.num_tokens - num_decode, decode + num_decode),
            digest=digest,
        )

    def _fraction(self, last: Window) -> float | None:
        shares = []
        if self.engine.settings.max_tokens is not None:
            shares.append(self.entry.tokens[0] / self.engine.settings.max_tokens)
        if self.domain.num_bytes:
            shares.append(last.num_bytes / self.domain.num_bytes)
        return min(max(shares), 1.0) if shares else None


def _check_settings(request: TraceRequest) -> None:
    settings = request.settings
    positive = ["sequence_length", "batch_size", "prompt_tokens"]
    if settings.max_tokens is not None:
        positive.append("max_tokens")
    for name in positive:
        if getattr(settings, name) < 1:
            raise TraceError(f"{name}: {getattr(settings, name)}, expected 1 or more")
    if settings.generate < 0 or settings.temperature < 0:
        raise TraceError("generate and temperature must not be negative")
    if request.resume and request.force:
        raise TraceError("--resume continues a trace and --force replaces it: give one of them")


def _existing_trace(request: TraceRequest) -> Trace | None:
    """The trace to resume; refuses an output that is in the way."""
    output = request.output
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if (output / schema.METADATA_FILE).is_file():
        if request.resume:
            return open_trace(output)
        if request.force:
            return None
        raise TraceError(
            f"{output}: already exists", "continue it with --resume, or replace it with --force"
        )
    raise TraceError(f"{output}: exists and is not a trace", "choose another output")


def _resolved(settings: schema.CaptureSettings, checkpoint: Checkpoint) -> schema.CaptureSettings:
    device = str(resolve_device(settings.device))
    limit = checkpoint.max_positions
    wanted = settings.sequence_length
    if settings.generate:
        wanted = settings.prompt_tokens + settings.generate
    if limit is not None and wanted > limit:
        options = "--prompt-tokens and --generate" if settings.generate else "--sequence-length"
        raise TraceError(
            f"{checkpoint.name}: its context is {limit} tokens, {wanted} were asked for",
            f"lower {options}",
        )
    dtype = checkpoint.compute_dtype if settings.dtype == "auto" else settings.dtype
    return replace(settings, device=device, dtype=dtype)


def _metadata(
    settings: schema.CaptureSettings, corpus: tuple[CorpusDomain, ...], checkpoint: Checkpoint
) -> schema.TraceMetadata:
    return schema.TraceMetadata(
        model=schema.ModelIdentity(
            checkpoint.name, checkpoint.fingerprint, checkpoint.tokenizer_hash
        ),
        shape=checkpoint.shape,
        capture=settings,
        domains=tuple(
            schema.Domain(domain.name, tuple(map(printable, domain.sources))) for domain in corpus
        ),
        machine={
            "processor": platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )


def _resumed(existing: Trace, wanted: schema.TraceMetadata) -> schema.TraceMetadata:
    """What the trace holds already, once everything that was asked for equals it."""
    found = existing.metadata
    if found.origin is not None:
        raise TraceError(
            f"{existing.path}: was imported from {found.origin.format}, only a trace recorded by "
            "moeprof can be resumed",
            "trace into another output, or replace it with --force",
        )
    changed = []
    if found.model.fingerprint != wanted.model.fingerprint:
        changed.append("the model")
    if found.model.tokenizer_hash != wanted.model.tokenizer_hash:
        changed.append("the tokenizer")
    if [(d.name, d.sources) for d in found.domains] != [
        (d.name, d.sources) for d in wanted.domains
    ]:
        changed.append("the data arguments")
    for field in fields(schema.CaptureSettings):
        before, now = getattr(found.capture, field.name), getattr(wanted.capture, field.name)
        if before != now:
            option = "--" + field.name.replace("_", "-")
            changed.append(f"{option} (was {before}, is {now})")
    if changed:
        raise TraceError(
            f"{existing.path}: cannot be resumed, changed since it was begun: {', '.join(changed)}",
            "repeat the command as it was, or trace anew with --force",
        )
    return found


@contextmanager
def _output(request: TraceRequest, metadata: schema.TraceMetadata) -> Iterator[TraceWriter]:
    """The writer; a failure before anything was recorded leaves the output as it was."""
    output = request.output
    existed = output.exists()
    replaced = output.with_name(f".{output.name}.replaced")
    if request.force and existed:
        shutil.rmtree(replaced, ignore_errors=True)
        output.rename(replaced)
    try:
        with TraceWriter(output, metadata) as writer:
            yield writer
    except BaseException:
        nothing_recorded = output.is_dir() and not any(output.rglob("*.parquet"))
        if nothing_recorded and (request.force or not existed):
            shutil.rmtree(output)
        if nothing_recorded and replaced.exists():
            replaced.rename(output)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _load_model(checkpoint: Checkpoint, settings: schema.CaptureSettings) -> nn.Module:
    dtype = element_type(settings.dtype)
    if dtype is None:
        raise UnsupportedModelError(
            f"dtype {settings.dtype!r}: not a floating-point type that computes",
            "one of bfloat16, float16, float32",
        )
    skeleton = build_skeleton(load_config(checkpoint.path), dtype)
    try:
        with TensorReader(checkpoint.path) as reader:
            weights = lazy_weights(checkpoint.weights, reader, "weights")
            model: nn.Module = load_model(checkpoint.path, skeleton, weights, dtype)
        return model.to(settings.device)
    except torch.OutOfMemoryError as error:
        raise UnsupportedModelError(
            f"{checkpoint.name}: does not fit on {settings.device}",
            "trace it in host memory with --device cpu",
        ) from error
