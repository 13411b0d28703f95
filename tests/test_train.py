"""The comparison is matched, measures what it says, and loses nothing."""

import csv
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmark import hand_written_loop
from torch.nn import functional as F

import plot_losses
import train_fa_vs_bp_linear_model as script

SMALL = ["--dataset=synthetic", "--epochs=1", "--hidden=16", "--log-every=4", "--device=cpu"]


@pytest.fixture
def digits(small):
    return script.load_digits("synthetic", Path("data"), "cpu")


def settings(*arguments):
    return script.make_parser().parse_args([*SMALL, *arguments])


def matched(*arguments, seed=0):
    return script.matched_networks(settings(*arguments), seed)


def train(networks, digits, *arguments, seed=0):
    return list(script.train(networks, digits, settings(*arguments), seed))


def run(*arguments):
    return script.main([*SMALL, *map(str, arguments)])


def read_rows(folder):
    with open(Path(folder) / "losses.csv") as file:
        return list(csv.DictReader(file))


def columns(rows, *names):
    return [[row[name] for name in names] for row in rows]


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_networks_start_equal_as_pytorch_starts_and_the_scale_spares_the_feedback(scale):
    networks = matched("--hidden=1000", f"--init-scale={scale}", seed=3)
    other = matched("--hidden=1000", f"--init-scale={scale}", seed=4)["fa"]
    assert not torch.equal(networks["fa"][0].weight, other[0].weight)
    for name, start in networks["bp"].state_dict().items():
        assert all(torch.equal(start, networks[rule].state_dict()[name]) for rule in networks)
        bound = scale * (784 if name.startswith("0") else 1000) ** -0.5
        assert 0.7 * bound < start.abs().max() <= bound  # of a bias, only 10 numbers are drawn
    feedback = networks["fa"][1].feedback
    assert feedback.abs().max().item() == pytest.approx(1000**-0.5, rel=0.01)
    assert abs(script.angle(feedback.flatten(), networks["fa"][1].weight.flatten()) - 90) < 3


def test_fa_with_feedback_tied_to_the_weights_is_bp(digits):
    networks = matched()

    def tie(layer, _):
        layer.feedback = layer.weight.detach().clone()

    networks["fa"][1].register_forward_pre_hook(tie)
    rows = train(networks, digits, "--log-every=1")
    assert columns(rows, "fa_loss", "fa_error") == columns(rows, "bp_loss", "bp_error")
    assert rows[-1]["fa_loss"] < rows[0]["fa_loss"]


def test_the_layers_learn_that_should_and_no_others(digits):
    def learned(*option):
        networks = matched(*option)
        before = [parameter.clone() for parameter in networks.parameters()]
        train(networks, digits, *option)
        pairs = zip(before, networks.parameters(), strict=True)
        return [not torch.equal(old, new) for old, new in pairs]

    assert learned() == [True] * 8 + [False, False, True, True]  # fa, bp, shallow
    assert learned("--freeze-read-out") == [True, True, False, False] * 2  # fa, bp


def test_each_network_learns_as_if_trained_alone_by_hand_on_the_same_mini_batches(digits):
    networks, by_hand = matched(seed=5), matched(seed=5)
    arguments = "--lr=0.02", "--momentum=0.7", "--weight-decay=0.1", "--epochs=2", "--log-every=6"
    rows = train(networks, digits, *arguments, seed=5)
    loop = hand_written_loop(by_hand, digits, settings(*arguments), seed=5)
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(300, generator=generator) for _epoch in range(2)]
    losses, measured = [], [by_hand_measures(by_hand, digits)]
    for batch in [batch for order in orders for batch in order.split(32)]:
        images, labels = digits.train_images[batch], digits.train_labels[batch]
        losses.append([F.cross_entropy(by_hand[rule](images), labels).item() for rule in by_hand])
        next(loop)
        measured.append(by_hand_measures(by_hand, digits))
    torch.testing.assert_close(list(networks.parameters()), list(by_hand.parameters()))
    # Rows: before any update, at early powers of two, every 6 steps, at each epoch's last.
    early, rest = [[0, 0], [0, 1], [0, 2], [0, 4]], [[0, 6], [0, 10], [1, 6], [1, 10]]
    assert columns(rows, "epoch", "step") == early + rest
    steps = [0, 1, 2, 4, 6, 10, 16, 20]
    means = [torch.tensor(losses[a:b]).mean(dim=0).tolist() for a, b in itertools.pairwise(steps)]
    logged = columns(rows, *(f"{rule}_loss" for rule in by_hand))
    torch.testing.assert_close(logged, [losses[0], *means], rtol=1e-4, atol=0)
    for step, row in zip(steps, rows, strict=True):
        assert {name: row[name] for name in measured[step]} == pytest.approx(measured[step], 1e-4)
    assert len(set(logged[0])) == 1  # a matched start


def by_hand_measures(networks, digits):
    """Return test errors and angles, image by image where that is a different way."""
    measures = {}
    for rule, (hidden, read_out) in networks.items():
        h = digits.test_images @ hidden.weight.T + hidden.bias
        y = h @ read_out.weight.T + read_out.bias
        wrong = [int(a.argmax()) != int(t) for a, t in zip(y, digits.test_labels, strict=True)]
        measures[f"{rule}_error"] = 100 * statistics.fmean(wrong)
        if rule == "fa":
            W, B = read_out.weight.detach().double(), read_out.feedback.double()
            e = y.detach().double().softmax(dim=1) - torch.eye(10)[digits.test_labels]
            cosines = [F.cosine_similarity(a @ B, a @ W, dim=0, eps=1e-30) for a in e]
            measures["message_angle"] = torch.stack(cosines).acos().rad2deg().mean().item()
            cosine = F.cosine_similarity(W.flatten(), B.flatten(), dim=0)
            measures["weight_angle"] = cosine.acos().rad2deg().item()
    return measures


def test_the_angle_of_known_cases():
    a = torch.tensor([[3.0, 0], [1, 1], [0, 2], [-1, 0], [0, 0]])
    angles = script.angle(a, torch.tensor([2.0, 0]))
    torch.testing.assert_close(angles[:4], torch.tensor([0.0, 45, 90, 180]))
    assert angles[4].isnan()  # no message, no angle


def test_the_log_holds_what_was_asked_for_and_depends_on_nothing_else(small, digits):
    run("--out=both", "--seeds", 1, 1234567, 1, "--batch-size=30")
    run("--out=one", "--seeds", 1234567, "--batch-size=30")
    both, one = read_rows("both"), read_rows("one")
    assert [row["seed"] for row in both] == ["1"] * 6 + ["1234567"] * 6
    assert both[6:] == one
    measures = [f"{rule}_{name}" for name in ("loss", "error") for rule in ("fa", "bp", "shallow")]
    measures += ["message_angle", "weight_angle"]
    assert list(one[0]) == ["seed", "epoch", "step", *measures]
    rows = train(matched(seed=1234567), digits, "--batch-size=30", seed=1234567)
    for logged, row in zip(one, rows, strict=True):
        values = [float(logged[name]) for name in measures]
        assert values == pytest.approx([row[name] for name in measures], rel=1e-5)
    config = json.loads(Path("both/config.json").read_text())
    assert (config["seeds"], config["steps_per_epoch"]) == ([1, 1234567], 10)
    assert config["dataset_used"] == "random patterns (not MNIST)"


def test_the_terminal_shows_a_table_its_data_and_the_spread_over_the_seeds(small, capsys):
    run("--seeds", 0, 1)
    output = capsys.readouterr().out
    assert "Data: random patterns (not MNIST). Device: cpu. An epoch has 10 steps." in output
    heading, *rows = [line.split("|") for line in output.splitlines() if "|" in line]
    assert [len(row) for row in rows] == [len(heading)] * 12
    for column, name in enumerate(heading[3:], start=3):
        values = [float(row[column]) for row in (rows[5], rows[11])]
        ((mean, deviation),) = re.findall(rf"^{name} +(\S+) ± (\S+)$", output, re.MULTILINE)
        assert float(mean) == pytest.approx(statistics.fmean(values), rel=1e-3)
        assert float(deviation) == pytest.approx(statistics.stdev(values), rel=0.1, abs=0.01)
    assert output.splitlines()[-1].endswith(f"plot_losses.py {next(Path('runs').iterdir())}")


def test_the_stand_in_is_the_same_every_time_and_holds_ten_different_patterns(digits):
    again = script.load_digits("synthetic", Path("data"), "cpu")
    assert all(map(torch.equal, digits[1:], again[1:]))
    means = [digits.train_images[digits.train_labels == label].mean(dim=0) for label in range(10)]
    nearest = torch.cdist(digits.test_images, torch.stack(means)).argmin(dim=1)
    assert (nearest == digits.test_labels).float().mean() > 0.6
    assert not torch.equal(digits.train_images[:100], digits.test_images)
    assert digits.train_images.std().item() == pytest.approx(1)


@pytest.fixture(params=["nobody listens", "never answers"])
def broken_server(request, monkeypatch, small):
    """An address from which MNIST cannot be downloaded."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr(script.MNIST, "mirrors", [address])
        patience = socket.setdefaulttimeout
        monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: patience(seconds / 20))
        if request.param == "nobody listens":
            server.close()
        yield
    patience(None)


def test_where_the_download_fails_auto_says_that_it_stands_in_and_mnist_stops(
    broken_server, capsys
):
    assert run("--dataset=auto", "--out=run") == 0
    assert "no figure below is MNIST's" in capsys.readouterr().err
    assert json.loads(Path("run/config.json").read_text())["dataset_used"].endswith("(not MNIST)")
    refuse(["--dataset=mnist"], capsys, "no MNIST in data")


@pytest.fixture
def tiny_mnist(small, monkeypatch):
    """MNIST's four files, with 300 + 100 random images whose first pixel tells the label."""
    monkeypatch.setattr(script.MNIST, "mirrors", [])
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
    digits = script.load_digits("mnist", Path("data"), "cpu")
    for images, labels in zip(digits[1::2], digits[2::2], strict=True):
        torch.testing.assert_close(images[:, 0], (labels / 255 - 0.1307) / 0.3081)
    assert run("--dataset=auto", "--out=run") == 0
    assert json.loads(Path("run/config.json").read_text())["dataset_used"] == "MNIST"


@pytest.mark.parametrize("damage", ["cut", "empty", "of the test images", "missing"])
@pytest.mark.parametrize("part", ["images-idx3-ubyte", "labels-idx1-ubyte"])
def test_damaged_or_incomplete_mnist_stops_the_run_and_says_what_to_delete(
    tiny_mnist, capsys, part, damage
):
    train, test = ((tiny_mnist / f"{name}-{part}").read_bytes() for name in ("train", "t10k"))
    damaged = {"cut": train[:-1], "empty": b"", "of the test images": test}.get(damage)
    path = tiny_mnist / f"train-{part}"
    path.unlink() if damaged is None else path.write_bytes(damaged)
    refuse(["--dataset=auto"], capsys, "data/MNIST is damaged or incomplete; delete it")


def refuse(arguments, capsys, culprit):
    """Bad input gets status 2 and, below the usage, a line that names it; nothing is made."""
    before = set(Path().rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert culprit in capsys.readouterr().err.splitlines()[-1]
    assert set(Path().rglob("*")) == before


BAD_OPTIONS = """--epochs=0 --epochs=1.5 --lr=0 --lr=-1 --lr=nan --lr=inf --batch-size=0 --hidden=0
    --momentum=1 --weight-decay=-1 --init-scale=0 --log-every=0 --seeds=x --dataset=cifar
    --device=gpu --device=cuda:99 --out=file --out=file/below --out=run --out=/proc/run"""


@pytest.mark.parametrize("option", BAD_OPTIONS.split())
def test_what_makes_no_sense_is_refused_and_leaves_nothing(small, capsys, option):
    Path("file").write_text("a file")
    Path("run").mkdir()
    name = option.partition("=")[0]
    refuse([option], capsys, "error: " if name == "--device" else f"argument {name}: ")


@pytest.mark.parametrize("folder", ["file", "locked"])
def test_a_data_folder_that_cannot_be_used_is_no_failed_download(small, capsys, folder):
    Path("file").write_text("a file")
    Path("locked").symlink_to("/proc/nothing")
    refuse(["--dataset=auto", f"--data-dir={folder}"], capsys, f"no MNIST in {folder}")


# The script in a process of its own, on the small stand-in, for hours.
LONG = f"""import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
sys.path.insert(0, {str(Path(script.__file__).parent)!r})
import train_fa_vs_bp_linear_model as script
script.TRAIN_SIZE, script.TEST_SIZE = 300, 100
sys.exit(script.main({[*SMALL, "--log-every=1", "--out=run", "--epochs=9999"]}))"""


@pytest.mark.parametrize(
    ("cause", "status", "said"),
    [
        (signal.SIGINT, 130, "\nInterrupted. All rows so far are in run/losses.csv.\n"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_run_that_is_stopped_keeps_its_rows_and_plots(tmp_path, cause, status, said):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", LONG], cwd=tmp_path, **pipes)
    shown = [process.stdout.readline() for _ in range(12)]
    process.send_signal(cause)
    terminal, error = process.communicate(timeout=30)
    shown += terminal.splitlines()
    assert (process.returncode, error) == (status, said)
    whole_lines = (tmp_path / "run/losses.csv").read_bytes().rpartition(b"\n")[0].splitlines()[1:]
    steps = [int(line.split(b",")[2]) for line in whole_lines]
    assert steps == [0] + [1 + number % 10 for number in range(len(steps) - 1)]
    assert len(steps) >= sum(line.startswith("   0|") for line in shown) > 0  # what was shown
    plot_losses.main([str(tmp_path / "run")])
