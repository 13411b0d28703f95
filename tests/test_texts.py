"""What README.md and results/README.md say is so: their figures are those on disk."""

import contextlib
import csv
import io
import json
import re
import statistics
import zlib
from pathlib import Path

import controls
import torch
from torch import nn
from torch.nn import functional as F

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear

RESULTS = Path(script.__file__).parent / "results"
README = RESULTS.with_name("README.md").read_text(encoding="utf-8")
REPORT = (RESULTS / "README.md").read_text(encoding="utf-8")
TEXTS = " ".join((README + REPORT).split())


def read(name):
    with open(RESULTS / name) as file:
        return list(csv.DictReader(file))


def run(name, epoch=4, step=1875):
    """Return a run's rows of that step, one for each seed."""
    place = str(epoch), str(step)
    return [row for row in read(f"{name}/losses.csv") if (row["epoch"], row["step"]) == place]


def mean(rows, column, digits=1):
    return f"{statistics.fmean(float(row[column]) for row in rows):.{digits}f}"


def spread(rows, column, digits=1, sign=" ± "):
    deviation = statistics.stdev(float(row[column]) for row in rows)
    return f"{mean(rows, column, digits)}{sign}{deviation:.{digits}f}"


CONTROLS = {label: [] for label in controls.CONTROLS}
for line in read("controls.csv"):
    CONTROLS[line["control"]].append(line)


def test_the_runs_were_made_by_the_commands_that_are_said_and_by_todays_defaults():
    said = re.findall(r"^\[([\w-]+)\].*?\|`(.*?)`\|(\w{8})$", REPORT, re.MULTILINE)
    assert {name for name, *_ in said} == {path.parent.name for path in RESULTS.glob("*/*.csv")}
    for name, arguments, checksum in said:
        config = json.loads((RESULTS / name / "config.json").read_text())
        arguments = [*arguments.split(), "--out", f"results/{name}", "--device", "cpu"]
        options = vars(script.make_parser().parse_args(arguments))
        assert {key: config[key] for key in options} == json.loads(json.dumps(options, default=str))
        assert (config["dataset_used"], config["torch"][:6]) == ("MNIST", "2.14.1")
        assert f"{zlib.crc32((RESULTS / name / 'losses.csv').read_bytes()):08x}" == checksum
    assert f"(CRC-32 {zlib.crc32((RESULTS / 'controls.csv').read_bytes()):08x})" in REPORT


def test_the_tables_are_those_of_the_files():
    lines = ["|".join(["control", *controls.COLUMNS]), "---" + "|---" * len(controls.COLUMNS)]
    lines += [controls.table_row(label, rows) for label, rows in CONTROLS.items()]
    assert "\n".join(lines) in REPORT
    assert {len(rows) for rows in CONTROLS.values()} == {len(controls.SEEDS)}
    for said, label in (
        ("nothing", "nothing"),
        ("W is frozen at its random start (`--freeze-read-out`)", "W frozen at its start"),
        ("W is frozen as FA had left it, a new hidden layer learns", "W frozen as FA left it"),
    ):
        bp = mean(CONTROLS[label], "bp")
        assert f"\n{said} | {spread(CONTROLS[label], 'fa')} | {bp}\n" in README
    for said, label, bp in (
        ('the hidden layer is frozen ("shallow")', "hidden layer frozen (shallow)", " the same"),
        ("W learns, but is kept from turning: each message stays at 90°",
         "W free, overlap with B kept at zero", ""),
        ("the same, but B is another one", "W frozen as FA left it, with another B", ""),
        ("W starts as the exact opposite of B", "W starts as −B", ""),
        ("B is drawn anew at each step", "B drawn anew at each step", ""),
    ):
        assert f"\n{said} | {spread(CONTROLS[label], 'fa')} |{bp}\n" in README
    for name, units, scale in ("mnist", 20, 1), ("small-weights", 20, 0.1), ("1000-units", 1000, 1):
        errors = [spread(run(name), f"{rule}_error", 2, "±") for rule in ("fa", "bp", "shallow")]
        angle = spread(run(name), "message_angle", 1, "±")
        assert "|".join([str(units), str(scale), *errors, angle]) in REPORT


def test_the_figures_in_the_sentences_are_those_of_the_files():
    start, end, wide, small = run("mnist", 0, 0), run("mnist"), run("1000-units"), "small-weights"
    (original,), early = run("original-settings", 26), run("mnist", 0, 32)
    free, frozen = "W free, overlap with", "W frozen"
    twenty, no_decay = "twenty-epochs", "no-weight-decay"

    def fall(name):
        angles = [statistics.fmean(float(row["message_angle"]) for row in run(name, epoch))
                  for epoch in (4, 19)]
        return f"{angles[0] - angles[1]:.1f}°"

    def c(label, column="fa", digits=1, show=mean):
        return show(CONTROLS[label], column, digits)

    def cs(label, column="fa", digits=1):
        return c(label, column, digits, spread)

    eigenvalues = [(float(row["least eigenvalue"]), float(row["fa"]), float(row["least overlap"]))
                   for label, rows in CONTROLS.items() if label.startswith(frozen) for row in rows]
    stable = [row for row in eigenvalues if row[0] > 0]
    unstable = [row[1] for row in eigenvalues if row[0] < 0]
    worst = sorted(stable, key=lambda row: row[1])[-4:]
    assert {row[2] < 0 for row in worst} == {True} and sum(row[2] < 0 for row in stable) == 4
    random45 = sorted(float(row["fa"]) for row in CONTROLS["W frozen, random at 45° to B"])
    assert random45[2] < 9.5 and random45[3] > 30
    claims = [
        f"first falls from {mean(start, 'message_angle', 0)}° to {mean(end, 'message_angle', 0)}°",
        f"second from {mean(start, 'weight_angle', 0)}° to {mean(end, 'weight_angle', 0)}°",
        f"FA and BP both misclassify {mean(end, 'fa_error', 0)} %",
    ]
    assert [claim for claim in claims if claim not in TEXTS] == []
