"""The task: sort four digits. Small enough to learn in a minute on two cores, and every answer can be checked.

A prompt is four digits and `=`; the answer is the same digits in ascending order. The reward is the share of digits in
the right place, so an answer that ignores the prompt earns about 0.27 at best, and more than 0.5 was learned.
"""

import random
from collections.abc import Sequence

DIGITS = 4
BASE = 10
EQUALS = BASE
"""The token that ends a prompt; the digits are the tokens 0 to 9."""

VOCABULARY = BASE + 1
PROMPT_LENGTH = DIGITS + 1


def make_prompts(rng: random.Random, count: int) -> list[list[int]]:
    """Draw `count` prompts, each of `PROMPT_LENGTH` tokens."""
    return [[*(rng.randrange(BASE) for _ in range(DIGITS)), EQUALS] for _ in range(count)]


def reward(prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Return the share of the answer's digits that are right, from 0 to 1."""
    if len(prompt) != PROMPT_LENGTH or prompt[DIGITS] != EQUALS:
        raise ValueError(f"not a prompt: {list(prompt)}")
    if len(answer) != DIGITS:
        raise ValueError(f"an answer has {DIGITS} tokens, this has {len(answer)}")
    return sum(a == b for a, b in zip(answer, sorted(prompt[:DIGITS]), strict=True)) / DIGITS
