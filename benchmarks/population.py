"""A population of runs against the same runs one after the other.

python -m benchmarks.population                      # whole commands
python -m benchmarks.population --calls --members=16 # training calls alone

Whole commands: `experiments.badnets --seeds=4` against four commands of one
seed each, wall time, programs compiled before, data on disk: random pixels of
MNIST's size, 208 steps of 128 images. `--calls`: one call of 8 training steps
of each member, each with a thread, as one program (vmap; lax.map), and one
after the other. It is there to choose by on an accelerator:
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

from bdjax import (
  compiler,
  optimization,
  population,
  sharding,
  training,
)
from bdjax.attacks.badnets import badnets
from bdjax.attacks.poison import poison
from benchmarks import script
from benchmarks.timing import Comparison

KEY = script.KEY
BATCH, STEPS = 128, 8
ROOT = pathlib.Path(__file__).parents[1]


def whole_commands(case, members, epochs):
  """One command with several seeds, against a command for each."""
  with tempfile.TemporaryDirectory() as place:
    file = pathlib.Path(place) / "pixels.npz"
    _write_pixels(file, case.shape)
    env = os.environ | {
      "PYTHONPATH": str(ROOT),
      "XDG_CACHE_HOME": place,  # of compiled programs
    }

    def command(*more):
      runs = pathlib.Path(place) / "runs"
      flags = {
        "dataset": file,
        "model": case.model,
        "width": case.width,
        "epochs": epochs,
        "batch_size": BATCH,
        "augment": "crop",
        "learning_rate": 0.01,
        "benchmark": "none",
        "runs_dir": runs,
      }
      words = [f"--{name}={value}" for name, value in flags.items()]
      start = [sys.executable, "-m", "experiments.badnets", *words, *more]
      subprocess.run(start, env=env, check=True, capture_output=True)
      shutil.rmtree(runs)

    yield Comparison(
      f"population of {members}, {case}, whole commands",
      {
        f"a population of {members}": lambda: command(f"--seeds={members}"),
        f"{members} runs one after the other": lambda: [
          command(f"--seed={seed}") for seed in range(members)
        ],
      },
      wanted="1, better 1.4 times as long",
    )


def _write_pixels(file, image_shape):
  rng = np.random.default_rng(0)
  arrays = {}
  for name, count in (("train", 3512), ("test", 2000)):  # 5% is the defender's
    shape = (count, *image_shape)
    arrays[f"x_{name}"] = rng.integers(0, 256, shape, dtype=np.uint8)
    arrays[f"y_{name}"] = rng.integers(0, 10, count)
  np.savez(file, **arrays)


def _make(case):
  """The training calls of one run and of several, and fresh states of a key."""
  model, _ = script.network(case)
  height, width, channels = case.shape
  box = np.array([[[height - 3, width - 3, height, width]]])
  attack = badnets((0,), box, 3, channels)
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


def training_calls(case, members):
  """One call of all members, in four ways."""
  call, together, create = _make(case)
  count = BATCH * STEPS
  images, labels = script.images(count, case), script.labels(count)
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
    yield Comparison(
      f"population of {members}, {case}, calls of {STEPS} steps",
      {
        "two threads": lambda: list(
          pool.map(lambda i: one("threads", i), numbers)
        ),
        "one program, vmap": by_vmap,
        "one program, lax.map": by_map,
        "one after the other": lambda: [one("loop", i) for i in numbers],
      },
    )


def comparisons(
  setting: script.Setting, members: int, epochs: int, calls: bool
):
  """Whole commands or training calls, for each network."""
  for case in script.cases(setting):
    if calls:
      yield from training_calls(case, members)
    else:
      yield from whole_commands(case, members, epochs)


if __name__ == "__main__":
  script.main(
    comparisons,
    networks=("cnn",),
    members=(4, "Of the population."),
    epochs=(8, "Of 26 steps, of a command."),
    calls=(False, "Times training calls in place of whole commands."),
  )
