"""What SFT, reward model and PPO share: one AdamW with named groups, one schedule, one way to step.

Optimization is manual. One ``training_step`` is one minibatch is one ``optimizer.step()``, so that ``global_step``,
``max_steps``, ModelCheckpoint and progress bars mean what users expect. A minibatch may be cut into micro-batches;
their losses are normalized by the token count of the whole global minibatch, so neither the cut nor the number of ranks
changes the result.
"""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lit_rlhf.config import ModelConfig, OptimizerConfig, ScheduleConfig, group
from lit_rlhf.distributed import all_gather_object, all_reduce_sum, any_rank, rank, run_together, world_size
from lit_rlhf.models.adapters import frozen_names
from lit_rlhf.models.cpu import products, tune
from lit_rlhf.models.frozen import models_in_host_memory
from lit_rlhf.models.host_memory import share_host_memory
from lit_rlhf.models.liger import use_liger
from lit_rlhf.models.loading.run_dtype import loading_in
from lit_rlhf.models.uses import ModelUse, PassSizes
from lit_rlhf.modules.lightning_features import check_trainer, refuse_flags
from lit_rlhf.modules.resuming import tell_other_precision, tell_other_products, tell_other_sources
from lit_rlhf.modules.trainer_loop import (
    forget_batch_under_way,
    load_dropped_loader_state,
    log_every_epoch,
    total_steps,
)
from lit_rlhf.randomness import random_states, set_random_states
from lit_rlhf.strategies.accumulation import (
    accumulate,
    backward_parts,
    clip_gradients,
    configure_clipping,
    discard_gradient,
    gradient_is_finite,
    gradient_norm,
    loss_scaler,
    lower_loss_scale,
)
from lit_rlhf.strategies.checkpoint_io import keep_checkpoints_whole, require_checkpoint
from lit_rlhf.strategies.errors import CheckpointError, misfit, require_training_state
from lit_rlhf.strategies.precision import cpu_has_bf16, weight_dtype
from lit_rlhf.user_errors import LitRLHFError

ContentT = TypeVar("ContentT")
STATE_KEY = "lit_rlhf"
FUSED_DEVICES = ("cpu", "cuda")
"""Where PyTorch's fused AdamW is used; both have it in every release that is supported here."""
MOST_SKIPPED = 50
"""With `on_non_finite: skip`, so many skipped updates in a row end the run."""


@contextmanager
def on_host() -> Iterator[None]:
    """Tensors are made on the CPU and in fp32 where nothing else is said.

    Lightning calls ``configure_model`` with the accelerator as torch's default device (and, with precision `bf16-true`,
    bf16 as its dtype): transformers would read the weights straight onto the device, all models in fp32 at once.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _not_of_masks(record: logging.LogRecord) -> bool:
    return "passing in an `attention_mask`" not in str(record.msg)


class NonFiniteError(LitRLHFError, RuntimeError):
    """A loss, gradient or score is not finite; the message names the iteration, the tensor and the prompts."""


class BaseModule(L.LightningModule, ABC):
    """Optimizer, schedule, accumulation, clipping, random state and export.

    Args:
        model: How models are loaded.
        optimizer: AdamW and clipping.
        schedule: Learning rate over steps.
        on_non_finite: `stop` saves a checkpoint of the last good state and raises; `skip` leaves the update out and
            counts it in the metric `update/skipped`.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        on_non_finite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        if on_non_finite not in ("stop", "skip"):
            raise ValueError(f"`on_non_finite` ({on_non_finite}) must be `stop` or `skip`.")
        self.automatic_optimization = False
        self.model_config = group(ModelConfig, model, "model")
        self.optimizer_config = group(self.optimizer_kind, optimizer, "optimizer")
        self.schedule_config = group(ScheduleConfig, schedule, "schedule")
        self.on_non_finite = on_non_finite
        self.skipped_updates = 0
        self._skipped_in_a_row = 0
        self._loaded = False
        self.tokenizer: Any = None
        self._rng_state: list[dict[str, Any]] | None = None
        self._rates: dict[str, float] = {}
        self._template: str | None = None

    optimizer_kind: type[OptimizerConfig] = OptimizerConfig
    """What a dict of optimizer options is made into."""

    # ---------------------------------------------------------------- what subclasses say of themselves

    @abstractmethod
    def load_models(self) -> None:
        """Load tokenizer and models, on the CPU; called once on each rank by :meth:`configure_model`."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """Trainable parameters and peak learning rate of each named group."""

    @abstractmethod
    def sources(self) -> dict[str, str]:
        """Folder or hub name each exportable part was loaded from; stored in checkpoints."""

    @abstractmethod
    def export(self, path: str | Path) -> None:
        """Write the trained model as a Hugging Face folder. Call it on every rank; rank 0 writes."""

    def part_loading(self) -> dict[str, dict[str, Any]]:
        """How each exportable part was made of its source; stored in checkpoints, which lack frozen weights."""
        return {name: loading_of(self.model_config) for name in self.sources() if name != "tokenizer"}

    def memory_models(self) -> list[ModelUse]:
        """The models that a fit holds, for `lit-rlhf plan`; asked before anything is loaded.

        Raises:
            ValueError: If the module does not say.
        """
        raise ValueError(f"{type(self).__name__} does not say which models it holds: define `memory_models`.")

    def pass_sizes(self, data: Any, *, ranks: int, device: str) -> PassSizes:
        """Rows and tokens of one rank's passes, for `lit-rlhf plan`; asked before any data is read.

        Args:
            data: The data module.
            ranks: Number of processes.
            device: Kind of device, `cpu` or `cuda`, for what depends on it.

        Raises:
            ValueError: If the module does not say.
        """
        raise ValueError(f"{type(self).__name__} does not say how large its passes are: define `pass_sizes`.")

    def content(self, batch: Any, kind: type[ContentT]) -> ContentT:
        """What a batch holds, if it is of the kind that this module works on.

        Raises:
            ValueError: The data module is for another kind of module.
        """
        found = getattr(batch, "content", None)
        if isinstance(found, kind):
            return found
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise ValueError(f"{type(self).__name__} needs one of this library's data modules, not a plain loader.")
        gives = f"{type(data).__name__} gives a {type(found).__name__}"
        raise ValueError(f"{type(self).__name__} works on a {kind.__name__}; {gives}.")

    def check_loaded(self) -> None:
        """Refuse to export what is not there.

        Raises:
            ValueError: No model has been loaded yet.
        """
        if not self._loaded:
            raise ValueError(
                f"{type(self).__name__} has loaded no model yet: `trainer.fit` does, or `configure_model()`."
            )

    # ---------------------------------------------------------------- models, device, precision

    def setup(self, stage: str) -> None:
        """Refuse or warn of a precision that cannot train, before anything is loaded.

        Raises:
            ValueError: If weights are to be trained in fp16 without DeepSpeed's fp32 masters, or a flag or callback of
                Lightning's cannot work.
        """
        if stage == "fit":
            check_trainer(self.trainer)
        keep_checkpoints_whole(self.trainer.strategy)
        precision = str(self.trainer.precision)
        if stage != "fit" or isinstance(self.trainer.strategy, DeepSpeedStrategy):
            return
        if precision == "16-true":
            raise ValueError(
                f"`precision` ({precision}) keeps nothing but fp16 weights, which cannot be trained: use bf16-mixed or "
                "16-mixed."
            )
        if precision == "bf16-true":
            rank_zero_warn(
                f"`precision` ({precision}) trains bf16 weights: what changes a weight by less than 1/512 of itself is "
                "rounded away, at PPO's learning rates most of every update. bf16-mixed keeps fp32 weights."
            )
        if precision.startswith("bf16") and self.target_device.type == "cpu" and not cpu_has_bf16():
            rank_zero_warn(
                f"`precision` ({precision}): this CPU has no bf16 instructions and emulates them, several times slower "
                "than fp32. Use `--trainer.precision 32-true` on it."
            )

    def configure_callbacks(self) -> list[L.Callback]:
        """None of its own: Lightning asks before it looks at flags, and would advise automatic optimization.

        Raises:
            ValueError: A flag of Lightning's cannot work.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            flags = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
            refuse_flags({name: getattr(self.trainer, name, None) for name in flags})
        return []

    def configure_model(self) -> None:
        """Load the models once, in host memory, whatever device and dtype Lightning has made the default.

        Weights are read in the dtype that the strategy keeps them in, where an option names no other. The strategy
        moves what is registered; frozen models move themselves. What fails on one rank
        fails on all.
        """
        if not self._loaded:
            # Rows are padded on the right, where a causal model needs no mask; transformers advises one at length.
            logging.getLogger("transformers.modeling_utils").addFilter(_not_of_masks)
            dtype = torch.float32 if self._trainer is None else weight_dtype(self.trainer)
            with on_host(), loading_in(dtype), models_in_host_memory() as waiting:
                run_together(self.load_models)
            if self.model_config.liger_kernel:
                self._use_liger()
            if self.target_device.type != "cpu":
                share_host_memory(waiting)
            self._loaded = True

    def _use_liger(self) -> None:
        place = self.target_device
        if not run_together(lambda: use_liger(self.transformers_models(), place)):  # the same file serves a laptop
            rank_zero_warn(
                f"`model.liger_kernel`: its kernels need a GPU; this run is on '{place.type}' and goes on without."
            )

    def transformers_models(self) -> list[nn.Module]:
        """What `model.liger_kernel` is for: all that is registered. Override to add what the module holds otherwise."""
        return [self]

    def on_fit_start(self) -> None:
        """The models are on their device now: on a CPU they get its kernels (``models/cpu``), elsewhere nothing."""
        tune(self, self.device)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            log_every_epoch(self.trainer)

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    @property
    def target_device(self) -> torch.device:
        """The rank's device, also before the module has been moved there."""
        return self.device if self._trainer is None else self.trainer.strategy.root_device

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch, but floating-point buffers keep their dtype, whatever the parameters are cast to.

        A rotary embedding's ``inv_freq`` in bf16 would move every position, and the policy's would not be the
        reference's.
        """
        buffers = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super().to(*args, **kwargs)
        for name, buffer in buffers.items():
            owner, _, own_name = name.rpartition(".")
            moved = self.get_buffer(name)
            if moved.dtype != buffer.dtype:
                setattr(self.get_submodule(owner), own_name, buffer.to(moved.device))
        return self

    @property
    def template(self) -> str | None:
        """Named template of the data that is trained on; None for the tokenizer's own chat template."""
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        found: str | None = getattr(data, "template", self._template)
        return found

    # ---------------------------------------------------------------- optimizer

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One AdamW with named groups and one LambdaLR: the same under one device, DDP and ZeRO-2."""
        config = self.optimizer_config
        configure_clipping(self.trainer, config.max_grad_norm)
        groups = [
            {"params": [p for p in parameters if p.requires_grad], "lr": lr, "name": name}
            for name, (parameters, lr) in self.parameter_groups().items()
        ]
        # One pass over each tensor. Under fp16 it would also undo the loss scaling, and hide what it steps along.
        fused = self.device.type in FUSED_DEVICES and loss_scaler(self.trainer) is None
        optimizer = AdamW(groups, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=fused)
        total = total_steps(self.trainer)
        schedule = LambdaLR(optimizer, [lambda step: self.schedule_config.factor(step, total)] * len(groups))
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def optimize(self, losses: Sequence[Callable[[], Iterable[Tensor]]]) -> dict[str, Tensor] | None:
        """One optimizer step from the micro-batches' losses.

        Args:
            losses: One function a micro-batch; each gives its share of the loss, normalized by the global minibatch
                and *not* scaled by the number of ranks (that is done here, since DDP and ZeRO average). A share may
                come in parts that have no parameter in common: see :func:`backward_parts`.

        Returns:
            ``loss`` and ``grad_norm`` (fp32 scalars; the norm is of the gradient without fp16's loss scale), or None if
            the update was skipped for not being finite.

        Raises:
            NonFiniteError: If loss or gradient is not finite and ``on_non_finite`` is `stop`.
        """
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        for i, loss_of in enumerate(losses):
            with accumulate(self.trainer, i == len(losses) - 1):
                for loss in backward_parts(self.trainer, loss_of()):
                    total += loss.detach()
                    self.manual_backward(loss * world_size())
        total = all_reduce_sum(total)
        # ZeRO knows its gradient norm only after the step; whether it will be finite, before.
        sharded = isinstance(self.trainer.strategy, DeepSpeedStrategy)
        norm = torch.zeros(()) if sharded else gradient_norm(self.trainer, optimizer)
        finite = {"loss": bool(total.isfinite()), "gradient norm": gradient_is_finite(self.trainer, norm)}
        if not all(finite.values()):
            overflow = finite["loss"] and lower_loss_scale(self.trainer, optimizer)
            discard_gradient(self.trainer, optimizer)
            if overflow:
                self._log_skipped_update()
                return None
            self._refuse_update(next(name for name, good in finite.items() if not good))
            return None
        clip_gradients(self.trainer, optimizer, self.optimizer_config.max_grad_norm)
        optimizer.step()
        self._skipped_in_a_row = 0
        self._rates = {f"lr/{group['name']}": float(group["lr"]) for group in optimizer.param_groups}
        self.lr_schedulers().step()  # type: ignore[union-attr]
        return {"loss": total, "grad_norm": gradient_norm(self.trainer) if sharded else norm}

    # ---------------------------------------------------------------- things that must not be finite

    def _refuse_update(self, what: str) -> None:
        if self.on_non_finite == "skip":
            self._log_skipped_update()
            return
        self.skipped_updates += 1
        self.fail_non_finite(what, self.describe_batch())

    def _log_skipped_update(self) -> None:
        self.skipped_updates += 1
        self._skipped_in_a_row += 1
        self.log_values({"update/skipped": float(self.skipped_updates)})
        if self._skipped_in_a_row >= MOST_SKIPPED:
            raise NonFiniteError(
                f"{self.where()}: {self._skipped_in_a_row} updates in a row were skipped for numbers that are not "
                "finite: the run has stopped learning, and ends as the last update left it."
            )

    def describe_batch(self) -> str:
        """What the update was computed on, one sentence with a space at its end, for error messages."""
        return ""

    def fail_non_finite(self, what: str, detail: str = "") -> None:
        """Save the last good state and stop. Call it on every rank.

        Raises:
            NonFiniteError: Always.
        """
        path = Path(self.trainer.default_root_dir) / "checkpoints" / "last_good.ckpt"
        self.trainer.save_checkpoint(path)
        raise NonFiniteError(
            f"{self.where()}: {what} is not finite. {detail}The state before this update is in {path}."
            + (" `on_non_finite: skip` skips such updates instead." if self.on_non_finite == "stop" else "")
        )

    def where(self) -> str:
        """The place in the run, for error messages."""
        return f"step {self.global_step}"

    def check_finite(self, name: str, tensor: Tensor) -> None:
        """Stop, on all ranks together, if any rank's ``tensor`` has a value that is not finite."""
        bad = not bool(torch.isfinite(tensor).all())
        if any_rank(bad, self.device):
            self.fail_non_finite(name, f"Seen on rank {rank()}. " if bad else "Seen on another rank. ")

    # ---------------------------------------------------------------- checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch, but for the weights that are frozen: those are where they were loaded from.

        So a checkpoint of adapters holds adapters and heads alone.
        """
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        for name in frozen_names(self):
            for key in [key for key in state if key == prefix + name or key.startswith(f"{prefix}{name}.")]:
                del state[key]  # with what belongs to a weight in four bits
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: FBT001, FBT002
        """As in torch; frozen weights may be missing, trained ones may not.

        Raises:
            CheckpointError: The weights are not those of this module; the message has their parts in place of names.
        """
        own = dict(self.named_parameters(remove_duplicate=False))
        kept = {name: own[name].data for name in frozen_names(self) if name not in state_dict}
        try:
            return super().load_state_dict({**kept, **state_dict}, strict=strict, assign=assign)
        except RuntimeError as error:
            raise CheckpointError(misfit(type(self).__name__, self.state_dict(), state_dict, error)) from error

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # wider than Lightning's
        cls, checkpoint_path: Any, *args: Any, weights_only: bool = True, **kwargs: Any
    ) -> Any:
        """Lightning's, with the module's own arguments: a checkpoint holds weights and state, not models' folders.

        Args:
            checkpoint_path: A ``.ckpt`` file (a ZeRO folder goes through `lit-rlhf export`).
            args: Lightning's further positional arguments.
            weights_only: Whether the file may hold nothing but tensors and primitives, which is all that is written.
            kwargs: What the module is made with, and Lightning's further arguments.

        Raises:
            ValueError: If an argument that the module requires is missing.
            CheckpointError: If the file is no checkpoint, or not of such a module.
            FileNotFoundError: If there is none.
        """
        required = [p.name for p in inspect.signature(cls).parameters.values() if p.default is inspect.Parameter.empty]
        missing = [name for name in required if name not in kwargs]
        if missing:
            raise ValueError(
                f"`{cls.__name__}.load_from_checkpoint` also needs {', '.join(f'`{name}`' for name in missing)}, as "
                "when the module was made: a checkpoint holds weights and state alone. `lit-rlhf export "
                f"{checkpoint_path} OUT` writes a Hugging Face folder."
            )
        if isinstance(checkpoint_path, str | Path):
            require_checkpoint(checkpoint_path, weights_only=weights_only)
        load: Any = super().load_from_checkpoint
        return load(checkpoint_path, *args, weights_only=weights_only, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add random states of all ranks, what the parts were loaded from, and the subclass's own state."""
        checkpoint[STATE_KEY] = {
            "rng": all_gather_object(random_states(self.device)),
            "sources": self.sources(),
            "module": type(self).__name__,
            "template": self.template,
            "loading": self.part_loading(),
            "world_size": world_size(),
            "cpu_products": products(self.device),
            "precision": None if self._trainer is None else str(self.trainer.precision),
            "skipped_updates": self.skipped_updates,
            "skipped_in_a_row": self._skipped_in_a_row,
            **self.extra_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what :meth:`on_save_checkpoint` stored; random states wait for the start of training."""
        state = checkpoint.get(STATE_KEY, {})
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            require_training_state(checkpoint)
            tell_other_sources(state.get("sources", {}), self.sources())
            tell_other_precision(state.get("precision"), str(self.trainer.precision))
            tell_other_products(state.get("cpu_products"), self.target_device)
        self._rng_state, self._template = state.get("rng"), state.get("template")
        self.skipped_updates = state.get("skipped_updates", 0)
        self._skipped_in_a_row = state.get("skipped_in_a_row", 0)
        if state:
            self.load_extra_state(state)

    def extra_state(self) -> dict[str, Any]:
        """State of the subclass beyond weights: primitives and tensors only, so that `weights_only=True` loads it."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take the state of :meth:`extra_state`."""

    def on_train_start(self) -> None:
        """Train mode for what trains, and this rank's random state where the checkpoint left it.

        Set-up consumes random numbers, so states are restored here rather than when the checkpoint is read. Hugging
        Face models come out of ``from_pretrained`` in eval mode and gradient checkpointing needs train mode.
        """
        load_dropped_loader_state(self.trainer)
        forget_batch_under_way(self.trainer)
        self.train()
        if self._rng_state is None or len(self._rng_state) != world_size():
            return
        set_random_states(self._rng_state[rank()], self.device)
        self._rng_state = None

    def on_train_end(self) -> None:
        """A run that has learned nothing has failed.

        Raises:
            NonFiniteError: If every update was skipped.
        """
        if self.skipped_updates and self.global_step == 0:
            raise NonFiniteError(
                f"None of the {self.skipped_updates} updates was made: each met a number that is not finite."
            )

    # ---------------------------------------------------------------- logging

    def log_values(self, values: Mapping[str, Any], *, prog_bar: Sequence[str] = ()) -> None:
        """Log numbers that are already equal on all ranks."""
        for name, value in values.items():
            # On the host, where it is read again.
            number = torch.tensor(float(value), dtype=torch.float32, device="cpu")
            self.log(name, number, prog_bar=name in prog_bar, rank_zero_only=False, batch_size=1)

    def learning_rates(self) -> dict[str, float]:
        """Learning rate of each group in the last step, as ``lr/<group>``."""
        return self._rates


def loading_of(config: ModelConfig, num_layers: int | None = None) -> dict[str, Any]:
    """What makes a trained part differ from a whole model of its source, in primitives; None and 0: nothing."""
    adapter = None if config.adapter is None else asdict(config.adapter)
    return {"adapter": adapter, "freeze_layers": config.freeze_layers, "num_layers": num_layers}


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of ``module`` that take a gradient, each once."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
