"""The command line, in this process."""

import dataclasses
import importlib
import json
import logging
import runpy
import signal
import sys

import jax
import pytest

from bdjax.attacks import ATTACKS
from bdjax.defenses import DEFENSES
from bdjax.errors import UserError
from bdjax.runs import Stopped
from bdjax.settings import setting
from experiments import cli


@dataclasses.dataclass(frozen=True)
class _Settings:
  rate: float | None = setting(
    None, "Share of it.", by_dataset={"digits": 0.5, "*": 0.1}, group="attack"
  )
  all_to_all: bool = setting(False, "Every label.", group="attack")
  eval_images: int = setting(5, "Images.", low=1, group="run")
  name: str | None = setting(None, "Name of it.", group="run")


FIELDS = dataclasses.fields(_Settings)


def test_flags_come_from_fields():
  argv = ["x", "--rate=0.25", "--all_to_all", "--eval_images", "7", "rest"]
  values, rest = cli.parse(argv, FIELDS, positional=True)
  assert values == {
    "rate": 0.25,
    "all_to_all": True,
    "eval_images": 7,
    "name": None,
  }
  assert rest == ["rest"]


@pytest.mark.parametrize(
  "argument, words",
  [
    ("--rat=1", "rat"),
    ("--rate=much", "rate"),
    ("--eval_images=1.5", "eval_images"),
    ("--benchmark=none", "--benchmark is gone: use --clean_run=DIR"),
    ("--vmap", "--vmap is gone"),
    ("--novmap", "--vmap is gone"),
    ("rest", "'rest' must be a flag"),
  ],
)
def test_a_wrong_flag_is_one_line(argument, words):
  with pytest.raises(UserError, match=words) as error:
    cli.parse(["x", argument], FIELDS)
  assert "\n" not in str(error.value)


def test_help_lists_every_flag_once_by_topic():
  extra = [cli.Flag("rates", "Values of rate.", "sweeps")]
  page = cli.help_page("About it.", FIELDS, extra)
  lines = page.splitlines()
  assert lines[0] == "About it."
  for flag in ("--rate", "--[no]all_to_all", "--eval_images", "--rates"):
    assert lines.count(f"  {flag}") == 1
  assert [line for line in lines if line.endswith(":")] == [
    "attack:",
    "run:",
    "sweeps:",
  ]
  assert "digits 0.5, else 0.1" in page


@pytest.mark.parametrize(
  "text, expected",
  [
    ("rate must be finite", "--rate must be finite"),
    ("a rate must be finite", "a rate must be finite"),
    ("x: use all_to_all", "x: use --all_to_all"),
    ("dir/all_to_all holds it", "dir/all_to_all holds it"),
  ],
)
def test_names_of_settings_become_flags(text, expected):
  names = [field.name for field in FIELDS]
  assert cli.with_dashes(text, names) == expected


def test_exit_status_of_what_can_go_wrong(capsys):
  def fail(error):
    def start():
      raise error

    return start

  before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  assert cli.guarded(lambda: None) == 0
  assert cli.guarded(fail(UserError("rate must be 1")), ["rate"]) == 2
  assert cli.guarded(fail(Stopped(15, "stopped at step 3"))) == 143
  full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
  assert cli.guarded(fail(full)) == 2
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == "error: --rate must be 1"
  assert lines[1].startswith("stopped at step 3; the same command resumes it")
  assert lines[2].startswith("error: the device has no memory left")
  assert len(lines) == 3
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    cli.guarded(fail(jax.errors.JaxRuntimeError("INTERNAL: other")))
  after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  assert after == before


def test_progress_is_printed(capsys):
  cli.set_up_logging()
  logging.getLogger("bdjax.runs.train").info("resuming from step %d", 3)
  assert capsys.readouterr().err == "resuming from step 3\n"


def _script(monkeypatch, name, *arguments):
  """Run a script as `python -m experiments.NAME`; return its exit status."""
  monkeypatch.setattr(sys, "argv", [name, *arguments])
  monkeypatch.setattr(cli.compiler, "enable_cache", lambda: None)
  with pytest.raises(SystemExit) as stop:
    runpy.run_module(f"experiments.{name}", run_name="__main__")
  return stop.value.code


@pytest.mark.parametrize(
  "name", ["clean", *ATTACKS, *(d for d in DEFENSES)], ids=str
)
def test_every_method_has_a_script_with_help(monkeypatch, capsys, name):
  assert _script(monkeypatch, name, "--help") == 0
  page = capsys.readouterr().out
  main = importlib.import_module("__main__").__doc__
  assert main is None or page.startswith(main.strip()[:20]) or page
  method = ATTACKS.get(name) or DEFENSES.get(name)
  if method is None:
    return
  for field in dataclasses.fields(method.settings):
    assert f"--{field.name}\n" in page or f"--[no]{field.name}\n" in page
    plural = field.metadata.get("sweep")
    if plural and name in ATTACKS:
      assert f"--{plural}\n" in page


def test_a_run_and_its_defense_by_their_scripts(
  monkeypatch, capsys, tmp_path
):
  flags = [f"--runs_dir={tmp_path}", "--width=4", "--epochs=2"]
  flags += ["--batch_size=256", "--eval_draws=1"]
  assert _script(monkeypatch, "badnets", *flags) == 0
  out, err = capsys.readouterr()
  assert "attack success rate" in out and "badnets-digits" in out
  assert "a fixed part of the training set, poison rate 0.1" in out
  assert "python -m experiments.clean" in err
  run = tmp_path / "badnets-digits"
  assert _script(monkeypatch, "pruning", f"--run={run}") == 0
  out = capsys.readouterr().out
  assert "pruning on badnets-digits" in out
  assert (run / "defenses" / "pruning" / "results.json").exists()
  sweep = [*flags, "--poison_rates=0.1,0.5"]
  assert _script(monkeypatch, "badnets", *sweep) == 0
  out = capsys.readouterr().out
  assert "poison rate" in out and "badnets-digits-rates" in out
  results = tmp_path / "badnets-digits-rates" / "results.json"
  assert len(json.loads(results.read_text())["settings"]) == 2
  assert _script(monkeypatch, "badnets", *flags, "--dry_run") == 0
  assert "estimated memory" in capsys.readouterr().out
  assert _script(monkeypatch, "badnets", *flags, "--poison_rate=2") == 2
  assert "error: --poison_rate must be" in capsys.readouterr().err


def test_the_console_lists_and_runs_scripts(monkeypatch, capsys):
  scripts = cli.experiments()
  assert {"clean", *ATTACKS, *DEFENSES} <= set(scripts)
  assert "cli" not in scripts and "tables" not in scripts
  monkeypatch.setattr(sys, "argv", ["bdjax"])
  cli.console()
  out = capsys.readouterr().out
  for name in scripts:
    assert f"  {name}" in out
  monkeypatch.setattr(sys, "argv", ["bdjax", "nothing"])
  with pytest.raises(SystemExit) as stop:
    cli.console()
  assert stop.value.code == 2
  monkeypatch.setattr(sys, "argv", ["bdjax", "ban", "--help"])
  with pytest.raises(SystemExit) as stop:
    cli.console()
  assert stop.value.code == 0
