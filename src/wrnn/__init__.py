"""Wave-RNN experiments: recurrent cores, memory tasks and what is measured on them.

Importing this package is cheap: torch is imported by the submodules that need it.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    """Load `load_run` on first use, so that shell completion and `--help` never wait for torch."""
    if name == "load_run":
        from wrnn.training import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
