import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bdjax import batch_sizes, batching, models, sharding
from bdjax.defenses import strip
from bdjax.errors import UserError
from bdjax.models import Weights

KEY = jax.random.key(3)
POOL = jax.random.randint(KEY, (9, 8, 8, 1), 0, 256).astype(jnp.uint8)
IMAGES = jax.random.uniform(jax.random.key(4), (5, 8, 8, 1))


@pytest.fixture(scope="module")
def network():
  model = models.get("cnn", image_shape=(8, 8, 1), num_classes=4, width=4)
  params, stats = jax.jit(model.init)(KEY)
  # Larger logits than a fresh network's, whose entropies are all alike.
  params["logits"]["kernel"] *= 20
  return model, Weights(params, stats)


@pytest.mark.parametrize(
  "how, want",
  [
    ("additive", [0.75, 1.1]),
    ("clipped", [0.75, 1.0]),
    ("blend", [0.375, 0.55]),
  ],
)
def test_superimpose_by_hand(how, want):
  image, overlay = jnp.array([0.25, 0.5]), jnp.array([0.5, 0.6])
  got = jax.jit(strip.superimpose, static_argnums=2)(image, overlay, how)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_entropy_by_hand():
  # Softmax 1/2, 1/4, 1/4: 1.5 bits. Uniform over 4: 2 bits. One certain: 0.
  logits = jnp.array([[jnp.log(2.0), 0.0, 0.0], [0.0, 0.0, 0.0]])
  np.testing.assert_allclose(
    strip.entropy(logits), [1.5, np.log2(3)], rtol=1e-6
  )
  np.testing.assert_allclose(
    strip.entropy(logits, "nats"), [1.5 * np.log(2), np.log(3)], rtol=1e-6
  )
  certain = strip.entropy(jnp.array([0.0, -jnp.inf, -1e9]))
  assert float(certain) == 0.0


def test_entropy_is_over_the_classes():
  logits = jax.random.normal(KEY, (6, 3))
  together = jax.jit(strip.entropy)(logits)
  each = jax.vmap(strip.entropy)(logits)
  want = stats.entropy(jax.nn.softmax(logits), base=2, axis=-1)
  np.testing.assert_allclose(together, want, rtol=1e-5)
  np.testing.assert_allclose(each, want, rtol=1e-5)


@pytest.mark.parametrize("how", strip.SUPERIMPOSITIONS)
def test_one_batch_equals_one_image_and_one_overlay_at_a_time(network, how):
  model, weights = network
  settings = dict(overlays=9, superimposition=how)  # all of the pool
  got = jax.jit(strip.entropies(model, **settings))(
    (weights, POOL), KEY, IMAGES
  )
  apply = jax.jit(lambda x: model.apply(*weights, x)[0])
  want = []
  for image in IMAGES:
    each = []
    for overlay in POOL:
      mixed = strip.superimpose(image, overlay.astype(jnp.float32) / 255, how)
      p = jax.nn.softmax(apply(mixed[None])[0])
      each.append(stats.entropy(p, base=2))
    want.append(np.mean(each))
  assert np.ptp(want) > 1e-3
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_every_input_draws_its_own_overlays_without_repetition():
  class Sees:
    """A 'network' whose logits tell which overlay it was given."""

    @staticmethod
    def apply(params, batch_stats, images):
      which = jnp.round(images[:, 0, 0, 0] * 255).astype(jnp.int32)
      seen.append(which)
      return jnp.zeros((images.shape[0], 2)), batch_stats

  seen = []
  pool = jnp.arange(30, dtype=jnp.uint8).reshape(30, 1, 1, 1)
  run = strip.entropies(Sees, overlays=10)
  run((Weights({}, {}), pool), KEY, jnp.zeros((4, 1, 1, 1)))
  rows = np.asarray(seen[0]).reshape(4, 10)
  assert all(len(set(row)) == 10 for row in rows.tolist())
  assert len({tuple(sorted(row)) for row in rows.tolist()}) == 4


@pytest.mark.slow
def test_chunks_do_not_change_an_entropy(network):
  model, weights = network
  function = strip.entropies(model, overlays=9)
  mesh = sharding.make_mesh(jax.devices()[:1])
  images = POOL[:6]
  results = [
    batching.over_images(function, batch, mesh)((weights, POOL), KEY, images)
    for batch in (2, 6)
  ]
  np.testing.assert_allclose(*results, rtol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("devices", [1, 4, 300])
def test_batches_fit_the_devices(monkeypatch, backend, devices):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  monkeypatch.setattr(batch_sizes, "device_bytes", lambda: 16 * 2**30)
  sizes = [
    strip.max_batch_size(overlays, (28, 28, 1), devices=devices)
    for overlays in (1, 100, 1000)
  ]
  assert all(size >= devices and size % devices == 0 for size in sizes)
  assert sizes == sorted(sizes, reverse=True)
  images = batch_sizes.max_batch_size((28, 28, 1))
  if backend == "gpu":  # as many superimpositions on each device
    assert sizes[0] == images * devices > 1000 * devices
  else:  # on all together
    assert sizes[0] == max(images // devices, 1) * devices


def test_batch_sizes_by_hand(monkeypatch):
  assert strip.max_batch_size(100, (28, 28, 1)) == 2  # of 200 near the cache
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(batch_sizes, "device_bytes", lambda: 16 * 2**30)
  # 2048 images of 32x32 on each of four devices.
  assert strip.max_batch_size(100, (32, 32, 3), devices=4) == 80
  monkeypatch.setattr(batch_sizes, "device_bytes", lambda: 2**27)
  assert strip.max_batch_size(100, (1024, 1024, 3), devices=2) == 2


def test_gaussian_threshold_by_hand():
  calibration = np.array([1.0, 2.0, 3.0])  # mean 2, sd 1
  assert strip.threshold(calibration, 0.5) == pytest.approx(2.0)
  # The normal quantile of 0.01 is -2.3263.
  assert strip.threshold(calibration, 0.01) == pytest.approx(2 - 2.326348)


@pytest.mark.parametrize("frr", [0.01, 0.05, 0.3])
def test_empirical_threshold_rejects_what_it_says(frr):
  calibration = np.random.default_rng(0).permutation(200) / 200
  limit = strip.threshold(calibration, frr, "quantile")
  assert (calibration < limit).mean() == pytest.approx(frr)


@pytest.mark.parametrize("frr", [0.0, 1.0, -0.1, float("nan")])
def test_rates_outside_are_refused(frr):
  with pytest.raises(UserError, match="between 0 and 1"):
    strip.threshold(np.arange(9.0), frr)


def test_too_few_images_says_how_many_it_takes():
  with pytest.raises(
    UserError, match="the 199 calibration images .* needs 200"
  ):
    strip.threshold(np.arange(199.0), 0.005, "quantile")


def test_one_calibration_image_is_too_few_for_a_normal_fit():
  with pytest.raises(UserError, match="2 calibration images .got 1"):
    strip.threshold(np.array([1.0]), 0.1)


@pytest.mark.slow
def test_detector_rejects_below_the_threshold_and_keeps_the_labels(network):
  model, weights = network
  values = strip.entropies(model, 9)((weights, POOL), KEY, IMAGES)
  limit = float(np.sort(values)[2]) + 1e-4
  guard = strip.detector(KEY, model, weights, POOL, limit, 9)
  labels, rejected = guard(IMAGES)
  expected = model.apply(*weights, IMAGES)[0].argmax(-1)
  np.testing.assert_array_equal(labels, expected)
  np.testing.assert_array_equal(rejected, np.asarray(values) < limit)
  assert rejected.sum() == 3


@pytest.mark.slow
def test_calibration_is_on_the_images_that_are_no_overlays(defender):
  settings = strip.StripSettings(overlays=5, frr="0.1,0.4", unit="nats")
  (detector,) = strip.calibrate(defender, settings)
  weights, pool = detector.args
  assert pool.shape == (12, 8, 8, 1)  # a fifth of 64
  assert detector.calibration.shape == (52,)
  every = {x.tobytes() for x in np.asarray(defender.images)}
  overlays = {x.tobytes() for x in np.asarray(pool)}
  assert len(overlays) == 12 and overlays < every
  # The higher the more suspicious: minus the entropies, in nats.
  entropies = -detector.calibration
  assert 0 <= entropies.min() < entropies.max() <= np.log(4) + 1e-5
  for rate, limit in detector.thresholds.items():
    expected = -strip.threshold(entropies, rate)
    assert limit == expected
    assert abs(np.mean(detector.calibration > limit) - rate) < 0.15
  assert list(detector.thresholds) == [0.1, 0.4]
  assert detector.details["entropy_thresholds"]["0.4"] == -limit
  assert detector.unit == "-entropy, nats"
  # All scores, those of the calibration images among them.
  others = strip.StripSettings(overlays=12, calibration=7)
  (detector,) = strip.calibrate(defender, others)
  assert detector.calibration.shape == (7,)
  assert detector.details["overlays"] == 12
  score = jax.jit(detector.score)(
    detector.args, KEY, defender.images.astype(jnp.float32) / 255
  )
  # With all of the pool, the draw is only an order.
  got = np.sort(score)
  assert all(np.abs(got - x).min() < 1e-4 for x in detector.calibration)


def test_overlays_default_to_a_hundred_or_a_small_pool(defender):
  (detector,) = strip.calibrate(defender)
  assert detector.details["overlays"] == 12
  assert list(detector.thresholds) == [0.005, 0.01, 0.02, 0.05]


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"overlays": 63}, "overlays must be at most 62 .got 63.: the defender"),
    ({"overlays": 0}, "overlays must be at least 1 .got 0"),
    ({"superimpose": "mix"}, "superimpose must be one of additive"),
    ({"unit": "bans"}, "unit must be one of bits, nats"),
    ({"threshold": "mean"}, "threshold must be one of gaussian, quantile"),
    ({"frr": "0.1,2"}, "frr must be between 0 and 1 .got 2"),
    ({"frr": "a"}, "frr must be numbers with commas"),
    ({"frr": "0.01", "threshold": "quantile"}, "raise it, use the gaussian"),
  ],
)
def test_settings_that_do_not_fit_are_one_line(defender, settings, words):
  with pytest.raises(UserError, match=words) as error:
    strip.calibrate(defender, strip.StripSettings(**settings))
  assert "\n" not in str(error.value)


def test_published_scores_are_of_the_published_settings():
  standard = strip.METHOD.standard
  assert standard(strip.StripSettings())
  assert standard(strip.StripSettings(overlays=100, frr="0.01"))
  for other in (
    {"overlays": 20},
    {"superimpose": "blend"},
    {"unit": "nats"},
    {"threshold": "quantile"},
  ):
    assert not standard(strip.StripSettings(**other))
