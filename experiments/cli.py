"""The command line: flags out of settings, signals, errors, exit status."""

import dataclasses
import importlib
import logging
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging

from bdjax import compiler
from bdjax import settings as settings_lib
from bdjax.attacks import ATTACKS
from bdjax.defenses import DEFENSES
from bdjax.errors import UserError
from bdjax.runs import DefenseConfig, RunConfig, Stopped, defend, run
from bdjax.runs.config import fields as run_fields
from bdjax.runs.defend import output_directory
from bdjax.runs.dry_run import describe
from bdjax.runs.signals import raise_on_signals
from bdjax.runs.sweep import expand, parse_axis, sweep_fields

from . import tables

_DEFINE = {
  bool: flags.DEFINE_bool,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}
# Flags of earlier versions, and what to use in their place.
_RENAMED = {
  "at_once": "seeds are trained one after the other; leave it out",
  "benchmark": "use --clean_run=DIR",
  "pixels": "use --pixel_max",
  "proxy": "use --proxy_triggers=FILE",
  "settled": "use --converged",
  "vmap": "leave it out",
}
_HELP = ("-h", "-help", "--help", "--helpfull", "--helpshort")


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag that no settings field stands for, such as a sweep."""

  name: str
  help: str
  group: str


def main_attack(name: str) -> None:
  """Train an attack from the command line; to be called by its script.

  Args:
    name: of the attack, in `ATTACKS`.
  """
  method = ATTACKS[name]
  swept = sweep_fields(method)
  sweeps = [
    Flag(
      field.metadata["sweep"],
      f"Values of {field.name} with commas, one run each.",
      "sweeps",
    )
    for field in swept
  ]
  own = dataclasses.fields(method.settings)

  def start(values: dict[str, Any]) -> None:
    axes = tuple(
      (field.name, parse_axis(field, values[field.metadata["sweep"]]))
      for field in swept
      if values[field.metadata["sweep"]] is not None
    )
    settings = method.settings(**{f.name: values[f.name] for f in own})
    config = {f.name: values[f.name] for f in run_fields()}
    _train(RunConfig(name, settings, axes=axes, **config))

  serve([*run_fields(), *own], start, extra=sweeps)


def main_clean() -> None:
  """Train a network without a backdoor from the command line."""
  fields = [f for f in run_fields() if f.name != "clean_run"]
  serve(fields, lambda values: _train(RunConfig(**values)))


def _train(config: RunConfig) -> None:
  if config.dry_run:
    print(describe(config))
    return
  tables.print_run(run(config), expand(config).config.directory)


def main_defense(name: str) -> None:
  """Run a defence from the command line; to be called by its script.

  Args:
    name: of the defence, in `DEFENSES`.
  """
  method = DEFENSES[name]
  shared = dataclasses.fields(DefenseConfig)
  own = dataclasses.fields(method.settings)

  def start(values: dict[str, Any]) -> None:
    config = DefenseConfig(**{f.name: values[f.name] for f in shared})
    settings = method.settings(**{f.name: values[f.name] for f in own})
    results = defend(method, settings, config)
    root = pathlib.Path(config.run or config.checkpoint).expanduser()
    if config.checkpoint:
      root = root.with_name(f"{root.name}-defended")
    tables.print_defense(
      results, output_directory(method, settings, config, root)
    )

  serve([*shared, *own], start)


def serve(
  fields: Sequence[dataclasses.Field],
  start: Callable[..., Any],
  *,
  positional: bool = False,
  extra: Sequence[Flag] = (),
) -> None:
  """Turn fields into flags, parse them and start; ends the process.

  Exits with 0, 2 after a UserError or a wrong flag, 128 + N after signal N.

  Args:
    fields: settings fields.
    start: takes name -> value of every flag; with `positional`, also the list
      of the arguments that are no flags.
    positional: whether there may be such arguments.
    extra: flags besides those of the fields; their values are texts.
  """
  script = importlib.import_module("__main__")
  if any(argument in _HELP for argument in sys.argv[1:]):
    print(help_page(script.__doc__ or "", fields, extra))
    sys.exit(0)
  names = [f.name for f in fields] + [f.name for f in extra]
  sys.exit(
    guarded(lambda: start(*parse(sys.argv, fields, positional, extra)), names)
  )


def parse(
  argv: Sequence[str],
  fields: Sequence[dataclasses.Field],
  positional: bool = False,
  extra: Sequence[Flag] = (),
) -> tuple[Any, ...]:
  """Parse a command line.

  Args:
    argv: the script's name, then its arguments.
    fields: settings fields.
    positional: whether arguments that are no flags may follow.
    extra: flags besides those of the fields.

  Returns:
    (name -> value,), and with `positional` the list of other arguments.

  Raises:
    UserError: a flag is unknown, or its value is of another type.
  """
  for argument in argv[1:]:
    name = argument.lstrip("-").split("=")[0].removeprefix("no")
    known = {f.name for f in fields}
    if argument.startswith("--") and name in _RENAMED and name not in known:
      raise UserError(f"--{name} is gone: {_RENAMED[name]}")
  values = flags.FlagValues()
  for field in fields:
    _DEFINE[settings_lib.field_type(field)](
      field.name,
      field.default,
      settings_lib.help_text(field),
      flag_values=values,
    )
  for flag in extra:
    flags.DEFINE_string(flag.name, None, flag.help, flag_values=values)
  try:
    rest = values(list(argv))[1:]
  except flags.Error as error:
    line = " ".join(str(error).split())
    raise UserError(f"{line.rstrip('.')}: see --help") from None
  if rest and not positional:
    raise UserError(f"{rest[0]!r} must be a flag: see --help")
  parsed = {name: values[name].value for name in values}
  return (parsed, rest) if positional else (parsed,)


def help_page(
  about: str, fields: Sequence[dataclasses.Field], extra: Sequence[Flag] = ()
) -> str:
  """Return what `--help` prints: the docstring, then the flags by topic.

  Args:
    about: docstring of the script.
    fields: settings fields.
    extra: flags besides those of the fields.
  """
  groups: dict[str, list[tuple[str, str]]] = {}
  for field in fields:
    kind = settings_lib.field_type(field)
    name = field.name
    usage = f"--[no]{name}" if kind is bool else f"--{name}"
    group = field.metadata.get("group") or "method"
    groups.setdefault(group, []).append((usage, settings_lib.help_text(field)))
  for flag in extra:
    groups.setdefault(flag.group, []).append((f"--{flag.name}", flag.help))
  lines = [about.strip()]
  for group, rows in groups.items():
    lines += ["", f"{group}:"]
    for usage, text in rows:
      lines.append(f"  {usage}")
      lines += textwrap.wrap(text, 74, initial_indent=" " * 6,
                             subsequent_indent=" " * 6)  # fmt: skip
  return "\n".join(lines)


def guarded(start: Callable[[], Any], names: Sequence[str] = ()) -> int:
  """Run, and turn what can go wrong into one line and an exit status.

  Args:
    start: what is run.
    names: of the flags, which errors are to call as such.

  Returns:
    0, 2 after a UserError or for lack of device memory, 128 + N after signal N.
  """
  set_up_logging()
  compiler.enable_cache()
  try:
    with raise_on_signals():
      start()
  except UserError as error:
    say(f"error: {with_dashes(str(error), names)}")
    return 2
  except Stopped as stop:
    say(f"{stop}; the same command resumes it (without --overwrite)")
    return 128 + stop.signum
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    say(
      "error: the device has no memory left: use a smaller --batch_size, "
      "--class_batch or --overlays, or a smaller --width"
    )
    return 2
  return 0


def with_dashes(text: str, names: Sequence[str]) -> str:
  """Write names of settings as flags: the library knows no flags.

  The first word is one where `must` or `=` follows; others where they cannot be
  plain English.

  Args:
    text: an error of the library.
    names: of the flags.
  """
  first = "|".join(names) or "$^"
  text = re.sub(rf"^({first})(?=( must| contradicts|=))", r"--\1", text)
  rest = [n for n in names if "_" in n or n == "overwrite"]
  pattern = rf"(?<![\w/.-])({'|'.join(rest) or '$^'})(?![\w/.])"
  return re.sub(pattern, r"--\1", text)


def set_up_logging() -> None:
  """Print the library's progress, a plain line each, on standard error."""
  absl_logging.set_verbosity(absl_logging.ERROR)
  logger = logging.getLogger("bdjax")
  if not logger.handlers:
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  logger.propagate = False


class _StandardError(logging.Handler):
  """Writes to what standard error is now, which tests exchange."""

  def emit(self, record: logging.LogRecord) -> None:
    say(self.format(record))


def say(line: str) -> None:
  """Print one line on standard error."""
  print(line, file=sys.stderr, flush=True)


def experiments() -> dict[str, str]:
  """Return the scripts beside this file, with their docstrings' first lines."""
  scripts = {}
  for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
    text = path.read_text()
    if re.search("^if __name__", text, re.MULTILINE):
      scripts[path.stem] = text.split('"""')[1].splitlines()[0]
  return scripts


def console() -> None:
  """Run `bdjax NAME [FLAGS]`, the installed command."""
  scripts = experiments()
  name = sys.argv[1] if len(sys.argv) > 1 else "help"
  if name in scripts:
    import runpy

    sys.argv = [f"bdjax {name}", *sys.argv[2:]]
    runpy.run_module(f"{__package__}.{name}", run_name="__main__")
    return
  print("usage: bdjax NAME [FLAGS]; bdjax NAME --help explains the flags\n")
  for script, about in scripts.items():
    print(f"  {script:20}{about}")
  if name not in ("help", *_HELP):
    say(f"error: no experiment {name!r}")
    sys.exit(2)
