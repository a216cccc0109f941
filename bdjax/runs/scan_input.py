"""The input of a scan: a network from a file with images, or a trained run."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax import data, sharding
from bdjax.data.arrays import digests
from bdjax.errors import UserError
from bdjax.models import MODELS, Model, Weights
from bdjax.models.importers.images import read_images
from bdjax.models.importers.pretrained import open_network
from bdjax.runs.directory import DEFENSES
from bdjax.runs.load import find_runs, load_run
from bdjax.runs.trained_run import checksum
from bdjax.settings import setting


def _network(default, text, **meta):
  return setting(default, text, group="network", **meta)


def _run(default, text, **meta):
  return setting(default, text, group="run", free=True, **meta)


@dataclasses.dataclass(frozen=True)
class ScanConfig:
  """A scan's run: every setting but those of the method."""

  weights: str | None = _network(
    None, "Network: a file .h5, .safetensors, .pt or .pth.", free=True
  )
  images: str | None = _network(
    None,
    "Clean images, with weights: a folder of PNG and JPEG, one of them, a .npz "
    "(images, labels) or a .h5 set of CSAW-HackML-2020.",
    free=True,
  )
  run: str | None = _network(
    None,
    "Run to scan, runs/NAME, with its defender's images; in place of weights.",
    free=True,
  )
  dataset: str | None = _network(
    None, "Place of the run's .npz file now, with run.", free=True
  )
  data_source: str = _network(
    "auto", "Source of the bytes, as in training, with run.", free=True
  )
  data_dir: str | None = _network(
    None, "Directory of data, as in training, with run.", free=True
  )
  model: str | None = _network(
    None,
    "Network's name, with weights (default: what the file's layers tell).",
    choices=tuple(MODELS),
  )
  pixel_max: int | None = _network(
    None,
    "Largest pixel in the network's training, 1 or 255 (default: the one with "
    "the better accuracy on labelled images, else 1).",
  )
  mean: str | None = _network(
    None, "Means subtracted from the channels, with commas (default: 0)."
  )
  std: str | None = _network(
    None, "Numbers that divide the channels, with commas (default: 1)."
  )
  output: str | None = _run(
    None,
    "Directory of the results (default: runs/scan-WEIGHTS, or defenses/scan in "
    "the run).",
  )
  overwrite: bool = _run(False, "Start over where there are results.")
  profile: str | None = _run(
    None, "Directory for a trace of all of it, for Perfetto or xprof."
  )


class ScanInput(NamedTuple):
  """A network, and the images to scan it with.

  Attributes:
    info: of the images, with the names of the classes; its name is the
      network's.
    model: takes images in [0,1].
    weights: of the network.
    images: uint8 [N,H,W,C], clean; on the host.
    labels: int32 [N], the true ones; None where they are not known.
    mesh: the devices.
    identity: which network and images these are, JSON-ready.
    directory: where the results go.
    accuracy: on the images, by the largest pixel assumed; None where that was
      not tried.
  """

  info: data.Info
  model: Model
  weights: Weights
  images: np.ndarray
  labels: np.ndarray | None
  mesh: jax.sharding.Mesh
  identity: dict[str, Any]
  directory: pathlib.Path
  accuracy: dict[float, float] | None = None


def open_input(config: ScanConfig) -> ScanInput:
  """Open the network and the images of a scan.

  Args:
    config: of the scan.

  Raises:
    UserError: settings that contradict each other, or files that are not what
      they must be.
  """
  if (config.run is None) == (config.weights is None):
    raise UserError(
      "weights must be given with images, or run, as runs/NAME: one of them"
    )
  opened = (_open_run if config.run else _open_file)(config)
  if opened.info.num_classes < 3:
    raise UserError("a scan needs at least 3 classes (got 2)")
  if config.output:
    directory = pathlib.Path(config.output).expanduser()
    opened = opened._replace(directory=directory)
  return opened


def parse_numbers(text: str | None, name: str) -> tuple[float, ...] | None:
  """Read the mean or the standard deviation of the channels.

  Args:
    text: numbers with commas, or None.
    name: of the setting, for the error.

  Returns:
    The numbers; None where there is no text.

  Raises:
    UserError: these are not numbers.
  """
  try:
    return None if text is None else tuple(map(float, text.split(",")))
  except ValueError:
    raise UserError(
      f"{name} must be numbers with commas (got {text!r})"
    ) from None


def _refuse(config: ScanConfig, names: tuple[str, ...], other: str) -> None:
  """Refuse settings that go with the other kind of input."""
  for name in names:
    if getattr(config, name) is not None:
      raise UserError(f"{name} must be left out with {other}")


def _open_file(config: ScanConfig) -> ScanInput:
  _refuse(config, ("dataset", "data_dir"), "weights")
  if config.images is None:
    raise UserError("images must be given with weights: clean ones of its kind")
  images = read_images(config.images)
  network = open_network(
    config.weights,
    images,
    model=config.model,
    pixel_max=config.pixel_max,
    mean=parse_numbers(config.mean, "mean"),
    std=parse_numbers(config.std, "std"),
  )
  stem = pathlib.Path(config.weights).stem
  names = tuple(map(str, range(network.num_classes)))
  opened = _input(
    (stem, names, "file"),
    (network.model, network.weights),
    (images.images, images.labels),
    sharding.make_mesh(),
    pathlib.Path("runs") / f"scan-{stem}",
  )
  return opened._replace(
    identity=opened.identity | {"pixel_max": network.pixel_max},
    accuracy=network.accuracy,
  )


def _open_run(config: ScanConfig) -> ScanInput:
  _refuse(config, ("images", "model", "pixel_max", "mean", "std"), "run")
  root = pathlib.Path(config.run).expanduser()
  runs = find_runs(root)
  if runs != [root]:
    raise UserError(f"run must be one run, such as {runs[0]} (got {root})")
  run = load_run(
    root,
    dataset=config.dataset,
    data_source=config.data_source,
    data_dir=config.data_dir,
  )
  defender = run.defender
  return _input(
    (run.name, defender.class_names, run.splits.info.source),
    (defender.model, defender.weights),
    jax.device_get((defender.images, defender.labels)),
    defender.mesh,
    root / DEFENSES / "scan",
  )


def _input(about, network, images, mesh, directory) -> ScanInput:
  """Put an input together, with what tells it from others."""
  name, class_names, source = about
  pixels, labels = images
  known = np.zeros(0, np.int32) if labels is None else labels
  sha256 = digests(data.Dataset(pixels, known))
  channels = pixels.shape[3]
  info = data.Info(
    name,
    len(class_names),
    class_names,
    source,
    sha256,
    (0.0,) * channels,
    (1.0,) * channels,
  )
  identity = {
    "name": name,
    "weights_crc32": checksum(network[1]),
    "images": sha256,
  }
  return ScanInput(info, *network, pixels, labels, mesh, identity, directory)
