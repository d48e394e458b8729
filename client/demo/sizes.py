"""How big the demo's model is, by name; what the two sides need follows from it.

`tiny` is the default and learns in a minute or two on two cores. The larger ones keep the task and the steps, and take
the shapes (and the vocabulary, for its memory) of the Qwen2.5 family, for devices that have room for them.
"""

from dataclasses import dataclass

from vrambroker.client.demo import task


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The shape of the model and of a step. A step has `prompts * samples` answers."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = task.VOCABULARY
    prompts: int = 32
    samples: int = 16
    cache_length: int = 12
    learning_rate: float = 3e-4

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def parameter_sizes(self) -> tuple[int, ...]:
        """The elements of each parameter of a Qwen2 of this shape, embeddings tied (tests hold it to the real one)."""
        kv_width = self.kv_heads * self.head_dim
        attention = (self.hidden * self.hidden, self.hidden, *(self.hidden * kv_width, kv_width) * 2)
        output, norms = self.hidden * self.hidden, (self.hidden, self.hidden)
        block = (*attention, output, *(self.hidden * self.intermediate,) * 3, *norms)
        return (self.vocabulary * self.hidden, *block * self.layers, self.hidden)

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        return sum(self.parameter_sizes)

    @property
    def cache_sizes(self) -> tuple[int, ...]:
        """The elements of each tensor of the KV cache."""
        answers = self.prompts * self.samples
        return (answers * self.kv_heads * self.head_dim * self.cache_length,) * (2 * self.layers)


SIZES = {
    size.name: size
    for size in (
        Size(name="tiny", layers=4, hidden=128, heads=4, kv_heads=2, intermediate=384),
        Size(name="small", layers=8, hidden=512, heads=8, kv_heads=4, intermediate=1408, learning_rate=1e-4),
        Size(name="medium", layers=16, hidden=1024, heads=16, kv_heads=4, intermediate=2816, learning_rate=3e-5),
        Size(
            name="0.5b",
            layers=24,
            hidden=896,
            heads=14,
            kv_heads=2,
            intermediate=4864,
            vocabulary=151936,
            cache_length=256,
            learning_rate=1e-5,
        ),
        Size(
            name="1.5b",
            layers=28,
            hidden=1536,
            heads=12,
            kv_heads=2,
            intermediate=8960,
            vocabulary=151936,
            cache_length=256,
            learning_rate=1e-5,
        ),
    )
}
DEFAULT_SIZE = "tiny"
