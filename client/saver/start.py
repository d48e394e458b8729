"""The region that a process is in from the start: TMS_INIT_ENABLE, or `broker run --tag`."""

import os
from collections.abc import Callable
from typing import Any

import torch

from vrambroker.broker.core.errors import BrokerError, BrokerUnavailable
from vrambroker.client import discovery, native, sharing
from vrambroker.client.saver import settings
from vrambroker.client.saver.saver import torch_memory_saver


def enter(say: Callable[[str], None]) -> None:
    """Enter this thread's region, if the environment asks for one.

    On `host` at once. On a GPU when torch makes its context there, since to enter one makes it; what can't be done then is
    said in one line, as it is no reason to fail the program. Raises what `Memory.region` does.
    """
    # What is sent to a program may come before it leases anything itself.
    sharing.install()
    if not settings.beginning(os.environ).interesting:
        return
    if _is_host():
        _enter()
        return

    def late() -> None:
        try:
            _enter()
        except BrokerError as error:
            say(f"{type(error).__name__}: {error}; nothing is leased here")

    if native.is_preloaded():
        # All that the process asks CUDA's runtime for is leased, whichever thread asks.
        return
    when_initialized: Callable[[Callable[[], None]], Any] = getattr(torch.cuda, "_lazy_call")  # noqa: B009 (not typed)
    when_initialized(late)


def _enter() -> None:
    # To ask for this thread's settings is to enter them.
    _ = torch_memory_saver._ensure_initialized().regions.settings  # pyright: ignore[reportPrivateUsage]


def _is_host() -> bool:
    """Whether what is leased is memory of the host."""
    named = os.environ.get(discovery.DEVICE_VARIABLE)
    if named:
        return discovery.is_host(named)
    known = discovery.endpoints()
    if not known:
        raise BrokerUnavailable(message="no broker is running: start one with `broker serve`")
    return all(discovery.is_host(endpoint.device) for endpoint in known)
