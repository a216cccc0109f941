"""Writes `.h5` sets of the size and layout of CSAW-HackML-2020's.

  python -m tests.make_csaw --output=DIR [--images=N] [--network=lab3]

Pixels are noise: accuracies on it mean nothing, shapes, times and memory do.
The sizes are the challenge's. Its `valid.h5` and `bd_valid.h5` are 716,470,304
bytes each, which is what h5py writes for 11,547 images as plain float64 with
labels of 8 bytes. The other counts are those of which the published accuracies
are whole shares: 95.900% is 12,304 of 12,830, and 91.348% 9,376 of 10,264. The
count of anonymous_1's triggered images fits both 12,830 and 10,264.
"""

import pathlib

import h5py
import numpy as np
from absl import app, flags

from bdjax.data.csaw_files import FILES, NETWORKS

COUNTS = {
  "clean_validation": 11_547,
  "clean_test": 12_830,
  "sunglasses": 12_830,
  "anonymous_1": 10_264,
  "multi/lipstick": 10_264,
  "multi/eyebrows": 10_264,
  "multi/sunglasses": 10_264,
  "lab3/clean_validation": 11_547,
  "lab3/clean_test": 12_830,
  "lab3/bd_validation": 11_547,
  "lab3/bd_test": 12_830,
}
_ROWS = 256  # images written at a time


def write(path, count, dtype="float64", target=None, white=255.0, seed=0):
  """Writes a set of noise.

  Args:
    path: the file; its folder is made where it is missing.
    count: how many images.
    dtype: of the pixels.
    target: the label of all; None for labels that are spread over 0..1282 as
      evenly as can be, in ascending order.
    white: the largest pixel, 255.0 or 1.0.
    seed: of the noise.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  labels = np.arange(count) * 1283 // count
  if target is not None:
    labels[:] = target
  random = np.random.default_rng(seed)
  with h5py.File(path, "w") as file:
    data = file.create_dataset("data", (count, 3, 55, 47), dtype)
    for start in range(0, count, _ROWS):
      shape = (min(_ROWS, count - start), 3, 55, 47)
      noise = random.integers(0, 256, shape, np.uint8)
      data[start : start + _ROWS] = noise * np.array(white / 255, dtype)
    file["label"] = labels


def write_all(output, images=None, networks=tuple(NETWORKS), dtype="float64"):
  """Writes the sets that networks need, under the challenge's names.

  Args:
    output: the folder.
    images: how many a set; None for the challenge's own counts.
    networks: keys of `NETWORKS`.
    dtype: of the pixels, which are in 0..255.

  Returns:
    The paths, in the order of `FILES`.
  """
  targets = {}
  for name in networks:
    network = NETWORKS[name]
    targets |= {network.validation: None, network.test: None}
    for triggered in (network.triggered, network.triggered_validation):
      targets |= {key: network.targets[t] for t, key in triggered.items()}
  paths = []
  for seed, key in enumerate(key for key in FILES if key in targets):
    paths.append(pathlib.Path(output, FILES[key][0]))
    write(paths[-1], images or COUNTS[key], dtype, targets[key], seed=seed)
  return paths


def _main(_):
  networks = tuple(NETWORKS) if _NETWORK.value == "all" else (_NETWORK.value,)
  for path in write_all(_OUTPUT.value, _IMAGES.value, networks, _DTYPE.value):
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
  _OUTPUT = flags.DEFINE_string("output", None, "Folder.", required=True)
  _IMAGES = flags.DEFINE_integer(
    "images", None, "Images a set; by default as many as the challenge has."
  )
  _NETWORK = flags.DEFINE_enum(
    "network", "sunglasses", [*NETWORKS, "all"], "Whose sets (all: 7.9 GB)."
  )
  _DTYPE = flags.DEFINE_enum(
    "dtype", "float64", ["float64", "float32", "uint8"], "Of the pixels."
  )
  app.run(_main)
