"""What `broker run` has every Python of a program load first: when torch is imported, it learns to send and receive leased
tensors, and a region is entered, if the environment asks for one.

Python looks for `sitecustomize` along its path and loads the first; this one, in front by PYTHONPATH, loads the next as
well. It costs a process that imports no torch next to nothing, and never keeps one from running.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import util
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

WANTED_BY = ("VRAMBROKER_RUN_DIR", "VRAMBROKER_TAG", "TMS_INIT_ENABLE")


def say(what: str) -> None:
    """Write one line to stderr, where there is one."""
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]  # a daemon may have closed it
        sys.stderr.write(f"vrambroker: {what}\n")


def enter(_torch: ModuleType) -> None:
    """Enter the region that the environment asks for; say so where that can't be."""
    if not any(os.environ.get(name) for name in WANTED_BY):
        return
    try:
        from vrambroker.broker.core.errors import BrokerError
        from vrambroker.client.saver import start
    except ImportError as error:
        say(f"{error}: install vrambroker in this Python ({sys.executable}); nothing is leased here")
        return
    try:
        start.enter(say)
    except BrokerError as error:
        say(f"{type(error).__name__}: {error}; nothing is leased here")


class _Then(Loader):
    """A module's own loader, and then what is to be done."""

    def __init__(self, own: Loader, then: Callable[[ModuleType], None]) -> None:
        self._own = own
        self._then = then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From now on nobody can tell that this was here.
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        self._own.exec_module(module)
        self._then(module)


class AfterImport(MetaPathFinder):
    """Sees a module being imported, once, in front of `sys.meta_path`; then it is given to `then`."""

    def __init__(self, fullname: str, then: Callable[[ModuleType], None]) -> None:
        self.fullname = fullname
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname != self.fullname:
            return None
        sys.meta_path.remove(self)
        spec = util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, self._then)
        return spec


def load_next() -> None:
    """Load the `sitecustomize` that Python would have loaded without this one."""
    here = os.path.realpath(os.path.dirname(__file__))  # noqa: PTH120  # pathlib costs every start of Python
    others = [folder for folder in sys.path if os.path.realpath(folder or os.curdir) != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    module = util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, AfterImport("torch", enter))
    load_next()
