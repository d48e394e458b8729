"""A trainer with its inference engine in the same process, as NeMo-RL has it: one tag is the engine's, the rest is plain."""

import sys

import torch
from here import MIB, use_device  # type: ignore[import-not-found]  # beside this script
from torch_memory_saver import torch_memory_saver as saver

TAG = "nemo_rl_megatron_inference_model"


class Policy:
    """The training side is plain memory that it moves itself; the inference model is paused and resumed."""

    def __init__(self) -> None:
        saver.hook_mode = "torch"
        self.params = torch.full((MIB,), 1.0)
        with saver.region(tag=TAG, enable_cpu_backup=True):
            self.model = torch.nn.Linear(1024, 1024)
        self.addresses = [parameter.data_ptr() for parameter in self.model.parameters()]
        self.expected = self.answer()

    def answer(self) -> float:
        with torch.no_grad():
            return float(self.model(torch.ones(1024)).double().sum())

    def finish_generation(self) -> str:
        saver.pause(TAG)
        return "paused"

    def prepare_for_generation(self) -> str:
        saver.resume(TAG)
        assert [parameter.data_ptr() for parameter in self.model.parameters()] == self.addresses
        assert self.answer() == self.expected, "the model is another"
        return "resumed"

    def refit(self) -> str:
        """New weights, in place."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(self.params[0])
        self.expected = self.answer()
        return "refitted"

    def train(self) -> str:
        """Autograd over plain memory, while the engine's is away."""
        weight = self.params[:1000].clone().requires_grad_()
        (grad,) = torch.autograd.grad((weight * weight).sum(), weight)
        assert grad.eq(2 * self.params[0]).all()
        return "trained"


def main() -> None:
    use_device()
    policy = Policy()
    print("ready", flush=True)
    for line in sys.stdin:
        answer: str = getattr(policy, line.strip())()
        print(answer, flush=True)


if __name__ == "__main__":
    main()
