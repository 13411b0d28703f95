"""The comparison is matched, measures what it says, and loses nothing."""

import csv
import itertools
import json
import math
import os
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import pytest
import torch
from torch.nn import functional as F

import plot_losses
import train_fa_vs_bp_linear_model as script

CPU = torch.device("cpu")
SMALL = ["--dataset=synthetic", "--epochs=1", "--hidden=16", "--log-every=4", "--device=cpu"]


@pytest.fixture
def digits(small):
    return script.load_digits("synthetic", Path("data"), CPU)


def settings(*arguments):
    return script.make_parser().parse_args([*SMALL, *arguments])


def matched(*arguments, seed=0):
    return script.matched_networks(settings(*arguments), seed)


def train(networks, digits, *arguments, seed=0):
    """Return the rows of a training, a dictionary each."""
    rows = script.train(networks, digits, settings(*arguments), seed)
    return [{"epoch": epoch, "step": step} | measures for epoch, step, measures in rows]


def run(*arguments):
    return script.main([*SMALL, *map(str, arguments)])


def read_rows(folder):
    with open(Path(folder) / "losses.csv") as file:
        return list(csv.DictReader(file))


def columns(rows, *names):
    return [[row[name] for name in names] for row in rows]


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_networks_start_equal_and_the_scale_multiplies_all_weights_but_the_feedback(scale):
    networks = matched("--hidden=1000", f"--init-scale={scale}", seed=3)
    other = matched("--hidden=1000", f"--init-scale={scale}", seed=4)["fa"]
    assert not torch.equal(networks["fa"][0].weight, other[0].weight)
    for name, start in networks["bp"].state_dict().items():
        assert all(torch.equal(start, networks[rule].state_dict()[name]) for rule in networks)
    for layer in networks["fa"]:
        bound = math.sqrt(6 / layer.in_features)
        assert layer.weight.abs().max().item() == pytest.approx(scale * bound, rel=0.01)
        assert layer.bias.abs().max() == 0
    assert networks["fa"][1].feedback.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert settings().init_scale == 1


def test_fa_with_feedback_tied_to_the_weights_is_bp(digits):
    networks = matched("--rules", "fa", "bp")

    def tie(layer, _):
        layer.feedback.copy_(layer.weight.detach())

    networks["fa"][1].register_forward_pre_hook(tie)
    rows = train(networks, digits, "--log-every=1")
    assert columns(rows, "fa_loss", "fa_error") == columns(rows, "bp_loss", "bp_error")
    assert rows[-1]["fa_loss"] < rows[0]["fa_loss"]


@pytest.mark.parametrize(
    ("rule", "option", "layers"),
    [
        ("bp", [], "both"),
        ("fa", [], "both"),
        ("shallow", [], "read-out"),
        ("bp", ["--freeze-read-out"], "hidden"),
        ("fa", ["--freeze-read-out"], "hidden"),
        ("shallow", ["--freeze-read-out"], "none"),
    ],
)
def test_just_those_layers_learn_that_should(digits, rule, option, layers):
    networks = matched(*option)
    before = [parameter.clone() for parameter in networks[rule].parameters()]
    train(networks, digits)
    learned = [
        not torch.equal(old, new)
        for old, new in zip(before, networks[rule].parameters(), strict=True)
    ]
    hidden, read_out = layers in ("hidden", "both"), layers in ("read-out", "both")
    assert learned == [hidden, hidden, read_out, read_out]


def test_rows_come_at_0_at_early_powers_of_two_at_every_log_every_and_at_each_epochs_last(digits):
    def steps(*arguments):
        return [(row["epoch"], row["step"]) for row in train(matched(), digits, *arguments)]

    assert steps("--batch-size=30", "--epochs=2", "--log-every=5") == [
        *[(0, 0), (0, 1), (0, 2), (0, 4), (0, 5), (0, 10)],
        *[(1, 5), (1, 10)],
    ]
    assert steps("--log-every=100") == [(0, 0), (0, 1), (0, 2), (0, 4), (0, 8), (0, 10)]


def test_the_first_row_is_that_of_step_0_before_any_update(digits):
    first = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:32]
    networks, same = matched(), matched()
    outputs = same["bp"](digits.train_images[first])
    loss = F.cross_entropy(outputs, digits.train_labels[first]).detach()
    row = train(networks, digits)[0]
    assert row == {"epoch": 0, "step": 0, **script.measure(same, loss.expand(3), digits)}
    assert len({row[f"{rule}_loss"] for rule in script.RULES}) == 1
    assert len({row[f"{rule}_error"] for rule in script.RULES}) == 1


def train_by_hand(rule, start, digits, seed):
    """Train one network alone for two epochs, by the equations.

    Return its loss at each step, and its test error and angle at the end.
    """
    parameters = [parameter.detach().double() for parameter in start.parameters()]
    W0, b0, W, b = parameters  # changed in place
    B = start[1].feedback.double() if rule == "fa" else None
    velocity, losses = [0.0] * 4, []
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(300, generator=generator) for epoch in range(2)]
    for batch in [batch for order in orders for batch in order.split(32)]:
        x, labels = digits.train_images[batch].double(), digits.train_labels[batch]
        h = x @ W0.T + b0
        p = torch.softmax(h @ W.T + b, dim=1)
        losses.append(-p[range(len(x)), labels].log().mean().item())
        e = (p - torch.eye(10)[labels]) / len(x)
        message = e @ (B if rule == "fa" else W)
        gradients = [message.T @ x, message.sum(dim=0), e.T @ h, e.sum(dim=0)]
        for i in range(2 if rule == "shallow" else 0, 4):
            gradient = gradients[i] + 0.001 * parameters[i]
            velocity[i] = 0.9 * velocity[i] + gradient
            parameters[i] -= 0.01 * (gradient + 0.9 * velocity[i])
    outputs = (digits.test_images.double() @ W0.T + b0) @ W.T + b
    e = outputs.softmax(dim=1) - torch.eye(10)[digits.test_labels]
    cosine = F.cosine_similarity(e @ B, e @ W) if rule == "fa" else torch.ones(1)
    error = 100 * (outputs.argmax(dim=1) != digits.test_labels).double().mean()
    return losses, error.item(), cosine.acos().rad2deg().mean().item()


def test_each_network_learns_as_if_trained_alone_by_hand_on_the_same_mini_batches(digits):
    networks = matched(seed=5)
    by_hand = {rule: train_by_hand(rule, networks[rule], digits, 5) for rule in script.RULES}
    rows = train(networks, digits, "--lr=0.01", "--epochs=2", seed=5)
    assert columns(rows, "step") == [[0], [1], [2], [4], [8], [10], [4], [8], [10]]
    for rule, (losses, error, angle) in by_hand.items():
        steps = [0, 1, 2, 4, 8, 10, 14, 18, 20]
        means = [statistics.fmean(losses[a:b]) for a, b in itertools.pairwise(steps)]
        expected = pytest.approx([losses[0], *means], rel=1e-4)
        assert [row[f"{rule}_loss"] for row in rows] == expected
        assert rows[-1][f"{rule}_error"] == pytest.approx(error)
        if rule == "fa":
            assert rows[-1]["angle"] == pytest.approx(angle, abs=0.01)


def test_a_test_error_is_the_percentage_that_the_network_misclassifies(digits):
    network = matched()["bp"]
    for layer in network:
        torch.nn.init.normal_(layer.bias)
    wrong = network(digits.test_images).argmax(dim=1) != digits.test_labels
    row = script.measure(torch.nn.ModuleDict({"bp": network}), torch.ones(1), digits)
    assert row == pytest.approx({"bp_loss": 1, "bp_error": 100 * wrong.float().mean().item()})


def test_the_alignment_angle_of_known_cases():
    torch.manual_seed(0)
    error, weight, angle = torch.randn(50, 10), torch.randn(10, 1000), script.alignment_angle
    assert angle(error, weight, 3 * weight).item() == pytest.approx(0, abs=0.1)
    assert angle(error, weight, torch.randn(10, 1000)).item() == pytest.approx(90, abs=2)
    error[0] = 0  # no signal, no angle
    assert angle(error, weight, -weight).item() == pytest.approx(180, abs=0.1)
    assert angle(0 * error, weight, weight).isnan()


def test_an_overflowing_network_is_nan_and_leaves_the_others_alone(digits):
    networks = matched("--rules", "fa", "bp")
    torch.nn.init.constant_(networks["fa"][0].weight, 1e38)
    rows = train(networks, digits)
    assert all(math.isnan(row[name]) for row in rows[1:] for name in ("fa_loss", "fa_error"))
    alone = train(matched("--rules", "bp"), digits)
    assert columns(rows, "bp_loss", "bp_error") == columns(alone, "bp_loss", "bp_error")


def test_the_log_holds_what_was_asked_for_and_depends_on_nothing_else(small):
    run("--out=all", "--seeds", 1, 2, "--batch-size=30", "--epochs=2", "--log-every=5")
    run("--out=some", "--rules", "shallow", "fa", "fa", "--seeds", 2, 2, "--batch-size=30")
    all_rows, some = read_rows("all"), read_rows("some")
    assert [row["seed"] for row in all_rows] == ["1"] * 8 + ["2"] * 8
    measures = ["fa_error", "shallow_error", "angle"]
    assert list(some[0]) == ["seed", "epoch", "step", "fa_loss", "shallow_loss", *measures]
    assert columns(all_rows[13:14], *measures) == columns(some[-1:], *measures)
    config = json.loads(Path("all/config.json").read_text())
    assert (config["seeds"], config["steps_per_epoch"], config["freeze_read_out"]) == (
        [1, 2],
        10,
        False,
    )
    assert config["dataset_used"] == "synthetic digits (not MNIST)"
    assert config["matplotlib"] == matplotlib.__version__


def test_the_csv_holds_each_measure_to_six_digits(small, digits):
    run("--out=run")
    for logged, row in zip(read_rows("run"), train(matched(), digits), strict=True):
        assert {k: float(v) for k, v in logged.items() if k != "seed"} == pytest.approx(
            row, rel=1e-5
        )


def test_the_terminal_shows_a_markdown_table_of_at_most_100_columns(small, capsys, monkeypatch):
    clock = itertools.count(step=0.5)
    monkeypatch.setattr(script.time, "monotonic", lambda: next(clock))
    run("--seeds", 0, 1)
    output = capsys.readouterr().out
    assert not any(line.startswith("error") for line in output.splitlines())
    assert "Data: synthetic digits (not MNIST). Device: cpu." in output
    table = [line for line in output.splitlines() if "|" in line]
    assert table[0].endswith("shallow_error|angle|time left")
    assert (set(table[1]), len(table)) == (set("|-"), 2 + 2 * 6)
    assert {line.count("|") for line in table} == {10}
    assert max(map(len, table)) <= 100
    # Half a second a row; after 2 seconds it is 4 steps of 20.
    time_left = [line.split("|")[-1].strip() for line in table[2:]]
    assert time_left[:5] == ["", "", "", "0:00:08", "0:00:04"]
    assert time_left[-1] == "0:00:00"
    (folder,) = Path("runs").iterdir()
    assert output.splitlines()[-1].endswith(f"plot_losses.py {folder}")


def test_the_summary_gives_mean_and_sample_standard_deviation_over_the_seeds(small, capsys):
    run("--out=run", "--seeds", 0, 1, 2)
    output = capsys.readouterr().out
    assert "mean ± standard deviation over 3 seeds" in output
    last = [row for row in read_rows("run") if row["step"] == "10"]
    for name in list(last[0])[3:]:
        values = [float(row[name]) for row in last]
        (said,) = re.findall(rf"^{name} +(\S+) ± (\S+)$", output, re.MULTILINE)
        expected = statistics.fmean(values), statistics.stdev(values)
        assert tuple(map(float, said)) == pytest.approx(expected, rel=0.05)
        assert float(said[0]) == pytest.approx(expected[0], rel=1e-3)


def test_an_overflow_is_nan_in_the_log_explained_in_one_line_and_plotted(small, capsys):
    assert run("--out=run", "--lr=1e6", "--epochs=3", "--log-every=100") == 0
    assert {read_rows("run")[-1][name] for name in ("fa_loss", "fa_error", "angle")} == {"nan"}
    assert capsys.readouterr().err.count("overflowed") == 1
    assert plot_losses.main(["run"]) == 0


def test_the_stand_in_is_the_same_every_time_and_holds_ten_different_digits(digits):
    again = script.load_digits("synthetic", Path("data"), CPU)
    assert all(map(torch.equal, digits[1:], again[1:]))
    twins = torch.cdist(digits.test_images, digits.train_images).argmin(dim=1)
    assert (digits.train_labels[twins] == digits.test_labels).float().mean() > 0.6
    assert not torch.equal(digits.train_images[:100], digits.test_images)
    extremes = [tensor.item() for tensor in digits.train_images.aminmax()]
    assert extremes == pytest.approx([-0.1307 / 0.3081, 0.8693 / 0.3081], rel=0.01)


def test_auto_says_loudly_that_it_uses_the_stand_in_and_mnist_refuses(small, monkeypatch, capsys):
    monkeypatch.setattr(script.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens
    socket.setdefaulttimeout(None)
    assert run("--dataset=auto", "--out=run") == 0
    assert socket.getdefaulttimeout() == 10  # a server that never answers is given up on
    output = capsys.readouterr()
    assert "Connection refused" in output.err
    assert "no figure below is MNIST's" in output.err
    assert "synthetic digits (not MNIST)" in output.out
    refuse(["--dataset=mnist"], capsys, "--data-dir", "Connection refused")


@pytest.fixture
def tiny_mnist(small):
    """MNIST's four files, with 300 + 100 random images whose first pixel tells the label."""
    raw = small / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, size in ("train", 300), ("t10k", 100):
        sizes = [n.to_bytes(4, "big") for n in (size, 28, 28)]
        labels = os.urandom(size).translate(bytes(i % 10 for i in range(256)))
        images = b"".join(bytes([label]) + os.urandom(783) for label in labels)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\b\3" + b"".join(sizes) + images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\b\1" + sizes[0] + labels)
    return raw


def test_mnists_images_keep_their_labels_and_are_normalised(tiny_mnist):
    digits = script.load_digits("mnist", Path("data"), CPU)
    for images, labels in zip(digits[1::2], digits[2::2], strict=True):
        torch.testing.assert_close(images[:, 0], (labels / 255 - 0.1307) / 0.3081)
    assert run("--dataset=mnist", "--out=run") == 0
    assert json.loads(Path("run/config.json").read_text())["dataset_used"] == "MNIST"


@pytest.mark.parametrize("damage", ["cut", "empty", "of the test images"])
@pytest.mark.parametrize("part", ["images-idx3-ubyte", "labels-idx1-ubyte"])
def test_damaged_mnist_is_refused_or_said_to_be_replaced(tiny_mnist, capsys, part, damage):
    assert script.load_digits("auto", Path("data"), CPU).name == "MNIST"
    train, test = ((tiny_mnist / f"{name}-{part}").read_bytes() for name in ("train", "t10k"))
    damaged = {"cut": train[:-1], "empty": b"", "of the test images": test}[damage]
    (tiny_mnist / f"train-{part}").write_bytes(damaged)
    refuse(["--dataset=mnist"], capsys, "--data-dir", "delete data/MNIST")
    assert "not MNIST" in script.load_digits("auto", Path("data"), CPU).name
    assert "delete data/MNIST" in capsys.readouterr().err


def refuse(arguments, capsys, *mentions):
    """Bad input gets one line that mentions it and status 2; nothing is made."""
    before = {path for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert all(mention in error for mention in ("error:", *mentions))
    assert {path for path in Path().rglob("*") if path.is_file()} == before


BAD_OPTIONS = """
    --epochs= --epochs=x --epochs=0 --epochs=1.5 --epochs=nan --epochs=10001 --lr= --lr=x --lr=0
    --lr=-1 --lr=nan --lr=inf --batch-size=301 --hidden=0 --momentum=1 --weight-decay=-1
    --init-scale=0 --log-every=0 --seeds=-1 --seeds=1.5 --rules=dfa --dataset=cifar --device=meta
    --device=gpu --device=cuda:99 --data-dir=file --data-dir=file/below --learning-rate=1
    --out=file --out=file/below --out=run --out=config --out=/proc/run
"""


@pytest.mark.parametrize("option", BAD_OPTIONS.split())
def test_bad_options_are_refused_in_one_line(small, capsys, option):
    Path("file").write_text("a file")
    for name in "run/losses.csv", "config/config.json":
        Path(name).parent.mkdir()
        Path(name).touch()
    dataset = "auto" if "--data-dir" in option else "synthetic"
    refuse([f"--dataset={dataset}", option], capsys, *option.replace("/", "=").split("=")[:2])


def test_the_out_folder_is_tried_before_the_data_are_looked_for(small, capsys):
    Path("file").write_text("a file")
    refuse(["--dataset=auto", "--out=file"], capsys, "--out")
    assert not Path("data").exists()


def test_a_run_in_which_nothing_would_learn_is_refused(small, capsys):
    refuse(["--freeze-read-out", "--rules", "shallow"], capsys, "--freeze-read-out")


# The script in a process of its own, on the small stand-in, for hours.
LONG = f"""import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
sys.path.insert(0, {str(Path(script.__file__).parent)!r})
import train_fa_vs_bp_linear_model as script
script.TRAIN_SIZE, script.TEST_SIZE = 300, 100
sys.exit(script.main({[*SMALL, "--log-every=1", "--out=run", "--epochs=9999"]}))"""


def long_run(folder, signal_number=0, **popen):
    """Start a run for hours, send it a signal after some rows; return its status and error."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(
        [sys.executable, "-c", LONG], cwd=folder, text=True, **pipes, **popen
    )
    log, started = folder / "run" / "losses.csv", time.monotonic()
    while not (log.exists() and log.read_bytes().count(b"\n") > 5):
        assert time.monotonic() - started < 60, "no row in a minute"
        time.sleep(0.05)
    process.send_signal(signal_number)
    terminal, error = process.communicate(timeout=30)
    whole_lines = log.read_bytes().rpartition(b"\n")[0].splitlines()[1:]
    steps = [int(line.split(b",")[2]) for line in whole_lines]
    assert steps == [0] + [1 + number % 10 for number in range(len(steps) - 1)]
    assert len(steps) >= terminal.count("\n   0|")  # what was shown is kept
    assert plot_losses.main([str(folder / "run")]) == 0
    return process.returncode, error


def test_ctrl_c_keeps_every_row_and_says_where(tmp_path):
    message = "\nInterrupted. All rows so far are in run/losses.csv.\n"
    assert long_run(tmp_path, signal.SIGINT) == (130, message)


def test_a_killed_run_leaves_rows_that_plot(tmp_path):
    assert long_run(tmp_path, signal.SIGKILL) == (-signal.SIGKILL, "")


def test_a_full_disk_ends_the_run_with_a_clear_message(tmp_path):
    full = resource.RLIMIT_FSIZE, (4096, 4096)
    status, error = long_run(tmp_path, preexec_fn=lambda: resource.setrlimit(*full))
    message = "\nStopped: [Errno 27] File too large. All rows so far are in run/losses.csv.\n"
    assert (status, error) == (1, message)
    assert (tmp_path / "run" / "losses.csv").stat().st_size == 4096


def test_a_closed_pipe_ends_the_run_with_a_clear_message(tmp_path):
    program, pipe = [sys.executable, "-c", LONG], subprocess.PIPE
    with subprocess.Popen(program, cwd=tmp_path, text=True, stdout=pipe, stderr=pipe) as process:
        while "|" not in process.stdout.readline():
            pass
        process.stdout.close()
        error = process.stderr.read()
    message = "\nStopped: [Errno 32] Broken pipe. All rows so far are in run/losses.csv.\n"
    assert (process.returncode, error) == (1, message)
