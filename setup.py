"""Everything else is in pyproject.toml. A wheel holds the files of configs/ as `lit_rlhf/configs`, without a copy."""

from setuptools import find_namespace_packages, setup

LIBRARY = find_namespace_packages(include=["lit_rlhf*"], exclude=["*__pycache__*"])
CONFIGS = ["lit_rlhf.configs", *(f"lit_rlhf.configs.{folder}" for folder in find_namespace_packages("configs"))]

setup(packages=[*LIBRARY, *CONFIGS], package_dir={"lit_rlhf.configs": "configs"})
