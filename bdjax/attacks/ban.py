"""Backdoor Generating Network, BaN (Salem et al. 2022, section 3.2)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from bdjax.attacks.base import (
  Attack,
  AttackMethod,
  TriggerVariables,
  attack_setting,
)
from bdjax.attacks.diversity import diversity_loss
from bdjax.attacks.patches import Patch, patch_attack
from bdjax.attacks.settings import (
  PatchSettings,
  check_regions,
  parse_locations,
  targets_and_sources,
)
from bdjax.models.generator import trigger_mlp


@dataclasses.dataclass(frozen=True)
class BanSettings(PatchSettings):
  """Settings of BaN and cBaN."""

  noise_dim: int = attack_setting(
    100, "Length of the generator's noise vector.", low=1
  )
  generator_width: int = attack_setting(
    64, "Units of the generator's embedding.", low=1
  )
  generator_learning_rate: float = attack_setting(
    1e-3, "Learning rate of the generator's Adam.", above=0
  )
  diversity: float = attack_setting(
    0.5,
    "Diversity wanted of the triggers of a label: 1 is that of random pixels, "
    "0 the paper's loss alone, whose triggers become one and the same.",
    low=0,
    high=1,
  )
  diversity_weight: float = attack_setting(
    0.1, "Weight of the diversity loss beside the cross-entropy.", low=0
  )


def ban(
  settings: BanSettings, image_shape: tuple[int, int, int], num_classes: int
) -> Attack:
  """Stamp triggers that a network generates from noise.

  z ~ U[0,1]^d goes through the generator to a trigger; classifier and generator
  minimise the clean and the backdoor loss together. With several targets the
  region names the label, as in Random Backdoor.

  Where the paper leaves a choice: the generator is the released code's
  (`models/generator.py`); both networks are updated from one backward pass of
  the same loss, so the updates are simultaneous, not alternating.
  `diversity_loss` is added to the paper's loss, with `diversity` above 0.

  Args:
    settings: filled.
    image_shape: (H, W, C).
    num_classes: K.

  Raises:
    UserError: targets, places or size do not fit the images.

  References:
    Salem, Wen, Backes, Ma and Zhang (2022), Dynamic Backdoor Attacks Against
    Machine Learning Models, section 3.2.
  """
  return generated(settings, image_shape, num_classes, conditional=False)


def generated(
  settings: BanSettings,
  image_shape: tuple[int, int, int],
  num_classes: int,
  *,
  conditional: bool,
) -> Attack:
  """Return BaN or, where the generator takes the label one-hot, cBaN.

  Args: as of `ban`.
  """
  targets, sources = targets_and_sources(settings, num_classes)
  num, side = len(targets), settings.trigger_size
  boxes = parse_locations(
    settings.locations, num, (side, side), image_shape[:2]
  )
  if sources is None and not conditional:
    check_regions(boxes, "ban")
  generator = trigger_mlp(
    noise_dim=settings.noise_dim,
    num_labels=num if conditional else 0,
    size=side,
    channels=image_shape[2],
    width=settings.generator_width,
  )

  def draw(variables, key, index):
    noise = jax.random.uniform(key, (index.shape[0], settings.noise_dim))
    condition = jax.nn.one_hot(index, num) if conditional else None
    return generator.apply(variables.params, noise, condition)

  def loss(variables, key, images):
    del images
    return settings.diversity_weight * diversity_loss(
      lambda key, index: draw(variables, key, index),
      key,
      num,
      settings.diversity,
      across_labels=conditional,
    )

  return patch_attack(
    targets,
    Patch(draw, jnp.asarray(boxes), (side, side)),
    sources=sources,
    init=lambda key: TriggerVariables(generator.init(key), {}),
    loss=loss if settings.diversity else None,
    optimizer=lambda steps: optax.adam(settings.generator_learning_rate),
  )


METHOD = AttackMethod(
  "ban",
  BanSettings,
  ban,
  "Salem, Wen, Backes, Ma and Zhang 2022, Dynamic Backdoor Attacks",
  modes=("batch",),
  # ResNet-18 with the ImageNet stem; benchmark: the clean model's accuracy.
  reported={
    "mnist": {"clean_accuracy": 0.9853, "attack_success_rate": 0.942},
    "cifar10": {
      "clean_accuracy": 0.837,
      "attack_success_rate": 0.9997,
      "benchmark_accuracy": 0.841,
    },
  },
)
