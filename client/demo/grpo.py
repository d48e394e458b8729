"""GRPO: how good an answer was among its siblings, and the loss that follows from it.

As in DeepSeekMath (arXiv:2402.03300), section 4, without the reference model's term: advantages are rewards normalised
within the group of answers to one prompt; the loss is the clipped ratio of new to old probability times the advantage.
"""

import torch

CLIP = 0.2
DEVIATION_MIN = 1e-4
WARMUP_STEPS = 10


def advantages(rewards: torch.Tensor, samples: int) -> torch.Tensor:
    """Normalise rewards within each run of `samples` consecutive answers; a group of equal rewards teaches nothing.

    Shapes: `[prompts * samples]` in and out.
    """
    groups = rewards.view(-1, samples)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True) + DEVIATION_MIN)).view(-1)


def loss(new_logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """Return the clipped policy loss, a mean over all tokens.

    Shapes: log-probabilities `[answers, tokens]`, advantage `[answers]`.
    """
    ratio = (new_logprobs - old_logprobs).exp()
    weight = advantage.unsqueeze(1)
    clipped = ratio.clamp(1.0 - CLIP, 1.0 + CLIP)
    return -torch.minimum(ratio * weight, clipped * weight).mean()


def learning_rate(step: int, peak: float) -> float:
    """Rise to `peak` over the first steps, then stay. `step` counts from 0."""
    return peak * min(1.0, (step + 1) / WARMUP_STEPS)
