"""What callers use of the original's `utils`, by the same names."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from vrambroker.client.saver import SHIM_FOLDER


def get_binary_path_from_package(stem: str) -> Path:
    """Return the library that callers put into LD_PRELOAD. It has nothing to do yet, and is there to be found.

    Raises `RuntimeError` if there is none of this name.
    """
    name = f"{stem}.abi3.so"
    installed = resources.files("vrambroker").joinpath("client", "compat", name)
    for path in (SHIM_FOLDER / name, Path(str(installed))):
        if path.is_file():
            return path
    raise RuntimeError(f"vrambroker has no library {name}")


@contextmanager
def change_env(key: str, value: str) -> Generator[None]:
    """Have an environment variable set in the block."""
    before = os.environ.get(key)
    os.environ[key] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = before
