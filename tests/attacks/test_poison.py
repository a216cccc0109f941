import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks import triggers
from bdjax.attacks.badnets import badnets
from bdjax.attacks.ban import ban, sameness
from bdjax.attacks.cban import cban
from bdjax.attacks.poison import (
  choose_targets,
  compose,
  draw_triggers,
  poison,
)
from bdjax.attacks.random_backdoor import random_backdoor

MAKERS = [
  random_backdoor,
  functools.partial(ban, noise_dim=4, width=8),
  functools.partial(cban, noise_dim=4, width=8),
]
KEY = jax.random.key(7)


def _attack(make, targets, grid=False):
  num = len(targets)
  boxes = triggers.grid(num, 8, 8) if grid else triggers.whole_image(num, 8, 8)
  return make(targets, boxes, 2, 3)


def _batch(n=400, classes=4):
  images = np.random.default_rng(0).random((n, 8, 8, 3), np.float32)
  return images, np.arange(n, dtype=np.int32) % classes


def _poison(attack, params, rate):
  """The compiled transform; what it gives is looked at on the host."""
  transform = jax.jit(poison(attack, params, rate))
  return lambda *batch: jax.device_get(transform(*batch))


def _init(attack):
  return jax.jit(attack.init)(KEY)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("targets", [(2,), (0, 1, 2, 3), (3, 1)])
def test_poisoned_images_alone_change_and_never_keep_their_label(make, targets):
  attack = _attack(make, targets)
  images, labels = _batch()
  transform = _poison(attack, _init(attack), 0.5)
  after, relabelled, poisoned = transform(KEY, images, labels)
  np.testing.assert_array_equal(after[~poisoned], images[~poisoned])
  np.testing.assert_array_equal(relabelled[~poisoned], labels[~poisoned])
  assert (relabelled != labels)[poisoned].all()
  assert np.isin(relabelled[poisoned], targets).all()
  assert (after >= 0).all() and (after <= 1).all()
  # The patch covers four pixels, and nothing else.
  changed = (after != images).any(-1).sum((1, 2))
  assert (changed[poisoned] == 4).all()


def test_the_rate_counts_eligible_images():
  attack = _attack(random_backdoor, (2,))
  images, labels = _batch(8000)
  _, _, poisoned = _poison(attack, {}, 0.25)(KEY, images, labels)
  assert not poisoned[labels == 2].any()
  # Binomial: three standard deviations of 6000 draws at 0.25 are 0.017.
  assert abs(float(poisoned[labels != 2].mean()) - 0.25) < 0.017


@pytest.mark.parametrize("rate, share", [(0.0, 0.0), (1.0, 1.0)])
def test_extreme_rates(rate, share):
  attack = _attack(random_backdoor, (0, 1))
  _, _, poisoned = _poison(attack, {}, rate)(KEY, *_batch())
  assert float(poisoned.mean()) == share


def test_targets_are_uniform_over_the_others():
  labels = jnp.zeros(9000, jnp.int32)
  targets = jnp.array([0, 1, 2, 3])
  index, eligible = choose_targets(KEY, targets[None] != labels[:, None])
  assert eligible.all()
  counts = np.bincount(index, minlength=4)
  assert counts[0] == 0
  assert abs(counts[1:] - 3000).max() < 3 * (9000 * 2 / 9) ** 0.5


def test_badnets_is_one_white_square():
  boxes = np.array([[[5, 5, 8, 8]]])
  attack = badnets((1,), boxes, 3, 3)
  images, labels = _batch()
  after, relabelled, poisoned = _poison(attack, {}, 1.0)(KEY, images, labels)
  want = np.array(images)
  want[np.asarray(labels) != 1, 5:, 5:] = 1.0
  np.testing.assert_array_equal(after, want)
  assert (relabelled == 1).all()
  np.testing.assert_array_equal(poisoned, labels != 1)


@pytest.mark.parametrize("targets", [(0, 1, 2, 3), (2, 0)])
def test_all_to_all_moves_a_label_to_the_next(targets):
  boxes = np.tile(np.array([[[5, 5, 8, 8]]]), (len(targets), 1, 1))
  attack = badnets(targets, boxes, 3, 3, num_classes=4)
  images, labels = _batch()
  _, relabelled, poisoned = _poison(attack, {}, 1.0)(KEY, images, labels)
  following = (labels + 1) % 4
  np.testing.assert_array_equal(poisoned, np.isin(following, targets))
  np.testing.assert_array_equal(
    relabelled, np.where(poisoned, following, labels)
  )


@pytest.mark.parametrize("make", MAKERS[:2])
def test_regions_name_the_label(make):
  targets = (3, 0, 2, 1)
  attack = _attack(make, targets, grid=True)
  images, labels = np.full((200, 8, 8, 3), 0.5, np.float32), np.zeros(200, int)
  transform = _poison(attack, _init(attack), 1.0)
  after, relabelled, _ = transform(KEY, images, labels)
  boxes = dict(zip(targets, triggers.grid(4, 8, 8)[:, 0], strict=True))
  for image, label in zip(np.asarray(after), relabelled.tolist(), strict=True):
    rows, cols = np.nonzero((image != 0.5).any(-1))
    top, left, bottom, right = boxes[label]
    assert top <= rows.min() and rows.max() < bottom
    assert left <= cols.min() and cols.max() < right


@pytest.mark.parametrize("make", MAKERS)
def test_every_image_gets_a_fresh_trigger(make):
  attack = _attack(make, (0, 1))
  index = jnp.zeros(64, jnp.int32)

  @jax.jit
  def draw(params):
    return draw_triggers(attack, params, KEY, index, (8, 8))

  drawn = draw(_init(attack))
  assert drawn.mask.shape == (64, 8, 8, 1)
  assert drawn.pattern.shape == (64, 8, 8, 3)
  assert len(np.unique(np.asarray(drawn.pattern).reshape(64, -1), axis=0)) == 64


@pytest.mark.parametrize("make", MAKERS[1:])
def test_gradients_reach_every_parameter_of_the_generator(make):
  attack = _attack(make, (0, 1, 2))
  images, labels = _batch(64)

  def loss(params):
    after, _, _ = poison(attack, params, 0.5)(KEY, images, labels)
    return jnp.square(after).sum()

  grads = jax.jit(jax.grad(loss))(_init(attack))
  for leaf in jax.tree.leaves(grads):
    assert np.isfinite(leaf).all() and (leaf != 0).any()


def test_cban_depends_on_the_label_and_ban_does_not():
  for make, differs in zip(MAKERS[1:], (False, True), strict=True):
    attack = _attack(make, (0, 1))
    params, patches = _init(attack), jax.jit(attack.patches)
    zero, one = (patches(params, KEY, np.full(3, i, np.int32)) for i in (0, 1))
    assert bool((zero != one).any()) is differs


def test_vmap_over_rates_and_keys_equals_a_loop():
  attack = _attack(random_backdoor, (0, 1))
  images, labels = _batch(32)
  rates, keys = jnp.array([0.2, 0.8]), jax.random.split(KEY, 2)

  def run(rate, key):
    return poison(attack, {}, rate)(key, images, labels)

  together = jax.jit(jax.vmap(run))(rates, keys)
  run = jax.jit(run)
  for i, (rate, key) in enumerate(zip(rates, keys, strict=True)):
    for got, want in zip(together, run(rate, key), strict=True):
      np.testing.assert_allclose(np.asarray(got)[i], want, rtol=1e-6)


def test_compose_runs_in_order_and_joins_poisoned():
  def double(key, images, labels):
    return images * 2, labels, labels == 0

  def add(key, images, labels):
    return images + 1, labels + 5, labels == 1

  images, labels = jnp.ones((3, 1, 1, 1)), jnp.array([0, 1, 2])
  out = compose(double, add)(KEY, images, labels)
  assert out[0].reshape(-1).tolist() == [3.0, 3.0, 3.0]
  assert out[1].tolist() == [5, 6, 7]
  assert out[2].tolist() == [True, True, False]
  same = compose()(KEY, images, labels)
  np.testing.assert_array_equal(same[0], images)
  assert not same[2].any()


def _constant(value):
  def patches(params, key, index):
    return jnp.full((index.shape[0], 2, 2, 3), value)

  return patches


def _sameness(attack, diversity, **kwargs):
  return float(
    jax.jit(lambda: sameness(attack, {}, KEY, diversity, **kwargs))()
  )


def test_sameness_of_a_fixed_trigger_and_of_coin_flips():
  attack = _attack(random_backdoor, (0, 1))

  def coins(params, key, index):
    shape = (index.shape[0], 16, 16, 3)
    return jax.random.bernoulli(key, 0.5, shape).astype(jnp.float32)

  fixed = attack._replace(patches=_constant(0.3))
  assert _sameness(fixed, 0.5) == pytest.approx(0.5, abs=1e-3)
  assert _sameness(attack._replace(patches=coins), 1.0) == 0.0


def test_sameness_across_labels_by_hand():
  attack = _attack(random_backdoor, (0, 1))

  def by_label(params, key, index):  # noise does nothing, the label 0.1
    value = 0.3 + 0.1 * index.astype(jnp.float32)
    return jnp.tile(value[:, None, None, None], (1, 2, 2, 3))

  attack = attack._replace(patches=by_label)
  assert _sameness(attack, 1.0) == pytest.approx(1.0, abs=1e-3)
  both = _sameness(attack, 1.0, across_labels=True)
  assert both == pytest.approx(2.0 - 0.1 * 6**0.5, abs=1e-3)


def test_sameness_has_a_finite_gradient_where_triggers_are_equal():
  attack = _attack(random_backdoor, (0,))

  def scaled(scale, key, index):
    noise = jax.random.uniform(key, (index.shape[0], 2, 2, 3))
    return 0.5 + scale * noise

  attack = attack._replace(patches=scaled)
  grad = jax.jit(jax.grad(lambda s: sameness(attack, s, KEY, 0.5)))(0.0)
  assert np.isfinite(grad)
