"""A worker's process: attaches to the broker, makes its side's tensors, and does what it is told until the lane closes.

`python -m vrambroker.client.demo.worker {trainer|rollout} SETTINGS`, where SETTINGS is JSON, and names the fds it has.
"""

import faulthandler
import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a worker is told at its start. `deadline_s` bounds each wait for memory, and the whole of an answer."""

    device: str
    size: str
    seed: int
    threads: int
    deadline_s: float
    lane_fd: int
    mailbox_fd: int

    def text(self) -> str:
        """Return them as one argument of the command line."""
        return json.dumps(asdict(self))


def main() -> None:
    """Be the worker that the command line names."""
    role, text = sys.argv[1:]
    settings = Settings(**json.loads(text))
    faulthandler.enable()
    # Imported here: torch takes seconds, and whoever imports this for its settings should not wait for it.
    import torch

    from vrambroker.client.demo.lane import Lane, Verb, answer_questions
    from vrambroker.client.demo.mailbox import Mailbox
    from vrambroker.client.demo.rollout import Rollout
    from vrambroker.client.demo.sizes import SIZES
    from vrambroker.client.demo.trainer import Trainer
    from vrambroker.client.memory import connect

    torch.set_num_threads(settings.threads)
    size, mailbox = SIZES[settings.size], Mailbox(settings.mailbox_fd)
    with connect(role, settings.device) as memory:
        if memory.torch_device.type == "cuda":
            # Streams and graphs are made on the current GPU, which is the first unless somebody says so.
            torch.cuda.set_device(memory.torch_device)

        def prepare() -> Mapping[str, object]:
            """Make the side's tensors. The coordinator asks one side after the other: they don't fit together."""
            side = sides[role](memory, size, mailbox, seed=settings.seed, resume_timeout_s=settings.deadline_s)
            verbs.update({name: getattr(side, name) for name in VERBS[role]})
            return side.describe()

        sides: dict[str, type[Trainer] | type[Rollout]] = {"trainer": Trainer, "rollout": Rollout}
        verbs: dict[str, Verb] = {"prepare": prepare}
        lane = Lane(socket.socket(fileno=settings.lane_fd))
        answer_questions(lane, verbs, answer_timeout_s=settings.deadline_s)


VERBS = {
    "trainer": ("publish", "train", "finish"),
    "rollout": ("wake", "collect", "generate", "finish"),
}

if __name__ == "__main__":
    main()
