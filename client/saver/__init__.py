"""A stand-in for torch_memory_saver, on leased memory: its interface, and the regions that it and `broker run` open.

Programs don't import this. They import `torch_memory_saver`, which is here as a package of that name in a folder of its own
(`SHIM_FOLDER`): who puts that folder in front of `sys.path` (as `broker run --torch-memory-saver` does, by PYTHONPATH) has
it instead of an installed original. docs/torch_memory_saver.md has what differs.
"""

from pathlib import Path

_CLIENT = Path(__file__).resolve().parents[1]

# Each holds what must be found by its plain name, and nothing else: `torch_memory_saver`, `sitecustomize`.
SHIM_FOLDER = _CLIENT / "compat"
STARTUP_FOLDER = _CLIENT / "startup"
