"""The stages of the demonstration, each a `lit-rlhf` command in a process of its own, skipped once it is done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_rlhf.commands.config_files import shipped_configs
from lit_rlhf.commands.pocket_pipeline import Pipeline
from lit_rlhf.commands.processes import Running, wait_for
from lit_rlhf.evaluation.answers import saved_answers
from lit_rlhf.files import write_text
from lit_rlhf.user_errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ARMS = {"ppo_max": "PPO-max", "ppo_vanilla": "vanilla PPO"}
PTX = "ppo_ptx"
TITLES = {"sft": "SFT", **ARMS, PTX: "PPO-max + ptx"}
REWARD_MODELS = ("proxy", "judge")
SFT_SAMPLES = 2
"""Responses of SFT to each held-out prompt: the opponents."""
SHORT = {
    "sft": ["--trainer.max_steps", "2"],
    "reward": ["--trainer.max_steps", "2", "--trainer.max_epochs", "1"],
    "ppo": [
        "--data.rollout_batch_size",
        "4",
        "--data.minibatch_size",
        "4",
        "--model.sampling.max_response_length",
        "8",
        "--data.eval_limit",
        "4",
    ],
}
"""What `--short` says to every stage."""
CPU_SECONDS = {
    "sft": 220, "proxy": 400, "judge": 370, "accuracy": 130, "iteration": 24, "prose": 8, "validate": 60, "test": 150,
}  # fmt: skip
"""CPU seconds of the shipped sizes with AMX, to say before the start what it takes: as measured (docs/real_model.md);
what prose adds to an iteration and the last two are estimated from the tokens that pass."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a study is made with; a folder holds runs of one set of them.

    Attributes:
        iterations: PPO iterations of every arm.
        test_prompts: Held-out dialogues that are answered at the end.
        ptx: Run PPO-max with text in its updates as a third arm.
        bf16: Compute in bf16 on a base in bf16, for CPUs that have instructions for it; else fp32.
        ppo_max: Further words for the `lit-rlhf fit` of PPO-max, to try settings.
        short: Two steps or iterations of everything: whether it runs, not what comes of it.
    """

    iterations: int = 60
    test_prompts: int = 200
    ptx: bool = False
    bf16: bool = False
    ppo_max: tuple[str, ...] = ()
    short: bool = False

    def __post_init__(self) -> None:
        for name in ("iterations", "test_prompts"):
            if getattr(self, name) < 1:
                raise UserError(f"`--{name.replace('_', '-')}` ({getattr(self, name)}) must be at least 1.")

    @property
    def arms(self) -> dict[str, str]:
        """Titles of the PPO runs by their folders."""
        return {**ARMS, **({PTX: TITLES[PTX]} if self.ptx else {})}

    @property
    def validate_every(self) -> int:
        """Iterations from one validation to the next."""
        return min(10, self.iterations)

    def cost(self, seeds: int) -> str:
        """What the study takes, for the line before it starts."""
        arms, part = len(self.arms), CPU_SECONDS
        ppo = arms * (self.iterations * part["iteration"] + (self.iterations // 10) * part["validate"])
        ppo += self.iterations * part["prose"] if self.ptx else 0
        rest = part["sft"] + part["proxy"] + part["judge"] + 2 * part["accuracy"] + part["validate"]
        seconds = seeds * (ppo + rest + (arms + SFT_SAMPLES) * part["test"])
        return f"about {seconds / 60:.0f} CPU minutes ({seconds / 120:.0f} minutes on two quiet cores), 3 GiB a process"


class Study(Pipeline):
    """One seed of the demonstration.

    Args:
        runs: Folder of all seeds; this one's is `seedN` in it, the data `data`.
        seed: Seed of everything but the division of the data.
        options: What it is made with.
        model: Folder of the pretrained chat model.
    """

    def __init__(self, runs: Path, seed: int, options: Options, *, model: Path) -> None:
        super().__init__(runs.resolve() / f"seed{seed}", seed, options.iterations)
        self.options, self.pretrained, self.files = options, model.resolve(), runs.resolve() / "data"

    def run(self) -> None:
        """All stages, those that do not need each other side by side."""
        self.same_run()
        self.configs()
        self.train(["sft", "proxy"])
        self.train(["judge"])
        self.accuracies()
        self.answers("val", {"sft": self.model("sft")}, samples=SFT_SAMPLES)
        self.train(list(self.options.arms))
        self.answers("test", {"sft": self.model("sft")}, samples=SFT_SAMPLES)
        self.answers("test", {arm: self.model(arm) for arm in self.options.arms})
        self.tax()

    def same_run(self) -> None:
        """Refuse a folder that was made with other options.

        Raises:
            UserError: It was.
        """
        path, own = self.runs / "run.json", json.loads(json.dumps({**asdict(self.options), "seed": self.seed}))
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found != own:
                changed = next(name for name in own if found.get(name) != own[name])
                raise UserError(
                    f"{self.runs} was made with `{changed}` {found.get(changed)}, not {own[changed]}: use another "
                    "--runs, or delete it."
                )
        write_text(path, json.dumps(own))

    def configs(self) -> None:
        """The shipped ones with this run's folders in them; the judge's is the proxy's on the other half."""
        for path in (shipped_configs() / "smollm2").glob("*.yaml"):
            text = path.read_text(encoding="utf-8").replace("runs/smollm2/data", self.files.as_posix())
            text = text.replace("models/smollm2", self.pretrained.as_posix())
            text = text.replace("runs/smollm2", self.runs.as_posix())
            stage = {"reward_lora": "proxy"}.get(path.stem, path.stem.removesuffix("_lora"))
            write_text(self.config(stage), text)
            for new, old in (("judge", "proxy"), (PTX, "ppo_max")):
                if stage == old:
                    text = text.replace(f"{self.runs.as_posix()}/{old}\n", f"{self.runs.as_posix()}/{new}\n")
                    write_text(self.config(new), text.replace("balanced_a", "balanced_b"))

    def config(self, stage: str) -> Path:
        """The YAML of a stage."""
        return self.runs / "configs" / f"{stage}.yaml"

    def done(self, stage: str) -> bool:
        """Whether a stage has exported its adapter."""
        return (self.model(stage) / "adapter_config.json").exists() or super().done(stage)

    def seeds(self) -> list[str]:
        """Overrides of every fit and evaluation: seeds and precision."""
        bf16 = ["--trainer.precision", "bf16-mixed", "--model.model.adapter.base", "bfloat16"]
        return [*super().seeds(), *(bf16 if self.options.bf16 else [])]

    def short(self, kind: str) -> list[str]:
        """Overrides of the short form for `sft`, `reward` or `ppo`."""
        return SHORT[kind] if self.options.short else []

    def fit(self, stage: str, *, quiet: bool, threads: int) -> Running:
        """Start one stage; that with ptx has prose in its updates."""
        kind = "reward" if stage in REWARD_MODELS else stage[:3]
        words = ["fit", "--config", str(self.config(stage)), *self.seeds(), *self.short(kind)]
        if kind == "ppo":
            words += ["--trainer.max_epochs", str(self.options.iterations)]
            words += ["--trainer.check_val_every_n_epoch", str(self.options.validate_every)]
        if stage in ("ppo_max", PTX):
            words += self.options.ppo_max
        if stage == PTX:
            words += ["--data.ptx.files", f"[{(self.files / 'prose_train.jsonl').as_posix()}]"]
        words += ["--ckpt_path", "last"]
        return self.command(*words, log=self.runs / f"{stage}.log" if quiet else None, threads=threads)

    def accuracies(self) -> None:
        """Both reward models on the held-out pairs, which neither has seen."""
        running = []
        for name in REWARD_MODELS:
            out = self.runs / "accuracy" / f"{name}.jsonl"
            if not out.exists():
                out.parent.mkdir(parents=True, exist_ok=True)
                words = ["score", str(self.files / "test.jsonl"), "--model", str(self.model(name)), "--out", str(out)]
                sizes = ["--max-length", "320", "--max-batch-tokens", "2048"]
                running.append(self.command(*words, *sizes, log=self.runs / f"accuracy-{name}.log"))
        wait_for(running)

    def answers(self, split: str, policies: dict[str, Path], *, samples: int = 1) -> None:
        """Responses of each policy to held-out prompts, scored by proxy and judge."""
        running = []
        for name, folder in policies.items():
            root = self.runs / split / name
            if any((root / "evaluations").glob("*.jsonl")):
                continue
            words = ["validate" if split == "val" else split, "--config", str(self.config("ppo_max")), *self.seeds()]
            words += [
                *self.short("ppo"),
                "--model.policy",
                str(folder),
                "--model.reference.path",
                str(self.model("sft")),
            ]
            words += ["--data.eval_samples", str(samples)]
            if split == "test":
                words += ["--data.eval_limit", str(self.options.test_prompts)]  # validations have all their prompts
            words += ["--trainer.logger", "false", "--trainer.default_root_dir", str(root)]
            running.append(self.command(*words, log=self.runs / f"{split}-{name}.log"))
        wait_for(running)

    def tax(self) -> None:
        """Language-model loss on prose of the pretrained model, SFT and every arm."""
        if (self.runs / "tax.json").exists():
            return
        models = [f"base={self.pretrained}", f"SFT={self.model('sft')}"]
        models += [f"{title}={self.model(arm)}" for arm, title in self.options.arms.items()]
        words = ["--text", str(self.files / "prose_test.jsonl"), "--out", str(self.runs / "tax")]
        wait_for([self.command("tax", *models, *words, log=self.runs / "tax.log", threads=self.threads_alone)])

    def tested(self, policy: str) -> bool:
        """Whether a policy has answered the test prompts."""
        return any((self.runs / "test" / policy / "evaluations").glob("*.jsonl"))

    def test_file(self, policy: str) -> Path:
        """The saved answers of a policy to the test prompts."""
        return saved_answers(self.runs / "test" / policy)

    def evaluations(self, arm: str) -> Sequence[Path]:
        """The validations of an arm in order, and before them SFT's own answers to the same prompts."""
        if not any((self.runs / "val" / "sft" / "evaluations").glob("*.jsonl")):
            return []
        own = sorted((self.runs / arm / "evaluations").glob("val-step*.jsonl"))
        return [saved_answers(self.runs / "val" / "sft"), *own]

    def settings(self) -> dict[str, Any]:
        """Options and folders, for the report."""
        return {"seed": self.seed, "model": self.pretrained.name, **asdict(self.options)}
