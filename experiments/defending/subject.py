"""A trained run under examination, split into what each side may see."""

import dataclasses
import pathlib
import re
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax import sharding
from bdjax.attacks.poison import Attack
from bdjax.checkpoints import Checkpoints
from bdjax.data import Splits
from bdjax.defenses import pruning
from bdjax.errors import UserError
from bdjax.models import Model, Weights, layers
from bdjax.training import TrainState
from experiments.common import config as attack_config
from experiments.common.attack import make_attack
from experiments.common.member import load as load_data
from experiments.common.program import digest, make_model
from experiments.common.rundir import read_json
from experiments.defending.config import Config


class Defender(NamedTuple):
  """All that a defence may see: the network and data of one's own.

  Attributes:
    model: the network's definition.
    weights: as trained, perhaps with a backdoor.
    images: uint8 [N,H,W,C] on the device, held out from training.
    labels: int32 [N] on the device, the true ones.
    class_names: one a label.
    mesh: the devices.
  """

  model: Model
  weights: Weights
  images: jax.Array
  labels: jax.Array
  class_names: tuple[str, ...]
  mesh: jax.sharding.Mesh

  def batch(self, wanted: int = 256) -> int:
    """A batch size up to `wanted` and the data, that the devices can share."""
    devices = self.mesh.size
    return max(1, min(wanted, len(self.labels)) // devices) * devices

  @property
  def shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the images."""
    return self.images.shape[1:]


class Given(NamedTuple):
  """Test images that came with their triggers on, made elsewhere.

  Attributes:
    images: uint8 [M,H,W,C].
    targets: int32 [M], the label that the trigger is to bring about; the true
      ones are not known.
    trigger: int32 [M] into `names`.
    names: of the triggers.
  """

  images: np.ndarray
  targets: np.ndarray
  trigger: np.ndarray
  names: tuple[str, ...]


class Subject(NamedTuple):
  """A run: the defender's side, and the attacker's.

  Attributes:
    directory: of the run, or of the checkpoints.
    config: of the run.
    step: of the checkpoint.
    defender: see there.
    attack: None for a clean run, and where it is not known.
    generator: its parameters.
    splits: all data.
    given: triggered images instead of an attack; None for our own runs.
  """

  directory: pathlib.Path
  config: attack_config.Config
  step: int
  defender: Defender
  attack: Attack | None
  generator: Any
  splits: Splits
  given: Given | None = None

  def identity(self) -> dict[str, Any]:
    """Which network this is: a retrained one has another checksum."""
    return {"step": self.step, "weights_crc32": checksum(self.defender.weights)}


def checksum(weights: Weights) -> int:
  """CRC-32 of all the numbers of a network."""
  found = 0
  for leaf in jax.tree.leaves(jax.device_get(weights)):
    found = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), found)
  return found


def members(config: Config) -> list[pathlib.Path]:
  """The runs that `--run` or `--checkpoint` means: one, or those of a group.

  Raises:
    UserError: there is no run.
  """
  path = pathlib.Path(config.run or config.checkpoint).expanduser()
  if not path.is_dir():
    raise UserError(f"{path} does not exist: train a run first, or mend --run")
  if config.checkpoint or (path / "checkpoints").is_dir():
    return [path]
  found = [
    p
    for p in path.glob("seed-*")
    if re.fullmatch(r"seed-\d+", p.name) and (p / "checkpoints").is_dir()
  ]
  if not found:
    below = sorted(p.parent for p in path.glob("*/config.json"))
    if below and (read_json(path / "config.json") or {}).get("swept"):
      raise UserError(
        f"{path} is a sweep: take one of its settings, such as --run={below[0]}"
      )
    raise UserError(
      f"{path} has no checkpoints: it is no run, or its training has not "
      "started"
    )
  return sorted(found, key=lambda p: (len(p.name), p.name))


def load(config: Config, directory: pathlib.Path, report) -> Subject:
  """Loads a run's data and its newest checkpoint.

  Args:
    config: of the defence.
    directory: from `members`.
    report: takes lines of progress.

  Raises:
    UserError: no whole checkpoint, or data or weights that do not fit.
  """
  trained = (
    _elsewhere(config) if config.checkpoint else stored_config(directory)
  )
  if config.run and config.dataset:
    trained = dataclasses.replace(trained, dataset=config.dataset)
  here = {"data_source": config.data_source, "data_dir": config.data_dir}
  trained = dataclasses.replace(trained, **here)
  splits = load_data(trained, report)
  if trained.data_sha256 not in (None, digest(splits.info)):
    raise UserError(
      f"{trained.dataset} holds other data than {directory} was trained on: "
      "say where those are with --dataset"
    )
  if not len(splits.defender.images):
    raise UserError(
      "the run keeps no images for the defender: train it with "
      "--defender_fraction above 0"
    )
  shape = splits.test.images.shape[1:]
  model = make_model(trained, splits.info, shape)
  attack = make_attack(trained, shape, splits.info.num_classes)
  place = directory if config.checkpoint else directory / "checkpoints"
  model, found = restore(place, model, shape, attack, report)
  if config.run and not (directory / "results.json").exists():
    report(f"{directory} has not ended: this is its step {found.step}")
  mesh = sharding.make_mesh()
  state, generator = sharding.replicate(mesh, (found.state, found.generator))
  defender = Defender(
    model,
    Weights(state.params, state.batch_stats),
    *sharding.replicate(mesh, tuple(splits.defender)),
    splits.info.class_names,
    mesh,
  )
  params = generator.params if attack else {}
  return Subject(
    directory, trained, found.step, defender, attack, params, splits
  )


def stored_config(directory: pathlib.Path) -> attack_config.Config:
  """The configuration of a run, as its directory tells.

  Raises:
    UserError: it is none of a run.
  """
  stored = read_json(directory / "config.json")
  if not isinstance(stored, dict) or "experiment" not in stored:
    raise UserError(
      f"{directory} has no config.json of a run: take --checkpoint with "
      "--dataset for weights made elsewhere"
    )
  known = {f.name for f in dataclasses.fields(attack_config.Config)}
  return attack_config.Config(
    **{name: value for name, value in stored.items() if name in known}
  )


def _elsewhere(config: Config) -> attack_config.Config:
  return attack_config.Config(
    "clean",
    dataset=config.dataset,
    defender_fraction=config.defender_fraction or 0.05,
    model=config.model or "resnet18",
    width=config.width or 64,
    stem=config.stem or "cifar",
    precision="float32",
  )


def restore(place, model, shape, attack, report):
  """The model, and the checkpoint's classifier and generator.

  A network that pruning left there has the masks of one layer besides: then
  the model is a masked one.

  Args:
    place: the directory of checkpoints.
    model: of the network.
    shape: (H, W, C) of its images.
    attack: None where there is no generator.
    report: takes lines of progress.

  Raises:
    UserError: there is no checkpoint, or it is of another network.
  """
  channels = layers(model, shape)
  masked = [pruning.masked(model, {n: c}) for n, c in channels.items()]
  with Checkpoints(place, read_only=True) as checkpoints:
    if checkpoints.latest_step() is None:
      raise UserError(f"{place} holds no checkpoint: train the run first")
    refused = None
    for candidate in (model, *reversed(masked)):
      try:
        found = checkpoints.restore(*_targets(candidate, attack), report=report)
        return candidate, found
      except UserError as error:
        refused = refused or error
  raise refused


def _targets(model, attack):
  """What is to be restored: no optimisers, and a generator if there is one."""
  key = jax.random.key(0)
  step = jax.ShapeDtypeStruct((), np.int32)
  state = TrainState(step, *jax.eval_shape(model.init, key), None)
  if attack is None:
    return state, None
  return state, TrainState(step, jax.eval_shape(attack.init, key), {}, None)
