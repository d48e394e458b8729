"""Attaching as the environment says: what a program does that has not been written for the broker."""

import os

from vrambroker.broker.core.errors import WrongState
from vrambroker.client.memory import Memory, connect
from vrambroker.client.saver import settings
from vrambroker.client.saver.tags import label_of


def attached(device: str | None, name: str) -> Memory:
    """Attach to a device, as VRAMBROKER_NAME or else `name`; under what name there is, if the program has attached itself.

    Raises what `connect` does.
    """
    label = label_of(os.environ.get(settings.NAME_VARIABLE) or name)
    try:
        return connect(label, device)
    except WrongState as error:
        if error.state != "attached":
            raise
        return connect(error.session, device)
