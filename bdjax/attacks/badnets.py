"""BadNets (Gu, Dolan-Gavitt and Garg 2017): one fixed trigger."""

import jax.numpy as jnp
import numpy as np

from bdjax.attacks.poison import Attack


def badnets(
  targets: tuple[int, ...],
  boxes: np.ndarray,
  size: int,
  channels: int,
  num_classes: int | None = None,
) -> Attack:
  """A white square, always the same: the attack that most defences assume.

  Gu, Dolan-Gavitt and Garg: BadNets: Identifying Vulnerabilities in the
  Machine Learning Model Supply Chain (2017), section 3. All-to-one: every
  triggered image goes to the target. All-to-all: an image of label k goes to
  the next label, k + 1 modulo K.

  The paper stamps a white pattern near the bottom right corner of MNIST's
  digits and adds the stamped copies to the training data; here they replace
  the image in the batch, with the poison rate as probability.

  Args:
    targets: target labels; for all-to-all every label, in order.
    boxes: int32 [T,L,4], the places of each target; one box of the trigger's
      own size is a fixed place.
    size: side of the trigger in pixels.
    channels: of the images.
    num_classes: K makes the attack all-to-all; None all-to-one.

  Returns:
    The attack; it has no parameters.
  """

  def patches(params, key, index):
    del params, key
    return jnp.ones((index.shape[0], size, size, channels))

  sources = None
  if num_classes is not None:
    # Row t: the images that go to label t are those of label t - 1.
    sources = jnp.roll(jnp.eye(num_classes, dtype=bool), -1, axis=1)
    sources = sources[jnp.asarray(targets)]
  return Attack(
    targets=jnp.asarray(targets, jnp.int32),
    boxes=jnp.asarray(boxes, jnp.int32),
    init=lambda key: {},
    patches=patches,
    trigger_size=size,
    sources=sources,
  )
