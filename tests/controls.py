"""Take the supposed causes of alignment away, one at a time: python controls.py [DATA_DIR]

Prints a table, means and sample standard deviations over five seeds, and writes to
results/controls.csv a line for each control and seed. results/README.md explains the columns.
In the code, network[0] is the hidden layer, network[1] the read-out with W and B.
"""

import argparse
import csv
import functools
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear

SEEDS = range(5)
COLUMNS = {"fa": 1, "bp": 1, "message": 0, "weight": 0, "least overlap": 2, "least eigenvalue": 2}
COLUMNS |= {"start in W": 2, "best read-out": 1, "fa wait": 0, "bp wait": 0}  # and their digits


def control(digits, options, seed, change=None, rules=("fa",), best=False, **settings):
    """Train the script's networks of these rules, once `change` has changed them; return values."""
    options = argparse.Namespace(**vars(options) | settings)
    networks = script.matched_networks(options, seed)
    networks = nn.ModuleDict({rule: networks[rule] for rule in rules})
    if change:
        change(networks, digits, options, seed)
    start = networks["fa"][1].weight.detach().clone() if "fa" in networks else None
    waits = {}
    for row in script.train(networks, digits, options, seed):
        if options.log_every == 1:  # a control of the wait, which ends when both have learned
            learned = [rule for rule in networks if row[f"{rule}_loss"] < 2]
            waits = {f"{rule} wait": row["step"] for rule in learned} | waits
            if len(waits) == len(networks):
                return waits
    values = {}
    for rule in networks:  # "deep_fa", for one
        values["bp" if rule.endswith("bp") else "fa"] = row[f"{rule}_error"]
    if best:
        values["best read-out"] = best_read_out(next(iter(networks.values()))[0], digits)
    if "fa" in networks:
        W, B = networks["fa"][1].weight.detach(), networks["fa"][1].feedback
        zero_sum = torch.linalg.svd(torch.ones(1, script.CLASSES)).Vh[1:].T  # a basis of such e
        product = zero_sum.T @ W @ B.T @ zero_sum
        values["least overlap"] = torch.linalg.eigvalsh((product + product.T) / 2).min().item()
        values["least eigenvalue"] = torch.linalg.eigvals(product).real.min().item()
        values |= {"message": row["message_angle"], "weight": row["weight_angle"]}
        values["start in W"] = ((W * start).sum() / start.square().sum()).item()
    return values


def best_read_out(hidden, digits):
    """Return the test error of the softmax regression that fits the hidden layer's outputs best."""
    with torch.no_grad():
        h = F.pad(hidden(digits.train_images).double(), (0, 1), value=1)  # with 1 for the bias
        h_test = F.pad(hidden(digits.test_images).double(), (0, 1), value=1)
    Q, R = torch.linalg.qr(h / len(h) ** 0.5)  # L-BFGS is faster where features are orthonormal
    W = torch.zeros(len(R), script.CLASSES, dtype=torch.double, requires_grad=True)
    search = {"max_iter": 1000, "tolerance_grad": 1e-6, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([W], **search)

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(Q @ W * len(h) ** 0.5, digits.train_labels)
        value.backward()
        return value

    optimizer.step(loss)
    assert W.grad.abs().max() < 1e-4, "L-BFGS has not converged"
    outputs = h_test @ torch.linalg.solve(R, W.detach())
    return 100 * (outputs.argmax(dim=1) != digits.test_labels).float().mean().item()


def no_hidden_layer(networks, _digits, _options, _seed):
    networks["bp"] = nn.Linear(script.PIXELS, script.CLASSES)  # softmax regression


def w_of_fa(networks, digits, options, seed, steps=None, another_b=False):
    """W and B are those of another network, taught by FA, in the end or after so many steps."""
    settings = {"freeze_read_out": False, "log_every": steps or options.log_every}
    options = argparse.Namespace(**vars(options) | settings)
    taught = script.matched_networks(options, seed + 100)["fa"]
    for row in script.train(nn.ModuleDict({"fa": taught}), digits, options, seed):
        if row["step"] == steps:
            break
    state = taught[1].state_dict()
    if another_b:
        del state["feedback"]
    for network in networks.values():
        network[1].load_state_dict(state, strict=False)


def random_w(networks, digits, options, seed, degrees=None):
    """W is random, but as large as FA would leave it, and at as many degrees to B if None."""
    w_of_fa(networks, digits, options, seed)
    W, B = networks["fa"][1].weight.data, networks["fa"][1].feedback
    angle = script.angle(W.flatten(), B.flatten()) if degrees is None else torch.tensor(degrees)
    random = torch.randn_like(B)
    random -= (random * B).sum() / B.square().sum() * B  # what is left is at 90 degrees to B
    mixed = angle.deg2rad().cos() * B / B.norm() + angle.deg2rad().sin() * random / random.norm()
    W.copy_(W.norm() * mixed)


def keep_overlap(networks, *_, zero=False, another_b=False):
    """Keep e^T W B^T e = (W^T e).(B^T e) for every e at its start, or at zero; change W the least.

    It depends only on the symmetric part S of W B^T, which is put back before each use of W. Let S
    need the change D. Among the changes C of W with C B^T + B C^T = 2 D, the least (in sum of
    squares) is L B, with a symmetric matrix L of Lagrange multipliers. So L G + G L = 2 D, where
    G = B B^T; in the basis Q of G's eigenvectors, with eigenvalues g, L_ij (g_i + g_j) = 2 D_ij.
    """
    read_out = networks["fa"][1]
    W, B = read_out.weight.data, read_out.feedback
    if another_b:  # one that nothing is sent through: the same constraint, of no consequence
        B = FALinear(*B.T.shape).feedback
    g, Q = torch.linalg.eigh(B @ B.T)
    kept = 0 if zero else W @ B.T + B @ W.T  # 2 S

    def put_back(_read_out, _inputs):
        two_D = kept - W @ B.T - B @ W.T
        L = Q @ (Q.T @ two_D @ Q / (g + g[:, None])) @ Q.T
        W.add_(L @ B)

    read_out.register_forward_pre_hook(put_back)


def w_is_b(networks, *_, sign=1):
    networks["fa"][1].weight.data = sign * networks["fa"][1].feedback


def other_messages(networks, _digits, options, _seed, new_b=False, labels=True):
    """Draw B anew at each step; without `labels`, compute the messages from random ones."""
    read_out = networks["fa"][1]

    def before(_read_out, _inputs):
        read_out.feedback = FALinear(options.hidden, script.CLASSES).feedback

    def after(_read_out, inputs, output):
        if output.requires_grad:  # in training
            random = torch.randint(script.CLASSES, (len(output),))
            e = output.detach().softmax(dim=1) - F.one_hot(random, script.CLASSES)
            message = e / len(output) @ read_out.feedback
            inputs[0].register_hook(lambda _message: message)

    if new_b:
        read_out.register_forward_pre_hook(before)
    if not labels:
        read_out.register_forward_hook(after)


def deep(networks, *_, activation=nn.Tanh, frozen=False):
    """The network 784-256-64-10 of the README; with `frozen`, only its first layer learns."""
    for rule, layer in ("deep_fa", FALinear), ("deep_bp", nn.Linear):
        layers = [nn.Linear(784, 256), activation(), layer(256, 64), activation(), layer(64, 10)]
        networks[rule] = nn.Sequential(*layers)
        networks[rule][1:].requires_grad_(not frozen)
    networks["deep_bp"].load_state_dict(networks["deep_fa"].state_dict(), strict=False)


BOTH, BEST = {"rules": ("fa", "bp")}, {"best": True}
FROZEN = {"freeze_read_out": True}
FROZEN_BOTH = BOTH | FROZEN
DEEP = {"rules": (), "epochs": 1, "lr": 0.01, "batch_size": 64}
WAIT = BOTH | {"epochs": 1, "log_every": 1}
CONTROLS = {
    "nothing": BOTH | BEST,
    "hidden layer frozen (shallow)": {"rules": ("shallow",)} | BEST,
    "no hidden layer (softmax regression)": {"rules": ("bp",), "change": no_hidden_layer},
    "W frozen at its start": FROZEN_BOTH | BEST,
    "W frozen as FA left it": FROZEN_BOTH | {"change": w_of_fa},
    "W frozen as FA left it at step 500": FROZEN_BOTH | {"change": partial(w_of_fa, steps=500)},
    "W frozen as FA left it at step 125": FROZEN_BOTH | {"change": partial(w_of_fa, steps=125)},
    "W frozen as FA left it, with another B": FROZEN | {"change": partial(w_of_fa, another_b=True)},
    "W frozen, random at FA's angle to B": FROZEN | {"change": random_w},
    "W frozen, random at 45° to B": FROZEN | {"change": partial(random_w, degrees=45.0)},
    "W frozen, random at 60° to B": FROZEN | {"change": partial(random_w, degrees=60.0)},
    "W free, overlap with B kept at its start": {"change": keep_overlap},
    "W free, overlap with B kept at zero": {"change": partial(keep_overlap, zero=True)},
    "W free, overlap with another B kept": {"change": partial(keep_overlap, another_b=True)},
    "W starts as −B": {"change": partial(w_is_b, sign=-1)},
    "B drawn anew at each step": {"change": partial(other_messages, new_b=True)} | BEST,
    "messages from random labels": {"change": partial(other_messages, labels=False)} | BEST,
    "the two together": {"change": partial(other_messages, new_b=True, labels=False)} | BEST,
    "learning rate 3e-4": BOTH | {"lr": 3e-4},
    "learning rate 3e-3": BOTH | {"lr": 3e-3},
    "learning rate 0.01": BOTH | {"lr": 0.01},
    "tanh network": DEEP | {"change": deep},
    "tanh network, upper layers frozen": DEEP | {"change": partial(deep, frozen=True)},
    "ReLU network": DEEP | {"change": partial(deep, activation=nn.ReLU)},
    "learning rate 5e-4, until it learns": WAIT | {"lr": 5e-4},
    "learning rate 1e-3, until it learns": WAIT,
    "W starts as B, until it learns": WAIT | {"change": w_is_b},
}


@functools.cache
def load(data_dir, images):
    digits = script.Digits("MNIST", *script.load_mnist(Path(data_dir)))
    train_images, train_labels = digits.train_images[:images], digits.train_labels[:images]
    return digits._replace(train_images=train_images, train_labels=train_labels)


def run(label, data_dir, seeds, epochs, images):
    """Return a control's rows, {column: value} for each seed."""
    torch.set_num_threads(1)  # a process for each core is faster
    arguments = [f"--epochs={epochs}", "--log-every=1875", "--device=cpu"]
    options = script.make_parser().parse_args(arguments)
    digits = load(data_dir, images)
    return [control(digits, options, seed, **CONTROLS[label]) for seed in seeds]


def run_all(data_dir, seeds, epochs=5, images=60_000):
    """Yield each control's label and rows, in order."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        task = partial(run, data_dir=data_dir, seeds=seeds, epochs=epochs, images=images)
        yield from zip(CONTROLS, pool.map(task, CONTROLS), strict=True)


def table_row(label, rows):
    """Return a control's row of the table, in Markdown."""
    cells = [label]
    for column, digits in COLUMNS.items():
        values = [float(row[column]) for row in rows if row.get(column)]
        mean, spread = (statistics.fmean(values), statistics.stdev(values)) if values else (0, 0)
        cells.append(f"{mean:.{digits}f}±{spread:.{digits}f}" if values else "")
    return "|".join(cells)


def main(data_dir="data"):
    print("|".join(["control", *COLUMNS]) + "\n---" + "|---" * len(COLUMNS))
    with open(Path(__file__).parents[1] / "results" / "controls.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["control", "seed", *COLUMNS], lineterminator="\n")
        writer.writeheader()
        for label, rows in run_all(data_dir, seeds=SEEDS):
            rows = [{column: f"{value:.5g}" for column, value in row.items()} for row in rows]
            for seed, row in zip(SEEDS, rows, strict=True):
                writer.writerow({"control": label, "seed": seed} | row)
            print(table_row(label, rows), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
