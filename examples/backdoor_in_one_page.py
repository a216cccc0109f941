"""Backdoors a classifier of digits with BadNets, and detects it with STRIP.

python -m examples.backdoor_in_one_page

Half a minute on two CPU cores. Prints
  clean accuracy 97.8%, attack success rate 100.0%
  STRIP: 6.1% of clean images rejected (FRR)
         0.0% of triggered images accepted (FAR)
"""

import jax

from bdjax import data, models, sharding, training
from bdjax.attacks import BadNetsSettings, badnets, poison_dataset
from bdjax.batch import Batch
from bdjax.defenses import Defender, StripSettings, strip
from bdjax.evaluation import (
  HeldOutEvaluator,
  Original,
  attack_scores,
  score_results,
)


def main(epochs: int = 30) -> None:
  """Attack a classifier, defend it and print the scores of both."""
  keys = jax.random.split(jax.random.key(0), 6)
  mesh = sharding.make_mesh()

  # Data: 5% of the training images are kept out for the defender.
  splits = data.load("digits")
  shape, names = splits.train.images.shape[1:], splits.info.class_names

  # Attack: a white square in the corner leads to the label 0. A tenth of the
  # training images carry it, stamped once.
  settings = BadNetsSettings(target_labels="0", poison_rate=0.1)
  settings = settings.filled("digits")
  attack = badnets(settings, shape, len(names))
  trigger = attack.init(keys[0])  # empty: nothing of BadNets is trained
  poisoned = poison_dataset(
    attack, trigger, keys[1], *splits.train, settings.poison_rate
  )

  # Training: of a poisoned set it sees nothing but images and labels.
  model = models.get("cnn", image_shape=shape, num_classes=len(names))
  data_set = Batch(poisoned.images, poisoned.labels, poisoned.roles)
  weights = training.train(
    keys[2], model, data_set, epochs=epochs, batch_size=32
  ).weights

  # Scores of the attack, on test images.
  scores = attack_scores(
    keys[3], model, weights, splits.test, len(names), attack, trigger
  ).measured
  clean, success = scores["clean_accuracy"], scores["attack_success_rate"]
  print(
    f"clean accuracy {clean.mean:.1%}, attack success rate {success.mean:.1%}"
  )

  # Defence: it sees the network and the defender's 72 images. The published
  # sum of two images is clipped here, which such small digits need.
  images, labels = sharding.replicate(mesh, tuple(splits.defender))
  defender = Defender(model, weights, images, labels, names, mesh, keys[4])
  results = strip.calibrate(
    defender, StripSettings(frr="0.05", superimpose="clipped")
  )

  # Scores of the defence, on the same test images.
  evaluator = HeldOutEvaluator(
    splits.test, mesh, keys[5], attack=attack, variables=trigger
  )
  original = Original(model, weights, len(names))
  scores = score_results(results, evaluator, original).measured
  frr, far = scores["frr_at_0.05"].mean, scores["far_at_0.05"].mean
  print(f"STRIP: {frr:.1%} of clean images rejected (FRR)")
  print(f"       {far:.1%} of triggered images accepted (FAR)")


if __name__ == "__main__":
  main()
