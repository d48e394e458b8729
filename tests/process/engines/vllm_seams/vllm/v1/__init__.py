"""vLLM as it is now."""
