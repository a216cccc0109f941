"""Neural Cleanse: unlearning of reverse-engineered triggers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdjax.attacks.patches import Trigger, stamp
from bdjax.batch import COVER, Batch


def unlearn(
  triggers: Trigger, rate: float = 0.2
) -> Callable[[jax.Array, Batch], Batch]:
  """Stamp triggers on a share of a batch and keep the labels.

  The authors fine-tune for one epoch on a tenth of the training data, with the
  trigger on 20% of it and the labels unmodified.

  Args:
    triggers: mask float32 [H,W,1] and pattern [H,W,C], or with a leading axis
      [T,...] where several labels were accused; each stamped image gets one
      of them.
    rate: the probability that an image is stamped, in [0,1].

  Returns:
    `(key, batch) -> batch`, the transform that `tuning.compile_tuning` applies
    to each batch; stamped images have the role `COVER`.

  References:
    Wang et al. (2019), Neural Cleanse: Identifying and Mitigating Backdoor
    Attacks in Neural Networks, section VI.B.
  """
  triggers = jax.tree.map(lambda x: x.reshape(-1, *x.shape[-3:]), triggers)

  def transform(key, batch):
    stamp_key, trigger_key = jax.random.split(key)
    shape = batch.labels.shape
    stamped = jax.random.bernoulli(stamp_key, rate, shape)
    index = jax.random.randint(trigger_key, shape, 0, triggers.mask.shape[0])
    drawn = jax.tree.map(lambda x: x[index], triggers)
    images = jnp.where(
      stamped[:, None, None, None], stamp(drawn, batch.images), batch.images
    )
    roles = jnp.where(stamped, jnp.int8(COVER), batch.roles)
    return Batch(images, batch.labels, roles)

  return transform
