"""The figures in README.md and results/README.md are those on disk, and the controls make them."""

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
import torch
from controls import mean_and_spread

import train_fa_vs_bp_linear_model as script

RESULTS = Path(script.__file__).parent / "results"
README = RESULTS.with_name("README.md").read_text(encoding="utf-8")
REPORT = (RESULTS / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)
CONTROLS = {label: [] for label in controls.CONTROLS}
for line in csv.DictReader((RESULTS / "controls.csv").read_text(encoding="utf-8").splitlines()):
    CONTROLS[line["control"]].append(line)


def run(name, epoch=4, step=1875):
    """Return a run's rows of that step, one for each seed."""
    rows = csv.DictReader((RESULTS / name / "losses.csv").read_text().splitlines())
    return [row for row in rows if (row["epoch"], row["step"]) == (str(epoch), str(step))]


def mean(rows, column, digits=1):
    return f"{statistics.fmean(float(row[column]) for row in rows):.{digits}f}"


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
    said = README.partition("what is changed | FA | BP\n---|---|---\n")[2].partition("\n\n")[0]
    for line in said.splitlines():
        rows = CONTROLS[line.partition(" | ")[0]]
        cells = [mean_and_spread(rows, rule, 1) for rule in ("fa", "bp")]
        assert line == " | ".join([rows[0]["control"], *cells]).rstrip()
    for name, units, scale in ("mnist", 20, 1), ("small-weights", 20, 0.1), ("1000-units", 1000, 1):
        columns = {"fa_error": 2, "bp_error": 2, "shallow_error": 2, "message_angle": 1}
        cells = [mean_and_spread(run(name), *column) for column in columns.items()]
        assert "|".join([f"{units}|{scale}", *cells]).replace(" ± ", "±") in REPORT


def test_the_figures_in_the_sentences_are_those_of_the_files():
    start, end, original = run("mnist", 0, 0), run("mnist"), run("original-settings", 26)
    nothing, from_b = CONTROLS["nothing"], CONTROLS["W starts as B"]
    frozen = [row for label, rows in CONTROLS.items() if label[:8] == "W frozen" for row in rows]
    stable = [float(row["fa"]) for row in frozen if float(row["least eigenvalue"]) > 0]
    others = [float(row["fa"]) for row in frozen if float(row["least eigenvalue"]) < 0]
    assert (len(stable), len(others)) == (13, 22)
    assert float(mean(run("frozen-read-out"), "fa_loss")) > 1000
    text = " ".join((README + REPORT).split())
    for claim in (
        f"FA and BP both misclassify {mean(end, 'fa_error', 0)} %",
        f"first falls from {mean(start, 'message_angle', 0)}° to {mean(end, 'message_angle', 0)}°",
        f"second from {mean(start, 'weight_angle', 0)}° to {mean(end, 'weight_angle', 0)}°",
        f"still {mean(nothing, 'fa early', 2)}, BP's {mean(nothing, 'bp early', 2)}.",
        f"FA's mean loss is then {mean(from_b, 'fa early', 2)}.",
        f"climbs from {mean(run('frozen-read-out', 0, 0), 'fa_loss')} to over 1,000",
        f"misclassifies {mean(CONTROLS['hidden layer frozen (shallow)'], 'best read-out')} %",
        f"the messages end at {mean(CONTROLS['W starts as −B'], 'message', 0)}°",
        f"FA and BP misclassify {mean(run('1000-units'), 'fa_error')} %, and the network with",
        f"a frozen hidden layer {mean(run('1000-units'), 'shallow_error')} %. A thousand",
        f"misclassifies {mean_and_spread(CONTROLS['tanh network'], 'fa', 1)} % of the test images",
        f"learns by BP {mean_and_spread(CONTROLS['tanh network'], 'bp', 1)} %",
        f"after twenty epochs FA misclassifies {mean(run('twenty-epochs', 19), 'fa_error')} %",
        f"positive end at {min(stable):.1f} to {max(stable):.1f} %",
        f"at {min(others):.1f} to {max(others):.1f} %",
        f"the messages are at {mean(run('twenty-epochs', 19), 'message_angle')}°, and without",
        f"without it at {mean(run('no-weight-decay', 19), 'message_angle')}°",
        f"FA misclassifies {mean(original, 'fa_error', 2)} %, BP {mean(original, 'bp_error', 2)} %",
        f"frozen hidden layer {mean(original, 'shallow_error', 2)} %, and the messages",
        f"are at {mean(original, 'message_angle')}°",
    ):
        assert claim in text, claim


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


def test_w_learns_but_its_overlap_with_b_stays_for_every_error_and_by_the_least_change(small):
    options = script.make_parser().parse_args(["--device=cpu", "--epochs=5", "--lr=0.01"])
    for zero in False, True:
        networks = script.matched_networks(options, seed=0)
        W, B = networks["fa"][1].weight, networks["fa"][1].feedback
        e, start = torch.randn(100, 10), W.detach().clone()
        kept = ((e @ start) * (e @ B)).sum(dim=1) * (not zero)  # (W^T e).(B^T e)
        controls.keep_overlap(networks, zero=zero)
        list(script.train(networks, small, options, seed=0))
        torch.testing.assert_close(((e @ W) * (e @ B)).sum(dim=1), kept, rtol=0, atol=1e-4)
        assert (W - start).norm() > 0.3 * start.norm()
    before = W.data.normal_().clone()
    networks["fa"](small.test_images)
    outside_bs_rows = (W.detach() - before) @ (torch.eye(20) - torch.linalg.pinv(B) @ B)
    assert outside_bs_rows.abs().max() < 1e-4 < (W - before).abs().max()  # the change is L B


def test_each_control_still_learns_or_fails_as_in_the_table(mnist_dir):
    """One seed, a third of an epoch."""
    train_images, train_labels, *test = script.load_mnist(mnist_dir)
    digits = script.Digits("MNIST", train_images[:20_000], train_labels[:20_000], *test)
    for label, change in controls.CONTROLS.items():
        row = controls.control(digits, seed=0, **change | {"epochs": 1})
        for rule in {"fa", "bp"} & row.keys():
            committed = float(mean(CONTROLS[label], rule))
            low, high = (0, 30) if committed < 10 else (60, 100) if committed > 60 else (10, 80)
            assert low < row[rule] < high, label
        assert row.get("best read-out", 0) < row.get("fa", 100), label
        if label in ("nothing", "W starts as B"):
            assert (row["fa early"] > 2) == (label == "nothing")
        if label in ("nothing", "W starts as −B"):
            assert max(row["message"], row["weight"]) < 75
            assert row["least eigenvalue"] > 0


def test_pairs_of_different_digits_take_away_some_60_percent_of_what_the_others_add(mnist_dir):
    images, labels = (tensor[:4000] for tensor in script.load_mnist(mnist_dir)[:2])
    e = 0.1 - torch.eye(10)[labels]  # at the start
    gains, same = (images @ images.T) * (e @ e.T), labels[:, None] == labels
    assert 0.55 < -gains[~same].sum() / gains[same].sum() < 0.7
