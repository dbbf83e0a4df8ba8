"""Python functions as rewards: what they get, and errors that name the prompt."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lit_rlhf.rewards.python import PythonReward
from tests.rewards import scorers
from tests.rewards.requests import make_request

MODULE = "tests.rewards.scorers"
CPU = torch.device("cpu")


@pytest.fixture
def request_(tokenizer):
    return make_request(
        tokenizer,
        ["fine one", "a bad one", "fine two"],
        ["abc", "d", ""],
        ended=[True, False, True],
        records=[{"answer": 10}, {"answer": 20}, {"answer": 30, "ended": "overwritten"}],
    )


def _ready(name, tokenizer=None, **options):
    reward = PythonReward(f"{MODULE}:{name}", **options)
    reward.setup(device=CPU, tokenizer=tokenizer)
    return reward


@pytest.mark.parametrize("timeout", [None, 30])
def test_one_call_for_the_batch(request_, timeout):
    scorers.CALLS.clear()
    assert _ready("length", timeout=timeout)(request_).scores.tolist() == [3.0, 1.0, 0.0]
    assert scorers.CALLS == [3]


def test_records_have_the_row_and_how_it_ended(request_):
    assert _ready("uses_records")(request_).scores.tolist() == [24.0, 21.0, 61.0]
    assert request_.records[2]["ended"] == "overwritten"


def test_per_token(request_):
    output = _ready("per_token")(request_)
    assert torch.equal(output.token_scores, request_.rollout.response_mask.float())


class TestErrors:
    @pytest.mark.parametrize("timeout", [None, 30])
    def test_exception_names_the_prompt(self, request_, timeout):
        with pytest.raises(RuntimeError, match=r"raised ZeroDivisionError: .* for prompt 'a bad one'") as caught:
            _ready("fails_on_bad", timeout=timeout)(request_)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_exception_of_the_batch_only(self, request_):
        with pytest.raises(RuntimeError, match="KeyError: 'together' for 3 prompts together, each alone is fine"):
            _ready("fails_together")(request_)

    @pytest.mark.parametrize("timeout", [None, 30])
    def test_exit_is_an_error(self, request_, timeout):
        with pytest.raises(RuntimeError, match="raised SystemExit: 3 for prompt 'fine one'"):
            _ready("exits", timeout=timeout)(request_)

    def test_timeout_names_the_prompt(self, request_):
        with pytest.raises(TimeoutError, match=r"took longer than 1\.5 s for prompt 'a bad one'"):
            _ready("hangs_on_bad", timeout=1.5)(request_)

    def test_timeout_of_the_batch_only(self, request_):
        with pytest.raises(TimeoutError, match="3 prompts together, each alone is fine"):
            _ready("slow_together", timeout=1.5)(request_)

    def test_wrong_count(self, request_):
        with pytest.raises(ValueError, match="scorers:wrong_count' gave 1 scores for 3 responses"):
            _ready("wrong_count")(request_)

    def test_nan_names_the_prompt(self, request_):
        with pytest.raises(ValueError, match="Reward 'nan_on_bad' gave nan for prompt 'a bad one'"):
            _ready("nan_on_bad")(request_)

    def test_before_setup(self, request_):
        with pytest.raises(ValueError, match="call `setup` first"):
            PythonReward(f"{MODULE}:length")(request_)


class TestImport:
    @pytest.mark.parametrize("name", ["scorers", "a:b:c", ":f", "m:", "m:f()", "m f:g"])
    def test_form(self, name):
        with pytest.raises(ValueError, match=r"must have the form 'package\.module:function'"):
            PythonReward(name)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("no_such_module:f", "cannot be imported: No module named 'no_such_module'"),
            (f"{MODULE}:nothing", "has no such function"),
            (f"{MODULE}:not_callable", "is not callable"),
        ],
    )
    def test_not_found(self, name, message):
        with pytest.raises(ValueError, match=message):
            PythonReward(name).setup(device=CPU, tokenizer=None)

    def test_current_directory(self, tmp_path, monkeypatch, request_):
        (tmp_path / "my_rules_for_this_test.py").write_text("def one(p, r, x):\n    return [1.0] * len(p)\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
        reward = PythonReward("my_rules_for_this_test:one")
        reward.setup(device=CPU, tokenizer=None)
        assert reward(request_).scores.tolist() == [1.0] * 3

    @pytest.mark.parametrize("timeout", [0, -1, float("nan")])
    def test_timeout_is_positive(self, timeout):
        with pytest.raises(ValueError, match=r"`timeout` .* must be positive"):
            PythonReward("m:f", timeout=timeout)


def test_thread_builds_no_graph(request_):
    with torch.no_grad():
        assert _ready("builds_no_graph", timeout=30)(request_).scores.tolist() == [0.0] * 3


def test_a_hanging_function_does_not_keep_the_process():
    code = (
        "import time\nfrom lit_rlhf.rewards.python import run_within\n"
        "try:\n    run_within(0.1, time.sleep, 600)\nexcept Exception:\n    print('timed out')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "timed out\n"


def test_name_and_description():
    assert PythonReward("a.b:c").describe() == {"name": "c", "type": "PythonReward", "function": "a.b:c"}
