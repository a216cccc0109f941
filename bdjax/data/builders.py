"""TFDS builders of MNIST, Fashion-MNIST and CIFAR-10 without TensorFlow.

They are upstream's own, with the same name, version, features, keys and
order of records; only the reading of what was downloaded is done with numpy.
"""

import gzip
import io
import pathlib
import sys
import tarfile
import zlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import (
  NonMatchingChecksumError,
)
from tensorflow_datasets.image_classification import cifar, mnist

from bdjax.data import idx
from bdjax.data.base import Arrays
from bdjax.data.specs import SPECS
from bdjax.files import write_json


class _FromArrays:
  """Mixin: yields the examples of `self.arrays`."""

  arrays: Arrays

  def _split_generators(self, dl_manager):
    self.info.features["label"].names = list(SPECS[self.name].class_names)
    return {
      "train": self._generate_examples("train", *self.arrays[:2]),
      "test": self._generate_examples("test", *self.arrays[2:]),
    }

  def _generate_examples(self, split, images, labels):
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
      example = {"image": _png(image), "label": int(label)}
      if "id" in self.info.features:
        example["id"] = f"{split}_{index:05d}"
      yield index, example

  def _log_download_bytes(self):  # upstream prints here
    pass

  def _log_download_done(self):
    pass


with tfds.core.registered.skip_registration():

  class Cifar10(_FromArrays, cifar.Cifar10):
    """CIFAR-10 (Krizhevsky 2009)."""

    name = "cifar10"
    pkg_dir_path = cifar.Cifar10.pkg_dir_path

    def download(self, dl_manager) -> Arrays:
      """Fetch and read upstream's archive of .bin files."""
      files = self._cifar_info
      archive = dl_manager.download(files.url)
      with tarfile.open(archive) as tar:
        parts = {
          name: tar.extractfile(files.prefix + name).read()
          for name in (*files.train_files, *files.test_files)
        }
      train = b"".join(parts[name] for name in files.train_files)
      test = b"".join(parts[name] for name in files.test_files)
      return Arrays(*_cifar_records(train), *_cifar_records(test))

  class MNIST(_FromArrays, mnist.MNIST):
    """MNIST (LeCun, Cortes, Burges 1998)."""

    name = "mnist"
    pkg_dir_path = mnist.MNIST.pkg_dir_path

    def download(self, dl_manager) -> Arrays:
      """Fetch and read upstream's four idx files."""
      urls = {name: f"{self.URL}{name}.gz" for name in idx.FILES}
      paths = dl_manager.download(urls)
      return idx.from_members(
        {
          name: gzip.decompress(pathlib.Path(path).read_bytes())
          for name, path in paths.items()
        }
      )

  class FashionMNIST(MNIST, mnist.FashionMNIST):
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017)."""

    name = "fashion_mnist"
    pkg_dir_path = mnist.FashionMNIST.pkg_dir_path
    URL = mnist.FashionMNIST.URL
    _info = mnist.FashionMNIST._info


BUILDERS = {
  "cifar10": Cifar10,
  "mnist": MNIST,
  "fashion_mnist": FashionMNIST,
}


# What `download` raises where the bytes are wrong...
CORRUPTED = (
  NonMatchingChecksumError,
  KeyError,
  ValueError,
  EOFError,
  zlib.error,
  gzip.BadGzipFile,
  tarfile.TarError,
)
# ... and where the host cannot be reached, or refuses.
UNREACHABLE = (tfds.core.download.DownloadError, OSError)


def download(name: str, directory: pathlib.Path) -> Arrays:
  """Download a dataset from upstream's URLs, with TFDS's checksums.

  Args:
    name: of `BUILDERS`.
    directory: where downloads are kept.

  Returns:
    The dataset, in canonical order.

  Raises:
    One of `CORRUPTED` or of `UNREACHABLE`.
  """
  builder = BUILDERS[name](data_dir=directory)
  return builder.download(
    tfds.download.DownloadManager(
      download_dir=directory, url_infos=builder.url_infos, dataset_name=name
    )
  )


def prepare(
  name: str, arrays: Arrays, source: str, root: pathlib.Path
) -> pathlib.Path:
  """Prepare a dataset as array_record files.

  Args:
    name: of `BUILDERS`.
    arrays: the dataset, in canonical order.
    source: of the arrays, for the note in the directory.
    root: a TFDS folder.

  Returns:
    The prepared directory, root/name/version.
  """
  if not sys.stderr.isatty():  # bars are for people
    tfds.disable_progress_bar()
  builder = BUILDERS[name](data_dir=root)
  builder.arrays = arrays
  builder.download_and_prepare(
    download_dir=root / "downloads",
    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    file_format="array_record",
  )
  directory = pathlib.Path(builder.data_dir)
  write_json(directory / "metadata.json", {"bdjax_source": source})
  return directory


def _png(image: np.ndarray) -> bytes:
  file = io.BytesIO()
  pixels = image[..., 0] if image.shape[-1] == 1 else image
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def _cifar_records(data: bytes) -> tuple[np.ndarray, np.ndarray]:
  records = np.frombuffer(data, np.uint8).reshape(-1, 3073)  # label, CHW
  images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return np.ascontiguousarray(images), records[:, 0].astype(np.int32)
