"""STRIP in front of a fine-pruned network: refuse, else answer repaired.

STRIP looks at the original network, where the backdoor still gives itself away;
the fine-pruned network answers.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from bdjax.defenses.base import Defender, DefenseMethod, RepairPath
from bdjax.defenses.fine_pruning import method
from bdjax.defenses.fine_pruning.settings import FinePruningSettings
from bdjax.defenses.strip import StripSettings, calibrate
from bdjax.errors import UserError
from bdjax.settings import setting


@dataclasses.dataclass(frozen=True)
class StripFinePruningSettings(FinePruningSettings, StripSettings):
  """Settings of both; there is one false rejection rate."""

  frr: str = setting("0.01", "False rejection rate to calibrate for.")


def strip_fine_pruning(
  defender: Defender,
  settings: StripFinePruningSettings | None = None,
  directory: pathlib.Path | None = None,
) -> tuple[RepairPath]:
  """Calibrate STRIP, and fine-prune the network that answers behind it.

  It costs what both cost; deployed, N + 1 passes an image.

  Args:
    defender: the network and clean images.
    settings: of both; None for the defaults.
    directory: as for `fine_pruning`.

  Returns:
    A path of one network. Images that STRIP rejects get the label K.

  Raises:
    UserError: as for both, or more than one rate is given.

  References:
    Gao et al. (2019), STRIP: A Defence Against Trojan Attacks on Deep Neural
    Networks; Liu, Dolan-Gavitt and Garg (2018), Fine-Pruning: Defending Against
    Backdooring Attacks on Deep Neural Networks.
  """
  settings = settings or StripFinePruningSettings()
  if "," in settings.frr:
    raise UserError(f"frr must be one rate here (got {settings.frr})")
  strip_key, repair_key = jax.random.split(defender.key)
  (detector,) = calibrate(defender._replace(key=strip_key), settings)
  repaired = method.fine_pruning(
    defender._replace(key=repair_key), settings, directory
  )[-1]
  (threshold,) = detector.thresholds.values()
  score, model, num_classes = (
    detector.score,
    repaired.model,
    defender.num_classes,
  )

  def answer(args, key, images):
    detector_args, weights = args
    rejected = score(detector_args, key, images) > threshold
    logits, _ = model.apply(*weights, images)
    return jnp.where(rejected, num_classes, logits.argmax(-1))[:, None]

  path = RepairPath(
    name="strip_fine_pruning",
    answer=answer,
    args=(detector.args, repaired.weights),
    points={"": 0},
    axis="",
    refuses=True,
    repairs=(repaired,),
    details={**detector.details, "repaired": repaired.details},
    batch_size=detector.batch_size,
  )
  return (path,)


METHOD = DefenseMethod(
  "strip_fine_pruning",
  StripFinePruningSettings,
  strip_fine_pruning,
  "Gao et al. (2019), STRIP: A Defence Against Trojan Attacks on Deep Neural "
  "Networks; Liu, Dolan-Gavitt and Garg (2018), Fine-Pruning",
  eval_images=2000,
  variant=method.METHOD.variant,
)
