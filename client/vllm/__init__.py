"""vLLM's sleep mode on leased memory: a backend for it, and the allocator that its workers allocate with.

Nothing of vLLM is imported until vLLM has loaded the plugin (`plugin.register`, the entry point `vllm.general_plugins`).
docs/engines.md has what to set.
"""
