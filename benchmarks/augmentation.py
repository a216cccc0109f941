"""The time that augmentation and poisoning add to an epoch.

python -m benchmarks.augmentation
python -m benchmarks.augmentation --models=resnet18 --steps=16 --bf16  # GPU

All are in the compiled call. The first is the training call without either; the
others say how many times as long the same call takes with them. Their share of
an epoch is 1 - 1 / ratio. BaN's includes the training of its generator and the
diversity loss. Operations are those of the network's training alone.
"""

import optax

from bdjax import optimization, sharding, training
from bdjax.attacks import ATTACKS
from bdjax.data.augment import augment
from benchmarks import roofline, script
from benchmarks.plain.networks import forward_operations
from benchmarks.timing import Comparison

FLAGS = {
  "batch": script.Flag(128, "Images a step.", 4),
  "steps": script.Flag(0, "Steps a call; 0: 128 of cnn, 2 of others.", 1),
}
_RATE = 0.1


def make_attack(name, case, **settings):
  """Make an attack with the settings that its script would choose."""
  method = ATTACKS[name]
  dataset = "mnist" if case.model == "cnn" else "cifar10"
  settings = method.settings(**settings).filled(dataset)
  return method.make(settings, case.shape, script.CLASSES)


def ours(case, batch, steps, augmentation=None, attack=None):
  """Make our call of `steps` steps."""
  model, _ = script.network(case)
  optimizers = training.Optimizers(
    optimization.sgd(0.05, 0.9, 5e-4), optax.adam(1e-3)
  )
  change = augment(augmentation) if augmentation else None
  if attack:
    transform = training.poisoning(attack, change, _RATE)
  else:
    transform = training.plain(change)
  step = training.make_train_step(
    model, optimizers, transform, attack_loss=attack.loss if attack else None
  )
  call = training.compile_steps(step, batch, steps, sharding.make_mesh())
  carry = script.init_carry(case, optimizers, attack)
  return script.calls_on_noise(call, carry, case, batch * steps)


def compare(case: script.Case, batch: int, steps: int) -> Comparison:
  """Compare the same call with and without."""
  kind = "crop" if case.model == "cnn" else "crop_flip"
  pixels = make_attack("random_backdoor", case, trigger_size=5)
  network = make_attack("ban", case, trigger_size=5)
  variants = {
    "neither": {},
    f"augmentation ({kind})": {"augmentation": kind},
    "poisoning (Random Backdoor)": {"attack": pixels},
    "poisoning (BaN)": {"attack": network},
    "augmentation and poisoning (Random Backdoor)": {
      "augmentation": kind,
      "attack": pixels,
    },
    "augmentation and poisoning (BaN)": {
      "augmentation": kind,
      "attack": network,
    },
  }
  forward = forward_operations(case, script.CLASSES)
  _, weights = script.network(case)
  return Comparison(
    f"augmentation and poisoning, {case}, batch {batch}, {steps} steps a call",
    {
      name: ours(case, batch, steps, **parts)
      for name, parts in variants.items()
    },
    item="step",
    items=steps,
    operations=3 * forward * batch * steps,
    traffic=4 * roofline.size(weights.params) * steps,
  )


def comparisons(options: script.Options, batch: int, steps: int):
  """Compare each network's calls."""
  for case in script.cases(options):
    default = 128 if case.model == "cnn" else 2
    yield compare(case, batch, steps or default)


if __name__ == "__main__":
  script.main(comparisons, FLAGS)
