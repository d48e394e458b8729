"""Real reinforcement learning on one device that can't hold both sides at once.

`run.py` starts a daemon, a trainer and a rollout, and leads them through GRPO step by step; `trainer.py` and
`rollout.py` are the two workers, and show how code of that kind uses `vrambroker.client`. Every figure is measured.
"""
