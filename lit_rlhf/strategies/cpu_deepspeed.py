"""DeepSpeed's real ZeRO-2 engine on CPU processes, so that anyone can test the distributed path without a GPU."""

from __future__ import annotations

import importlib
import os
import sys
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import override

from lit_rlhf.strategies.deepspeed import ZeroStrategy

# Two tiny models need no 200 MB communication buffers; everything else is the CUDA strategy's configuration.
_BUCKET_ELEMENTS = 5_000_000


class CPUZeroStrategy(ZeroStrategy):
    """:class:`~lit_rlhf.strategies.deepspeed.ZeroStrategy` over gloo, without a GPU, ninja or a compiler.

    Same engine, same partitioning, same checkpoint folders; only the collectives' backend and the device differ.

    Args:
        stage: ZeRO stage, 1 or 2.
        offload_optimizer: As on CUDA. "Offloading" from host to host, useful to run the code path.
        timeout: How long a collective waits for a rank before the job fails.
        **kwargs: As for the CUDA strategy.
    """

    strategy_name = "deepspeed_cpu"

    def __init__(
        self,
        *,
        stage: int = 2,
        offload_optimizer: bool = False,
        timeout: timedelta = timedelta(minutes=10),
        **kwargs: Any,
    ) -> None:
        _select_cpu_accelerator()
        buckets = {"allgather_bucket_size": _BUCKET_ELEMENTS, "reduce_bucket_size": _BUCKET_ELEMENTS}
        options = {"process_group_backend": "gloo", **buckets, **kwargs}
        super().__init__(stage=stage, offload_optimizer=offload_optimizer, timeout=timeout, **options)

    @override
    def setup_environment(self) -> None:
        # Past DeepSpeedStrategy's own, which insists on CUDA.
        Strategy.setup_environment(self)
        self.setup_distributed()

    @override
    def setup_distributed(self) -> None:
        DDPStrategy.setup_distributed(self)
        self._set_node_environment_variables()
        _without_compiled_collectives()
        import deepspeed

        deepspeed.init_distributed("gloo", timeout=self._timeout, dist_init_required=False)

    @override
    def _setup_model_and_optimizer(
        self, model: Module, optimizer: Optimizer | None, lr_scheduler: LRScheduler | ReduceLROnPlateau | None = None
    ) -> tuple[Any, Optimizer]:
        parameters = [p for p in model.parameters() if p.requires_grad]
        return self._initialize_engine(
            model, parameters, config=self.config, optimizer=optimizer, lr_scheduler=lr_scheduler
        )

    @override
    def _initialize_deepspeed_inference(self, model: Module) -> None:
        assert isinstance(self.config, dict)
        kept = {k: self.config[k] for k in ("bf16", "train_micro_batch_size_per_gpu") if k in self.config}
        self.model, _ = self._initialize_engine(model, [], config=kept)

    def _initialize_engine(
        self, model: Module, parameters: list[torch.nn.Parameter], **options: Any
    ) -> tuple[Any, Any]:
        import deepspeed

        engine, optimizer, _, _ = deepspeed.initialize(
            model=model, model_parameters=parameters, dist_init_required=False, **options
        )
        return engine, optimizer


def _select_cpu_accelerator() -> None:
    """Tell DeepSpeed, before its first import, that there is no CUDA device to look for.

    Raises:
        RuntimeError: If DeepSpeed is already loaded for another accelerator.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    accelerator = sys.modules.get("deepspeed.accelerator")
    if accelerator is not None and accelerator.get_accelerator()._name != "cpu":
        raise RuntimeError(
            f"DeepSpeed was loaded for {accelerator.get_accelerator()._name!r} before the CPU strategy was made: set"
            " the environment variable DS_ACCELERATOR=cpu."
        )


def _without_compiled_collectives() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce at start (a minute, and it needs ninja and g++)."""
    # By name: the attribute `deepspeed.comm.torch` is PyTorch itself, only the module of that name is DeepSpeed's.
    backend: Any = importlib.import_module("deepspeed.comm.torch")
    backend.build_shm_op = lambda: None
