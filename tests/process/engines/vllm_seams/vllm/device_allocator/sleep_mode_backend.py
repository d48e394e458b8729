"""Backends by their name."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

SleepModeState = Literal["RUNNING", "SUSPENDED", "RESUMING"]


class SleepModeBackend(ABC):
    """A way to sleep and to wake up."""

    def __init__(self) -> None:
        self._state: SleepModeState = "RUNNING"

    @abstractmethod
    def suspend(self, level: int = 1) -> None: ...

    @abstractmethod
    def resume(self, tags: list[str] | None = None) -> None: ...

    def state(self) -> SleepModeState:
        return self._state

    def discard(self, tags: tuple[str, ...]) -> None:
        raise RuntimeError(f"{tags} can't be discarded")

    @classmethod
    def is_supported(cls) -> bool:
        return True

    @classmethod
    def preserves_communicators(cls) -> bool:
        return False

    @classmethod
    def preserves_compiled_artifacts(cls) -> bool:
        return False

    @classmethod
    def preserves_graphs_with_communicators(cls) -> bool:
        return False

    @classmethod
    def supports_durable_storage(cls) -> bool:
        return False


class SleepModeBackendFactory:
    """What is known, and made when it is asked for."""

    _registry: ClassVar[dict[str, Callable[[], type[SleepModeBackend]]]] = {}

    @classmethod
    def register_backend(cls, name: str, module_path: str, class_name: str) -> None:
        if name in cls._registry:
            raise ValueError(f"{name} is known")
        cls._registry[name] = lambda: getattr(importlib.import_module(module_path), class_name)

    @classmethod
    def get_backend_class(cls, name: str) -> type[SleepModeBackend]:
        if name not in cls._registry:
            raise ValueError(f"{name} is not known")
        return cls._registry[name]()

    @classmethod
    def create_backend(cls, model_config: Any) -> SleepModeBackend:
        kind = cls.get_backend_class(model_config.sleep_mode_backend)
        assert kind.is_supported()
        return kind()
