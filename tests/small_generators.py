"""The Input-Aware attack with networks that compile in a second."""

import contextlib
import importlib
from unittest import mock

from bdjax.models.encoder_decoder import encoder_decoder


@contextlib.contextmanager
def small_networks():
  """Give the Input-Aware attack networks of one step and four filters."""
  # The package has a function of the module's name.
  module = importlib.import_module("bdjax.attacks.input_aware")

  def small(image_shape, out_channels, widths):
    del widths
    return encoder_decoder(image_shape, out_channels, (4,))

  with mock.patch.object(module, "encoder_decoder", small):
    yield
