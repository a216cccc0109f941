"""An experiment's command line: flags, signals, errors, exit status."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from absl import app, flags, logging

from bdjax import compiler
from bdjax.errors import UserError
from experiments.common.config import Config, fields_of
from experiments.common.runner import run
from experiments.common.train import Stopped

_DEFINE = {
  "bool": flags.DEFINE_bool,
  "int": flags.DEFINE_integer,
  "float": flags.DEFINE_float,
  "str": flags.DEFINE_string,
}


def main(experiment: str) -> None:
  """Runs an experiment from the command line; to be called by its script.

  Args:
    experiment: its name, `Config.experiment`.
  """
  names = [field.name for field in fields_of(experiment)]
  for field in fields_of(experiment):
    kind = getattr(field.type, "__name__", str(field.type).split(" | ")[0])
    _DEFINE[kind](
      field.name,
      field.default,
      field.metadata["help"],
      module_name=sys.argv[0],  # for --help to show it
    )

  def start(argv):
    if len(argv) > 1:
      raise app.UsageError(f"unknown argument {argv[1]!r}")
    chosen = {name: flags.FLAGS[name].value for name in names}
    sys.exit(_guarded(Config(experiment=experiment, **chosen)))

  app.run(start)


def say(line: str) -> None:
  """One line of progress, on standard error."""
  print(line, file=sys.stderr, flush=True)


def _guarded(config: Config) -> int:
  """Runs, and turns what can go wrong into one line and an exit status."""
  logging.set_verbosity(logging.ERROR)
  compiler.enable_cache()
  again = "the same command goes on from there"
  if config.overwrite:
    again = "the same command without --overwrite goes on from there"
  try:
    with _stop_signals():
      run(config, say, show=True)
  except UserError as error:
    say(f"error: {error}")
    return 2
  except Stopped as stop:
    say(f"{stop}; {again}")
    return 128 + stop.signum
  return 0


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
  """SIGTERM and Ctrl-C end the run where it is; training has its own way."""

  def handler(signum, frame):
    raise Stopped(signum)

  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, handler)
  yield
