"""Writing a trace so that a process killed at any moment leaves a readable one.

A part is written under a temporary name, synced and renamed; only then is `trace.json`, which
lists it, replaced in the same way. What `trace.json` does not list does not exist.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moeprof.errors import TraceError, WriteError
from moeprof.native import NO_EXPERT, count_assignments
from moeprof.trace import schema
from moeprof.trace.reader import Trace, open_trace
from moeprof.trace.tally import Tally
from moeprof.whole_files import PARTIAL_FILES, replacing

# Rows are held in memory up to this size before they become a part.
PART_BYTES = 64 * 2**20
_REPORT = "the model routes in a way moeprof does not know; please report it"


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """What every MoE layer routed for some tokens of one domain.

    Attributes:
        sequence: [T] uint32, document of each token.
        position: [T] uint32, place in its document.
        token_id: [T] uint32.
        phase: [T] uint8, index into `PHASES`.
        experts: [L, T, K] uint16 in rank order, `NO_EXPERT` where a slot is empty.
        weights: [L, T, K] float16, or None when weights are not recorded.
    """

    sequence: NDArray[np.uint32]
    position: NDArray[np.uint32]
    token_id: NDArray[np.uint32]
    phase: NDArray[np.uint8]
    experts: NDArray[np.uint16]
    weights: NDArray[np.float16] | None

    @property
    def num_tokens(self) -> int:
        """Tokens in the block (T)."""
        return len(self.sequence)

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays that grow with L."""
        return self.experts.nbytes + (0 if self.weights is None else self.weights.nbytes)


@dataclass(frozen=True, slots=True)
class Document:
    """A document as the trace names it."""

    sequence: int
    name: str
    document_group: int


class TraceWriter:
    """Appends to one trace directory; use as a context manager.

    Args:
        path: the trace directory, made if it does not exist.
        metadata: what the trace is of; of a resumed trace, what it already holds.

    Raises:
        TraceError: another process writes this trace, or the disk fails.
    """

    def __init__(self, path: Path, metadata: schema.TraceMetadata) -> None:
        self.path = path
        self.metadata = metadata
        self._blocks: list[TokenBlock] = []
        self._documents: dict[int, Document] = {}
        with _disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise TraceError(
                f"{path}: another process is writing this trace",
                "wait for it, or choose another output",
            ) from error
        self._remove_leftovers()
        self._tally = self._tally_of_parts()
        self._write_metadata()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._lock)

    @property
    def buffered_bytes(self) -> int:
        """Memory held by rows that are not yet on disk."""
        return sum(block.num_bytes for block in self._blocks)

    def append(self, block: TokenBlock, documents: list[Document]) -> None:
        """Check rows and hold them until the next commit.

        Args:
            block: rows of the domain that is being traced.
            documents: the documents that `block` has rows of.

        Raises:
            TraceError: an expert id is out of range or stands twice in a row.
        """
        self._check(block)
        self._documents |= {document.sequence: document for document in documents}
        self._blocks.append(block)

    def commit(self, domain: schema.Domain) -> None:
        """Make everything appended so far durable, as one part of `domain`.

        Args:
            domain: the domain's entry for `trace.json`, with the progress that the appended rows
                stand for.

        Raises:
            TraceError: the disk is full or fails; nothing half-written is left and what was
                committed before stays.
        """
        parts = self.metadata.parts
        if self._blocks:
            parts = (*parts, self._write_part(domain.name))
        domains = tuple(domain if d.name == domain.name else d for d in self.metadata.domains)
        self.metadata = replace(self.metadata, domains=domains, parts=parts)
        self._write_metadata()
        self._blocks.clear()
        self._documents.clear()

    def finish(self) -> Trace:
        """Write the sufficient statistics and open the finished trace.

        Raises:
            TraceError: the self-check failed, or the disk is full or fails.
        """
        self._tally.check(self.metadata)
        with self._replacing(self.path / schema.COUNTS_FILE) as temporary:
            pq.write_table(
                self._tally.to_table(schema.parts_digest(self.metadata.parts)),
                temporary,
                compression="zstd",
                write_page_checksum=True,
            )
        return open_trace(self.path)

    def _check(self, block: TokenBlock) -> None:
        shape = self.metadata.shape
        expected = (shape.num_moe_layers, block.num_tokens, shape.top_k)
        if block.experts.shape != expected:
            raise ValueError(f"experts has shape {block.experts.shape}, expected {expected}")
        no_group = np.zeros(block.num_tokens, np.uint32)
        for layer, experts in zip(shape.moe_layers, block.experts, strict=True):
            try:
                rows = np.ascontiguousarray(experts)
                counted = count_assignments(rows, no_group, 1, shape.num_experts)
            except ValueError as error:
                raise TraceError(
                    f"{self.path}: layer {layer}: {error}",
                    _REPORT,
                ) from error
            empty = int(np.count_nonzero(experts == NO_EXPERT))
            if int(counted.sum()) + empty != experts.size:
                raise TraceError(f"{self.path}: layer {layer}: assignments do not add up", _REPORT)

    def _write_part(self, domain: str) -> schema.Part:
        block = _in_document_order(self._blocks)
        duplicate = (np.diff(block.sequence) == 0) & (np.diff(block.position) == 0)
        if duplicate.any():
            row = int(np.flatnonzero(duplicate)[0])
            raise TraceError(
                f"{self.path}: sequence {block.sequence[row]} position {block.position[row]} "
                "was recorded twice",
                _REPORT,
            )
        self._tally.add(domain, block, self._groups_of(block.sequence))
        index = sum(1 for p in self.metadata.parts if p.path.startswith(f"domain={domain}/"))
        relative = f"domain={domain}/part-{index:05d}.parquet"
        target = self.path / relative
        with _disk_errors(self.path):
            target.parent.mkdir(exist_ok=True)
        with self._replacing(target) as temporary:
            write_rows(temporary, block, self.metadata, self._documents_json(block))
        with target.open("rb") as stream:
            digest = file_digest(stream, "sha256").hexdigest()
        num_rows = block.num_tokens * self.metadata.shape.num_moe_layers
        return schema.Part(relative, num_rows, digest)

    def _groups_of(self, sequence: NDArray[np.uint32]) -> NDArray[np.uint32]:
        unique, inverse = np.unique(sequence, return_inverse=True)
        groups = [self._documents[int(s)].document_group for s in unique]
        return np.asarray(groups, np.uint32)[inverse]

    def _documents_json(self, block: TokenBlock) -> str:
        entries = []
        for sequence in np.unique(block.sequence):
            document = self._documents[int(sequence)]
            phases = block.phase[block.sequence == sequence]
            entries.append(
                {
                    "sequence": document.sequence,
                    "name": document.name,
                    "document_group": document.document_group,
                    "prefill_tokens": int(np.count_nonzero(phases == 0)),
                    "decode_tokens": int(np.count_nonzero(phases == 1)),
                }
            )
        return json.dumps(entries, ensure_ascii=False)

    def _tally_of_parts(self) -> Tally:
        if not self.metadata.parts:
            return Tally(self.metadata)
        return open_trace(self.path).tally()

    def _remove_leftovers(self) -> None:
        listed = {part.path for part in self.metadata.parts}
        for found in [*self.path.glob("domain=*/*.parquet"), *self.path.rglob(PARTIAL_FILES)]:
            if str(found.relative_to(self.path)) not in listed:
                found.unlink()
        (self.path / schema.COUNTS_FILE).unlink(missing_ok=True)

    def _write_metadata(self) -> None:
        with self._replacing(self.path / schema.METADATA_FILE) as temporary:
            temporary.write_text(self.metadata.to_json(), encoding="utf-8")

    @contextmanager
    def _replacing(self, target: Path) -> Iterator[Path]:
        """See `replacing`; errors of the disk become the trace's."""
        with _disk_errors(self.path), replacing(target) as temporary:
            yield temporary


def write_rows(
    path: Path, block: TokenBlock, metadata: schema.TraceMetadata, documents_json: str
) -> None:
    """Write one part: a row group for each layer, in the order of the layers.

    Args:
        path: the Parquet file to write.
        block: rows, sorted by sequence and position.
        metadata: the trace's; gives the layers, top-k and whether weights are stored.
        documents_json: the documents that have rows here, kept in the file's footer.
    """
    columns = schema.row_schema(metadata.shape.top_k, metadata.capture.weights)
    columns = columns.with_metadata({schema.DOCUMENTS_KEY: documents_json.encode()})
    tokens = [
        pa.array(block.sequence),
        pa.array(block.position),
        pa.array(block.token_id),
        pa.DictionaryArray.from_arrays(pa.array(block.phase.astype(np.int8)), list(schema.PHASES)),
    ]
    with pq.ParquetWriter(path, columns, **_encodings()) as writer:
        for row, layer in enumerate(metadata.shape.moe_layers):
            arrays = [
                *tokens,
                pa.array(np.full(block.num_tokens, layer, np.uint16)),
                _fixed_size_list(block.experts[row], columns.field("experts").type),
            ]
            if block.weights is not None:
                arrays.append(_fixed_size_list(block.weights[row], columns.field("weights").type))
            table = pa.Table.from_arrays(arrays, schema=columns)
            writer.write_table(table, row_group_size=max(block.num_tokens, 1))


def _encodings() -> dict[str, object]:
    """Parquet settings: split bytes let zstd code ids near their entropy; positions are deltas.

    The weights stay plain, because DuckDB 2.0 cannot read split float16.
    """
    return {
        "compression": "zstd",
        "compression_level": 6,
        "use_dictionary": ["sequence", "phase", "layer"],
        "column_encoding": {
            "position": "DELTA_BINARY_PACKED",
            "token_id": "BYTE_STREAM_SPLIT",
            "experts.list.element": "BYTE_STREAM_SPLIT",
            "weights.list.element": "PLAIN",
        },
        "data_page_size": 2**20,
        "data_page_version": "1.0",
    }


def _fixed_size_list(values: NDArray[np.generic], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values).reshape(-1)), type=kind
    )


def _in_document_order(blocks: list[TokenBlock]) -> TokenBlock:
    sequence = np.concatenate([block.sequence for block in blocks])
    position = np.concatenate([block.position for block in blocks])
    order = np.lexsort((position, sequence))
    weights = [block.weights for block in blocks if block.weights is not None]
    return TokenBlock(
        sequence=sequence[order],
        position=position[order],
        token_id=np.concatenate([block.token_id for block in blocks])[order],
        phase=np.concatenate([block.phase for block in blocks])[order],
        experts=np.concatenate([block.experts for block in blocks], axis=1)[:, order],
        weights=np.concatenate(weights, axis=1)[:, order] if weights else None,
    )


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path}: cannot write ({error.strerror or error}); what was committed before is kept",
            "free space or choose another output, then repeat the command with --resume",
        ) from error
