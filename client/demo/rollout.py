"""The rollout: its own copy of the weights and a static KV cache, in leased memory, and answers to prompts.

Its tags: `weights` are kept across a pause, `kv_cache` is not worth it. It wakes in two stages: the weights first, to
be given new values, and the cache once the trainer has let go.
"""

from collections.abc import Mapping
from typing import cast

import torch

from vrambroker.client.demo import policy
from vrambroker.client.demo.mailbox import Mailbox
from vrambroker.client.demo.sizes import Size
from vrambroker.client.demo.watchman import Watchman
from vrambroker.client.memory import Memory

WEIGHTS, KV_CACHE = "weights", "kv_cache"


class Rollout:
    """Answers with the weights it was given last. Between `generate` and `wake` all its memory is paused."""

    def __init__(self, memory: Memory, size: Size, mailbox: Mailbox, *, seed: int, resume_timeout_s: float) -> None:
        self._memory = memory
        self._size = size
        self._mailbox = mailbox
        self._resume_timeout_s = resume_timeout_s
        with memory.region(WEIGHTS):
            self._model = policy.make_model(size, seed, memory.torch_device)
        self._cache = policy.make_cache(self._model, size)
        with memory.region(KV_CACHE, contents="drop"):
            policy.fill_cache(self._cache, size, memory.torch_device)
        # A graph's memory is of no use between two generations, as the cache is.
        pool = memory.graph_pool(KV_CACHE, contents="drop") if memory.torch_device.type == "cuda" else None
        self._decoder = policy.Decoder(self._model, self._cache, pool)
        self._watchman = Watchman(
            {WEIGHTS: self._weights, KV_CACHE: lambda: policy.cache_tensors(self._cache)},
        )
        self._pause()

    def describe(self) -> dict[str, object]:
        """Return what there is: bytes by tag, and how many addresses are watched."""
        return {"tag_bytes": self._watchman.tag_bytes(), "addresses": self._watchman.addresses}

    def wake(self, *, step: int) -> dict[str, object]:
        """Bring the weights back, as they were, to be updated."""
        self._memory.mark(f"update {step}")
        self._resume(WEIGHTS)
        return {}

    def collect(self) -> dict[str, object]:
        """Take the weights that the trainer left."""
        with self._memory.use(WEIGHTS, name="collect"):
            return {"bytes": self._mailbox.collect(self._model.parameters())}

    def generate(self, *, step: int, prompts: list[list[int]]) -> dict[str, object]:
        """Bring the cache back, answer every prompt, and let go of everything."""
        self._memory.mark(f"generate {step}")
        self._resume(KV_CACHE)
        with self._memory.use(WEIGHTS, KV_CACHE, name="generate"):
            answers, logprobs = policy.generate(
                self._decoder, self._model, self._cache, torch.tensor(prompts, device=self._memory.torch_device)
            )
        self._watchman.check_addresses()
        self._pause()
        return {"answers": _lists(answers), "logprobs": _lists(logprobs), **self._findings()}

    def finish(self) -> dict[str, object]:
        """Bring everything back once more and look at it."""
        self._resume(WEIGHTS, KV_CACHE)
        self._watchman.check_addresses()
        self._pause()
        stats = self._memory.stats()
        return {
            **self._findings(),
            "copied_out_bytes": stats.copied_out_bytes,
            "copied_in_bytes": stats.copied_in_bytes,
        }

    def _findings(self) -> dict[str, object]:
        return {
            "addresses_changed": self._watchman.addresses_changed,
            "contents_changed": self._watchman.contents_changed,
        }

    def _resume(self, *tags: str) -> None:
        self._memory.resume(*tags, timeout=self._resume_timeout_s)
        self._watchman.after_resume(*tags)

    def _pause(self) -> None:
        self._watchman.before_pause(WEIGHTS)
        self._memory.pause(WEIGHTS, KV_CACHE)

    def _weights(self) -> Mapping[str, torch.Tensor]:
        return dict(self._model.named_parameters())


def _lists(tensor: torch.Tensor) -> list[list[float]]:
    return cast("list[list[float]]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]  # torch's
