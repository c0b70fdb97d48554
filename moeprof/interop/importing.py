"""From foreign files to a trace: read, check, and only then put in place."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.checks import check_counts, check_tokens, empty_slots
from moeprof.interop.formats import FORMATS
from moeprof.interop.model import ImportedModel, imported_model
from moeprof.interop.placing import placed, said_of_output
from moeprof.interop.source import STAND_IN_PHASE, Counted, Facts, Source, Tokens, is_ranked
from moeprof.interop.suspicion import suspicions
from moeprof.trace import Trace, open_trace, schema
from moeprof.trace.counts_only import write_counts
from moeprof.trace.origin import UNSAID, Origin
from moeprof.trace.tally import Tally
from moeprof.trace.writer import PART_BYTES, Document, TokenBlock, TraceWriter

_DOMAIN = re.compile(r"[A-Za-z0-9_.-]+")
_DOING = "imported"
Tell = Callable[[str], object]


def import_trace(
    format_name: str,
    files: Sequence[Path],
    output: Path,
    facts: Facts,
    force: bool = False,
    tell: Tell = lambda note: None,
) -> Trace:
    """Make a trace of files in a foreign format.

    Args:
        format_name: of `FORMATS`.
        files: what to read, one document or more each.
        output: the trace directory; it appears only when the trace is complete and checked.
        facts: what the files do not say.
        force: replace a trace that is there.
        tell: called with each sentence that the user of the trace should know.

    Returns:
        The finished trace.

    Raises:
        TraceError: a file cannot be read or fails the self-check, something that neither files nor
            facts say is needed, or the output is there or cannot be written.
        ValueError: no such format.
    """
    if format_name not in FORMATS:
        raise ValueError(f"format {format_name!r}, expected one of {', '.join(FORMATS)}")
    if not _DOMAIN.fullmatch(facts.domain):
        raise TraceError(
            f"domain {facts.domain!r}: a name has letters, digits, _ . and - only",
            "rename it with --domain NAME",
        )
    _check_files(files)
    check_free = partial(_check_free, force=force)
    with said_of_output(output, _DOING):
        check_free(output)
    notes: list[str] = []
    source, model, origin = _read(format_name, files, facts, notes.append)
    with placed(output, check_free, _DOING) as unfinished:
        if source.counted:
            _write_counted(unfinished, source, model, facts, origin)
        else:
            _write_tokens(unfinished, source, model, facts, origin)
    for note in notes:
        tell(note)
    return open_trace(output)


def _check_files(files: Sequence[Path]) -> None:
    seen: set[str] = set()
    for path in files:
        real = os.path.realpath(path)
        if real in seen:
            raise TraceError(
                f"{path}: is named twice, its tokens would count twice", "name each file once"
            )
        seen.add(real)


def _read(
    format_name: str, files: Sequence[Path], facts: Facts, tell: Tell
) -> tuple[Source, ImportedModel, Origin]:
    """What the files hold, checked, with what it is of and where it came from."""
    try:
        source = _cut(FORMATS[format_name].read(files, facts), facts)
    except MemoryError as error:
        raise TraceError(
            f"{files[0]}: needs more memory than there is",
            "take fewer tokens with --max-tokens N, or check that the file is what it should be",
        ) from error
    model = _model(source, facts, files)
    missing = _missing(source, model, facts)
    histogram = _histogram(source, model)
    if "phase" in missing:
        tell("nothing says whether the tokens were prefill or decode; --phase does")
    for note in (*source.notes, *model.notes, *suspicions(histogram, model.shape.top_k)):
        tell(note)
    origin = Origin(
        format=format_name,
        files=tuple(_name(path.name) for path in files),
        missing=tuple(word for word in UNSAID if word in missing),
        counts_sha256="" if "rows" in missing else None,
    )
    return source, model, origin


def _name(name: str) -> str:
    """A file's name as UTF-8 can hold it; names on disk are bytes, and may be anything."""
    return name.encode("utf-8", errors="replace").decode("utf-8")


def _cut(source: Source, facts: Facts) -> Source:
    """The first tokens of a source, in documents of the length that was given."""
    if facts.max_tokens is None and facts.document_tokens is None:
        return source
    if source.counted:
        raise TraceError(
            "--max-tokens and --document-tokens: the files hold counts, not tokens",
            "leave them out",
        )
    documents, left = [], facts.max_tokens
    for tokens in source.documents:
        if left == 0:
            break
        taken = tokens.num_tokens if left is None else min(left, tokens.num_tokens)
        length = facts.document_tokens or taken
        documents += [
            tokens.between(begin, min(begin + length, taken), facts.document_tokens is not None)
            for begin in range(0, taken, max(length, 1))
        ]
        left = None if left is None else left - taken
    return replace(source, documents=documents)


def _model(source: Source, facts: Facts, files: Sequence[Path]) -> ImportedModel:
    if not source.documents and not source.counted:
        raise TraceError(f"{files[0]}: holds no tokens", "name files with routing")
    if source.documents:
        num_rows, _, slots = source.documents[0].experts.shape
        return imported_model(source.stated, facts, num_rows, slots, _name(files[0].name))
    num_rows, width = source.counted[0].counts.shape
    stated = replace(source.stated, num_experts=source.stated.num_experts or width)
    return imported_model(stated, facts, num_rows, None, _name(files[0].name))


def _missing(source: Source, model: ImportedModel, facts: Facts) -> frozenset[str]:
    """Words for all that neither files, user nor checkpoint say, after checking what they do."""
    missing = set(source.missing | model.missing)
    unsaid = any(tokens.phase is None for tokens in source.documents)
    if unsaid or any(entry.phase is None for entry in source.counted):
        if facts.phase is None:
            missing.add("phase")
    elif facts.phase is not None:
        raise TraceError("--phase: the files say the phase of their tokens", "leave it out")
    if source.counted:
        complete = check_counts(source.counted, model.shape)
        return frozenset(missing | {"rows", "order", "weights", "token_ids", "rank"}) | (
            frozenset() if complete else {"assignments"}
        )
    check_tokens(source.documents, model.shape)
    if any(empty_slots(tokens) for tokens in source.documents):
        missing.add("assignments")
    if not is_ranked(source.documents):
        missing.add("rank")
    if any(tokens.token_id is None for tokens in source.documents):
        missing.add("token_ids")
    if any(tokens.weights is None for tokens in source.documents):
        missing.add("weights")
    return frozenset(missing)


def _histogram(source: Source, model: ImportedModel) -> NDArray[np.int64]:
    """[L, E] int64: assignments of everything that was read."""
    shape = model.shape
    counts = np.zeros((shape.num_moe_layers, shape.num_experts), np.int64)
    for counted in source.counted:
        counts += counted.counts
    for tokens in source.documents:
        for row, experts in enumerate(tokens.experts):
            ids = experts[experts != schema.NO_EXPERT]
            counts[row] += np.bincount(ids, minlength=shape.num_experts)
    return counts


def _write_tokens(
    path: Path, source: Source, model: ImportedModel, facts: Facts, origin: Origin
) -> None:
    documents = [_with_phase(tokens, facts) for tokens in source.documents]
    capture = _capture(documents, with_weights="weights" not in origin.missing)
    domain = schema.Domain(facts.domain, origin.files)
    metadata = _metadata(model, capture, domain, origin)
    group = -1
    held = 0
    with TraceWriter(path, metadata) as writer:
        for sequence, tokens in enumerate(documents):
            group += not (tokens.continues and sequence > 0)
            document = Document(sequence, _name(tokens.name), group % schema.NUM_DOCUMENT_GROUPS)
            block = _block(sequence, tokens, capture.weights)
            writer.append(block, [document])
            held += block.num_bytes
            decode = tokens.num_decode
            prefill, before = domain.tokens
            domain = replace(
                domain,
                windows=sequence + 1,
                documents=sequence + 1,
                tokens=(prefill + tokens.num_tokens - decode, before + decode),
                complete=sequence + 1 == len(documents),
            )
            if domain.complete or held >= PART_BYTES:
                writer.commit(domain)
                held = 0
        writer.finish()


def _write_counted(
    path: Path, source: Source, model: ImportedModel, facts: Facts, origin: Origin
) -> None:
    counted = [_counted_phase(entry, facts) for entry in source.counted]
    tokens = [0, 0]
    domain = schema.Domain(facts.domain, origin.files)
    metadata = _metadata(model, _capture([], with_weights=False), domain, origin)
    tally = Tally(metadata)
    for index, (counts, phase) in enumerate(counted):
        tally.assignments[domain.name][index % schema.NUM_DOCUMENT_GROUPS, phase] += counts
        busiest = int(counts.sum(axis=1).max())
        tokens[phase] += -(-busiest // model.shape.top_k)
    domain = replace(
        domain,
        windows=len(counted),
        documents=len(counted),
        tokens=(tokens[0], tokens[1]),
        complete=True,
    )
    write_counts(path, replace(metadata, domains=(domain,)), tally)


def _counted_phase(entry: Counted, facts: Facts) -> tuple[NDArray[np.int64], int]:
    return entry.counts, _phase_index(facts) if entry.phase is None else entry.phase


def _with_phase(tokens: Tokens, facts: Facts) -> Tokens:
    if tokens.phase is not None:
        return tokens
    return replace(tokens, phase=np.full(tokens.num_tokens, _phase_index(facts), np.uint8))


def _phase_index(facts: Facts) -> int:
    return STAND_IN_PHASE if facts.phase is None else schema.PHASES.index(facts.phase)


def _block(sequence: int, tokens: Tokens, with_weights: bool) -> TokenBlock:
    num_tokens = tokens.num_tokens
    token_id = np.zeros(num_tokens, np.uint32) if tokens.token_id is None else tokens.token_id
    phase = np.zeros(num_tokens, np.uint8) if tokens.phase is None else tokens.phase
    return TokenBlock(
        sequence=np.full(num_tokens, sequence, np.uint32),
        position=tokens.positions,
        token_id=token_id,
        phase=phase,
        experts=tokens.experts,
        weights=tokens.weights if with_weights else None,
    )


def _capture(documents: Sequence[Tokens], with_weights: bool) -> schema.CaptureSettings:
    """Settings under which every prompt is one window, whatever position it begins at."""
    last, prompts, generated = 0, 1, 0
    for tokens in documents:
        last = max(last, int(tokens.positions.max(initial=0)))
        generated = max(generated, tokens.num_decode)
        prompts = max(prompts, tokens.num_tokens - tokens.num_decode)
    return schema.CaptureSettings(
        sequence_length=last + 1,
        batch_size=1,
        max_tokens=None,
        generate=generated,
        prompt_tokens=prompts,
        temperature=0.0,
        seed=0,
        weights=with_weights,
        dtype="unknown",
        device="unknown",
        text_column="",
    )


def _metadata(
    model: ImportedModel, capture: schema.CaptureSettings, domain: schema.Domain, origin: Origin
) -> schema.TraceMetadata:
    return schema.TraceMetadata(
        model=model.identity,
        shape=model.shape,
        capture=capture,
        domains=(domain,),
        machine={},
        origin=origin,
    )


def _check_free(output: Path, force: bool) -> None:
    """Refuse an output that is something else than a trace, or one that may not be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / schema.METADATA_FILE).is_file():
        raise TraceError(f"{output}: exists and is not a trace", "choose another output")
    if not force:
        raise TraceError(f"{output}: already exists", "choose another -o, or add --force")
