"""PPO from Python: the README's lines, functions as rewards, prompts and models in memory, dicts for groups."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import lit_rlhf
from lit_rlhf import GroupNormalized, LossConfig, PPOModule, RolloutDataModule, SFTDataModule, SFTModule
from lit_rlhf.strategies import CheckpointError
from tests.modules.tiny_ppo import Recorder, make_trainer

ROOT = Path(__file__).resolve().parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def by_length(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def module_of(world: Path, **options: Any) -> PPOModule:
    sizes: dict[str, Any] = {"sampling": {"max_response_length": 6}}
    return PPOModule(**{"policy": str(world / "policy"), "reward": by_length, **sizes, **options})


def fit(module: Any, data: Any, root: Path, **options: Any) -> Any:
    recorder = Recorder()
    make_trainer(root, max_epochs=1, callbacks=[recorder], **options).fit(module, data)
    return recorder.experiences[0] if recorder.experiences else None


PROMPTS = [f"{a} {b}" for a in "abcd" for b in "efgh"]
SIZES: dict[str, Any] = {"rollout_batch_size": 8, "minibatch_size": 4, "max_prompt_length": 32}


# ---------------------------------------------------------------- the README's lines


@pytest.mark.parametrize("page", ["README.md", "docs/coming-from-trl.md"])
def test_the_first_lines_run(page: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model of a few letters in place of the hub's, one iteration and the CPU."""
    text = next(block for block in blocks(page) if "PPOModule(" in block and "L.Trainer" in block)
    assert len([line for line in text.splitlines() if line.strip()]) <= 11
    text, models = re.subn(r'"Qwen/[^"]+"', repr(str(world / "policy")), text)
    text, epochs = re.subn(r"max_epochs=\d+", "max_epochs=1, accelerator='cpu', devices=1", text)
    assert (models, epochs) == (1, 1)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(text, page, "exec"), names)
    assert names["module"].global_step == 4
    assert Path("my-model/config.json").is_file()


def test_all_that_yaml_can_name_is_at_the_top() -> None:
    """Every class that a signature of the modules asks for, and its subclasses that ship."""
    from lit_rlhf.commands.parsing import modules_named_in_yaml

    rooms = [vars(module) for module in modules_named_in_yaml()]
    found = [kind for room in rooms for kind in room.values() if inspect.isclass(kind)]
    shipped = {kind.__name__: kind for kind in found if not kind.__name__.startswith("_")}
    bases = [
        getattr(lit_rlhf, name) for name in ("Reward", "AdvantageEstimator", "KLController", "PolicyLoss", "Judge")
    ]
    bases += [lit_rlhf.CriticLoss, lit_rlhf.RolloutEngine, lit_rlhf.RolloutCallback, lit_rlhf.BaseModule]
    wanted = {name for name, kind in shipped.items() if issubclass(kind, tuple(bases))}
    groups = {name for name, kind in shipped.items() if is_dataclass(kind) and name.endswith("Config")}
    inner = {"BatchingConfig"}  # its options are the data module's
    assert wanted | groups - inner <= set(lit_rlhf.__all__)


def test_every_name_is_there_and_type_checkers_know_it() -> None:
    assert [name for name in lit_rlhf.__all__ if not hasattr(lit_rlhf, name)] == []
    stub = ast.parse((ROOT / "lit_rlhf" / "__init__.pyi").read_text(encoding="utf-8"))
    told = {f"{n.module}.{a.name}" for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert told == {f"{module}.{name}" for name, module in lit_rlhf._EXPORTS.items()}


# ---------------------------------------------------------------- prompts in memory


def rows_of(kind: str) -> Any:
    import datasets

    return {
        "strings": PROMPTS,
        "tuple": tuple(PROMPTS),
        "dicts": [{"prompt": prompt, "id": i} for i, prompt in enumerate(PROMPTS)],
        "messages": [[{"role": "user", "content": prompt}] for prompt in PROMPTS],
        "data set": datasets.Dataset.from_dict({"prompt": PROMPTS, "id": list(range(16))}),
        "empty ones": [*PROMPTS, ""],
        "generator": ({"prompt": prompt} for prompt in PROMPTS),
    }[kind]


@pytest.mark.parametrize("kind", ["strings", "tuple", "dicts", "messages", "data set", "empty ones", "generator"])
def test_prompts_in_memory_are_those_of_a_file(kind: str, world: Path, tmp_path: Path) -> None:
    import json

    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8")
    found = fit(module_of(world), RolloutDataModule(train=rows_of(kind), **SIZES), tmp_path)
    wanted = fit(module_of(world), RolloutDataModule(train=str(file), **SIZES), tmp_path)
    assert torch.equal(found.prompt_ids, wanted.prompt_ids)
    assert ("id" in found.records[0]) == (kind in ("dicts", "data set"))


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ("nowhere.jsonl", "No data at nowhere.jsonl"),
        (["nowhere.jsonl"], "No data at nowhere.jsonl"),
        (["a b", "nowhere.jsonl"], "'nowhere.jsonl' beside 'a b'"),
        (3, "not a int"),
        ({"prompt": "a"}, "not a dict: name a split"),
        ([], "No data path was given"),
        ([{"question": "a"}], "format not recognized for prompt data"),
        (["a b"], "`train` holds 1"),
    ],
    ids=str,
)
def test_what_are_no_prompts(train: Any, told: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        fit(module_of(world), RolloutDataModule(train=train, **SIZES), tmp_path)


def test_texts_and_pairs_in_memory(world: Path, tmp_path: Path) -> None:
    from lit_rlhf import PreferenceDataModule, RewardModelModule

    text = SFTDataModule(train=["a b c", "d e f"], max_length=16, batch_size=2)
    fit(SFTModule(str(world / "policy"), optimizer={"lr": 1e-3}), text, tmp_path)
    assert len(text.rows["train"]) == 2
    pair = [{"prompt": "ab", "chosen": c, "rejected": "h"} for c in "abcd"]
    pairs = PreferenceDataModule(train=pair, test=pair, max_length=16, batch_size=2)
    module = RewardModelModule(str(world / "policy"))
    fit(module, pairs, tmp_path)
    make_trainer(tmp_path).test(module, pairs)
    assert "4 rows in memory" in (tmp_path / "reward_report.json").read_text(encoding="utf-8")


# ---------------------------------------------------------------- rewards


def test_a_function_alone_needs_a_critic_from_the_policy(world: Path, tmp_path: Path) -> None:
    module = module_of(world)
    experience = fit(module, RolloutDataModule(train=PROMPTS, **SIZES), tmp_path)
    rows = zip(experience.response_ids, experience.response_mask, strict=True)
    texts = [module.tokenizer.decode(ids[mask], skip_special_tokens=True) for ids, mask in rows]
    assert experience.scores.tolist() == [len(text) for text in texts]
    assert module.models.critic_init == "policy"


def test_functions_for_evaluation_and_in_mixtures(world: Path, tmp_path: Path) -> None:
    from lit_rlhf import MixtureReward

    mixed = MixtureReward([by_length, by_length], weights=[1.0, 2.0])
    module = module_of(world, reward=mixed, eval_rewards={"length": by_length})
    trainer = make_trainer(tmp_path)
    (found,) = trainer.validate(module, RolloutDataModule(val=PROMPTS, max_prompt_length=32), verbose=False)
    assert found["val/score"] == pytest.approx(3 * found["val/length"])


@pytest.mark.parametrize("reward", ["org/model", 3, dict, None])
def test_what_is_no_reward(reward: Any, world: Path) -> None:
    with pytest.raises(ValueError, match=r"`reward` \(.*\) must be a function or a Reward"):
        module_of(world, reward=reward)


def test_a_function_that_cannot_be_called_is_refused_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"\(text\)' must take `\(prompts, responses\)`"):
        PPOModule("no/model", lambda text: [0.0])


def test_so_is_one_that_yaml_names(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_rlhf import PythonReward

    def load(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(PPOModule, "build_policy", load)
    with pytest.raises(ValueError, match="has no such function"):
        fit(module_of(world, reward=PythonReward("math:nothing")), RolloutDataModule(train=PROMPTS, **SIZES), tmp_path)


# ---------------------------------------------------------------- groups and models


def test_dicts_are_groups(world: Path) -> None:
    module = module_of(
        world, loss={"vf_coef": 0.5}, optimizer={"critic_lr": 1e-3}, reference={"dtype": "bfloat16"},
        critic={"init": "policy"}, shaping={"clip": None}, schedule={"kind": "constant"}, model={"logits_gib": 2.0},
    )  # fmt: skip
    assert module.loss == LossConfig(vf_coef=0.5)
    assert module_of(world, model={"adapter": {"r": 2}}).model_config.adapter.r == 2  # type: ignore[union-attr]
    assert (module.optimizer_config.critic_lr, module.optimizer_config.lr) == (1e-3, 5e-7)
    assert (module.models.reference.dtype, module.models.critic_init) == ("bfloat16", "policy")
    assert (module.shaping.clip, module.schedule_config.kind, module.model_config.logits_gib) == (None, "constant", 2.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"sampling": {"max_respons_length": 3}},
            "no option `max_respons_length`. Did you mean `max_response_length`",
        ),
        ({"loss": {"xyz": 3}}, "`loss` has no option `xyz`. It has old_logprobs, "),
        ({"sampling": 0.8}, r"`sampling` \(0.8\) must be SamplingConfig, or a dict of "),
        ({"critic": "policy"}, r"`critic` \('policy'\) must be CriticConfig"),
        ({"sampling": {"top_p": 2.0}}, r"`top_p` \(2.0\)"),
        ({"schedule": {"kind": "cosin"}}, r"`kind` \(cosin\) must be one of constant, linear, cosine, inverse_sqrt"),
        (
            {"loss": {"old_logprobs": "samplers"}},
            r"`old_logprobs` \(samplers\) must be one of rollout, reference, sampler",
        ),
        ({"loss": {"average": None}}, r"`average` \(None\) must be one of tokens, responses"),
        ({"reference": {"dtype": "float16"}}, r"`dtype` \(float16\) must be one of float32, bfloat16"),
        ({"reference": {"placement": "gpu"}}, r"`placement` \(gpu\) must be one of device, cpu"),
        ({"policy": 3}, "`policy` must be a folder, a hub name, or a pair"),
        ({"reference": 3}, "`reference` must be a folder, a hub name, or a pair"),
    ],
    ids=str,
)
def test_wrong_groups_and_models(options: Mapping[str, Any], told: str, world: Path) -> None:
    with pytest.raises(ValueError, match=told):
        module_of(world, **options)


def test_a_loaded_model_trains_as_its_folder_does_and_stays_as_it_is(world: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pair = tuple(kind.from_pretrained(world / "policy") for kind in (AutoModelForCausalLM, AutoTokenizer))
    before = {name: weight.clone() for name, weight in pair[0].state_dict().items()}
    found = fit(module_of(world, policy=pair, reference=pair), RolloutDataModule(train=PROMPTS, **SIZES), tmp_path)
    wanted = fit(module_of(world), RolloutDataModule(train=PROMPTS, **SIZES), tmp_path)
    assert torch.equal(found.response_ids, wanted.response_ids)
    assert torch.equal(found.ref_logprobs, wanted.ref_logprobs)
    assert all(torch.equal(before[name], weight) for name, weight in pair[0].state_dict().items())


def test_a_checkpoint_is_loaded_with_what_the_module_was_made_of(world: Path, tmp_path: Path) -> None:
    module = module_of(world)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, RolloutDataModule(train=PROMPTS, **SIZES))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = PPOModule.load_from_checkpoint(tmp_path / "x.ckpt", policy=str(world / "policy"), reward=by_length)
    state = again.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in module.state_dict().items())


class Foreign(L.LightningModule):
    """Somebody else's module, whose checkpoint is not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, index: int) -> Any:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(2, 1))


def strange_files(world: Path, root: Path) -> dict[str, Path]:
    """What somebody may take for a checkpoint."""
    trainer = make_trainer(root, max_epochs=1)
    trainer.fit(Foreign())
    trainer.save_checkpoint(root / "foreign.ckpt")
    torch.save({"model": {}}, root / "plain.pt")
    (root / "config.yaml").write_text("trainer: {}\n")
    safetensors = world / "policy" / "model.safetensors"
    return {
        "is no checkpoint: give a": root / "config.yaml",
        "safetensors is no checkpoint": safetensors,
        "is a folder and no checkpoint": world / "policy",
        "no checkpoint of a Lightning run: it has no `state_dict`": root / "plain.pt",
        r"lacks `critic\.\*` \(21\), `policy\.\*` \(21\); it has, and the module has not, `l": root / "foreign.ckpt",
    }


def test_files_that_are_no_checkpoints_of_this_module(world: Path, tmp_path: Path) -> None:
    for told, path in strange_files(world, tmp_path).items():
        with pytest.raises(CheckpointError, match=told):
            PPOModule.load_from_checkpoint(path, policy=str(world / "policy"), reward=by_length)
        with pytest.raises(CheckpointError, match=told):
            make_trainer(tmp_path).fit(module_of(world), RolloutDataModule(train=PROMPTS, **SIZES), ckpt_path=path)
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint at nowhere\.ckpt"):
        PPOModule.load_from_checkpoint("nowhere.ckpt", policy=str(world / "policy"), reward=by_length)


def test_a_checkpoint_of_another_module_or_estimator_says_which_parts_differ(world: Path, tmp_path: Path) -> None:
    data = RolloutDataModule(train=PROMPTS, **SIZES)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module_of(world), data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    told = r"does not fit this {}: it has, and the module has not, `critic\.\*` \(21\)\. Is it of another module,"
    with pytest.raises(CheckpointError, match=told.format("SFTModule")):
        SFTModule.load_from_checkpoint(tmp_path / "x.ckpt", policy=str(world / "policy"))
    module = module_of(world, estimator=GroupNormalized())
    with pytest.raises(CheckpointError, match=told.format("PPOModule")):
        make_trainer(tmp_path, max_epochs=2).fit(module, data, ckpt_path=tmp_path / "x.ckpt")


def test_what_a_new_user_gets_wrong(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`tokenizer` must be .* not a list\. Is it `train=\.\.\.`\?"):
        RolloutDataModule(PROMPTS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`optimizer` \(\{'lr': '1e-3'\}\) has a value of the wrong type"):
        module_of(world, optimizer={"lr": "1e-3"})
    with pytest.raises(ValueError, match="has loaded no model yet"):
        module_of(world).export(tmp_path / "x")
    for call, split in (("validate", "val"), ("test", "test"), ("predict", "predict")):
        with pytest.raises(ValueError, match=f"`data.{split}` names no data to {call} on"):
            getattr(make_trainer(tmp_path), call)(module_of(world), RolloutDataModule(train=PROMPTS, **SIZES))


def test_a_data_frame_is_rows(world: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    data = RolloutDataModule(train=pandas.DataFrame({"prompt": PROMPTS, "id": range(16)}), **SIZES)
    assert "id" in fit(module_of(world), data, tmp_path).records[0]
