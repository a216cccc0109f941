"""What augmentation and poisoning add to an epoch, all in the compiled call.

python -m benchmarks.augmentation
python -m benchmarks.augmentation --models=resnet18 --steps=16 --bf16  # GPU

The first is the training call without either; the others say how many times as
long the same call takes with them. Their share of an epoch is 1 - 1 / ratio. In
BaN's is the training of its generator, too. Operations are those of the
network's training alone.
"""

import optax

from bdjax import optimization, sharding, training
from bdjax.attacks import triggers
from bdjax.attacks.ban import ban
from bdjax.attacks.poison import compose, poison
from bdjax.attacks.random_backdoor import random_backdoor
from bdjax.data.augment import augment
from benchmarks import roofline, script
from benchmarks.plain.networks import forward_operations
from benchmarks.timing import Comparison

_RATE = 0.1


def make_call(case, batch, steps, augmentation, attack):
  """Our call of `steps` steps."""
  model, _ = script.network(case)
  optimizers = training.Optimizers(
    optimization.sgd(0.05, 0.9, 5e-4), optax.adam(1e-3)
  )
  before = [augment(augmentation)] if augmentation else []

  def transform(params):
    after = [poison(attack, params, _RATE)] if attack else []
    return compose(*before, *after)

  step = training.make_train_step(model, optimizers, transform)
  mesh = sharding.make_mesh()
  call = training.make_call(step, batch, steps, mesh)
  init = attack.init if attack else lambda key: {}
  carry = training.create(script.KEY, model, init, optimizers)
  carry = sharding.replicate(mesh, carry)
  return script.calls_on_noise(call, carry, case, batch * steps)


def compare(case: script.Case, batch: int, steps: int) -> Comparison:
  """The same call with and without."""
  height, width, channels = case.shape
  boxes = triggers.whole_image(1, height, width)
  kind = "crop" if case.model == "cnn" else "crop_flip"
  pixels = random_backdoor((0,), boxes, 5, channels)
  network = ban((0,), boxes, 5, channels)

  def call(*with_these):
    return make_call(case, batch, steps, *with_these)

  forward = forward_operations(case, script.CLASSES)
  _, weights = script.network(case)
  return Comparison(
    f"augmentation and poisoning, {case}, batch {batch}, {steps} steps a call",
    {
      "neither": call(None, None),
      f"augmentation ({kind})": call(kind, None),
      "poisoning (Random Backdoor)": call(None, pixels),
      "poisoning (BaN)": call(None, network),
      "augmentation and poisoning (Random Backdoor)": call(kind, pixels),
      "augmentation and poisoning (BaN)": call(kind, network),
    },
    item="step",
    items=steps,
    operations=3 * forward * batch * steps,
    traffic=4 * roofline.size(weights.params) * steps,
  )


def comparisons(setting: script.Setting, batch: int, steps: int):
  """For each network."""
  for case in script.cases(setting):
    default = 128 if case.model == "cnn" else 2
    yield compare(case, batch, steps or default)


if __name__ == "__main__":
  script.main(
    comparisons,
    batch=(128, "Images a step."),
    steps=(0, "A call; 0: 128 of cnn, 2 of others."),
  )
