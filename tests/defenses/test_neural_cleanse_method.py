"""Neural Cleanse as one call."""

import dataclasses
import json

import bright_rows
import jax
import numpy as np
import pytest
from bright_rows import BACKDOOR, UNREACHABLE

from bdjax import sharding
from bdjax.attacks.patches import Trigger, stamp
from bdjax.batching import to_float
from bdjax.checkpoints import Checkpoints
from bdjax.defenses.base import Defender, Repair, Verdict
from bdjax.defenses.neural_cleanse import (
  METHOD,
  NeuralCleanseSettings,
  method,
  neural_cleanse,
)
from bdjax.errors import UserError
from bdjax.settings import check

DEFENDER = Defender(
  bright_rows.MODEL,
  bright_rows.WEIGHTS,
  bright_rows.IMAGES,
  bright_rows.LABELS,
  tuple("abcdefg"),
  sharding.make_mesh(jax.devices()[:1]),
  jax.random.key(5),
)
SETTINGS = NeuralCleanseSettings(
  steps=60,
  updates=4,
  batch_size=16,
  init_cost=1e-2,
  patience=3,
  class_batch=7,
  unlearn_epochs=10,
  unlearn_learning_rate=3.0,
)


def _same(results, others):
  """Compare results but for their seconds."""

  def timeless(result):
    if not isinstance(result, Verdict):
      return result._replace(model=None)
    return result._replace(details=result.details | {"search_seconds": 0})

  jax.tree.map(
    np.testing.assert_array_equal,
    *[tuple(map(timeless, x)) for x in (results, others)],
  )


@pytest.fixture(scope="module")
def results():
  return neural_cleanse(DEFENDER, SETTINGS)


def test_verdict(results):
  verdict = results[0]
  assert verdict.suspects == [BACKDOOR]
  assert verdict.statistic == verdict.index[BACKDOOR] > verdict.threshold == 2
  assert np.isnan(verdict.sizes[UNREACHABLE])
  assert np.isnan(verdict.index[UNREACHABLE])
  assert verdict.triggers.pattern.shape == (7, 8, 8, 1)
  np.testing.assert_allclose(
    verdict.sizes[:6], verdict.triggers.mask[:6].sum((1, 2, 3)), rtol=1e-5
  )
  details = json.loads(json.dumps(verdict.details, allow_nan=False))
  assert details["reached"] == [[True] * 6 + [False]]
  assert details["norms"][0][UNREACHABLE] is None
  assert details["steps"][0][UNREACHABLE] == SETTINGS.steps
  assert details["search_seconds"] > 0 and "over_restarts" not in details


def _success(weights, trigger):
  images = stamp(Trigger(*trigger), to_float(bright_rows.IMAGES))
  logits, _ = bright_rows.MODEL.apply(*weights, images)
  return np.mean(np.asarray(logits.argmax(-1)) == BACKDOOR)


def test_unlearning_removes_the_backdoor(results):
  verdict, before, unlearned = results
  assert (before.name, before.saved) == ("before", False)
  assert (unlearned.name, unlearned.saved) == ("unlearned", True)
  assert before.weights is DEFENDER.weights
  trigger = [x[BACKDOOR][None] for x in verdict.triggers]
  assert _success(before.weights, trigger) > 0.95
  assert _success(unlearned.weights, trigger) < 0.05


@pytest.mark.slow
def test_the_same_key_gives_the_same_bits(results):
  _same(results, neural_cleanse(DEFENDER, SETTINGS))
  other = DEFENDER._replace(key=jax.random.key(6))
  assert (neural_cleanse(other, SETTINGS)[0].sizes != results[0].sizes).any()


@pytest.mark.slow
def test_resumed_equals_unbroken(results, tmp_path, monkeypatch):
  def interrupted(items, unit):
    yield from list(items)[:3]
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(method, "progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
      neural_cleanse(DEFENDER, SETTINGS, tmp_path)
  path = tmp_path / "checkpoints/search"
  with Checkpoints(path, read_only=True) as checkpoints:
    assert checkpoints.latest_step() == 15
  _same(results, neural_cleanse(DEFENDER, SETTINGS, tmp_path))
  _same(results, neural_cleanse(DEFENDER, SETTINGS, tmp_path))


@pytest.mark.slow
def test_restarts_and_no_suspects():
  settings = dataclasses.replace(SETTINGS, restarts=2, steps=30, threshold=1e6)
  verdict, before, unlearned = neural_cleanse(DEFENDER, settings)
  norms = np.array(verdict.details["norms"], float)
  assert norms.shape == (2, 7) and len(verdict.details["over_restarts"]) == 7
  np.testing.assert_allclose(verdict.sizes, np.median(norms, 0), rtol=1e-6)
  smallest = np.nanmin(norms[:, :6], 0)
  masks = verdict.triggers.mask[:6].sum((1, 2, 3))
  np.testing.assert_allclose(masks, smallest, rtol=1e-5)
  assert verdict.suspects == []
  assert unlearned.weights is before.weights
  json.dumps(verdict.details, allow_nan=False)


@pytest.mark.slow
def test_without_unlearning():
  settings = dataclasses.replace(SETTINGS, steps=30, unlearn=False)
  verdict, before = neural_cleanse(DEFENDER, settings)
  assert isinstance(verdict, Verdict) and isinstance(before, Repair)


def _only_two_reachable():
  bias = np.where(np.arange(7) < 2, 0.0, -1000.0).astype(np.float32)
  params = bright_rows.WEIGHTS.params | {"bias": bias}
  return bright_rows.WEIGHTS._replace(params=params)


@pytest.mark.parametrize(
  ("defender", "changes", "message"),
  [
    ({"class_names": ("a", "b")}, {}, r"at least 3 classes \(got 2\)"),
    ({"images": bright_rows.IMAGES[:0]}, {}, "images must not be empty"),
    ({}, {"restarts": 0}, r"restarts must be at least 1 \(got 0\)"),
    ({"weights": _only_two_reachable()}, {}, "only 2 of 7 classes reached"),
    ({}, {"unlearn_learning_rate": 3e38}, "unlearn_learning_rate must be sm"),
  ],
)
def test_errors(defender, changes, message):
  settings = dataclasses.replace(SETTINGS, **changes)
  with pytest.raises(UserError, match=message) as error:
    neural_cleanse(DEFENDER._replace(**defender), settings)
  assert "\n" not in str(error.value) and "--" not in str(error.value)


def test_the_defaults_are_in_range():
  check(METHOD.settings())
  assert METHOD.defend is neural_cleanse
