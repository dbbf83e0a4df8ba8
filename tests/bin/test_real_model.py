"""bin/real-model: its short form from preferences to the report, on a random chat model, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from real_model import command, report, study
from real_model.study import Options, Study

from lit_rlhf.commands.pocket_pipeline import Pipeline
from tests.bin.test_real_model_data import write_pairs
from tests.command_line import run
from tests.models.tiny import make_tokenizer, tiny_config
from tests.modules.tiny_ppo import CHAT_TEMPLATE

pytest.importorskip("peft")
pytest.importorskip("sklearn")


class Finished:
    """A command that ran in this process."""

    class process:  # noqa: N801
        @staticmethod
        def poll() -> int:
            return 0

    def check(self) -> None:
        """It raised, or it is fine."""


@pytest.fixture(scope="module")
def ran() -> list[tuple[str, ...]]:
    return []


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> Path:
    from transformers import AutoModelForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("chat"), make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = tiny_config("llama", len(tokenizer), num_hidden_layers=13, max_position_embeddings=1024)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(chat_model, tmp_path_factory, ran) -> Any:
    """The options of a short study that has been run once, every command in this process."""
    runs = tmp_path_factory.mktemp("runs")
    pairs = write_pairs(runs / "pairs.jsonl", 240)

    def here(self: Pipeline, *words: str, log: Path | None = None, threads: int = 1) -> Finished:
        ran.append(words)
        run(*words)
        return Finished()

    patch = pytest.MonkeyPatch()
    patch.setattr(Pipeline, "command", here)
    options = ["--pairs", str(pairs), "--runs", str(runs), "--model", str(chat_model), "--short", "--precision", "fp32"]
    command.main(options)
    yield options
    patch.undo()


def test_it_ends_with_a_report_of_every_part(words, ran) -> None:
    runs = Path(words[3])
    (found,) = json.loads((runs / "results.json").read_text())
    assert set(found["reward_models"]) == {"proxy", "judge", "words", "shorter wins", "longer wins"}
    shorter, longer = (found["reward_models"][f"{name} wins"]["accuracy"]["mean"] for name in ("shorter", "longer"))
    assert shorter == pytest.approx(1 - longer)
    assert shorter > 0.6  # as the pairs were made
    assert found["reward_models"]["shorter wins"]["where_chosen_is"]["shorter"]["mean"] == 1.0
    assert found["reward_models"]["shorter wins"]["minus_shorter"]["mean"] == 0.0
    assert set(found["policies"]) == {"sft", "ppo_max", "ppo_vanilla"}
    responses = {name: row["responses"] for name, row in found["policies"].items()}
    assert 0 < responses["ppo_max"] <= 4
    assert responses["sft"] == study.SFT_SAMPLES * responses["ppo_max"]
    assert found["policies"]["sft"]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert [len(points) for points in found["curves"].values()] == [2, 2]
    assert found["tax"]["models"] == ["base", "SFT", "PPO-max", "vanilla PPO"]
    for name in ("results.md", "samples.md"):
        assert "PPO-max" in (runs / name).read_text()
    for name in ("curves.png", "training.png"):
        assert (runs / name).stat().st_size > 5000
    assert [words[0] for words in ran].count("fit") == 5


def test_the_judge_learns_from_other_pairs_than_the_proxy(words) -> None:
    configs = {name: (Path(words[3]) / "seed1" / "configs" / f"{name}.yaml").read_text() for name in ("proxy", "judge")}
    assert "balanced_a.jsonl" in configs["proxy"]
    assert "balanced_b.jsonl" in configs["judge"]
    assert configs["judge"].replace("balanced_b", "balanced_a").replace("/judge\n", "/proxy\n") == configs["proxy"]


def test_again_is_cheap_and_a_lost_stage_is_made_again(words, ran) -> None:
    ran.clear()
    command.main(words)
    assert ran == []
    root = Path(words[3]) / "seed1"
    (root / "tax.json").unlink()
    command.main(words)
    assert [words[0] for words in ran] == ["tax"]


def test_an_interrupted_stage_goes_on_from_its_checkpoint(words, ran) -> None:
    """An arm whose export is gone, as after a kill: its last checkpoint is what it goes on from."""
    ran.clear()
    root = Path(words[3]) / "seed1"
    shutil.rmtree(root / "ppo_vanilla" / "export")
    command.main(words)
    assert [words[0] for words in ran] == ["fit"]
    assert ran[0][-2:] == ("--ckpt_path", "last")
    assert (root / "ppo_vanilla" / "export" / "final" / "adapter_config.json").exists()


def test_other_options_in_the_same_folder_are_refused(words, capsys) -> None:
    with pytest.raises(SystemExit):
        command.main([*words, "--ptx"])
    assert "was made with `ptx` False, not True: use another --runs" in capsys.readouterr().err


def test_the_cost_is_said_before_the_start(words, capsys) -> None:
    capsys.readouterr()
    command.main(words)
    assert capsys.readouterr().out.startswith("1 seed(s), 2 arms: about ")
    assert Options(ptx=True).cost(2) != Options().cost(2)


def test_what_cannot_be_used_is_one_line(chat_model, tmp_path, capsys) -> None:
    for words, error in (
        ([], "`--pairs` must name preference data"),
        (["--pairs", str(tmp_path / "none.jsonl")], "does not exist"),
        (["--seeds", "1", "2", "1"], "`--seeds` (1 2 1) must be different ones"),
        (["--iterations", "0"], "`--iterations` (0) must be at least 1"),
        (["--cost"], "`--cost` starts from sft and proxy of"),
    ):
        with pytest.raises(SystemExit):
            command.main(["--runs", str(tmp_path / "runs"), "--model", str(chat_model), *words])
        err = capsys.readouterr().err
        assert error in err
        assert len(err.splitlines()) == 1


def answer(key: str, text: str, score: float, *, sample: int = 0, tokens: int = 5, ended: bool = True) -> Any:
    from lit_rlhf.evaluation.answers import answers_from_rows

    row = {"row": key, "prompt": key, "response": text, "score": score, "tokens": tokens, "sample": sample}
    row["ended"] = ended
    return answers_from_rows([{**row, "record": {"prompt": key, "dialogue": key}}])[0]


def test_win_rates_by_hand() -> None:
    base = [
        answer("a", "x", 1.0),
        answer("a", "y", 3.0, sample=1),
        answer("b", "x", 1.0),
        answer("b", "z", 0, sample=1, ended=False),
    ]
    policy = [answer("a", "w", 2.0, tokens=5), answer("b", "x", 1.5, tokens=20)]
    found = report.against(policy, base, lambda each: each.row["score"])
    # a: won, lost; b: the same text is a tie whatever its score, won. Only a's are of one length.
    assert found["all"]["mean"] == pytest.approx((0.5 + 0.75) / 2)
    assert found["matched"]["mean"] == pytest.approx(0.5)
    assert found["matched_pairs"] == 2
    assert (found["ended"]["mean"], found["ended_pairs"]) == (pytest.approx(0.5), 3)  # of b the tie alone


def test_configs_follow_the_options(tmp_path, chat_model, monkeypatch) -> None:
    made = []
    monkeypatch.setattr(Pipeline, "command", lambda self, *words, **_: made.append(words))
    options = Options(bf16=True, ptx=True, ppo_max=("--model.kl_controller.init_args.coef", "0.2"))
    one = Study(tmp_path, 7, options, model=chat_model)
    one.configs()
    for stage in ("sft", "ppo_max", "ppo_vanilla", study.PTX):
        one.fit(stage, quiet=True, threads=1)
    sft, best, vanilla, ptx = made
    assert all("bf16-mixed" in words and "7" in words for words in made)
    assert ["0.2" in words for words in made] == [False, True, False, True]
    assert "--data.ptx.files" in ptx
    assert "--trainer.max_epochs" not in sft
    assert best[2].endswith("ppo_max.yaml")
    assert "--data.ptx.files" not in vanilla


def test_the_word_judge_learns_words_and_not_length() -> None:
    from real_model.words import WordJudge

    from lit_rlhf.data.records import Message, PreferenceRecord

    prompt = (Message("user", "Why?"),)
    texts = [("sorry " + "well " * (i % 5), "go away " + "well " * ((i * 3) % 5)) for i in range(20)]
    judge = WordJudge([PreferenceRecord(prompt=prompt, chosen=a, rejected=b) for a, b in texts])
    good, bad, unknown = judge.scores(["sorry", "go away", "zebra"])
    assert good > 0 > bad
    assert unknown == 0.0
    assert judge.scores(["sorry sorry sorry"]) == pytest.approx([good])


def test_a_version_without_metrics_is_passed_over(tmp_path) -> None:
    from lit_rlhf.commands.pocket_pipeline import joined_metrics

    for version in (0, 1):
        (tmp_path / "csv" / f"version_{version}").mkdir(parents=True)
    (tmp_path / "csv" / "version_0" / "metrics.csv").write_text("epoch,step,rollout/score\n0,0,1.5\n1,1,2.5\n")
    assert joined_metrics(tmp_path).read_text().splitlines()[1:] == ["0,0,1.5", "1,1,2.5"]
