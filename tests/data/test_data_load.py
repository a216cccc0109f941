import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax.data import NAMES, Dataset, digests, load
from bdjax.data.arrays import channel_statistics, check, stratified
from bdjax.data.base import Arrays
from bdjax.data.specs import SPECS


@pytest.fixture
def numbered(tmp_path):
  """An .npz file whose every image holds its own number."""
  path = tmp_path / "numbered.npz"
  numbers = np.arange(200, dtype=np.uint8)
  images = np.broadcast_to(numbers[:, None, None, None], (200, 8, 8, 1))
  labels = np.repeat([0, 1], [40, 160])
  np.savez(
    path, x_train=images, y_train=labels, x_test=images[:3], y_test=labels[:3]
  )
  return str(path)


def numbers(dataset):
  return dataset.images[:, 0, 0, 0].tolist()


def test_digits_shapes_types_and_source():
  splits = load("digits")
  assert splits.train.images.shape == (1366, 8, 8, 1)
  assert splits.defender.images.shape == (72, 8, 8, 1)
  assert splits.test.images.shape == (359, 8, 8, 1)
  for part in splits[:3]:
    assert part.images.dtype == np.uint8
    assert part.labels.dtype == np.int32
  info = splits.info
  assert (info.name, info.num_classes, info.source) == ("digits", 10, "builtin")
  assert info.class_names == tuple("0123456789")
  assert info.sha256 == SPECS["digits"].sha256


def test_digits_values_are_scaled_from_16_to_255():
  values = np.unique(load("digits").train.images)
  # Halves go up: 8 * 255 / 16 = 127.5.
  assert values.tolist() == [
    0,
    16,
    32,
    48,
    64,
    80,
    96,
    112,
    128,
    143,
    159,
    175,
    191,
    207,
    223,
    239,
    255,
  ]


def test_digits_test_set_is_stratified_and_the_same_for_every_seed():
  first, second = load("digits", seed=0), load("digits", seed=1)
  np.testing.assert_array_equal(first.test.images, second.test.images)
  assert np.ptp(np.bincount(first.test.labels)) <= 2


def test_digits_needs_no_tensorflow_datasets():
  code = (
    'import sys, bdjax.data; bdjax.data.load("digits"); '
    'sys.exit("tensorflow_datasets" in sys.modules)'
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_defender_is_disjoint_stratified_and_complete(numbered):
  splits = load(numbered, defender_fraction=0.1, seed=3)
  train, defender = numbers(splits.train), numbers(splits.defender)
  assert sorted(train + defender) == list(range(200))
  assert np.bincount(splits.defender.labels).tolist() == [4, 16]
  assert train == sorted(train)
  assert defender == sorted(defender)
  # A label stays with its image.
  assert splits.defender.labels.tolist() == [int(n >= 40) for n in defender]


def test_defender_is_drawn_by_seed(numbered):
  draws = [numbers(load(numbered, seed=seed).defender) for seed in (0, 0, 1)]
  assert draws[0] == draws[1]
  assert draws[0] != draws[2]
  assert len(draws[0]) == 10


def test_the_draw_of_a_seed_never_changes():
  # Computed once: a change here changes every user's split.
  labels = np.arange(20) % 2
  assert stratified(labels, 6, seed=0).tolist() == [3, 4, 7, 8, 11, 16]


def test_hash_and_statistics_are_those_before_the_split(numbered):
  infos = [load(numbered, seed=seed).info for seed in (0, 1)]
  assert infos[0] == infos[1]
  assert infos[0].mean == pytest.approx((np.arange(200).mean() / 255,))
  assert infos[0].std == pytest.approx((np.arange(200).std() / 255,))


def test_no_defender(numbered):
  splits = load(numbered, defender_fraction=0)
  assert len(splits.defender.labels) == 0
  assert splits.defender.images.shape == (0, 8, 8, 1)
  assert len(splits.train.labels) == 200


def test_a_fraction_of_less_than_one_image_is_one_image(numbered):
  splits = load(numbered, defender_fraction=1e-6)
  assert len(splits.defender.labels) == 1


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan"), 0.999])
def test_bad_fraction(numbered, fails, fraction):
  line = fails(load, numbered, defender_fraction=fraction)
  assert "defender_fraction" in line


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_bad_seed(fails, seed):
  assert "seed" in fails(load, "digits", seed=seed)


@pytest.mark.parametrize(
  "count, expected",
  [
    (4, [1, 3]),  # shares 1 and 3
    (2, [1, 1]),  # shares 0.5 and 1.5: the first of equal remainders is raised
    (3, [1, 2]),  # shares 0.75 and 2.25
    (0, [0, 0]),
    (40, [10, 30]),
  ],
)
def test_stratified_by_hand(count, expected):
  labels = np.repeat([0, 1], [10, 30])
  drawn = stratified(labels, count, seed=0)
  assert np.bincount(labels[drawn], minlength=2).tolist() == expected


@settings(deadline=None, database=None)  # not timed, and writes no file
@given(
  labels=st.lists(st.integers(0, 5), min_size=1, max_size=60),
  share=st.floats(0, 1),
  seed=st.integers(0, 2**32 - 1),
)
def test_stratified_draws_each_index_once(labels, share, seed):
  count = round(share * len(labels))
  drawn = stratified(np.array(labels), count, seed)
  assert len(drawn) == count
  assert (np.diff(drawn) > 0).all()
  for label in set(labels):
    quota = sum(labels[i] == label for i in drawn)
    assert abs(quota - labels.count(label) * count / len(labels)) < 1


def test_channel_statistics_over_several_chunks():
  images = np.random.default_rng(0).integers(0, 256, (2500, 8, 8, 3), np.uint8)
  mean, std = channel_statistics(images)
  np.testing.assert_allclose(mean, images.mean((0, 1, 2)) / 255)
  np.testing.assert_allclose(std, images.std((0, 1, 2)) / 255)


@pytest.mark.parametrize("largest, dtype", [(255, np.uint8), (256, np.int32)])
def test_labels_are_hashed_as_uint8_where_all_fit(largest, dtype):
  images = np.zeros((2, 8, 8, 1), np.uint8)
  labels = np.array([0, 1], np.int32), np.array([largest, 2], np.int32)
  sha256 = digests(Arrays(images, labels[0], images, labels[1]))
  for name, part in zip(("y_train", "y_test"), labels, strict=True):
    expected = hashlib.sha256(part.astype(dtype).tobytes()).hexdigest()
    assert sha256[name] == expected
  part = Dataset(images, labels[1])
  expected = hashlib.sha256(labels[1].tobytes()).hexdigest()
  assert digests(part)["labels"] == expected


def test_negative_labels_are_refused(fails):
  spec = SPECS["mnist"]._replace(sha256={})
  images, labels = np.zeros((1, 28, 28, 1), np.uint8), np.array([-1], np.int32)
  line = fails(check, Arrays(images, labels, images, labels), spec, "x", "y")
  assert "labels below 10" in line


def test_unknown_name_tells_the_nearest(fails):
  assert "did you mean cifar10" in fails(load, "cifr10")
  assert "did you mean fashion_mnist" in fails(load, "Fashion-MNIST")
  line = fails(load, "svhn")
  assert "did you mean" not in line
  assert all(name in line for name in NAMES)


@pytest.mark.parametrize(
  "name, source",
  [
    ("mnist", "builtin"),
    ("digits", "npm"),
    ("cifar10", "idx"),
    ("fashion_mnist", "npm"),
    ("digits", "nonsense"),
    ("x.npz", "tfds"),
  ],
)
def test_source_that_does_not_fit(fails, name, source):
  line = fails(load, name, source=source)
  assert repr(source) in line
  assert "auto" in line
