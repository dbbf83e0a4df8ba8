"""The cost of alignment: losses equal to an independent computation, paired differences, tasks, and what is refused."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from lit_rlhf.cli import main
from lit_rlhf.data.records import DialogueRecord, Message, TextRecord
from lit_rlhf.evaluation.intervals import cluster_bootstrap, ratio_bootstrap
from lit_rlhf.evaluation.tax import LOSS, Sums, Tax, measurement, text_sums
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.tokenizer import load_tokenizer
from lit_rlhf.pocket.tokenizer import build_tokenizer
from tests.models.tiny import make_tokenizer, tiny_config

TEXTS = ["lions eat meat .", "where can i buy plums ? the market .", "ants", "robins eat seeds . " * 12]


def write_model(folder, seed=0, tokenizer=None):
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer or build_tokenizer()
    torch.manual_seed(seed)
    config = tiny_config("llama", len(tokenizer), hidden_size=16, intermediate_size=16, max_position_embeddings=64)
    for key in ("pad", "eos", "bos"):
        setattr(config, f"{key}_token_id", getattr(tokenizer, f"{key}_token_id"))
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, seed) for seed, name in enumerate(["base", "sft", "ppo"])}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    (root / "world.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    facts = [
        {"question": f"what do {x} eat ?", "choices": [f"{x} eat {y} ." for y in ("meat", "seeds")], "answer": i % 2}
        for i, x in enumerate(["lions", "robins", "ants", "mice"] * 3)
    ]
    (root / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in facts))
    (root / "facts.yaml").write_text(
        f"task: tiny_facts\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {root}/facts.jsonl}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: answer\nmetric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    return root


def expected_nll(model, ids, learned):
    said = model(input_ids=torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
    return -sum(float(said[i - 1, ids[i]]) for i in range(1, len(ids)) if learned[i])


def test_losses_are_those_of_transformers_document_by_document(models):
    model, tokenizer = load_causal_lm(models["base"]).eval(), load_tokenizer(models["base"])
    sums = text_sums(model, tokenizer, [TextRecord(text=t) for t in TEXTS], max_batch_tokens=40)
    for text, total, tokens in zip(TEXTS, sums.totals, sums.weights, strict=True):
        ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        bos = [] if tokenizer.bos_token_id in (None, tokenizer.eos_token_id) else [tokenizer.bos_token_id]
        assert tokens == len(bos + ids) - 1
        assert total == pytest.approx(expected_nll(model, bos + ids, [True] * len(bos + ids)), rel=1e-4)


def test_a_long_text_is_read_in_pieces_and_a_dialogue_by_its_responses(models):
    model, tokenizer = load_causal_lm(models["base"]).eval(), load_tokenizer(models["base"])
    whole = text_sums(model, tokenizer, [TextRecord(text=TEXTS[3])], max_length=16)
    assert 40 < whole.weights[0] < 60
    talk = DialogueRecord(messages=(Message("user", "where can i buy plums ?"), Message("assistant", "the market .")))
    long = DialogueRecord(messages=(Message("user", "plums " * 90), Message("assistant", "the market .")))
    sums = text_sums(model, tokenizer, [long, talk], max_length=32)
    assert sums.weights == [4]  # three words and EOS; the long one weighs nothing and is left out


def test_paired_differences_are_narrower_than_the_two_intervals():
    rng = random.Random(0)
    hard = [rng.gauss(3, 1) for _ in range(200)]
    weights = [rng.randint(5, 30) for _ in range(200)]
    base = Sums(totals=[h * w for h, w in zip(hard, weights, strict=True)], weights=weights)
    more = [(h + rng.gauss(0.1, 0.1)) * w for h, w in zip(hard, weights, strict=True)]
    found = measurement("text", LOSS, {"a": base, "b": Sums(totals=more, weights=weights)}, baseline="a")
    change = found.changes["b"]
    assert change.low < 0.1 < change.high
    assert change.low > 0
    assert change.high - change.low < 0.3 * (found.values["b"].high - found.values["b"].low)
    assert change.mean == pytest.approx(found.values["b"].mean - found.values["a"].mean)
    assert set(found.changes) == {"b"}


def test_a_mean_per_token_covers_the_truth():
    """1,000 sources of 60 documents whose losses go with their lengths."""
    rng, hits = random.Random(1), 0
    for trial in range(1000):
        tokens = [rng.randint(5, 40) for _ in range(80)]
        sums = [n * (2.0 + rng.gauss(0, 0.5)) for n in tokens]
        interval = ratio_bootstrap(sums, tokens, range(80), num_samples=400, seed=trial)
        hits += interval.low <= 2.0 <= interval.high
    assert 920 <= hits <= 970


def test_weights_of_one_are_the_cluster_bootstrap():
    values, clusters = [1.0, 0.0, 1.0, 1.0, 0.5], [0, 0, 1, 2, 3]
    assert ratio_bootstrap(values, [1.0] * 5, clusters, seed=4) == cluster_bootstrap(values, clusters, seed=4)
    with pytest.raises(ValueError, match="positive sum in every cluster"):
        ratio_bootstrap([1.0], [0.0], [0])


def test_models_that_read_other_documents_are_refused():
    with pytest.raises(ValueError, match="b and a did not read the same documents alike"):
        measurement("x", LOSS, {"a": Sums(totals=[1], weights=[1]), "b": Sums(totals=[1], weights=[2])}, baseline="a")
    with pytest.raises(ValueError, match="holds no document"):
        measurement("x", LOSS, {"a": Sums(totals=[], weights=[])}, baseline="a")


def run_tax(models, *words):
    main(["tax", *(f"{name}={path}" for name, path in models.items()), *map(str, words)])


def test_the_command_writes_what_it_prints(models, texts, tmp_path, capsys):
    run_tax(models, "--text", texts / "world.jsonl", "--out", tmp_path / "deep" / "tax", "--against", "sft")
    assert "Alignment tax" in capsys.readouterr().out
    content = json.loads((tmp_path / "deep" / "tax.json").read_text())
    (world,) = content["measurements"]
    assert (content["baseline"], content["models"], world["documents"]) == ("sft", ["base", "sft", "ppo"], 4)
    assert set(world["changes"]) == {"base", "ppo"}
    text = (tmp_path / "deep" / "tax.md").read_text()
    mean, change = world["values"]["ppo"]["mean"], world["changes"]["ppo"]["mean"]
    assert f"{mean:.3f} [{change:+.3f}: " in text
    assert "the change from sft" in text


def test_tasks_of_the_harness_on_local_files(models, texts, tmp_path):
    pytest.importorskip("lm_eval")
    run_tax(models, "--text", texts / "world.jsonl", "--tasks", texts / "facts.yaml", "--out", tmp_path / "tax")
    _, task = json.loads((tmp_path / "tax.json").read_text())["measurements"]
    assert (task["name"], task["unit"], task["documents"]) == ("tiny_facts", "acc", 12)
    model, tokenizer = load_causal_lm(models["sft"]).eval(), load_tokenizer(models["sft"])
    right = 0
    for row in map(json.loads, (texts / "facts.jsonl").read_text().splitlines()):
        scores = []
        for choice in row["choices"]:
            ids = tokenizer(f"{row['question']} {choice}", add_special_tokens=False).input_ids
            start = len(tokenizer(row["question"], add_special_tokens=False).input_ids)
            scores.append(-expected_nll(model, ids, [i >= start for i in range(len(ids))]))
        right += scores.index(max(scores)) == row["answer"]
    assert task["values"]["sft"]["mean"] == pytest.approx(right / 12)


def test_the_harness_names_what_is_wrong(texts, tmp_path):
    pytest.importorskip("lm_eval")
    from lit_rlhf.evaluation.harness import task_sums

    (tmp_path / "no.yaml").write_text("a: 1\n")
    with pytest.raises(ValueError, match=r"no.yaml\) is no task of lm-eval"):
        task_sums("x", [str(tmp_path / "no.yaml")])
    with pytest.raises(FileNotFoundError, match=r"gone.yaml\) does not exist"):
        task_sums("x", ["gone.yaml"])
    with pytest.raises(ValueError, match=r"`tasks` \(.*facts.yaml\): lm-eval says"):
        task_sums(str(tmp_path / "nowhere"), [str(texts / "facts.yaml")])


def refused(capsys, *words):
    capsys.readouterr()  # what making models printed
    with pytest.raises(SystemExit) as ended:
        main(["tax", *map(str, words)])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_bad_input_is_one_line(models, texts, tmp_path, capsys):
    base, sft = (f"{name}={models[name]}" for name in ("base", "sft"))
    world = texts / "world.jsonl"
    assert "`--text` FILES, `--tasks` FILES" in refused(capsys, base, sft)
    assert "at least two models" in refused(capsys, base, "--text", world)
    assert "`--against` (x) among them: base, sft" in refused(capsys, base, sft, "--text", world, "--against", "x")
    assert "Two are called 'base'" in refused(capsys, base, f"base={models['sft']}", "--text", world)
    assert "gone.jsonl" in refused(capsys, base, sft, "--text", "gone.jsonl")
    other = write_model(tmp_path / "other", tokenizer=make_tokenizer("abcdef "))
    assert "base and o have different tokenizers" in refused(capsys, base, f"o={other}", "--text", world)


def test_one_document_has_no_interval_and_json_no_nan(tmp_path):
    found = measurement("x", LOSS, {n: Sums(totals=[2.0], weights=[1.0]) for n in "ab"}, baseline="a")
    tax = Tax(baseline="a", models=["a", "b"], measurements=[found])
    assert math.isnan(found.changes["b"].low)
    assert json.loads(tax.write(tmp_path / "t.json").read_text())["measurements"][0]["changes"]["b"]["low"] is None
    assert "| x (loss) | 1 | 2.000 | 2.000 [+0.000:] |" in tax.to_markdown()
