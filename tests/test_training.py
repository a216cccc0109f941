"""Tests of training: calls of many steps, epochs, devices, one call."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_generators import small_networks
from toy_training import KEY, SHAPE, make_data, setup

from bdjax import batching, sharding, training
from bdjax.attacks import ATTACKS, Attack, TriggerVariables
from bdjax.attacks.poisoning import trigger_all
from bdjax.batch import Batch
from bdjax.errors import UserError
from bdjax.models import Model, Weights


@pytest.fixture(scope="module")
def data():
  return make_data()


def _fit(call, carry, data, mesh, cut, epochs):
  data = sharding.replicate(mesh, data)
  out = []
  for at, latest, metrics in training.fit(
    call, carry, KEY, data, steps=cut[0], calls=cut[1], epochs=epochs
  ):
    out.append((at, jax.device_get(latest), jax.device_get(metrics)))
  return out


def test_training_learns_and_both_networks_move(data):
  _, call, create, mesh, cut = setup("minivgg", rate=0.3)
  before = jax.device_get(create())
  run = _fit(call, create(), data, mesh, cut, 30)
  _, carry, metrics = run[-1]
  assert metrics["clean_correct"].sum() / metrics["clean"].sum() > 0.9
  assert run[-1][2]["loss"].mean() < run[0][2]["loss"].mean() / 2
  for old, new in zip(before, carry, strict=True):
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), old, new)
    assert all(jax.tree.leaves(moved.params))


def _rows(calls, start=0, each_epoch=None):
  """Return the image numbers that `fit` trains on, a row a call."""
  state = training.TrainState(jnp.int32(start), {}, {}, ())

  def call(carry, key, data, order, part):
    count = 2 * 5  # two steps of five images
    rows = np.asarray(order)[part * count : (part + 1) * count]
    return carry, {"rows": rows, "shown": np.asarray(data.images)}

  return [
    (step, metrics["rows"], metrics["shown"])
    for step, _, metrics in training.fit(
      call,
      training.Carry(state, state),
      KEY,
      Batch(jnp.zeros((33, 1)), jnp.zeros(33), jnp.zeros(33)),
      steps=2,
      calls=calls,
      epochs=2,
      each_epoch=each_epoch,
    )
  ]


def test_an_epoch_is_a_permutation_in_stretches():
  run = _rows(calls=3)
  assert [step for step, *_ in run] == [2, 4, 6, 8, 10, 12]
  epochs = [np.concatenate([r for _, r, _ in run[i : i + 3]]) for i in (0, 3)]
  for rows in epochs:
    assert len(set(rows.tolist())) == 30  # none twice; three are left out
  assert (epochs[0] != epochs[1]).any()


def _count(key, epoch, images):
  """Write the epoch's number, and what its key draws, into the images."""
  noise = jax.random.uniform(key, images.shape)
  return images + epoch.astype(jnp.float32) + noise


@pytest.mark.parametrize("start", [2, 6, 8])
def test_going_on_in_the_middle_of_an_epoch_trains_on_the_same_images(start):
  whole = _rows(3, 0, _count)[start // 2 :]
  for got, expected in zip(_rows(3, start, _count), whole, strict=True):
    assert got[0] == expected[0]
    np.testing.assert_array_equal(got[1], expected[1])
    np.testing.assert_array_equal(got[2], expected[2])


def test_what_an_epoch_shows():
  shown = [images for _, _, images in _rows(3, 0, _count)]
  # The key is the same in each epoch, whose number is what differs.
  np.testing.assert_allclose(shown[3] - shown[0], 1.0, atol=1e-6)
  np.testing.assert_array_equal(shown[2], shown[0])
  assert len(np.unique(shown[0])) == 33


def test_a_call_trains_on_its_own_stretch(data):
  def rows(carry, key, batch):
    return carry, batch._replace(images=batch.images[:, 0, 0, 0])

  mesh = sharding.make_mesh(jax.devices()[:1])
  call = training.compile_steps(rows, 4, 2, mesh)
  order = jax.random.permutation(KEY, 64)
  marked = data._replace(roles=(jnp.arange(64) % 3).astype(jnp.int8))
  for part in (0, 3):
    _, out = call(jnp.float32(0), KEY, marked, order, part)
    stretch = order[part * 8 : part * 8 + 8]
    images = np.asarray(data.images[stretch, 0, 0, 0])
    np.testing.assert_allclose(out.images.reshape(-1) * 255, images, rtol=1e-5)
    np.testing.assert_array_equal(out.labels.reshape(-1), data.labels[stretch])
    np.testing.assert_array_equal(out.roles.reshape(-1), stretch % 3)


def test_every_image_is_seen_once_an_epoch(data):
  def count(carry, key, batch):
    total = batch.images.sum((1, 2, 3)).sum()
    return carry + total, {"loss": total}

  mesh = sharding.make_mesh(jax.devices()[:1])
  call = training.compile_steps(count, 16, 4, mesh)
  order = jax.random.permutation(KEY, 64)
  total, _ = call(jnp.float32(0), KEY, data, order, 0)
  expected = batching.to_float(data.images).sum()
  assert float(total) == pytest.approx(float(expected), rel=1e-5)


def test_stopped_and_resumed_equals_unbroken(data):
  _, call, create, mesh, cut = setup()
  whole = _fit(call, create(), data, mesh, cut, 4)
  middle = sharding.replicate(mesh, whole[1][1])
  rest = _fit(call, middle, data, mesh, cut, 4)
  assert [step for step, _, _ in rest] == [step for step, _, _ in whole[2:]]
  jax.tree.map(np.testing.assert_array_equal, rest[-1][1], whole[-1][1])
  np.testing.assert_array_equal(rest[-1][2]["loss"], whole[-1][2]["loss"])


def test_the_state_is_donated(data):
  _, call, create, mesh, _ = setup()
  carry = create()
  order = jnp.arange(64, dtype=jnp.int32)
  call(carry, KEY, sharding.replicate(mesh, data), order, 0)
  for state in carry:
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("name, rate", [("cnn", 0.5), ("minivgg", 0.3)])
def test_four_devices_equal_one(name, rate, data):
  # Batch normalisation too: its statistics are the whole batch's.
  losses = []
  for devices in (1, 4):
    _, call, create, mesh, cut = setup(name, devices, rate=rate)
    run = _fit(call, create(), data, mesh, cut, 2)
    losses.append(np.concatenate([m["loss"] for _, _, m in run]))
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_batch_is_really_cut_over_the_devices(data):
  _, call, create, mesh, _ = setup(devices=4)
  order = jnp.arange(64, dtype=jnp.int32)
  args = create(), KEY, sharding.replicate(mesh, data), order, 0
  text = call.lower(*args).compile().as_text()
  # The forward convolution sees four of the sixteen images.
  assert "f32[4,8,8,1]" in text and "f32[16,8,8,1]" not in text


@pytest.mark.parametrize(
  "images, batch, expected",
  [
    (100, 16, (6, 1)),
    (57000, 128, (26, 17)),
    (47500, 128, (23, 16)),
    (9, 9, (1, 1)),
  ],
)
def test_steps_per_call(images, batch, expected):
  steps, calls = training.steps_per_call(images, batch)
  assert (steps, calls) == expected
  assert steps * calls * batch <= images


def _linear() -> Model:
  """Return a linear classifier of two labels, which compiles at once."""

  def apply(params, batch_stats, images, *, train=False):
    del train
    inputs = images.reshape(images.shape[0], -1) - 0.5
    return inputs @ params["kernel"] + params["bias"][None], batch_stats

  def init(key):
    kernel = 0.1 * jax.random.normal(key, (64, 2))
    return {"kernel": kernel, "bias": jnp.zeros(2)}, {}

  def prepare(params, batch_stats, images):
    del params, images
    return batch_stats

  return Model(init, apply, None, None, prepare)


def _accuracy(model, trained, images, labels):
  logits, _ = model.apply(*trained.weights, images)
  return float((logits.argmax(-1) == labels).mean())


@pytest.mark.slow
def test_training_in_one_call_learns_the_task_and_the_backdoor(data):
  method, model = ATTACKS["badnets"], _linear()
  attack = method.make(method.settings().filled("digits"), SHAPE, 2)
  trained = training.train(
    KEY,
    model,
    data,
    epochs=60,
    batch_size=16,
    learning_rate=0.2,
    attack=attack,
    poison_rate=0.4,
  )
  assert {len(values) for values in trained.metrics.values()} == {60 * 4}
  losses = trained.metrics["loss"]
  assert losses[-8:].mean() < losses[:8].mean() / 2
  images, labels = batching.to_float(data.images), data.labels
  assert _accuracy(model, trained, images, labels) > 0.9
  triggered, targets, counts = trigger_all(
    attack, trained.variables, KEY, images, labels
  )
  rows = np.asarray(counts)
  assert _accuracy(model, trained, triggered[rows], targets[rows]) > 0.9


def test_training_in_one_call_without_an_attack(data):
  model = _linear()
  seen = []

  def augment(key, batch):
    seen.append(batch.images.shape)
    return batch

  on_host = Batch(*(np.asarray(x, np.int64) for x in data))
  on_host = on_host._replace(images=np.asarray(data.images))
  rates = []

  def optimizer(rate):
    rates.extend(float(rate(step)) for step in (0, 3, 12))
    return optax.sgd(0.0)

  trained = training.train(
    KEY,
    model,
    on_host,
    epochs=3,
    batch_size=16,
    augment=augment,
    optimizer=optimizer,
    learning_rate=0.4,
  )
  assert rates == pytest.approx([0.02, 0.4, 0.0])  # up for a quarter of 12
  assert trained.variables == TriggerVariables({}, {})
  assert seen[0] == (16, *SHAPE)
  assert (trained.metrics["clean"] == 16).all()
  # Nothing is learnt at rate 0: the weights are the initial ones.
  key = jax.random.split(jax.random.split(KEY, 3)[0])[0]
  expected = Weights(*jax.jit(model.init)(key))
  jax.tree.map(np.testing.assert_array_equal, trained.weights, expected)


def test_an_attack_s_stage_before_training_is_run_in_one_call(data):
  contexts = []

  def prepare(key, variables, context):
    contexts.append(context)
    assert context.clean is None
    return variables._replace(state={"gray": context.images.max() / 255})

  def apply(variables, key, images, index):
    return jnp.full_like(images, 1) * variables.state["gray"]

  attack = Attack(
    jnp.array([0]),
    apply,
    init=lambda key: TriggerVariables({}, {"gray": jnp.float32(-1)}),
    prepare=prepare,
  )
  model = _linear()
  trained = training.train(
    KEY, model, data, epochs=1, batch_size=16, attack=attack, poison_rate=0.1
  )
  assert len(contexts) == 1 and contexts[0].images.shape == (64, *SHAPE)
  assert float(trained.variables.state["gray"]) == 1.0


@pytest.mark.slow
def test_input_aware_is_trained_in_one_call(data):
  method = ATTACKS["input_aware"]
  settings = method.settings(mask_epochs=1).filled("digits")
  with small_networks():
    attack = method.make(settings, SHAPE, 2)
  model = _linear()
  trained = training.train(
    KEY, model, data, epochs=1, batch_size=16, attack=attack, poison_rate=0.1
  )
  fresh = jax.jit(attack.init)(KEY)
  assert jax.tree.structure(trained.variables) == jax.tree.structure(fresh)
  for leaf in jax.tree.leaves(trained):
    assert np.isfinite(leaf).all()
  # 1.6 poisoned rows, and as many covers, of 16 in each step.
  for role in ("poisoned", "cover"):
    assert set(trained.metrics[role].tolist()) <= {1, 2}


@pytest.mark.parametrize(
  "batch_size, words",
  [(68, "from 1 to 64, the number of images .got 68"), (18, "multiple of")],
)
def test_batches_that_do_not_fit(batch_size, words, data):
  model = _linear()
  with pytest.raises(UserError, match=f"batch_size must be .*{words}"):
    training.train(KEY, model, data, epochs=1, batch_size=batch_size)
