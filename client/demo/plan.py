"""What both sides need, by tag, and a capacity that can't hold both at once but is enough for every stage.

Counted from the shapes before anything runs, as the native client will carve its ranges: requests of a mebibyte and
more are rounded up to 2 MiB, small ones share, and a tag has whole frames. The report's figures are the daemon's.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from vrambroker.client.demo.sizes import Size

MIB, GIB = 1 << 20, 1 << 30
FRAME_BYTES = 2 * MIB
GPU_FRAME_BYTES = 32 * MIB
ELEMENT_BYTES = 4
CAPACITY_SHARE = 0.7
GRAPH_LOGITS = 6
SEGMENTS_BYTES = 24 * MIB
STAGES = (
    ("trainer/params", "rollout/weights"),
    ("rollout/weights", "rollout/kv_cache"),
    ("trainer/params", "trainer/optimizer", "trainer/grads"),
)
"""What is in use together: the update, the generation, the training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Bytes by `session/tag`, and what is lent of the device."""

    tag_bytes: dict[str, int]
    capacity_bytes: int
    weights_bytes: int

    @property
    def together_bytes(self) -> int:
        return sum(self.tag_bytes.values())

    @property
    def kept_bytes(self) -> int:
        """What the arena may have to hold at once: everything that is kept."""
        return sum(self.tag_bytes[tag] for tag in ("trainer/params", "trainer/optimizer", "rollout/weights"))


def plan_for(size: Size, *, on_gpu: bool = False) -> Plan:
    """Plan a device of about 70 % of what both sides need together."""
    weights = size.parameter_sizes
    tag_bytes = {
        "trainer/params": _range_bytes(weights),
        "trainer/grads": _range_bytes(weights),
        "trainer/optimizer": _range_bytes((*weights, *weights)),
        "rollout/weights": _range_bytes(weights),
        "rollout/kv_cache": _range_bytes(size.cache_sizes),
    }
    if on_gpu:
        tag_bytes["rollout/kv_cache"] += _graph_bytes(size)
        tag_bytes = {tag: _on_gpu(needed) for tag, needed in tag_bytes.items()}
    frame_bytes = GPU_FRAME_BYTES if on_gpu else FRAME_BYTES
    together = sum(tag_bytes.values())
    largest_stage = max(sum(tag_bytes[tag] for tag in stage) for stage in STAGES)
    wanted = max(int(together * CAPACITY_SHARE), largest_stage + frame_bytes)
    return Plan(
        tag_bytes=tag_bytes,
        capacity_bytes=_round_up(wanted, frame_bytes),
        weights_bytes=size.parameters * ELEMENT_BYTES,
    )


def _graph_bytes(size: Size) -> int:
    """Return about what a step of decoding has at once: a few times the logits, above all."""
    return GRAPH_LOGITS * size.prompts * size.samples * size.vocabulary * ELEMENT_BYTES + 32 * MIB


def _on_gpu(needed_bytes: int) -> int:
    """Return the frames for it: torch asks for segments, and the last frame of a large lease is a large one."""
    last_bytes = GIB if needed_bytes >= 4 * GIB else 256 * MIB if needed_bytes >= GIB else 0
    return _round_up(needed_bytes + SEGMENTS_BYTES + last_bytes, GPU_FRAME_BYTES)


def _range_bytes(elements: Iterable[int]) -> int:
    big = small = 0
    for count in elements:
        size_bytes = count * ELEMENT_BYTES
        if size_bytes >= MIB:
            big += _round_up(size_bytes, FRAME_BYTES)
        else:
            small += _round_up(size_bytes, 512)
    return _round_up(big + small, FRAME_BYTES)


def _round_up(size_bytes: int, step_bytes: int) -> int:
    return -(-size_bytes // step_bytes) * step_bytes
