"""The texts' tables are the files', their code is the project's, and their blocks work."""

import contextlib
import csv
import io
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import ablations
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPORT = (ROOT / "results/README.md").read_text(encoding="utf-8")
RUNS = ["mnist", "frozen-readout", "1000-units", "original-settings"]


def rows_of(run, step=None):
    """Return a committed run's rows at a step, by default the last, of all seeds."""
    with open(ROOT / "results" / run / "losses.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    step = step or max(int(row["step"]) for row in rows)
    return [row for row in rows if int(row["step"]) == step]


def table_of_runs():
    """Return the report's table of how the runs end."""
    columns = ["fa_error", "bp_error", "shallow_error", "fa_message_angle", "fa_weight_angle"]
    lines = ["run|" + "|".join(columns), "---" + "|---" * len(columns)]
    for run in RUNS:
        cells = []
        for column in columns:
            values = [float(row[column]) for row in rows_of(run) if column in row]
            cells.append(ablations.cell(values, 2))
        lines.append("|".join([f"[{run}]({run}/losses.png)", *cells]))
    return "\n".join(lines)


def table_of_the_original():
    """Return the report's table of losses beside those that the original's fork prints."""
    theirs = {
        (0, 1000): (0.468, 0.353),
        (0, 1875): (0.430, 0.397),
        (10, 1000): (0.555, 0.362),
        (10, 1875): (0.099, 0.078),
        (25, 1000): (0.255, 0.121),
        (25, 1875): (0.520, 0.145),
    }
    lines = ["epoch|step|their FA|their BP|FA here|BP here|shallow here", "---" + "|---" * 6]
    for (epoch, step), losses in theirs.items():
        rows = rows_of("original-settings", 1875 * epoch + step)
        names = "fa_loss", "bp_loss", "shallow_loss"
        here = [statistics.fmean(float(row[name]) for row in rows) for name in names]
        texts = [f"{loss:.3f}" for loss in (*losses, *here)]
        lines.append("|".join([str(epoch), str(step), *texts]))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def ablated():
    with open(ablations.RESULTS / "ablations.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ablations.make_tables())
def test_a_table_of_the_report_is_what_the_ablations_print(ablated, name):
    assert ablations.markdown(name, ablated) in REPORT


def test_the_readmes_table_is_what_the_ablations_print(ablated):
    assert ablations.summary(ablated) in README


def test_the_reports_tables_of_runs_are_those_of_the_files():
    assert table_of_runs() in REPORT
    assert table_of_the_original() in REPORT


def test_what_the_report_counts_is_what_the_file_has(ablated):
    counts = []
    for start in "usual", "half":
        for growth in "some", "no":
            row = f"{start}: {growth} error grows"
            errors = ablations.values_of(ablated, "use, by start", row, "FA")
            counts.append((len(errors), sum(error > 15 for error in errors)))
    assert counts == [(9, 5), (41, 1), (2, 0), (48, 0)]
    report = " ".join(REPORT.split())
    assert "in 9 of the 50 seeds, and 5 of these end above 15 %; of the other 41 one" in report
    assert "From half the start it is negative in 2, and none ends above 15 %" in report


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_there_whole_made_by_the_command_that_the_report_says(run):
    (arguments,) = re.findall(rf"^{run}\|`(.*)`$", REPORT, re.MULTILINE)
    args = script.make_parser().parse_args([*arguments.split(), f"--out=results/{run}"])
    folder = ROOT / "results" / run
    config = json.loads((folder / "config.json").read_text())
    options = json.loads(json.dumps(vars(args), default=str))
    assert config["options"].items() <= options.items()
    assert config["title"].startswith("MNIST, 60000 training images")
    rows = rows_of(run, args.epochs * config["steps_in_epoch"])
    assert [int(row["seed"]) for row in rows] == args.seeds
    files = {"losses.png", "fa_readout_start.npz", "fa_readout_end.npz"}
    assert files <= {path.name for path in folder.iterdir()}


def test_W_and_B_of_a_run_are_at_the_angle_that_its_log_says():
    arrays = np.load(ROOT / "results/mnist/fa_readout_end.npz")
    W, B = (torch.tensor(arrays[name]).flatten() for name in "WB")
    assert script.angle(W, B).item() == pytest.approx(
        float(rows_of("mnist")[0]["fa_weight_angle"]), rel=1e-4
    )


@pytest.mark.parametrize("text", [README, REPORT], ids=["README", "report"])
def test_what_is_linked_is_there(text):
    base = ROOT if text is README else ROOT / "results"
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (base / link).exists(), link


# Code in the texts


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_code_that_is_quoted_is_the_layers():
    layer = (ROOT / "fa_linear.py").read_text(encoding="utf-8")
    for part in re.split(r"^ +\.\.\.\n", blocks(README)[0], flags=re.MULTILINE):
        assert part in layer


def execute(code, **scope):
    """Run a block of a text; return the names that it knows in the end."""
    exec(code, scope)  # noqa: S102
    return scope


def printed_by(code):
    """Return what a program prints, run in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        execute(code, __name__="__main__")
    return printed.getvalue()


def printed_as_the_reader_runs(code, folder):
    """Return what a program prints that is run beside the project's files."""
    (folder / "example.py").write_text(code, encoding="utf-8")
    for name in "fa_linear.py", "train_fa_vs_bp_linear_model.py":
        shutil.copy(ROOT / name, folder)
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "example.py"]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    return run.stdout.decode("utf-8")


def losses(text):
    """Return the losses of what the example prints: start, (write,) copy, use."""
    return [float(loss) for loss in re.findall(r"loss (\S+),", text)]


def test_the_example_prints_what_is_said(tmp_path):
    said = re.search(r"^```\n(start: .*?)```$", README, re.MULTILINE | re.DOTALL).group(1)
    printed = printed_as_the_reader_runs(blocks(README)[1], tmp_path)
    assert losses(printed)[:3] == pytest.approx(losses(said)[:3], rel=0.1)
    assert losses(printed)[3] < 0.02
    angles = [[int(angle) for angle in re.findall(r"(\d+)°", text)] for text in (printed, said)]
    assert angles[0] == pytest.approx(angles[1], abs=2)


VARIATIONS = {  # what is replaced by what, and what copy and use come to
    "no writing": ("learn(hidden, 60)\n", "", (3, 6), (1e3, math.inf)),
    "no message": ("samples =", "readout.feedback.zero_()\nsamples =", (3, 6), (3, 6)),
    "W = -B": (
        "samples =",
        "readout.weight.data = -readout.feedback\nsamples =",
        (0.1, 2),
        (0, 0.05),
    ),
    "another B": (
        "learn(hidden, 500)",
        "readout.feedback = FALinear(20, 10).feedback\nlearn(hidden, 500)",
        (0.1, 2),
        (10, math.inf),
    ),
    "little writing": ("learn(hidden, 60)", "learn(hidden, 10)", (2, 5), (2, math.inf)),
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_a_change_of_the_example_does_what_is_said(name):
    old, new, copied, used = VARIATIONS[name]
    assert new.partition("\n")[0] in README
    code = blocks(README)[1]
    assert code.count(old) == 1
    *_, copy, use = losses(printed_by(code.replace(old, new)))
    assert copied[0] < copy < copied[1]
    assert used[0] < use < used[1]


def test_sign_symmetry_trains_beside_the_others(small, monkeypatch):
    scope = execute(blocks(README)[2], FALinear=FALinear)
    monkeypatch.setitem(script.RULES, "sign", scope["SignSymmetry"])
    args = script.make_parser().parse_args(["--epochs=3"])
    networks = script.matched_networks(small, args, 0)
    optimizer = script.make_optimizer(networks, args)
    first, *_, last = script.train(networks, optimizer, small, args, 0, script.measure)
    assert last["sign_loss"] < first["sign_loss"]


def test_the_network_of_ones_own_works():
    scope = execute(blocks(README)[3], nn=nn, FALinear=FALinear)
    assert scope["network"](torch.randn(3, 784)).shape == (3, 10)


# The report's recipes: a B of one's own, a twin, the angle of a middle layer, a convolution


def test_a_B_of_ones_own():
    layer = FALinear(20, 10)
    my_B = torch.randn(10, 20)
    execute(blocks(REPORT)[0], layer=layer, my_B=my_B)
    assert torch.equal(layer.feedback, my_B)


def test_the_twin_has_the_layers_outputs_and_bps_messages():
    layer = FALinear(20, 10)
    twin = execute(blocks(REPORT)[1], nn=nn, layer=layer)["twin"]
    h = torch.randn(3, 20, requires_grad=True)
    torch.testing.assert_close(twin(h), layer(h))
    (message,) = torch.autograd.grad(twin(h).sum(), h)
    torch.testing.assert_close(message, torch.ones(3, 10) @ layer.weight)


def test_the_angle_of_a_middle_layer(capsys):
    layer = FALinear(6, 3)
    layer.feedback = -layer.weight.detach()
    execute(blocks(REPORT)[2], layer=layer)
    layer(torch.randn(4, 6, requires_grad=True)).square().sum().backward()
    assert capsys.readouterr().out == "180\n"


def test_a_convolution():
    images = torch.randn(7, 2, 8, 8, requires_grad=True)
    sizes = {"in_channels": 2, "out_channels": 3, "height": 4, "width": 4}
    scope = execute(blocks(REPORT)[3], FALinear=FALinear, F=F, images=images, **sizes)
    layer, error = scope["layer"], torch.randn(7, 3, 4, 4)
    kernel, feedback = (t.unflatten(1, (2, 5, 5)) for t in (layer.weight, layer.feedback))
    expected = F.conv2d(images, kernel, layer.bias)
    torch.testing.assert_close(scope["maps"], expected, rtol=1e-4, atol=1e-5)
    (message,) = torch.autograd.grad(scope["maps"], images, error)
    torch.testing.assert_close(message, F.conv_transpose2d(error, feedback), rtol=1e-4, atol=1e-5)
