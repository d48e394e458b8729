"""The policy both sides run: a decoder-only transformer, how it answers, and how sure it was.

The one file that touches `transformers`; it is imported in the workers only, since it takes seconds.
"""

import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer

from vrambroker.client.demo import task
from vrambroker.client.demo.sizes import Size
from vrambroker.client.tensors import CPU

Answers = tuple[torch.Tensor, torch.Tensor]


def make_model(size: Size, seed: int, device: torch.device = CPU) -> Qwen2ForCausalLM:
    """Make the model on this device with random weights, the same for the same seed."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]  # torch's
    config = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.cache_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with device:
        return Qwen2ForCausalLM(config)


def make_cache(model: Qwen2ForCausalLM, size: Size) -> StaticCache:
    """Make a cache without memory; `fill_cache` gives it its tensors."""
    return StaticCache(config=model.config, max_cache_len=size.cache_length)


def fill_cache(cache: StaticCache, size: Size, device: torch.device) -> None:
    """Allocate the cache's keys and values, all at once."""
    cache.early_initialization(
        batch_size=size.prompts * size.samples,
        num_heads=size.kv_heads,
        head_dim=size.head_dim,
        dtype=torch.float32,
        device=device,
    )


def cache_tensors(cache: StaticCache) -> dict[str, torch.Tensor]:
    """Name every tensor that holds keys or values."""
    named: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(static_layers(cache)):
        for part, tensor in (("keys", layer.keys), ("values", layer.values)):
            assert isinstance(tensor, torch.Tensor), "filled first"
            named[f"{index}.{part}"] = tensor
    return named


class Decoder:
    """One step of decoding: each answer's next token, sampled at temperature 1, and how likely it was.

    With a `pool`, which only a GPU has, the step is captured as a CUDA graph when it is first taken, and replayed from
    then on: whatever happens to the memory of the weights, the cache and the pool meanwhile, it must be back by then.
    """

    def __init__(self, model: Qwen2ForCausalLM, cache: StaticCache, pool: tuple[int, int] | None) -> None:
        self._model = model
        self._cache = cache
        self._pool = pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given = torch.empty(0)
        self._answered = (self._given, self._given)

    @property
    def captured(self) -> bool:
        """Whether the step is a graph by now."""
        return self._graph is not None

    def step(self, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take each answer's last token, `[answers, 1]`; return the next ones and their log-probabilities, alike."""
        if self._pool is None:
            return self._decode(given)
        if self._graph is None:
            self._graph = self._capture(given, self._pool)
        self._given.copy_(given)
        self._graph.replay()
        token, logprob = self._answered
        return token.clone(), logprob.clone()

    def _decode(self, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._model(input_ids=given, past_key_values=self._cache, use_cache=True).logits[:, -1]
        distribution = logits.float().log_softmax(dim=-1)
        token = torch.multinomial(distribution.exp(), num_samples=1)
        return token, distribution.gather(1, token)

    def _capture(self, given: torch.Tensor, pool: tuple[int, int]) -> torch.cuda.CUDAGraph:
        """Capture the step. The trial before it, which libraries need, must leave no trace in the cache."""
        self._given = given.clone()
        lengths = [layer.cumulative_length.clone() for layer in static_layers(self._cache)]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._decode(self._given)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # torch's
            self._answered = self._decode(self._given)
        for layer, length in zip(static_layers(self._cache), lengths, strict=True):
            layer.cumulative_length.copy_(length)
        return graph


def static_layers(cache: StaticCache) -> list[StaticLayer]:
    """Return the cache's layers, of a model without sliding or linear attention."""
    layers = [layer for layer in cache.layers if isinstance(layer, StaticLayer)]
    assert len(layers) == len(cache.layers)
    return layers


@torch.no_grad()
def generate(decoder: Decoder, model: Qwen2ForCausalLM, cache: StaticCache, prompts: torch.Tensor) -> Answers:
    """Sample a group of answers to every prompt, at temperature 1; as many answers as the cache has room for.

    Shapes: prompts `[prompts, PROMPT_LENGTH]`; returns tokens and their log-probabilities, both `[answers, DIGITS]`,
    a prompt's answers one after the other. The cache's contents are undefined before (it was dropped) and are cleared.
    """
    samples = cache_tensors(cache)["0.keys"].shape[0] // len(prompts)
    cache.reset()  # type: ignore[no-untyped-call]  # transformers'
    for index, layer in enumerate(_read(model, prompts, samples).layers):
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None and layer.values is not None
        cache.update(layer.keys, layer.values, index)  # pyright: ignore[reportUnknownMemberType]  # transformers'
    tokens: list[torch.Tensor] = []
    logprobs: list[torch.Tensor] = []
    given = prompts[:, -1:].repeat_interleave(samples, dim=0)
    for _ in range(task.DIGITS):
        given, logprob = decoder.step(given)
        tokens.append(given)
        logprobs.append(logprob)
    return torch.cat(tokens, dim=1), torch.cat(logprobs, dim=1)


def answer_logprobs(model: Qwen2ForCausalLM, prompts: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Return how likely the model finds each token of the answers, differentiable. Shapes as in `generate`."""
    samples = len(answers) // len(prompts)
    given = torch.cat([prompts[:, -1:].repeat_interleave(samples, dim=0), answers[:, :-1]], dim=1)
    logits = model(input_ids=given, past_key_values=_read(model, prompts, samples), use_cache=True).logits
    logprobs: torch.Tensor = logits.float().log_softmax(dim=-1).gather(2, answers.unsqueeze(2)).squeeze(2)
    return logprobs


def _read(model: Qwen2ForCausalLM, prompts: torch.Tensor, samples: int) -> DynamicCache:
    """Have the model read each prompt once, but for its last token, and share that among its answers."""
    cache = DynamicCache(config=model.config)
    model.model(input_ids=prompts[:, :-1], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(samples)
    return cache
