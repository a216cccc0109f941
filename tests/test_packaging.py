"""What `pip install .` brings, and what tells others about the project."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from launching import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def _version():
  """Read the version as setuptools does: without an import of bdjax."""
  tree = ast.parse((REPOSITORY / "bdjax" / "__init__.py").read_text())
  (value,) = (
    node.value
    for node in tree.body
    if isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
  )
  return ast.literal_eval(value)


def _names(requirements):
  """Return the distributions' names, normalised, of requirement lines."""
  names = (re.match(r"[\w.-]+", line) for line in requirements)
  return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in names if name}


def _lines(file):
  return (REPOSITORY / file).read_text().splitlines()


def test_experiments_are_one_flat_package():
  assert not list((REPOSITORY / "experiments").glob("*/*.py"))


def test_the_console_script_exists():
  module, _, function = PROJECT["project"]["scripts"]["bdjax"].partition(":")
  file = REPOSITORY / (module.removeprefix("bdjax.").replace(".", "/") + ".py")
  tree = ast.parse(file.read_text())
  functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
  assert function in functions


def test_every_direct_requirement_has_its_version_in_the_constraints():
  extras = PROJECT["project"]["optional-dependencies"]
  direct = _names(_lines("requirements.txt") + extras["dev"] + extras["docs"])
  constraints = [line for line in _lines("constraints.txt") if line[0] != "#"]
  pinned = re.compile(r'[a-z0-9-]+==[\w.]+( ; python_version (<|>=) "3\.12")?')
  assert [line for line in constraints if not pinned.fullmatch(line)] == []
  assert direct - _names(constraints) == set()
  names = [line.partition("==")[0] for line in constraints]
  assert names == sorted(names)


def test_the_versions_of_the_hooks_are_those_of_the_dev_extra():
  text = (REPOSITORY / ".pre-commit-config.yaml").read_text()
  (hook,) = (
    hook
    for hook in yaml.safe_load(text)["repos"][0]["hooks"]
    if hook["id"] == "ruff"
  )
  extra = PROJECT["project"]["optional-dependencies"]["dev"]
  assert set(hook["additional_dependencies"]) <= set(extra)


def test_the_citation_is_whole_and_of_this_version():
  text = (REPOSITORY / "CITATION.cff").read_text()
  citation = yaml.safe_load(text)
  assert citation["cff-version"] == "1.2.0"
  # What the schema demands.
  assert {"message", "title", "authors"} <= set(citation)
  assert citation["authors"] == PROJECT["project"]["authors"]
  assert citation["license"] == PROJECT["project"]["license"]
  assert citation["type"] == "software"
  assert citation["version"] == _version()


def test_the_changelog_begins_with_what_is_unreleased():
  headings = [line for line in _lines("CHANGELOG.md") if line.startswith("## ")]
  assert headings[0] == "## [Unreleased]"
  release = re.compile(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d")
  assert all(release.fullmatch(heading) for heading in headings[1:])


# --- the wheel itself ---


FILES = "setup.py pyproject.toml requirements.txt README.md LICENSE"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """Build the sdist and, from that alone, the wheel; unpack it.

  Returns:
    The folders of the sources and of what the wheel installs.
  """
  folder = tmp_path_factory.mktemp("packaging")
  # A copy: setuptools builds beside the sources, which may be read-only.
  for name in ("bdjax", "experiments"):
    shutil.copytree(
      REPOSITORY / name,
      folder / "source" / name,
      ignore=shutil.ignore_patterns("__pycache__"),
    )
  for name in FILES.split():
    shutil.copy(REPOSITORY / name, folder / "source")
  subprocess.run(
    [sys.executable, "-m", "build", "--no-isolation", folder / "source"],
    check=True,
    capture_output=True,
    text=True,
  )
  (wheel,) = (folder / "source" / "dist").glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder / "installed")
  return folder / "source", folder / "installed"


@pytest.mark.slow
def test_the_wheel_holds_one_package_with_all_that_is_in_the_tree(built):
  source, installed = built
  info = f"bdjax-{_version()}.dist-info"
  assert {path.name for path in installed.iterdir()} == {"bdjax", info}
  for name, target in (("bdjax", ""), ("experiments", "experiments")):
    for path in (source / name).rglob("*"):
      inside = path.relative_to(source / name)
      copy = installed / "bdjax" / target / inside
      assert path.is_dir() or copy.read_bytes() == path.read_bytes()
  assert (installed / "bdjax" / "py.typed").exists()
  assert (installed / "bdjax" / "data" / "digits.npz").exists()
  entry_points = (installed / info / "entry_points.txt").read_text()
  assert "bdjax = bdjax.experiments.cli:console" in entry_points
  metadata = (installed / info / "METADATA").read_text().splitlines()
  required = [line for line in metadata if line.startswith("Requires-Dist: ")]
  plain = [line[15:] for line in required if "extra ==" not in line]
  assert _names(plain) == _names(_lines("requirements.txt"))


@pytest.mark.slow
def test_the_console_script_runs_outside_the_checkout(built, tmp_path):
  _, installed = built
  code = (
    "import sys; sys.path.insert(0, sys.argv.pop(1));"
    "from bdjax.experiments.cli import console; sys.exit(console())"
  )
  command = [sys.executable, "-I", "-c", code, installed]
  result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert "ban" in (result.stdout + result.stderr).split()
  result = subprocess.run(
    [*command, "ban", "--dry_run"], cwd=tmp_path, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
