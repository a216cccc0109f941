import json
import os
import struct

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from importing import (
  DEEPID,
  RESNET18,
  assert_equal,
  draw,
  refused,
  write_keras,
)

from bdjax import models
from bdjax.models import Weights, importers
from bdjax.models.importers import load


def test_what_does_not_fit_is_named(tmp_path):
  layers = draw(DEEPID).params
  del layers["conv_2"], layers["fc_1"]["bias"]
  layers["extra"] = {"kernel": np.zeros(1), "bias": np.zeros(1)}
  layers["output"] = {"kernel": np.zeros((160, 7)), "bias": np.zeros(7)}
  layers["conv_1"]["gamma"] = np.zeros(20)
  path = tmp_path / "weights.h5"
  with h5py.File(path, "w") as file:
    write_keras(file, layers)
  line = refused("nothing is loaded", load, path, DEEPID)
  for words in (
    "missing: conv_2, fc_1.bias;",
    "left over: conv_1.gamma, extra;",
    "output.bias [7] where [4] belongs",
    "output.kernel [160, 7] where [160, 4] belongs",
  ):
    assert words in line


def test_of_many_names_some_are_listed_and_the_rest_counted():
  found = Weights(
    {f"layer\n{i:03}{'x' * 100}": np.zeros(1) for i in range(90)}, {}
  )
  line = refused("and 40 more", importers.fit, found, DEEPID, "file")
  assert "layer?000" in line and "layer?049" in line and "layer?050" not in line


def test_a_missing_batch_statistic_is_named():
  weights = draw(RESNET18)
  del weights.batch_stats["stem_norm"]["var"]
  refused(
    r"missing: batch_stats.stem_norm.var\)",
    importers.fit,
    weights,
    RESNET18,
    "file",
  )


@pytest.mark.parametrize("suffix", ["h5", "safetensors", "pt"])
@pytest.mark.parametrize("data", [b"", b"\0", b"no such format\n" * 99])
def test_not_of_the_kind_that_they_are_called(tmp_path, suffix, data):
  path = tmp_path / f"weights.{suffix}"
  path.write_bytes(data)
  refused(
    "cannot be read as|does not open|only torch opens", load, path, DEEPID
  )


def test_no_file(tmp_path):
  refused("no such file", load, tmp_path / "none.h5", DEEPID)
  refused("no such file", load, tmp_path / "none.safetensors", DEEPID)
  (tmp_path / "folder.h5").mkdir()
  refused("not a file", load, tmp_path / "folder.h5", DEEPID)
  refused("no such file", load, "a\0b.h5", DEEPID)
  refused("unknown format", load, tmp_path / "weights.npz", DEEPID)


@pytest.mark.parametrize(
  "model", [DEEPID, RESNET18], ids=["deepid", "resnet18"]
)
def test_export_and_back(tmp_path, model):
  weights = draw(model)
  path = tmp_path / "weights.safetensors"
  path.write_bytes(b"what was there")
  importers.export_safetensors(path, *jax.tree.map(jnp.asarray, weights))
  assert_equal(load(path, model), weights)
  assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
  "layout, shortcut, head",
  [("torchvision", "downsample", "fc"), ("cifar", "shortcut", "linear")],
)
def test_resnet18_in_the_layouts_of_pytorch(tmp_path, layout, shortcut, head):
  weights = draw(RESNET18)
  params, stats = weights
  path = tmp_path / "weights.safetensors"
  importers.export_safetensors(path, *weights, layout)
  state = safetensors.numpy.load_file(path)
  assert state["conv1.weight"].shape == (4, 3, 3, 3)
  # Of blocks.2, the first of the second stage: its output, input, row, column.
  kernel = params["blocks"][2]["conv_1"]["kernel"]
  assert state["layer2.0.conv1.weight"][5, 3, 0, 2] == kernel[0, 2, 3, 5]
  np.testing.assert_array_equal(
    state[f"layer2.0.{shortcut}.0.weight"][:, :, 0, 0],
    params["blocks"][2]["shortcut"]["kernel"][0, 0].T,
  )
  for theirs, ours in (
    ("weight", params["blocks"][7]["norm_2"]["scale"]),
    ("bias", params["blocks"][7]["norm_2"]["bias"]),
    ("running_mean", stats["blocks"][7]["norm_2"]["mean"]),
    ("running_var", stats["blocks"][7]["norm_2"]["var"]),
  ):
    np.testing.assert_array_equal(state[f"layer4.1.bn2.{theirs}"], ours)
  np.testing.assert_array_equal(
    state[f"{head}.weight"], params["logits"]["kernel"].T
  )
  # As training scripts leave it: of DataParallel, with counters.
  state = {f"module.{k}": np.ascontiguousarray(v) for k, v in state.items()}
  state["module.bn1.num_batches_tracked"] = np.array(7)
  safetensors.numpy.save_file(state, path)
  assert_equal(load(path, RESNET18), weights)


def test_deepid_is_flattened_channels_first_in_pytorch(tmp_path):
  model = models.get("deepid", image_shape=(55, 47, 3), num_classes=2)
  weights = draw(model)
  path = tmp_path / "weights.safetensors"
  importers.export_safetensors(path, *weights, "deepid")
  assert_equal(load(path, model), weights)
  state = safetensors.numpy.load_file(path)
  # A map [B,5,4,60] of ours is [B,60,5,4] in PyTorch: so each flattens it.
  ours = np.random.default_rng(1).random((2, 5, 4, 60), np.float32)
  theirs = ours.transpose(0, 3, 1, 2)
  np.testing.assert_allclose(
    theirs.reshape(2, -1) @ state["fc_1.weight"].T,
    ours.reshape(2, -1) @ weights.params["fc_1"]["kernel"],
    rtol=1e-5,
  )


def test_layouts_of_other_networks(tmp_path):
  path = tmp_path / "weights.safetensors"
  export = importers.export_safetensors
  refused("no layer conv_1, conv_2", export, path, *draw(DEEPID), "cifar")
  refused("55x47 images only", export, path, *draw(DEEPID), "deepid")
  refused("layout must be one of bdjax", export, path, {}, {}, "tf")
  refused("cannot be written", export, path / "x" / "y", {}, {})
  assert not path.exists()
  export(path, *draw(RESNET18), "cifar")
  refused(
    "missing: conv_1, conv_2, .*left over: blocks.0.conv_1", load, path, DEEPID
  )


@pytest.mark.parametrize(
  "change, words",
  [
    ({"layer1.2.conv1.weight": np.zeros(1)}, "left over: layer1.2.conv1"),
    ({"fc.bias": np.zeros(3)}, "has a second name in the file"),
    ({"conv1.weight": np.zeros((4, 3, 7, 7))}, r"stem.kernel \[7, 7, 3, 4\]"),
    ({"linear.bias": np.zeros(3, np.int64)}, "linear.bias is I64"),
    ({"linear.bias": np.full(3, np.inf)}, "NaN or infinity"),
  ],
)
def test_state_dicts_that_do_not_fit(tmp_path, change, words):
  path = tmp_path / "weights.safetensors"
  importers.export_safetensors(path, *draw(RESNET18), "cifar")
  state = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file(state | change, path)
  refused(words, load, path, RESNET18)


@pytest.mark.parametrize(
  "state", [{}, {"a": 1}, {"x.weight": 1, "y.weight": 2}]
)
def test_state_dicts_of_no_known_layout(tmp_path, state):
  path = tmp_path / "weights.safetensors"
  arrays = {name: np.zeros(n, np.float32) for name, n in state.items()}
  safetensors.numpy.save_file(arrays, path)
  refused("no layout that is known", load, path, RESNET18)


def _entry(shape, offsets, dtype="F32"):
  return {"fc.bias": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
  "header, data, words",
  [
    (_entry([2**40], [0, 2**42]), b"", "cannot be read as safetensors"),
    (_entry([2**32] * 3, [0, 4]), b"1234", "cannot be read as safetensors"),
    (_entry([0, 2**62], [0, 0]), b"", "cannot be read as safetensors"),
    (_entry([1] * 99, [0, 4]), b"1234", "cannot be read as safetensors"),
    (_entry([2], [0, 4]), b"1234", "cannot be read as safetensors"),
    (_entry([1], [0, 4]), b"12", "cannot be read as safetensors"),
    (_entry([4], [0, 4], "F8_E4M3"), b"1234", "fc.bias is F8_E4M3"),
    (_entry([4], [0, 4], "object"), b"1234", "cannot be read as safetensors"),
    (b"[" * 4096, b"", "cannot be read as safetensors"),
    (b'{"a":' * 4096, b"", "cannot be read as safetensors"),
    (b" " * (2**22 + 1), b"", "a header of 4194305 bytes"),
  ],
)
def test_hostile_safetensors(tmp_path, header, data, words):
  path = tmp_path / "weights.safetensors"
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(header)) + header + data)
  refused(words, load, path, RESNET18)


def test_a_header_longer_than_its_file(tmp_path):
  path = tmp_path / "weights.safetensors"
  path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
  refused("a header of 9223372036854775808 bytes", load, path, RESNET18)
