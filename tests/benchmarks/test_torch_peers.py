"""Ours and the peers in torch compute the same."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.batching import to_float
from bdjax.defenses.neural_cleanse import searches
from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from benchmarks import (
  cban_step,
  neural_cleanse,
  peers,
  pruning_curve,
  script,
  strip,
  training_step,
)

CNN, RESNET = script.TINY_CASES["cnn"], script.TINY_CASES["resnet18"]
CASES = pytest.mark.parametrize("case", [CNN, RESNET], ids=lambda c: c.model)


@pytest.fixture(scope="module", autouse=True)
def torch():
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", minversion="2.6")
    peers.load("device")
  # Threads that wait for a busy machine take longer than the little work.
  torch.set_num_threads(1)
  return torch


def _net(case):
  _, weights = script.network(case)
  return peers.load("networks").make(case, script.CLASSES, weights)


@CASES
def test_networks(case, torch):
  model, weights = script.network(case)
  floats = to_float(script.images(6, case))
  logits, _ = model.apply(*weights, floats)
  net = _net(case).eval()
  with torch.no_grad():
    got = net(torch.from_numpy(np.array(floats)).permute(0, 3, 1, 2))
  np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-5)


@CASES
@pytest.mark.parametrize("last", [False, True])
def test_training(case, last):
  # A step's loss depends on the step before: gradients, momentum and decay.
  images, labels = script.images(24, case), script.labels(24)
  rows = jnp.arange(24, dtype=jnp.int32).reshape(3, 8)
  losses = training_step.ours(case, images, labels, rows)()
  _, weights = script.network(case)
  net = peers.load("networks").make(case, script.CLASSES, weights, last)
  run = peers.load("training").make_steps(
    net, images, labels, rows, **training_step.RATES, channels_last=last
  )
  np.testing.assert_allclose(run(), losses[-1], rtol=2e-3)


@CASES
def test_strip(case):
  # The pool has as many images as are drawn, so all draw the same.
  images, pool = script.images(5, case), script.images(7, case)
  expected = strip.ours(case, images, pool, 7)()
  run = peers.load("strip").entropies(_net(case), images, pool, 7)
  np.testing.assert_allclose(run(), expected, rtol=1e-4)


def test_strip_of_art_runs():
  pytest.importorskip("art")
  art = peers.load("art_strip")
  run = art.entropies(_net(CNN), script.images(5, CNN), 3, CNN)
  assert np.isfinite(run())


@CASES
def test_neural_cleanse(case):
  # One update a step with all images: the order of the images is all that
  # differs. A threshold that is met soon, so that the cost is set.
  settings = SearchSettings(
    steps=8, updates=1, batch_size=4, asr_threshold=0.25, init_cost=0.1
  )
  images = script.images(4, case)
  variables = searches.init(script.KEY, 3, case.shape).variables
  run = peers.load("neural_cleanse").searches(
    _net(case), images, variables, settings
  )
  masks = np.stack([mask.numpy()[0] for mask in run()])
  state = neural_cleanse.ours(case, settings, images, 3)()
  assert np.any(state.schedule.cost > 0)
  expected = np.asarray(jnp.tanh(state.variables.mask[..., 0]) + 1) / 2
  np.testing.assert_allclose(masks, expected, atol=1e-3)


@CASES
def test_pruning_curve(case):
  task = pruning_curve.PruningTask(case, 20, 8)
  clean, triggered = pruning_curve.ours(task)()
  peer = peers.load("pruning")
  points = peer.point_by_point(_net(case), task, task.masks)()
  np.testing.assert_allclose(clean, [p[0] for p in points], atol=1e-6)
  np.testing.assert_allclose(triggered, [p[1] for p in points], atol=1e-6)
  features = pruning_curve.cached(task, 20)
  expected = pruning_curve.ours_cached(task, features, task.labels, 10)()
  got = peer.heads(_net(case), features, task.labels, task.masks)()
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_both_placements_of_a_trigger_are_the_same_but_for_the_place(torch):
  cban = peers.load("cban")
  images = torch.zeros(64, 3, 12, 12)
  patches = torch.rand(64, 3, 5, 5)
  corners = []
  for place in (cban._place_one_by_one, cban._place_by_index):
    stamped = place(images, patches)
    for x, patch in zip(stamped, patches, strict=True):
      assert torch.equal(x[x > 0], patch.flatten())
    corners.append({tuple((x > 0).nonzero()[0].tolist()) for x in stamped})
  # Of the 64 places most are met by both.
  assert all(len(places) > 30 for places in corners)


def test_cban_steps_train(torch):
  case = CNN._replace(shape=(12, 12, 1))
  images, labels = script.images(8, case), script.labels(8)
  rows = np.arange(8).reshape(2, 4)
  cban = peers.load("cban")
  for step in (cban.authors_step, cban.careful_step):
    run = cban.make_steps(
      _net(case), step, images, labels, rows, cban_step.SIZE
    )
    first = run()
    for _ in range(8):
      last = run()
    assert last < first


def test_jax_and_torch_agree_on_the_matrix_product():
  peer = peers.load("arithmetic")
  a = jnp.ones((8, 8))
  np.testing.assert_array_equal(
    peer.product(8, False)(), jax.jit(jnp.matmul)(a, a)
  )
  np.testing.assert_array_equal(peer.copy((2, 2))(), 2 * np.ones((2, 2)))
