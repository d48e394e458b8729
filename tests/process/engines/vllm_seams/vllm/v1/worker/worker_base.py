"""What every worker is."""

from typing import Any


class WorkerBase:
    """Knows its configuration."""

    def __init__(
        self,
        vllm_config: Any,
        local_rank: int,
        rank: int,
        distributed_init_method: str,
        is_driver_worker: bool = False,
    ) -> None:
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.local_rank, self.rank = local_rank, rank
        self.distributed_init_method, self.is_driver_worker = distributed_init_method, is_driver_worker
