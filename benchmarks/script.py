"""What the scripts share: their flags, the networks, the images."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

from bdjax import models
from benchmarks import timing

KEY = jax.random.key(0)
CLASSES = 10


class Setting(NamedTuple):
  """What the flags of all scripts say.

  Attributes:
    models: the networks to measure, keys of `CASES`.
    repeats: timings of each function.
    bf16: computes in bfloat16, ours and the peers'.
    width: of the networks; None for each case's own.
  """

  models: tuple[str, ...] = ("cnn", "resnet18")
  repeats: int = 5
  bf16: bool = False
  width: int | None = None


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


def cases(setting: Setting) -> Iterator[Case]:
  """The cases that the flags ask for."""
  for name in setting.models:
    case = CASES[name]._replace(bf16=setting.bf16)
    yield case._replace(width=setting.width or case.width)


def network(case: Case) -> tuple[models.Model, models.Weights]:
  """Our network, with fresh weights: the costs do not depend on them."""
  model = models.get(
    case.model,
    image_shape=case.shape,
    num_classes=CLASSES,
    width=case.width,
    precision="bfloat16" if case.bf16 else "float32",
  )
  return model, models.Weights(*jax.jit(model.init)(KEY))


def images(count: int, case: Case) -> jax.Array:
  """Noise, uint8 [count,H,W,C]."""
  key = jax.random.fold_in(KEY, count)
  return jax.random.bits(key, (count, *case.shape), jnp.uint8)


def labels(count: int) -> jax.Array:
  """Random labels int32 [count]."""
  return jax.random.randint(jax.random.key(1), (count,), 0, CLASSES)


def calls_on_noise(
  call: Callable, carry: Any, case: Case, count: int
) -> Callable[[], jax.Array]:
  """A training call on noise, to be timed again and again.

  Args:
    call: from `training.make_call`.
    carry: the states to begin with; each call goes on from the last one's.
    case: whose images these are.
    count: images that a call takes.
  """
  data = images(count, case), labels(count)
  order = jnp.arange(count, dtype=jnp.int32)

  def run():
    nonlocal carry
    carry, metrics = call(carry, KEY, *data, order, 0)
    return metrics["loss"]

  return run


def main(
  comparisons: Callable[..., Iterator[timing.Comparison]],
  networks: tuple[str, ...] = tuple(CASES),
  **options: tuple[int, str],
) -> None:
  """Runs a script: parses the flags, times and reports each comparison.

  Args:
    comparisons: takes a `Setting` and, by name, the values of `options`.
    networks: those that it measures by default.
    **options: the script's own flags: default, an int or a bool, and help.
  """
  names = flags.DEFINE_list("models", list(networks), "Networks, with commas.")
  repeats = flags.DEFINE_integer("repeats", 5, "Timings of each.", 1)
  bf16 = flags.DEFINE_bool("bf16", False, "Computes in bfloat16.")
  width = flags.DEFINE_integer("width", None, "Of the networks.")
  holders = {}
  for name, (default, about) in options.items():
    define = flags.DEFINE_integer
    if isinstance(default, bool):
      define = flags.DEFINE_bool
    holders[name] = define(name, default, about)

  def run(argv):
    del argv
    setting = Setting(
      tuple(names.value), repeats.value, bf16.value, width.value
    )
    chosen = {name: holder.value for name, holder in holders.items()}
    for comparison in comparisons(setting, **chosen):
      line = timing.measure(comparison, setting.repeats, setting.bf16)
      timing.report(line)

  app.run(run)
