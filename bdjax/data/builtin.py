"""The data set that comes with bdjax: no network, nothing to prepare.

`digits.npz` holds the test part of "Optical Recognition of Handwritten Digits"
(CC BY 4.0; see DIGITS.md), the images that scikit-learn calls digits.

References:
  E. Alpaydin, C. Kaynak, 1998, "Optical Recognition of Handwritten Digits",
  UCI Machine Learning Repository, doi:10.24432/C50P49.
"""

import hashlib
import io
import pathlib

import numpy as np

from bdjax.data.arrays import stratified
from bdjax.data.base import Arrays
from bdjax.errors import UserError

DIGITS_PATH = pathlib.Path(__file__).with_name("digits.npz")
_SHA256 = "b2dab7b501728c22e9119ad76740b2e17c77a231e42d1e592380d90886f1a05e"
_TEST_IMAGES = 359  # 20% of 1,797


def digits(path: pathlib.Path = DIGITS_PATH) -> Arrays:
  """Read the 1,797 optical digits that bdjax ships.

  The pixels' values, 0 to 16, are scaled by 255/16 and rounded to the nearest
  integer (halves up), so that 16 becomes 255. The set has no split of its own:
  359 test images (20%) are drawn by class with a fixed seed, never by the
  run's, so that every run's test set is the same.

  Args:
    path: the file that is read; its bytes must be those that bdjax ships.

  Returns:
    Training images uint8 [1438,8,8,1] and labels uint8 [1438], test images
    uint8 [359,8,8,1] and labels uint8 [359].

  Raises:
    UserError: the file is missing or damaged.
  """
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(
      f"{path} cannot be read ({error.strerror}): install bdjax again"
    ) from None
  if hashlib.sha256(data).hexdigest() != _SHA256:
    raise UserError(f"{path} is damaged (SHA-256): install bdjax again")
  with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
    values, labels = arrays["images"].astype(np.uint16), arrays["labels"]
  images = ((values * 255 + 8) // 16).astype(np.uint8)[..., None]
  test = np.zeros(len(labels), bool)
  test[stratified(labels, _TEST_IMAGES, seed=0)] = True
  return Arrays(images[~test], labels[~test], images[test], labels[test])
