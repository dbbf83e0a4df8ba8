from __future__ import annotations

import pytest

from tests.reports.made_up_run import make_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A run that collapses, and one that does not."""
    root = tmp_path_factory.mktemp("runs")
    return make_run(root / "vanilla", collapsing=True), make_run(root / "ppo_max", collapsing=False, seed=1)
