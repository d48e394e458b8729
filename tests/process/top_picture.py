"""The picture of `broker top` in the docs, of a real daemon and real workers: python -m tests.process.top_picture docs/top.svg

A trainer and a rollout engine change places for a minute and a half; at last somebody else asks for more than there is.
"""

import asyncio
import re
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

from tests.process.conftest import RunningBroker, Worker
from vrambroker.broker.top.app import Top
from vrambroker.broker.top.feed import Feed

SIZE = (100, 30)
CHANGES = 18
STAGE_S = 5.0
WORKER = """
from vrambroker.client.native import Client
from vrambroker.client.discovery import find
client = Client(socket_path=str(find().handle_socket), name=NAME, device="host", version="picture", timeout_s=10)
for tag, contents, size_mib in TAGS:
    client.open_lease(tag, contents).malloc(size_mib << 20, timeout_s=60)
    client.use_enter((tag,), "step")
    client.use_exit((tag,), "step")
client.pause(tuple(tag for tag, _, _ in TAGS), release=False, timeout_s=10)
tell("ready")
told()
client.resume((TAGS[0][0],), timeout_s=60)
told()
"""
TAGS = {
    "trainer": [("params", "keep", 160), ("optimizer", "keep", 320), ("gradients", "drop", 160)],
    "rollout": [("weights", "keep", 160), ("kv_cache", "drop", 560)],
    "reward-model": [("weights", "keep", 96)],
}
PHASES = {"train": ["trainer/*"], "generate": ["rollout/*"]}


async def _watched(broker: RunningBroker, scorer: Worker, stack: ExitStack) -> str:
    control = broker.control(stack)
    control.set_plan(PHASES, order="device")
    app = Top(Feed(broker.control(stack)))
    async with app.run_test(size=SIZE) as pilot:
        for number in range(CHANGES):
            await asyncio.to_thread(control.enter, ("train", "generate")[number % 2])
            await asyncio.sleep(STAGE_S)
        scorer.say()
        await asyncio.sleep(1.5)
        await pilot.press("down", "down", "down")
        await pilot.pause()
        return app.export_screenshot(title="broker top")


def picture() -> str:
    """Return it as SVG, without the addresses of fonts that textual puts there."""
    with tempfile.TemporaryDirectory(prefix="vrb-") as folder, ExitStack() as stack:
        options = ["--capacity", "800MiB", "--host-budget", "1GiB"]
        broker = RunningBroker(device="host:7", run_dir=Path(folder), options=options)
        stack.callback(broker.stop)
        workers: list[Worker] = []
        for name, tags in TAGS.items():
            source = f"NAME, TAGS = {name!r}, {tags!r}\n{WORKER}"
            workers.append(stack.enter_context(closing(Worker(source, environment=broker.environment))))
            workers[-1].hear()
        drawn = asyncio.run(_watched(broker, workers[-1], stack))
    return re.sub(r"@font-face\s*{[^}]*}\s*", "", drawn).replace("Fira Code", "DejaVu Sans Mono")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture())
