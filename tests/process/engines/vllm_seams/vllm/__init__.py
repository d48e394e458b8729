"""The seams of vLLM 0.33.0 that its plugins meet, by its names and signatures; the rest of it is not here.

What is found as `vllm` where vLLM itself is not installed: by the programs of these tests, and by type checkers.
tests/process/test_vllm_interface.py compares it with what was recorded of the released package.
"""

__version__ = "0.33.0"
