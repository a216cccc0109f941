"""The dataset that comes with scikit-learn: no network, no files."""

import importlib.util
import pathlib

import numpy as np

from bdjax.data.arrays import stratified
from bdjax.data.base import Arrays

_TEST_IMAGES = 359  # 20% of 1,797


def digits() -> Arrays:
  """Returns the UCI optical digits that scikit-learn embeds.

  1,797 images of 8x8 pixels with values 0 to 16. They are scaled by 255/16
  and rounded to the nearest integer (halves up), so that 16 becomes 255. The
  set has no split of its own: 359 test images (20%) are drawn by class with
  a fixed seed, never by the run's, so that every run's test set is the same.
  """
  table = _table()
  values = table[:, :-1].reshape(-1, 8, 8)
  images = ((values * 255 + 8) // 16).astype(np.uint8)[..., None]
  labels = table[:, -1].astype(np.uint8)
  test = np.zeros(len(labels), bool)
  test[stratified(labels, _TEST_IMAGES, seed=0)] = True
  return Arrays(images[~test], labels[~test], images[test], labels[test])


def _table() -> np.ndarray:
  """uint16 [1797,65]: 64 pixels and the label.

  The file is read from where scikit-learn lies, without importing it, which
  takes longer than the training of an epoch.
  """
  found = importlib.util.find_spec("sklearn")
  if found and found.origin:
    path = pathlib.Path(found.origin).parent / "datasets/data/digits.csv.gz"
    if path.is_file():
      return np.loadtxt(path, np.uint16, delimiter=",")
  # A release that keeps it elsewhere.
  from sklearn.datasets import load_digits

  source = load_digits()
  return np.c_[source.data, source.target].astype(np.uint16)
