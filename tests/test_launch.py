"""launch.sh as a user runs it: real environments, real installs, no network.

The script stands in a small tree, beside a requirements file that is answered
by wheels made here, so that an install takes a second and needs no index. What
it says and chooses before it sets anything up: test_launch_choices.py.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from launching import (
  REPOSITORY,
  make_tree,
  nvidia_smi,
  require,
  write_script,
)


def _environment(tree):
  return {
    "HOME": os.environ.get("HOME", "/"),
    "PATH": f"{tree / 'bin'}:{os.environ['PATH']}",
    "PYTHON": sys.executable,
  }


def _launch(tree, *arguments, cwd=None, script=None):
  return subprocess.run(
    [script or tree / "launch.sh", *arguments],
    cwd=cwd or tree,
    env=_environment(tree),
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
  )


def _start(tree, *arguments, **options):
  """Start launch.sh without waiting for its end."""
  return subprocess.Popen(
    [tree / "launch.sh", *arguments],
    cwd=tree,
    env=_environment(tree),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def _on_a_tpu():
  """Tell whether launch.sh finds a TPU, which nothing here can hide."""
  result = subprocess.run(
    [REPOSITORY / "launch.sh", "setup", "--print"],
    capture_output=True,
    text=True,
  )
  return "accelerator  tpu" in result.stdout


pytestmark = pytest.mark.skipif(_on_a_tpu(), reason="expects no TPU")


def _site_packages(tree):
  (folder,) = (tree / ".venv" / "lib").glob("python*/site-packages")
  return folder


@pytest.fixture(scope="module")
def first_launches(tmp_path_factory):
  """Set up a tree by two launches at the same time; return their outputs.

  A test that changes the tree uses `tree`.
  """
  tree = make_tree(tmp_path_factory.mktemp("launch"))
  with _start(tree, "hello", "--a") as one, _start(tree, "hello", "--b") as two:
    outputs = [process.communicate() for process in (one, two)]
    codes = [process.returncode for process in (one, two)]
  return tree, outputs, codes


@pytest.fixture
def tree(first_launches, tmp_path):
  """Copy the tree, set up, for a test that may change it."""
  return shutil.copytree(first_launches[0], tmp_path / "copy", symlinks=True)


# --- setting up ---


def test_two_first_launches_at_once_share_one_install(first_launches):
  _, outputs, codes = first_launches
  assert codes == [0, 0], outputs
  for flag, (out, _) in zip(("--a", "--b"), outputs, strict=True):
    assert out.startswith(f"hello 1.0 {flag}\n")
  messages = "".join(err for _, err in outputs)
  assert messages.count("making .venv") == 1
  assert messages.count("installing the packages") == 1


def test_a_second_launch_installs_nothing(tree):
  result = _launch(tree, "hello", "--flag=with space")
  assert result.returncode == 0
  assert result.stdout.startswith("hello 1.0 --flag=with space\n")
  assert result.stderr == ""


def test_changed_requirements_are_installed(tree):
  require(tree, "greeting==2.0")
  result = _launch(tree, "hello")
  assert result.stdout.startswith("hello 2.0\n")
  assert "installing the packages" in result.stderr
  assert "making .venv" not in result.stderr
  assert _launch(tree, "hello").stderr == ""


def test_an_install_that_fails_shows_why_and_can_be_tried_again(tree):
  require(tree, "greeting==9.9")
  result = _launch(tree, "hello")
  assert result.returncode == 1
  assert result.stdout == ""
  assert "No matching distribution found for greeting==9.9" in result.stderr
  assert "pip could not install the packages" in result.stderr
  require(tree, "greeting==2.0")
  result = _launch(tree, "hello")
  assert result.stdout.startswith("hello 2.0\n")
  assert "making .venv" not in result.stderr


@pytest.mark.slow
def test_a_launch_that_was_killed_is_made_good(tmp_path):
  tree = make_tree(tmp_path)
  with _start(tree, "hello") as process:
    while not (tree / ".venv" / "pyvenv.cfg").exists():
      assert process.poll() is None
      time.sleep(0.01)
    # The shell alone: its child works on, and must be waited for.
    process.kill()
  assert not (tree / "left_here").exists()
  result = _launch(tree, "hello")
  assert result.returncode == 0, result.stderr
  assert result.stdout.startswith("hello 1.0\n")
  assert "waiting for another" in result.stderr


@pytest.mark.slow
def test_half_a_package_is_not_trusted(tree):
  # What pip leaves when it dies: the record stands, the module does not.
  (tree / ".venv" / "launch.stamp").write_text("unfinished\n")
  (_site_packages(tree) / "greeting.py").unlink()
  result = _launch(tree, "hello")
  assert result.stdout.startswith("hello 1.0\n")
  assert "making .venv" in result.stderr


@pytest.mark.slow
def test_an_environment_without_its_python_is_made_anew(tree):
  for link in (tree / ".venv" / "bin").glob("python*"):
    link.unlink()
  (tree / ".venv" / "bin" / "python").symlink_to("/gone/python3")
  result = _launch(tree, "hello")
  assert result.stdout.startswith("hello 1.0\n")
  assert "making .venv" in result.stderr


def test_changed_constraints_are_obeyed(tree):
  require(tree, "greeting")
  (tree / "constraints.txt").write_text("greeting==1.0\n")
  result = _launch(tree, "hello")
  assert result.stdout.startswith("hello 1.0\n")
  (tree / "constraints.txt").write_text("greeting==2.0\n")
  assert _launch(tree, "hello").stdout.startswith("hello 2.0\n")


def test_uv_installs_where_there_is_one(tree):
  require(tree, "greeting==2.0")
  write_script(tree / "bin" / "uv", f'echo "$*" >"{tree}/uv_called"')
  result = _launch(tree, "hello")
  # This uv only says that it installed: pip did nothing after it.
  assert result.stdout.startswith("hello 1.0\n")
  call = (tree / "uv_called").read_text()
  assert call.startswith(f"pip install --python {tree}/.venv/bin/python -r ")
  assert call.endswith(f"-c {tree}/constraints.txt\n")


def test_setup_only_sets_up(tree):
  (tree / "left_here").unlink()
  result = _launch(tree, "setup")
  assert (result.returncode, result.stdout) == (0, "")
  assert result.stderr == "launch.sh: ready\n"
  assert not (tree / "left_here").exists()


def test_the_extra_of_the_accelerator_is_added_and_stays(tree):
  nvidia_smi(tree / "bin", "580.65.06, 9.0")
  assert "for cuda (NVIDIA driver 580" in _launch(tree, "hello").stderr
  assert (_site_packages(tree) / "greeting_cuda.py").exists()
  nvidia_smi(tree / "bin", None)
  assert _launch(tree, "hello").stderr == ""
  result = _launch(tree, "--accelerator=cpu", "hello")
  assert result.stderr == ""
  assert "environment cpu glibc.malloc.hugetlb=1\n" in result.stdout


def test_what_was_added_moves_on_with_the_requirements(tree):
  assert _launch(tree, "--accelerator=cuda", "test").returncode == 0
  require(tree, "greeting==2.0")
  assert "installing" in _launch(tree, "--accelerator=cpu", "hello").stderr
  assert _launch(tree, "--accelerator=cuda", "test").stderr == ""


@pytest.mark.slow
def test_another_kind_of_accelerator_gets_a_new_environment(tree):
  assert _launch(tree, "--accelerator=cuda", "setup").returncode == 0
  assert "making .venv" in _launch(tree, "--accelerator=tpu", "setup").stderr
  assert not (_site_packages(tree) / "greeting_cuda.py").exists()


def test_tests_and_docs_run_from_the_root_with_their_extras(tree, tmp_path):
  flags = "-n 2 --dist worksteal"
  result = _launch(tree, "test", "-k", "a and b", cwd=tmp_path)
  assert result.stdout == f"pytest {tree} {flags} -k a and b\n"
  assert _launch(tree, "hello").stderr == ""
  assert not (_site_packages(tree) / "sphinx.py").exists()
  result = _launch(tree, "docs", "-E", cwd=tmp_path)
  built = "-W -b html docs docs/_build/html"
  assert result.stdout == f"sphinx {tree} {built} -E\n"
  result = _launch(tree, "test", "--all", "tests/a.py")
  assert result.stdout == f"pytest {tree} {flags} -m  tests/a.py\n"
  assert result.stderr == ""
  assert _launch(tree, "docs").stderr == ""


# --- running ---


def test_a_run_belongs_to_the_callers_directory(tree, tmp_path):
  # Someone else's experiments/ is what `python -m` would find first.
  (tmp_path / "experiments").mkdir()
  (tmp_path / "experiments" / "__init__.py").touch()
  link = tmp_path / "linked.sh"
  link.symlink_to(tree / "launch.sh")
  (tree / "left_here").unlink()
  for script in (tree / "launch.sh", link):
    result = _launch(tree, "hello", cwd=tmp_path, script=script)
    assert result.returncode == 0, result.stderr
    (tmp_path / "left_here").unlink()
  assert not (tree / "left_here").exists()


def test_the_exit_code_is_the_experiments(tree):
  assert _launch(tree, "hello", "--fail").returncode == 3


def test_sigterm_reaches_the_experiment(tree):
  with _start(tree, "hello", "--wait") as process:
    for line in process.stdout:
      if line == "waiting\n":
        break
    process.terminate()
    process.wait()
  assert process.returncode == 7


# --- an attack's benchmark ---


def test_an_attack_without_flags_trains_its_benchmark_once(tree, tmp_path):
  result = _launch(tree, "attack", cwd=tmp_path)
  assert (result.returncode, result.stdout) == (0, "attack with benchmark\n")
  message, clean = result.stderr.splitlines()
  assert message.startswith("launch.sh: training the benchmark first")
  assert clean == "clean"
  result = _launch(tree, "attack", cwd=tmp_path)
  assert (result.stdout, result.stderr) == ("attack with benchmark\n", "")


@pytest.mark.parametrize("command", [["attack", "--epochs=1"], ["hello"]])
def test_nothing_else_trains_a_benchmark(tree, tmp_path, command):
  result = _launch(tree, *command, cwd=tmp_path)
  assert (result.returncode, result.stderr) == (0, "")
  assert not (tmp_path / "runs").exists()


def test_a_benchmark_that_fails_ends_the_command(tree, tmp_path):
  (tmp_path / "runs").touch()  # No directory: clean ends with a traceback.
  result = _launch(tree, "attack", cwd=tmp_path)
  assert (result.returncode, result.stdout) == (1, "")
  assert "clean" in result.stderr


@pytest.mark.parametrize(
  ("signum", "whole_group", "status"),
  [(signal.SIGTERM, False, 7), (signal.SIGINT, True, 130)],
)
def test_a_signal_ends_the_benchmark_and_the_attack(
  tree, signum, whole_group, status
):
  # A terminal sends Ctrl-C to all of its processes, `kill` to the first alone.
  (tree / "wait").touch()
  with _start(tree, "attack", start_new_session=True) as process:
    for line in process.stderr:
      if line == "waiting\n":
        break
    if whole_group:
      os.killpg(process.pid, signum)
    else:
      process.send_signal(signum)
    out, _ = process.communicate()
  assert (process.returncode, out) == (status, "")
