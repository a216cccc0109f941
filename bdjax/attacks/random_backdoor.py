"""Random Backdoor (Salem et al. 2022, section 3.1)."""

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks.poison import Attack


def random_backdoor(
  targets: tuple[int, ...], boxes: np.ndarray, size: int, channels: int
) -> Attack:
  """Triggers drawn from U[0,1] anew for every image.

  Salem, Wen, Backes, Ma and Zhang: Dynamic Backdoor Attacks Against Machine
  Learning Models (EuroS&P 2022), section 3.1. With one target the place is
  drawn from the whole image, with several from the target's own region, so
  that the region names the label.

  The paper adds triggers to a copy of the training data; here they replace
  the image in the batch, with the poison rate as probability.

  Args:
    targets: target labels.
    boxes: int32 [T,L,4], the places of each target.
    size: side of the trigger in pixels.
    channels: of the images.

  Returns:
    The attack; it has no parameters.
  """

  def patches(params, key, index):
    del params
    return jax.random.uniform(key, (index.shape[0], size, size, channels))

  return Attack(
    targets=jnp.asarray(targets, jnp.int32),
    boxes=jnp.asarray(boxes, jnp.int32),
    init=lambda key: {},
    patches=patches,
    trigger_size=size,
  )
