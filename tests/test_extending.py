"""The recipes of docs/extending.md, as a newcomer follows them."""

import os
import pathlib
import shutil
import subprocess
import sys
import types

import pytest
from doc_blocks import blocks
from launching import REPOSITORY
from PIL import Image
from tiny_runs import tiny

from bdjax.attacks import ATTACKS
from bdjax.defenses import DEFENSES
from bdjax.runs import DefenseConfig, defend, run

__all__ = ["tiny"]

PAGE = REPOSITORY / "docs" / "extending.md"
BLOCKS = [block for block in blocks(PAGE) if block.file]
# Settings with which a defence takes seconds; the others have their defaults.
FAST = {
  "fine_pruning": ["--epochs=1"],
  "fine_tuning": ["--epochs=1", "--tune_batch_size=16"],
  "neural_cleanse": [
    *("--steps=40", "--updates=4", "--patience=2", "--asr_threshold=0.3"),
    "--unlearn_epochs=1",
  ],
  "strip": ["--overlays=5"],
  "strip_fine_pruning": ["--epochs=1", "--overlays=5"],
}
# Runs scripts one after the other, each line a command.
DRIVER = """
import runpy, sys
for line in sys.stdin:
  sys.argv = line.split()
  try:
    runpy.run_module(f"experiments.{sys.argv[0]}", run_name="__main__")
  except SystemExit as end:
    if end.code:
      sys.exit(f"{line}{end.code}")
"""


def _hunks(diff):
  """Return (old, new) text of each hunk."""
  for hunk in diff.split("@@\n"):
    lines = hunk.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if not line.startswith("+"))
    yield old, "".join(line[1:] for line in lines)


def _edited(text, diff):
  for old, new in _hunks(diff):
    assert text.count(old) == 1, old
    text = text.replace(old, new)
  return text


def _module(monkeypatch, name):
  """Import the method's file from the page."""
  file = f"{name.replace('.', '/')}.py"
  (block,) = (b for b in BLOCKS if b.file == file)
  module = types.ModuleType(name)
  monkeypatch.setitem(sys.modules, name, module)
  exec(compile(block.code, file, "exec"), module.__dict__)
  return module


@pytest.mark.slow
def test_both_recipes_run_once_they_are_registered(tiny, monkeypatch):
  attack = _module(monkeypatch, "bdjax.attacks.ramp").METHOD
  defense = _module(monkeypatch, "bdjax.defenses.weight_noise").METHOD
  monkeypatch.setitem(ATTACKS, attack.name, attack)
  monkeypatch.setitem(DEFENSES, defense.name, defense)
  config = tiny("ramp", alpha=0.8, width=8, epochs=15, batch_size=64)
  results = run(config)
  path = pathlib.Path(config.runs_dir) / "ramp-digits"
  assert results["config"]["alpha"] == 0.8
  with Image.open(path / "figures" / "triggers.png") as image:
    image.load()
  unchanged, noisy = (
    defend("weight_noise", defense.settings(noise=noise), network)["measured"]
    for noise, network in (
      (0.0, DefenseConfig(run=str(path), output=str(path / "none"))),
      (9.0, DefenseConfig(run=str(path))),
    )
  )
  own, after = results["measured"], "clean_accuracy_repaired"
  assert unchanged[after]["mean"] == own["clean_accuracy"]["mean"]
  assert unchanged["defense_effectiveness_rate_repaired"] == 0.5
  assert noisy[after]["mean"] < own["clean_accuracy"]["mean"]


@pytest.mark.parametrize(
  "folder, name", [("attacks", "ramp"), ("defenses", "weight_noise")]
)
def test_a_recipe_is_three_small_files_and_an_entry(folder, name):
  files = {
    f"bdjax/{folder}/{name}.py": 65,
    f"bdjax/{folder}/__init__.py": 5,
    f"experiments/{name}.py": 10,
    f"tests/{folder}/test_{name}.py": 20,
  }
  own = [b for b in BLOCKS if name in b.file or f"/{folder}/__" in b.file]
  assert [b.file for b in own] == list(files)
  for block in own:
    lines = block.code.splitlines()
    if block.language == "diff":
      lines = [line for line in lines if line.startswith("+")]
      assert not [line for line in block.code.splitlines() if line[:1] == "-"]
      assert _edited((REPOSITORY / block.file).read_text(), block.code)
    else:
      assert not (REPOSITORY / block.file).exists()
    assert len(lines) <= files[block.file]


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
  """A copy of the repository with the files of the page, and none other."""
  copy = tmp_path_factory.mktemp("extended")
  for name in ("bdjax", "experiments", "tests"):
    shutil.copytree(
      REPOSITORY / name,
      copy / name,
      ignore=shutil.ignore_patterns("__pycache__"),
    )
  shutil.copy(REPOSITORY / "pyproject.toml", copy)
  for block in BLOCKS:
    path = copy / block.file
    text = block.code
    if block.language == "diff":
      text = _edited(path.read_text(), text)
    path.write_text(text)
  return copy


def _python(copy, *arguments, **kwargs):
  done = subprocess.run(
    [sys.executable, "-P", *arguments],
    cwd=copy,
    env=os.environ | {"PYTHONPATH": str(copy)},
    capture_output=True,
    text=True,
    **kwargs,
  )
  assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
  return done.stdout


@pytest.mark.slow
def test_the_contract_tests_cover_the_recipes(extended):
  tests = [extended / "tests" / folder for folder in ("attacks", "defenses")]
  chosen = "ramp or weight_noise or half_is_blended or as_large_as_asked"
  out = _python(extended, "-m", "pytest", "-q", "-k", chosen, *map(str, tests))
  assert int(out.splitlines()[-1].split()[0]) > 20  # "N passed, ..."


@pytest.mark.slow
def test_sweeps_figures_defences_and_the_table_know_the_recipes(extended):
  common = "--width=8 --epochs=15 --batch_size=64"
  commands = [
    f"ramp {common}",
    f"ramp {common} --alphas=0.3,0.6 --poison_rates=0.05,0.1",
  ]
  for name in (*DEFENSES, "weight_noise"):
    flags = " ".join(FAST.get(name, ()))
    commands.append(f"{name} --run=runs/ramp-digits --eval_images=60 {flags}")
  commands.append("summary --runs_dir=runs")
  out = _python(extended, "-c", DRIVER, input="\n".join(commands))
  run_directory = extended / "runs" / "ramp-digits"
  for name in ("examples", "triggers", "training_curves"):
    assert (run_directory / "figures" / f"{name}.png").exists()
  sweep = extended / "runs" / "ramp-digits-rates-alphas"
  assert (sweep / "figures" / "sweep.png").exists()
  assert len(list(sweep.glob("rate-*-alpha-*/results.json"))) == 4
  for name in (*DEFENSES, "weight_noise"):
    assert (run_directory / "defenses" / name / "results.json").exists()
  assert out.count("| ramp-digits |") == 1
  for name in (*DEFENSES, "weight_noise"):
    assert f"| {name}: " in out
