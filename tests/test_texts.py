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
import pytest

import train_fa_vs_bp_linear_model as script

RESULTS = Path(script.__file__).parent / "results"
README = RESULTS.with_name("README.md").read_text(encoding="utf-8")
REPORT = (RESULTS / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)
CONTROLS = {label: [] for label in controls.CONTROLS}
with open(RESULTS / "controls.csv") as file:
    for line in csv.DictReader(file):
        CONTROLS[line["control"]].append(line)


def run(name, epoch=4, step=1875):
    """Return a run's rows of that step, one for each seed."""
    with open(RESULTS / name / "losses.csv") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if (row["epoch"], row["step"]) == (str(epoch), str(step))]


def mean(rows, column, digits=1):
    return f"{statistics.fmean(float(row[column]) for row in rows):.{digits}f}"


def spread(rows, column, digits=1, sign=" ± "):
    deviation = statistics.stdev(float(row[column]) for row in rows)
    return f"{mean(rows, column, digits)}{sign}{deviation:.{digits}f}"


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
    for said, label, *bp in (
        ("nothing", "nothing", "bp"),
        ('the hidden layer is frozen ("shallow")', "hidden layer frozen (shallow)"),
        ("W is frozen at its random start (`--freeze-read-out`)", "W frozen at its start", "bp"),
        ("W learns, but every message is kept at 90°", "W free, overlap with B kept at zero"),
        (
            "W is frozen as FA had left it, a new hidden layer learns",
            "W frozen as FA left it",
            "bp",
        ),
        ("the same, but B is another one", "W frozen as FA left it, with another B"),
        ("W starts as the exact opposite of B", "W starts as −B"),
        ("B is drawn anew at each step", "B drawn anew at each step"),
    ):
        cell = f" {mean(CONTROLS[label], 'bp')}\n" if bp else ""
        assert f"\n{said} | {spread(CONTROLS[label], 'fa')} |{cell}" in README
    for name, units, scale in ("mnist", 20, 1), ("small-weights", 20, 0.1), ("1000-units", 1000, 1):
        errors = [spread(run(name), f"{rule}_error", 2, "±") for rule in ("fa", "bp", "shallow")]
        cells = [units, scale, *errors, spread(run(name), "message_angle", 1, "±")]
        assert "|".join(map(str, cells)) in REPORT


def test_the_figures_in_the_sentences_are_those_of_the_files():
    def r(name, column, digits=1, *place, show=mean):
        return show(run(name, *place), column, digits)

    def c(label, column="fa", digits=1, show=spread):
        return show(CONTROLS[label], column, digits)

    def fall(name):
        before, after = (float(r(name, "message_angle", 9, epoch)) for epoch in (4, 19))
        return f"{before - after:.1f}°"

    def best(label):
        return c(label, "best read-out", 1, mean)

    frozen = [row for label, rows in CONTROLS.items() if label[:8] == "W frozen" for row in rows]
    frozen.sort(key=lambda row: float(row["fa"]))
    stable = [row for row in frozen if float(row["least eigenvalue"]) > 0]
    ends = [f"{float(frozen[i]['fa']):.1f}" for i in (0, len(stable) - 1, len(stable), -1)]
    assert stable == frozen[:17]
    assert [float(row["least overlap"]) < 0 for row in stable] == [False] * 13 + [True] * 4
    assert float(r("frozen-read-out", "fa_loss")) > 1000
    wait, from_b = "learning rate 1e-3, until it learns", "W starts as B, until it learns"
    shallow, redrawn = "hidden layer frozen (shallow)", "B drawn anew at each step"
    original = [r("original-settings", f"{rule}_error", 2, 26) for rule in ("fa", "bp", "shallow")]
    slow = CONTROLS["learning rate 3e-4"]
    gap = statistics.fmean(float(row["fa"]) - float(row["bp"]) for row in slow)
    text = " ".join((README + REPORT).replace("−", "-").split())
    for claim in (
        f"FA and BP both misclassify {r('mnist', 'fa_error', 0)} %",
        f"first falls from {r('mnist', 'message_angle', 0, 0, 0)}° to {r('mnist', 'message_angle', 0)}°",
        f"second from {r('mnist', 'weight_angle', 0, 0, 0)}° to {r('mnist', 'weight_angle', 0)}°",
        f"{r('mnist', 'message_angle', 0)}° is a mean over many images",
        f"FA takes {c(wait, 'fa wait', 0)} steps until a mini-batch has a loss below 2.",
        f"it takes {c(from_b, 'fa wait', 0)}, like BP ({c(wait, 'bp wait', 0)})",
        f"possible read-out for them misclassifies {best(shallow)} %",
        f"mean loss climbs from {r('frozen-read-out', 'fa_loss', 1, 0, 0)} to over 1,000",
        f"the messages end at {c('W starts as −B', 'message', 0, mean)}°",
        f"{c(redrawn, show=mean)} % is better than {c(shallow, show=mean)} %",
        f"it is much the same, {c('the two together', show=mean)} %",
        f"FA and BP misclassify {r('1000-units', 'fa_error')} %, and the network with",
        f"a frozen hidden layer {r('1000-units', 'shallow_error')} %. A thousand",
        f"misclassifies {c('tanh network')} % of the test images",
        f"twin that learns by BP {c('tanh network', 'bp')} %",
        f"{c('ReLU network')} and {c('ReLU network', 'bp')} %",
        f"FA gets to {c('W free, overlap with another B kept')} %",
        f"W turns to {c('W starts as −B', 'weight', 0, mean)}° from B",
        f"for a random one to {best(shallow)} %, for FA's to {best('nothing')} %",
        f"gets to {c('no hidden layer (softmax regression)', 'bp', 1, mean)} %, so FA",
        f"After twenty epochs, FA misclassifies {r('twenty-epochs', 'fa_error', 1, 19)} %",
        f"starts at {c('W frozen at its start', 'least overlap', 2)} (the row",
        f"ends at {c('nothing', 'least overlap', 2)}: then",
        f"positive end at {ends[0]} to {ends[1]} %, the 23 in which it is negative at {ends[2]} to {ends[3]} %",
        f"end at {c('W frozen as FA left it at step 500', 'message', 0)}°, leaves {c('W frozen as FA left it at step 500')} %",
        f"end at {c('W frozen, random at 45° to B', 'message', 0)}°, leave {c('W frozen, random at 45° to B')} %",
        f"FA trails BP by {gap:.1f} points at 3e-4",
        f"`least overlap` is negative ({float(stable[13]['fa']):.1f} to {ends[1]} %)",
        f"At {c('W frozen, random at 60° to B', 'message', 0)}° it is {c('W frozen, random at 60° to B')} %",
        f"loss is {r('mnist', 'fa_loss', 2, 0, 32, show=spread)}, that of the network",
        f"hidden layer {r('mnist', 'shallow_loss', 2, 0, 32, show=spread)}.",
        f"`start in W`, is {c('nothing', 'start in W', 2)} after",
        f"{r('small-weights', 'weight_angle', 1, show=spread)}° in place of",
        f"in place of {r('mnist', 'weight_angle', 1, show=spread)}°",
        f"falls by {fall('twenty-epochs')}, and by {fall('no-weight-decay')} without",
        f"{r('small-weights', 'fa_error', 0, 0, 125)} against {r('small-weights', 'bp_error', 0, 0, 125)} %",
        f"FA misclassifies {original[0]} %, BP {original[1]} %, the network with a frozen",
        f"{original[2]} %, and the messages are at {r('original-settings', 'message_angle', 1, 26)}°",
    ):
        assert claim.replace("−", "-") in text, claim


def test_the_readmes_examples_do_what_is_said():
    for line, row in zip(BLOCKS[1].splitlines()[1:], (run("mnist", 0, 0)[0], run("mnist")[0])):
        texts = [*list(row.values())[:3], *(f"{float(v):#.4g}" for v in list(row.values())[3:])]
        assert [cell.strip() for cell in line.split("|")] == texts
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec("\n".join([*BLOCKS[4:5], *BLOCKS[6:8]]), scope := {})  # noqa: S102
        scope["network"](scope["torch"].randn(9, 784)).sum().backward()
    printed, said = (
        [float(number) for number in re.findall(r"[\d.]+", text)]
        for text in (output.getvalue(), BLOCKS[5])
    )
    assert printed[:-1] == pytest.approx(said, rel=0.1, abs=0.05)
    assert 60 < printed[-1] < 120  # the middle layer of an untrained network
    assert BLOCKS[3].split("#")[0].strip() in (RESULTS.parent / "fa_linear.py").read_text()
