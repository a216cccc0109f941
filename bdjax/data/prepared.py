"""Directories that TFDS has prepared, whoever prepared them."""

import io
import json
import logging
import os
import pathlib
import struct
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import hashing

from bdjax.data.base import Arrays
from bdjax.errors import UserError
from bdjax.files import first_line

logger = logging.getLogger(__name__)

_CHUNK = 1000  # records a read: enough to keep array_record's threads busy


def read(directory: pathlib.Path) -> Arrays:
  """Read the splits 'train' and 'test' in their canonical order.

  Args:
    directory: holds dataset_info.json, and array_record or tfrecord files.

  Raises:
    UserError: the directory is broken, or of another format.
  """
  logger.info("reading %s", directory)
  try:
    builder = tfds.builder_from_directory(directory)
    parts = [_split(builder, name) for name in ("train", "test")]
  except (UserError, ImportError, MemoryError):
    raise
  except Exception as error:  # C++ readers raise what they like
    raise UserError(
      f"{directory} cannot be read ({first_line(error)}): delete it and run "
      "again, which prepares it anew"
    ) from error
  return Arrays(*parts[0], *parts[1])


def _split(builder, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Return images uint8 [N,H,W,C] and labels int32 [N]."""
  images, labels, ids = [], [], []
  for example in _examples(builder, name):
    images.append(_decode(example["image"]))
    labels.append(example["label"])
    ids.append(example.get("id"))
  all_images = np.empty((len(images), *images[0].shape), np.uint8)
  all_labels = np.empty(len(labels), np.int32)
  order = _canonical_order(name, ids)
  for index, image, label in zip(order, images, labels, strict=True):
    all_images[index] = image
    all_labels[index] = label
  return all_images, all_labels


def _examples(builder, name: str) -> Iterable[dict]:
  """Yield examples whose 'image' is still the bytes of a PNG file."""
  decoders = {"image": tfds.decode.SkipDecoding()}
  formats = tfds.core.FileFormat
  if builder.info.file_format == formats.TFRECORD:
    # tfds.data_source reads formats with random access only; its way for
    # this one is TensorFlow.
    features = builder.info.features
    for path in builder.info.splits[name].filepaths:
      for record in tfrecords(pathlib.Path(path)):
        yield features.deserialize_example_np(record, decoders=decoders)
    return
  if builder.info.file_format != formats.ARRAY_RECORD:
    raise UserError(
      f"{builder.data_dir} is prepared as {builder.info.file_format.value}: "
      "prepare it as array_record or tfrecord, or name another data_dir"
    )
  source = builder.as_data_source(name, decoders=decoders)
  for start in range(0, len(source), _CHUNK):
    stop = min(start + _CHUNK, len(source))
    yield from source.__getitems__(list(range(start, stop)))


def _decode(data: bytes) -> np.ndarray:
  with Image.open(io.BytesIO(data)) as image:
    pixels = np.asarray(image)
  return pixels if pixels.ndim == 3 else pixels[..., None]


def _canonical_order(split: str, ids: Sequence) -> list[int]:
  """Return each record's index in the dataset as it was published.

  TFDS writes records in the order of their keys' hashes. CIFAR-10's carry
  that key in their id ('train_00042'); of MNIST's, which have none, the key
  is the index itself, so that sorting the hashes again tells it.
  """
  if ids and ids[0] is not None:
    return [int(id_.rpartition(b"_")[2]) for id_ in ids]
  hasher = hashing.Hasher(split)
  keys = [hasher.hash_key(index) for index in range(len(ids))]
  return sorted(range(len(ids)), key=keys.__getitem__)


def tfrecords(path: pathlib.Path) -> Iterator[bytes]:
  """Yield the records of a TFRecord file.

  A record is its length (little-endian uint64), that length's CRC (uint32),
  the bytes, and their CRC. The CRCs are not checked: in pure Python that
  takes a minute, and the caller checks the SHA-256 of what comes out.

  Raises:
    UserError: the file is cut short.
  """
  with path.open("rb") as file:
    left = os.fstat(file.fileno()).st_size
    while left:
      header = file.read(12)
      length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
      left -= 16 + length
      if len(header) < 12 or left < 0:
        raise UserError(
          f"{path} is cut short: delete its directory and prepare it again"
        )
      yield file.read(length)
      file.seek(4, os.SEEK_CUR)


def find(root: pathlib.Path, name: str) -> pathlib.Path | None:
  """Return the newest prepared version's directory in `root`, if any."""
  versions = [
    path.parent
    for path in (root / name).glob("*/dataset_info.json")
    if all(part.isdigit() for part in path.parent.name.split("."))
  ]
  if not versions:
    return None
  return max(versions, key=lambda path: [*map(int, path.name.split("."))])


def source_of(directory: pathlib.Path) -> str:
  """Return the source of a prepared directory's bytes.

  bdjax leaves a note in what it prepares; without one somebody else did it.
  """
  try:
    note = json.loads((directory / "metadata.json").read_text())
    return str(note["bdjax_source"])
  except (OSError, ValueError, KeyError, TypeError):
    return "tfds-prepared"
