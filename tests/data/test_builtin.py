import pytest

from bdjax.data import builtin
from bdjax.data.arrays import digests
from bdjax.data.specs import SPECS
from bdjax.errors import UserError


def test_the_shipped_digits_are_the_pinned_arrays():
  assert digests(builtin.digits()) == SPECS["digits"].sha256


def test_one_changed_bit_is_noticed(tmp_path):
  data = bytearray(builtin.DIGITS_PATH.read_bytes())
  data[len(data) // 2] ^= 1
  path = tmp_path / "digits.npz"
  path.write_bytes(data)
  with pytest.raises(UserError, match="is damaged.*: install bdjax again$"):
    builtin.digits(path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match=r"gone\.npz cannot be read \(No such"):
    builtin.digits(tmp_path / "gone.npz")
