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
import optax

from bdjax import optimization, sharding, training
from bdjax.attacks.poison import compose
from benchmarks import peers, roofline, script
from benchmarks.plain import networks as plain_networks
from benchmarks.plain import training as plain_training
from benchmarks.timing import Comparison

RATES = {"rate": 0.05, "momentum": 0.9, "decay": 5e-4}


def ours(case, images, labels, rows):
  """Our call of as many steps as there are rows, and its operations."""
  model, weights = script.network(case)
  steps, batch = rows.shape
  optimizers = training.Optimizers(
    optimization.sgd(RATES["rate"], RATES["momentum"], RATES["decay"]),
    optax.identity(),
  )
  step = training.make_train_step(model, optimizers, lambda params: compose())
  mesh = sharding.make_mesh()
  call = training.make_call(step, batch, steps, mesh)
  carry = training.create(script.KEY, model, lambda key: {}, optimizers)
  # The peers start from the same weights.
  state = carry.state.replace(**weights._asdict())
  carry = sharding.replicate(mesh, carry._replace(state=state))
  order = rows.reshape(-1)

  def run():
    nonlocal carry
    carry, metrics = call(carry, script.KEY, images, labels, order, 0)
    return metrics["loss"]

  return run


def torch_peers(case, images, labels, rows, compiled):
  """Torch eager, channels_last and compiled; none without torch."""
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

  out = {
    "torch eager": make(),
    "torch eager, channels_last": make(channels_last=True),
  }
  if compiled:
    out["torch.compile"] = make(compiled=True)
  return out


def compare(
  case: script.Case, batch: int, steps: int, scan_steps: int, compiled: bool
) -> Comparison:
  """One network's step beside its peers'."""
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
    wanted="20 times as fast as a plain scan on a CPU" if few else "",
  )


def comparisons(
  setting: script.Setting,
  batch: int,
  steps: int,
  scan_steps: int,
  torch_compile: bool,
):
  """For each network."""
  for case in script.cases(setting):
    small = case.model == "cnn"
    yield compare(
      case,
      batch,
      steps or (16 if small else 6),
      scan_steps if small else 0,
      torch_compile,
    )


if __name__ == "__main__":
  script.main(
    comparisons,
    batch=(128, "Images a step."),
    steps=(0, "A call; 0: 16 of cnn, 6 of others."),
    scan_steps=(2, "Of the plain scan, for the cnn; 0 leaves it out."),
    torch_compile=(True, "Also torch.compile."),
  )
