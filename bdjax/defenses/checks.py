"""Checks that defences share."""

from bdjax.defenses.base import Defender
from bdjax.errors import UserError


def check_images(defender: Defender, least: int = 1) -> None:
  """Check that the defender has enough images.

  Args:
    defender: as a defence gets it.
    least: how many images the defence needs.

  Raises:
    UserError: there are fewer.
  """
  count = len(defender.labels)
  if count < least:
    raise UserError(
      f"the defender must have at least {least} image{'s' * (least > 1)} "
      f"(got {count})"
    )


def parse_shares(text: str, name: str) -> dict[str, float]:
  """Parse shares with commas in between.

  Args:
    text: such as `0.02,0.04`.
    name: of the setting, for errors.

  Returns:
    The text of each share -> its value in (0,1), in the given order.

  Raises:
    UserError: one is not a number between 0 and 1.
  """
  try:
    shares = {part.strip(): float(part) for part in text.split(",")}
  except ValueError:
    raise UserError(
      f"{name} must be numbers with commas in between (got {text!r})"
    ) from None
  for value in shares.values():
    if not 0 < value < 1:
      raise UserError(f"{name} must be between 0 and 1 (got {value:g})")
  return shares
