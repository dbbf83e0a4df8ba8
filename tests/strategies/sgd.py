"""SGD in place of AdamW for comparisons."""

from __future__ import annotations

from typing import Any

from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from lit_rlhf.modules.base import BaseModule
from lit_rlhf.strategies.accumulation import configure_clipping


class SGDMixin(BaseModule):
    """Adam divides by the gradient's own size and would hide a wrong scale or a missing clip."""

    def configure_optimizers(self) -> Any:
        configure_clipping(self.trainer, self.optimizer_config.max_grad_norm)
        groups = [{"params": p, "lr": lr, "name": n} for n, (p, lr) in self.parameter_groups().items()]
        optimizer = SGD(groups)
        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, [lambda step: 0.9**step] * len(groups))}
