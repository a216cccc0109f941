"""The types of a defence: what it may see, and the kinds of its results.

A defence is a function `(defender, settings, directory=None) -> results`, a
tuple of the kinds below. It sees a `Defender` and nothing else: test images,
triggers and success rates belong to `bdjax.evaluation`, which scores each kind
in one way for all defences.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax.attacks.patches import Trigger
from bdjax.errors import UserError
from bdjax.models import Model, Weights


class Defender(NamedTuple):
  """All that a defence may see: a network and clean images of one's own.

  Attributes:
    model: the network's definition.
    weights: as trained, perhaps with a backdoor.
    images: uint8 [N,H,W,C] on the device, held out from training.
    labels: int32 [N] on the device, the true ones.
    class_names: one name a label.
    mesh: the devices.
    key: the defence's own randomness.
  """

  model: Model
  weights: Weights
  images: jax.Array
  labels: jax.Array
  class_names: tuple[str, ...]
  mesh: jax.sharding.Mesh
  key: jax.Array

  def batch_size(self, largest: int = 256) -> int:
    """Return a batch size up to `largest` that data and devices allow."""
    devices = self.mesh.size
    return max(1, min(largest, len(self.labels)) // devices) * devices

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the images."""
    return self.images.shape[1:]

  @property
  def num_classes(self) -> int:
    """K, the number of labels."""
    return len(self.class_names)


class TrainingDefender(NamedTuple):
  """What a defence sees that inspects, or trains on, a training set.

  Attributes:
    defender: the network and clean images, as for every defence.
    images: uint8 [M,H,W,C], the training set, some images perhaps poisoned;
      on the host.
    labels: int32 [M], its labels, which a poisoned image may carry wrongly.
  """

  defender: Defender
  images: np.ndarray
  labels: np.ndarray


class Repair(NamedTuple):
  """A network that a defence changed.

  Scored by clean accuracy, attack success rate, robust accuracy and defence
  effectiveness rate.

  Attributes:
    name: tells it from the other repairs of the same defence, and is the
      suffix of its scores, as in `clean_accuracy_repaired`.
    model: the definition, perhaps a masked one.
    weights: of the network.
    details: how it came about, JSON-ready.
    saved: whether the run keeps the weights.
    step: one of many on the way to a repair: it enters the figure and the
      details, and not the table of scores.
  """

  name: str
  model: Model
  weights: Weights
  details: dict[str, Any] = {}
  saved: bool = True
  step: bool = False


class RepairPath(NamedTuple):
  """Networks along a path, such as channel after channel pruned.

  All P answer in one pass. Scored like repairs, at the points that the
  defender chose; the whole path goes into a figure.

  Attributes:
    name: of the path's figure.
    answer: `(args, key, images f32 [B,H,W,C]) -> int32 [B,P]`, labels; the
      label K, the number of classes, refuses the image.
    args: goes to `answer`.
    points: name -> position in [0,P); names are the suffixes of scores.
    axis: what the positions count, such as `channels pruned`.
    refuses: whether images may be refused; then coverage is scored too.
    repairs: networks of the path that the run keeps, not scored again.
    curves: title -> float [P], what the defender saw on the path.
    details: JSON-ready.
    batch_size: images at a time; None for the evaluator's own.
  """

  name: str
  answer: Callable[..., jax.Array]
  args: Any
  points: dict[str, int]
  axis: str
  refuses: bool = False
  repairs: tuple[Repair, ...] = ()
  curves: dict[str, np.ndarray] = {}
  details: dict[str, Any] = {}
  batch_size: int | None = None


class InputDetector(NamedTuple):
  """A suspicion score of an input, and thresholds for it.

  Scored by AUROC, the measured false rejection rate (FRR, clean images
  rejected), the false acceptance rate (FAR, triggered images accepted), the
  attack success rate behind it, and milliseconds an image.

  Attributes:
    score: `(args, key, images f32 [B,H,W,C]) -> float32 [B]`, the higher the
      more suspicious; jitted by the evaluator.
    args: goes to `score`: weights, overlays, statistics.
    thresholds: wanted FRR -> threshold; a score above it is rejected.
    calibration: float [M], scores of the defender's clean images.
    unit: of the score, for figures: `-entropy, bits`.
    batch_size: images at a time.
    details: JSON-ready.
  """

  score: Callable[..., jax.Array]
  args: Any
  thresholds: dict[float, float]
  calibration: np.ndarray
  unit: str
  batch_size: int
  details: dict[str, Any] = {}


class SampleScores(NamedTuple):
  """Suspicion of the images of a training set.

  Scored by AUROC, TPR and FPR of what is flagged.

  Attributes:
    scores: float [M], the higher the more suspicious.
    flagged: bool [M].
    details: JSON-ready.
  """

  scores: np.ndarray
  flagged: np.ndarray
  details: dict[str, Any] = {}


class Verdict(NamedTuple):
  """Whether a network is backdoored, and towards which labels.

  Scored by the targets found and the innocent classes accused.

  Attributes:
    statistic: the larger the more suspicious, for comparing networks.
    index: float [K], the same of each class; NaN where there is none.
    suspects: classes accused, the most suspicious first.
    threshold: of the index, above which a class is accused.
    p_values: float [K], or None.
    sizes: float [K], sizes of the masks found, in pixels; NaN where none.
    triggers: of all K classes, mask [K,H,W,1] and pattern [K,H,W,C], or None.
    details: JSON-ready.
  """

  statistic: float
  index: np.ndarray
  suspects: Sequence[int]
  threshold: float
  p_values: np.ndarray | None = None
  sizes: np.ndarray | None = None
  triggers: Trigger | None = None
  details: dict[str, Any] = {}


class TrainedNetwork(NamedTuple):
  """A network that a defence trained from scratch on a suspect set.

  Scored like a repair.

  Attributes: as of `Repair`.
  """

  name: str
  model: Model
  weights: Weights
  details: dict[str, Any] = {}


Result = (
  Repair | RepairPath | InputDetector | SampleScores | Verdict | TrainedNetwork
)
Results = tuple[Result, ...]
# (defender, settings, directory=None) -> results. What a long defence needs to
# be resumed goes to `directory / "checkpoints"`; without one nothing is kept.
Defend = Callable[..., Results]


class DefenseMethod(NamedTuple):
  """A published defence as a unit: settings, function, citation.

  Attributes:
    name: of its script and its results.
    settings: a frozen dataclass of `bdjax.settings.setting` fields.
    defend: see `Defend`.
    citation: authors, year and title.
    needs_training_set: whether `defend` gets a `TrainingDefender`.
    eval_images: test images to score on by default; None for all.
    variant: what is added to the name where the settings choose another form
      of the defence, so that its results lie apart.
    reported: (attack, data set) -> published scores.
    standard: whether settings are those that the published scores belong to.
    gives_verdict: whether a `Verdict` is among the results.
  """

  name: str
  settings: type
  defend: Defend
  citation: str
  needs_training_set: bool = False
  eval_images: int | None = None
  variant: Callable[[Any], str] = lambda settings: ""
  reported: dict[tuple[str, str], dict[str, float]] = {}
  standard: Callable[[Any], bool] = lambda settings: True
  gives_verdict: bool = False


def checkpoint_path(
  directory: pathlib.Path | None, name: str
) -> pathlib.Path | None:
  """Return where a defence keeps what it needs to be resumed."""
  return None if directory is None else directory / "checkpoints" / name


def check_finite(weights: Weights, name: str) -> None:
  """Check that tuning has not diverged.

  Args:
    weights: of the tuned network.
    name: of the learning rate's setting, for the error.

  Raises:
    UserError: a weight is not finite.
  """
  for leaf in jax.tree.leaves(jax.device_get(weights)):
    if not np.isfinite(leaf).all():
      raise UserError(f"{name} must be smaller: tuning diverged")
