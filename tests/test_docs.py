"""README, docs, tutorial and example say what is true, and run."""

import importlib.util
import re
import runpy
import shlex
import sys
import warnings

import matplotlib
import pytest
from doc_blocks import PAGES, blocks, inline_code, notebook_cells, shortened
from launching import REPOSITORY

from bdjax.attacks import ATTACKS
from bdjax.defenses import DEFENSES
from experiments import cli

README = REPOSITORY / "README.md"
SCRIPTS = cli.experiments()
WITH_PYTHON = [
  page
  for page in PAGES
  if any(b.language == "python" and not b.file for b in blocks(page))
]
# Of launch.sh and of other programs.
OTHER_COMMANDS = {"test", "docs", "setup", "help"}
OTHER_FLAGS = {"--help", "--accelerator", "--all", "--print", "--logdir"}


def _commands(page):
  """Return the commands of ours on a page: (kind, name, arguments)."""
  shell = [b.code for b in blocks(page) if b.language == "sh"]
  lines = "\n".join(shell).replace("\\\n", " ").splitlines() + [
    code.replace("\n", " ")
    for code in inline_code(page)
    if code.startswith(("./launch.sh", "python -m", "bdjax "))
  ]
  found = []
  for line in lines:
    words = shlex.split(line, comments=True)
    if words[:1] in (["./launch.sh"], ["bdjax"]) and len(words) > 1:
      found.append(("experiments", words[1], words[2:]))
    elif words[:2] == ["python", "-m"]:
      package, _, name = words[2].partition(".")
      found.append((package, name, words[3:]))
  return found


def _accepts(script, arguments):
  """Parse arguments as a script does, up to where it would start.

  Returns:
    Whether it came so far; an unknown flag raises a UserError.
  """
  reached = []

  def parse(fields, start, *, positional=False, extra=()):
    del start
    reached.append(cli.parse(sys.argv, fields, positional, extra))

  with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
    # Another test may have imported the script.
    warnings.simplefilter("ignore", RuntimeWarning)
    patch.setattr(sys, "argv", [script, *arguments])
    patch.setattr(cli, "serve", parse)
    runpy.run_module(f"experiments.{script}", run_name="__main__")
  return bool(reached)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_names_a_script_and_flags_that_exist(page):
  new = {b.file for b in blocks(page) if b.file}
  for package, name, arguments in _commands(page):
    if name.isupper() or arguments == ["--help"]:  # ./launch.sh NAME
      assert name.isupper() or name in SCRIPTS
    elif package == "benchmarks":
      assert (REPOSITORY / package / f"{name}.py").exists()
    elif package != "experiments":
      assert package in ("sphinx", "pytest")
    elif f"experiments/{name}.py" not in new and name not in OTHER_COMMANDS:
      assert name in SCRIPTS
      assert _accepts(name, arguments), f"{name} {arguments}"


@pytest.fixture(scope="module")
def all_flags():
  """All flags of all scripts."""
  names = set()

  def collect(fields, start, *, positional=False, extra=()):
    del start, positional
    names.update(f"--{field.name}" for field in (*fields, *extra))

  with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)
    patch.setattr(cli, "serve", collect)
    for script in SCRIPTS:
      patch.setattr(sys, "argv", [script])
      runpy.run_module(f"experiments.{script}", run_name="__main__")
  return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_flag_in_the_text_exists(page, all_flags):
  used = set()
  for code in inline_code(page):
    used.update(re.findall(r"--[a-z]\w*", code))
  clean_label = {"--class_rate"}  # has no attack yet
  assert used - all_flags - OTHER_FLAGS - clean_label == set()


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_python_blocks_run(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  namespace = {"__name__": page.stem}
  for block in blocks(page):
    if block.language == "python" and not block.file:
      code = compile(shortened(block.code), str(page), "exec")
      exec(code, namespace)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  matplotlib.use("Agg")
  cells, namespace = notebook_cells(), {"__name__": "tutorial"}
  for number, cell in enumerate(cells):
    exec(compile(shortened(cell), f"cell {number}", "exec"), namespace)
  namespace["plt"].close("all")
  assert not list(tmp_path.iterdir())
  assert namespace["verdict"].index.shape == (10,)


def test_the_example_runs_and_is_one_page(capsys):
  path = REPOSITORY / "examples" / "backdoor_in_one_page.py"
  assert len(path.read_text().splitlines()) <= 80
  runpy.run_path(str(path))["main"](epochs=1)
  shares = re.findall(r"\d+\.\d%", capsys.readouterr().out)
  assert len(shares) == 4 and all(float(s[:-1]) <= 100 for s in shares)


def test_the_readme_is_short():
  assert len(README.read_text().splitlines()) <= 150
  (library,) = (b for b in blocks(README) if b.language == "python")
  assert len([line for line in library.code.splitlines() if line]) <= 24


def test_the_readme_has_a_row_for_every_method_and_says_who_published_it():
  rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", README.read_text(), re.M))
  methods = ATTACKS | DEFENSES
  assert set(rows) - set(methods) == {"pruning_aware", "scan"}
  assert set(methods) <= set(rows)
  for name, method in methods.items():
    author = re.match(r"\w+", method.citation)[0]
    years = re.findall(r"(?:19|20)\d\d", method.citation)
    assert author in rows[name].replace("NYU", "New York University"), name
    assert any(year in rows[name] for year in years), name


def test_links_between_pages_lead_somewhere():
  for page in PAGES:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
      if "://" not in link:
        assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_tables_are_those_of_the_outcomes(page):
  spec = importlib.util.spec_from_file_location(
    "tables", REPOSITORY / "docs" / "tables.py"
  )
  tables = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(tables)
  text = (REPOSITORY / page).read_text()
  assert "<!-- results: attacks -->" in text
  assert tables.page_with_tables(text) == text
