"""Building a transformers model from weights that are read and decoded here."""

import copy
import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from moeprof.checkpoint.skeleton import BUILDING, text_config
from moeprof.checkpoint.weights import LazyWeight
from moeprof.errors import CapacityError, UnsupportedModelError

# How Python and torch say that the system refused memory.
_SHORTAGES = ("can't start new thread", "can't allocate memory", "annot allocate memory")


def load_model(
    path: Path,
    skeleton: PreTrainedModel,
    weights: Mapping[str, LazyWeight],
    dtype: torch.dtype,
) -> PreTrainedModel:
    """A model in host memory, in evaluation mode, by transformers' own loading.

    Transformers renames and converts the weights as it does those of a file, and decides which
    ones are missing; quantised ones reach it decoded, so that it replaces no module.

    Args:
        path: of the checkpoint.
        skeleton: the model on the meta device; left unchanged.
        weights: by the names they have in the checkpoint.
        dtype: element type of the model.

    Raises:
        UnsupportedModelError: transformers cannot load it, or weights are missing.
        CapacityError: the system gives no more memory, or no more threads, which take memory, too.
    """
    config = _plain_config(skeleton.config)
    with BUILDING, _quietly():
        try:
            model, info = type(skeleton).from_pretrained(
                None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, ImportError, MemoryError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            if _is_shortage(error):
                raise CapacityError(
                    f"{path}: memory ran out while the model was loaded ({_first_line(error)})",
                    "free memory, or raise the limits of this shell: ulimit -v for memory, "
                    "ulimit -u for threads",
                ) from error
            raise UnsupportedModelError(
                f"{path}: transformers cannot load this checkpoint ({_first_line(error)})",
                "check that it loads with AutoModelForCausalLM.from_pretrained",
            ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UnsupportedModelError(
            f"{path}: {len(missing)} weights are missing, the first is {missing[0]!r}",
            "copy or download the checkpoint again",
        )
    loaded: PreTrainedModel = model.eval()
    loaded.config.name_or_path = str(path)
    if loaded.can_generate():
        loaded.generation_config = _generation_config(path)
    return loaded


def _is_shortage(error: Exception) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return any(words in str(error) for words in _SHORTAGES)


def _plain_config(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of a config that does not speak of quantised weights."""
    plain = copy.deepcopy(config)
    for part in (plain, text_config(plain)):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return plain


def _generation_config(path: Path) -> GenerationConfig:
    """The checkpoint's own, or what its config.json says of generation."""
    try:
        return GenerationConfig.from_pretrained(path, local_files_only=True)
    except OSError:
        return GenerationConfig.from_pretrained(
            path, config_file_name="config.json", local_files_only=True, _from_model_config=True
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from reporting every expert that is left out, and from its own bars."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
