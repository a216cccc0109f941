import importlib.metadata
import os
import pickle
import sys
import warnings
import zipfile

import jax
import numpy as np
import pytest
from importing import RESNET18, assert_equal, draw, refused

from bdjax import models
from bdjax.models import importers
from bdjax.models.importers import load

SHAPE = {"image_shape": (32, 32, 3), "num_classes": 3, "width": 4}


class _Touches:
  """Pickles as a call of `os.mkdir`."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.mkdir, (self.path,)


def test_without_torch_nothing_is_unpickled(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  path = tmp_path / "weights.pt"
  path.write_bytes(pickle.dumps(_Touches(tmp_path / "made")))
  refused("safetensors.torch.save_file", load, path, RESNET18)
  assert os.listdir(tmp_path) == [path.name]


@pytest.fixture(scope="module")
def torch():
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return pytest.importorskip("torch", minversion="2.6")


def _network(torch, shortcut, head, imagenet):
  """ResNet-18 with a first stage of 4, by its definition in either layout."""
  nn = torch.nn

  def conv(fan_in, fan_out, window, stride):
    return nn.Conv2d(
      fan_in, fan_out, window, stride, (window - 1) // 2, bias=False
    )

  class Block(nn.Module):
    def __init__(self, fan_in, fan_out, stride):
      super().__init__()
      self.conv1 = conv(fan_in, fan_out, 3, stride)
      self.bn1 = nn.BatchNorm2d(fan_out)
      self.conv2 = conv(fan_out, fan_out, 3, 1)
      self.bn2 = nn.BatchNorm2d(fan_out)
      layers = []
      if stride != 1 or fan_in != fan_out:
        layers = [conv(fan_in, fan_out, 1, stride), nn.BatchNorm2d(fan_out)]
      setattr(self, shortcut, nn.Sequential(*layers))

    def forward(self, x):
      y = self.bn1(self.conv1(x)).relu()
      return (self.bn2(self.conv2(y)) + getattr(self, shortcut)(x)).relu()

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1 = conv(3, 4, 7, 2) if imagenet else conv(3, 4, 3, 1)
      self.bn1 = nn.BatchNorm2d(4)
      for i, (fan_in, fan_out) in enumerate(
        [(4, 4), (4, 8), (8, 16), (16, 32)]
      ):
        first = Block(fan_in, fan_out, 2 if i else 1)
        stage = nn.Sequential(first, Block(fan_out, fan_out, 1))
        setattr(self, f"layer{i + 1}", stage)
      setattr(self, head, nn.Linear(32, 3))

    def forward(self, x):
      x = self.bn1(self.conv1(x)).relu()
      if imagenet:
        x = nn.functional.max_pool2d(x, 3, 2, 1)
      for i in range(4):
        x = getattr(self, f"layer{i + 1}")(x)
      return getattr(self, head)(x.mean((2, 3)))

  torch.manual_seed(0)
  network = Network().eval()
  with torch.no_grad():
    for name, value in network.state_dict().items():
      if value.ndim == 1:  # batch normalisation starts as the identity
        value.uniform_(0.5, 1.5) if "var" in name else value.normal_(1, 0.3)
  return network


@pytest.mark.parametrize(
  "layout, names, stem, suffix",
  [
    ("torchvision", ("downsample", "fc"), "imagenet", "pth"),
    ("cifar", ("shortcut", "linear"), "cifar", "pt"),
  ],
)
def test_logits_equal_torch_there_and_back(
  tmp_path, torch, layout, names, stem, suffix
):
  network = _network(torch, *names, stem == "imagenet")
  images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
  channels_first = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    want = network(channels_first).numpy()
  state = network.state_dict()
  if layout == "cifar":  # as kuangliu's script saves it
    state = {f"module.{name}": value for name, value in state.items()}
    state = {"net": state, "acc": 95.0, "epoch": 1}
  path = tmp_path / f"weights.{suffix}"
  torch.save(state, path)
  model = models.get("resnet18", **SHAPE, stem=stem)
  weights = load(path, model)
  got, _ = jax.jit(model.apply)(*weights, images)
  assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
  # Back: torch takes every tensor, and computes the same.
  importers.export_safetensors(tmp_path / "b.safetensors", *weights, layout)
  back = importers.safetensors.read(tmp_path / "b.safetensors")
  for value in network.state_dict().values():
    value.zero_()
  network.load_state_dict({k: torch.from_numpy(v) for k, v in back.items()})
  with torch.no_grad():
    np.testing.assert_array_equal(network(channels_first).numpy(), want)


def _state(torch):
  """A state dict of `RESNET18`, and the weights that it stands for."""
  weights = draw(RESNET18)
  state = importers.layouts.write(weights, "cifar")
  return {k: torch.from_numpy(v.copy()) for k, v in state.items()}, weights


def test_formats_and_types_of_pickled_files(tmp_path, torch):
  state, weights = _state(torch)
  path = tmp_path / "weights.pt"
  torch.save(state, path, _use_new_zipfile_serialization=False)
  assert_equal(load(path, RESNET18), weights)
  torch.save({k: v.double() for k, v in state.items()}, path)
  assert_equal(load(path, RESNET18), weights)
  torch.save({k: v.bfloat16() for k, v in state.items()}, path)
  got = load(path, RESNET18)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), got, weights
  )


def test_bfloat16_in_safetensors(tmp_path, torch):
  from_torch = pytest.importorskip("safetensors.torch")
  state, weights = _state(torch)
  path = tmp_path / "weights.safetensors"
  from_torch.save_file({k: v.bfloat16() for k, v in state.items()}, path)
  got = load(path, RESNET18)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), got, weights
  )


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_not_run(tmp_path, torch, legacy):
  path = tmp_path / "weights.pt"
  evil = {"conv1.weight": _Touches(tmp_path / "made")}
  torch.save(evil, path, _use_new_zipfile_serialization=not legacy)
  line = refused(
    "does not open it with weights_only=True", load, path, RESNET18
  )
  # torch's own message says how to run it all the same.
  assert "weights_only=False" not in line and "weights_only` to" not in line
  assert os.listdir(tmp_path) == [path.name]
  torch.save(torch.nn.Linear(1, 1), path)
  refused("does not open it", load, path, RESNET18)


SPOILT = {
  "nothing": (lambda torch: {}, "no state dict"),
  "a list": (lambda torch: [torch.zeros(1)], "no state dict"),
  "a number": (lambda torch: {"fc.bias": 3}, "'fc.bias' is int, not a named"),
  "no name": (
    lambda torch: {3: torch.zeros(1)},
    "3 is Tensor, not a named tensor",
  ),
  "integers": (
    lambda torch: {"fc.bias": torch.zeros(3, dtype=torch.int64)},
    "'fc.bias' is torch.int64",
  ),
  "nan": (lambda torch: {"fc.bias": torch.full((3,), torch.nan)}, "has NaN"),
  "sparse": (
    lambda torch: {"fc.bias": torch.eye(3).to_sparse()},
    "'fc.bias' is sparse",
  ),
  "no values": (
    lambda torch: {"fc.bias": torch.zeros(3, device="meta")},
    "'fc.bias' is sparse or has no values",
  ),
  "expanded": (
    lambda torch: {"fc.bias": torch.zeros(1).expand(2**40)},
    "declares 4398046511104 bytes",
  ),
  "expanded less": (
    lambda torch: {"fc.bias": torch.zeros(1).expand(2**20)},
    "declares 4194304 bytes of weights in a file of",
  ),
}


@pytest.mark.parametrize("kind", list(SPOILT))
def test_spoilt_state_dicts(tmp_path, torch, kind):
  make, words = SPOILT[kind]
  path = tmp_path / "weights.pt"
  torch.save(make(torch), path)
  refused(words, load, path, RESNET18)


def test_a_zip_bomb(tmp_path, torch):
  path = tmp_path / "weights.pt"
  torch.save({"fc.bias": torch.zeros(2**20)}, path)
  small = tmp_path / "small.pt"
  with (
    zipfile.ZipFile(path) as whole,
    zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as packed,
  ):
    for member in whole.infolist():
      packed.writestr(member.filename, whole.read(member))
  refused("declares 4194304 bytes of weights", load, small, RESNET18)


class _Asks:
  """Pickles as a call that `weights_only` allows, for all there is."""

  def __reduce__(self):
    return bytearray, (2**30,)  # harmless, should it get it


@pytest.mark.skipif(
  sys.platform != "linux", reason="memory is limited on Linux"
)
def test_what_asks_for_memory_does_not_get_it(tmp_path, torch):
  path = tmp_path / "weights.pt"
  torch.save({"fc.bias": _Asks()}, path)
  refused("too much for memory", load, path, RESNET18)


def test_cut_short(tmp_path, torch):
  state, _ = _state(torch)
  path = tmp_path / "weights.pt"
  torch.save(state, path)
  data = path.read_bytes()
  for length in (1000, len(data) - 1):
    path.write_bytes(data[:length])
    refused("does not open it", load, path, RESNET18)


def test_torch_that_runs_code_is_not_used(tmp_path, torch, monkeypatch):
  path = tmp_path / "weights.pt"
  torch.save({}, path)
  monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.5.1+cu124")
  refused("make torch 2.5.1.cu124 run code", load, path, RESNET18)
