"""A population of runs against the same runs one after the other.

python -m benchmarks.population                      # whole commands
python -m benchmarks.population --part=steps --members=1,4,16

`commands`: `experiments.badnets --seeds=4` against four commands of one seed
each, wall time, programs compiled before, data on disk: random pixels of
MNIST's size, 208 steps of 128 images. `steps`: one call of 8 training steps of
each member, as one program (vmap; lax.map) and as a program each (in two
threads; one after the other). It is there to choose by on an accelerator:
`experiments/common/population.py`.
"""

import concurrent.futures
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from bdjax import (
  compiler,
  models,
  optimization,
  population,
  sharding,
  training,
)
from bdjax.attacks.badnets import badnets
from bdjax.attacks.poison import poison
from benchmarks.timing import interleaved, report

_PART = flags.DEFINE_enum("part", "commands", ["commands", "steps"], "Which.")
_MEMBERS = flags.DEFINE_list("members", ["4"], "Sizes of the population.")
_MODEL = flags.DEFINE_enum("model", "cnn", list(models.MODELS), "The network.")
_WIDTH = flags.DEFINE_integer("width", 64, "Its width.")
_EPOCHS = flags.DEFINE_integer("epochs", 8, "Of 26 steps, of a command.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timings of each.")
KEY = jax.random.key(0)
BATCH, STEPS, SIZE = 128, 8, 28
ROOT = pathlib.Path(__file__).parents[1]


def time_commands(members: int, repeats: int):
  """One command with several seeds, against a command for each."""
  with tempfile.TemporaryDirectory() as place:
    file = pathlib.Path(place) / "pixels.npz"
    _write_pixels(file)
    env = os.environ | {
      "PYTHONPATH": str(ROOT),
      "XDG_CACHE_HOME": place,  # of compiled programs
    }

    def command(*more):
      runs = pathlib.Path(place) / "runs"
      flags = {
        "dataset": file,
        "model": _MODEL.value,
        "width": _WIDTH.value,
        "epochs": _EPOCHS.value,
        "batch_size": BATCH,
        "augment": "crop",
        "learning_rate": 0.01,
        "benchmark": "none",
        "runs_dir": runs,
      }
      words = [f"--{name}={value}" for name, value in flags.items()]
      script = [sys.executable, "-m", "experiments.badnets", *words, *more]
      subprocess.run(script, env=env, check=True, capture_output=True)
      shutil.rmtree(runs)

    return interleaved(
      {
        f"a population of {members}": lambda: command(f"--seeds={members}"),
        f"{members} runs one after the other": lambda: [
          command(f"--seed={seed}") for seed in range(members)
        ],
      },
      repeats,
    )


def _write_pixels(file):
  rng = np.random.default_rng(0)
  arrays = {}
  for name, count in (("train", 3512), ("test", 2000)):  # 5% is the defender's
    shape = (count, SIZE, SIZE, 1)
    arrays[f"x_{name}"] = rng.integers(0, 256, shape, dtype=np.uint8)
    arrays[f"y_{name}"] = rng.integers(0, 10, count)
  np.savez(file, **arrays)


def _make():
  """The training calls of one run and of several, and fresh states of a key."""
  shape = (SIZE, SIZE, 1)
  model = models.get(
    _MODEL.value, image_shape=shape, num_classes=10, width=_WIDTH.value
  )
  box = np.array([[[SIZE - 3, SIZE - 3, SIZE, SIZE]]])
  attack = badnets((0,), box, 3, 1)
  optimizers = training.Optimizers(
    optimization.sgd(0.01, 0.9, 1e-4), optimization.sgd(0.01, 0.9, 0.0)
  )
  step = training.make_train_step(
    model, optimizers, lambda params, rate: poison(attack, params, rate)
  )
  mesh = sharding.make_mesh(jax.devices()[:1])
  call = training.make_call(step, BATCH, STEPS, mesh)
  together = population.make_call(step, BATCH, STEPS, mesh)

  fresh = jax.jit(
    lambda key: training.create(key, model, attack.init, optimizers)
  )

  def create(key):  # where a call leaves it, or the second compiles anew
    return sharding.replicate(mesh, fresh(key))

  return call, together, create


def time_steps(members: int, repeats: int):
  """One call of all members, in four ways."""
  call, together, create = _make()
  count = BATCH * STEPS
  bits = jax.random.bits(KEY, (count, SIZE, SIZE, 1))
  images = (bits % 256).astype(jnp.uint8)
  labels = jax.random.randint(KEY, (count,), 0, 10)
  keys = list(jax.random.split(KEY, members))
  order = jnp.arange(count, dtype=jnp.int32)
  rates = list(jnp.linspace(0.0, 0.2, members))
  numbers = range(members)
  states = {
    name: [create(key) for key in keys] for name in ("vmap", "threads", "loop")
  }
  states["map"] = jax.tree.map(lambda *x: jnp.stack(x), *states["loop"])

  @functools.partial(compiler.jit, donate_argnums=0)
  def mapped(carries, images, labels):
    def one(args):
      carry, key, rate = args
      return call.__wrapped__(carry, key, images, labels, order, 0, rate)

    return jax.lax.map(one, (carries, jnp.stack(keys), jnp.stack(rates)))

  def by_map():
    states["map"], metrics = mapped(states["map"], images, labels)
    return metrics

  def arguments(name, i):
    return states[name][i], keys[i], images, labels, order, 0, rates[i]

  def by_vmap():
    found = together(tuple(arguments("vmap", i) for i in numbers))
    states["vmap"] = [carry for carry, _ in found]
    return found

  def one(name, i):
    states[name][i], metrics = call(*arguments(name, i))
    return jax.block_until_ready(metrics)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return interleaved(
      {
        "vmap": by_vmap,
        "lax.map": by_map,
        "two threads": lambda: list(
          pool.map(lambda i: one("threads", i), numbers)
        ),
        "one after the other": lambda: [one("loop", i) for i in numbers],
      },
      repeats,
    )


def main(argv):
  """Times one part and prints it."""
  del argv
  for members in map(int, _MEMBERS.value):
    timed = time_commands if _PART.value == "commands" else time_steps
    claim = f"{_PART.value} of {members}, {_MODEL.value} {_WIDTH.value}"
    report(claim, timed(members, _REPEATS.value))


if __name__ == "__main__":
  app.run(main)
