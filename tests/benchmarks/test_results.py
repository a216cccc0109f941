import json
import subprocess
import sys

from benchmarks import results, timing

LINE = {
  "benchmark": "strip",
  "claim": "STRIP, small",
  "goal": "10 times",
  "item": "input",
  "items": 2,
  "parts": {"slow": 0.5},
  "seconds": {"ours": [0.001, 0.002, 0.003], "slow": [0.5, 0.6, 0.7]},
  "ratios": {"slow": {"median": 300.4, "low": 233.3, "high": 500.0}},
  "operations": 4e9,
  "traffic": 2e6,
  "ceiling": {"operations": 2e11, "bytes": 1e10},
  "bound": "arithmetic",
  "share": 0.25,
  "others": 0.2,
  "command": "python -m benchmarks.strip",
  "date": "2026-01-02",
  "commit": "0123",
  "machine": "a machine",
  "versions": {"jax": "9.9"},
}


def test_lines_are_parsed_from_the_output_unless_it_is_tiny(capsys):
  timing.report(LINE, as_json=False)
  assert results.parse(capsys.readouterr().out) == []
  timing.report(LINE)
  printed = capsys.readouterr().out
  assert results.parse(printed) == [LINE]
  assert "  slow" in printed and "300.40 x" in printed
  assert "  goal: 10 times\n" in printed


def test_a_page_holds_what_the_line_says():
  page = results.render([LINE])
  assert "## strip\n" in page and "### STRIP, small\n" in page
  assert "| ours | 2 ms (1 ms to 3 ms) |  |" in page
  assert "| slow | 600 ms (500 ms to 700 ms) | 300 (233 to 500) |" in page
  assert "4 GFLOP, at least 2 MB; 25% of the arithmetic ceiling" in page
  assert "200 GFLOP/s, 10.0 GB/s" in page
  assert "Other processes took 20% of the CPU" in page
  assert "Wanted: 10 times." in page
  assert "slow: 0.5 of the work timed" in page
  assert "`python -m benchmarks.strip`, 3 turns, 2026-01-02" in page


def test_without_operations_or_peers_nothing_is_said_of_them():
  line = {k: v for k, v in LINE.items() if k != "ceiling"}
  line |= {"seconds": {"ours": [1.0]}, "ratios": {}, "parts": {}}
  page = results.render([line])
  assert "| ours | 1 s (1 s to 1 s) |  |" in page and "GFLOP" not in page


def test_a_new_line_takes_the_place_of_the_old():
  other = LINE | {"claim": "STRIP, large"}
  first = LINE | {"benchmark": "ceiling"}
  new = LINE | {"date": "2027-01-02"}
  assert results.merge([LINE, other], [first, new]) == [first, new, other]


def test_the_page_is_written_from_the_file_alone(tmp_path):
  lines = [LINE, LINE | {"claim": "STRIP, large"}]
  results.write(tmp_path / "results.jsonl", lines)
  assert results.read(tmp_path / "results.jsonl") == lines
  command = [sys.executable, "-m", "benchmarks.all", "--only="]
  subprocess.run([*command, f"--output={tmp_path}"], check=True)
  assert (tmp_path / "RESULTS.md").read_text() == results.render(lines)
  stored = (tmp_path / "results.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in stored] == lines
