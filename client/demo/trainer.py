"""The trainer: a model, its gradients and its optimizer, all in leased memory, and one step of GRPO at a time.

Its tags: `params` and `optimizer` are kept across a pause, `grads` are not worth it. It lets go of everything while the
rollout generates, and holds only `params` while the rollout is given its weights.
"""

from collections.abc import Mapping, Sequence

import torch

from vrambroker.client.demo import grpo, policy
from vrambroker.client.demo.mailbox import Mailbox
from vrambroker.client.demo.sizes import Size
from vrambroker.client.demo.watchman import Watchman
from vrambroker.client.memory import Memory

PARAMS, GRADS, OPTIMIZER = "params", "grads", "optimizer"
GRADIENT_NORM_MAX = 1.0


class Trainer:
    """Owns the policy. Between two verbs its memory is paused, except that `train` leaves `params` resident."""

    def __init__(self, memory: Memory, size: Size, mailbox: Mailbox, *, seed: int, resume_timeout_s: float) -> None:
        self._memory = memory
        self._size = size
        self._mailbox = mailbox
        self._resume_timeout_s = resume_timeout_s
        with memory.region(PARAMS):
            self._model = policy.make_model(size, seed, memory.torch_device)
        with memory.region(GRADS, contents="drop"):
            for parameter in self._model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=size.learning_rate, weight_decay=0.0)
        with memory.region(OPTIMIZER):
            self._fill_optimizer()
        self._watchman = Watchman({PARAMS: self._params, GRADS: self._grads, OPTIMIZER: self._moments})
        self._pause(PARAMS, OPTIMIZER, GRADS)

    def describe(self) -> dict[str, object]:
        """Return what there is: bytes by tag, and how many addresses are watched."""
        return {"tag_bytes": self._watchman.tag_bytes(), "addresses": self._watchman.addresses}

    def publish(self) -> dict[str, object]:
        """Leave the weights for the rollout, then let go of everything."""
        self._resume(PARAMS)
        with self._memory.use(PARAMS, name="publish"):
            published = self._mailbox.leave(self._model.parameters())
        self._pause(PARAMS)
        return {"bytes": published}

    def train(
        self,
        *,
        step: int,
        prompts: list[list[int]],
        answers: list[list[int]],
        logprobs: list[list[float]],
        rewards: list[float],
    ) -> dict[str, object]:
        """Take one step on these answers. `logprobs` are the rollout's, from its own copy of the weights."""
        self._memory.mark(f"train {step}")
        self._resume(PARAMS, OPTIMIZER, GRADS)
        with self._memory.use(PARAMS, OPTIMIZER, GRADS, name="train"):
            old_logprobs = self._tensor(logprobs)
            advantage = grpo.advantages(self._tensor(rewards), self._size.samples)
            # What was dropped is undefined now, so it is cleared in place, also before the first step.
            self._optimizer.zero_grad(set_to_none=False)
            new_logprobs = policy.answer_logprobs(self._model, self._tensor(prompts), self._tensor(answers))
            loss = grpo.loss(new_logprobs, old_logprobs, advantage)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), GRADIENT_NORM_MAX)
            for group in self._optimizer.param_groups:
                group["lr"] = grpo.learning_rate(step, self._size.learning_rate)
            self._optimizer.step()  # pyright: ignore[reportUnknownMemberType]  # torch's
            gap = float((new_logprobs.detach() - old_logprobs).abs().max())
        self._watchman.check_addresses()
        self._pause(OPTIMIZER, GRADS)
        return {"loss": float(loss.detach()), "logprob_gap": gap, **self._findings()}

    def finish(self) -> dict[str, object]:
        """Bring everything back once more and look at it."""
        self._memory.mark("finish")
        self._resume(PARAMS, OPTIMIZER, GRADS)
        self._watchman.check_addresses()
        self._pause(PARAMS, OPTIMIZER, GRADS)
        stats = self._memory.stats()
        return {
            **self._findings(),
            "copied_out_bytes": stats.copied_out_bytes,
            "copied_in_bytes": stats.copied_in_bytes,
        }

    def _tensor(self, values: Sequence[object]) -> torch.Tensor:
        return torch.tensor(values, device=self._memory.torch_device)

    def _findings(self) -> dict[str, object]:
        return {
            "addresses_changed": self._watchman.addresses_changed,
            "contents_changed": self._watchman.contents_changed,
        }

    def _resume(self, *tags: str) -> None:
        self._memory.resume(*tags, timeout=self._resume_timeout_s)
        self._watchman.after_resume(*tags)

    def _pause(self, *tags: str) -> None:
        self._watchman.before_pause(*(tag for tag in tags if tag != GRADS))
        self._memory.pause(*tags)

    def _fill_optimizer(self) -> None:
        """Make AdamW's state now, as its first step would, so that all of it is there from the start."""
        for parameter in self._model.parameters():
            self._optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def _params(self) -> Mapping[str, torch.Tensor]:
        return dict(self._model.named_parameters())

    def _grads(self) -> Mapping[str, torch.Tensor]:
        # A gradient that is gone is told as an empty tensor, whose address is another.
        return {name: torch.empty(0) if p.grad is None else p.grad for name, p in self._model.named_parameters()}

    def _moments(self) -> Mapping[str, torch.Tensor]:
        return {
            f"{name}.{key}": tensor
            for name, parameter in self._model.named_parameters()
            for key, tensor in self._optimizer.state[parameter].items()
        }
