"""Fine-tuning of the whole network on the defender's images.

References:
  Wu, Chen, Zhang, Zhu, Wei, Yuan and Shen (2022), BackdoorBench: A
  Comprehensive Benchmark of Backdoor Learning, its defence FT.
"""

import dataclasses
import logging
import pathlib

from bdjax.data.augment import augment
from bdjax.defenses.base import (
  Defender,
  DefenseMethod,
  Repair,
  check_finite,
)
from bdjax.defenses.checks import check_images
from bdjax.defenses.tuning import (
  AUGMENTATIONS,
  compile_tuning,
  default_augmentation,
)
from bdjax.settings import check, setting

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FineTuningSettings:
  """Settings of fine-tuning."""

  # As published: 1,000 updates with 2,500 images. The cost grows with the
  # images that there are, so that a smaller default would save little.
  epochs: int = setting(
    100, "Epochs of tuning, over the defender's data.", low=1
  )
  learning_rate: float = setting(
    0.01, "Learning rate at the start; it falls as a cosine.", above=0
  )
  weight_decay: float = setting(
    5e-4, "Weight decay of kernels in tuning.", low=0
  )
  augment: str | None = setting(
    None,
    "Augmentation in tuning (default: colour images crop_flip, grey ones of "
    "16 pixels and more crop).",
    choices=AUGMENTATIONS,
  )
  tune_batch_size: int = setting(
    256, "Images of a tuning step, at most all of the defender's.", low=1
  )


def fine_tuning(
  defender: Defender,
  settings: FineTuningSettings | None = None,
  directory: pathlib.Path | None = None,
) -> tuple[Repair, Repair]:
  """Fine-tune the network on clean images, all of its layers.

  Published: SGD with momentum 0.9 at 0.01, cosine, weight decay 5e-4, batches
  of 256, 100 epochs, crop and flip. Here momentum is Nesterov's and biases and
  normalisation do not decay, as everywhere in this library.

  It costs the training steps of `epochs` passes over the defender's images:
  with 5% of a training set and 100 epochs as much as 5 epochs of training.

  Args:
    defender: the network and clean images.
    settings: of the tuning; None for the defaults.
    directory: not used.

  Returns:
    The networks `before` and `repaired`.

  Raises:
    UserError: settings are out of range, there are no images, or tuning
      diverged.

  References:
    Wu, Chen, Zhang, Zhu, Wei, Yuan and Shen (2022), BackdoorBench: A
    Comprehensive Benchmark of Backdoor Learning, its defence FT.
  """
  del directory
  settings = settings or FineTuningSettings()
  check(settings)
  check_images(defender)
  augmentation = settings.augment or default_augmentation(defender.image_shape)
  tune = compile_tuning(
    defender.model,
    defender.batch_size(settings.tune_batch_size),
    defender.mesh,
    epochs=settings.epochs,
    learning_rate=settings.learning_rate,
    schedule="cosine",
    weight_decay=settings.weight_decay,
    transform=lambda trigger: augment(augmentation),
  )
  weights, metrics = tune(
    defender.key, defender.weights, defender.images, defender.labels
  )
  check_finite(weights, "learning_rate")
  losses = metrics["loss"]
  logger.info("tuned for %d steps, last loss %.4f", len(losses), losses[-1])
  details = {"steps": len(losses), "augment": augmentation}
  return (
    Repair("before", defender.model, defender.weights, saved=False),
    Repair("repaired", defender.model, weights, details),
  )


METHOD = DefenseMethod(
  "fine_tuning",
  FineTuningSettings,
  fine_tuning,
  "Wu, Chen, Zhang, Zhu, Wei, Yuan and Shen (2022), BackdoorBench: A "
  "Comprehensive Benchmark of Backdoor Learning",
  # With 5% of the training set, and 10% of it poisoned; PreAct-ResNet-18.
  reported={
    ("badnets", "cifar10"): {
      "clean_accuracy_repaired": 0.8996,
      "attack_success_rate_repaired": 0.0148,
    },
    ("blended", "cifar10"): {
      "clean_accuracy_repaired": 0.9278,
      "attack_success_rate_repaired": 0.9611,
    },
    ("wanet", "cifar10"): {
      "clean_accuracy_repaired": 0.9348,
      "attack_success_rate_repaired": 0.1710,
    },
  },
  standard=lambda settings: settings == FineTuningSettings(),
)
