import jax.numpy as jnp
import pytest

from bdjax.defenses.checks import check_images, parse_shares
from bdjax.errors import UserError


def test_shares_keep_their_text_and_order():
  got = parse_shares("0.04, 0.02,1e-3", "drops")
  assert list(got.items()) == [("0.04", 0.04), ("0.02", 0.02), ("1e-3", 1e-3)]


@pytest.mark.parametrize("text", ["", "0.1,", "x", "0.1;0.2"])
def test_what_is_no_number_is_refused(text):
  with pytest.raises(UserError, match="^frr must be numbers with commas"):
    parse_shares(text, "frr")


@pytest.mark.parametrize("text", ["0", "1", "0.5,-0.1", "nan", "inf"])
def test_what_is_no_share_is_refused(text):
  with pytest.raises(UserError, match="^drops must be between 0 and 1"):
    parse_shares(text, "drops")


def test_the_number_of_images_is_checked(defender):
  few = defender._replace(labels=jnp.zeros(2, jnp.int32))
  check_images(few)
  check_images(few, 2)
  with pytest.raises(UserError, match="at least 3 images .got 2"):
    check_images(few, 3)
  none = defender._replace(labels=jnp.zeros(0, jnp.int32))
  with pytest.raises(UserError, match="at least 1 image .got 0"):
    check_images(none)
