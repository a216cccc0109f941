"""Settings of fine-pruning, and the tuning that they describe."""

import dataclasses
from collections.abc import Callable

from bdjax.data.augment import augment
from bdjax.defenses.base import Defender
from bdjax.defenses.tuning import (
  AUGMENTATIONS,
  compile_tuning,
  default_augmentation,
)
from bdjax.models import Model
from bdjax.settings import setting

_DEFAULTS = {
  "activation": {"drop": 0.3, "epochs": 20, "learning_rate": 0.05},
  "value": {"drop": 0.02, "epochs": 1, "learning_rate": 1e-3},
}


@dataclasses.dataclass(frozen=True)
class FinePruningSettings:
  """Settings of fine-pruning."""

  by: str = setting(
    "activation",
    "Criterion of pruning: activation (of channels) or value (of weights).",
    choices=tuple(_DEFAULTS),
  )
  layer: str | None = setting(
    None,
    "Layer whose channels are pruned by activation (default: the last).",
  )
  drop: float | None = setting(
    None,
    "Drop of the accuracy on the defender's data at which pruning ends "
    "(default: 0.3, for tuning to win back); by value the most that all rounds "
    "may cost after tuning (default: 0.02).",
    above=0,
    below=1,
  )
  step: float = setting(
    0.05,
    "Share of the weights' range that a round prunes by value.",
    low=0.005,
    below=1,
  )
  epochs: int | None = setting(
    None,
    "Epochs of tuning, over the defender's data (default: 20; by value 1 a "
    "round).",
    low=1,
  )
  learning_rate: float | None = setting(
    None, "Learning rate of tuning (default: 0.05; by value 0.001).", above=0
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
  tune_batch_size: int = setting(64, "Images of a tuning step.", low=1)
  proxy_triggers: str | None = setting(
    None,
    "Path of the triggers.npz that neural_cleanse leaves: by value, pruning "
    "ends when the trigger of the class it flagged first no longer works.",
  )


def fill_defaults(
  settings: FinePruningSettings, image_shape: tuple[int, int, int]
) -> FinePruningSettings:
  """Fill settings whose default depends on the criterion or the images.

  Args:
    settings: as given.
    image_shape: (H, W, C) of the defender's images.
  """
  values = _DEFAULTS[settings.by]
  values = values | {"augment": default_augmentation(image_shape)}
  missing = {k: v for k, v in values.items() if getattr(settings, k) is None}
  return dataclasses.replace(settings, **missing)


def compile_tuning_of(
  model: Model, defender: Defender, settings: FinePruningSettings
) -> Callable:
  """Compile the tuning of a pruned network.

  Args:
    model: its definition, perhaps a masked one.
    defender: the network and clean images.
    settings: from `fill_defaults`.

  Returns:
    See `tuning.compile_tuning`.
  """
  return compile_tuning(
    model,
    defender.batch_size(settings.tune_batch_size),
    defender.mesh,
    epochs=settings.epochs,
    learning_rate=settings.learning_rate,
    weight_decay=settings.weight_decay,
    transform=lambda trigger: augment(settings.augment),
    schedule="constant" if settings.by == "value" else "onecycle",
  )
