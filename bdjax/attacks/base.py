"""The type of an attack, and of a published attack method."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from bdjax.models import Model, Weights
from bdjax.settings import setting

MODES = ("dataset", "batch")


class TriggerVariables(NamedTuple):
  """The arrays that an attack's triggers are made with; saved with the run.

  Attributes:
    params: trained with the classifier; `{}` where nothing is.
    state: not trained by its gradient: batch statistics of a generator, a
      pattern or network made before training; `{}` where there is none.
  """

  params: Any
  state: Any


def no_variables(key: jax.Array) -> TriggerVariables:
  """Return the variables of an attack that has none."""
  del key
  return TriggerVariables({}, {})


class PreparationContext(NamedTuple):
  """What an attack's stage before training may use.

  Attributes:
    images: uint8 [N,H,W,C], the training images, on the device.
    labels: int32 [N], theirs.
    mesh: the devices.
    clean: definition and weights of a network trained clean, for a method that
      `needs_clean_network`; None for the others.
  """

  images: jax.Array
  labels: jax.Array
  mesh: jax.sharding.Mesh
  clean: tuple[Model, Weights] | None = None


class JointPoison(NamedTuple):
  """What `Attack.joint` makes of a batch.

  Attributes:
    poisoned: float32 [P,H,W,C], the poisoned rows.
    covers: float32 [Q,H,W,C], the cover rows.
    state: the next `TriggerVariables.state`.
    loss: float32 scalar, added to the loss of the batch.
  """

  poisoned: jax.Array
  covers: jax.Array
  state: Any
  loss: jax.Array


# (variables, key, images f32 [B,H,W,C], index i32 [B]) -> images.
Apply = Callable[[TriggerVariables, jax.Array, jax.Array, jax.Array], jax.Array]


class Attack(NamedTuple):
  """A backdoor, as training and evaluation see it.

  Images are float32 [B,H,W,C] in [0,1], and so are triggered ones; `index`
  int32 [B] says which of the targets each image is led to. Only `targets` and
  `apply` are needed.

  Attributes:
    targets: int32 [T], the target labels, distinct.
    apply: `(variables, key, images, index) -> images`, all triggered;
      differentiable in `variables.params`.
    init: `key -> TriggerVariables`. What is in `params` is trained with the
      classifier: a fixed pattern is closed over by `apply` instead.
    sources: bool [T,K], the true labels that may be led to each target; None:
      all but the target itself.
    clean_label: poisons images that carry the target label, and keeps it.
    apply_test: as `apply`, where triggers differ at test time; None: the same.
    cover: as `apply`, for rows that are triggered and keep their label; None:
      there are none. It sees at least these rows of the batch.
    cover_rate: share of the images that are covers.
    cover_sources: bool [K], labels that may be covers; None: all.
    joint: `(variables, key, images, index, rows i32 [P], cover_rows i32 [Q],
      classify) -> JointPoison`, in place of `apply` and `cover` in training,
      for a generator that has batch statistics or a loss that sees images.
      Only these rows need to pass through it. `classify: images -> logits` is
      the classifier as it stands, held constant.
    exact_rows: batches hold rate * B poisoned rows, whatever the key (a
      fraction of a row is one with that probability), and only they pass
      through `apply`; implied by `joint`. Otherwise each image is poisoned by
      chance, and the rate may be a traced array.
    loss: `(variables, key, images) -> scalar` added to the training loss;
      None: nothing is.
    optimizer: steps of the run -> the optimiser of `variables.params`.
    prepare: `(key, variables, PreparationContext) -> variables`, a stage
      before training; None: there is none.
    draw_trigger: `(variables, key, images, index) -> Trigger`, what is laid
      over each image, mask [B,h,w,1] and pattern [B,h,w,C], for figures and
      the diversity of triggers; None where triggers are not of that form.
    patch: the places of a patch attack (`patches.Patch`), else None.
  """

  targets: jax.Array
  apply: Apply
  init: Callable[[jax.Array], TriggerVariables] = no_variables
  sources: jax.Array | None = None
  clean_label: bool = False
  apply_test: Apply | None = None
  cover: Apply | None = None
  cover_rate: float = 0.0
  cover_sources: jax.Array | None = None
  joint: Callable[..., JointPoison] | None = None
  exact_rows: bool = False
  loss: Callable[..., jax.Array] | None = None
  optimizer: Callable[[int], optax.GradientTransformation] = lambda steps: (
    optax.identity()
  )
  prepare: Callable[..., TriggerVariables] | None = None
  draw_trigger: Callable[..., Any] | None = None
  patch: Any = None

  @property
  def test_apply(self) -> Apply:
    """The trigger as it is at test time."""
    return self.apply_test or self.apply

  @property
  def counts_rows(self) -> bool:
    """Whether a batch's number of poisoned rows is fixed."""
    return self.exact_rows or self.joint is not None

  def eligible(self, labels: jax.Array) -> jax.Array:
    """Tell which targets an image may be led to at test time.

    Never its own label: a triggered image that carries its true label could
    not be counted as a success.

    Args:
      labels: int32 [B], the true ones.

    Returns:
      bool [B,T].
    """
    other = self.targets[None, :] != labels[:, None]
    return other if self.sources is None else other & self.sources.T[labels]

  def poisonable(self, labels: jax.Array) -> jax.Array:
    """Tell which targets an image may be poisoned towards: bool [B,T].

    As `eligible`, but with `clean_label` images of the target itself.
    """
    if self.clean_label:
      return self.targets[None, :] == labels[:, None]
    return self.eligible(labels)

  def coverable(self, labels: jax.Array) -> jax.Array:
    """Tell which images of labels int32 [B] may be covers: bool [B]."""
    if self.cover_sources is None:
      return labels >= 0
    return self.cover_sources[labels]


class AttackMethod(NamedTuple):
  """A published attack as a unit: settings, maker, citation.

  Attributes:
    name: of its script and its runs.
    settings: a frozen dataclass, `AttackSettings` or a subclass.
    make: `(settings, image_shape (H,W,C), num_classes) -> Attack`.
    citation: authors, year and title.
    modes: ways of poisoning that it has, from `MODES`, the default first.
    needs_clean_network: whether `prepare` needs one.
    reported: data set -> published scores, as fractions.
  """

  name: str
  settings: type
  make: Callable[[Any, tuple[int, int, int], int], Attack]
  citation: str
  modes: tuple[str, ...] = MODES
  needs_clean_network: bool = False
  reported: dict[str, dict[str, float]] = {}


def attack_setting(default: Any, text: str, **meta: Any) -> Any:
  """Return a field of an attack's settings; see `bdjax.settings.setting`."""
  return setting(default, text, group="attack", **meta)
