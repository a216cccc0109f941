"""What the scripts time is what they say, with and without peers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CNN, RESNET

from bdjax import models
from bdjax.defenses import neural_cleanse as nc
from benchmarks import (
  augmentation,
  cban_step,
  neural_cleanse,
  peers,
  pruning_curve,
  script,
  strip,
  training_step,
)
from benchmarks.plain import networks as plain


@pytest.fixture
def alone(monkeypatch):
  """No peers."""
  monkeypatch.setattr(peers, "load", lambda name: None)


def test_a_package_that_is_not_there_is_said_to_be_missing(capsys, monkeypatch):
  monkeypatch.setitem(peers._INSTALL, "no_such_package", "no-such-package")
  assert peers.package("no_such_package") is None
  assert capsys.readouterr().out.strip().splitlines() == [
    "no_such_package is not installed, so it is left out: pip install "
    "no-such-package"
  ]


def test_operations_of_the_small_cnn_by_hand():
  # Width 8: 2 filters on 8x8, 4 on 4x4, 16 hidden units, 10 classes. XLA
  # counts no products with the zeros of the padding.
  first = 2 * (3 * 8 - 2) ** 2 * 1 * 2
  second = 2 * (3 * 4 - 2) ** 2 * 2 * 4
  dense = 2 * (2 * 2 * 4 * 16 + 16 * 10)
  got = plain.forward_operations(CNN, 10)
  # Biases, rectifiers and pools come on top.
  assert first + second + dense < got < 1.5 * (first + second + dense)


def test_plain_and_our_networks_are_alike():
  for case in (CNN, RESNET):
    model, _ = script.network(case)
    net = plain.make(case, script.CLASSES)
    image = jnp.zeros((1, *case.shape))
    with jax.numpy_rank_promotion("allow"):
      variables = jax.eval_shape(
        lambda net=net, image=image: net.init(script.KEY, image, train=False)
      )
    sizes = [x.size for x in jax.tree.leaves(variables["params"])]
    assert sum(sizes) == models.count_parameters(model)


@pytest.mark.usefixtures("alone")
def test_comparisons_run_and_count_their_work():
  settings = nc.Settings(steps=1, updates=1, batch_size=4, asr_threshold=1.0)
  comparisons = [
    strip.compare(CNN, 4, 3),
    neural_cleanse.compare(CNN, settings, 2),
    pruning_curve.from_images(CNN, 8, 4, 2),
    pruning_curve.from_features(CNN, 12),
    cban_step.compare(CNN._replace(shape=(12, 12, 1)), 4, 1),
    augmentation.compare(CNN, 4, 1),
  ]
  for comparison in comparisons:
    # The last has most in it; the others are parts of it or tested below.
    jax.block_until_ready([*comparison.functions.values()][-1]())
    assert comparison.operations > 0 and comparison.traffic > 0
    assert set(comparison.parts) <= set(comparison.functions)


def test_a_call_of_ours_trains():
  images, labels = script.images(8, CNN), script.labels(8)
  rows = jnp.arange(8, dtype=jnp.int32).reshape(2, 4)
  run = training_step.ours(CNN, images, labels, rows)
  first = np.asarray(run())
  assert first.shape == (2,)
  for _ in range(20):
    last = np.asarray(run())
  assert last.mean() < first.mean()


def test_curves_from_images_and_point_by_point_agree():
  subject = pruning_curve.Subject(CNN, 40, 8)
  clean, triggered = pruning_curve.ours(subject)()
  points = pruning_curve.point_by_point(subject, len(subject.masks))()
  np.testing.assert_allclose(clean, [point[0] for point in points])
  np.testing.assert_allclose(triggered, [point[1] for point in points])
  whole = pruning_curve.one_evaluation(subject)()
  np.testing.assert_allclose(whole, points[0])


def test_a_curve_from_features_is_that_from_images():
  for case in (CNN, RESNET):
    subject = pruning_curve.Subject(case, 40, 8)
    floats = subject.images.astype(jnp.float32) / 255.0
    features = subject.model.features(*subject.weights, floats)
    if case is RESNET:
      features = features.mean((1, 2), keepdims=True)
    run = pruning_curve.ours_cached(subject, features, subject.labels, 8)
    np.testing.assert_allclose(run(), pruning_curve.ours(subject)()[0])
