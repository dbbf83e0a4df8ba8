"""The table of slips keeps up with the code: a slip that no longer applies tests nothing."""

from tests.soak.mutations import MUTATIONS, ROOT, Mutation, applies


def test_every_slip_applies_and_changes_something() -> None:
    assert [(m.file, m.what) for m in MUTATIONS if not applies(m)] == []
    assert [(m.file, m.what) for m in MUTATIONS if m.before == m.after] == []


def test_what_is_not_there_does_not_apply() -> None:
    kl = next(m for m in MUTATIONS if m.file == "functional/kl")
    assert not applies(kl._replace(before="no such text"))
    assert not applies(kl._replace(before="return"))  # more than once
    assert not applies(Mutation("functional/gone", "", kl.before, kl.after))


def test_the_tests_of_every_slip_are_there() -> None:
    for m in MUTATIONS:
        room, name = m.file.rsplit("/", 1)
        assert (ROOT / (m.tests or f"tests/{room}/test_{name}.py").split("::")[0]).is_file(), m
