"""One launch a strategy, many checks in it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed_harness import Launch, run_dist
from tests.strategies import checks

COMMON = """
    from pathlib import Path
    import lit_rlhf.strategies
    from tests.strategies import checks
    from tests.strategies.toy import Toy
    folder = Path({folder!r})
    strategy = {strategy!r}
    record(equality=checks.equality(strategy, folder, 2))
    record(resume=checks.resume(strategy, folder, 2))
    record(resume_bf16=checks.resume(strategy, folder / "bf16", 2, precision="bf16-mixed"))
    record(validate=checks.validate(strategy, folder, 2), validate_ckpt=checks.validate(
        strategy, folder, 2, str(folder / "boundary.ckpt")))
"""
ZERO = """
    record(full_disk=checks.full_disk(strategy, folder, 2))
    record(offload=checks.equality(lambda: lit_rlhf.strategies.CPUZeroStrategy(offload_optimizer=True), folder, 2))
    record(guards=checks.messages(
        strategy, folder, 2,
        two_backwards=dict(module=Toy(fault="two_backwards")),
        no_last=dict(module=Toy(fault="no_last")),
        file=dict(module=Toy(), ckpt_path=str(folder / "single.ckpt")),
        missing=dict(module=Toy(), ckpt_path=str(folder / "nowhere.ckpt")),
    ))
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        checks.plant_code(folder / "middle.ckpt")
    torch.distributed.barrier()
    record(evil=checks.messages(strategy, folder, 2, evil=dict(module=Toy(), ckpt_path=str(folder / "middle.ckpt"))))
"""


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("single")
    return {
        "folder": str(folder),
        "equality": checks.equality("auto", folder, 1),
        "resume": checks.resume("auto", folder, 1),
        "resume_bf16": checks.resume("auto", folder / "bf16", 1, precision="bf16-mixed"),
        "full_disk": checks.full_disk("auto", folder, 1),
        "validate": checks.validate("auto", folder, 1),
    }


@pytest.fixture(scope="session")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp("ddp")
    return run_dist(COMMON.format(folder=str(folder), strategy="ddp"), folder)


@pytest.fixture(scope="session")
def zero2(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp("zero2")
    checks.fit("auto", folder, module=checks.Toy(), callbacks=[checks.SaveAt(folder / "single.ckpt", 2)])
    body = COMMON.format(folder=str(folder), strategy="deepspeed_stage_2_cpu") + ZERO
    return run_dist(body, folder, launcher="torchrun")


@pytest.fixture(params=["ddp", "zero2"])
def launch(request: pytest.FixtureRequest) -> Launch:
    return request.getfixturevalue(request.param)
