"""Benchmarks run, and time what they say."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import batch_sizes, compiler, models, sharding
from bdjax.batching import to_float
from bdjax.defenses import incremental_pruning
from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from benchmarks import all as all_benchmarks
from benchmarks import (
  ceiling,
  neural_cleanse,
  peers,
  pruning_curve,
  results,
  roofline,
  scaling,
  script,
  strip,
  training_step,
)
from benchmarks.plain import networks as plain

pytestmark = pytest.mark.slow

KEY = script.KEY
CNN, RESNET = script.TINY_CASES["cnn"], script.TINY_CASES["resnet18"]
OPTIONS = script.Options(("cnn",), repeats=1, tiny=True)
# `startup` starts whole commands; `scaling` has a test of its own.
IN_PROCESS = [
  name for name in all_benchmarks.NAMES if name not in ("startup", "scaling")
]
four_devices = sharding.make_mesh  # see conftest.py


@pytest.fixture
def alone(monkeypatch):
  """Leave out the peers."""
  monkeypatch.setattr(peers, "load", lambda name: None)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Compile for one device in place of the four of the other tests."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  monkeypatch.setattr(sharding, "make_mesh", lambda: mesh)


@pytest.fixture
def accelerator(monkeypatch):
  """Let this CPU pass for a GPU; returns a function that sets its memory."""
  compiler.options()  # asked for once a process: those of a CPU

  def set_memory(count):
    monkeypatch.setattr(batch_sizes, "device_bytes", lambda: count)

  set_memory(2**24)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  return set_memory


def run(name):
  """Run the last function of each comparison, which has most in it."""
  benchmark = importlib.import_module(f"benchmarks.{name}")
  values = script.tiny_values(benchmark.FLAGS)
  comparisons = list(benchmark.comparisons(OPTIONS, **values))
  for comparison in comparisons:
    jax.block_until_ready([*comparison.functions.values()][-1]())
  return comparisons


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_benchmark_runs_and_counts_its_work(name):
  comparisons = run(name)
  assert comparisons
  for comparison in comparisons:
    assert set(comparison.parts) <= set(comparison.functions)
    if name != "defenses":
      assert comparison.operations > 0 and comparison.traffic > 0


def test_scaling_counts_the_work_of_each_size():
  forward = plain.forward_operations(CNN, 10)
  inputs = scaling.strip_with(CNN, "inputs", [2, 4])
  overlays = scaling.strip_with(CNN, "overlays", [2, 4])
  classes = scaling.neural_cleanse_with(CNN, "classes", [1, 2])
  images = scaling.neural_cleanse_with(CNN, "images", [1, 2])
  channels = scaling.pruning_with_channels(RESNET, [32], 4)
  # 16 overlays, which the small pool has; 16 inputs.
  assert inputs.sizes["inputs 4"] == (4.0, forward * 4 * 16)
  assert overlays.sizes["overlays 2"] == (2.0, forward * 16 * 2)
  # 2 updates of 16 images a size, forward and backward.
  assert classes.sizes["classes 1"] == (1.0, 2 * forward * 32)
  assert images.sizes["images 2"] == (2.0, 2 * forward * 64 * 2)
  # 33 heads of 32 x 10 on 4 images.
  assert channels.sizes["channels 32"] == (32.0, 2 * 4 * 10 * 32 * 33)
  for comparison in (inputs, overlays):
    assert comparison.sizes.keys() == comparison.functions.keys()
    jax.block_until_ready([*comparison.functions.values()][-1]())


def test_a_tiny_run_prints_no_results(capsys, monkeypatch):
  monkeypatch.setattr(roofline, "matrix_side", lambda: 16)
  values = script.tiny_values(ceiling.FLAGS)
  script.run(ceiling.comparisons, OPTIONS, values)
  printed = capsys.readouterr().out
  assert "matrix product, 16 x 16, by call" in printed
  assert "share" not in printed and results.parse(printed) == []
  script.run(ceiling.comparisons, OPTIONS._replace(tiny=False), values)
  claims = [x["claim"] for x in results.parse(capsys.readouterr().out)]
  assert claims == ["matrix product, 16 x 16", "copy of 0 MiB"]


@pytest.mark.usefixtures("alone", "accelerator")
@pytest.mark.parametrize("name", ["strip", "neural_cleanse", "pruning_curve"])
def test_a_benchmark_runs_on_an_accelerator(name):
  # Those that ask how much a device holds, or in what chunks it adds channels.
  assert run(name)


def test_strip_takes_as_many_inputs_as_an_accelerator_holds(
  accelerator, monkeypatch
):
  sizes = []
  monkeypatch.setattr(
    strip.batching, "over_images", lambda f, size, mesh: sizes.append(size)
  )
  images = script.images(2, CNN)
  # An image of 8x8 counts 8 stages of 64 float32 filters, and a quarter of the
  # memory is used: 50 images on each of 4 devices, so 20 inputs x 10 overlays.
  accelerator(4 * 50 * 4 * 8 * 64 * 8 * 8)
  monkeypatch.setattr(sharding, "make_mesh", four_devices)
  strip.ours(CNN, images, images, 10)
  strip.ours(CNN, images, images, 10, chunk=7)
  assert sizes == [20, 7]


def test_neural_cleanse_takes_as_many_classes_as_an_accelerator_holds(
  accelerator, monkeypatch
):
  sizes = []
  monkeypatch.setattr(
    neural_cleanse.searches,
    "compile_search_steps",
    lambda *args, class_batch, **kwargs: sizes.append(class_batch),
  )
  settings = SearchSettings(batch_size=4)
  images = script.images(4, CNN)
  # With the gradient an image counts 32 stages; two batches fit a quarter.
  accelerator(4 * 2 * 4 * 4 * 32 * 64 * 8 * 8)
  neural_cleanse.ours(CNN, settings, images, 10)
  neural_cleanse.ours(CNN, settings, images, 1)
  neural_cleanse.ours(CNN, settings, images, 10, class_batch=3)
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  neural_cleanse.ours(CNN, settings, images, 10)
  assert sizes == [2, 1, 3, 1]


def test_a_missing_package_is_reported(capsys, monkeypatch):
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
        lambda net=net, image=image: net.init(KEY, image, train=False)
      )
    sizes = [x.size for x in jax.tree.leaves(variables["params"])]
    assert sum(sizes) == models.count_parameters(model)


def test_a_call_of_ours_trains():
  images, labels = script.images(8, CNN), script.labels(8)
  rows = jnp.arange(8, dtype=jnp.int32).reshape(2, 4)
  call = training_step.ours(CNN, images, labels, rows)
  first = np.asarray(call())
  assert first.shape == (2,)
  for _ in range(20):
    last = np.asarray(call())
  assert last.mean() < first.mean()


def test_curves_from_images_and_point_by_point_agree():
  task = pruning_curve.PruningTask(CNN, 40, 8)
  clean, triggered = pruning_curve.ours(task)()
  points = pruning_curve.point_by_point(task, len(task.masks))()
  np.testing.assert_allclose(clean, [point[0] for point in points])
  np.testing.assert_allclose(triggered, [point[1] for point in points])
  whole = pruning_curve.one_evaluation(task)()
  np.testing.assert_allclose(whole, points[0])


def test_a_curve_from_features_is_that_from_images():
  for case in (CNN, RESNET):
    task = pruning_curve.PruningTask(case, 40, 8)
    floats = to_float(task.images)
    features = jax.jit(task.model.features)(*task.weights, floats)
    if case is RESNET:
      features = features.mean((1, 2), keepdims=True)
    call = pruning_curve.ours_cached(task, features, task.labels, 8)
    predict = incremental_pruning.predict_prefixes(task.model, task.layer)
    predicted = jax.jit(predict)((task.weights, task.order), KEY, floats)
    correct = predicted == task.labels[:, None]
    np.testing.assert_allclose(call(), np.mean(correct, 0))
