"""The contract of all attacks, and of two that are defined for the tests."""

import dataclasses
import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_cases import (
  CLASSES,
  KEY,
  METHODS,
  SHAPE,
  SMALL,
  clean_batch,
  compile_poison,
  init,
  labels_and_roles,
  make,
  num_targets,
)

from bdjax import attacks, data, settings, sharding
from bdjax.attacks import ATTACKS, poison_batch, poison_dataset
from bdjax.attacks.base import MODES, PreparationContext
from bdjax.attacks.poisoning import trigger_all
from bdjax.attacks.settings import PatchSettings
from bdjax.batch import CLEAN, COVER, POISONED
from bdjax.errors import UserError

RATE = 0.25
POISONS_DATASET = [n for n, m in METHODS.items() if "dataset" in m.modes]

published = pytest.mark.parametrize("name", ATTACKS)
every_method = pytest.mark.parametrize("name", METHODS)
dataset_method = pytest.mark.parametrize("name", POISONS_DATASET)


@functools.cache
def _attack(name):
  attack = make(name)
  return attack, init(attack)


@functools.cache
def _compiled(name):
  return compile_poison(_attack(name)[0])


@functools.cache
def _poisoned(name):
  """Poison one batch with each attack once: the clean batch and the other."""
  batch = clean_batch()
  out = _compiled(name)(_attack(name)[1], KEY, batch, RATE)
  return batch, out.batch


@published
def test_a_method_says_what_it_is(name):
  method = ATTACKS[name]
  assert method.name == name
  assert re.match(r"[A-Z].* (19|20)\d\d, \w", method.citation)
  assert method.modes and set(method.modes) <= set(MODES)
  module = sys.modules[method.make.__module__]
  assert "References:" in method.make.__doc__
  assert "Raises:" in method.make.__doc__
  assert module.METHOD is method
  # A user imports the maker and the settings from the package.
  assert getattr(attacks, method.make.__name__) is method.make
  assert {method.make.__name__, method.settings.__name__} <= set(
    attacks.__all__
  )
  for scores in method.reported.values():
    assert all(0 < value < 1 for value in scores.values())


@every_method
@pytest.mark.parametrize("dataset", [*data.NAMES, "mine.npz"])
def test_default_settings_are_in_range_and_enough(name, dataset):
  method = METHODS[name]
  given = method.settings()
  filled = given.filled(dataset)
  for values in (given, filled):
    settings.check(values)
    hash(values)  # frozen
  # None: by the method's mode, or that there is no picture.
  missing = {k for k, v in vars(filled).items() if v is None}
  assert missing <= {"poison", "trigger", "class_rate"} | (
    {"trigger_size"} if name == "blended" else set()
  )
  for field in dataclasses.fields(method.settings):
    assert re.match(r"[A-Z].*\.$", settings.help_text(field)), field.name
  shape, classes = (32, 32, 3), 10
  if dataset in data.SPECS:
    shape = data.SPECS[dataset].shape
    classes = len(data.SPECS[dataset].class_names)
  attack = method.make(filled, shape, classes)
  assert attack.targets.dtype == jnp.int32
  assert len(np.unique(attack.targets)) == num_targets(attack)


@every_method
def test_filling_keeps_what_is_given(name):
  given = METHODS[name].settings(
    target_labels="2", poison_rate=0.07, eval_draws=3
  )
  filled = given.filled("digits")
  assert (filled.target_labels, filled.poison_rate) == ("2", 0.07)
  assert filled.eval_draws == 3
  assert filled.filled("cifar10") == filled


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, which",
  [
    (name, which)
    for name in METHODS
    for which in ("apply", "apply_test", "cover")
    if getattr(make(name), which) is not None
  ],
)
def test_triggered_images_under_jit_and_vmap(name, which):
  attack, variables = _attack(name)
  apply = getattr(attack, which)
  images = np.stack([clean_batch(8).images, clean_batch(8).images[::-1]])
  index = np.arange(8, dtype=np.int32) % num_targets(attack)
  keys = jax.random.split(KEY)
  first = np.asarray(jax.jit(apply)(variables, keys[0], images[0], index))
  assert first.shape == images[0].shape and first.dtype == np.float32
  assert (first != images[0]).any()
  run = jax.jit(jax.vmap(apply, (None, 0, 0, None)))
  both = np.asarray(run(variables, keys, images, index))
  assert both.min() >= 0.0 and both.max() <= 1.0
  np.testing.assert_allclose(both[0], first, rtol=1e-4, atol=1e-5)


@every_method
def test_roles_say_what_was_done_to_each_image(name):
  attack, _ = _attack(name)
  batch, out = _poisoned(name)
  assert out.images.dtype == np.float32 and out.images.shape == (64, *SHAPE)
  assert out.labels.dtype == np.int32 and out.roles.dtype == np.int8
  assert set(np.unique(out.roles)) <= {CLEAN, POISONED, COVER}
  assert out.images.min() >= 0.0 and out.images.max() <= 1.0
  poisoned, clean = out.roles == POISONED, out.roles == CLEAN
  assert poisoned.any() and clean.any()
  assert (out.roles == COVER).any() == (attack.cover is not None)
  np.testing.assert_array_equal(out.images[clean], batch.images[clean])
  np.testing.assert_array_equal(out.labels[~poisoned], batch.labels[~poisoned])
  targets = np.asarray(attack.targets)
  assert np.isin(out.labels[poisoned], targets).all()
  same = out.labels[poisoned] == batch.labels[poisoned]
  assert same.all() if attack.clean_label else not same.any()
  assert _changed(out.images, batch.images)[~clean].all()
  covers = batch.labels[out.roles == COVER]
  assert np.asarray(attack.coverable(jnp.asarray(covers))).all()


def _changed(after, before):
  """Tell which images differ; of one gray, which warps leave alone, True."""
  plain = before.max((1, 2, 3)) == before.min((1, 2, 3))
  return plain | (after != before).any((1, 2, 3))


@every_method
def test_only_images_that_may_be_poisoned_are(name):
  attack, _ = _attack(name)
  batch, out = _poisoned(name)
  allowed = np.asarray(attack.poisonable(jnp.asarray(batch.labels)))
  targets = np.asarray(attack.targets)
  for row in np.flatnonzero(out.roles == POISONED):
    assert allowed[row, targets == out.labels[row]].all()


@every_method
def test_the_rates_are_those_asked_for(name):
  attack, variables = _attack(name)
  batch = jax.tree.map(jnp.asarray, clean_batch())
  keys = jax.random.split(KEY, 200)

  def counts(key):
    roles = poison_batch(attack, variables, key, batch, 0.1).batch.roles
    return jnp.sum(roles == POISONED), jnp.sum(roles == COVER)

  poisoned, covers = map(np.asarray, jax.jit(jax.vmap(counts))(keys))
  eligible = float(attack.poisonable(batch.labels).any(1).mean())
  coverable = float(attack.coverable(batch.labels).mean())
  cover_rate = attack.cover_rate if attack.cover is not None else 0.0
  if attack.counts_rows:  # 6.4 rows are 6 or 7
    eligible = coverable = 1.0
    assert set(poisoned.tolist()) == {6, 7}
    expected = 64 * cover_rate
    assert set(covers.tolist()) <= {
      int(np.floor(expected + 1e-6)), int(np.ceil(expected - 1e-6))
    }  # fmt: skip
  # Four standard deviations of 200 batches of 64, if they were independent.
  for values, rate in (
    (poisoned, 0.1 * eligible),
    (covers, cover_rate * coverable),
  ):
    spread = 4 * (rate * (1 - rate) / (200 * 64)) ** 0.5
    assert abs(values.mean() / 64 - rate) <= spread


@every_method
def test_rate_zero_is_the_identity(name):
  _, variables = _attack(name)
  batch = clean_batch()
  out = _compiled(name)(variables, KEY, batch, 0.0)
  for got, expected in zip(out.batch, batch, strict=True):
    np.testing.assert_array_equal(got, expected)
  jax.tree.map(np.testing.assert_array_equal, out.state, variables.state)
  assert out.loss is None or float(out.loss) == 0.0


@every_method
def test_the_key_alone_decides(name):
  _, variables = _attack(name)
  batch, out = _poisoned(name)
  again, other = (
    _compiled(name)(variables, key, batch, RATE).batch
    for key in (KEY, jax.random.key(8))
  )
  jax.tree.map(np.testing.assert_array_equal, again, out)
  assert (other.roles != out.roles).any()


@every_method
def test_gradients_reach_what_is_trained(name):
  attack, variables = _attack(name)
  batch = jax.tree.map(jnp.asarray, clean_batch(16))

  @jax.jit
  @jax.grad
  def grad(params):
    held = variables._replace(params=params)
    out = poison_batch(attack, held, KEY, batch, 0.5)
    loss = jnp.square(out.batch.images).sum()
    if attack.loss is not None:
      loss += attack.loss(held, KEY, batch.images)
    return loss if out.loss is None else loss + out.loss

  grads = jax.tree.leaves(grad(variables.params))
  trained = ("ban", "cban", "input_aware", "toy_general")
  assert bool(grads) == (name in trained)
  for leaf in grads:
    assert np.isfinite(leaf).all() and np.any(leaf)
  optimizer = attack.optimizer(10)
  with jax.numpy_dtype_promotion("standard"):
    updates, _ = optimizer.update(
      variables.params, optimizer.init(variables.params)
    )
  assert jax.tree.structure(updates) == jax.tree.structure(variables.params)


@every_method
def test_the_stage_before_training_runs_on_few_images(name):
  attack, variables = _attack(name)
  assert (attack.prepare is not None) == (name == "input_aware")
  if attack.prepare is None:
    return
  batch = clean_batch(12)
  images = jnp.asarray(np.round(batch.images * 255), jnp.uint8)
  mesh = sharding.make_mesh(jax.devices()[:1])
  context = PreparationContext(images, jnp.asarray(batch.labels), mesh)
  out, again = (attack.prepare(KEY, variables, context) for _ in range(2))
  assert jax.tree.structure(out) == jax.tree.structure(variables)
  for leaf in jax.tree.leaves(out):
    assert np.isfinite(leaf).all()
  jax.tree.map(np.testing.assert_array_equal, out, again)
  moved = jax.tree.map(lambda a, b: (a != b).any(), out.state, variables.state)
  assert any(jax.tree.leaves(moved))


@every_method
def test_triggers_that_can_be_shown(name):
  attack, variables = _attack(name)
  if attack.draw_trigger is None:
    assert attack.patch is None
    return
  images = clean_batch(8).images
  index = np.arange(8, dtype=np.int32) % num_targets(attack)
  mask, pattern = jax.jit(attack.draw_trigger)(variables, KEY, images, index)
  assert mask.shape == (*pattern.shape[:3], 1) and pattern.shape[0] == 8
  assert pattern.shape[3] == SHAPE[2]
  for array in (mask, pattern):
    assert array.dtype == jnp.float32
    assert array.min() >= 0 and array.max() <= 1


@every_method
def test_every_image_that_may_be_has_a_target_at_test_time(name):
  attack, variables = _attack(name)
  batch = clean_batch(16)

  @jax.jit
  def run(images, labels):
    return trigger_all(attack, variables, KEY, images, labels)[1:]

  targets, counts = jax.device_get(run(batch.images, batch.labels))
  eligible = np.asarray(attack.eligible(jnp.asarray(batch.labels)))
  np.testing.assert_array_equal(counts, eligible.any(1))
  np.testing.assert_array_equal(targets[~counts], batch.labels[~counts])
  assert (targets != batch.labels)[counts].all()  # also of a clean label
  assert np.isin(targets[counts], np.asarray(attack.targets)).all()


def _uint8(count=101):
  batch = clean_batch(count)
  return np.round(batch.images * 255).astype(np.uint8), batch.labels


@functools.cache
def _poisoned_set(name):
  attack, variables = _attack(name)
  return poison_dataset(attack, variables, KEY, *_uint8(), 0.1)


@dataset_method
def test_a_poisoned_set_has_exactly_the_rate(name):
  attack, _ = _attack(name)
  images, labels = _uint8()
  before = images.copy()
  out = _poisoned_set(name)
  np.testing.assert_array_equal(images, before)  # a copy
  assert (out.images.dtype, out.labels.dtype) == (np.uint8, np.int32)
  assert (out.roles.dtype, out.targets.dtype) == (np.int8, np.int32)
  poisoned, covers = out.roles == POISONED, out.roles == COVER
  assert poisoned.sum() == 10
  cover_rate = attack.cover_rate if attack.cover is not None else 0.0
  assert covers.sum() == round(cover_rate * 101)
  clean = ~poisoned & ~covers
  np.testing.assert_array_equal(out.images[clean], images[clean])
  np.testing.assert_array_equal(out.labels[~poisoned], labels[~poisoned])
  assert (out.targets[clean] == -1).all()
  targets = np.asarray(attack.targets)
  assert np.isin(out.targets[~clean], targets).all()
  np.testing.assert_array_equal(out.labels[poisoned], out.targets[poisoned])
  allowed = np.asarray(attack.poisonable(jnp.asarray(labels)))
  for row in np.flatnonzero(poisoned):
    assert allowed[row, targets == out.labels[row]].all()
  assert np.asarray(attack.coverable(jnp.asarray(labels)))[covers].all()
  assert _changed(out.images, images)[~clean].all()


@dataset_method
def test_the_choice_of_images_depends_on_the_key_alone(name):
  attack, variables = _attack(name)
  images, labels = _uint8()
  out = _poisoned_set(name)
  again = poison_dataset(attack, variables, KEY, images, labels, 0.1)
  for left, right in zip(out, again, strict=True):
    np.testing.assert_array_equal(left, right)
  other = poison_dataset(attack, variables, KEY, 255 - images, labels, 0.1)
  np.testing.assert_array_equal(other.roles, out.roles)
  np.testing.assert_array_equal(other.targets, out.targets)
  key = jax.random.key(8)
  other = poison_dataset(attack, variables, key, images, labels, 0.1)
  assert (other.roles != out.roles).any()


@dataset_method
def test_a_poisoned_set_at_the_ends_of_the_rate(name):
  attack, variables = _attack(name)
  images, labels = _uint8()
  none = poison_dataset(attack, variables, KEY, images, labels, 0.0)
  np.testing.assert_array_equal(none.images, images)
  np.testing.assert_array_equal(none.labels, labels)
  assert not none.roles.any()
  with pytest.raises(UserError, match="poison_rate must be at most 0") as error:
    poison_dataset(attack, variables, KEY, images, labels, 1.0)
  assert "\n" not in str(error.value)


@every_method
def test_all_to_all_moves_a_label_to_the_next(name):
  attack = make(name, all_to_all=True)
  assert attack.targets.tolist() == [0, 1, 2, 3]
  labels = jnp.arange(4, dtype=jnp.int32)
  eligible = np.asarray(attack.eligible(labels))
  np.testing.assert_array_equal(eligible, np.roll(np.eye(4, dtype=bool), 1, 1))
  batch = clean_batch()
  relabelled, roles = labels_and_roles(attack, 0.5, batch)
  poisoned = roles == POISONED
  assert poisoned.any()
  moved = batch.labels if attack.clean_label else (batch.labels + 1) % 4
  np.testing.assert_array_equal(
    relabelled, np.where(poisoned, moved, batch.labels)
  )


@every_method
def test_several_targets(name):
  if name == "input_aware":
    with pytest.raises(UserError, match="target_labels must be one label"):
      make(name, target_labels="2,0")
    return
  attack = make(name, target_labels="2,0")
  assert attack.targets.tolist() == [2, 0]
  batch = clean_batch()
  relabelled, roles = labels_and_roles(attack, 0.5, batch)
  poisoned = roles == POISONED
  assert set(relabelled[poisoned].tolist()) == {0, 2}
  same = relabelled[poisoned] == batch.labels[poisoned]
  assert same.all() if attack.clean_label else not same.any()


BAD = [
  ({"poison_rate": 1.5}, "poison_rate must be at least 0 and at most 1"),
  ({"poison_rate": -0.1}, "poison_rate must be"),
  ({"backdoor_weight": -1.0}, "backdoor_weight must be at least 0"),
  ({"eval_draws": 0}, "eval_draws must be at least 1"),
  ({"poison": "once"}, "poison must be one of dataset, batch"),
  ({"target_labels": "99"}, "target_labels must be from 0 to 3"),
  ({"target_labels": "-1"}, "target_labels must be from 0 to 3"),
  ({"target_labels": "1,1"}, "target_labels must differ"),
  ({"target_labels": "one"}, "target_labels must be all, or numbers"),
  (
    {"target_labels": "0", "all_to_all": True},
    "target_labels must be left out with all_to_all",
  ),
]
BAD_PATCHES = [
  ({"trigger_size": 0}, "trigger_size must be"),
  ({"trigger_size": 11}, "trigger_size must be"),  # wider than the image
  ({"trigger_size": 3, "locations": "8:8"}, "locations must leave room"),
  ({"trigger_size": 3, "locations": "middle"}, "locations must be anywhere"),
]


@pytest.mark.parametrize(
  "name, changes, words",
  [(n, *bad) for n in METHODS for bad in BAD]
  + [
    (n, *bad)
    for n in METHODS
    for bad in BAD_PATCHES
    if issubclass(METHODS[n].settings, PatchSettings)
    # cBaN's triggers lie anywhere, Blended's are whole images.
    and not (n in ("blended", "cban") and "locations" in bad[0])
  ],
)
def test_bad_settings_are_one_line(name, changes, words):
  method = METHODS[name]
  given = method.settings(**SMALL.get(name, {}) | changes)
  with pytest.raises(UserError, match=words) as error:
    settings.check(given)
    filled = given.filled("digits")
    settings.check(filled)
    method.make(filled, SHAPE, CLASSES)
  assert "\n" not in str(error.value) and "--" not in str(error.value)
