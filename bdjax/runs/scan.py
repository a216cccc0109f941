"""Runs a scan in a directory: searches, verdicts and figures."""

import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np

from bdjax import files, plots, provenance
from bdjax import settings as settings_lib
from bdjax.attacks.patches import Trigger, stamp
from bdjax.batching import to_float
from bdjax.defenses.scan import SHOWN, ScanSettings, report, round_width, scan
from bdjax.models.importers.pretrained import by_pixel_max
from bdjax.runs import directory as layout
from bdjax.runs import profiling
from bdjax.runs.scan_input import ScanConfig, ScanInput, open_input


def scan_run(
  config: ScanConfig, settings: ScanSettings
) -> tuple[dict[str, Any], pathlib.Path]:
  """Scan a network, or return existing results.

  Args:
    config: of the run.
    settings: of the scan.

  Returns:
    What `results.json` says, and the directory that holds it.

  Raises:
    UserError: something the user can put right.
  """
  settings_lib.check(config)
  settings_lib.check(settings)
  profiling.check(config.profile)
  opened = open_input(config)
  # Which arms are drawn depends on how many a round takes.
  width = round_width(
    settings, opened.info.num_classes, opened.images.shape[1:], opened.mesh
  )
  settings = dataclasses.replace(settings, class_batch=width)
  identity = (
    settings_lib.identity(config)
    | settings_lib.identity(settings)
    | opened.identity
    | {"format": 2}
  )
  with (
    layout.open_directory(
      opened.directory, identity, overwrite=config.overwrite, hint="output"
    ) as directory,
    profiling.traced(config.profile),
  ):
    results = layout.load_or_compute(
      directory,
      lambda: _scan(opened, settings, directory) | {"config": identity},
    )
    shutil.rmtree(directory / layout.CHECKPOINTS, ignore_errors=True)
  return results, directory


def _scan(
  opened: ScanInput, settings: ScanSettings, directory: pathlib.Path
) -> dict[str, Any]:
  """Scan, draw, and return what goes into `results.json`."""
  names = opened.info.class_names
  result = scan(
    *(opened.model, opened.weights, opened.images, opened.labels),
    *(names, settings, opened.mesh, directory),
  )
  files.write_npz(directory / layout.TRIGGERS, **result.trigger_arrays())
  _draw(result, opened, directory)
  return {
    "network": opened.identity,
    "accuracy_by_pixel_max": by_pixel_max(opened.accuracy),
    "measured": result.measured,
    "sentences": result.sentences + report.scale_caveats(opened.accuracy),
    "details": result.details,
    **provenance.environment(opened.info),
    "git_commit": provenance.git_commit(),
    "seeds": [settings.seed],
    "seconds": {"search": result.seconds},
    "peak_memory_bytes": provenance.peak_memory_bytes(),
  }


def _draw(result, opened, directory) -> None:
  """Draw the smallest masks, and the norms of all."""
  smallest = [row["class"] for row in result.judged.rows][:SHOWN]
  if not smallest:
    return
  flagged = result.judged.labels("backdoored")
  found, converged = result.searches, result.converged
  triggers = Trigger(found.masks[smallest], found.patterns[smallest])
  plots.reversed_triggers(
    layout.figure_path(directory, "triggers"),
    *triggers,
    np.asarray(stamp(triggers, to_float(opened.images[:1]))),
    [opened.info.class_names[k] for k in smallest],
    [position for position, k in enumerate(smallest) if k in flagged],
  )
  plots.scanned_norms(
    layout.figure_path(directory, "norms"),
    np.where(found.reached, found.norms, np.inf),
    {
      "reference sample": result.reference & converged,
      "chosen by the bandit": ~result.reference & converged,
      "unfinished": ~converged,
    },
    flagged,
  )
