"""Texts and conversations as tokens that fit a plan; none of it needs the model's weights."""

import math
from functools import cached_property
from typing import Any

from moeprof.checkpoint import Checkpoint, load_tokenizer
from moeprof.errors import CapacityError, MoeprofError, UnsupportedModelError

Message = dict[str, str]

_NO_CHAT = "continue a text with --prompt instead"


class Prompts:
    """What a model can be asked under a plan.

    Args:
        checkpoint: of the model.
        context_tokens: that the plan has room for, prompt and generated together.
    """

    def __init__(self, checkpoint: Checkpoint, context_tokens: int) -> None:
        self._checkpoint = checkpoint
        self._context_tokens = context_tokens
        self._max_positions = checkpoint.max_positions or math.inf

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """The model's tokenizer.

        Raises:
            UnsupportedModelError: the checkpoint has none.
        """
        return load_tokenizer(self._checkpoint.path)

    def room(self, num_tokens: int) -> tuple[int, str]:
        """How many tokens can follow, and what ends them: `context` or `positions`.

        Args:
            num_tokens: of the prompt.
        """
        if self._max_positions <= self._context_tokens:
            return int(self._max_positions) - num_tokens, "positions"
        return self._context_tokens - num_tokens, "context"

    def text(self, prompt: str) -> list[int]:
        """The tokens of a text to continue.

        Raises:
            MoeprofError: it has none, is not Unicode text, or fills the planned context or that of
                the model.
        """
        if not _is_text(prompt):
            raise MoeprofError(
                "prompt: not UTF-8 text", "convert it, as in: iconv -f latin1 -t utf-8"
            )
        token_ids: list[int] = self.tokenizer(prompt, verbose=False)["input_ids"]
        if not token_ids:
            raise MoeprofError("prompt: has no tokens", "give a text to continue")
        return self._fitting("prompt", token_ids, "shorten the prompt")

    def conversation(self, messages: list[Message]) -> list[int]:
        """The tokens of a conversation that is to be answered, through the chat template.

        Args:
            messages: each with `role` and `content`.

        Raises:
            UnsupportedModelError: the tokenizer has no chat template, or it fails or refuses them.
            CapacityError: the conversation fills the planned context or that of the model.
        """
        token_ids = self._templated(messages)
        return self._fitting("conversation", token_ids, "say less, or begin a new conversation")

    def check_chat(self) -> None:
        """Refuse a model that no conversation can be had with.

        Raises:
            UnsupportedModelError: the tokenizer has no chat template, or it fails or refuses even
                a first turn.
        """
        self._templated([{"role": "user", "content": "hello"}])

    def _templated(self, messages: list[Message]) -> list[int]:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise UnsupportedModelError(
                f"{self._checkpoint.name}: its tokenizer has no chat template",
                _NO_CHAT,
            )
        try:
            token_ids: list[int] = self.tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            # The template's own raise_exception raises the general error, a fault in it another.
            does = "refuses" if type(error) is TemplateError else "fails"
            raise UnsupportedModelError(
                f"{self._checkpoint.name}: its chat template {does}: {reason}", _NO_CHAT
            ) from error
        return token_ids

    def _fitting(self, what: str, token_ids: list[int], remedy: str) -> list[int]:
        length, limit = len(token_ids), self._max_positions
        if length >= limit:
            raise CapacityError(
                f"{what}: has {length} tokens, {self._checkpoint.name} was made for {limit}, which "
                "the text to generate counts towards",
                remedy,
            )
        if length >= self._context_tokens:
            raise CapacityError(
                f"{what}: has {length} tokens, the placement was planned for a context of "
                f"{self._context_tokens}",
                f"{remedy}, or plan again with --context {min(2 * length, limit)}",
            )
        return token_ids


def _is_text(text: str) -> bool:
    """Whether a text can be encoded; bytes of the command line that are no UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
