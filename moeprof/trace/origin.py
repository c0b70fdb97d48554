"""Where an imported trace came from, and what its source does not say."""

from dataclasses import dataclass

from moeprof.errors import TraceError

# What a source can leave unsaid, each with the words that complete "it does not say ...".
UNSAID = {
    "rows": "which experts a token chose together, it holds counts only",
    "order": "in which order the tokens came",
    "phase": "whether its tokens were prefill or decode, all stand as decode",
    "documents": "where one document ends and the next begins",
    "rank": "in which order the router ranked a token's experts",
    "weights": "the router's weights",
    "token_ids": "which tokens were fed",
    "assignments": "what some tokens chose in some layers, their slots are empty",
    "fingerprint": "which checkpoint it is of",
    "hidden_size": "how wide the residual stream is",
    "vocab_size": "how large the vocabulary is",
    "expert_bytes": "how many bytes an expert has, each stands as 1",
    "dense_bytes": "how many bytes lie outside the experts, at least those that are stated",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Which files of another format a trace was imported from.

    Attributes:
        format: name of the foreign format, as `moeprof import` knows it.
        files: names of the files.
        missing: what the source does not say, of `UNSAID`.
        counts_sha256: hash of counts.parquet where it is all that the trace has (`rows` is
            missing), else None.
    """

    format: str
    files: tuple[str, ...]
    missing: tuple[str, ...]
    counts_sha256: str | None = None

    def __post_init__(self) -> None:
        unknown = set(self.missing) - set(UNSAID)
        if unknown:
            raise TraceError(
                f"origin: missing names {', '.join(sorted(unknown))}, which is unknown"
            )
        if ("rows" in self.missing) != (self.counts_sha256 is not None):
            raise TraceError("origin: counts_sha256 stands exactly where rows are missing")
        if "rows" in self.missing and "order" not in self.missing:
            raise TraceError("origin: without rows there is no order, name it as missing")
