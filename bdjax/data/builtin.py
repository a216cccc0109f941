"""The dataset that comes with scikit-learn: no network, no files."""

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
  # Imported here: it takes most of a second, and other datasets need it not.
  from sklearn.datasets import load_digits

  source = load_digits()
  values = source.images.astype(np.uint16)  # [1797,8,8]
  images = ((values * 255 + 8) // 16).astype(np.uint8)[..., None]
  labels = source.target.astype(np.uint8)
  test = np.zeros(len(labels), bool)
  test[stratified(labels, _TEST_IMAGES, seed=0)] = True
  return Arrays(images[~test], labels[~test], images[test], labels[test])
