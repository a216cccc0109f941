"""A training step of cBaN: ours, against the way the authors wrote it.

python -m benchmarks.cban_step

Salem et al. 2022 train the small CNN on each batch clean and with a trigger for
every target label in turn. Their released step makes ten triggered passes and a
backward pass for the generator, then a clean and ten more triggered passes and
a backward pass for the classifier: 21 passes, each image's trigger placed in a
Python loop, and torch's anomaly detection on. The peers are that; that without
anomaly detection; and what a careful user of torch makes of it, 11 passes with
one backward pass for both networks, triggers placed by indexing.

Ours sees as many images, a clean and ten triggered copies of the batch, in one
pass: the copies are drawn, so their number varies a little. The library's own
step, which takes each image of a batch once and triggers some, stands below.
All train with the paper's loss alone, without the library's diversity loss.

Operations: 11 training passes of a batch, three forward passes each.
"""

import jax
import numpy as np
import optax

from bdjax import sharding, training
from benchmarks import peers, roofline, script
from benchmarks.augmentation import make_attack
from benchmarks.plain.networks import forward_operations
from benchmarks.timing import Comparison

FLAGS = {
  "batch": script.Flag(64, "Images a step; 64 is the authors'.", 4),
  "steps": script.Flag(4, "Steps a call.", 1),
}
CASE = script.Case("cnn", 64, (32, 32, 3))
SIZE = 5  # side of the trigger, in pixels
COPIES = 1 + script.CLASSES


def ours(case, batch, steps, rate):
  """Make our call: `steps` steps of `batch` images, `rate` of them poisoned."""
  model, _ = script.network(case)
  attack = make_attack("cban", case, trigger_size=SIZE, diversity=0.0)
  optimizers = training.Optimizers(optax.adam(1e-3), optax.adam(1e-3))
  step = training.make_train_step(
    model, optimizers, training.poisoning(attack, None, rate)
  )
  call = training.compile_steps(step, batch, steps, sharding.make_mesh())
  carry = script.init_carry(case, optimizers, attack)
  return script.calls_on_noise(call, carry, case, batch * steps)


def torch_peers(case, batch, steps):
  """Make the authors' way and a careful one; none without torch."""
  peer = peers.load("cban")
  if peer is None:
    return {}
  count = batch * steps
  images, labels = script.images(count, case), script.labels(count)
  _, weights = script.network(case)

  def make(step, **options):
    net = peers.load("networks").make(case, script.CLASSES, weights)
    rows = np.arange(count).reshape(steps, batch)
    return peer.make_steps(net, step, images, labels, rows, SIZE, **options)

  return {
    "torch, the authors' way": make(peer.authors_step, anomaly=True),
    "torch, the same without anomaly detection": make(peer.authors_step),
    "torch, 11 passes, one backward": make(peer.careful_step),
  }


def compare(case: script.Case, batch: int, steps: int) -> Comparison:
  """Compare our step and theirs."""
  poisoned = 3 * batch // 10
  functions = {
    "ours, a clean and ten triggered copies": ours(
      case, COPIES * batch, steps, script.CLASSES / COPIES
    ),
    **torch_peers(case, batch, steps),
    f"ours, the batch once, about {poisoned} triggered": ours(
      case, batch, steps, 0.3
    ),
  }
  params = jax.eval_shape(script.network(case)[0].init, script.KEY)[0]
  forward = forward_operations(case, script.CLASSES)
  return Comparison(
    f"cBaN step, {case}, batch {batch}",
    functions,
    item="step",
    items=steps,
    operations=3 * forward * COPIES * batch * steps,
    # Adam reads and writes the parameters and two moments.
    traffic=6 * roofline.size(params) * steps,
  )


def comparisons(options: script.Options, batch: int, steps: int):
  """Compare the steps of the small CNN on 32x32x3."""
  case = script.TINY_CASES["cnn"] if options.tiny else CASE
  width = options.width or case.width
  yield compare(case._replace(width=width, bf16=options.bf16), batch, steps)


if __name__ == "__main__":
  script.main(comparisons, FLAGS)
