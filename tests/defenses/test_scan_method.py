"""A scan as one call."""

import dataclasses
import json

import bright_rows
import jax
import numpy as np
import pytest
from bright_rows import BACKDOOR

from bdjax import models, sharding
from bdjax.checkpoints import Checkpoints
from bdjax.defenses.neural_cleanse import anomaly
from bdjax.defenses.scan import VERDICTS, ScanSettings, scan, search
from bdjax.errors import UserError
from bdjax.models import Weights
from bdjax.settings import check

NUM = 9
SETTINGS = ScanSettings(
  steps=12,
  round_steps=3,
  batch_size=4,
  patience=1,
  early_stop_patience=2,
  asr_threshold=0.3,
  augmentations=2,
  class_batch=1,
  reference=4,
  converged=1,
  checkpoint_seconds=0.0,
)
MODEL = models.get("cnn", image_shape=(8, 8, 1), num_classes=NUM, width=4)
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)
LABELS = np.arange(16, dtype=np.int32) % NUM
NAMES = tuple(map(str, range(NUM)))


def _scan(directory=None, *, images=IMAGES, labels=LABELS, **changes):
  """Scan an untrained network."""
  weights = Weights(*jax.jit(MODEL.init)(jax.random.key(0)))
  names = changes.pop("names", NAMES)
  settings = dataclasses.replace(SETTINGS, **changes)
  mesh = sharding.make_mesh(jax.devices()[:1])
  return scan(MODEL, weights, images, labels, names, settings, mesh, directory)


def _said(result):
  return result.sentences, result.measured, result.details


@pytest.fixture(scope="module")
def result():
  return _scan()


@pytest.mark.slow
def test_rows(result):
  rows, steps = result.details["classes"], result.measured["steps"]
  assert rows is result.judged.rows
  json.dumps(_said(result), allow_nan=False)
  assert [r["norm"] for r in rows] == sorted(r["norm"] for r in rows)
  assert {r["verdict"] for r in rows} <= set(VERDICTS)
  ranked = [r for r in rows if r["rank"] is not None]
  assert [r["rank"] for r in ranked] == list(range(1, len(ranked) + 1))
  assert {r["class"] for r in ranked} == set(np.flatnonzero(result.converged))
  assert all(r["held_out"]["n"] in (3, 4) for r in ranked)
  assert len(result.details["reference"]) == result.reference.sum() == 4
  assert NUM * 2 * SETTINGS.round_steps <= steps < NUM * SETTINGS.steps
  assert result.details["bandit"]["converged"] == 1
  arrays = result.trigger_arrays()
  assert arrays["masks"].shape == (len(ranked), 8, 8, 1)
  np.testing.assert_allclose(
    arrays["masks"].sum((1, 2, 3)), [r["norm"] for r in ranked], rtol=1e-5
  )


def test_resumed_equals_unbroken(result, tmp_path, monkeypatch):
  def interrupted(items, unit):
    yield from list(items)[:6]
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(search, "progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
      _scan(tmp_path)
  path = tmp_path / "checkpoints/search"
  with Checkpoints(path, read_only=True) as checkpoints:
    assert checkpoints.latest_step() == 6
  resumed = _scan(tmp_path)
  assert _said(resumed) == _said(result)
  jax.tree.map(np.testing.assert_array_equal, resumed.searches, result.searches)


def test_without_labels_predictions_stand_for_them():
  rows = _scan(images=IMAGES[:12], labels=None).judged.rows
  assert {r["held_out"]["n"] for r in rows if r["held_out"]} <= {1, 2, 3}


def test_all_classes_where_the_sample_is_all():
  result = _scan(reference=NUM, steps=21)
  assert result.reference.all()
  assert result.measured["steps_saved"] == 0
  assert result.details["bandit_rounds"] == 0
  rows = [r for r in result.judged.rows if r["rank"] is not None]
  norms = np.array([r["norm"] for r in rows])
  index = anomaly.anomaly_index(norms, np.ones(len(rows), bool))
  got = [abs(r["anomaly_index"]) for r in rows]
  np.testing.assert_allclose(got, index, rtol=1e-4)


def test_a_backdoor_is_found():
  """Of seven classes, whose masks are known, in `bright_rows`."""
  settings = dataclasses.replace(
    SETTINGS,
    steps=60,
    updates=4,
    batch_size=16,
    asr_threshold=0.99,
    init_cost=1e-2,
    patience=3,
    augmentations=1,
    class_batch=7,
    reference=7,
  )
  result = scan(
    bright_rows.MODEL,
    bright_rows.WEIGHTS,
    np.asarray(bright_rows.IMAGES),
    np.asarray(bright_rows.LABELS),
    tuple("abcdefg"),
    settings,
    sharding.make_mesh(jax.devices()[:1]),
  )
  first = result.judged.rows[0]
  assert first["class"] == BACKDOOR and first["held_out"]["mean"] > 0.9
  assert result.judged.labels("backdoored") == [BACKDOOR]
  assert result.measured["suspect"] == []
  said = " ".join(result.sentences)
  assert "Class e looks backdoored: a mask of 1 pixel leads" in said
  assert "1 of 7 classes were searched to the end, and no mask" in said


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"names": ("a", "b")}, r"at least 3 classes \(got 2\)"),
    ({"images": IMAGES[:0], "labels": None}, "images must not be empty"),
    ({"labels": LABELS[:3]}, r"labels must be as many as images, 16 \(got 3\)"),
    ({"epsilon": 1.5}, r"epsilon must be at least 0 and at most 1 \(got 1.5\)"),
  ],
)
def test_errors(changes, message):
  with pytest.raises(UserError, match=message) as error:
    _scan(**changes)
  assert "\n" not in str(error.value) and "--" not in str(error.value)


def test_the_defaults_are_in_range():
  check(ScanSettings())
