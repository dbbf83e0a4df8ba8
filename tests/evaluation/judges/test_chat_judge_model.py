"""ChatJudge with a real language model behind the endpoint: a tiny Llama of transformers, served on loopback."""

from __future__ import annotations

import threading

import pytest
import torch

from lit_rlhf.evaluation.judges import ChatJudge
from lit_rlhf.evaluation.judges.chat import question, read_template
from lit_rlhf.evaluation.verdicts import order_bias
from tests.evaluation.judges.chat_server import says, serving
from tests.evaluation.made_up_answers import pairs
from tests.models.tiny import make_tokenizer, tiny_config

pytest.importorskip("openai")
VERDICTS = ("A", "B", "tie")


class Served:
    """Writes a few tokens of its own, then the verdict that it finds likeliest: a model that keeps to the format."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM

        self.tokenizer = make_tokenizer("abcdefghijklmnopqrstuvwxyz :\nABV.")
        torch.manual_seed(0)
        config = tiny_config(
            "llama", len(self.tokenizer), hidden_size=16, intermediate_size=16, max_position_embeddings=4096
        )
        self.model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in self.model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(6)
        self.lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, text):
        with self.lock:
            ids = torch.tensor([self.tokenizer(text).input_ids[-1000:]])
            written = self.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.size(1) :]
            return says(
                f"{self.tokenizer.decode(written)}\nVerdict: {max(VERDICTS, key=lambda v: self.logprob(text, v))}"
            )

    def logprob(self, text, verdict):
        prompt = self.tokenizer(text).input_ids[-1000:]
        ids = torch.tensor([prompt + self.tokenizer(f"Verdict: {verdict}", add_special_tokens=False).input_ids])
        said = self.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        return float(said.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].mean())


def test_a_models_own_verdicts_come_through(tmp_path):
    served = Served()
    found = pairs(["lions eat meat", "no", "go to the market", "a b c"], ["lions eat", "yes it is", "stay", "c b a"])
    with serving(served) as server:
        judge = ChatJudge("tiny", base_url=server.url, api_key_env=None, cache=str(tmp_path / "c.jsonl"), timeout=60.0)
        judge.setup()
        verdicts = judge.judge(found)
    template = read_template("helpful")
    for pair, verdict in zip(found, verdicts, strict=True):
        texts = [question(template, pair.prompt, *order) for order in ((pair.a, pair.b), (pair.b, pair.a))]
        first, second = (max(VERDICTS, key=lambda v, t=t: served.logprob(t, v)) for t in texts)
        expected = ({"A": "win", "B": "lose"}.get(first, "tie"), {"A": "lose", "B": "win"}.get(second, "tie"))
        assert verdict.votes == expected
        assert verdict.outcome == (expected[0] if expected[0] == expected[1] else "tie")
    assert order_bias(verdicts).unreadable == 0
    assert judge.sent == 8
