"""The texts' figures are the files', their code is the project's, and their blocks work."""

import contextlib
import csv
import importlib
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

import deeper
import numpy as np
import pytest
import torch
from common import gather, markdown, mean_and_deviation
from torch import nn
from torch.nn import functional as F

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPORT = (ROOT / "results/README.md").read_text(encoding="utf-8")
RUNS = ["mnist", "frozen-readout", "1000-units", "original-settings"]
SCRIPTS = ["phases", "turn", "eigenvalues", "taken_away", "deeper"]


def read_csv(path):
    with open(ROOT / "results" / path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_of(run, step=None):
    """Return a committed run's rows at a step, by default the last, of all seeds."""
    rows = read_csv(f"{run}/losses.csv")
    step = step or max(int(row["step"]) for row in rows)
    return [row for row in rows if int(row["step"]) == step]


def tables_of(name):
    """Return {table: {row: {column: values over seeds}}} of a script."""
    return gather(line.values() for line in read_csv(f"{name}.csv"))


def mean(name, table, row, column):
    """Return the mean of a script's figures at a place, over seeds."""
    return statistics.fmean(tables_of(name)[table][row][column])


def mean_of_run(run, column):
    return statistics.fmean(float(row[column]) for row in rows_of(run))


# The figures


def table_of_runs():
    """Return the report's table of how the runs end."""
    columns = ["fa_error", "bp_error", "shallow_error", "fa_message_angle", "fa_weight_angle"]
    lines = ["run|" + "|".join(columns), "---" + "|---" * len(columns)]
    for run in RUNS:
        cells = []
        for column in columns:
            values = [float(row[column]) for row in rows_of(run) if column in row]
            cells.append(
                "±".join(f"{f(values):.2f}" for f in (np.mean, statistics.stdev) if values)
            )
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


def table_of_phases():
    """Return the README's table, a part of what phases.py prints."""
    rows = tables_of("phases")["phases"]
    texts = ["what is done|angle|before use|after use", "---|---|---|---"]
    for label, row in (
        ("write, copy, use", "write, copy, use"),
        ("the same, but use a different B", "use another B"),
        ("write errors of *other* images", "write errors of other images"),
        ("write nothing (usual start)", "write nothing, usual start"),
        ("copy nothing", "copy nothing"),
    ):
        cells = [label]
        for column in "angle", "before use", "8 epochs":
            cells.append(mean_and_deviation(row, column, rows[row][column]))
        texts.append("|".join(cells))
    return "\n".join(texts)


def table_of_the_word():
    lines = [list(line.values())[1:] for line in read_csv("word.csv")]
    texts = ["W|reads|mean cosine|least", "---|---|---|---"]
    return "\n".join([*texts, *("|".join(line) for line in lines)])


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_reports_tables_are_what_the_scripts_print(name):
    tables = tables_of(name)
    for table, (_, seeds, cell) in importlib.import_module(name).TABLES.items():
        lines = [line for line in read_csv(f"{name}.csv") if line["table"] == table]
        assert {int(line["seed"]) for line in lines} == set(range(seeds))
        assert cell is None or markdown(table, tables[table], cell) in REPORT


def test_the_rates_are_those_with_the_least_errors():
    tables = tables_of("deeper")
    for name, rates in deeper.BEST.items():
        for rule, rate in zip(("FA", "BP"), rates):
            errors = tables[f"{rule} by rate"][name]
            assert float(min(errors, key=errors.get)) == rate


def test_the_other_tables_are_those_of_the_files():
    assert table_of_the_word() in REPORT
    assert table_of_runs() in REPORT
    assert table_of_the_original() in REPORT
    assert table_of_phases() in README


def test_what_the_scripts_print_bears_the_sentences():
    assert [line["reads"] for line in read_csv("word.csv")[1:]] == ["DUPLICATES", "BACKGROUND"]
    errors = {"negative": [], "positive": []}
    for row, columns in tables_of("phases")["writing"].items():
        errors[row.split()[-1]] += columns.get("4 epochs", [])
    assert min(errors["negative"]) > 20 > max(errors["positive"])
    assert sum(map(len, errors.values())) == 42
    few = [tables_of("phases")["writing"][f"{steps} steps, positive"] for steps in (4, 8)]
    assert max(max(columns["4 epochs"]) for columns in few) < 13
    behind = []
    for columns in tables_of("deeper")["at the best rates"].values():
        behind.append(np.mean(columns["FA"]) - np.mean(columns["BP"]))
    claim = f"FA is {behind[0]:.1f} points behind with a tanh, {behind[1]:.1f} with one more layer"
    assert claim in REPORT
    rows = tables_of("turn")["dose"]
    doses = {row.partition(",")[0] for row in rows}
    assert len(doses) == 7
    for dose in doses:
        computed, measured = rows[f"{dose}, computed"]["48"], rows[f"{dose}, measured"]["48"]
        assert len(measured) == 5
        assert np.subtract(computed, measured) == pytest.approx(0, abs=2.5)


def taken(row, column):
    return mean("taken_away", table="taken away", row=row, column=column)


def test_the_readmes_sentences_have_the_files_figures():
    text = " ".join(README.split())
    fa = mean_of_run("mnist", "fa_error")
    bp = mean_of_run("mnist", "bp_error")
    shallow = mean_of_run("mnist", "shallow_error")
    frozen_fa = mean_of_run("frozen-readout", "fa_error")
    frozen_bp = mean_of_run("frozen-readout", "bp_error")
    zero = "the start: all weights from zero"
    rows = "write, copy, use", "use another B", "write errors of other images"
    rows += "write nothing, usual start", "copy nothing"
    relu = [mean("phases", table="phases, ReLU", row=row, column="8 epochs") for row in rows]
    best = {"table": "at the best rates", "row": "784-256-64-10, tanh"}
    tanh_fa = mean("deeper", **best, column="FA")
    tanh_bp = mean("deeper", **best, column="BP")
    for claim in (
        f"at {fa:.1f} % test error, BP at {bp:.1f}",
        f"only the last layer learns: {shallow:.0f} %",
        f"FA gets to {taken(zero, 'FA'):.1f} %",
        f"gets to {frozen_bp:.1f} % through it; FA stays at {frozen_fa:.0f}",
        f"{relu[0]:.1f} %, and {min(relu[1:]):.0f} to {max(relu[1:]):.0f} in the other rows",
        f"FA gets to {tanh_fa:.1f} % in five epochs and BP to {tanh_bp:.1f} %",
    ):
        assert claim in text
    assert taken(zero, "BP") > 85
    assert taken("the hidden layer: softmax regression", "BP") > 7.5
    assert mean_of_run("1000-units", "shallow_error") < 8.5


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
    W, B = (torch.tensor(arrays[name]) for name in "WB")
    assert angle_of(W, B) == pytest.approx(float(rows_of("mnist")[0]["fa_weight_angle"]), rel=1e-4)


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


VARIATIONS = {  # the table's row: what is replaced by what
    "as above": ("", ""),
    "W starts at −B": (
        'report("start")',
        'readout.weight.data = -readout.feedback\nreport("start")',
    ),
    "less writing": ("learn(hidden, 60)", "learn(hidden, 10)"),
    "a different B": (
        "learn(hidden, 500)",
        "readout.feedback = FALinear(20, 10).feedback\nlearn(hidden, 500)",
    ),
    "no writing": ("learn(hidden, 60)\n", ""),
}


def run_example(code):
    """Return the losses after copying and use, and the W and B that were used."""
    scope = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, scope)  # noqa: S102
    *_, copied, used = losses(printed.getvalue())
    readout = scope["readout"]
    return copied, used, readout.weight.detach(), readout.feedback


@pytest.mark.parametrize("name", VARIATIONS)
def test_a_change_of_the_example_does_what_is_said_and_computed(name):
    old, new = VARIATIONS[name]
    assert new.partition("\n")[0] in README
    code = blocks(README)[1]
    if old:
        assert code.count(old) == 1
        code = code.replace(old, new)
    copied, used, W, B = run_example(code)
    least = torch.linalg.eigvals(W @ B.T).real.min().item()
    (row,) = re.findall(rf"^{name}\|(.*)$", README, re.MULTILINE)
    row = row.replace("°", "").replace(",", "").replace("−", "-")
    said = [float(text) for text in row.split("|")]
    assert said[0] == pytest.approx(copied, rel=0.1)
    assert said[1] == pytest.approx(angle_of(W, B), abs=2)
    assert said[2] == pytest.approx(least, abs=0.03)
    assert said[3] == pytest.approx(said[0] * math.exp(-20 * said[2]), rel=0.2)
    assert math.log(said[4]) == pytest.approx(math.log(used), abs=0.5)
    assert 0.1 < said[3] / said[4] < 10  # computed within a factor of ten


def angle_of(W, B):
    return script.angle(W.flatten(), B.flatten()).item()


@pytest.mark.parametrize(("seed", "degrees", "rises"), [(18, 56, True), (6, 62, False)])
def test_other_seeds_show_that_no_angle_is_a_threshold(seed, degrees, rises):
    text = " ".join(README.split())
    said = "With `torch.manual_seed(18)`, ten steps of writing lead to 56°, and the loss rises; "
    assert f"{said}with 6, to 62°, and it falls." in text
    code = blocks(README)[1].replace("learn(hidden, 60)", "learn(hidden, 10)")
    code = code.replace("manual_seed(0)", f"manual_seed({seed})")
    copied, used, W, B = run_example(code)
    assert angle_of(W, B) == pytest.approx(degrees, abs=2)
    assert used > 2 * copied if rises else used < copied / 2


def test_sign_symmetry_trains_beside_the_others(small, monkeypatch):
    scope = execute(blocks(README)[2], FALinear=FALinear, torch=torch)
    monkeypatch.setitem(script.RULES, "sign", scope["SignSymmetry"])
    args = script.make_parser().parse_args(["--epochs=3"])
    networks = script.matched_networks(small, args, 0)
    optimizer = script.make_optimizer(networks, args)
    first, *_, last = script.train(networks, optimizer, small, args, 0, script.measure)
    assert last["sign_loss"] < first["sign_loss"]


# The report's recipes: a network and a B of one's own, a twin, the angle of a middle layer, a convolution


def test_a_network_of_ones_own():
    scope = execute(blocks(REPORT)[0], nn=nn, FALinear=FALinear)
    assert scope["network"](torch.randn(3, 784)).shape == (3, 10)


def test_a_B_of_ones_own():
    layer = FALinear(20, 10)
    my_B = torch.randn(10, 20)
    execute(blocks(REPORT)[1], layer=layer, my_B=my_B)
    assert torch.equal(layer.feedback, my_B)


def test_the_twin_has_the_layers_outputs_and_bps_messages():
    layer = FALinear(20, 10)
    twin = execute(blocks(REPORT)[2], nn=nn, layer=layer)["twin"]
    h = torch.randn(3, 20, requires_grad=True)
    torch.testing.assert_close(twin(h), layer(h))
    (message,) = torch.autograd.grad(twin(h).sum(), h)
    torch.testing.assert_close(message, torch.ones(3, 10) @ layer.weight)


def test_the_angle_of_a_middle_layer(capsys):
    layer = FALinear(6, 3)
    layer.feedback = -layer.weight.detach()
    execute(blocks(REPORT)[3], layer=layer)
    layer(torch.randn(4, 6, requires_grad=True)).square().sum().backward()
    assert capsys.readouterr().out == "180\n"


def test_a_convolution():
    images = torch.randn(7, 2, 8, 8, requires_grad=True)
    sizes = {"in_channels": 2, "out_channels": 3, "height": 4, "width": 4}
    scope = execute(blocks(REPORT)[4], FALinear=FALinear, F=F, images=images, **sizes)
    layer, error = scope["layer"], torch.randn(7, 3, 4, 4)
    kernel, feedback = (t.unflatten(1, (2, 5, 5)) for t in (layer.weight, layer.feedback))
    expected = F.conv2d(images, kernel, layer.bias)
    torch.testing.assert_close(scope["maps"], expected, rtol=1e-4, atol=1e-5)
    (message,) = torch.autograd.grad(scope["maps"], images, error)
    torch.testing.assert_close(message, F.conv_transpose2d(error, feedback), rtol=1e-4, atol=1e-5)
