"""What systemd wants to hear of a service (`Type=notify`): a datagram to the socket named in the environment."""

import os
import socket


def notify(state: str) -> bool:
    """Tell the service manager, if there is one, and return whether it was told; `state` as in sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.setblocking(False)
        try:
            manager.sendto(state.encode(), address)
        except OSError:
            return False
    return True
