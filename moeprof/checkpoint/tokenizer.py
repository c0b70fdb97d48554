"""The tokenizer of a checkpoint."""

from pathlib import Path
from typing import Any

from moeprof.errors import UnsupportedModelError


def load_tokenizer(directory: Path) -> Any:  # noqa: ANN401
    """The transformers tokenizer in a model's directory.

    Raises:
        UnsupportedModelError: there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()
        raise UnsupportedModelError(
            f"{directory}: the tokenizer cannot be loaded "
            f"({reason[0] if reason else type(error).__name__})",
            "copy tokenizer.json and tokenizer_config.json beside config.json",
        ) from error
