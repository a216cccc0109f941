"""Write the tables of README and docs from the outcomes in `results/`.

python docs/tables.py                        writes them
python docs/tables.py --collect=runs         copies the outcomes of runs first

`results/` holds the `results.json` of runs, groups of seeds and their defences
as `runs/` does, and nothing else of them. A table stands between the lines
`<!-- results: NAME -->` and `<!-- /results: NAME -->`. A test compares.
"""

import pathlib
import re
import shutil
import sys

from bdjax.runs.directory import read_results
from bdjax.runs.summary import find_finished_runs, markdown, summarize

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
_SCORES = (
  "clean_accuracy",
  "attack_success_rate",
  "robust_accuracy",
  "cover_accuracy",
)


def collect(runs: pathlib.Path) -> None:
  """Copy the outcomes of finished runs and their defences to `results/`.

  Of a group of seeds that of the group alone, which has the intervals.
  """
  for run in find_finished_runs(runs):
    for path in (run / "results.json", *run.glob("defenses/*/results.json")):
      copy = RESULTS / path.relative_to(runs)
      copy.parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(path, copy)


def tables() -> dict[str, str]:
  """Return the tables by the names of their markers."""
  runs = find_finished_runs(RESULTS)
  groups = [run for run in runs if len(read_results(run)["seeds"]) > 1]
  attacks = [run for run in groups if "digits" not in run.name]
  digits = [run for run in groups if "digits" in run.name]
  out = {"attacks": _attacks(attacks) + _provenance(attacks)}
  if digits:
    out["defenses"] = markdown(summarize(digits, 0.02)) + _provenance(digits)
  return out


def _attacks(runs: list[pathlib.Path]) -> str:
  """Return a row a run: the attack, how it poisons, and its scores in %."""
  names = [name.replace("_", " ") for name in _SCORES]
  rows = [["data", "attack", "poison", "poison rate", *names, "diversity"]]
  for run in runs:
    results = read_results(run)
    config, measured = results["config"], results["measured"]
    rows.append(
      [
        results["data"]["name"],
        config["attack"] or "clean",
        config.get("poison", ""),
        f"{config.get('poison_rate', '')}",
        *(_percent(measured.get(name)) for name in _SCORES),
        _diversity(results),
      ]
    )
  return markdown(rows)


def _percent(score) -> str:
  if score is None:
    return ""
  mean, low, high = (100 * score[k] for k in ("mean", "low", "high"))
  return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _diversity(results) -> str:
  values = results.get("trigger_diversity")
  return "" if values is None else f"{values['mean']:.2f}"


def _provenance(runs: list[pathlib.Path]) -> str:
  """Say how many seeds, which commits and which device the rows are of."""
  results = [read_results(run) for run in runs]
  seeds = sorted({len(r["seeds"]) for r in results})
  commits = sorted({r["git_commit"]["evaluation"][:7] for r in results})
  devices = sorted({r["device"]["processor"] for r in results})
  epochs = sorted({r["config"]["epochs"] for r in results})
  return (
    f"\n\nMeans over {' or '.join(map(str, seeds))} trained networks (seeds) "
    f"with 95% intervals, in percent; epochs: {', '.join(map(str, epochs))}; "
    f"commit {', '.join(commits)}; {', '.join(devices)}."
  )


def page_with_tables(text: str) -> str:
  """Return a page with every marked table written anew."""
  for name, table in tables().items():
    pattern = rf"(<!-- results: {name} -->\n).*?(<!-- /results: {name} -->)"
    text = re.sub(
      pattern,
      lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}",
      text,
      flags=re.DOTALL,
    )
  return text


def main(arguments: list[str]) -> None:
  """Collect outcomes, if told to, and write all pages."""
  for argument in arguments:
    collect(pathlib.Path(argument.removeprefix("--collect=")).expanduser())
  for page in PAGES:
    page.write_text(page_with_tables(page.read_text()))


if __name__ == "__main__":
  main(sys.argv[1:])
