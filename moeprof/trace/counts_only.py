"""Traces that are counts alone: what can be imported from a source without rows."""

from dataclasses import replace
from hashlib import file_digest
from pathlib import Path

import pyarrow.parquet as pq

from moeprof.errors import TraceError, WriteError
from moeprof.trace import schema
from moeprof.trace.tally import Tally

_IMPORT = "import it anew"


def write_counts(path: Path, metadata: schema.TraceMetadata, tally: Tally) -> None:
    """Write a trace of counts alone into an empty folder.

    Args:
        path: the folder.
        metadata: whose origin says that rows are missing, and has any `counts_sha256`.
        tally: the counts.

    Raises:
        TraceError: the counts do not fit the tokens that the domains state, or the disk fails.
    """
    if metadata.origin is None or metadata.has_rows:
        raise ValueError("a trace of counts alone needs an origin without rows")
    check_sums(metadata, sum(int(counts.sum()) for counts in tally.assignments.values()))
    counts = path / schema.COUNTS_FILE
    try:
        path.mkdir(parents=True, exist_ok=True)
        pq.write_table(tally.to_table(schema.parts_digest(())), counts, compression="zstd")
        origin = replace(metadata.origin, counts_sha256=_sha256(counts))
        text = replace(metadata, origin=origin).to_json()
        (path / schema.METADATA_FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise WriteError(
            f"{path}: cannot write ({error.strerror or error})", "free space, or write elsewhere"
        ) from error


def check_unchanged(path: Path, metadata: schema.TraceMetadata) -> None:
    """Compare counts.parquet, where it is all that a trace has, with its hash.

    Raises:
        TraceError: they differ.
    """
    origin = metadata.origin
    if origin is None or origin.counts_sha256 != _sha256(path):
        raise TraceError(f"{path}: content differs from its hash in trace.json", _IMPORT)


def check_sums(metadata: schema.TraceMetadata, found: int) -> None:
    """Compare the assignments that were counted with the tokens that `metadata` states.

    Raises:
        TraceError: they do not fit.
    """
    shape = metadata.shape
    tokens = sum(sum(domain.tokens) for domain in metadata.domains)
    expected = tokens * shape.top_k * shape.num_moe_layers
    complete = "assignments" not in metadata.missing
    if found > expected or (complete and found != expected):
        raise TraceError(
            f"{found} assignments counted, expected {expected} "
            f"({tokens} tokens x {shape.top_k} x {shape.num_moe_layers} layers)",
            _IMPORT,
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()
