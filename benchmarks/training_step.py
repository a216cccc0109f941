"""A training step: ours, many in a compiled call, against torch and plain JAX.

python -m benchmarks.training_step
python -m benchmarks.training_step --models=resnet18 --steps=16 --bf16   # GPU

SGD with Nesterov momentum and weight decay, cross-entropy, uint8 images that
lie on the device; no augmentation. The peers: torch eager, channels_last, and
`torch.compile`; plain Flax with a compiled step in a Python loop, and with a
`lax.scan` over the steps without our convolution, which on a CPU is so slow
(jax issue 12868) that a few steps must do. Claimed against that: 20 times.

Operations: a training step counts three forward passes of its batch.
"""

import jax
import jax.numpy as jnp

from bdjax import optimization, sharding, training
from benchmarks import peers, roofline, script
from benchmarks.plain import networks as plain_networks
from benchmarks.plain import training as plain_training
from benchmarks.timing import Comparison

FLAGS = {
  "batch": script.Flag(128, "Images a step.", 4),
  "steps": script.Flag(0, "Steps a call; 0: 16 of cnn, 6 of others.", 2),
  "scan_steps": script.Flag(
    2, "Steps of the plain scan, for the cnn; 0 leaves it out.", 1
  ),
  "torch_compile": script.Flag(True, "Comparison with torch.compile.", False),
}
RATES = {"rate": 0.05, "momentum": 0.9, "decay": 5e-4}


def ours(case, images, labels, rows):
  """Make our call of as many steps as there are rows."""
  model, _ = script.network(case)
  steps, batch = rows.shape
  optimizers = training.Optimizers(
    optimization.sgd(RATES["rate"], RATES["momentum"], RATES["decay"])
  )
  step = training.make_train_step(model, optimizers, training.plain())
  call = training.compile_steps(step, batch, steps, sharding.make_mesh())
  # The peers start from the same weights.
  carry = script.init_carry(case, optimizers)
  data = script.training_set(images, labels)
  order = rows.reshape(-1)

  def run():
    nonlocal carry
    carry, metrics = call(carry, script.KEY, data, order, 0)
    return metrics["loss"]

  return run


def torch_peers(case, images, labels, rows, compiled):
  """Make torch eager, channels_last and compiled; none without torch."""
  peer = peers.load("training")
  if peer is None:
    return {}
  networks = peers.load("networks")
  _, weights = script.network(case)

  def make(**options):
    net = networks.make(
      case, script.CLASSES, weights, options.get("channels_last", False)
    )
    return peer.make_steps(
      net, images, labels, rows, **RATES, bf16=case.bf16, **options
    )

  functions = {
    "torch eager": make(),
    "torch eager, channels_last": make(channels_last=True),
  }
  if compiled:
    functions["torch.compile"] = make(compiled=True)
  return functions


def compare(
  case: script.Case, batch: int, steps: int, scan_steps: int, compiled: bool
) -> Comparison:
  """Compare one network's step by us and by the peers."""
  count = batch * steps
  images, labels = script.images(count, case), script.labels(count)
  rows = jnp.arange(count, dtype=jnp.int32).reshape(steps, batch)
  net = plain_networks.make(case, script.CLASSES)
  few = min(scan_steps, steps)
  scan = f"plain JAX/Flax, lax.scan ({few} steps)"
  functions = {
    "ours, steps scanned in one call": ours(case, images, labels, rows),
    **torch_peers(case, images, labels, rows, compiled),
    "plain JAX/Flax, one step a call": plain_training.make_steps(
      net, images, labels, rows, **RATES
    ),
  }
  if few:
    functions[scan] = plain_training.make_steps(
      net, images, labels, rows[:few], **RATES, scanned=True
    )
  params = jax.eval_shape(script.network(case)[0].init, script.KEY)[0]
  forward = plain_networks.forward_operations(case, script.CLASSES)
  return Comparison(
    f"training step, {case}, batch {batch}, {steps} steps a call",
    functions,
    item="step",
    items=steps,
    parts={scan: few / steps} if few else {},
    operations=3 * forward * count,
    # Parameters and momentum are read and written, the images read.
    traffic=4 * roofline.size(params) * steps + roofline.size(images),
    goal="20 times as fast as a plain scan on a CPU" if few else "",
  )


def comparisons(
  options: script.Options,
  batch: int,
  steps: int,
  scan_steps: int,
  torch_compile: bool,
):
  """Compare each network's steps."""
  for case in script.cases(options):
    small = case.model == "cnn"
    yield compare(
      case,
      batch,
      steps or (16 if small else 6),
      scan_steps if small else 0,
      torch_compile,
    )


if __name__ == "__main__":
  script.main(comparisons, FLAGS)
