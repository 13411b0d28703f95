"""The comparison is matched, measures what it says, and loses nothing."""

import csv
import gzip
import hashlib
import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import plot_losses
import train_fa_vs_bp_linear_model as script

SCRIPT = Path(script.__file__)
SMALL = [
    "--dataset",
    "synthetic",
    "--epochs",
    "1",
    "--hidden",
    "16",
    "--log-every",
    "4",
]


def train(*arguments):
    return script.main([*SMALL, *map(str, arguments)])


def read_rows(folder):
    with open(Path(folder) / "losses.csv") as file:
        return list(csv.DictReader(file))


def columns(rows, *names):
    return [[row[name] for name in names] for row in rows]


# The networks are matched


def test_networks_start_equal_and_the_control_is_frozen():
    networks = script.matched_networks(["fa", "bp", "shallow"], 50, 0.1, seed=3)
    states = [network.state_dict() for network in networks.values()]
    for name in "0.weight", "0.bias", "1.weight", "1.bias":
        assert all(torch.equal(states[0][name], state[name]) for state in states)
    assert not any(p.requires_grad for p in networks["shallow"][0].parameters())
    assert all(p.requires_grad for p in networks["shallow"][1].parameters())
    assert all(
        p.requires_grad for rule in ("fa", "bp") for p in networks[rule].parameters()
    )


def test_forward_weights_are_scaled_and_the_feedback_is_not():
    fa = script.matched_networks(["fa"], 1000, 0.1, seed=0)["fa"]
    for layer in fa:
        bound = math.sqrt(6 / layer.in_features)
        assert layer.weight.abs().max().item() == pytest.approx(0.1 * bound, rel=0.01)
        assert layer.bias.abs().max() == 0
    assert fa[1].feedback.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_all_networks_see_the_same_batches_and_every_image_once_an_epoch(small):
    seen = {rule: [] for rule in script.RULES}
    networks = script.matched_networks(list(seen), 16, 0.1, seed=0)
    for rule, network in networks.items():
        network.register_forward_pre_hook(
            lambda _, inputs, rule=rule: seen[rule].append(inputs[0].clone())
        )
    options = script.make_parser().parse_args([*SMALL, "--batch-size", "64"])
    digits = script.synthetic_digits()
    list(script.train(networks, digits, options, seed=0))
    assert [len(batch) for batch in seen["fa"]] == [64, 64, 64, 64, 44]
    for rule in "bp", "shallow":
        assert all(map(torch.equal, seen["fa"], seen[rule]))
    drawn = torch.cat(seen["fa"]).sum(1).sort().values
    images = script.normalise(digits.train_images).sum(1).sort().values
    torch.testing.assert_close(drawn, images)
    first = seen["fa"][0]
    for seed, same in (0, True), (1, False):
        seen["fa"].clear()
        next(script.train(networks, digits, options, seed))
        assert torch.equal(seen["fa"][0], first) is same


def test_fa_with_feedback_tied_to_the_weights_is_bp(small):
    networks = script.matched_networks(["fa", "bp"], 16, 0.1, seed=0)

    def tie(layer, _):
        layer.feedback.copy_(layer.weight.detach())

    networks["fa"][1].register_forward_pre_hook(tie)
    options = script.make_parser().parse_args([*SMALL, "--log-every", "1"])
    rows = list(script.train(networks, script.synthetic_digits(), options, seed=0))
    assert len(rows) == 10
    assert [row["fa_loss"] for row in rows] == [row["bp_loss"] for row in rows]
    assert rows[-1]["fa_loss"] < rows[0]["fa_loss"]


def test_the_control_trains_its_read_out_alone_and_takes_no_gradient_below(small):
    networks = script.matched_networks(["shallow"], 16, 0.1, seed=0)
    before = [parameter.clone() for parameter in networks["shallow"].parameters()]
    options = script.make_parser().parse_args(SMALL)
    list(script.train(networks, script.synthetic_digits(), options, seed=0))
    changed = [
        not torch.equal(old, new)
        for old, new in zip(before, networks["shallow"].parameters())
    ]
    assert changed == [False, False, True, True]
    assert networks["shallow"][0].weight.grad is None


def test_a_rules_losses_do_not_depend_on_which_others_train(small):
    train("--out", "all")
    train("--out", "one", "--rules", "bp")
    train("--out", "two", "--rules", "shallow", "fa")
    all_rows = read_rows("all")
    assert columns(all_rows, "bp_loss") == columns(read_rows("one"), "bp_loss")
    for name in "fa_loss", "shallow_error", "angle":
        assert columns(all_rows, name) == columns(read_rows("two"), name)
    assert list(read_rows("two")[0])[3:] == (
        ["fa_loss", "shallow_loss", "fa_error", "shallow_error", "angle"]
    )
    assert list(read_rows("one")[0])[3:] == ["bp_loss", "bp_error"]


def test_the_same_seed_gives_the_same_log_and_another_another(small):
    train("--out", "a", "--seeds", 1, 2)
    train("--out", "b", "--seeds", 2, 1)
    a, b = read_rows("a"), read_rows("b")
    assert a[:3] + a[3:] == b[3:] + b[:3]
    assert a[0]["fa_loss"] != a[3]["fa_loss"]


# What is measured


def test_the_collapsed_map_equals_the_network():
    network = script.matched_networks(["bp"], 40, 1.0, seed=0)["bp"].double()
    torch.nn.init.normal_(network[0].bias)
    torch.nn.init.normal_(network[1].bias)
    images = torch.randn(30, 784, dtype=torch.float64)
    collapsed = F.linear(images, *script.collapse(network))
    torch.testing.assert_close(collapsed, network(images))


def test_test_error_counts_wrong_answers_and_is_nan_when_an_output_is():
    outputs = torch.eye(10)[[1, 2, 3, 4]]
    assert script.test_error(outputs, torch.tensor([1, 2, 3, 5])) == 25
    outputs[0, 0] = math.inf
    assert script.test_error(outputs, torch.tensor([1, 2, 3, 5])).isnan()


def test_alignment_angle_of_known_cases():
    torch.manual_seed(0)
    error, weight = torch.randn(50, 10), torch.randn(10, 1000)
    angle = script.alignment_angle
    assert angle(error, weight, 3 * weight).item() == pytest.approx(0, abs=0.01)
    assert angle(error, weight, -weight).item() == pytest.approx(180, abs=0.01)
    turned = torch.zeros(10, 1000)
    turned[:, ::2], turned[:, 1::2] = -weight[:, 1::2], weight[:, ::2]
    one = torch.eye(10)[:1]
    assert angle(one, weight, turned).item() == pytest.approx(90, abs=0.01)
    assert angle(one, weight, weight + turned).item() == pytest.approx(45, abs=0.01)
    assert angle(error, weight, torch.randn(10, 1000)).item() == pytest.approx(
        90, abs=2
    )


def test_an_example_without_signal_has_no_angle():
    weight = torch.randn(10, 100)
    error = torch.randn(5, 10)
    error[0] = 0
    assert script.alignment_angle(0 * error, weight, weight).isnan()
    assert script.alignment_angle(error, weight, -weight).item() == pytest.approx(180)


def test_rows_hold_the_mean_loss_since_the_row_before(small):
    train("--out", "each", "--log-every", 1)
    train("--out", "third", "--log-every", 3)
    each, third = read_rows("each"), read_rows("third")
    assert columns(third, "step") == [["3"], ["6"], ["9"], ["10"]]
    losses = [float(row["bp_loss"]) for row in each]
    expected = [sum(losses[i : i + 3]) / len(losses[i : i + 3]) for i in (0, 3, 6, 9)]
    assert [float(r["bp_loss"]) for r in third] == pytest.approx(expected, rel=1e-5)
    assert columns(third[-1:], "bp_error") == columns(each[-1:], "bp_error")


@pytest.mark.parametrize(
    ("batch_size", "log_every", "steps"),
    [
        (32, 4, [4, 8, 10]),  # 300 images: a last batch of 12
        (30, 5, [5, 10]),
        (300, 4, [1]),
        (7, 40, [40, 43]),
    ],
)
def test_rows_appear_at_the_right_steps(small, batch_size, log_every, steps):
    train(
        "--out",
        "r",
        "--epochs",
        2,
        "--batch-size",
        batch_size,
        "--log-every",
        log_every,
    )
    expected = [[str(epoch), str(step)] for epoch in (0, 1) for step in steps]
    assert columns(read_rows("r"), "epoch", "step") == expected


# MNIST


def test_an_epoch_on_mnist_ends_where_the_committed_run_does(
    mnist_dir, tmp_path, capsys
):
    """Up to what another processor or library makes of the rounding."""
    digits = script.load_digits("mnist", mnist_dir)
    assert script.normalise(digits.train_images).mean().abs() < 0.001
    assert script.normalise(digits.train_images).std() == pytest.approx(1, abs=0.001)
    options = [
        "--data-dir",
        str(mnist_dir),
        "--out",
        str(tmp_path),
        "--dataset",
        "mnist",
    ]
    assert script.main([*options, "--epochs", "1"]) == 0
    rows = read_rows(tmp_path)
    committed = read_rows(SCRIPT.parent / "results" / "mnist")[: len(rows)]
    assert columns(rows, "seed", "epoch", "step") == columns(
        committed, "seed", "epoch", "step"
    )
    for name, tolerance in ("loss", 0.005), ("error", 0.3):
        for rule in script.RULES:
            expected = float(committed[-1][f"{rule}_{name}"])
            actual = float(rows[-1][f"{rule}_{name}"])
            assert actual == pytest.approx(expected, abs=tolerance)
    assert float(rows[-1]["angle"]) == pytest.approx(
        float(committed[-1]["angle"]), abs=0.5
    )
    assert "Data: MNIST" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["dataset_used"] == "MNIST"


# The stand-in, and the download


def test_the_stand_in_is_the_same_every_time_and_holds_ten_different_digits(small):
    first, second = script.synthetic_digits(), script.synthetic_digits()
    assert all(map(torch.equal, first[1:], second[1:]))
    assert first.train_images.shape == (300, 784)
    assert first.train_labels.unique().tolist() == list(range(10))
    assert not torch.equal(first.train_images[:100], first.test_images)
    grey = first.train_images.float() / 255
    assert 0.05 < grey.mean() < 0.2
    assert "not MNIST" in first.name


@pytest.fixture
def no_mirror(monkeypatch):
    """A mirror that refuses at once."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setattr(script.MNIST, "mirrors", [f"http://127.0.0.1:{port}/"])


def serve(monkeypatch, answer):
    """Let torchvision download from a server on loopback; answer(connection) is its all."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    port = server.getsockname()[1]
    monkeypatch.setattr(script.MNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
    return server


def test_auto_says_once_and_loudly_that_it_uses_the_stand_in(small, no_mirror, capsys):
    assert script.main([*SMALL, "--dataset", "auto", "--out", "run"]) == 0
    output = capsys.readouterr()
    assert output.err.count("cannot be downloaded") == 1
    assert "Connection refused" in output.err
    assert "No figure below is MNIST's" in output.err
    assert "Data: synthetic digits (not MNIST)" in output.out
    config = json.loads(Path("run/config.json").read_text())
    assert config["dataset_used"] == "synthetic digits (not MNIST)"
    assert not Path("data").exists()


def test_a_server_that_never_answers_is_given_up_on(small, monkeypatch):
    assert 3 * script.DOWNLOAD_TIMEOUT < 30  # as often as torchvision may wait in a row
    monkeypatch.setattr(script, "DOWNLOAD_TIMEOUT", 2)
    with serve(monkeypatch, lambda connection: time.sleep(60)):
        started = time.monotonic()
        script.load_digits("auto", Path("data"))
        assert 2 < time.monotonic() - started < 8
    assert os.listdir() == []
    assert socket.getdefaulttimeout() is None


def test_a_download_that_breaks_off_leaves_nothing(small, monkeypatch, capsys):
    def answer(connection):
        request = connection.recv(65536)
        while request:
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\nhalf"
            )
            connection.close()
            return

    with serve(monkeypatch, answer), pytest.raises(SystemExit):
        train("--dataset", "mnist")
    assert os.listdir() == []


def idx(tensor):
    """A tensor of bytes in the format of MNIST's files."""
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return bytes([0, 0, 8, tensor.dim()]) + sizes + tensor.numpy().tobytes()


@pytest.fixture
def tiny_mnist(small):
    """MNIST's four files, with 300 + 100 random images."""
    raw = small / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, size in ("train", 300), ("t10k", 100):
        images = torch.randint(256, (size, 28, 28), dtype=torch.uint8)
        labels = torch.randint(10, (size,), dtype=torch.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return raw


def test_a_download_is_moved_into_place_whole(small, tiny_mnist, monkeypatch):
    source = tiny_mnist.parents[2] / "source"
    shutil.move(tiny_mnist, source)
    shutil.rmtree("data")
    files = {
        name: gzip.compress((source / name).read_bytes()) for name in script.MNIST_FILES
    }
    sums = [(f"{n}.gz", hashlib.md5(data).hexdigest()) for n, data in files.items()]
    monkeypatch.setattr(script.MNIST, "resources", sums)

    def answer(connection):
        with connection:
            name = connection.recv(65536).split()[1].decode().strip("/")
            data = files[name.removesuffix(".gz")]
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data)

    with serve(monkeypatch, answer):
        assert train("--dataset", "auto", "--out", "run") == 0
    assert json.loads(Path("run/config.json").read_text())["dataset_used"] == "MNIST"
    raw = Path("data/MNIST/raw")
    assert sorted(os.listdir(raw)) == sorted(script.MNIST_FILES)
    assert sorted(os.listdir()) == ["data", "run", "source"]
    assert train("--dataset", "mnist", "--out", "again") == 0


# Bad input: one line that names the option and what it accepts, status 2, nothing made


def refuse(arguments, capsys, *mentions):
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        train(*arguments)
    output = capsys.readouterr()
    assert stop.value.code == 2
    error = [line for line in output.err.splitlines() if "error:" in line]
    assert len(error) == 1
    assert output.err.splitlines()[-1] == error[0]
    assert "Traceback" not in output.err
    for mention in mentions:
        assert mention in error[0]
    assert sorted(Path().rglob("*")) == before


BAD = ["", "x", "nan", "inf", "-inf", "-1", "1e99"]
BAD_NUMBERS = {
    "--epochs": [*BAD, "0", "1.5", "10001"],
    "--batch-size": [*BAD, "0", "1.5", "301"],
    "--hidden": [*BAD, "0", "1.5", "100001"],
    "--log-every": [*BAD, "0", "1.5", "301"],
    "--seeds": [*BAD, "1.5", str(2**32)],
    "--lr": [*BAD, "0"],
    "--momentum": [*BAD, "1"],
    "--weight-decay": [*BAD, "1.1"],
    "--init-scale": [*BAD, "0", "101"],
}


@pytest.mark.parametrize(
    ("option", "text"), [(o, t) for o, texts in BAD_NUMBERS.items() for t in texts]
)
def test_bad_numbers_are_refused(small, capsys, option, text):
    refuse([f"{option}={text}"], capsys, option, repr(text), " number from ")


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["--seeds", "1", "1"], ["--seeds", "only once"]),
        (["--seeds"], ["--seeds"]),
        (["--rules", "fa", "fa"], ["--rules", "only once"]),
        (["--rules", "dfa"], ["--rules", "'dfa'", "shallow"]),
        (["--dataset", "cifar"], ["--dataset", "synthetic"]),
        (["--device", "cuda:99"], ["--device", "cuda:99", "accepts cpu"]),
        (["--device", "gpu"], ["--device", "'gpu'", "accepts cpu"]),
        (["--device", "meta"], ["--device", "'meta'", "accepts cpu"]),
        (["--data-dir", "file"], ["--data-dir", "not a folder"]),
        (["--data-dir", "file/below"], ["--data-dir", "not a folder"]),
        (["--out", "file"], ["--out", "is a file"]),
        (["--out", "file/below"], ["--out", "is a file"]),
        (["--out", "run"], ["--out", "already holds a run"]),
        (["--learning-rate", "1"], ["--learning-rate"]),
    ],
)
def test_bad_options_are_refused(small, capsys, arguments, mentions):
    Path("file").write_text("a file")
    Path("run").mkdir()
    Path("run/losses.csv").touch()
    refuse(arguments, capsys, *mentions)


@pytest.fixture
def locked(small):
    """A folder that nobody may read or write; as root, work as somebody else."""
    folder = small / "locked"
    folder.mkdir()
    folder.chmod(0)
    small.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        for parent in small.parents[:2]:
            parent.chmod(0o755)
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)


def test_a_data_dir_that_cannot_be_read_is_refused(locked, capsys):
    with pytest.raises(SystemExit):
        train("--data-dir", "locked")
    assert (
        "--data-dir: 'locked' is not a folder that can be read"
        in capsys.readouterr().err
    )


def test_an_out_that_cannot_be_written_is_refused(locked, capsys):
    with pytest.raises(SystemExit):
        train("--out", "locked/run")
    output = capsys.readouterr()
    assert "--out" in output.err.splitlines()[-1]
    assert "ermission denied" in output.err.splitlines()[-1]


def truncate(raw):
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def empty(raw):
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"")


def swap(one, other):
    def change(raw):
        os.rename(raw / one, raw / "x")
        os.rename(raw / other, raw / one)
        os.rename(raw / "x", raw / other)

    return change


def wrong_labels(raw):
    path = raw / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + bytes([10]))


@pytest.mark.parametrize("dataset", ["auto", "mnist"])
@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        empty,
        wrong_labels,
        swap("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        swap("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"),
        swap("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"),
    ],
)
def test_damaged_mnist_is_refused(tiny_mnist, capsys, damage, dataset):
    script.load_digits(dataset, Path("data"))
    damage(tiny_mnist)
    refuse(["--dataset", dataset], capsys, "--data-dir", "damaged", "delete them")


@pytest.mark.parametrize("dataset", ["auto", "mnist"])
def test_half_a_download_is_refused(tiny_mnist, no_mirror, capsys, dataset):
    (tiny_mnist / "t10k-images-idx3-ubyte").rename(
        tiny_mnist / "t10k-images-idx3-ubyte.gz"
    )
    refuse(["--dataset", dataset], capsys, "--data-dir", "four files")


def test_mnist_that_cannot_be_had_is_refused_where_it_is_required(
    small, no_mirror, capsys
):
    refuse(["--dataset", "mnist"], capsys, "--data-dir", "cannot be downloaded")


# A run loses nothing


def test_the_table_is_markdown_of_at_most_100_columns(small, capsys):
    train("--out", "run", "--seeds", 0, 1)
    output = capsys.readouterr().out
    table = [line for line in output.splitlines() if "|" in line]
    assert len(table) == 2 * (2 + 3)
    assert table[0].split(" | ")[2:4] == ["FA loss", "BP loss"]
    assert set(table[1]) == set(" |-")
    assert {line.count("|") for line in table} == {9}
    assert max(map(len, table)) <= 100
    assert re.search(r"FA +test error +\d+\.\d\d ± \d+\.\d\d %", output)
    assert "over 2 seeds" in output
    assert output.splitlines()[-1].endswith("plot_losses.py run")


def test_every_run_gets_a_folder_of_its_own(small, monkeypatch):
    class Clock(script.datetime):
        @classmethod
        def now(cls):
            return cls(2020, 1, 2, 3, 4, 5)

    monkeypatch.setattr(script, "datetime", Clock)
    train()
    train()
    assert sorted(os.listdir("runs")) == [
        "2020-01-02_03-04-05",
        "2020-01-02_03-04-05_2",
    ]
    for folder in Path("runs").iterdir():
        assert len(read_rows(folder)) == 3
        config = json.loads((folder / "config.json").read_text())
        options = {action.dest for action in script.make_parser()._actions} - {"help"}
        assert set(config) == options | {
            "dataset_used",
            "steps_per_epoch",
            "threads",
            "torch",
        }
        assert config["threads"] == torch.get_num_threads()


def test_a_network_that_overflows_is_nan_and_the_others_go_on(
    small, monkeypatch, capsys
):
    make_optimizer = script.make_optimizer
    monkeypatch.setattr(
        script,
        "make_optimizer",
        lambda network, options: make_optimizer(
            network,
            script.argparse.Namespace(
                **vars(options)
                | {"lr": 1e12 if isinstance(network[1], script.FALinear) else 1e-2}
            ),
        ),
    )
    assert train("--out", "run", "--epochs", 3, "--seeds", 0, 1) == 0
    rows = read_rows("run")
    assert {row["fa_loss"] for row in rows} == {"nan"}
    assert (
        {row["fa_error"] for row in rows} == {row["angle"] for row in rows} == {"nan"}
    )
    assert all(math.isfinite(float(row["bp_loss"])) for row in rows)
    assert float(rows[-1]["bp_loss"]) < float(rows[0]["bp_loss"])
    assert capsys.readouterr().err.count("overflowed") == 2  # once for each seed
    assert plot_losses.main(["run"]) == 0


# The script in a process of its own, on the small stand-in, for hours.
SMALL_SCRIPT = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
SMALL_SCRIPT += "import train_fa_vs_bp_linear_model as script\n"
SMALL_SCRIPT += "script.TRAIN_SIZE, script.TEST_SIZE = 300, 100\n"
SMALL_SCRIPT += "sys.exit(script.main(sys.argv[1:]))"
LONG = [sys.executable, "-c", SMALL_SCRIPT, *SMALL, "--log-every=1", "--out=run"]
LONG += ["--epochs=9999", "--batch-size=10"]


def start_long_run(tmp_path):
    """Start a run that would take hours; return it once it has written some rows."""
    process = subprocess.Popen(
        LONG, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    log, started = tmp_path / "run" / "losses.csv", time.monotonic()
    while not (log.exists() and log.read_bytes().count(b"\n") > 5):
        assert time.monotonic() - started < 60, "no row in a minute"
        time.sleep(0.05)
    return process


def test_ctrl_c_keeps_every_row_and_says_where(tmp_path):
    process = start_long_run(tmp_path)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Interrupted. All rows so far are in run/losses.csv" in error
    assert b"Traceback" not in error
    assert (tmp_path / "run" / "losses.csv").read_bytes().endswith(b"\n")
    assert plot_losses.main([str(tmp_path / "run")]) == 0


def test_ctrl_c_does_not_wait_for_the_next_row():
    count = 30_000  # mini-batches of one image, and one row: half a minute or more
    images, labels = (
        torch.zeros(count, 784, dtype=torch.uint8),
        torch.zeros(count).long(),
    )
    digits = script.Digits("zeros", images, labels, images[:10], labels[:10])
    options = script.make_parser().parse_args(
        ["--batch-size=1", "--hidden=1", f"--log-every={count}", "--device=cpu"]
    )
    networks = script.matched_networks(options.rules, options.hidden, 0.1, seed=0)
    main_thread = threading.main_thread().ident
    ctrl_c = threading.Timer(1, signal.pthread_kill, [main_thread, signal.SIGINT])
    started = time.monotonic()
    ctrl_c.start()
    with pytest.raises(KeyboardInterrupt):
        next(script.train(networks, digits, options, seed=0))
    assert time.monotonic() - started < 10


def test_a_killed_run_leaves_rows_that_plot(tmp_path):
    process = start_long_run(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    rows = read_rows(tmp_path / "run")
    assert len(rows) > 3
    steps = [[str(1 + number % 30)] for number in range(len(rows))]
    assert columns(rows, "step") == steps
    assert plot_losses.main([str(tmp_path / "run")]) == 0


def test_a_full_disk_ends_the_run_with_a_clear_message(tmp_path):
    def limit_files_to_4_kilobytes():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    process = subprocess.run(
        LONG,
        cwd=tmp_path,
        preexec_fn=limit_files_to_4_kilobytes,
        capture_output=True,
        check=False,
    )
    assert process.returncode == 1
    last_line = process.stderr.decode().splitlines()[-1]
    assert "File too large" in last_line
    assert "run/losses.csv" in last_line
    assert b"Traceback" not in process.stderr
    assert (tmp_path / "run" / "losses.csv").stat().st_size == 4096
    assert plot_losses.main([str(tmp_path / "run")]) == 0
