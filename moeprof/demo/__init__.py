"""The bundled demo: a small trained MoE language model and texts it has never seen.

`train` rebuilds both from public packages; this module only says where they lie.
"""

from pathlib import Path

_HERE = Path(__file__).parent


def model_path() -> Path:
    """Folder of the bundled model, in transformers' own format."""
    return _HERE / "model"


def text_path() -> Path:
    """Folder of the bundled texts: one folder per domain, one file per document."""
    return _HERE / "texts"


def domains() -> list[str]:
    """Names of the domains that the bundled texts fall into, sorted."""
    folders = (path for path in text_path().iterdir() if path.is_dir())
    return sorted(folder.name for folder in folders if folder.name.islower())
