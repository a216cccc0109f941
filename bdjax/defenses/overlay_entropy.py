"""The entropy of a network's answers to an input under overlays.

References:
  Gao, Xu, Wang, Chen, Ranasinghe and Nepal (2019), STRIP: A Defence Against
  Trojan Attacks on Deep Neural Networks, section 4.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdjax import batch_sizes, batching
from bdjax.models import Model

SUPERIMPOSITIONS = ("additive", "clipped", "blend")
UNITS = ("bits", "nats")


def superimpose(
  images: jax.Array, overlays: jax.Array, how: str = "additive"
) -> jax.Array:
  """Lay overlays over images.

  Args:
    images: float32 [...,H,W,C] in [0,1].
    overlays: the same, broadcastable against the images.
    how: `additive`, the sum (the authors' released code: OpenCV's addWeighted
      with weights 1 and 1, on float images, which it does not cut); `clipped`,
      the sum cut at 1, as it is on uint8 images and in ports to PyTorch, where
      a bright trigger drowns in a bright overlay; or `blend`, half of each
      (BackdoorBench and others).

  Returns:
    float32 in [0,1], for `additive` in [0,2]: brighter than any image, but
    the trigger stands out from what lies around it as in the image.
  """
  if how == "additive":
    return images + overlays
  if how == "clipped":
    return jnp.minimum(images + overlays, 1.0)
  if how == "blend":
    return 0.5 * images + 0.5 * overlays
  raise ValueError(f"unknown superimposition {how!r}")


def entropy(logits: jax.Array, unit: str = "bits") -> jax.Array:
  """Compute the Shannon entropy of the softmax.

  Args:
    logits: float32 [...,K]; the entropy is over this last axis, the classes.
    unit: `bits` or `nats`.

  Returns:
    float32 [...], in [0, log K].

  References:
    Gao et al. (2019), equation 2.
  """
  if unit not in UNITS:
    raise ValueError(f"unknown unit {unit!r}")
  log_p = jax.nn.log_softmax(logits)
  # p log p is 0 at p = 0, where log p is -inf for logits far apart.
  terms = jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0)
  nats = -terms.sum(-1)
  return nats / jnp.log(2.0) if unit == "bits" else nats


def entropies(
  model: Model,
  overlays: int = 100,
  superimposition: str = "additive",
  unit: str = "bits",
) -> Callable:
  """Make the mean entropy of each input over its overlays.

  Each input draws its own N overlays from the pool, none twice. All B x N
  superimpositions go through the model at once: divide the inputs into batches
  with `batching.over_images`, of `max_batch_size`.

  Args:
    model: the network under suspicion.
    overlays: N, images laid over each input; 100 in the paper.
    superimposition: one of `SUPERIMPOSITIONS`, see `superimpose`.
    unit: of the entropy, `bits` (the paper's) or `nats` (most later
      implementations).

  Returns:
    `(args, key, images f32 [B,H,W,C] in [0,1]) -> float32 [B]`, where args is
    (weights, pool uint8 [O,H,W,C]) with O at least N.

  References:
    Gao et al. (2019), section 4, equation 4.
  """

  def run(args, key, images):
    weights, pool = args
    keys = jax.random.split(key, images.shape[0])
    rows = jax.vmap(
      lambda k: jax.random.choice(k, pool.shape[0], (overlays,), replace=False)
    )(keys)  # [B,N]
    laid_over = batching.to_float(pool[rows])
    mixed = superimpose(images[:, None], laid_over, superimposition)
    logits, _ = model.apply(*weights, mixed.reshape(-1, *images.shape[1:]))
    return entropy(logits, unit).reshape(-1, overlays).mean(1)

  return run


def max_batch_size(
  overlays: int, image_shape: tuple[int, int, int], *, devices: int = 1
) -> int:
  """Return how many inputs fit a batch, a multiple of `devices`.

  Their superimpositions are as many as `batch_sizes.max_batch_size`: on CPU
  over all devices, which share its cache, else on each.

  Args:
    overlays: N, images laid over each input.
    image_shape: (H, W, C).
    devices: that a batch is divided over.
  """
  images = batch_sizes.max_batch_size(image_shape)
  if jax.default_backend() != "cpu":
    images *= devices
  return max(1, images // overlays // devices) * devices
