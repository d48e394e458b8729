"""What both ends of the control plane agree on besides its messages: keys of the gRPC metadata, and the address."""

import os
from pathlib import Path
from urllib.parse import quote

# Who calls, and, in the trailer of a refusal, the error's fields.
TOKEN_KEY = "vrambroker-token-bin"
ERROR_KEY = "vrambroker-error-bin"


def grpc_address(path: Path) -> str:
    """Return a unix socket's path as gRPC takes it: a URI, in which `%`, `#` and `?` mean something."""
    return f"unix:{quote(os.fsencode(path), safe='/:')}"
