"""GoodNet: a backdoored network and its pruned copy answer together.

An exercise of New York University's course on machine learning for cyber
security: the pruned network B' of Liu et al. (2018) is right on clean inputs
and not wholly rid of the backdoor of B; where the two differ, the input is
suspect and gets a class of its own.
"""

import pathlib

import jax
import jax.numpy as jnp

from bdjax.defenses.base import Defender, DefenseMethod, RepairPath
from bdjax.defenses.pruning import (
  PruningSettings,
  prune_until,
  pruning_path,
)


def agreement(
  first: jax.Array, second: jax.Array, num_classes: int
) -> jax.Array:
  """Return the class on which two networks agree, else one class more.

  The answers are scored as predictions are: the class `num_classes` is no
  image's label and no attack's target, so it counts as neither right nor a
  success of the attack.

  Args:
    first: int32 [...], predictions in [0, num_classes).
    second: int32 [...], likewise; broadcast against the first.
    num_classes: K.

  Returns:
    int32 [...] in [0, K]; K stands for "backdoored".
  """
  return jnp.where(first == second, first, jnp.int32(num_classes))


def goodnet(
  defender: Defender,
  settings: PruningSettings | None = None,
  directory: pathlib.Path | None = None,
) -> tuple[RepairPath]:
  """Answer where a network and its pruned copy agree, else refuse.

  It costs what pruning costs; deployed, up to two passes an image.

  Args:
    defender: the network and clean images.
    settings: of the pruned copies; None for the defaults.
    directory: not used.

  Returns:
    The path of the answers beside each of the C+1 copies, its points `at_X`
    for every drop X. The label K refuses an image.

  Raises:
    UserError: no images, no such layer, or drops that are not shares.

  References:
    New York University, course on machine learning for cyber security, the
    exercise CSAW-HackML-2020. The copy: Liu, Dolan-Gavitt and Garg (2018),
    Fine-Pruning, section 3.1.
  """
  del directory
  settings = settings or PruningSettings()
  layer, curve, counts = prune_until(defender, settings)
  points = {f"at_{drop}": count for drop, count in counts.items()}
  path = pruning_path(defender, layer, curve, points)
  predict, num_classes = path.answer, defender.num_classes

  def answer(args, key, images):
    # One pass for all: the whole network's predictions first, then the copies'.
    predictions = predict(args, key, images)
    return agreement(predictions[:, :1], predictions, num_classes)

  return (path._replace(name="goodnet", answer=answer, refuses=True),)


METHOD = DefenseMethod(
  "goodnet",
  PruningSettings,
  goodnet,
  "New York University, exercise CSAW-HackML-2020; the pruned copy by Liu, "
  "Dolan-Gavitt and Garg (2018)",
)
