"""The keys of the gRPC metadata: who calls, and, in the trailer of a refusal, the error's fields."""

TOKEN_KEY = "vrambroker-token-bin"
ERROR_KEY = "vrambroker-error-bin"
