"""Which errors end a command in one line, and which keep their traceback."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_rlhf.commands.plan import parse_size
from lit_rlhf.modules.base import NonFiniteError
from lit_rlhf.ppo.losses import ClippedSurrogate
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.strategies.errors import CheckpointError
from lit_rlhf.user_errors import PACKAGE, LitRLHFError, UserError, fail, message_for_user


def caught(action: Callable[[], Any]) -> Exception:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("no error")


def raising(error: BaseException, cause: BaseException | None = None) -> Callable[[], None]:
    def action() -> None:
        raise error from cause

    return action


@pytest.mark.parametrize("kind", [UserError, NonFiniteError, CheckpointError])
def test_errors_of_the_library_say_so_by_their_class(kind: type[LitRLHFError]) -> None:
    assert issubclass(kind, LitRLHFError)
    assert message_for_user(caught(raising(kind("told")))) == "told"


def test_user_errors_are_value_errors_and_the_others_are_not() -> None:
    assert issubclass(UserError, ValueError)
    # A reward's ValueError is caught where scores are read; a fault of the training must not be.
    assert not issubclass(NonFiniteError, ValueError)
    assert not issubclass(CheckpointError, ValueError)


def test_lightnings_own_word_for_it() -> None:
    assert message_for_user(caught(raising(MisconfigurationException("no such strategy")))) == "no such strategy"


@pytest.mark.parametrize(
    "action",
    [lambda: SamplingConfig(top_p=2.0), lambda: ClippedSurrogate(clip_range=-1.0), lambda: parse_size("large")],
    ids=["sampling", "loss", "size"],
)
def test_a_value_error_that_the_package_raises_is_for_users(action: Callable[[], Any]) -> None:
    error = caught(action)
    assert type(error) is ValueError
    assert message_for_user(error) == str(error)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("raise ValueError('by us')", "by us"),
        ("int('x')", None),
        ("max([])", None),
        ("a, b = [1]", None),
        ("list(zip([1], [], strict=True))", None),
        ("[].index(1)", None),
    ],
)
def test_a_value_error_of_the_interpreter_inside_the_package_is_not(statement: str, told: str | None) -> None:
    """``int`` has no frame of its own: the innermost one is the package's, as with a ``raise``."""
    error = caught(lambda: exec(compile(statement, str(PACKAGE / "made_up.py"), "exec")))
    assert type(error) is ValueError
    assert message_for_user(error) == told


@pytest.mark.parametrize(
    "action",
    [lambda: int("x"), lambda: json.loads("{"), raising(ValueError("of a test")), raising(KeyError("slip"))],
    ids=["interpreter", "library", "elsewhere", "other class"],
)
def test_errors_from_elsewhere_are_not(action: Callable[[], Any]) -> None:
    assert message_for_user(caught(action)) is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_for_users(code: int) -> None:
    found = message_for_user(OSError(code, "No space", "runs/x/samples.jsonl"))
    assert found == "No space: 'runs/x/samples.jsonl'."
    assert message_for_user(OSError(code, "No space")) == "No space."


def test_paths_that_cannot_be_used_are_for_users(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for action in (
        lambda: (tmp_path / "gone").read_text(),
        lambda: tmp_path.read_text(),
        lambda: (file / "below").mkdir(),
        lambda: tmp_path.mkdir(),
        raising(PermissionError(errno.EACCES, "Permission denied", str(tmp_path))),
    ):
        message = message_for_user(caught(action))
        assert message is not None
        assert str(tmp_path) in message
        assert "Errno" not in message
    assert message_for_user(FileNotFoundError("There is no run at 'x'.")) == "There is no run at 'x'."


@pytest.mark.parametrize("code", [errno.EPIPE, errno.ECONNRESET, errno.EINVAL])
def test_other_errors_of_the_system_are_not(code: int) -> None:
    assert message_for_user(OSError(code, "of a socket")) is None


def test_the_first_of_a_chain_that_is_for_users_is_told() -> None:
    error = caught(raising(RuntimeError("wrapped twice"), caught(raising(KeyError("wrapped"), UserError("the cause")))))
    assert message_for_user(error) == "the cause"


def test_what_was_being_handled_counts_unless_it_was_put_aside() -> None:
    def fails_while_tearing_down(*, aside: bool) -> None:
        try:
            raise UserError("the cause")
        except UserError:
            if aside:
                raise KeyError("slip") from None
            raise KeyError("slip")  # noqa: B904

    assert message_for_user(caught(lambda: fails_while_tearing_down(aside=False))) == "the cause"
    assert message_for_user(caught(lambda: fails_while_tearing_down(aside=True))) is None


def test_fail_is_one_line_whatever_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fail("two\n  lines", code=7)
    assert ended.value.code == 7
    assert capsys.readouterr().err == "lit-rlhf: two lines\n"
