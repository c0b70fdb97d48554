"""Where a model's files are, and the hashes that identify them."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moeprof.checkpoint.headers import TensorEntry
from moeprof.errors import UnsupportedModelError

CONFIG_FILE = "config.json"
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
# Keys of config.json that saving the same model again changes.
_VOLATILE_KEYS = frozenset({"_name_or_path", "transformers_version"})
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DOWNLOADED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_NOT_DOWNLOADED = ("*/*", "consolidated*")
_COPY_AGAIN = "copy or download the model again"
_USE_DIRECTORY = "give a directory with config.json and safetensors files, or a hub id"


def resolve_model(model: str | Path) -> Path:
    """The directory with a model's files: a local one, or a hub model after its download.

    Args:
        model: a directory, or an id such as `allenai/OLMoE-1B-7B-0924`.

    Raises:
        UnsupportedModelError: no such directory or hub model, no connection, or a directory
            without `config.json`.
    """
    path = Path(model).expanduser()
    if not path.exists():
        path = _download(str(model))
    if not path.is_dir():
        raise UnsupportedModelError(f"{path}: a file, expected a directory", _USE_DIRECTORY)
    if not (path / CONFIG_FILE).is_file():
        raise UnsupportedModelError(f"{path}: no {CONFIG_FILE} in this directory", _USE_DIRECTORY)
    return path.resolve()


def _download(model: str) -> Path:
    if not _HUB_ID.fullmatch(model) or model.startswith("."):
        raise UnsupportedModelError(f"{model}: no such directory", _USE_DIRECTORY)
    from huggingface_hub import snapshot_download  # not needed for local models, and slow to import
    from huggingface_hub.errors import HFValidationError

    try:
        snapshot = snapshot_download(
            model, allow_patterns=list(_DOWNLOADED), ignore_patterns=list(_NOT_DOWNLOADED)
        )
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()
        raise UnsupportedModelError(
            f"{model}: no such directory, and not available from the hub "
            f"({reason[0] if reason else type(error).__name__})",
            "check the spelling, the connection, and HF_TOKEN for a gated model; "
            "or give a local directory",
        ) from error
    return Path(snapshot)


def read_config(directory: Path) -> dict[str, Any]:
    """The content of `config.json`.

    Raises:
        UnsupportedModelError: it cannot be read, or is not a JSON object.
    """
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"{path}: not readable as JSON ({error})", _COPY_AGAIN
        ) from error
    if not isinstance(config, dict):
        raise UnsupportedModelError(f"{path}: not a JSON object", _COPY_AGAIN)
    return config


def fingerprint(config: dict[str, Any], tensors: Iterable[TensorEntry]) -> str:
    """SHA-256 over a model's config and its tensors' names, types and shapes.

    The order of keys, the sharding into files, and the weights' values do not count.
    """
    content = {key: value for key, value in config.items() if key not in _VOLATILE_KEYS}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for entry in sorted(tensors, key=lambda entry: entry.name):
        digest.update(json.dumps([entry.name, entry.dtype, entry.shape]).encode() + b"\n")
    return digest.hexdigest()


def tokenizer_hash(directory: Path) -> str:
    """SHA-256 over the names and contents of the tokenizer's files; of nothing if it has none."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = directory / name
        if path.is_file():
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
