"""How a process attaches itself that was not told to: under its own name, to the broker of the device at hand."""

import os
import sys
from pathlib import Path

from vrambroker.broker.core.errors import WrongState
from vrambroker.client import discovery
from vrambroker.client.memory import Memory, connect
from vrambroker.client.saver.settings import NAME_VARIABLE
from vrambroker.client.saver.tags import label_of


def attached(device: str | None) -> Memory:
    """Return the device's `Memory`: the program's own, where it has attached itself under whatever name.

    Raises what `connect` does.
    """
    name = label_of(os.environ.get(NAME_VARIABLE) or Path(sys.argv[0]).stem or "python")
    try:
        return connect(name, device)
    except WrongState as error:
        if error.state != "attached":
            raise
        return connect(error.session, device)


def device_at_hand() -> str | None:
    """Return the device to attach to: where there are brokers of several, that of torch's current GPU."""
    if os.environ.get(discovery.DEVICE_VARIABLE) or len(discovery.endpoints()) < 2:
        return None
    import torch

    return "cuda" if torch.cuda.is_available() else None
