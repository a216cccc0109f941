import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.models import chunks


@pytest.mark.parametrize(
  "n, most, count, size",
  [
    (128, 20, 8, 16),  # the largest divisor
    (500, 16, 50, 10),
    (12, 100, 1, 12),
    (5, 0, 5, 1),
    (101, 16, 7, 15),  # no divisor is near: the last chunk is filled up
    (1, 16, 1, 1),
  ],
)
def test_chunks_are_of_one_size(n, most, count, size):
  x, y = jnp.arange(1.0, 2 * n + 1).reshape(n, 2), jnp.ones((n, 3, 1))
  a, b = chunks.cut([x, y], most)
  assert a.shape == (count, size, 2) and b.shape == (count, size, 3, 1)
  np.testing.assert_array_equal(chunks.join(a, n), x)
  np.testing.assert_array_equal(chunks.join(b, n), y)
  # What fills up adds nothing to a sum.
  assert a.sum() == x.sum() and b.sum() == y.sum()
