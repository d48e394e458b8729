"""The loop of reinforcement learning: who may be awake when, step by step.

Multi-stage awake: the rollout's weights come back and are given new values while only the trainer's `params` are there
with them; then the trainer lets go and the KV cache comes; then both make room for the training.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vrambroker.client.demo import task
from vrambroker.client.demo.side import Side
from vrambroker.client.demo.sizes import Size

RECENT_STEPS = 5
REWARD_ENOUGH = 0.85
REWARD_PROVEN = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to stop, if the reward is not enough before."""

    steps: int
    seconds: float


@dataclass(slots=True, kw_only=True)
class Course:
    """What has been learned so far, and what was found out on the way."""

    rewards: list[float] = field(default_factory=list[float])
    seconds: float = 0.0
    logprob_gap_max: float = 0.0

    @property
    def recent(self) -> float:
        """The mean reward of the last few steps; 0 before the first."""
        return statistics.fmean(self.rewards[-RECENT_STEPS:]) if self.rewards else 0.0


Tell = Callable[[Course, str], None]
"""Called as a stage begins, with its name."""


def learn(trainer: Side, rollout: Side, size: Size, limits: Limits, *, seed: int, tell: Tell) -> Course:
    """Run steps until the reward is enough or a limit is reached. Raises `WorkerFailed`."""
    rng = random.Random(seed)
    course = Course()
    began = time.monotonic()
    while len(course.rewards) < limits.steps and course.seconds < limits.seconds:
        _step(trainer, rollout, size, course, rng, tell)
        course.seconds = time.monotonic() - began
        if len(course.rewards) >= RECENT_STEPS and course.recent >= REWARD_ENOUGH:
            break
    return course


def _step(trainer: Side, rollout: Side, size: Size, course: Course, rng: random.Random, tell: Tell) -> None:
    step = len(course.rewards)
    prompts = task.make_prompts(rng, size.prompts)
    tell(course, "update")
    rollout.ask("wake", step=step)
    trainer.ask("publish")
    rollout.ask("collect")
    tell(course, "generate")
    generated = rollout.ask("generate", step=step, prompts=prompts)
    answers: list[list[int]] = generated["answers"]
    asked = [prompt for prompt in prompts for _ in range(size.samples)]
    rewards = [task.reward(prompt, answer) for prompt, answer in zip(asked, answers, strict=True)]
    tell(course, "train")
    trained = trainer.ask(
        "train", step=step, prompts=prompts, answers=answers, logprobs=generated["logprobs"], rewards=rewards
    )
    course.rewards.append(statistics.fmean(rewards))
    course.logprob_gap_max = max(course.logprob_gap_max, trained["logprob_gap"])
