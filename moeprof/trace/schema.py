"""The trace format, version 1: names, Arrow schemas and what `trace.json` holds.

`traces/README.md` is its specification in words.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from moeprof.errors import TraceError
from moeprof.model_shape import ModelShape
from moeprof.native import NO_EXPERT
from moeprof.trace.origin import Origin

FORMAT_VERSION = 1
PHASES = ("prefill", "decode")
METADATA_FILE = "trace.json"
COUNTS_FILE = "counts.parquet"
DOCUMENTS_KEY = b"moeprof.documents"
# Documents are dealt round robin to this many groups per domain; statistics by group are the
# statistics by document as long as a domain has no more documents than that, and stay small
# when it has.
NUM_DOCUMENT_GROUPS = 64

__all__ = ["NO_EXPERT", "PHASES", "CaptureSettings", "Domain", "ModelIdentity", "Part"]


def row_schema(top_k: int, with_weights: bool) -> pa.Schema:
    """The columns of a part: one row per (token, MoE layer)."""
    fields = [
        pa.field("sequence", pa.uint32(), nullable=False),
        pa.field("position", pa.uint32(), nullable=False),
        pa.field("token_id", pa.uint32(), nullable=False),
        pa.field("phase", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("layer", pa.uint16(), nullable=False),
        pa.field("experts", _fixed_list(pa.uint16(), top_k), nullable=False),
    ]
    if with_weights:
        fields.append(pa.field("weights", _fixed_list(pa.float16(), top_k), nullable=False))
    return pa.schema(fields)


def _fixed_list(element: pa.DataType, length: int) -> pa.DataType:
    return pa.list_(pa.field("element", element, nullable=False), length)


COUNTS_SCHEMA = pa.schema(
    [
        pa.field("domain", pa.dictionary(pa.int16(), pa.string()), nullable=False),
        pa.field("document_group", pa.uint16(), nullable=False),
        pa.field("phase", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("layer", pa.uint16(), nullable=False),
        pa.field("expert", pa.uint16(), nullable=False),
        pa.field("assignments", pa.int64(), nullable=False),
        pa.field("weight_mass", pa.float64(), nullable=True),
    ]
)


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model was traced.

    Attributes:
        name: what the user called it, a directory name or hub id.
        fingerprint: hash of the config and of the checkpoint's tensor headers.
        tokenizer_hash: hash of the tokenizer's files.
    """

    name: str
    fingerprint: str
    tokenizer_hash: str


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """How the model was driven while it was traced.

    Attributes:
        sequence_length: tokens after which the context restarts inside a document.
        batch_size: sequences per forward.
        max_tokens: prefill tokens taken per domain; None for all.
        generate: tokens generated after each document's prompt; 0 for none.
        prompt_tokens: tokens of each document that serve as its prompt when generating.
        temperature: of sampling while generating; 0 is greedy.
        seed: of sampling.
        weights: whether router weights were recorded.
        dtype: element type the model ran in.
        device: device type the model ran on.
        text_column: column of tabular data that held the text.
    """

    sequence_length: int
    batch_size: int
    max_tokens: int | None
    generate: int
    prompt_tokens: int
    temperature: float
    seed: int
    weights: bool
    dtype: str
    device: str
    text_column: str


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain of the corpus and how far it has been traced.

    Attributes:
        name: the domain.
        sources: what the user gave, `SPEC` of each `domain=SPEC`.
        windows: pieces of at most `sequence_length` tokens recorded, in corpus order; where a
            resumed trace continues.
        documents: documents recorded, the last one perhaps in part.
        tokens: tokens recorded, for each phase of `PHASES`.
        digest: hash chained over the token ids of the windows recorded.
        complete: whether the domain has been traced to its end.
    """

    name: str
    sources: tuple[str, ...]
    windows: int = 0
    documents: int = 0
    tokens: tuple[int, int] = (0, 0)
    digest: str = ""
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet file of the trace: its path inside the trace, rows, and SHA-256."""

    path: str
    rows: int
    sha256: str

    @property
    def domain(self) -> str:
        """The domain whose folder the part is in."""
        return self.path.split("/")[0].removeprefix("domain=")


@dataclass(frozen=True, slots=True)
class TraceMetadata:
    """What `trace.json` holds.

    Attributes:
        model: which model was traced.
        shape: the model's numbers.
        capture: how it was driven.
        domains: the corpus, in the order in which it is traced.
        machine: free text facts on the machine and library versions.
        parts: the committed files; a file not listed here is not part of the trace.
        origin: where an imported trace came from; None for one that moeprof recorded.
    """

    model: ModelIdentity
    shape: ModelShape
    capture: CaptureSettings
    domains: tuple[Domain, ...]
    machine: dict[str, str]
    parts: tuple[Part, ...] = ()
    origin: Origin | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """What an imported trace does not say, of `origin.UNSAID`; empty for a recorded one."""
        return () if self.origin is None else self.origin.missing

    @property
    def has_rows(self) -> bool:
        """Whether there are rows for each token, or counts alone."""
        return "rows" not in self.missing

    @property
    def complete(self) -> bool:
        """Whether every domain has been traced to its end."""
        return all(domain.complete for domain in self.domains)

    def to_json(self) -> str:
        """The text of `trace.json`: sorted keys, one trailing newline."""
        document = {"format": "moeprof-trace", "format_version": FORMAT_VERSION}
        document |= dataclasses.asdict(self)
        if self.origin is None:
            del document["origin"]
        return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> "TraceMetadata":
        """Read `trace.json`; `where` names it in errors.

        Raises:
            TraceError: not JSON, another format or version, or a field missing or unknown.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise TraceError(f"{where}: not JSON ({error})", "trace the corpus anew") from error
        if not isinstance(document, dict) or document.get("format") != "moeprof-trace":
            raise TraceError(
                f"{where}: not a moeprof trace", "name a directory made by moeprof trace"
            )
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise TraceError(
                f"{where}: format version {version}, this moeprof reads {FORMAT_VERSION}",
                "use the version of moeprof that wrote it",
            )
        fault = best_match(_validator().iter_errors(document))
        if fault is not None:
            place = "/".join(map(str, fault.absolute_path)) or "the file"
            raise TraceError(f"{where}: {place}: {fault.message}", "trace the corpus anew")
        try:
            shape = _shape(document["shape"])
            origin = _origin(document.get("origin"))
        except TraceError as error:
            raise TraceError(f"{where}: {error}", "trace the corpus anew") from error
        metadata = cls(
            model=ModelIdentity(**document["model"]),
            shape=shape,
            capture=CaptureSettings(**document["capture"]),
            domains=tuple(_domain(entry) for entry in document["domains"]),
            machine=document["machine"],
            parts=tuple(Part(**entry) for entry in document["parts"]),
            origin=origin,
        )
        metadata._check_parts(where)
        return metadata

    def _check_parts(self, where: Path) -> None:
        """Every part once, of a known domain, and with the rows that the domain's tokens make."""
        if not self.has_rows:
            if self.parts:
                raise TraceError(
                    f"{where}: lists parts, but says that rows are missing", "import it anew"
                )
            return
        if len({part.path for part in self.parts}) != len(self.parts):
            raise TraceError(f"{where}: a part is listed twice", "trace the corpus anew")
        rows = dict.fromkeys((domain.name for domain in self.domains), 0)
        for part in self.parts:
            if part.domain not in rows:
                raise TraceError(
                    f"{where}: part {part.path} is of no domain that is listed",
                    "trace the corpus anew",
                )
            rows[part.domain] += part.rows
        for domain in self.domains:
            expected = sum(domain.tokens) * self.shape.num_moe_layers
            if rows[domain.name] != expected:
                raise TraceError(
                    f"{where}: domain {domain.name} has {rows[domain.name]} rows in its parts, "
                    f"its {sum(domain.tokens)} tokens make {expected}",
                    "trace the corpus anew",
                )


@cache
def _validator() -> Draft202012Validator:
    path = resources.files("moeprof.trace") / "trace.schema.json"
    return Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))


def _shape(entry: dict[str, Any]) -> ModelShape:
    for name in ("moe_layers", "expert_bytes"):
        entry[name] = tuple(entry[name])
    return ModelShape(**entry)


def _domain(entry: dict[str, Any]) -> Domain:
    for name in ("sources", "tokens"):
        entry[name] = tuple(entry[name])
    return Domain(**entry)


def _origin(entry: dict[str, Any] | None) -> Origin | None:
    if entry is None:
        return None
    for name in ("files", "missing"):
        entry[name] = tuple(entry[name])
    return Origin(**entry)


def parts_digest(parts: tuple[Part, ...]) -> str:
    """Hash that identifies a set of parts; `counts.parquet` names the one it was counted from."""
    digest = hashlib.sha256()
    for part in sorted(parts, key=lambda part: part.path):
        digest.update(f"{part.path} {part.rows} {part.sha256}\n".encode())
    return digest.hexdigest()


def columns_difference(found: pa.Schema, expected: pa.Schema) -> str:
    """In words, the first thing in which a file's columns are not those expected."""
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0:
            return f"column '{field.name}' is missing, expected {field.type}"
        if found.field(index).type != field.type:
            return f"column '{field.name}' is {found.field(index).type}, expected {field.type}"
    extra = [name for name in found.names if name not in expected.names]
    return f"unexpected column '{extra[0]}'" if extra else "columns differ in order or nullability"
