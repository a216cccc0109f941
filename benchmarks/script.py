"""The parts that all benchmarks share: flags, networks, images."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

from bdjax import models, sharding, training
from bdjax.attacks.base import Attack
from bdjax.batch import CLEAN, Batch
from benchmarks import timing

KEY = jax.random.key(0)
CLASSES = 10
_TINY_SIDE = 64  # of the matrices that a tiny run measures the ceilings with


class Options(NamedTuple):
  """Values of the flags that all benchmarks have.

  Attributes:
    models: the networks to measure, keys of `CASES`.
    repeats: timings of each function.
    bf16: whether ours and the peers compute in bfloat16.
    width: of the networks; None for each case's own.
    tiny: whether to run only to see that it runs, in seconds.
  """

  models: tuple[str, ...] = ("cnn", "resnet18")
  repeats: int = 5
  bf16: bool = False
  width: int | None = None
  tiny: bool = False


class Flag(NamedTuple):
  """A benchmark's own flag.

  Attributes:
    default: an int or a bool.
    help: begins with a noun.
    tiny: the value under `--tiny`, unless one is given; None: the default.
  """

  default: int
  help: str
  tiny: int | None = None


class Case(NamedTuple):
  """A network and the shape (H, W, C) of its images."""

  model: str
  width: int
  shape: tuple[int, int, int]
  bf16: bool = False

  def __str__(self):
    precision = ", bfloat16" if self.bf16 else ""
    side = "x".join(map(str, self.shape))
    return f"{self.model} (width {self.width}, {side}{precision})"


CASES = {
  "cnn": Case("cnn", 64, (28, 28, 1)),
  "resnet18": Case("resnet18", 64, (32, 32, 3)),
}
# They compile in a moment.
TINY_CASES = {
  "cnn": Case("cnn", 8, (8, 8, 1)),
  "resnet18": Case("resnet18", 4, (8, 8, 3)),
}


def case_of(options: Options, name: str) -> Case:
  """Return a network's case with the width and precision asked for."""
  case = (TINY_CASES if options.tiny else CASES)[name]
  return case._replace(width=options.width or case.width, bf16=options.bf16)


def cases(options: Options) -> Iterator[Case]:
  """Iterate over the cases asked for."""
  for name in options.models:
    yield case_of(options, name)


@functools.cache
def network(case: Case) -> tuple[models.Model, models.Weights]:
  """Make a network and initial weights, whose values costs do not depend on.

  The same arrays for every caller, so not to be donated.
  """
  model = models.get(
    case.model,
    image_shape=case.shape,
    num_classes=CLASSES,
    width=case.width,
    precision="bfloat16" if case.bf16 else "float32",
  )
  return model, models.Weights(*jax.jit(model.init)(KEY))


def images(count: int, case: Case) -> jax.Array:
  """Draw noise, uint8 [count,H,W,C]."""
  key = jax.random.fold_in(KEY, count)
  return jax.random.bits(key, (count, *case.shape), jnp.uint8)


def labels(count: int) -> jax.Array:
  """Draw labels, int32 [count]."""
  return jax.random.randint(jax.random.key(1), (count,), 0, CLASSES)


def training_set(images: jax.Array, labels: jax.Array) -> Batch:
  """Return images and labels as a clean training set."""
  return Batch(images, labels, jnp.full(labels.shape, CLEAN, jnp.int8))


def init_carry(
  case: Case, optimizers: training.Optimizers, attack: Attack | None = None
) -> training.Carry:
  """Return the state before the first training step, on all devices.

  Args:
    case: whose network is trained, from the weights of `network`.
    optimizers: of network and generator.
    attack: whose variables are trained too.
  """
  weights = jax.tree.map(jnp.copy, network(case)[1])  # a call donates them
  variables = attack.init(KEY) if attack else None
  carry = training.init_carry(optimizers, weights, variables)
  return sharding.replicate(sharding.make_mesh(), carry)


def calls_on_noise(
  call: Callable, carry: Any, case: Case, count: int
) -> Callable[[], jax.Array]:
  """Make a training call on noise, to be timed again and again.

  Args:
    call: from `training.compile_steps`.
    carry: the initial states; each call goes on from the last one's.
    case: whose images these are.
    count: images of a call.
  """
  data = training_set(images(count, case), labels(count))
  order = jnp.arange(count, dtype=jnp.int32)

  def run():
    nonlocal carry
    carry, metrics = call(carry, KEY, data, order, 0)
    return metrics["loss"]

  return run


def tiny_values(own_flags: Mapping[str, Flag]) -> dict[str, int]:
  """Return the values of a benchmark's own flags under `--tiny`."""
  return {
    name: flag.default if flag.tiny is None else flag.tiny
    for name, flag in own_flags.items()
  }


def run(
  comparisons: Callable[..., Iterator[timing.Comparison]],
  options: Options,
  values: Mapping[str, int],
) -> None:
  """Time and report each comparison of a benchmark.

  Args:
    comparisons: of the benchmark, see `main`.
    options: of all benchmarks.
    values: of the benchmark's own flags.
  """
  for comparison in comparisons(options, **values):
    line = timing.measure(
      comparison,
      options.repeats,
      options.bf16,
      ceiling_side=_TINY_SIDE if options.tiny else 0,
    )
    # A tiny run measures nothing, so no results are made from it.
    timing.report(line, as_json=not options.tiny)


def main(
  comparisons: Callable[..., Iterator[timing.Comparison]],
  own_flags: Mapping[str, Flag] | None = None,
  networks: tuple[str, ...] = tuple(CASES),
) -> None:
  """Parse the flags and run a benchmark; ends the process.

  Args:
    comparisons: `(options, **values of own_flags) -> comparisons`.
    own_flags: name -> the benchmark's own flag.
    networks: those that it measures by default.
  """
  own_flags = own_flags or {}
  names = flags.DEFINE_list("models", list(networks), "Networks, with commas.")
  repeats = flags.DEFINE_integer("repeats", 5, "Timings of each function.", 1)
  bf16 = flags.DEFINE_bool("bf16", False, "Computation in bfloat16.")
  width = flags.DEFINE_integer("width", None, "Width of the networks.")
  tiny = flags.DEFINE_bool(
    "tiny",
    False,
    "Smallest sizes, the small CNN and one timing: only whether it runs.",
  )
  holders = {}
  for name, flag in own_flags.items():
    is_bool = isinstance(flag.default, bool)
    define = flags.DEFINE_bool if is_bool else flags.DEFINE_integer
    holders[name] = define(name, flag.default, flag.help)

  def start(argv):
    del argv
    unknown = set(names.value) - set(CASES)
    if unknown:
      raise app.UsageError(
        f"--models must be of {', '.join(CASES)} (got {', '.join(unknown)})"
      )
    options = Options(
      tuple(names.value), repeats.value, bf16.value, width.value, tiny.value
    )
    values = {name: holder.value for name, holder in holders.items()}
    if tiny.value:
      if not names.present:
        options = options._replace(models=("cnn",))
      if not repeats.present:
        options = options._replace(repeats=1)
      for name, value in tiny_values(own_flags).items():
        if not holders[name].present:
          values[name] = value
    run(comparisons, options, values)

  app.run(start)
