"""Whether a daemon serves, by gRPC's standard health service: for probes, which know of exit codes and not of unix sockets."""

import os
import socket
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME

from vrambroker.broker.adapters.identity import credentials_of
from vrambroker.broker.adapters.metadata import grpc_address
from vrambroker.broker.core.errors import BrokerUnavailable, Draining, InvalidArgument
from vrambroker.client.discovery import Endpoint, unreachable

_OPTIONS: tuple[tuple[str, Any], ...] = (("grpc.enable_http_proxy", 0),)


def require_serving(endpoint: Endpoint, *, service: str, timeout_s: float) -> None:
    """Return if the daemon says that it serves, `service` or, if that is empty, anything.

    Raises `BrokerUnavailable` if it does not answer in time, `Draining` if it is about to end, `InvalidArgument` for a
    service that it does not have.
    """
    request = health_pb2.HealthCheckRequest(service=service)
    with grpc.insecure_channel(grpc_address(endpoint.rpc_socket), options=_OPTIONS) as channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE_NAME}/Check")
        try:
            raw = check(request.SerializeToString(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise _in_words(error, endpoint, service, timeout_s) from error
    status = health_pb2.HealthCheckResponse.FromString(raw).status
    if status != health_pb2.HealthCheckResponse.SERVING:
        state = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        raise Draining(message=f"the daemon of {endpoint.device} takes no new work: {state}")


def own(found: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """Return the daemons that run in this process's container, which is its mount namespace.

    Several containers may have one run directory, and a probe is to restart its own alone. Raises `BrokerUnavailable` if
    there is none.
    """
    ours = tuple(endpoint for endpoint in found if _is_in_this_container(endpoint))
    if not ours:
        names = ", ".join(endpoint.device for endpoint in found)
        raise BrokerUnavailable(
            message=f"none of the daemons there (of {names}) runs in this container, or lets anybody in"
        )
    return ours


def _is_in_this_container(endpoint: Endpoint) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as peer:
        # One that hangs may have a full backlog: it fails its own probe, and must not keep its neighbours'.
        peer.setblocking(False)
        try:
            peer.connect(str(endpoint.handle_socket))
            pid, _, _ = credentials_of(peer)
            # Of another user's process this can't be read, and a container's daemon and its probe are one user's.
            return os.path.samestat(Path(f"/proc/{pid}/ns/mnt").stat(), Path("/proc/self/ns/mnt").stat())
        except OSError:
            return False


def _in_words(
    error: grpc.RpcError, endpoint: Endpoint, service: str, timeout_s: float
) -> BrokerUnavailable | InvalidArgument:
    code = error.code() if isinstance(error, grpc.Call) else None
    if code is grpc.StatusCode.NOT_FOUND:
        return InvalidArgument(
            message=f"the daemon of {endpoint.device} has no service {service!r}", argument="service"
        )
    why = f"no answer in {timeout_s:g} s" if code is grpc.StatusCode.DEADLINE_EXCEEDED else "nobody listens"
    return unreachable(endpoint, why)
