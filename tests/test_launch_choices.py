"""launch.sh before it sets anything up: what it says, finds and refuses."""

import os
import shutil
import subprocess
import sys

import pytest
from launching import REPOSITORY, nvidia_smi, write_script

FILES = "launch.sh requirements.txt constraints.txt pyproject.toml".split()
TOOLS = "awk dirname grep paste readlink sed sh sort".split()


def _launch(tree, *arguments, path=os.environ["PATH"], python=sys.executable):
  return subprocess.run(
    [tree / "launch.sh", *arguments],
    env={"PATH": str(path), "PYTHON": python},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
  )


# What tells a script from a module that scripts share.
MAIN = 'if __name__ == "__main__":\n  pass\n'


@pytest.fixture
def tree(tmp_path):
  """Make a tree that is not set up, with two experiments."""
  tree = tmp_path / "tree"
  (tree / "experiments").mkdir(parents=True)
  for file in FILES:
    shutil.copy(REPOSITORY / file, tree)
  (tree / "experiments" / "__init__.py").touch()
  (tree / "experiments" / "common.py").write_text('"""Shared flags."""\n')
  (tree / "experiments" / "hello.py").write_text(
    '"""Greets everybody.\n\nAnd says no more.\n"""\nNAME = """you"""\n' + MAIN
  )
  (tree / "experiments" / "plain.py").write_text(
    'r"""Says nothing."""\n' + MAIN
  )
  yield tree
  assert not (tree / ".venv").exists()


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"]])
def test_alone_it_lists_the_experiments(tree, arguments):
  result = _launch(tree, *arguments)
  assert result.returncode == 0
  assert result.stderr == ""
  listed = result.stdout.partition("experiments:\n")[2].partition("\n\n")[0]
  assert listed.splitlines() == [
    "  hello              Greets everybody.",
    "  plain              Says nothing.",
  ]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["helo"], "no experiment 'helo': use one of hello, plain (./launch.sh"),
    (["common"], "no experiment 'common': use one of hello, plain"),
    (["../hello"], "no experiment '../hello': use one of hello, plain"),
    (["--accelerator=bogus", "hello"], "unknown accelerator 'bogus': use auto"),
    (["--bogus", "hello"], "unknown option '--bogus': see ./launch.sh help"),
    (["setup", "bogus"], "setup takes --print only"),
  ],
)
def test_a_wrong_call_gets_one_line(tree, arguments, message):
  result = _launch(tree, *arguments)
  assert result.returncode == 2
  assert result.stderr.startswith(f"launch.sh: {message}")
  assert result.stderr.count("\n") == 1


# --- which Python ---

# Refuses what the version check asks, as an old Python does.
OLD = "case $2 in *version_info*) exit 1 ;; esac"
# Debian's python3 without the package python3-venv.
NO_VENV = "case $2 in *ensurepip*) exit 1 ;; esac"
NONE_FOUND = (
  "no Python 3.11 or newer with its venv module found: install one (Debian and"
  " Ubuntu: apt install python3-venv), or name it with PYTHON=/path/to/python3"
)


def _bare_path(folder, **pythons):
  """Make a PATH of the tools that launch.sh calls, and of Pythons."""
  folder.mkdir()
  for tool in TOOLS:
    (folder / tool).symlink_to(shutil.which(tool))
  for name, text in pythons.items():
    write_script(folder / name, text)
  return folder


@pytest.mark.parametrize(
  ("pythons", "named", "message"),
  [
    ({}, "", NONE_FOUND),
    ({"python3": OLD}, "", NONE_FOUND),
    ({"python3": NO_VENV}, "", NONE_FOUND),
    ({}, "/gone", "PYTHON=/gone must be a Python 3.11 or newer with its venv"),
  ],
)
def test_without_a_python_it_says_what_to_do(
  tree, tmp_path, pythons, named, message
):
  path = _bare_path(tmp_path / "bare", **pythons)
  result = _launch(tree, "setup", "--print", path=path, python=named)
  assert result.returncode == 1
  assert result.stderr.startswith(f"launch.sh: {message}")
  assert result.stderr.count("\n") == 1


def test_a_newer_python_is_found_behind_an_old_one(tree, tmp_path):
  newer = {"python3.12": f'exec {sys.executable} "$@"'}
  path = _bare_path(tmp_path / "bare", python3=OLD, **newer)
  result = _launch(tree, "setup", "--print", path=path, python="")
  assert "(python3.12)" in result.stdout


# --- which jax, of the repository's own requirements and extras ---


def _installs(tree, tools, accelerator):
  path = f"{tools}:{os.environ['PATH']}"
  result = _launch(
    tree, f"--accelerator={accelerator}", "setup", "--print", path=path
  )
  lines = (line.split(maxsplit=1) for line in result.stdout.splitlines())
  return [what for kind, what in lines if kind == "install"]


@pytest.mark.parametrize(
  ("asked", "gpu", "extra"),
  [
    ("auto", "580.65.06, 9.0", ["jax[cuda13]"]),
    ("auto", "570.124.04, 9.0", ["jax[cuda12]"]),
    ("auto", "525.60.13, 8.0", ["jax[cuda12]"]),
    ("auto", "470.182.03, 7.0", []),
    ("auto", "580.65.06, 9.0\\n580.65.06, 7.0", ["jax[cuda12]"]),
    ("cpu", "580.65.06, 9.0", []),
    ("cuda", None, ["jax[cuda13]"]),
    ("cuda", "550.54.14, 8.0", ["jax[cuda12]"]),
    ("tpu", None, ["jax[tpu]"]),
  ],
)
def test_the_accelerator_decides_the_jax(tree, tmp_path, asked, gpu, extra):
  nvidia_smi(tmp_path / "tools", gpu)
  installs = _installs(tree, tmp_path / "tools", asked)
  assert installs == ["requirements.txt", *extra]


@pytest.mark.parametrize("answer", [None, "No devices were found"])
def test_without_a_gpu_no_cuda_is_installed(tree, tmp_path, answer):
  nvidia_smi(tmp_path / "tools", answer)
  installs = _installs(tree, tmp_path / "tools", "auto")
  # A TPU, which nothing here can hide, adds its own.
  assert installs in (["requirements.txt"], ["requirements.txt", "jax[tpu]"])


def test_a_driver_too_old_for_any_cuda_is_named(tree, tmp_path):
  nvidia_smi(tmp_path / "tools", "470.182.03, 7.0")
  path = f"{tmp_path / 'tools'}:{os.environ['PATH']}"
  result = _launch(tree, "--accelerator=cuda", "hello", path=path)
  assert result.returncode == 1
  assert result.stderr == (
    "launch.sh: NVIDIA driver 470.182.03 is too old for CUDA 12: update it to"
    " 525 or newer, or use --accelerator=cpu\n"
  )
