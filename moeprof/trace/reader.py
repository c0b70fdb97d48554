"""Reading a trace: everything is checked at the border, then trusted."""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import file_digest
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.model_shape import ModelShape
from moeprof.trace import columns, schema
from moeprof.trace.columns import LayerRouting, Tokens
from moeprof.trace.counts import CellCounts
from moeprof.trace.counts_only import check_sums, check_unchanged
from moeprof.trace.origin import UNSAID
from moeprof.trace.tally import PARTS_KEY, Tally

_RECOUNT = "delete the file; the parts are then counted instead"
_IMPORT = "import it anew, or use a trace recorded by moeprof trace"
_IMPORT_WITH = {
    "fingerprint": "import it anew with --model MODEL, the checkpoint that it is of",
    "expert_bytes": "import it anew with --expert-bytes SIZE, all matrices of one expert as stored",
    "phase": "import it anew with --phase prefill or --phase decode, if it is of one phase",
}


class Trace:
    """A trace on disk; `open_trace` makes one.

    Attributes:
        path: the trace directory.
        metadata: what `trace.json` holds.
    """

    def __init__(self, path: Path, metadata: schema.TraceMetadata) -> None:
        self.path = path
        self.metadata = metadata
        self._unchanged: set[Path] = set()

    def __repr__(self) -> str:
        tokens = sum(sum(domain.tokens) for domain in self.metadata.domains)
        return f"<Trace {self.name}: {tokens} tokens, domains {', '.join(self.domains)}>"

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name

    @property
    def shape(self) -> ModelShape:
        """The traced model's numbers."""
        return self.metadata.shape

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order in which they were traced."""
        return tuple(domain.name for domain in self.metadata.domains)

    @property
    def digest(self) -> str:
        """Hash that identifies the trace's rows, or its counts where it has no rows."""
        origin = self.metadata.origin
        if origin is not None and origin.counts_sha256 is not None:
            return origin.counts_sha256
        return schema.parts_digest(self.metadata.parts)

    @property
    def has_rows(self) -> bool:
        """Whether it says what each token chose; False for imported counts."""
        return self.metadata.has_rows

    def require(self, what: str, why: str) -> None:
        """Refuse a trace that was imported from a source that does not say `what`.

        Args:
            what: a word of `origin.UNSAID`, such as `order`.
            why: what cannot be done without it, such as `a cache cannot be replayed`.

        Raises:
            TraceError: the trace does not say it.
        """
        origin = self.metadata.origin
        if origin is not None and what in origin.missing:
            raise TraceError(
                f"{self.path}: {why}: it was imported from {origin.format}, which does not say "
                f"{UNSAID[what]}",
                _IMPORT_WITH.get(what, _IMPORT),
            )

    def documents(self) -> pd.DataFrame:
        """One row per document: sequence, domain, name, document_group, *_tokens by phase.

        Raises:
            TraceError: the trace has counts alone.
        """
        self.require("rows", "its documents cannot be listed")
        entries = []
        for part in self.metadata.parts:
            footer = self._open(part).schema_arrow.metadata or {}
            documents = json.loads(footer.get(schema.DOCUMENTS_KEY, b"[]"))
            entries += [{**entry, "domain": part.domain} for entry in documents]
        columns = ["sequence", "domain", "name", "document_group"]
        tokens = ["prefill_tokens", "decode_tokens"]
        frame = pd.DataFrame(entries, columns=[*columns, *tokens])
        return frame.groupby(columns, as_index=False, sort=False)[tokens].sum()

    def counts(self) -> pd.DataFrame:
        """Assignments and weight mass per (domain, document_group, phase, layer, expert)."""
        stored = self._stored_counts()
        return self.tally().to_frame() if stored is None else stored

    def cell_counts(self) -> CellCounts:
        """Assignments of every cell as dense arrays, apart for each document group and phase."""
        frame = self.counts()
        shape = self.shape
        cells = {"layer": shape.moe_layers, "expert": range(shape.num_experts)}
        for name, known in cells.items():
            if not set(frame[name].unique()) <= set(known):
                where = self.path / schema.COUNTS_FILE
                raise TraceError(
                    f"{where}: counts a {name} that trace.json does not have", _RECOUNT
                )
        row_of_layer = np.zeros(max(shape.moe_layers) + 1, np.int64)
        row_of_layer[list(shape.moe_layers)] = np.arange(shape.num_moe_layers)
        domain = pd.Categorical(frame["domain"], categories=list(self.domains)).codes
        size = schema.NUM_DOCUMENT_GROUPS
        group = domain.astype(np.int64) * size + frame["document_group"].to_numpy(np.int64)
        kept, index = np.unique(group, return_inverse=True)
        counts = np.zeros((len(kept), 2, shape.num_moe_layers, shape.num_experts), np.int64)
        phase = pd.Categorical(frame["phase"], categories=list(schema.PHASES)).codes
        row = row_of_layer[frame["layer"].to_numpy(np.int64)]
        counts[index, phase, row, frame["expert"].to_numpy(np.int64)] = frame["assignments"]
        tokens = np.array([entry.tokens for entry in self.metadata.domains], np.int64)
        return CellCounts(shape, self.domains, kept // size, counts, tokens)

    def routing(self, layer: int, domain: str | None = None) -> LayerRouting:
        """What `layer` routed in one domain (None: all), read without the other layers.

        Raises:
            ValueError: the model has no such MoE layer, or the trace no such domain.
        """
        if layer not in self.shape.moe_layers:
            raise ValueError(f"layer {layer}, expected one of {self.shape.moe_layers}")
        table = self._table(domain, [layer])
        return columns.layer_routing(table, self.shape.top_k)

    def tokens(self, domain: str | None = None) -> Tokens:
        """The tokens of one domain (None: all), in the order of the rows of `experts`.

        Raises:
            ValueError: the trace has no such domain.
            TraceError: the trace has counts alone.
        """
        shape = {"domain": np.uint16, "sequence": np.uint32, "position": np.uint32}
        found = {name: [np.zeros(0, kind)] for name, kind in (shape | {"phase": np.uint8}).items()}
        for part, file in self._files(domain):
            where = self.path / part.path
            if sorted(columns.layers_of(file, where)) != list(self.shape.moe_layers):
                raise TraceError(f"{where}: has not one row group for each layer", columns.RESTORE)
            wanted = ["sequence", "position", "phase"]
            table = columns.read_groups(file, [0], where, wanted)
            found["domain"].append(np.full(len(table), self.domains.index(part.domain), np.uint16))
            found["sequence"].append(columns.numbers(table["sequence"]))
            found["position"].append(columns.numbers(table["position"]))
            found["phase"].append(columns.phase_numbers(table["phase"]))
        return Tokens(**{name: np.concatenate(arrays) for name, arrays in found.items()})

    def experts(self, layer: int, domain: str | None = None) -> NDArray[np.uint16]:
        """The experts alone of `routing`, which is read much faster.

        Returns:
            [T, K] uint16 in rank order, `NO_EXPERT` where a slot is empty.

        Raises:
            ValueError: the model has no such MoE layer, or the trace no such domain.
            TraceError: the trace has counts alone.
        """
        return self.experts_of([layer], domain)[0]

    def experts_of(
        self, layers: Sequence[int], domain: str | None = None
    ) -> list[NDArray[np.uint16]]:
        """`experts` of several layers; each part is opened once for all of them."""
        unknown = [layer for layer in layers if layer not in self.shape.moe_layers]
        if unknown:
            raise ValueError(f"layer {unknown[0]}, expected one of {self.shape.moe_layers}")
        top_k = self.shape.top_k
        found = [[np.zeros((0, top_k), np.uint16)] for _ in layers]
        for part, file in self._files(domain):
            where = self.path / part.path
            there = columns.layers_of(file, where)
            for arrays, layer in zip(found, layers, strict=True):
                table = columns.read_groups(file, [there.index(layer)], where, ["experts"])
                arrays.append(columns.lists(table["experts"], top_k))
        return [np.concatenate(arrays) for arrays in found]

    def rows(
        self,
        domain: str | None = None,
        phase: str | None = None,
        layers: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """The trace's rows as a data frame, with the domain as a further column.

        Args:
            domain: one domain; None for all.
            phase: `prefill` or `decode`; None for both.
            layers: checkpoint layer indices; None for all.
            columns: which columns of the format; None for all.

        Raises:
            ValueError: the trace has no such domain, phase or layer.
        """
        if phase is not None and phase not in schema.PHASES:
            raise ValueError(f"phase {phase!r}, expected one of {', '.join(schema.PHASES)}")
        table = self._table(domain, layers)
        if phase is not None:
            table = table.filter(pa.compute.equal(table["phase"].cast(pa.string()), phase))
        if columns is not None:
            table = table.select([*columns, "domain"])
        frame: pd.DataFrame = table.to_pandas()
        return frame

    def tally(self) -> Tally:
        """Count every row anew.

        Raises:
            TraceError: an id is out of range or stands twice in a row, or there are no rows.
        """
        self.require("rows", "its rows cannot be counted")
        tally = Tally(self.metadata)
        documents = self.documents().set_index("sequence")["document_group"]
        group_of = np.zeros(int(documents.index.max()) + 1 if len(documents) else 1, np.uint32)
        group_of[documents.index] = documents.to_numpy()
        for part, row, routing in self._layers_of_parts():
            keys = group_of[routing.sequence] * 2 + routing.phase
            try:
                tally.add_layer(part.domain, row, keys, routing.experts, routing.weights)
            except ValueError as error:
                layer = self.shape.moe_layers[row]
                where = f"{self.path / part.path}: layer {layer}"
                raise TraceError(f"{where}: {error}", columns.RESTORE) from error
        return tally

    def verify(self) -> None:
        """Check every byte: hashes of the parts, ids, and sums of assignments.

        Raises:
            TraceError: the first thing found wrong.
        """
        if not self.has_rows:
            check_sums(self.metadata, int(self.counts()["assignments"].sum()))
            return
        self._unchanged.clear()
        tally = self.tally()
        tally.check(self.metadata)
        stored = self._stored_counts()
        if stored is not None and not _in_order(stored).equals(_in_order(tally.to_frame())):
            raise TraceError(
                f"{self.path / schema.COUNTS_FILE}: does not count what the parts hold", _RECOUNT
            )

    @cached_property
    def _row_schema(self) -> pa.Schema:
        return schema.row_schema(self.shape.top_k, self.metadata.capture.weights)

    def _layers_of_parts(self) -> Iterator[tuple[schema.Part, int, LayerRouting]]:
        for part in self.metadata.parts:
            file = self._open_rows(part)
            for index, layer in enumerate(columns.layers_of(file, self.path / part.path)):
                if layer not in self.shape.moe_layers:
                    where = self.path / part.path
                    raise TraceError(f"{where}: layer {layer} is no MoE layer", columns.RESTORE)
                row = self.shape.moe_layers.index(layer)
                table = columns.read_groups(file, [index], self.path / part.path)
                yield part, row, columns.layer_routing(table, self.shape.top_k)

    def _files(self, domain: str | None) -> Iterator[tuple[schema.Part, pq.ParquetFile]]:
        """The parts of one domain (None: all) and their files."""
        if domain is not None and domain not in self.domains:
            raise ValueError(f"domain {domain!r}, expected one of {', '.join(self.domains)}")
        self.require("rows", "its rows cannot be read")
        for part in self.metadata.parts:
            if domain is None or part.domain == domain:
                yield part, self._open_rows(part)

    def _table(self, domain: str | None, layers: Sequence[int] | None) -> pa.Table:
        unknown = set(layers or ()) - set(self.shape.moe_layers)
        if unknown:
            raise ValueError(f"layers {sorted(unknown)}, expected some of {self.shape.moe_layers}")
        tables = []
        for part, file in self._files(domain):
            where = self.path / part.path
            wanted = [
                index
                for index, layer in enumerate(columns.layers_of(file, where))
                if layers is None or layer in layers
            ]
            table = columns.read_groups(file, wanted, where).replace_schema_metadata(None)
            name = pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(len(table), np.int16)), [part.domain]
            )
            tables.append(table.append_column("domain", name))
        if tables:
            return pa.concat_tables(tables).unify_dictionaries()
        empty = self._row_schema.empty_table()
        return empty.append_column("domain", pa.array([], pa.dictionary(pa.int16(), pa.string())))

    def _stored_counts(self) -> pd.DataFrame | None:
        """The content of counts.parquet; None where it was counted from other parts."""
        path = self.path / schema.COUNTS_FILE
        remedy = _RECOUNT if self.has_rows else _IMPORT
        if not path.is_file():
            if self.has_rows:
                return None
            raise TraceError(f"{path}: missing, but all that this trace has", remedy)
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            table.validate(full=True)
        except (OSError, pa.ArrowException) as error:
            raise TraceError(f"{path}: not a readable Parquet file ({error})", remedy) from error
        if not self.has_rows:
            check_unchanged(path, self.metadata)
        found = table.schema.metadata or {}
        if self.has_rows and found.get(PARTS_KEY) != self.digest.encode():
            return None
        if not table.schema.equals(schema.COUNTS_SCHEMA):
            difference = schema.columns_difference(table.schema, schema.COUNTS_SCHEMA)
            raise TraceError(f"{path}: {difference}", remedy)
        frame: pd.DataFrame = table.to_pandas()
        return frame

    def _open_rows(self, part: schema.Part) -> pq.ParquetFile:
        """The part's file; when it is first read, its content is checked by its hash."""
        path = self.path / part.path
        file = self._open(part)
        if path in self._unchanged:
            return file
        with path.open("rb") as stream:
            if file_digest(stream, "sha256").hexdigest() != part.sha256:
                raise TraceError(
                    f"{path}: content differs from its hash in trace.json", columns.RESTORE
                )
        self._unchanged.add(path)
        return file

    def _open(self, part: schema.Part) -> pq.ParquetFile:
        """The part's file, its columns and number of rows checked."""
        path = self.path / part.path
        try:
            file = pq.ParquetFile(path, pre_buffer=False)
        except FileNotFoundError as error:
            raise TraceError(
                f"{path}: missing, but listed in trace.json", columns.RESTORE
            ) from error
        except (OSError, pa.ArrowException) as error:
            raise TraceError(
                f"{path}: not a readable Parquet file ({error})", columns.RESTORE
            ) from error
        if not file.schema_arrow.equals(self._row_schema):
            difference = schema.columns_difference(file.schema_arrow, self._row_schema)
            raise TraceError(f"{path}: {difference}", columns.RESTORE)
        if file.metadata.num_rows != part.rows:
            raise TraceError(
                f"{path}: {file.metadata.num_rows} rows, trace.json says {part.rows}",
                columns.RESTORE,
            )
        return file


def open_trace(path: str | Path) -> Trace:
    """Open a trace directory.

    Columns and numbers of rows of every part are checked here, its hash when its rows are first
    read, the rows themselves by `Trace.verify`.

    Raises:
        TraceError: no trace is there, or it is damaged or of another format.
    """
    path = Path(path)
    file = path / schema.METADATA_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TraceError(
            f"{path}: not a trace, it has no {schema.METADATA_FILE}",
            "make one with: moeprof trace MODEL DATA -o traces/NAME",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{file}: cannot be read ({error})") from error
    trace = Trace(path, schema.TraceMetadata.from_json(text, file))
    for part in trace.metadata.parts:
        trace._open(part)
    return trace


def _in_order(counts: pd.DataFrame) -> pd.DataFrame:
    keys = ["domain", "document_group", "phase", "layer", "expert"]
    return counts.astype(dict.fromkeys(keys, str)).sort_values(keys, ignore_index=True)
