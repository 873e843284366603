"""Wave-RNN experiments: recurrent cores, memory tasks and what is measured on them.

Importing this package is cheap: torch is imported by the submodules that need it.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["compose_config", "load_run", "train"]

_HOMES = {"compose_config": "wrnn.schema", "load_run": "wrnn.training", "train": "wrnn.training"}


def __getattr__(name: str) -> Any:
    """Load these on first use, so that shell completion and `--help` never wait for torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
