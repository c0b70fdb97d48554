"""The tokenizer of a checkpoint."""

from pathlib import Path
from typing import Any

from moeprof.errors import UnsupportedModelError

# Without any of these, transformers makes an empty tokenizer of the architecture's class.
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "merges.txt")
_COPY_TOKENIZER = "copy tokenizer.json and tokenizer_config.json beside config.json"


def load_tokenizer(directory: Path) -> Any:  # noqa: ANN401
    """The transformers tokenizer in a model's directory.

    Raises:
        UnsupportedModelError: there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    if not any(next(directory.glob(name), None) for name in _VOCABULARIES):
        raise UnsupportedModelError(f"{directory}: it has no tokenizer", _COPY_TOKENIZER)
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()
        raise UnsupportedModelError(
            f"{directory}: the tokenizer cannot be loaded "
            f"({reason[0] if reason else type(error).__name__})",
            _COPY_TOKENIZER,
        ) from error
