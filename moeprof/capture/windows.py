"""From documents to the batches of token windows that a model is fed, in a fixed order."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from moeprof.capture.corpora import CorpusDomain, Messages, RawDocument
from moeprof.errors import TraceError
from moeprof.trace.schema import CaptureSettings

Encode = Callable[[RawDocument], list[int]]


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens of one document that are fed without an earlier context.

    Attributes:
        document: index of the document in its domain.
        name: the document's name.
        start: position of the first token in the document.
        token_ids: the tokens.
        num_bytes: share of the source text that the document's windows so far stand for.
    """

    document: int
    name: str
    start: int
    token_ids: list[int]
    num_bytes: int


def encoder(tokenizer: Any, settings: CaptureSettings) -> Encode:  # noqa: ANN401
    """How documents become token ids: plain text as it is, conversations by the chat template.

    When tokens are generated, a conversation ends before its last assistant messages.

    Args:
        tokenizer: a transformers tokenizer.
        settings: `generate` says whether a conversation is a prompt.
    """

    def encode(document: RawDocument) -> list[int]:
        if isinstance(document.content, str):
            ids: list[int] = tokenizer(document.content, verbose=False)["input_ids"]
            return ids
        if not tokenizer.chat_template:
            raise TraceError(
                f"{document.name}: a conversation, but the model's tokenizer has no chat template",
                "trace an instruction-tuned model, or name a text column with --text-column",
            )
        messages = _prompt_of(document.content) if settings.generate else document.content
        if not messages:
            return []
        try:
            ids = tokenizer.apply_chat_template(
                messages,
                tokenize=True,
                add_generation_prompt=bool(settings.generate),
                return_dict=False,
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise TraceError(
                f"{document.name}: the model's chat template refuses the conversation ({error})",
                "mend the conversation, or name a text column with --text-column",
            ) from error
        return ids

    return encode


def _prompt_of(messages: Messages) -> Messages:
    end = len(messages)
    while end > 1 and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]


def windows(
    domain: CorpusDomain, encode: Encode, settings: CaptureSettings, *, skip_empty: bool
) -> Iterator[Window]:
    """The domain's documents cut into windows, `max_tokens` prefill tokens in all.

    Without generation a document is cut every `sequence_length` tokens; with it, each document
    gives one window, its first `prompt_tokens` tokens (a conversation: its last
    `sequence_length`).

    Raises:
        TraceError: a document has no tokens and `skip_empty` is not set, or the domain has none.
    """
    left = settings.max_tokens
    index = 0
    num_bytes = 0
    for document in domain.documents():
        token_ids = encode(document)
        num_bytes += document.num_bytes
        if not token_ids:
            if skip_empty:
                continue
            raise TraceError(
                f"{document.name}: the document has no tokens",
                "remove it, or leave such documents out with --skip-empty",
            )
        for start, piece in _pieces(token_ids, document, settings):
            kept = piece if left is None else piece[:left]
            yield Window(index, document.name, start, kept, num_bytes)
            if left is not None:
                left -= len(kept)
                if left <= 0:
                    return
        index += 1
    if index == 0:
        raise TraceError(f"domain {domain.name}: holds no documents with tokens")


def _pieces(
    token_ids: list[int], document: RawDocument, settings: CaptureSettings
) -> Iterable[tuple[int, list[int]]]:
    length = settings.sequence_length
    if not settings.generate:
        return ((s, token_ids[s : s + length]) for s in range(0, len(token_ids), length))
    if isinstance(document.content, str):
        return [(0, token_ids[: settings.prompt_tokens])]
    return [(0, token_ids[-length:])]


def batches(stream: Iterator[Window], settings: CaptureSettings) -> Iterator[list[Window]]:
    """Consecutive windows in groups of at most `batch_size`.

    Prompts of one batch have equal lengths, so that generation needs no padding: left padding
    changes what some architectures compute.
    """
    batch: list[Window] = []
    for window in stream:
        ragged = batch and len(batch[0].token_ids) != len(window.token_ids)
        if len(batch) == settings.batch_size or (settings.generate and ragged):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def chain_digest(digest: str, window: Window) -> str:
    """The digest of a domain's windows up to and including this one."""
    text = f"{digest}|{window.document}|{window.start}|" + ",".join(map(str, window.token_ids))
    return hashlib.sha256(text.encode()).hexdigest()
