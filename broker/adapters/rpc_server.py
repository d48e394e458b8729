"""The gRPC server around the service: its socket, the standard health and reflection services, and its end."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_health.v1.health import aio as health  # type: ignore[attr-defined]  # pyright: ignore
from grpc_reflection.v1alpha import reflection
from vrambroker.broker.adapters.rpc import BrokerService
from vrambroker.broker.adapters.run_dir import private_umask
from vrambroker.v1 import broker_pb2, broker_pb2_grpc

SERVICE_NAME = broker_pb2.DESCRIPTOR.services_by_name["Broker"].full_name
CALLS_MAX = 1_024
MESSAGE_BYTES_MAX = 1 << 20


class RpcServer:
    """Serves on a unix socket from `start` to `stop`."""

    def __init__(self, service: BrokerService) -> None:
        options = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX))
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=CALLS_MAX)
        self._health = health.HealthServicer()
        broker_pb2_grpc.add_BrokerServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, path: Path, admit: Callable[[Path], None]) -> None:
        """Listen on this path, let in whom `admit` says, and report SERVING."""
        with private_umask():
            self._server.add_insecure_port(f"unix:{quote(str(path), safe='/:')}")
        await self._server.start()
        admit(path)
        await self._tell(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Report NOT_SERVING; calls go on."""
        await self._tell(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls and give those under way this long."""
        await self._server.stop(grace_s)

    async def _tell(self, state: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, state)
