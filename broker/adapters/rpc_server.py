"""The gRPC server around the service: its socket, the standard health and reflection services, and its end."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from vrambroker.broker.adapters.metadata import grpc_address
from vrambroker.broker.adapters.rpc import BrokerService, Context, refuse
from vrambroker.broker.adapters.run_dir import private_umask
from vrambroker.broker.core.errors import InvalidArgument, QuotaExceeded
from vrambroker.v1 import broker_pb2, broker_pb2_grpc

SERVICE_NAME = broker_pb2.DESCRIPTOR.services_by_name["Broker"].full_name
# Generic for the type checkers only, so never evaluated.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]"

CALLS_MAX = 1_024
STREAMS_MAX = 256
# Calls beyond the limits are let in only to be refused with an error that says so; very many at once, without.
REFUSED_MAX = 1_024
MESSAGE_BYTES_MAX = 1 << 20
HANDSHAKE_WITHIN_MS = 5_000


class _Limit:
    """How many calls of one kind are under way, and the error for one too many."""

    def __init__(self, what: str, most: int) -> None:
        self._what = what
        self._most = most
        self._under_way = 0

    @asynccontextmanager
    async def one_more(self, context: Context) -> AsyncIterator[None]:
        """Count a call for the time of the block, or refuse it."""
        if self._under_way >= self._most:
            message = f"{self._most} {self._what} are under way already"
            await refuse(context, QuotaExceeded(message=message, limit=self._what, limit_value=self._most))
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1


class _Guard(grpc.aio.ServerInterceptor):
    """Parses requests itself: what is no message of its type is INVALID_ARGUMENT, where gRPC would say UNKNOWN. And
    counts what is under way, streams for themselves, since they may stay as long as they like.
    """

    def __init__(self) -> None:
        self._calls = _Limit("calls", CALLS_MAX)
        self._streams = _Limit("streams", STREAMS_MAX)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Return the method's handler, taking bytes."""
        handler = await continuation(handler_call_details)
        # An unknown method has no handler, whatever the type says.
        if not handler or handler.request_deserializer is None:
            return handler
        serializer = handler.response_serializer
        if handler.request_streaming:
            # Reflection's own, which parses its requests as they come.
            deserializer = handler.request_deserializer
            return grpc.stream_stream_rpc_method_handler(self._both_streams(handler), deserializer, serializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler), response_serializer=serializer)
        return grpc.unary_unary_rpc_method_handler(self._unary(handler), response_serializer=serializer)

    def _unary(self, handler: Any) -> Any:
        async def behave(raw: bytes, context: Context) -> Any:
            async with self._calls.one_more(context):
                return await handler.unary_unary(await _parse(handler, raw, context), context)

        return behave

    def _stream(self, handler: Any) -> Any:
        async def behave(raw: bytes, context: Context) -> AsyncIterator[Any]:
            async with self._streams.one_more(context):
                async for answer in handler.unary_stream(await _parse(handler, raw, context), context):
                    yield answer

        return behave

    def _both_streams(self, handler: Any) -> Any:
        async def behave(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            async with self._streams.one_more(context):
                async for answer in handler.stream_stream(requests, context):
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
        options = (
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_WITHIN_MS),
        )
        most = CALLS_MAX + STREAMS_MAX + REFUSED_MAX
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=most, interceptors=(_Guard(),))
        self._health = health.HealthServicer()
        broker_pb2_grpc.add_BrokerServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, path: Path, admit: Callable[[Path], None]) -> None:
        """Listen on this path, let in whom `admit` says, and report SERVING."""
        with private_umask():
            self._server.add_insecure_port(grpc_address(path))
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
