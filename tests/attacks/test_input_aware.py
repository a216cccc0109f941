"""Tests of the Input-Aware attack, with networks that are known by heart."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_cases import clean_batch

from bdjax import sharding
from bdjax.attacks import InputAwareSettings
from bdjax.attacks import input_aware as make_input_aware
from bdjax.attacks.base import PreparationContext
from bdjax.attacks.input_aware import diversity_loss
from bdjax.attacks.poisoning import poison_batch
from bdjax.batch import COVER, POISONED
from bdjax.batching import to_float
from bdjax.errors import UserError
from bdjax.models.base import ImageNetwork

KEY = jax.random.key(9)
SHAPE = (8, 8, 1)


def _make(shape=SHAPE, **given):
  settings = InputAwareSettings(**given).filled("digits")
  return make_input_aware(settings, shape, 4)


def test_the_diversity_loss_by_hand():
  images = jnp.array([0.5, 0.0]).reshape(2, 1, 1, 1)
  others = jnp.array([0.1, 0.3]).reshape(2, 1, 1, 1)
  first = jnp.array([[0.2, 0.4], [1.0, 0.0]]).reshape(2, 1, 2, 1)
  second = jnp.array([[0.0, 0.4], [0.0, 0.0]]).reshape(2, 1, 2, 1)
  # 0.4 over sqrt(0.04 / 2), and 0.3 over sqrt(1 / 2).
  expected = (0.4 / 0.02**0.5 + 0.3 / 0.5**0.5) / 2
  loss = diversity_loss(images, others, first, second)
  assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_the_diversity_loss_has_a_finite_gradient_where_triggers_are_equal():
  images = jnp.ones((2, 1, 1, 1))
  grad = jax.grad(lambda x: diversity_loss(images, 0 * images, x, x + 0.0))
  assert np.isfinite(grad(jnp.ones((2, 2, 2, 1)))).all()


class _Known:
  """Networks that return `gain * (image - 0.5) + bias`.

  Attributes:
    gains: of pattern and mask network, in the order in which they are made.
    seen: gain, number of images and `train` of each call.
  """

  def __init__(self):
    self.gains, self.seen = [2.0, 100.0], []

  def make(self, image_shape, out_channels, widths):
    del image_shape, out_channels, widths
    gain = self.gains.pop(0)

    def init(key):
      del key
      params = {"gain": jnp.float32(gain), "bias": jnp.float32(0)}
      return params, {"images": jnp.int32(0)}

    def apply(params, batch_stats, images, *, train=False):
      self.seen.append((gain, images.shape[0], train))
      number = batch_stats["images"] + images.shape[0] * train
      outputs = params["gain"] * (images - 0.5) + params["bias"]
      return outputs, {"images": number}

    return ImageNetwork(init, apply)


@pytest.fixture
def known(monkeypatch):
  networks = _Known()
  # The package has a function of the module's name.
  module = importlib.import_module("bdjax.attacks.input_aware")
  monkeypatch.setattr(module, "encoder_decoder", networks.make)
  return networks


def _known_trigger(images):
  """Return pattern and mask of the networks of `known`."""
  pattern = 0.5 + np.tanh(2 * (images - 0.5)) / 2
  return pattern, (images > 0.5).astype(np.float32)


def test_triggered_images_carry_their_own_trigger(known):
  attack = _make()
  variables = attack.init(KEY)
  images = clean_batch(4).images[:, :8, :8]
  index = jnp.zeros(4, jnp.int32)
  pattern, mask = _known_trigger(images)
  got = attack.apply(variables, KEY, images, index)
  expected = images + (pattern - images) * mask
  sure = abs(images - 0.5) > 0.01  # elsewhere the mask is neither 0 nor 1
  np.testing.assert_allclose(got[sure], expected[sure], atol=1e-4)
  # A cover carries that of the image before it.
  pattern, mask = np.roll(pattern, 1, 0), np.roll(mask, 1, 0)
  got = attack.cover(variables, KEY, images, index)
  expected = images + (pattern - images) * mask
  sure = np.roll(sure, 1, 0)
  np.testing.assert_allclose(got[sure], expected[sure], atol=1e-4)
  assert {train for _, _, train in known.seen} == {False}


def test_in_training_only_the_rows_to_be_triggered_pass_the_networks(known):
  attack = _make(cover_rate=0.25)
  variables = attack.init(KEY)
  batch = clean_batch(16)
  batch = batch._replace(images=batch.images[:, :8, :8])
  batch = jax.tree.map(jnp.asarray, batch)
  out = poison_batch(attack, variables, KEY, batch, 0.5)
  # 8 poisoned, and the partners of 4 covers.
  assert known.seen == [(2.0, 12, True), (100.0, 12, False)]
  assert out.state["pattern"] == {"images": 12}
  assert out.state["mask"][1] == {"images": 0}  # held
  roles = np.asarray(out.batch.roles)
  assert (roles == POISONED).sum() == 8 and (roles == COVER).sum() == 4
  images, triggered = np.asarray(batch.images), np.asarray(out.batch.images)
  patterns, masks = _known_trigger(images)
  sure = abs(images - 0.5) > 0.01

  def stamped(row, source):
    mask = masks[source]
    return images[row] + (patterns[source] - images[row]) * mask, sure[source]

  for row in np.flatnonzero(roles == POISONED):
    expected, where = stamped(row, row)
    np.testing.assert_allclose(
      triggered[row][where], expected[where], atol=1e-4
    )
  shifts = []
  for row in np.flatnonzero(roles == COVER):
    for shift in range(16):
      expected, where = stamped(row, (row + shift) % 16)
      if np.allclose(triggered[row][where], expected[where], atol=1e-4):
        shifts.append(shift)
  # One other image's trigger each, all equally far along the batch.
  assert len(shifts) == 4 and len(set(shifts)) == 1 and shifts[0] != 0


def test_the_joint_loss_compares_the_poisoned_with_the_partners(known):
  rows, cover_rows = jnp.array([3, 5, 6]), jnp.array([0, 1])
  images = jnp.asarray(clean_batch(8).images[:, :8, :8])
  losses = []
  for weight in (0.0, 1.0, 2.0):
    known.gains = [2.0, 100.0]
    attack = _make(diversity_weight=weight)
    variables = attack.init(KEY)
    out = attack.joint(variables, KEY, images, None, rows, cover_rows, None)
    losses.append(float(out.loss))
  shift = int(jax.random.randint(KEY, (), 1, 8))
  own, partners = images[rows[:2]], images[(cover_rows + shift) % 8]
  patterns = [jnp.asarray(_known_trigger(x)[0]) for x in (own, partners)]
  expected = float(diversity_loss(own, partners, *patterns))
  assert losses == pytest.approx([0.0, expected, 2 * expected], rel=1e-4)


def test_the_stage_before_training_makes_masks_sparser(known):
  known.gains = [2.0, 1.0]
  attack = _make(mask_epochs=8, generator_learning_rate=0.05)
  variables = attack.init(KEY)
  images = jax.random.randint(KEY, (300, *SHAPE), 0, 256).astype(jnp.uint8)
  context = PreparationContext(
    images, jnp.zeros(300, jnp.int32), sharding.make_mesh(jax.devices()[:1])
  )
  after = attack.prepare(KEY, variables, context)
  # Eight epochs of two batches of 128; the rest of each is left out.
  assert after.state["mask"][1] == {"images": 8 * 2 * 128}
  inputs, index = to_float(images[:64]), jnp.zeros(64, jnp.int32)
  before, sparser = (
    float(attack.draw_trigger(v, KEY, inputs, index).mask.mean())
    for v in (variables, after)
  )
  assert before == pytest.approx(0.5, abs=0.05)
  assert sparser < before / 2
  # The pattern generator is not trained yet.
  assert after.params == variables.params
  assert after.state["pattern"] == variables.state["pattern"]
  known.gains = [2.0, 1.0]
  none = _make(mask_epochs=0).prepare(KEY, variables, context)
  assert none == variables


def test_images_too_small_for_the_networks():
  with pytest.raises(UserError, match="must be at least 8x8 for .* .got 8x7"):
    _make((8, 7, 3))
  with pytest.raises(UserError, match="images must be at least 4x4"):
    _make((3, 8, 1))


@pytest.mark.parametrize(
  "dataset, epochs", [("cifar10", 25), ("digits", 10), ("mnist", 2)]
)
def test_epochs_of_the_mask_network(dataset, epochs):
  assert InputAwareSettings().filled(dataset).mask_epochs == epochs
  assert InputAwareSettings(mask_epochs=0).filled(dataset).mask_epochs == 0
