"""The demo's task and its learning rule: checkable answers, honest advantages, sizes that are the real model's."""

import itertools
import random
from statistics import fmean

import pytest
import torch

from vrambroker.client.demo import grpo, policy, task
from vrambroker.client.demo.plan import FRAME_BYTES, STAGES, plan_for
from vrambroker.client.demo.sizes import DEFAULT_SIZE, SIZES, Size


@pytest.mark.parametrize(
    ("digits", "answer", "earned"),
    [
        ((3, 1, 2, 0), (0, 1, 2, 3), 1.0),
        ((3, 1, 2, 0), (3, 1, 2, 0), 0.5),
        ((9, 9, 1, 5), (1, 5, 9, 9), 1.0),
        ((9, 9, 1, 5), (9, 9, 5, 1), 0.0),
        ((0, 0, 0, 0), (0, 0, 0, task.EQUALS), 0.75),
    ],
)
def test_the_reward_is_the_share_of_right_digits(
    digits: tuple[int, ...], answer: tuple[int, ...], earned: float
) -> None:
    assert task.reward([*digits, task.EQUALS], answer) == earned


@pytest.mark.parametrize(("prompt", "answer"), [([1, 2, 3, 4], [1, 2, 3, 4]), ([1, 2, 3, 4, task.EQUALS], [1, 2, 3])])
def test_what_is_no_prompt_or_no_answer_earns_an_error(prompt: list[int], answer: list[int]) -> None:
    with pytest.raises(ValueError, match=r"prompt|tokens"):
        task.reward(prompt, answer)


def test_no_answer_blind_to_the_digits_earns_what_counts_as_learned() -> None:
    prompts = [[*digits, task.EQUALS] for digits in itertools.product(range(task.BASE), repeat=task.DIGITS)]
    right = [
        max(sum(sorted(prompt[: task.DIGITS])[place] == digit for prompt in prompts) for digit in range(task.BASE))
        for place in range(task.DIGITS)
    ]
    assert fmean(count / len(prompts) for count in right) == pytest.approx(0.27, abs=0.01)


def test_prompts_are_four_digits_and_a_sign_and_come_from_the_seed() -> None:
    prompts = task.make_prompts(random.Random(3), 50)
    assert prompts == task.make_prompts(random.Random(3), 50)
    assert all(len(prompt) == task.PROMPT_LENGTH and prompt[-1] == task.EQUALS for prompt in prompts)
    assert {digit for prompt in prompts for digit in prompt[:-1]} == set(range(task.BASE))


def test_advantages_are_normalised_within_each_group() -> None:
    rewards = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.75, 0.75, 0.75, 0.75])
    mixed, equal = grpo.advantages(rewards, samples=4).view(2, 4)
    assert mixed.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert mixed.std().item() == pytest.approx(1.0, abs=1e-3)
    assert mixed[1] > 0 > mixed[0]
    assert equal.abs().max().item() == 0.0


def test_the_loss_rises_with_what_was_better_and_stops_at_the_clip() -> None:
    old = torch.full((1, 2), -1.0)
    for change, moves in ((0.0, True), (0.3, False)):
        new = (old + change).requires_grad_()
        grpo.loss(new, old, torch.tensor([2.0])).backward()  # type: ignore[no-untyped-call]  # torch's
        assert new.grad is not None
        assert bool((new.grad < 0).all()) == moves
        assert bool((new.grad == 0).all()) != moves


def test_the_learning_rate_rises_for_ten_steps() -> None:
    rates = [grpo.learning_rate(step, 1.0) for step in range(12)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9:] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_size_counts_the_real_models_parameters(size: Size) -> None:
    model = policy.make_model(size, seed=1, device=torch.device("meta"))
    assert tuple(parameter.numel() for parameter in model.parameters()) == size.parameter_sizes


def test_a_size_counts_the_real_caches_tensors() -> None:
    size = SIZES[DEFAULT_SIZE]
    model = policy.make_model(size, seed=1)
    cache = policy.make_cache(model, size)
    policy.fill_cache(cache, size, model.device)
    assert tuple(tensor.numel() for tensor in policy.cache_tensors(cache).values()) == size.cache_sizes


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_capacity_is_enough_for_each_stage_and_never_for_both_sides(size: Size, on_gpu: bool) -> None:
    plan = plan_for(size, on_gpu=on_gpu)
    assert plan.capacity_bytes < plan.together_bytes
    assert plan.capacity_bytes % FRAME_BYTES == 0
    for stage in STAGES:
        assert sum(plan.tag_bytes[tag] for tag in stage) <= plan.capacity_bytes


def test_both_sides_find_the_same_answer_equally_likely() -> None:
    size = SIZES[DEFAULT_SIZE]
    model = policy.make_model(size, seed=1)
    cache = policy.make_cache(model, size)
    policy.fill_cache(cache, size, model.device)
    for tensor in policy.cache_tensors(cache).values():
        tensor.fill_(float("nan"))
    prompts = torch.tensor(task.make_prompts(random.Random(1), size.prompts))
    answers, logprobs = policy.generate(policy.Decoder(model, cache, None), model, cache, prompts)
    sequence = torch.cat([prompts.repeat_interleave(size.samples, dim=0), answers], dim=1)
    with torch.no_grad():
        again = policy.answer_logprobs(model, prompts, answers)
        plainly = model(input_ids=sequence[:, :-1], logits_to_keep=task.DIGITS).logits.log_softmax(dim=-1)
    assert answers.shape == (size.prompts * size.samples, task.DIGITS)
    assert torch.allclose(logprobs, again, atol=1e-5)
    assert torch.allclose(logprobs, plainly.gather(2, answers.unsqueeze(2)).squeeze(2), atol=1e-5)


def test_shared_prompts_have_the_gradients_of_prompts_read_one_by_one() -> None:
    model = policy.make_model(SIZES[DEFAULT_SIZE], seed=1)
    prompts = torch.tensor(task.make_prompts(random.Random(1), 3))
    answers = torch.randint(0, task.BASE, (6, task.DIGITS))
    weight = torch.randn(6, task.DIGITS)
    gradients: list[list[torch.Tensor]] = []
    for asked in (prompts, prompts.repeat_interleave(2, dim=0)):
        model.zero_grad()
        (policy.answer_logprobs(model, asked, answers) * weight).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([torch.zeros(1) if p.grad is None else p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))
    assert max(float(gradient.abs().max()) for gradient in gradients[0]) > 0.01
