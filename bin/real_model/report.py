"""What the runs of the demonstration say: tables as Markdown, every number as JSON, and figures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlhf.data.loading import read_preferences
from lit_rlhf.data.records import PreferenceRecord
from lit_rlhf.evaluation.answers import Answer, pair_up, read_answers
from lit_rlhf.evaluation.intervals import Interval, cluster_bootstrap
from lit_rlhf.evaluation.length_control import length_controlled
from lit_rlhf.files import write_text
from lit_rlhf.reward_report import RewardReport
from lit_rlhf.reward_report.pairs import ScoredPair
from real_model.figures import plot_curves, plot_training, plot_wins
from real_model.study import REWARD_MODELS, TITLES, Study
from real_model.words import WordJudge

MATCHED = 3
"""Responses whose tokens differ by at most so many are of one length."""
SAMPLES = 10
Score = Callable[[Answer], float]


def write(studies: Sequence[Study], out: Path) -> list[Path]:
    """Write results.md, results.json, samples.md and the figures into ``out``; parts that were not run are left out."""
    results = [result(study) for study in studies]
    files = {
        "results.json": json.dumps(results, indent=1),
        "results.md": "\n".join(map(markdown, results)),
        "samples.md": "\n".join(samples(study) for study in studies),
    }
    for name, text in files.items():
        write_text(out / name, text + "\n")
    figures = [
        plot_curves(results, out / "curves.png"),
        plot_training(studies, out / "training.png"),
        plot_wins(results, out / "wins.png"),
    ]
    return [*(out / name for name in files), *figures]


def result(study: Study) -> dict[str, Any]:
    """Every number of one seed; what was not run yet is empty."""
    words = WordJudge(read_preferences([str(study.files / "balanced_b.jsonl")])[0])
    judges: dict[str, Score] = {
        "judge": lambda answer: float(answer.row["judge"]),
        "proxy": lambda answer: float(answer.row["score"]),
        "words": lambda answer: words.scores([answer.text])[0],
    }
    policies = {
        name: read_answers(study.test_file(name)) for name in ("sft", *study.options.arms) if study.tested(name)
    }
    baseline, tax = policies.get("sft", []), study.runs / "tax.json"
    return {
        "settings": study.settings(),
        "reward_models": accuracies(study, words),
        "agreement_on_sft": correlation(*([judges[name](a) for a in baseline] for name in REWARD_MODELS)),
        "policies": {name: description(answers) for name, answers in policies.items()},
        "win_rates": {
            arm: {name: against(policies[arm], baseline, score) for name, score in judges.items()}
            for arm in policies
            if arm != "sft" and baseline
        },
        "curves": {arm: curve(study, arm, judges) for arm in study.options.arms},
        "tax": json.loads(tax.read_text(encoding="utf-8")) if tax.exists() else None,
    }


# ---------------------------------------------------------------- reward models


def accuracies(study: Study, words: WordJudge) -> dict[str, Any]:
    """Accuracy on the held-out pairs that all could read, of proxy, judge, words, and rules that read nothing."""
    from transformers import AutoTokenizer

    records = {record.line: record for record in read_preferences([str(study.files / "test.jsonl")])[0]}
    scored = {name: _scores(study.runs / "accuracy" / f"{name}.jsonl") for name in REWARD_MODELS}
    lines = sorted(set.intersection(set(records), *(set(rows) for rows in scored.values())))
    kept = [records[line] for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(study.pretrained)
    lengths = [tuple(len(tokenizer(text)["input_ids"]) for text in (r.chosen, r.rejected)) for r in kept]
    columns = {name: [rows[line] for line in lines] for name, rows in scored.items()}
    chosen, rejected = words.scores([r.chosen for r in kept]), words.scores([r.rejected for r in kept])
    columns["words"] = list(zip(chosen, rejected, strict=True))
    columns["shorter wins"] = [(-float(a), -float(b)) for a, b in lengths]
    columns["longer wins"] = [(float(a), float(b)) for a, b in lengths]
    return {name: _accuracy(kept, scores, lengths) for name, scores in columns.items()}


def _scores(path: Path) -> dict[int, tuple[float, float]]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["line"]: (row["chosen_score"], row["rejected_score"]) for row in rows}


def _accuracy(
    records: Sequence[PreferenceRecord], scores: Sequence[tuple[float, float]], lengths: Sequence[tuple[int, ...]]
) -> dict[str, Any]:
    pairs = [
        ScoredPair(
            prompt=json.dumps([turn.content for turn in record.prompt]), chosen=record.chosen, rejected=record.rejected,
            chosen_score=score[0], rejected_score=score[1], chosen_length=length[0], rejected_length=length[1],
            subset="shorter" if length[0] < length[1] else "longer" if length[0] > length[1] else "equal",
            cluster=str(record.raw["dialogue"]),
        )
        for record, score, length in zip(records, scores, lengths, strict=True)
    ]  # fmt: skip
    report = RewardReport.from_scores(pairs)
    return {
        "pairs": report.pairs,
        "accuracy": report.accuracy.rate._asdict(),
        "minus_shorter": report.length_bias.accuracy_minus_shorter._asdict(),
        "prefers_longer": report.length_bias.model_prefers_longer.rate.mean,
        "where_chosen_is": {name: found.rate._asdict() for name, found in report.by_subset.items()},
    }


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's, of two judges' scores of the same responses; None for no responses."""
    return statistics.correlation(a, b) if a else None


# ---------------------------------------------------------------- policies


def description(answers: Sequence[Answer]) -> dict[str, float]:
    """Means over the responses of a policy, and how many of them are different texts."""
    rows = [answer.row for answer in answers]
    tokens = sum(row["tokens"] for row in rows)
    drift = sum(row["logprob"] - row["ref_logprob"] for row in rows)
    return {
        "responses": len(rows),
        "proxy": sum(row["score"] for row in rows) / len(rows),
        "judge": sum(row["judge"] for row in rows) / len(rows),
        "length": tokens / len(rows),
        "kl_per_token": drift / tokens,
        "kl": drift / len(rows),
        "ended": sum(row["ended"] for row in rows) / len(rows),
        "distinct": len({answer.text for answer in answers if answer.sample == 0})
        / sum(answer.sample == 0 for answer in answers),
    }


def curve(study: Study, arm: str, judges: Mapping[str, Score]) -> list[dict[str, Any]]:
    """The evaluations of a run, SFT's own first, each with its win rates over SFT's answers to the same prompts."""
    points, found = [read_answers(path) for path in study.evaluations(arm)], []
    for place, answers in enumerate(points):
        rates = wins(answers, points[0], judges) if place else None
        found.append({**description(answers), "iteration": study.options.validate_every * place, "wins": rates})
    return found


def wins(answers: Sequence[Answer], baseline: Sequence[Answer], judges: Mapping[str, Score]) -> dict[str, Any]:
    """By judge the win rate over SFT with its interval."""
    return {name: _rate(outcomes(answers, baseline, score)) for name, score in judges.items()}


class Outcome(NamedTuple):
    """How one response did against one of the baseline's to the same prompt."""

    win: float
    longer: float
    ended: bool
    dialogue: str


def outcomes(policy: Sequence[Answer], baseline: Sequence[Answer], score: Score) -> list[list[Outcome]]:
    """Each response against each of the baseline's, by prompt; equal texts are ties."""
    scores = {(id(side), a.key, a.sample): score(a) for side in (policy, baseline) for a in side}
    by_prompt: dict[str, list[Outcome]] = {}
    for pair in pair_up(policy, baseline):
        gap = scores[id(policy), pair.a.key, pair.a.sample] - scores[id(baseline), pair.b.key, pair.b.sample]
        outcome = Outcome(
            win=0.5 if pair.a.text == pair.b.text else float(gap > 0) + 0.5 * (gap == 0),
            longer=float(pair.a.row["tokens"] - pair.b.row["tokens"]),
            ended=bool(pair.a.ended and pair.b.ended),
            dialogue=str(pair.a.record["dialogue"]),
        )
        by_prompt.setdefault(pair.a.key, []).append(outcome)
    return list(by_prompt.values())


def against(policy: Sequence[Answer], baseline: Sequence[Answer], score: Score) -> dict[str, Any]:
    """Win rate over the baseline's responses to the same prompts; dialogues are resampled whole.

    Also where both responses are of one length, where both came to their end, and by regression at equal length.
    """
    rows = outcomes(policy, baseline, score)
    matched = [[one for one in each if abs(one.longer) <= MATCHED] for each in rows]
    ended = [[one for one in each if one.ended] for each in rows]
    controlled = length_controlled(
        [[one.win for one in each] for each in rows],
        [[one.longer for one in each] for each in rows],
        clusters=[each[0].dialogue for each in rows],
    )
    return {
        "all": _rate(rows),
        "matched": _rate(matched),
        "ended": _rate(ended),
        "length_controlled": controlled.rate._asdict(),
        "matched_pairs": sum(map(len, matched)),
        "ended_pairs": sum(map(len, ended)),
    }


def _rate(rows: Sequence[Sequence[Outcome]]) -> dict[str, float] | None:
    """Mean of the prompts' own means; prompts without a pair are left out."""
    kept = [each for each in rows if each]
    if not kept:
        return None
    means = [sum(one.win for one in each) / len(each) for each in kept]
    return cluster_bootstrap(means, [each[0].dialogue for each in kept])._asdict()


# ---------------------------------------------------------------- pages


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of one seed."""
    settings = found["settings"]
    parts = [f"## Seed {settings['seed']}\n", _table(*_reward_rows(found["reward_models"]))]
    if found["policies"]:
        parts += [f"Correlation of judge and proxy on SFT's responses: {found['agreement_on_sft']:.2f}.\n"]
        parts += [_table(*_policy_rows(found))]
    if found["tax"] is not None:
        parts.append(_table(*_tax_rows(found["tax"])))
    return "\n".join(parts)


def _reward_rows(models: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["held-out pairs", "accuracy", "less `shorter wins`", "chosen shorter", "chosen longer", "prefers longer"]
    rows = []
    for name, row in models.items():
        sides = [interval(row["where_chosen_is"].get(side)) for side in ("shorter", "longer")]
        minus = interval(row["minus_shorter"], signed=True)
        rows.append([name, interval(row["accuracy"]), minus, *sides, f"{row['prefers_longer']:.2f}"])
    return header, rows


def _policy_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["test prompts", "judge over SFT", "equal length", "matched", "both ended"]
    header += ["words over SFT", "proxy over SFT"]
    header += ["proxy", "judge", "length", "KL per token", "ended", "distinct"]
    rows = []
    for name, row in found["policies"].items():
        rates = found["win_rates"].get(name)
        cells = ["-"] * 6
        if rates is not None:
            judge = rates["judge"]
            cells = [interval(judge[kind]) for kind in ("all", "length_controlled", "matched", "ended")]
            cells += [interval(rates[kind]["all"]) for kind in ("words", "proxy")]
        numbers = [f"{row['proxy']:.2f}", f"{row['judge']:.2f}", f"{row['length']:.1f}", f"{row['kl_per_token']:.3f}"]
        rows.append([TITLES[name], *cells, *numbers, f"{row['ended']:.2f}", f"{row['distinct']:.2f}"])
    return header, rows


def _tax_rows(tax: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for measured in tax["measurements"]:
        for name, value in measured["values"].items():
            change = measured["changes"].get(name)
            rows.append([name, f"{value['mean']:.3f}", "-" if change is None else interval(change, signed=True)])
    return ["prose, nats per token", "loss", "less the pretrained model's"], rows


def interval(found: Mapping[str, float] | Interval | None, *, signed: bool = False) -> str:
    """Estimate and 95 % interval."""
    if found is None:
        return "-"
    values = found._asdict() if isinstance(found, Interval) else found
    sign = "+" if signed else ""
    low, mean, high = (format(values[name], f"{sign}.3f") for name in ("low", "mean", "high"))
    return f"{mean} [{low}, {high}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def samples(study: Study, count: int = SAMPLES) -> str:
    """The first responses of every policy to the same prompts, side by side: no choice is made."""
    names = [name for name in ("sft", *study.options.arms) if study.tested(name)]
    if "sft" not in names:
        return f"## Seed {study.seed}: nothing was tested yet\n"
    answers = {name: [a for a in read_answers(study.test_file(name)) if a.sample == 0][:count] for name in names}
    rows = []
    for place, first in enumerate(answers["sft"]):
        cells = [_cell(answers[name][place]) for name in names]
        rows.append([_short(first.turns[-1].content), *cells])
    return f"## Seed {study.seed}\n\n" + _table(["last turn of the user", *(TITLES[name] for name in names)], rows)


def _cell(answer: Answer) -> str:
    text = (_short(answer.text) or "(nothing)") + ("" if answer.ended else " ...")
    return f"{text} ({answer.row['score']:.1f} / {answer.row['judge']:.1f})"


def _short(text: str, most: int = 160) -> str:
    flat = " ".join(text.split()).replace("|", "/").replace("<", "&lt;")
    return flat if len(flat) <= most else flat[: most - 3] + "..."
