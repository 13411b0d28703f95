"""The comparison is matched, measures what it says, and loses nothing."""

import csv
import itertools
import json
import os
import re
import socket
import statistics
from pathlib import Path

import pytest
import torch
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


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_networks_start_equal_as_pytorch_starts_and_those_layers_learn_that_should(scale):
    networks = matched("--hidden=1000", f"--init-scale={scale}", seed=3)
    other = matched("--hidden=1000", f"--init-scale={scale}", seed=4)["fa"]
    assert not torch.equal(networks["fa"][0].weight, other[0].weight)
    for name, start in networks["bp"].state_dict().items():
        assert all(torch.equal(start, networks[rule].state_dict()[name]) for rule in networks)
        bound = scale * (784 if name.startswith("0") else 1000) ** -0.5
        assert 0.7 * bound < start.abs().max() <= bound  # one bias has but 10 numbers
    W, B = networks["fa"][1].weight.flatten(), networks["fa"][1].feedback.flatten()
    assert B.abs().max().item() == pytest.approx(1000**-0.5, rel=0.01)
    assert abs(script.angle(W, B) - 90) < 3
    learn = [p.requires_grad for p in networks.parameters()]  # W0, b0, W, b of each
    assert learn == [True] * 8 + [False, False, True, True]  # fa, bp, shallow
    learn = [p.requires_grad for p in matched("--freeze-read-out").parameters()]
    assert learn == [True, True, False, False] * 2  # fa, bp


def test_fa_with_feedback_tied_to_the_weights_is_bp(digits):
    networks = matched()

    def tie(layer, _):
        layer.feedback = layer.weight.detach().clone()

    networks["fa"][1].register_forward_pre_hook(tie)
    rows = train(networks, digits, "--log-every=1")
    assert all(row["fa_loss"] == row["bp_loss"] for row in rows)
    assert all(row["fa_error"] == row["bp_error"] for row in rows)
    assert rows[-1]["fa_loss"] < rows[0]["fa_loss"]


def test_each_network_learns_as_if_trained_alone_on_the_same_mini_batches(digits):
    together, alone = matched(seed=5), matched(seed=5)
    arguments = "--lr=0.02", "--momentum=0.7", "--weight-decay=0.1", "--epochs=2", "--log-every=6"
    rows = train(together, digits, *arguments, seed=5)
    # Rows: before any update, at early powers of two, every 6 steps, at each epoch's last.
    places = [(0, 0), (0, 1), (0, 2), (0, 4), (0, 6), (0, 10), (1, 6), (1, 10)]
    assert [(row["epoch"], row["step"]) for row in rows] == places
    settings = {"momentum": 0.7, "nesterov": True, "weight_decay": 0.1}
    for rule, network in alone.items():
        optimizer, losses = torch.optim.SGD(network.parameters(), lr=0.02, **settings), []
        generator = torch.Generator().manual_seed(5)
        for _epoch in range(2):
            for batch in torch.randperm(300, generator=generator).split(32):
                outputs = network(digits.train_images[batch])
                loss = F.cross_entropy(outputs, digits.train_labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        steps = itertools.pairwise([0, 1, 2, 4, 6, 10, 16, 20])
        means = [losses[0], *(statistics.fmean(losses[a:b]) for a, b in steps)]
        assert [row[f"{rule}_loss"] for row in rows] == pytest.approx(means, rel=1e-4)
        torch.testing.assert_close(list(network.parameters()), list(together[rule].parameters()))
        assert losses[0] == rows[0]["fa_loss"]  # a matched start
        W0, b0, W, b = network.parameters()
        y = (digits.test_images @ W0.T + b0) @ W.T + b
        wrong = [int(a.argmax()) != int(t) for a, t in zip(y, digits.test_labels, strict=True)]
        assert rows[-1][f"{rule}_error"] == pytest.approx(100 * statistics.fmean(wrong))
        if rule == "fa":
            B, e = network[1].feedback, y.softmax(dim=1) - torch.eye(10)[digits.test_labels]
            vectors = [*zip(e @ B, e @ W, strict=True), (B.flatten(), W.flatten())]
            cosines = torch.stack([a @ b / (a.norm() * b.norm()) for a, b in vectors])
            *messages, weight = cosines.acos().rad2deg().tolist()
            angles = rows[-1]["message_angle"], rows[-1]["weight_angle"]
            assert angles == pytest.approx((statistics.fmean(messages), weight), rel=1e-4)
    assert script.angle(torch.zeros(2), torch.ones(2)).isnan()  # no message, no angle


def test_log_and_terminal_hold_what_was_asked_for_and_it_depends_on_nothing_else(digits, capsys):
    run("--out=both", "--seeds", 1, 1234567, 1)
    output = capsys.readouterr().out
    run("--seeds", 1234567)
    both, one = read_rows("both"), read_rows(next(Path("runs").iterdir()))
    assert [row["seed"] for row in both] == ["1"] * 6 + ["1234567"] * 6
    assert both[6:] == one
    for logged, row in zip(one, train(matched(seed=1234567), digits, seed=1234567), strict=True):
        assert list(logged) == ["seed", *row]
        assert [float(logged[name]) for name in row] == pytest.approx(list(row.values()), rel=1e-5)
    config = json.loads(Path("both/config.json").read_text())
    assert (config["seeds"], config["steps_per_epoch"]) == ([1, 1234567], 10)
    assert config["dataset_used"] == "random patterns (not MNIST)"
    assert "Data: random patterns (not MNIST). Device: cpu. An epoch has 10 steps." in output
    for name in list(row)[2:]:
        ends = [float(both[end][name]) for end in (5, 11)]
        mean, deviation = re.search(rf"^{name} +(\S+) ± (\S+)$", output, re.MULTILINE).groups()
        assert float(mean) == pytest.approx(statistics.fmean(ends), rel=1e-3)
        assert float(deviation) == pytest.approx(statistics.stdev(ends), rel=0.1)


def refuse(arguments, capsys, culprit):
    """Bad input gets status 2 and, below the usage, a line that names it; nothing is made."""
    before = set(Path().rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert culprit in capsys.readouterr().err.splitlines()[-1]
    assert set(Path().rglob("*")) == before


@pytest.mark.parametrize("answers", [True, False])
def test_where_the_download_fails_patterns_stand_in(small, monkeypatch, capsys, answers):
    patience = socket.setdefaulttimeout
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: patience(seconds / 20))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr(script.MNIST, "mirrors", [address])
        if answers:
            server.close()  # by a refusal
        first, again = (script.load_digits("auto", Path("data"), "cpu") for _ in range(2))
        assert "no figure below is MNIST's" in capsys.readouterr().err
        refuse(["--dataset=mnist"], capsys, "no MNIST in data")
    patience(None)
    assert first.name == "random patterns (not MNIST)"
    assert all(map(torch.equal, first[1:], again[1:]))  # the same every time
    means = [first.train_images[first.train_labels == label].mean(dim=0) for label in range(10)]
    nearest = torch.cdist(first.test_images, torch.stack(means)).argmin(dim=1)
    assert (nearest == first.test_labels).float().mean() > 0.6


@pytest.fixture
def raw(small, monkeypatch):
    """The folder of MNIST's four files: 300 + 100 images, whose first pixel is the label."""
    monkeypatch.setattr(script.MNIST, "mirrors", [])
    raw = Path("data/MNIST/raw")
    raw.mkdir(parents=True)
    for name, size in ("train", 300), ("t10k", 100):
        sizes = [n.to_bytes(4, "big") for n in (size, 28, 28)]
        labels = os.urandom(size).translate(bytes(i % 10 for i in range(256)))
        images = b"".join(bytes([label]) + os.urandom(783) for label in labels)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\b\3" + b"".join(sizes) + images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\b\1" + sizes[0] + labels)
    return raw


def test_mnists_images_keep_their_labels_and_are_normalised(raw):
    digits = script.load_digits("auto", Path("data"), "cpu")
    assert digits.name == "MNIST"
    for images, labels in zip(digits[1::2], digits[2::2], strict=True):
        torch.testing.assert_close(images[:, 0], (labels / 255 - 0.1307) / 0.3081)


@pytest.mark.parametrize("damage", ["cut", "of the test images", "missing"])
@pytest.mark.parametrize("part", ["images-idx3-ubyte", "labels-idx1-ubyte"])
def test_damaged_or_incomplete_files_stop_the_run(raw, capsys, part, damage):
    train, test = raw / f"train-{part}", raw / f"t10k-{part}"
    train.write_bytes(train.read_bytes()[:-1] if damage == "cut" else test.read_bytes())
    if damage == "missing":
        train.unlink()
    refuse(["--dataset=auto"], capsys, "data/MNIST is damaged or incomplete; delete it")


BAD_OPTIONS = """--epochs=0 --epochs=1.5 --lr=0 --lr=-1 --lr=nan --lr=inf --batch-size=0 --hidden=0
    --momentum=1 --weight-decay=-1 --init-scale=0 --log-every=0 --seeds=x --dataset=cifar
    --out=file --out=run --out=/proc/run --device=gpu --device=cuda:99"""


@pytest.mark.parametrize("option", [*BAD_OPTIONS.split(), "--data-dir=file --dataset=auto"])
def test_what_makes_no_sense_is_refused_and_leaves_nothing(small, capsys, option):
    Path("file").write_text("a file")
    Path("run").mkdir()
    named = {"--device": "error: ", "--data-dir": "no MNIST in file"}
    name = option.partition("=")[0]
    refuse(option.split(), capsys, named.get(name, f"argument {name}: "))


def test_a_run_that_is_interrupted_has_kept_each_row_and_says_so(small, monkeypatch, capsys):
    measure, kept = script.measure, []

    def interrupted(*arguments):
        if Path("run/losses.csv").stat().st_size:
            kept.append(len(read_rows("run")))
        if len(kept) == 4:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(script, "measure", interrupted)
    assert run("--out=run", "--epochs=2") == 130
    assert capsys.readouterr().err == "\nInterrupted. All rows so far are in run/losses.csv.\n"
    assert kept == [1, 2, 3, 4]
    plot_losses.main(["run"])
