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
from pathlib import Path

import matplotlib
import pytest
import torch
from benchmark import hand_written_loop
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


def test_fa_with_feedback_tied_to_the_weights_is_bp(digits):
    networks = matched("--rules", "fa", "bp")

    def tie(layer, _):
        layer.feedback.copy_(layer.weight.detach())

    networks["fa"][1].register_forward_pre_hook(tie)
    rows = train(networks, digits, "--log-every=1")
    assert columns(rows, "fa_loss", "fa_error") == columns(rows, "bp_loss", "bp_error")
    assert rows[-1]["fa_loss"] < rows[0]["fa_loss"]


@pytest.mark.parametrize(("option", "read_out"), [([], True), (["--freeze-read-out"], False)])
def test_the_layers_learn_that_should_and_no_others(digits, option, read_out):
    networks = matched(*option)
    before = [parameter.clone() for parameter in networks.parameters()]
    train(networks, digits)
    pairs = zip(before, networks.parameters(), strict=True)
    learned = [not torch.equal(old, new) for old, new in pairs]
    read_out = [read_out, read_out]  # weight and bias
    assert learned == [True, True, *read_out] * 2 + [False, False, *read_out]  # fa, bp, shallow


def test_each_network_learns_as_if_trained_alone_by_hand_on_the_same_mini_batches(digits):
    networks, by_hand = matched(seed=5), matched(seed=5)
    arguments = "--lr=0.01", "--epochs=2", "--log-every=6"
    rows = train(networks, digits, *arguments, seed=5)
    first = script.measure(by_hand, torch.zeros(3), digits)
    loop = hand_written_loop(by_hand, digits, settings(*arguments), seed=5)
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(300, generator=generator) for _epoch in range(2)]
    losses = []
    for batch in [batch for order in orders for batch in order.split(32)]:
        images, labels = digits.train_images[batch], digits.train_labels[batch]
        losses.append([F.cross_entropy(by_hand[rule](images), labels).item() for rule in by_hand])
        next(loop)
    torch.testing.assert_close(list(networks.parameters()), list(by_hand.parameters()))
    # Rows: before any update, at early powers of two, every 6 steps, at each epoch's last.
    early, rest = [[0, 0], [0, 1], [0, 2], [0, 4]], [[0, 6], [0, 10], [1, 6], [1, 10]]
    assert columns(rows, "epoch", "step") == early + rest
    steps = [0, 1, 2, 4, 6, 10, 16, 20]
    means = [torch.tensor(losses[a:b]).mean(dim=0).tolist() for a, b in itertools.pairwise(steps)]
    logged = columns(rows, *(f"{rule}_loss" for rule in by_hand))
    torch.testing.assert_close(logged, [losses[0], *means], rtol=1e-4, atol=0)
    errors = [f"{rule}_error" for rule in by_hand]
    assert columns(rows[:1], *errors, "angle") == columns([first], *errors, "angle")
    assert len(set(logged[0])) == len({first[name] for name in errors}) == 1  # a matched start

    outputs = {rule: network(digits.test_images) for rule, network in by_hand.items()}
    for rule in by_hand:
        error = (outputs[rule].argmax(dim=1) != digits.test_labels).float().mean()
        assert rows[-1][f"{rule}_error"] == pytest.approx(100 * error.item())
    e = outputs["fa"].softmax(dim=1) - torch.eye(10)[digits.test_labels]
    messages = [e @ matrix for matrix in (by_hand["fa"][1].feedback, by_hand["fa"][1].weight)]
    cosine = F.cosine_similarity(*messages, eps=1e-30)
    assert rows[-1]["angle"] == pytest.approx(cosine.acos().rad2deg().mean().item(), abs=0.01)


def test_the_alignment_angle_of_known_cases():
    torch.manual_seed(0)
    error, weight, angle = torch.randn(50, 10), torch.randn(10, 1000), script.alignment_angle
    assert angle(error, weight, 3 * weight).item() == pytest.approx(0, abs=0.1)
    assert angle(error, weight, torch.randn(10, 1000)).item() == pytest.approx(90, abs=2)
    error[0] = 0  # no signal, no angle
    assert angle(error, weight, -weight).item() == pytest.approx(180, abs=0.1)
    assert angle(0 * error, weight, weight).isnan()


def test_the_log_holds_what_was_asked_for_to_six_digits_and_depends_on_nothing_else(small, digits):
    run("--out=all", "--seeds", 1, 2, "--batch-size=30", "--epochs=2", "--log-every=5")
    run("--out=some", "--rules", "shallow", "fa", "fa", "--seeds", 2, 2, "--batch-size=30")
    all_rows, some = read_rows("all"), read_rows("some")
    assert [row["seed"] for row in all_rows] == ["1"] * 8 + ["2"] * 8
    measures = ["fa_error", "shallow_error", "angle"]
    assert list(some[0]) == ["seed", "epoch", "step", "fa_loss", "shallow_loss", *measures]
    assert columns(all_rows[13:14], *measures) == columns(some[-1:], *measures)
    rows = train(matched(seed=2), digits, "--batch-size=30", seed=2)
    for logged, row in zip(some, rows, strict=True):
        values = [float(logged[name]) for name in measures]
        assert values == pytest.approx([row[name] for name in measures], rel=1e-5)
    config = json.loads(Path("all/config.json").read_text())
    assert (config["seeds"], config["steps_per_epoch"]) == ([1, 2], 10)
    assert config["dataset_used"] == "synthetic digits (not MNIST)"
    assert config["matplotlib"] == matplotlib.__version__


def test_the_terminal_shows_a_markdown_table_and_the_spread_over_the_seeds(
    small, capsys, monkeypatch
):
    clock = itertools.count(step=0.5)
    monkeypatch.setattr(script.time, "monotonic", lambda: next(clock))
    run("--seeds", 0, 1)
    output = capsys.readouterr().out
    assert not any(line.startswith("error") for line in output.splitlines())
    assert "Data: synthetic digits (not MNIST). Device: cpu." in output
    heading, rule, *rows = [line.split("|") for line in output.splitlines() if "|" in line]
    assert heading[-2:] == ["angle", "time left"]
    assert {len(row) for row in (rule, *rows)} == {len(heading)}
    assert max(map(len, output.splitlines()[:20])) <= 100
    # Half a second a row; after 2 seconds it is 4 steps of 20.
    time_left = [row[-1].strip() for row in rows]
    assert time_left[:5] == ["", "", "", "0:00:08", "0:00:04"]
    assert (len(rows), time_left[-1]) == (12, "0:00:00")
    assert "mean ± standard deviation over 2 seeds" in output
    for column, name in enumerate(heading[3:-1], start=3):
        values = [float(row[column]) for row in (rows[5], rows[11])]
        ((mean, deviation),) = re.findall(rf"^{name.strip()} +(\S+) ± (\S+)$", output, re.MULTILINE)
        assert float(mean) == pytest.approx(statistics.fmean(values), rel=1e-3)
        assert float(deviation) == pytest.approx(statistics.stdev(values), rel=0.1, abs=0.01)
    assert output.splitlines()[-1].endswith(f"plot_losses.py {next(Path('runs').iterdir())}")


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


def test_auto_says_loudly_that_it_uses_the_stand_in_and_mnist_refuses(small, monkeypatch, capsys):
    monkeypatch.setattr(script.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens
    socket.setdefaulttimeout(None)
    assert run("--dataset=auto", "--out=run") == 0
    assert socket.getdefaulttimeout() == 10  # a server that never answers is given up on
    output = capsys.readouterr()
    assert "Connection refused" in output.err
    assert "no figure below is MNIST's" in output.err
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
    --freeze-read-out+--rules=shallow
"""


@pytest.mark.parametrize("option", BAD_OPTIONS.split())
def test_bad_options_are_refused_in_one_line_before_the_data_are_looked_for(small, capsys, option):
    Path("file").write_text("a file")
    for name in "run/losses.csv", "config/config.json":
        Path(name).parent.mkdir()
        Path(name).touch()
    option, *others = option.split("+")
    mentions = option.replace("/", "=").split("=")[:2]
    refuse(["--dataset=auto", option, *others], capsys, *mentions)
    assert not Path("data").exists()


# The script in a process of its own, on the small stand-in, for hours.
LONG = f"""import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
sys.path.insert(0, {str(Path(script.__file__).parent)!r})
import train_fa_vs_bp_linear_model as script
script.TRAIN_SIZE, script.TEST_SIZE = 300, 100
sys.exit(script.main({[*SMALL, "--log-every=1", "--out=run", "--epochs=9999"]}))"""


DISK_OF_4_KIB = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))}


@pytest.mark.parametrize(
    ("cause", "popen", "status", "said"),
    [
        (signal.SIGINT, {}, 130, "Interrupted"),
        (signal.SIGKILL, {}, -signal.SIGKILL, None),
        ("full disk", DISK_OF_4_KIB, 1, "Stopped: [Errno 27] File too large"),
        ("closed pipe", {}, 1, "Stopped: [Errno 32] Broken pipe"),
    ],
)
def test_a_run_that_is_stopped_keeps_its_rows_says_so_and_plots(
    tmp_path, cause, popen, status, said
):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", LONG], cwd=tmp_path, **pipes, **popen)
    shown = [process.stdout.readline() for _ in range(12)]
    if cause == "closed pipe":
        process.stdout.close()
    process.send_signal(cause if isinstance(cause, signal.Signals) else 0)
    terminal, error = process.communicate(timeout=30)
    shown += (terminal or "").splitlines()
    message = f"\n{said}. All rows so far are in run/losses.csv.\n" if said else ""
    assert (process.returncode, error) == (status, message)
    whole_lines = (tmp_path / "run/losses.csv").read_bytes().rpartition(b"\n")[0].splitlines()[1:]
    steps = [int(line.split(b",")[2]) for line in whole_lines]
    assert steps == [0] + [1 + number % 10 for number in range(len(steps) - 1)]
    assert len(steps) >= sum(line.startswith("   0|") for line in shown) > 0  # what was shown
    assert plot_losses.main([str(tmp_path / "run")]) == 0
