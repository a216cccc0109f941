import jax
import jax.numpy as jnp
import numpy as np

from bdjax import evaluation, metrics, models, sharding
from bdjax.defenses import goodnet, pruning
from bdjax.models import Weights

KEY = jax.random.key(2)
FIRST = jnp.array([0, 1, 2, 3, 3], jnp.int32)
SECOND = jnp.array([0, 2, 2, 0, 3], jnp.int32)


def test_agreement_by_hand():
  got = jax.jit(goodnet.goodnet, static_argnums=2)(FIRST, SECOND, 4)
  assert got.tolist() == [0, 4, 2, 4, 3] and got.dtype == jnp.int32
  each = jax.vmap(lambda a, b: goodnet.goodnet(a, b, 4))(FIRST, SECOND)
  np.testing.assert_array_equal(each, got)
  assert goodnet.coverage(got, 4) == 0.6
  labels = np.array([0, 1, 0, 3, 3])
  # An unanswered image is not a right one.
  assert metrics.accuracy(np.asarray(got), labels) == 0.4
  # Five images triggered towards 3: one answer is 3, two are no answer.
  rate = metrics.attack_success_rate(
    np.asarray(got)[None, None], np.array([3]), np.ones((1, 5), bool)
  )
  assert rate.tolist() == [[0.2]]


def test_two_networks_over_a_set():
  shape = (8, 8, 1)
  model = models.get("cnn", image_shape=shape, num_classes=10, width=8)
  images = jax.random.randint(KEY, (21, *shape), 0, 256).astype(jnp.uint8)
  params, _ = model.init(KEY)
  # Mean logits of 0, or the untrained network has one answer for all.
  logits, _ = model.apply(params, {}, images.astype(jnp.float32) / 255, False)
  params["logits"]["bias"] = -logits.mean(0)
  weights = Weights(params, {})
  mask = jnp.array([1.0, 0.0, 0.0, 0.0])
  pruned = pruning.prune(weights, {"conv_2": mask})
  run = evaluation.over_images(
    goodnet.predict_goodnet(model, pruning.masked(model), 10),
    8,
    sharding.make_mesh(jax.devices()[:1]),
  )
  got = np.asarray(run((weights, pruned), KEY, images))
  batch = images.astype(jnp.float32) / 255
  first = model.apply(*weights, batch, False)[0].argmax(-1)
  second = pruning.masked(model).apply(*pruned, batch, False)[0].argmax(-1)
  agree = np.asarray(first == second)
  np.testing.assert_array_equal(got[agree], first[agree])
  assert (got[~agree] == 10).all()
  assert 0 < agree.sum() < 21  # else this shows nothing
  assert goodnet.coverage(got, 10) == agree.mean()
