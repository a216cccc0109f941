"""Tests of one training step, by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_training import KEY, SHAPE, first, make_data, make_parts, setup

from bdjax import training
from bdjax.attacks import Attack, TriggerVariables
from bdjax.attacks.base import JointPoison
from bdjax.attacks.poisoning import poison_batch
from bdjax.batch import CLEAN, COVER, POISONED
from bdjax.models import Weights

BATCH = first(make_data())
ROLES = jnp.array([CLEAN, POISONED, COVER, CLEAN] * 4, jnp.int8)


def _log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def _forward(carry, images):
  model, *_ = make_parts()
  run = jax.jit(functools.partial(model.apply, train=True))
  return np.asarray(run(*carry.classifier.weights, images)[0])


def test_first_step_by_hand():
  model, *_ = make_parts()
  step, _, create, *_ = setup(rate=0.0)
  images, labels, _ = BATCH
  before = create()
  state = before.classifier
  logits = _forward(before, images)
  after, metrics = step(before, KEY, BATCH)
  log_p = _log_softmax(logits)
  expected = -np.mean([log_p[i, y] for i, y in enumerate(labels)])
  assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
  assert int(metrics["clean"]) == 16 and int(metrics["poisoned"]) == 0
  assert int(metrics["clean_correct"]) == int(
    (logits.argmax(1) == np.asarray(labels)).sum()
  )
  assert int(after.classifier.step) == int(after.generator.step) == 1

  def loss(params):
    out, _ = model.apply(params, state.batch_stats, images, train=True)
    out = jax.nn.log_softmax(out)
    return -jnp.take_along_axis(out, labels[:, None], 1).mean()

  # Nesterov's first step is 1 + momentum times the gradient.
  grads = jax.jit(jax.grad(loss))(state.params)
  old, new, grads = jax.device_get(
    [tree["logits"] for tree in (state.params, after.classifier.params, grads)]
  )
  bias = old["bias"] - 0.19 * grads["bias"]
  np.testing.assert_allclose(new["bias"], bias, rtol=1e-4, atol=1e-6)
  decayed = grads["kernel"] + 1e-3 * old["kernel"]
  kernel = old["kernel"] - 0.19 * decayed
  np.testing.assert_allclose(new["kernel"], kernel, rtol=1e-4, atol=1e-6)


def _metrics(transform, **kwargs):
  """Return a step's metrics; no gradient is computed."""
  model, _, optimizers = make_parts()
  create = setup()[2]

  @jax.jit
  def run(carry, weight):
    step = training.make_train_step(
      model, optimizers, transform, backdoor_weight=weight, **kwargs
    )
    return step(carry, KEY, BATCH)[1]

  return lambda weight=1.0: jax.device_get(run(create(), weight))


def _with_roles(key, batch):
  del key
  return batch._replace(roles=ROLES)


def test_loss_and_counts_of_each_role_by_hand():
  logits = _forward(setup()[2](), BATCH.images)
  labels, roles = np.asarray(BATCH.labels), np.asarray(ROLES)
  losses = -_log_softmax(logits)[np.arange(16), labels]
  correct = logits.argmax(1) == labels
  run = _metrics(training.plain(_with_roles))
  for weight in (0.0, 1.0, 3.0):
    metrics = run(weight)
    # Covers are weighed like clean images; all over the batch size.
    weighed = losses * np.where(roles == POISONED, weight, 1.0)
    assert metrics["loss"] == pytest.approx(weighed.mean(), rel=1e-5)
    for name, role in (("clean", 0), ("poisoned", 1), ("cover", 2)):
      assert metrics[name] == (roles == role).sum()
      assert metrics[f"{name}_correct"] == correct[roles == role].sum()
    assert set(metrics) == {
      "loss", "clean", "clean_correct", "poisoned", "poisoned_correct",
      "cover", "cover_correct",
    }  # fmt: skip


def test_label_smoothing_by_hand():
  log_p = _log_softmax(_forward(setup()[2](), BATCH.images))
  target = 0.8 * np.eye(2)[np.asarray(BATCH.labels)] + 0.1
  metrics = _metrics(training.plain(), label_smoothing=0.2)()
  expected = -(target * log_p).sum(1).mean()
  assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_weight_of_the_poisoned_loss():
  _, attack, _ = make_parts()
  run = _metrics(training.poisoning(attack, None, 0.5))
  clean, plain, triple = (run(weight)["loss"] for weight in (0.0, 1.0, 3.0))
  assert triple - clean == pytest.approx(3 * (plain - clean), rel=1e-4)


def test_an_attack_s_loss_is_added_and_leaves_the_batches_alone():
  _, attack, _ = make_parts()
  step, _, create, *_ = setup()
  seen = []

  def attack_loss(variables, key, images):
    seen.append((set(variables.params), images.shape))
    return jnp.float32(2.5)

  transform = training.poisoning(attack, None, 0.5)
  _, expected = step(create(), KEY, BATCH)
  got = _metrics(transform, attack_loss=attack_loss)()
  assert got["loss"] - float(expected["loss"]) == pytest.approx(2.5, rel=1e-5)
  assert got["poisoned"] == int(expected["poisoned"]) > 0
  assert got["poisoned_correct"] == int(expected["poisoned_correct"])
  params = set(create().generator.params)
  assert seen[0] == (params, (16, *SHAPE)) and params


def _joint(variables, key, images, index, rows, cover_rows, classify):
  """Darken the poisoned rows; count steps; a loss through the classifier."""
  del key, index
  poisoned = images[rows] * jax.nn.sigmoid(variables.params["dark"])
  state = {"steps": variables.state["steps"] + 1}
  loss = classify(poisoned)[:, 0].mean()
  return JointPoison(poisoned, images[cover_rows], state, loss)


def test_a_joint_attack_s_loss_trains_its_generator_and_not_the_classifier():
  model, _, optimizers = make_parts()
  attack = Attack(jnp.array([0]), lambda *args: args[2], joint=_joint)
  variables = TriggerVariables({"dark": jnp.float32(1)}, {"steps": 0})
  weights = Weights(*jax.jit(model.init)(KEY))

  @jax.jit
  def run(carry, weight):
    def joint(*args):
      out = _joint(*args)
      return out._replace(loss=weight * out.loss)

    # backdoor_weight 0: the poisoned rows alone would train nothing.
    transform = training.poisoning(attack._replace(joint=joint), None, 0.5)
    step = training.make_train_step(
      model, optimizers, transform, backdoor_weight=0.0
    )
    return step(carry, KEY, BATCH)

  after = []
  for weight in (0.0, 1.0):
    carry = training.init_carry(optimizers, weights, variables)
    carry, metrics = run(carry, weight)
    assert carry.generator.batch_stats == {"steps": 1}
    after.append((carry, float(metrics["loss"])))
  (without, loss), (added, more) = after
  assert loss != more
  pairs = (jax.tree.leaves(c.classifier.params) for c in (without, added))
  for left, right in zip(*pairs, strict=True):
    np.testing.assert_allclose(left, right, atol=1e-6)
  assert float(without.generator.params["dark"]) == 1.0
  assert float(added.generator.params["dark"]) != 1.0


def _paint(variables, key, images, index):
  """Paint images in a random gray, as `Attack.apply`."""
  del variables, index
  return jnp.zeros_like(images) + jax.random.uniform(key)


PAINT = Attack(jnp.array([0]), _paint)


def test_a_batch_is_augmented_and_then_poisoned():
  def augment(key, batch):
    noise = jax.random.uniform(key, batch.images.shape)
    return batch._replace(images=(batch.images + noise) / 2)

  variables = TriggerVariables({}, {})
  transform = training.poisoning(PAINT, augment, 0.9)
  got = transform(variables, KEY, BATCH, None).batch
  batch = augment(jax.random.fold_in(KEY, 0), BATCH)
  key = jax.random.fold_in(KEY, 1)
  expected = poison_batch(PAINT, variables, key, batch, 0.9).batch
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  assert (got.roles == POISONED).any()
  # Alone, it has the first of both keys.
  got = training.poisoning(PAINT, None, 0.9)(variables, KEY, BATCH, None).batch
  key = jax.random.fold_in(KEY, 0)
  expected = poison_batch(PAINT, variables, key, BATCH, 0.9).batch
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_rate_and_targets_may_be_a_step_s_setting():
  variables = TriggerVariables({}, {})
  run = jax.jit(training.poisoning(PAINT), static_argnums=3)
  none = run(variables, KEY, BATCH, None, jnp.float32(0), PAINT.targets)
  assert not none.batch.roles.any()
  one = run(variables, KEY, BATCH, None, jnp.float32(1), jnp.array([1]))
  assert (one.batch.labels == 1).all()
  np.testing.assert_array_equal(one.batch.roles == POISONED, BATCH.labels == 0)
  assert run._cache_size() == 1  # one program for both


def test_a_plain_step_leaves_the_batch_and_the_state_alone():
  variables = TriggerVariables({}, {"pattern": jnp.ones(3)})
  out = training.plain()(variables, KEY, BATCH, None, "a setting")
  assert out.batch is BATCH and out.state is variables.state
  assert out.loss is None
  out = training.plain(_with_roles)(variables, KEY, BATCH, None)
  np.testing.assert_array_equal(out.batch.roles, ROLES)


def test_the_model_is_prepared_with_images_where_there_are_some():
  model, attack, optimizers = make_parts()

  def prepare(params, batch_stats, images):
    del params
    return batch_stats | {"mean": images.mean()}

  model = model._replace(prepare=prepare)
  data = make_data()
  carry = training.init(KEY, model, attack.init, optimizers, data.images)
  got = float(carry.classifier.batch_stats["mean"])
  assert got == pytest.approx(
    float(data.images.astype(jnp.float32).mean()) / 255
  )
  carry = training.init(KEY, model, attack.init, optimizers)
  assert "mean" not in carry.classifier.batch_stats


def test_the_state_before_the_first_step():
  model, attack, optimizers = make_parts()
  carry = setup()[2]()
  assert int(carry.classifier.step) == int(carry.generator.step) == 0
  model_key, generator_key = jax.random.split(KEY)
  expected = (
    Weights(*jax.jit(model.init)(model_key)),
    jax.jit(attack.init)(generator_key),
  )
  got = carry.classifier.weights, carry.generator.variables
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for left, right in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
    np.testing.assert_allclose(left, right, rtol=1e-6)
  clean = training.init_carry(optimizers, expected[0])
  assert clean.generator.variables == TriggerVariables({}, {})


@pytest.mark.slow
def test_vmap_over_a_population_equals_a_loop():
  model, attack, optimizers = make_parts()
  step, *_ = setup()
  keys = jax.random.split(KEY, 2)
  create = functools.partial(
    training.init,
    model=model,
    attack_init=attack.init,
    optimizers=optimizers,
  )
  population = jax.jit(jax.vmap(step, (0, 0, None)))
  together, metrics = population(jax.jit(jax.vmap(create))(keys), keys, BATCH)
  create, together = jax.jit(create), jax.device_get(together)
  for i, key in enumerate(keys):
    carry, expected = step(create(key), key, BATCH)
    assert float(metrics["loss"][i]) == pytest.approx(
      float(expected["loss"]), rel=1e-5
    )
    for got, leaf in zip(
      jax.tree.leaves(together), jax.tree.leaves(carry), strict=True
    ):
      np.testing.assert_allclose(got[i], leaf, rtol=1e-3, atol=1e-5)
