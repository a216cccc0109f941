"""An experiment's command line: flags, signals, errors, exit status."""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
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
  """Runs an attack experiment from the command line.

  Args:
    experiment: its name, `Config.experiment`.
  """

  def start(**chosen):
    run(Config(experiment=experiment, **chosen), say, show=True)

  serve(fields_of(experiment), start)


def serve(
  fields: Sequence[dataclasses.Field],
  start: Callable[..., Any],
  positional: str | None = None,
) -> None:
  """Turns fields into flags, parses them and starts; to be called by a script.

  Ends the process: status 0, 2 after a UserError, 128 + N after signal N.

  Args:
    fields: of a configuration, with `help` in their metadata.
    start: takes the flags' values as keyword arguments.
    positional: the keyword under which it takes what stands behind the flags,
      a list; None where nothing may.
  """
  for field in fields:
    kind = getattr(field.type, "__name__", str(field.type).split(" | ")[0])
    _DEFINE[kind](
      field.name,
      field.default,
      field.metadata["help"],
      module_name=sys.argv[0],  # for --help to show it
    )

  def begin(argv):
    if len(argv) > 1 and positional is None:
      raise app.UsageError(f"unknown argument {argv[1]!r}")
    chosen = {field.name: flags.FLAGS[field.name].value for field in fields}
    if positional is not None:
      chosen[positional] = argv[1:]
    sys.exit(guarded(lambda: start(**chosen), chosen.get("overwrite")))

  app.run(begin)


def say(line: str) -> None:
  """One line of progress, on standard error."""
  print(line, file=sys.stderr, flush=True)


def guarded(start: Callable[[], Any], overwrite: bool = False) -> int:
  """Runs, and turns what can go wrong into one line and an exit status.

  Args:
    start: what is run.
    overwrite: whether it was told to start over.

  Returns:
    0, 2 after a UserError or for lack of device memory, 128 + N after signal N.
  """
  logging.set_verbosity(logging.ERROR)
  compiler.enable_cache()
  again = "the same command goes on from what is saved"
  if overwrite:
    again = "the same command without --overwrite goes on from what is saved"
  try:
    with _stop_signals():
      start()
  except UserError as error:
    say(f"error: {error}")
    return 2
  except Stopped as stop:
    say(f"{stop}; {again}")
    return 128 + stop.signum
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    # Training has a line of its own, with the batch to try.
    say(
      "error: the device has no memory left: take fewer at a time "
      "(--class_batch, --batch_size, --overlays) or a smaller --width"
    )
    return 2
  return 0


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
  """SIGTERM and Ctrl-C end the run where it is; training has its own way."""

  def handler(signum, frame):
    raise Stopped(signum)

  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, handler)
  yield
