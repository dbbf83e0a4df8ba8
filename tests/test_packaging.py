"""What a user without the repository gets: the configs are found from a wheel, an editable install and a checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import lit_rlhf

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).resolve().parent.parent
BUILD = "from setuptools.build_meta import build_{kind}; print(build_{kind}({out!r}))"
PRESET = "from lit_rlhf.cli import main; main(['configs', 'ppo_max'])"
FIND = """
import site
site.addsitedir({site!r})
import lit_rlhf
from lit_rlhf.commands.config_files import shipped_configs
print(lit_rlhf.__file__)
print(shipped_configs())
"""


def python(code: str, cwd: Path, **env: str) -> list[str]:
    """The lines that a fresh interpreter prints; it finds no package but through ``env``."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env={**clean, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, since it leaves folders behind."""
    folder = tmp_path_factory.mktemp("build") / "tree"
    for name in ("lit_rlhf", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_every_package_and_config_folder_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    packages = {init.parent for init in (ROOT / "lit_rlhf").rglob("__init__.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in packages}
    folders = [ROOT / "configs", *(folder for folder in (ROOT / "configs").rglob("*") if folder.is_dir())]
    names |= {".".join(("lit_rlhf", *folder.relative_to(ROOT).parts)) for folder in folders}
    assert listed == names


def test_the_version_is_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lit_rlhf.__version__"}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == lit_rlhf.__version__
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[0] == lit_rlhf.__version__, "the changelog's newest section is the version's"


def built(tree: Path, kind: str) -> Path:
    """The wheel, unpacked as pip would."""
    out = tree.parent / kind
    name = python(BUILD.format(kind=kind, out=str(out)), tree)[-1]
    with zipfile.ZipFile(out / name) as wheel:
        wheel.extractall(out / "site")
    return out / "site"


def found(site: Path, cwd: Path) -> tuple[Path, Path]:
    """The package and the configs that are found with ``site`` as a folder of installed packages."""
    # First on the path, so before any other copy of the package that this environment has.
    lines = python(FIND.format(site=str(site)), cwd, PYTHONPATH=str(site))
    return Path(lines[-2]), Path(lines[-1])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_wheel_holds_configs_and_templates_and_finds_them(tree: Path, tmp_path: Path) -> None:
    site = built(tree, "wheel")
    package, configs = found(site, tmp_path)
    assert package == site / "lit_rlhf" / "__init__.py"
    assert configs == site / "lit_rlhf" / "configs"
    assert contents(configs) == contents(ROOT / "configs")
    templates = Path("lit_rlhf") / "reports" / "templates"
    assert contents(site / templates) == contents(ROOT / templates)
    assert (site / templates / "base.html.jinja").is_file()
    assert (site / "lit_rlhf" / "py.typed").is_file()
    assert (site / "lit_rlhf" / "__init__.pyi").is_file()
    assert (site / f"lit_rlhf-{lit_rlhf.__version__}.dist-info").is_dir()
    shown = python(f"import site; site.addsitedir({str(site)!r}); {PRESET}", tmp_path, PYTHONPATH=str(site))
    assert "\n".join(shown) + "\n" == (ROOT / "configs" / "presets" / "ppo_max.yaml").read_text(encoding="utf-8")
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"lit_rlhf"}


def test_an_editable_install_finds_those_of_the_tree(tree: Path, tmp_path: Path) -> None:
    site = built(tree, "editable")
    package, configs = found(site, tmp_path)
    assert package == tree / "lit_rlhf" / "__init__.py"
    assert configs == tree / "configs"


def test_a_checkout_on_the_path_finds_its_own(tmp_path: Path) -> None:
    package, configs = found(ROOT, tmp_path)
    assert package == ROOT / "lit_rlhf" / "__init__.py"
    assert configs == ROOT / "configs"
