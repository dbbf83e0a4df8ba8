"""The fixtures of data files and tokenizers."""

from tests.data.fixtures import *  # noqa: F403
