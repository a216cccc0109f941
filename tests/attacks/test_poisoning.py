"""Tests of poisoning batches, by hand-made attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_cases import (
  KEY,
  NO_VARIABLES,
  WHITE,
  clean_batch,
  compile_poison,
  gray,
  init,
  make,
)

from bdjax.attacks.base import Attack, JointPoison, TriggerVariables
from bdjax.attacks.poisoning import (
  choose_targets,
  poison_batch,
  trigger_all,
)
from bdjax.batch import COVER, POISONED

PATCHES = ("random_backdoor", "ban", "cban")


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_covers_its_own_pixels_and_nothing_else(name):
  attack = make(name, target_labels="3,1", trigger_size=2)
  batch = clean_batch()
  out = compile_poison(attack)(init(attack), KEY, batch, 0.5).batch
  poisoned = out.roles == POISONED
  changed = (out.images != batch.images).any(-1).sum((1, 2))
  assert (changed[poisoned] == 4).all() and not changed[~poisoned].any()


def test_the_rate_counts_eligible_images():
  batch = clean_batch(8000)
  roles = compile_poison(WHITE)(NO_VARIABLES, KEY, batch, 0.25).batch.roles
  assert not roles[batch.labels == 2].any()
  # Binomial: three standard deviations of 6000 draws at 0.25 are 0.017.
  assert abs(float(roles[batch.labels != 2].mean()) - 0.25) < 0.017


def test_at_rate_one_all_are_poisoned():
  attack = WHITE._replace(targets=jnp.array([0, 1]))
  roles = compile_poison(attack)(NO_VARIABLES, KEY, clean_batch(), 1.0)
  assert (roles.batch.roles == POISONED).all()


def test_targets_are_uniform_over_the_others():
  labels = jnp.zeros(9000, jnp.int32)
  targets = jnp.array([0, 1, 2, 3])
  index, eligible = choose_targets(KEY, targets[None] != labels[:, None])
  assert eligible.all()
  counts = np.bincount(index, minlength=4)
  assert counts[0] == 0
  assert abs(counts[1:] - 3000).max() < 3 * (9000 * 2 / 9) ** 0.5


def test_sources_and_covers_by_hand():
  # To 0 from 1, to 2 from 3: images of 0 and 2 stay clean, or are covers.
  sources = (
    jnp.zeros((2, 4), bool).at[jnp.arange(2), jnp.array([1, 3])].set(True)
  )
  attack = Attack(
    jnp.array([0, 2]),
    gray(1.0),
    sources=sources,
    cover=gray(0.5),
    cover_rate=1.0,
    cover_sources=jnp.array([True, True, False, False]),
  )
  batch = clean_batch(8)
  out = compile_poison(attack)(NO_VARIABLES, KEY, batch, 1.0).batch
  assert out.roles.tolist() == [COVER, POISONED, 0, POISONED] * 2
  assert out.labels.tolist() == [0, 0, 2, 2] * 2
  assert (out.images[1::4] == 1).all() and (out.images[::4] == 0.5).all()


def test_clean_labels_are_poisoned_in_the_target_class_alone():
  attack = WHITE._replace(clean_label=True)
  batch = clean_batch(32)
  out = compile_poison(attack)(NO_VARIABLES, KEY, batch, 1.0).batch
  np.testing.assert_array_equal(out.roles == POISONED, batch.labels == 2)
  np.testing.assert_array_equal(out.labels, batch.labels)
  # At test time it is the others that are led to the target.
  _, targets, counts = jax.jit(
    lambda *args: trigger_all(attack, NO_VARIABLES, KEY, *args)
  )(batch.images, batch.labels)
  np.testing.assert_array_equal(counts, batch.labels != 2)
  assert (targets == 2).all()


def test_at_test_time_the_trigger_may_be_another():
  attack = WHITE._replace(apply_test=gray(0.75))
  batch = clean_batch(8)
  images, targets, counts = trigger_all(
    attack, NO_VARIABLES, KEY, jnp.asarray(batch.images),
    jnp.asarray(batch.labels),
  )  # fmt: skip
  assert counts.tolist() == [True, True, False, True] * 2
  assert targets.tolist() == [2] * 8
  assert (images[counts] == 0.75).all()
  np.testing.assert_array_equal(images[2::4], batch.images[2::4])


def _spied(seen, value):
  def apply(variables, key, images, index):
    seen.append((images.shape[0], index.shape[0]))
    return gray(value)(variables, key, images, index)

  return apply


def test_only_the_rows_to_be_triggered_go_through_an_attack_of_exact_rows():
  poisoned, covers = [], []
  attack = Attack(
    jnp.array([0]),
    _spied(poisoned, 1.0),
    cover=_spied(covers, 0.5),
    cover_rate=0.25,
    exact_rows=True,
  )
  batch = clean_batch(32)
  out = compile_poison(attack)(NO_VARIABLES, KEY, batch, 0.1).batch
  assert poisoned == [(4, 4)] and covers == [(8, 8)]  # 3.2 rows: 3 or 4
  assert (out.roles == POISONED).sum() in (3, 4)
  assert (out.roles == COVER).sum() == 8
  assert (out.images[out.roles == POISONED] == 1.0).all()
  assert (out.images[out.roles == COVER] == 0.5).all()


def test_exact_rows_stop_at_what_is_eligible():
  attack = WHITE._replace(exact_rows=True)
  batch = clean_batch(16)
  out = compile_poison(attack)(NO_VARIABLES, KEY, batch, 1.0).batch
  np.testing.assert_array_equal(out.roles == POISONED, batch.labels != 2)


def test_a_joint_attack_sees_the_batch_and_gives_rows_state_and_loss():
  def joint(variables, key, images, index, rows, cover_rows, classify):
    del key, index
    assert images.shape[0] == 32
    logits = classify(images[rows])
    return JointPoison(
      images[rows] * variables.params["scale"],
      1.0 - images[cover_rows],
      {"steps": variables.state["steps"] + 1},
      logits.sum(),
    )

  attack = WHITE._replace(joint=joint, cover_rate=0.25)
  variables = TriggerVariables({"scale": jnp.float32(0.5)}, {"steps": 3})
  batch = jax.tree.map(jnp.asarray, clean_batch(32))

  def classify(images):
    return jnp.ones((images.shape[0], 4))

  out = poison_batch(attack, variables, KEY, batch, 0.5, classify)
  roles, images = out.batch.roles, np.asarray(batch.images)
  assert out.state == {"steps": 4} and float(out.loss) == 16 * 4
  assert (roles == POISONED).sum() == 16 and (roles == COVER).sum() == 8
  poisoned, covers = (np.asarray(roles == role) for role in (POISONED, COVER))
  np.testing.assert_allclose(
    out.batch.images[poisoned], images[poisoned] / 2, rtol=1e-6
  )
  np.testing.assert_allclose(
    out.batch.images[covers], 1 - images[covers], rtol=1e-6
  )


def test_vmap_over_rates_and_keys_equals_a_loop():
  attack = make("random_backdoor", target_labels="0,1", trigger_size=2)
  batch = clean_batch(32)
  rates, keys = jnp.array([0.2, 0.8]), jax.random.split(KEY, 2)

  def run(rate, key):
    return poison_batch(attack, NO_VARIABLES, key, batch, rate).batch

  together = jax.jit(jax.vmap(run))(rates, keys)
  run = jax.jit(run)
  for i, (rate, key) in enumerate(zip(rates, keys, strict=True)):
    for got, expected in zip(together, run(rate, key), strict=True):
      np.testing.assert_allclose(np.asarray(got)[i], expected, rtol=1e-6)
