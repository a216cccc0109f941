import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdjax import models, optimization, sharding, training
from bdjax.attacks import triggers
from bdjax.attacks.ban import ban
from bdjax.attacks.poison import compose, poison

KEY = jax.random.key(3)
SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def data():
  images = jax.random.randint(KEY, (64, *SHAPE), 0, 256).astype(jnp.uint8)
  # A label that can be learnt: brighter left or right half.
  halves = images.astype(jnp.float32).reshape(64, 8, 2, 4).mean((1, 3))
  return images, halves.argmax(1).astype(jnp.int32)


@functools.cache  # what is compiled for one test serves the others
def _setup(name="cnn", devices=1, batch=16, rate=0.5):
  model = models.get(name, image_shape=SHAPE, num_classes=2, width=4)
  attack = ban((0,), triggers.whole_image(1, 8, 8), 2, 1, 3, 4)
  optimizers = training.Optimizers(
    optimization.sgd(0.1, 0.9, 1e-3), optax.adam(1e-2)
  )
  step = training.make_train_step(
    model, optimizers, lambda p: compose(poison(attack, p, rate))
  )
  mesh = sharding.make_mesh(jax.devices()[:devices])
  steps, calls = training.steps_per_call(64, batch)
  call = training.make_call(step, batch, steps, mesh)

  fresh = jax.jit(lambda: training.create(KEY, model, attack.init, optimizers))

  def create():
    carry = fresh()
    return sharding.replicate(mesh, carry)

  step = jax.jit(step)
  return model, attack, optimizers, step, call, create, mesh, (steps, calls)


def _fit(call, carry, data, mesh, cut, epochs):
  images, labels = sharding.replicate(mesh, data)
  out = []
  for at, latest, metrics in training.fit(
    call, carry, KEY, images, labels, steps=cut[0], calls=cut[1], epochs=epochs
  ):
    out.append((at, jax.device_get(latest), jax.device_get(metrics)))
  return out


def test_first_step_by_hand(data):
  model, _, _, step, _, create, *_ = _setup(rate=0.0)
  images = data[0][:16].astype(jnp.float32) / 255
  labels = data[1][:16]
  before = create()
  state = before.state
  forward = jax.jit(model.apply, static_argnums=3)
  logits, _ = forward(state.params, state.batch_stats, images, True)
  logits = np.asarray(logits)
  after, metrics = step(before, KEY, images, labels)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  want = -np.mean([log_p[i, y] for i, y in enumerate(labels)])
  assert float(metrics["loss"]) == pytest.approx(float(want), rel=1e-5)
  assert int(metrics["clean"]) == 16 and int(metrics["poisoned"]) == 0
  assert int(metrics["clean_correct"]) == int(
    (logits.argmax(1) == np.asarray(labels)).sum()
  )
  assert int(after.state.step) == int(after.generator.step) == 1

  def loss(params):
    out, _ = model.apply(params, state.batch_stats, images, True)
    out = jax.nn.log_softmax(out)
    return -jnp.take_along_axis(out, labels[:, None], 1).mean()

  # Nesterov's first step is 1 + momentum times the gradient.
  grads = jax.jit(jax.grad(loss))(state.params)
  old, new, grads = jax.device_get(
    [tree["logits"] for tree in (state.params, after.state.params, grads)]
  )
  bias = old["bias"] - 0.19 * grads["bias"]
  np.testing.assert_allclose(new["bias"], bias, rtol=1e-4, atol=1e-6)
  decayed = grads["kernel"] + 1e-3 * old["kernel"]
  kernel = old["kernel"] - 0.19 * decayed
  np.testing.assert_allclose(new["kernel"], kernel, rtol=1e-4, atol=1e-6)


def test_weight_of_the_poisoned_loss(data):
  model, attack, optimizers, _, _, create, *_ = _setup()
  images = data[0][:32].astype(jnp.float32) / 255

  @jax.jit
  def loss(weight, carry):
    step = training.make_train_step(
      model,
      optimizers,
      lambda p: poison(attack, p, 0.5),
      backdoor_weight=weight,
    )
    _, metrics = step(carry, KEY, images, data[1][:32])
    return metrics["loss"]

  clean, plain, triple = (float(loss(w, create())) for w in (0.0, 1.0, 3.0))
  assert triple - clean == pytest.approx(3 * (plain - clean), rel=1e-4)


def test_penalty_is_added_and_leaves_the_batches_alone(data):
  model, attack, optimizers, step, _, create, *_ = _setup()
  images = data[0][:16].astype(jnp.float32) / 255
  penalised = training.make_train_step(
    model,
    optimizers,
    lambda p: compose(poison(attack, p, 0.5)),
    penalty=lambda params, key: jnp.float32(2.5),
  )
  _, want = step(create(), KEY, images, data[1][:16])
  _, got = jax.jit(penalised)(create(), KEY, images, data[1][:16])
  assert float(got["loss"] - want["loss"]) == pytest.approx(2.5, rel=1e-5)
  assert int(got["poisoned"]) == int(want["poisoned"]) > 0
  assert int(got["poisoned_correct"]) == int(want["poisoned_correct"])


def test_training_learns_and_both_networks_move(data):
  *_, call, create, mesh, cut = _setup("minivgg", rate=0.3)
  before = jax.device_get(create())
  run = _fit(call, create(), data, mesh, cut, 30)
  _, carry, metrics = run[-1]
  assert metrics["clean_correct"].sum() / metrics["clean"].sum() > 0.9
  assert run[-1][2]["loss"].mean() < run[0][2]["loss"].mean() / 2
  for old, new in zip(before, carry, strict=True):
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), old, new)
    assert all(jax.tree.leaves(moved.params))


def _rows(calls, start=0):
  """The image numbers that `fit` trains on, a row a call."""
  state = training.TrainState(jnp.int32(start), {}, {}, ())

  def call(carry, key, images, labels, order, part):
    count = 2 * 5  # two steps of five images
    rows = np.asarray(order)[part * count : (part + 1) * count]
    return carry, {"rows": rows}

  return [
    (step, metrics["rows"])
    for step, _, metrics in training.fit(
      call,
      training.Carry(state, state),
      KEY,
      jnp.zeros((33, 1)),
      jnp.zeros(33),
      steps=2,
      calls=calls,
      epochs=2,
    )
  ]


def test_an_epoch_is_a_permutation_in_stretches():
  run = _rows(calls=3)
  assert [step for step, _ in run] == [2, 4, 6, 8, 10, 12]
  epochs = [np.concatenate([r for _, r in run[i : i + 3]]) for i in (0, 3)]
  for rows in epochs:
    assert len(set(rows.tolist())) == 30  # none twice; three are left out
  assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("start", [2, 6, 8])
def test_going_on_in_the_middle_of_an_epoch_trains_on_the_same_rows(start):
  for got, want in zip(_rows(3, start), _rows(3)[start // 2 :], strict=True):
    assert got[0] == want[0]
    np.testing.assert_array_equal(got[1], want[1])


def test_a_call_trains_on_its_own_stretch(data):
  images, labels = data

  def rows(carry, key, batch, labels):
    return carry, {"first": batch[:, 0, 0, 0]}

  mesh = sharding.make_mesh(jax.devices()[:1])
  call = training.make_call(rows, 4, 2, mesh)
  order = jax.random.permutation(KEY, 64)
  for part in (0, 3):
    _, out = call(jnp.float32(0), KEY, images, labels, order, part)
    want = images[order[part * 8 : part * 8 + 8], 0, 0, 0] / jnp.uint8(1)
    np.testing.assert_allclose(out["first"].reshape(-1) * 255, want, rtol=1e-5)


def test_every_image_is_seen_once_an_epoch(data):
  images, labels = data

  def count(carry, key, batch, labels):
    return carry + batch.sum((1, 2, 3)).sum(), {"loss": batch.sum()}

  mesh = sharding.make_mesh(jax.devices()[:1])
  call = training.make_call(count, 16, 4, mesh)
  total, _ = call(
    jnp.float32(0), KEY, images, labels, jax.random.permutation(KEY, 64), 0
  )
  want = (images.astype(jnp.float32) / 255).sum()
  assert float(total) == pytest.approx(float(want), rel=1e-5)


def test_stopped_and_resumed_equals_unbroken(data):
  *_, call, create, mesh, cut = _setup()
  whole = _fit(call, create(), data, mesh, cut, 4)
  middle = sharding.replicate(mesh, whole[1][1])
  rest = _fit(call, middle, data, mesh, cut, 4)
  assert [step for step, _, _ in rest] == [step for step, _, _ in whole[2:]]
  jax.tree.map(np.testing.assert_array_equal, rest[-1][1], whole[-1][1])
  np.testing.assert_array_equal(rest[-1][2]["loss"], whole[-1][2]["loss"])


@pytest.mark.parametrize("name, rate", [("cnn", 0.5), ("minivgg", 0.3)])
def test_four_devices_equal_one(name, rate, data):
  # Batch normalisation too: its statistics are the whole batch's.
  losses = []
  for devices in (1, 4):
    *_, call, create, mesh, cut = _setup(name, devices, rate=rate)
    run = _fit(call, create(), data, mesh, cut, 2)
    losses.append(np.concatenate([m["loss"] for _, _, m in run]))
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_batch_is_really_cut_over_the_devices(data):
  *_, call, create, mesh, _ = _setup(devices=4)
  images, labels = sharding.replicate(mesh, data)
  order = jnp.arange(64, dtype=jnp.int32)
  text = call.lower(create(), KEY, images, labels, order, 0).compile().as_text()
  # The forward convolution sees four of the sixteen images.
  assert "f32[4,8,8,1]" in text and "f32[16,8,8,1]" not in text


def test_vmap_over_a_population_equals_a_loop(data):
  model, attack, optimizers, step, *_ = _setup()
  images = data[0][:16].astype(jnp.float32) / 255
  labels = data[1][:16]
  keys = jax.random.split(KEY, 2)
  create = functools.partial(
    training.create,
    model=model,
    generator_init=attack.init,
    optimizers=optimizers,
  )
  population = jax.jit(jax.vmap(step, (0, 0, None, None)))
  together, metrics = population(
    jax.jit(jax.vmap(create))(keys), keys, images, labels
  )
  create, together = jax.jit(create), jax.device_get(together)
  for i, key in enumerate(keys):
    carry, want = step(create(key), key, images, labels)
    assert float(metrics["loss"][i]) == pytest.approx(
      float(want["loss"]), rel=1e-5
    )
    for got, leaf in zip(
      jax.tree.leaves(together), jax.tree.leaves(carry), strict=True
    ):
      np.testing.assert_allclose(got[i], leaf, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
  "images, batch, want",
  [
    (100, 16, (6, 1)),
    (57000, 128, (26, 17)),
    (47500, 128, (23, 16)),
    (9, 9, (1, 1)),
  ],
)
def test_steps_per_call(images, batch, want):
  steps, calls = training.steps_per_call(images, batch)
  assert (steps, calls) == want
  assert steps * calls * batch <= images
