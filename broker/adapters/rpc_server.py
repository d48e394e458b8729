"""The gRPC server around the service: its socket, the standard health and reflection services, and its end."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from vrambroker.broker.adapters.rpc import BrokerService, Context, refuse
from vrambroker.broker.adapters.run_dir import private_umask
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.v1 import broker_pb2, broker_pb2_grpc

SERVICE_NAME = broker_pb2.DESCRIPTOR.services_by_name["Broker"].full_name
# Generic for the type checkers only, so never evaluated.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]"

CALLS_MAX = 1_024
MESSAGE_BYTES_MAX = 1 << 20


class _StrictMessages(grpc.aio.ServerInterceptor):
    """Parses requests itself: what is no message of its type is INVALID_ARGUMENT, where gRPC would say UNKNOWN."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Return the method's handler, taking bytes."""
        handler = await continuation(handler_call_details)
        # An unknown method has no handler, whatever the type says; streams of requests are reflection's own.
        if not handler or handler.request_streaming or handler.request_deserializer is None:
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _parsed_stream(handler), response_serializer=handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(_parsed(handler), response_serializer=handler.response_serializer)


def _parsed(handler: Any) -> Any:
    async def behave(raw: bytes, context: Context) -> Any:
        return await handler.unary_unary(await _parse(handler, raw, context), context)

    return behave


def _parsed_stream(handler: Any) -> Any:
    async def behave(raw: bytes, context: Context) -> AsyncIterator[Any]:
        async for answer in handler.unary_stream(await _parse(handler, raw, context), context):
            yield answer

    return behave


async def _parse(handler: Any, raw: bytes, context: Context) -> Any:
    try:
        return handler.request_deserializer(raw)
    except DecodeError:
        await refuse(context, InvalidArgument(message="the request is not a message of its type", argument="request"))


class RpcServer:
    """Serves on a unix socket from `start` to `stop`."""

    def __init__(self, service: BrokerService) -> None:
        options = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX))
        self._server = grpc.aio.server(
            options=options, maximum_concurrent_rpcs=CALLS_MAX, interceptors=(_StrictMessages(),)
        )
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

    async def _tell(self, state: int) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, state)
