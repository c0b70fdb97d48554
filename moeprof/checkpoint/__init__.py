"""What a model's files say, without loading its weights."""

from moeprof.checkpoint.files import resolve_model
from moeprof.checkpoint.memory import kv_cache_bytes, workspace_bytes
from moeprof.checkpoint.reader import Checkpoint, read_checkpoint
from moeprof.checkpoint.tokenizer import load_tokenizer

__all__ = [
    "Checkpoint",
    "kv_cache_bytes",
    "load_tokenizer",
    "read_checkpoint",
    "resolve_model",
    "workspace_bytes",
]
