"""STRIP of the Adversarial Robustness Toolbox."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.defences.transformer.poisoning import STRIP
from art.estimators.classification import PyTorchClassifier

from benchmarks.pytorch.device import DEVICE, precision


class _Probabilities(torch.nn.Module):
  """A network that returns probabilities, of which ART takes entropies."""

  def __init__(self, net, bf16):
    super().__init__()
    self.net, self.bf16 = net, bf16

  def forward(self, x):
    with precision(self.bf16):
      logits = self.net(x)
    return logits.float().softmax(1)


def entropies(
  net: Any, images: Any, overlays: int, case: Any
) -> Callable[[], float]:
  """Make the threshold fitted to the entropies of all images.

  Args:
    net: the network, on the device.
    images: uint8 [N,H,W,C]; ART takes its overlays from them too.
    overlays: on each image.
    case: `script.Case`.
  """
  x = np.asarray(images, np.float32).transpose(0, 3, 1, 2) / np.float32(255.0)
  classifier = PyTorchClassifier(
    model=_Probabilities(net.eval(), case.bf16),
    loss=torch.nn.CrossEntropyLoss(),
    input_shape=x.shape[1:],
    nb_classes=net.logits.out_features,
    device_type="gpu" if DEVICE.type == "cuda" else "cpu",
  )
  guarded = STRIP(classifier)(num_samples=overlays)

  def run():
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
      guarded.mitigate(x)
    return guarded.entropy_threshold

  return run
