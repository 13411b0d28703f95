"""What the README says is so."""

import csv
import re
import statistics
from pathlib import Path

import train_fa_vs_bp_linear_model as script

ROOT = Path(script.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def committed_rows(name, step):
    """The row at that step of each epoch; the last step is 1875."""
    with open(ROOT / "results" / name / "losses.csv") as file:
        return [row for row in csv.DictReader(file) if row["step"] == str(step)]


def test_the_results_table_is_that_of_the_committed_run():
    rows = [row for row in committed_rows("mnist", 1875) if row["epoch"] == "4"]
    assert [row["seed"] for row in rows] == list("01234")
    for label, column, unit in [
        ("test error, FA", "fa_error", " %"),
        ("test error, BP", "bp_error", " %"),
        ("test error, shallow (hidden layer frozen)", "shallow_error", " %"),
        ("angle between FA's and BP's teaching signal", "angle", "°"),
    ]:
        values = [float(row[column]) for row in rows]
        digits = 1 if column == "angle" else 2
        mean, deviation = statistics.fmean(values), statistics.stdev(values)
        cell = f"{mean:.{digits}f} ± {deviation:.{digits}f}{unit}"
        assert f"| {label} | {cell} |" in README


def test_the_classic_tables_rows_are_those_of_the_committed_run():
    rows = committed_rows("original-settings", 1875)
    assert len(rows) == 27
    lines = re.findall(r"^\| (\d+) epochs? \|.*$", README, re.MULTILINE)
    assert lines == ["1", "8", "27"]
    for epoch in map(int, lines):
        row = {name: float(value) for name, value in rows[epoch - 1].items()}
        errors = " | ".join(f"{row[f'{rule}_error']:.2f} %" for rule in script.RULES)
        plural = "s" if epoch > 1 else ""
        assert f"| {epoch} epoch{plural} | {errors} | {row['angle']:.1f}° |" in README


def test_the_angle_is_below_45_degrees_in_the_first_row():
    first = committed_rows("mnist", 125)[::5]  # of five epochs the first
    assert all(float(row["angle"]) < 45 for row in first)


def test_the_code_blocks_run():
    scope = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, scope)  # noqa: S102
    assert all(
        parameter.grad is not None for parameter in scope["network"].parameters()
    )
    assert scope["result"].missing_keys == ["feedback"]


def test_the_line_beside_the_maths_is_the_code():
    assert "grad_input = grad_output @ feedback" in (ROOT / "fa_linear.py").read_text()


def test_every_option_is_listed_with_its_default():
    table = dict(re.findall(r"^\| `(--[a-z-]+)` \| ([^|]+) \|", README, re.MULTILINE))
    actions = [a for a in script.make_parser()._actions if a.dest != "help"]
    assert set(table) == {action.option_strings[0] for action in actions}
    for action in actions:
        if action.dest not in ("device", "out"):
            values = (
                action.default if isinstance(action.default, list) else [action.default]
            )
            shown = table[action.option_strings[0]].strip("`")
            assert shown == " ".join(map(str, values))
