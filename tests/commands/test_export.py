"""`lit-rlhf export`: single-file and ZeRO checkpoints to folders that plain transformers loads, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lit_rlhf.commands.export import export_checkpoint, main, read_checkpoint
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.modules.reward_model import RewardModelModule
from lit_rlhf.ppo.config import CriticConfig
from lit_rlhf.strategies.errors import CheckpointError
from tests.distributed_harness import run_dist
from tests.modules.test_reward_model import make_data as make_pairs_data
from tests.modules.test_reward_model import make_module as make_reward_module
from tests.modules.test_reward_model import write_pairs
from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer
from tests.strategies.checks import Evil

IDS = torch.tensor([[4, 5, 6, 7, 1]])

ZERO_BODY = """
    from pathlib import Path
    import lit_rlhf.strategies
    from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer, weights
    world, folder = Path({world!r}), Path({folder!r})
    module = make_ppo(world)
    trainer = make_trainer(folder, devices=2, strategy="deepspeed_stage_2_cpu", max_epochs=1, limit_val_batches=0)
    trainer.fit(module, make_data(world))
    trainer.save_checkpoint(folder / "zero.ckpt")
    if trainer.is_global_zero:
        torch.save(weights(module), folder / "live.pt")
"""


@pytest.fixture(scope="module")
def ppo(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PPOModule, Path]:
    folder = tmp_path_factory.mktemp("ppo")
    module = make_ppo(world)
    trainer = make_trainer(folder, max_epochs=1, limit_val_batches=0)
    trainer.fit(module, make_data(world))
    trainer.save_checkpoint(folder / "run.ckpt")
    return module, folder / "run.ckpt"


@pytest.fixture(scope="module")
def reward(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RewardModelModule, Path]:
    folder = tmp_path_factory.mktemp("reward")
    module = make_reward_module(world)
    trainer = make_trainer(folder, max_epochs=1, limit_val_batches=0)
    trainer.fit(module, make_pairs_data(write_pairs(folder / "pairs.jsonl")))
    trainer.save_checkpoint(folder / "run.ckpt")
    return module, folder / "run.ckpt"


def equal_states(found: torch.nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    state = found.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


@torch.no_grad()
def transformers_score(folder: Path) -> float:
    return float(AutoModelForSequenceClassification.from_pretrained(folder).eval()(IDS).logits)


def test_policy_is_the_default_and_its_weights_are_equal(world, ppo, tmp_path) -> None:
    module, checkpoint = ppo
    assert export_checkpoint(checkpoint, tmp_path / "out") == "policy"
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert equal_states(exported, module.policy.state_dict())
    start = AutoModelForCausalLM.from_pretrained(world / "policy")
    assert not equal_states(exported, start.state_dict()), "the exported weights are those from before training"


def test_critic_gives_the_same_values(ppo, tmp_path) -> None:
    module, checkpoint = ppo
    assert export_checkpoint(checkpoint, tmp_path / "out", part="critic") == "critic"
    with torch.no_grad():
        value = float(module.critic.eval()(IDS)[0, -1])
    assert transformers_score(tmp_path / "out") == pytest.approx(value, abs=1e-6)


def test_a_critic_of_another_size_is_exported_by_its_own_configuration(world, tmp_path) -> None:
    from lit_rlhf.models.scalar import ScalarHead, ScalarModel
    from tests.models.tiny import make_tokenizer, tiny_config
    from tests.modules.tiny_ppo import LETTERS

    tokenizer = make_tokenizer(LETTERS)
    wide = AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer)))
    ScalarModel(wide.model, ScalarHead(32)).save_pretrained(tmp_path / "wide", tokenizer)
    module = make_ppo(world, critic=CriticConfig(init=str(tmp_path / "wide")))
    trainer = make_trainer(tmp_path, max_steps=1, max_epochs=-1, limit_val_batches=0)
    trainer.fit(module, make_data(world))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    export_checkpoint(tmp_path / "run.ckpt", tmp_path / "out", part="critic")
    assert equal_states(load_scalar_model(str(tmp_path / "out"), head="load"), module.critic.state_dict())


def test_reward_model_gives_the_same_scores_in_transformers(reward, tmp_path) -> None:
    module, checkpoint = reward
    assert export_checkpoint(checkpoint, tmp_path / "out") == "reward"
    ours = load_scalar_model(str(tmp_path / "out"), head="load")
    assert all(torch.equal(value, module.reward_model.state_dict()[key]) for key, value in ours.state_dict().items())
    with torch.no_grad():
        score = float(module.reward_model.eval()(IDS)[0, -1])
    assert transformers_score(tmp_path / "out") == pytest.approx(score, abs=1e-6)


def test_command_line_with_a_moved_source_and_a_dtype(world, ppo, tmp_path, capsys) -> None:
    import shutil

    module, checkpoint = ppo
    shutil.copytree(world / "policy", tmp_path / "moved")
    main([str(checkpoint), str(tmp_path / "out"), "--source", str(tmp_path / "moved"), "--dtype", "bfloat16"])
    assert capsys.readouterr().out.startswith("policy: ")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    assert all(torch.equal(exported[key], value.bfloat16()) for key, value in module.policy.state_dict().items())


def test_a_part_the_checkpoint_lacks_is_named_beside_those_it_has(ppo, reward, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"has no part `reward`; it has policy, critic\."):
        export_checkpoint(ppo[1], tmp_path / "out", part="reward")
    with pytest.raises(ValueError, match=r"has no part `policy`; it has reward\."):
        export_checkpoint(reward[1], tmp_path / "out", part="policy")
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_checkpoints_of_this_library_are_refused(ppo, tmp_path) -> None:
    torch.save({"state_dict": {}, "epoch": 1}, tmp_path / "other.ckpt")
    torch.save(torch.zeros(2), tmp_path / "tensor.ckpt")
    whole = ppo[1].read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("other.ckpt", "was not written by lit_rlhf"),
        ("tensor.ckpt", "must hold a dict of tensors, not a Tensor"),
        ("half.ckpt", "is not a whole torch checkpoint"),
        ("folder", "is not a DeepSpeed checkpoint folder: it has no file `latest`"),
    ):
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt does not exist"):
        read_checkpoint(tmp_path / "nowhere.ckpt")


def test_a_pickle_that_asks_for_code_is_refused(ppo, tmp_path, capsys) -> None:
    torch.save({**torch.load(ppo[1], weights_only=True), "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="could run code when opened"):
        export_checkpoint(tmp_path / "evil.ckpt", tmp_path / "out")
    assert "CODE RAN" not in capsys.readouterr().out


@pytest.mark.distributed
def test_zero_checkpoints_are_joined_and_no_shard_of_them_runs_code(world, tmp_path, capsys) -> None:
    run_dist(ZERO_BODY.format(world=str(world), folder=str(tmp_path)), tmp_path / "launch", launcher="torchrun")
    checkpoint, live = tmp_path / "zero.ckpt", torch.load(tmp_path / "live.pt")
    assert checkpoint.is_dir()
    for part in ("policy", "critic"):
        assert export_checkpoint(checkpoint, tmp_path / part, part=part) == part
    policy = {k.removeprefix("policy."): v for k, v in live.items() if k.startswith("policy.")}
    assert equal_states(AutoModelForCausalLM.from_pretrained(tmp_path / "policy"), policy)
    critic = {k.removeprefix("critic."): v for k, v in live.items() if k.startswith("critic.")}
    assert equal_states(load_scalar_model(str(tmp_path / "critic"), head="load"), critic)
    # DeepSpeed's converter would run what an optimizer shard asks for.
    shard = next((checkpoint / "checkpoint").glob("*optim_states.pt"))
    torch.save({**torch.load(shard, weights_only=False), "evil": Evil()}, shard)
    with pytest.raises(CheckpointError, match="was refused"):
        export_checkpoint(checkpoint, tmp_path / "again")
    assert "CODE RAN" not in capsys.readouterr().out
