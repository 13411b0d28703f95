"""Change one thing about the default run, and see whether FA still learns.

    python tests/controls.py DATA_DIR          all controls: prints tables, writes results/*.csv
    python tests/controls.py DATA_DIR LABEL    that control alone: prints its row

results/README.md explains the columns.
"""

import argparse
import copy
import csv
import functools
import multiprocessing
import os
import signal
import statistics
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear


def make_controls() -> dict:
    """Return {label: control}, in the order of the table."""
    pair = "fa", "bp"
    frozen = ["--freeze-read-out"]
    tanh = ["--lr=0.01", "--batch-size=64"]
    return {
        "nothing changed": Control(leave, pair, best=True),
        "hidden layer frozen (shallow)": Control(freeze_hidden, best=True),
        "no hidden layer (softmax regression)": Control(drop_hidden, ["bp"]),
        "W frozen at its start": Control(leave, pair, frozen, best=True),
        "W frozen at its start, messages from random labels": Control(
            randomise_messages, options=frozen, best=True
        ),
        "W frozen as FA left it": Control(take_w_of_fa, pair, frozen),
        "W frozen as FA left it, but another B": Control(take_w_but_not_b_of_fa, options=frozen),
        "W learns from the hidden layer as it started": Control(cut_copying, pair, best=True),
        "W copies with the opposite sign": Control(reverse_copying),
        "labels shuffled among the images once": Control(shuffle_labels),
        "W starts as B": Control(start_w_as_b),
        "W starts as −B": Control(start_w_as_minus_b),
        "B drawn anew at each step": Control(redraw_b, best=True),
        "B drawn anew at each step, messages from random labels": Control(
            redraw_b_and_randomise_messages, best=True
        ),
        "learning rate 1e-4": Control(leave, pair, ["--lr=1e-4"]),
        "learning rate 3e-4": Control(leave, pair, ["--lr=3e-4"]),
        "learning rate 0.01": Control(leave, pair, ["--lr=0.01"]),
        "learning rate 0.05": Control(leave, pair, ["--lr=0.05"]),
        "tanh network": Control(tanh_network, pair, tanh),
        "tanh network, only its read-out learns": Control(shallow_tanh_network, options=tanh),
    }


SEEDS = range(5)
RESULTS = Path(__file__).parents[1] / "results"
COLUMNS = {  # {name: decimals in the table}
    "fa": 1,
    "bp": 1,
    "fa early": 2,
    "bp early": 2,
    "matrices at 128": 0,
    "messages": 0,
    "least overlap": 2,
    "best read-out": 1,
}
PREDICTED_STEPS = 0, 16, 32, 64, 125


class Situation(NamedTuple):
    """What a control may change before the training: networks in place, data by a copy."""

    networks: nn.ModuleDict
    data: script.DataSet
    options: argparse.Namespace
    seed: int


class Control(NamedTuple):
    """A change, the rules whose figures are of interest, and options of the script."""

    change: Callable[[Situation], script.DataSet | None]
    rules: list[str] | tuple[str, ...] = ("fa",)
    options: list[str] | tuple[str, ...] = ()
    best: bool = False  # whether the best read-out is of interest


# What the controls change. All but `shuffle_labels` change the networks.


def leave(situation: Situation) -> None:
    """Change nothing."""


def freeze_hidden(situation: Situation) -> None:
    situation.networks["fa"].hidden.requires_grad_(False)


def drop_hidden(situation: Situation) -> None:
    pixels = situation.data.train_images.shape[1]
    situation.networks["bp"] = nn.Linear(pixels, situation.data.classes)


def take_w_of_fa(situation: Situation) -> None:
    """Take W, b and B from a network of another seed that FA has taught."""
    options = copy.copy(situation.options)
    options.freeze_read_out = False
    networks = script.matched_networks(situation.data, options, situation.seed + 100)
    networks = nn.ModuleDict({"fa": networks["fa"]})
    list(script.train(networks, situation.data, options, situation.seed))  # to its end
    state = networks["fa"].read_out.state_dict()
    for network in situation.networks.values():
        network.read_out.load_state_dict(state, strict=False)  # BP has no B


def take_w_but_not_b_of_fa(situation: Situation) -> None:
    """Keep the B that was drawn with the network."""
    own_feedback = situation.networks["fa"].read_out.feedback.clone()
    take_w_of_fa(situation)
    situation.networks["fa"].read_out.feedback.copy_(own_feedback)


def cut_copying(situation: Situation) -> None:
    """Let W learn from the hidden layer as it started, so that it cannot copy what came later."""
    for rule, network in situation.networks.items():
        situation.networks[rule] = CopyingNetwork(network, share=0)


def reverse_copying(situation: Situation) -> None:
    """Let W copy what came later with the opposite sign."""
    situation.networks["fa"] = CopyingNetwork(situation.networks["fa"], share=-1)


class CopyingNetwork(nn.Module):
    """Computes what its network computes, but W learns from h0 + share (h - h0) in place of h.

    h is the hidden layer's output, h0 that of the hidden layer as it started.
    """

    def __init__(self, network: nn.Sequential, share: float):
        super().__init__()
        self.hidden = network.hidden
        self.read_out = network.read_out
        self.hidden_at_start = copy.deepcopy(network.hidden).requires_grad_(False)
        self.share = share

    def forward(self, images):
        h, h0 = self.hidden(images), self.hidden_at_start(images)
        outputs = self.read_out(h)  # gives W the gradient e h^T
        difference = (self.share - 1) * (h - h0).detach()
        correction = F.linear(difference, self.read_out.weight)  # adds e (difference)^T
        return outputs + (correction - correction.detach())  # which is 0


def shuffle_labels(situation: Situation) -> script.DataSet:
    """Give the training images each other's labels, so that errors do not go with images."""
    labels = situation.data.train_labels
    order = torch.randperm(len(labels))
    return situation.data._replace(train_labels=labels[order])


def start_w_as_b(situation: Situation) -> None:
    read_out = situation.networks["fa"].read_out
    read_out.weight.data = read_out.feedback.clone()


def start_w_as_minus_b(situation: Situation) -> None:
    read_out = situation.networks["fa"].read_out
    read_out.weight.data = -read_out.feedback


def redraw_b(situation: Situation) -> None:
    """Draw B anew each time before the read-out is used."""

    def redraw(read_out, _inputs):
        read_out.feedback = FALinear(read_out.in_features, read_out.out_features).feedback

    situation.networks["fa"].read_out.register_forward_pre_hook(redraw)


def randomise_messages(situation: Situation) -> None:
    """Compute the messages' errors, but not the read-out's own, with random labels."""

    def replace_message(read_out, inputs, outputs):
        (h,) = inputs
        if h.requires_grad:
            labels = torch.randint(read_out.out_features, (len(outputs),))
            e = outputs.detach().softmax(dim=1) - F.one_hot(labels, read_out.out_features)
            message = e / len(outputs) @ read_out.feedback  # the loss is a mean
            h.register_hook(lambda _true_message: message)

    situation.networks["fa"].read_out.register_forward_hook(replace_message)


def redraw_b_and_randomise_messages(situation: Situation) -> None:
    redraw_b(situation)
    randomise_messages(situation)


def tanh_network(situation: Situation) -> None:
    """Train 784-256-64-10 with tanh."""
    for rule, upper in ("fa", FALinear), ("bp", nn.Linear):
        layers = {
            "hidden": nn.Linear(784, 256),
            "tanh": nn.Tanh(),
            "second": upper(256, 64),
            "second_tanh": nn.Tanh(),
            "read_out": upper(64, 10),
        }
        situation.networks[rule] = nn.Sequential(OrderedDict(layers))
    script.copy_weights(situation.networks["fa"], situation.networks["bp"])


def shallow_tanh_network(situation: Situation) -> None:
    """The same, but only its read-out learns."""
    tanh_network(situation)
    situation.networks["fa"].requires_grad_(False)
    situation.networks["fa"].read_out.requires_grad_(True)


# What is measured.


def run_control(control: Control, data: script.DataSet, seed: int, *more_options: str) -> dict:
    """Train the control's networks; return {column: value}."""
    arguments = ["--device=cpu", "--log-every=1875", *control.options, *more_options]
    options = script.make_parser().parse_args(arguments)
    networks = script.matched_networks(data, options, seed)
    networks = nn.ModuleDict({rule: networks[rule] for rule in ("fa", "bp")})
    data = control.change(Situation(networks, data, options, seed)) or data
    if "bp" not in control.rules:
        del networks["bp"]
    rows = list(script.train(networks, data, options, seed))
    values = {}
    first_epoch = {row["step"]: row for row in rows if row["epoch"] == 0}
    for rule in control.rules:
        values[rule] = rows[-1][f"{rule}_error"]
        values[f"{rule} early"] = first_epoch[64][f"{rule}_loss"]  # mean of the steps 33 to 64
    if "fa" in control.rules:
        values["matrices at 128"] = first_epoch[128]["weight_angle"]
        values["messages"] = rows[-1]["message_angle"]
        values["least overlap"] = least_overlap(networks["fa"].read_out)
    if control.best:
        values["best read-out"] = best_read_out(networks["fa"].hidden, data)
    return values


@torch.no_grad()
def least_overlap(read_out: FALinear) -> float:
    """Return the least e^T W B^T e over the e of length 1 and sum zero."""
    ones = torch.ones(1, read_out.out_features)
    zero_sum = torch.linalg.svd(ones).Vh[1:].T  # columns: a basis of these e
    product = zero_sum.T @ read_out.weight @ read_out.feedback.T @ zero_sum
    symmetric = (product + product.T) / 2
    return torch.linalg.eigvalsh(symmetric).min().item()


def best_read_out(hidden: nn.Module, data: script.DataSet) -> float:
    """Return the test error of the softmax regression that fits the hidden layer's outputs best."""
    with torch.no_grad():
        h = hidden(data.train_images).double()
        h_test = hidden(data.test_images).double()
    whiten = torch.linalg.inv(torch.linalg.cholesky(h.T.cov())).T  # L-BFGS is faster then
    centre = h.mean(dim=0)
    h, h_test = (h - centre) @ whiten, (h_test - centre) @ whiten
    read_out = nn.Linear(h.shape[1], data.classes, dtype=torch.double)
    optimizer = torch.optim.LBFGS(
        read_out.parameters(), max_iter=1000, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(read_out(h), data.train_labels)
        value.backward()
        return value

    optimizer.step(loss)
    assert read_out.weight.grad.abs().max() < 1e-4, "L-BFGS has not converged"
    wrong = read_out(h_test).argmax(dim=1) != data.test_labels
    return 100 * wrong.float().mean().item()


# What can be said before the training.


@torch.no_grad()
def predicted_angle(
    network: nn.Sequential,
    data: script.DataSet,
    options: argparse.Namespace,
    steps: int,
    copying: bool = True,
) -> float:
    """Return the angle of W and B that is to be expected after so many steps, in degrees.

    All errors are taken as those of the untrained network. Then M, the mean of e x^T over the
    training images, stays what it is. The hidden layer gains -a B^T M, and W, from the hidden
    layer as it started, -a M W0^T, and from what the hidden layer gained, c M M^T B. For plain SGD
    a is lr * steps, and c lr^2 * steps * (steps - 1) / 2. Whatever the optimizer: a and c become
    what it makes of two numbers whose gradients are -1 and -a. Without `copying`, c is left at 0.
    """
    numbers = nn.ParameterDict({"a": torch.zeros(()), "c": torch.zeros(())})
    optimizer = script.make_optimizer(numbers, options)
    for _step in range(steps):
        numbers["c"].grad = -numbers["a"].detach().clone()
        numbers["a"].grad = torch.tensor(-1.0)
        optimizer.step()
    a, c = numbers["a"], numbers["c"] * copying
    x = F.pad(data.train_images, (0, 1), value=1.0)  # a 1 is appended, for the bias
    W0 = torch.cat([network.hidden.weight, network.hidden.bias[:, None]], dim=1)
    outputs = network(data.train_images)
    e = outputs.softmax(dim=1) - F.one_hot(data.train_labels, data.classes)
    M = e.T @ x / len(x)
    W, B = network.read_out.weight, network.read_out.feedback
    later_W = W - a * M @ W0.T + c * M @ M.T @ B
    return script.angle(later_W.flatten(), B.flatten()).item()


def predictions(data: script.DataSet) -> list[dict[str, str]]:
    """Return the lines of results/prediction.csv: for the default run's seeds."""
    options = script.make_parser().parse_args(["--device=cpu"])
    rows = []
    for seed in SEEDS:
        network = script.matched_networks(data, options, seed)["fa"]
        for steps in PREDICTED_STEPS:
            row = {"seed": str(seed), "step": str(steps)}
            for column, copying in ("predicted", True), ("without copying", False):
                degrees = predicted_angle(network, data, options, steps, copying)
                row[column] = f"{degrees:.4f}"
            rows.append(row)
    return rows


# The command.


@functools.cache
def load(data_dir: str) -> script.DataSet:
    return script.read_data(Path(data_dir))


def run(label: str, seed: int, data_dir: str) -> dict[str, str]:
    """Return a line of results/controls.csv."""
    values = run_control(make_controls()[label], load(data_dir), seed)
    texts = {column: f"{value:.5g}" for column, value in values.items()}
    return {"control": label, "seed": str(seed)} | texts


def mean_and_spread(rows: list[dict[str, str]], column: str, decimals: int) -> str:
    """Return the mean of a column ± its sample standard deviation, "" where it has no values."""
    values = [float(row[column]) for row in rows if row.get(column)]
    if not values:
        return ""
    return f"{statistics.fmean(values):.{decimals}f}±{statistics.stdev(values):.{decimals}f}"


def table_row(label: str, rows: list[dict[str, str]]) -> str:
    """Return a control's row of the table, in Markdown."""
    cells = [mean_and_spread(rows, column, decimals) for column, decimals in COLUMNS.items()]
    return "|".join([label, *cells])


def prepare_worker() -> None:
    """Let a process compute with one thread, and end when its parent does, even by a kill."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def run_labels(labels: list[str], data_dir: str) -> list[dict[str, str]]:
    """Run these controls, a process for each core; print the table, return its rows."""
    all_rows = []
    tasks = [(label, seed, data_dir) for label in labels for seed in SEEDS]
    with multiprocessing.Pool(initializer=prepare_worker) as pool:  # terminated at its end
        results = [pool.apply_async(run, task) for task in tasks]
        for label in labels:
            rows = [results.pop(0).get() for _seed in SEEDS]
            print(table_row(label, rows), flush=True)
            all_rows += rows
    return all_rows


def write(name: str, columns: list[str], rows: list[dict[str, str]]) -> None:
    """Write a file of results/."""
    with open(RESULTS / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data_dir", help="where MNIST is")
    parser.add_argument("label", nargs="?", choices=make_controls(), metavar="label")
    options = parser.parse_args(arguments)
    load(options.data_dir)  # an error now, not in each process
    print("|".join(["control", *COLUMNS]))
    print("---" + "|---" * len(COLUMNS))
    if options.label:
        run_labels([options.label], options.data_dir)
        return
    rows = run_labels(list(make_controls()), options.data_dir)
    write("controls.csv", ["control", "seed", *COLUMNS], rows)
    columns = ["seed", "step", "predicted", "without copying"]
    write("prediction.csv", columns, predictions(load(options.data_dir)))


if __name__ == "__main__":
    main()
