"""Take the supposed causes of alignment away, one at a time: python controls.py [DATA_DIR]

Prints a table, means and sample standard deviations over five seeds, and writes to
results/controls.csv a line for each control and seed. results/README.md explains the columns.
In the code, network[0] is the hidden layer, network[1] the read-out with W and B.
"""

import argparse
import csv
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import train_fa_vs_bp_linear_model as script
from fa_linear import FALinear

SEEDS = range(5)
COLUMNS = {"fa": 1, "bp": 1, "fa early": 2, "bp early": 2, "message": 0, "weight": 0}  # digits
COLUMNS |= {"least overlap": 2, "least eigenvalue": 2, "start in W": 2, "length of h": 0}
COLUMNS |= {"best read-out": 1}


def control(digits, seed, change=None, rules=("fa",), best=False, **settings):
    """Train the script's networks of these rules, once `change` has changed them; return values."""
    options = script.make_parser().parse_args(["--device=cpu", "--log-every=1875"])
    vars(options).update(settings)
    networks = script.matched_networks(options, seed)
    networks = nn.ModuleDict({rule: networks[rule] for rule in rules})
    if change:
        change(networks, digits, options, seed)
    start = networks["fa"][1].weight.detach().clone() if "fa" in networks else None
    rows = list(script.train(networks, digits, options, seed))
    early, last = next(row for row in rows if row["step"] == 64), rows[-1]
    values = {}
    for rule in networks:  # "deep_fa", for one
        column = "bp" if rule.endswith("bp") else "fa"
        values |= {column: last[f"{rule}_error"], f"{column} early": early[f"{rule}_loss"]}
    if best:
        values["best read-out"] = best_read_out(next(iter(networks.values()))[0], digits)
    if "fa" in networks:
        W, B = networks["fa"][1].weight.detach(), networks["fa"][1].feedback
        zero_sum = torch.linalg.svd(torch.ones(1, script.CLASSES)).Vh[1:].T  # a basis of such e
        product = zero_sum.T @ W @ B.T @ zero_sum
        values["least overlap"] = torch.linalg.eigvalsh((product + product.T) / 2).min().item()
        values["least eigenvalue"] = torch.linalg.eigvals(product).real.min().item()
        values |= {"message": last["message_angle"], "weight": last["weight_angle"]}
        values["start in W"] = ((W * start).sum() / start.square().sum()).item()
        values["length of h"] = networks["fa"][0](digits.test_images).norm(dim=1).mean().item()
    return values


def best_read_out(hidden, digits):
    """Return the test error of the softmax regression that fits the hidden layer's outputs best."""
    with torch.no_grad():
        h, h_test = (hidden(x).double() for x in (digits.train_images, digits.test_images))
    whiten = torch.linalg.inv(torch.linalg.cholesky(h.T.cov())).T  # L-BFGS is faster then
    read_out = nn.Linear(len(whiten), script.CLASSES, dtype=torch.double)
    search = {"max_iter": 1000, "tolerance_grad": 1e-6, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(read_out.parameters(), **search)

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(read_out((h - h.mean(dim=0)) @ whiten), digits.train_labels)
        value.backward()
        return value

    optimizer.step(loss)
    assert read_out.weight.grad.abs().max() < 1e-4, "L-BFGS has not converged"
    outputs = read_out((h_test - h.mean(dim=0)) @ whiten)
    return 100 * (outputs.argmax(dim=1) != digits.test_labels).float().mean().item()


def no_hidden_layer(networks, _digits, _options, _seed):
    networks["bp"] = nn.Linear(script.PIXELS, script.CLASSES)  # softmax regression


def w_of_fa(networks, digits, options, seed, steps=None, another_b=False):
    """W and B are those of another network, taught by FA, in the end or after so many steps."""
    options = argparse.Namespace(**vars(options) | {"freeze_read_out": False})
    taught = script.matched_networks(options, seed + 100)["fa"]
    for row in script.train(nn.ModuleDict({"fa": taught}), digits, options, seed):
        if row["step"] == steps:
            break
    state = taught[1].state_dict()
    if another_b:
        del state["feedback"]
    for network in networks.values():
        network[1].load_state_dict(state, strict=False)


def random_w(networks, digits, options, seed, degrees):
    """W is random, as large as FA would leave it, and at so many degrees to B."""
    w_of_fa(networks, digits, options, seed)
    W, B = networks["fa"][1].weight.data, networks["fa"][1].feedback
    random, angle = torch.randn_like(B), torch.tensor(degrees).deg2rad()
    random -= (random * B).sum() / B.square().sum() * B  # what is left is at 90 degrees to B
    W.copy_(W.norm() * (angle.cos() * B / B.norm() + angle.sin() * random / random.norm()))


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


def new_b(networks, _digits, options, _seed, labels=True):
    """Draw B anew at each step; without `labels`, compute the messages from random ones."""
    read_out = networks["fa"][1]

    def redraw(_read_out, _inputs):
        read_out.feedback = FALinear(options.hidden, script.CLASSES).feedback

    def replace_message(_read_out, inputs, output):
        if output.requires_grad:  # in training
            random = torch.randint(script.CLASSES, (len(output),))
            e = output.detach().softmax(dim=1) - F.one_hot(random, script.CLASSES)
            message = e / len(output) @ read_out.feedback
            inputs[0].register_hook(lambda _message: message)

    read_out.register_forward_pre_hook(redraw)
    if not labels:
        read_out.register_forward_hook(replace_message)


def deep(networks, *_, activation=nn.Tanh, frozen=False):
    """The network 784-256-64-10 of the README; with `frozen`, only its first layer learns."""
    for rule, layer in ("deep_fa", FALinear), ("deep_bp", nn.Linear):
        layers = [nn.Linear(784, 256), activation(), layer(256, 64), activation(), layer(64, 10)]
        networks[rule] = nn.Sequential(*layers)
        networks[rule][1:].requires_grad_(not frozen)
    networks["deep_bp"].load_state_dict(networks["deep_fa"].state_dict(), strict=False)


BOTH, BEST, FROZEN = {"rules": ("fa", "bp")}, {"best": True}, {"freeze_read_out": True}
DEEP = {"rules": (), "epochs": 1, "lr": 0.01, "batch_size": 64}
CONTROLS = {
    "nothing": BOTH | BEST,
    "hidden layer frozen (shallow)": {"rules": ("shallow",)} | BEST,
    "no hidden layer (softmax regression)": {"rules": ("bp",), "change": no_hidden_layer},
    "W frozen at its start": FROZEN | BOTH | BEST,
    "W frozen as FA left it": FROZEN | BOTH | {"change": w_of_fa},
    "W frozen as FA left it, with another B": FROZEN | {"change": partial(w_of_fa, another_b=True)},
    "W frozen as FA left it at step 512": FROZEN | BOTH | {"change": partial(w_of_fa, steps=512)},
    "W frozen as FA left it at step 128": FROZEN | BOTH | {"change": partial(w_of_fa, steps=128)},
    "W frozen, random at 45° to B": FROZEN | {"change": partial(random_w, degrees=45)},
    "W frozen, random at 60° to B": FROZEN | {"change": partial(random_w, degrees=60)},
    "W free, overlap with B kept at its start": {"change": keep_overlap},
    "W free, all messages kept at 90°": {"change": partial(keep_overlap, zero=True)},
    "W free, overlap with another B kept": {"change": partial(keep_overlap, another_b=True)},
    "W starts as −B": {"change": partial(w_is_b, sign=-1)},
    "W starts as B": {"change": w_is_b},
    "B drawn anew at each step": {"change": new_b} | BEST,
    "the same, messages from random labels": {"change": partial(new_b, labels=False)} | BEST,
    "learning rate 3e-4": BOTH | {"lr": 3e-4},
    "learning rate 3e-3": BOTH | {"lr": 3e-3},
    "learning rate 0.01": BOTH | {"lr": 0.01},
    "tanh network": DEEP | {"change": deep},
    "tanh network, upper layers frozen": DEEP | {"change": partial(deep, frozen=True)},
    "ReLU network": DEEP | {"change": partial(deep, activation=nn.ReLU)},
}


def run(label, data_dir):
    """Return a control's rows, {column: value} for each seed."""
    torch.set_num_threads(1)  # a process for each core is faster
    digits = script.Digits("MNIST", *script.load_mnist(Path(data_dir)))
    return [control(digits, seed, **CONTROLS[label]) for seed in SEEDS]


def mean_and_spread(rows, column, digits):
    """Return the mean of a column ± its sample standard deviation, "" where it has no values."""
    values = [float(row[column]) for row in rows if row.get(column)]
    if not values:
        return ""
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table_row(label, rows):
    """Return a control's row of the table, in Markdown."""
    cells = [mean_and_spread(rows, column, digits) for column, digits in COLUMNS.items()]
    return "|".join([label, *cells]).replace(" ± ", "±")


def main(data_dir="data"):
    print("|".join(["control", *COLUMNS]) + "\n---" + "|---" * len(COLUMNS))
    path = Path(__file__).parents[1] / "results" / "controls.csv"
    with open(path, "w", newline="") as file, ProcessPoolExecutor() as pool:
        writer = csv.DictWriter(file, ["control", "seed", *COLUMNS], lineterminator="\n")
        writer.writeheader()
        for label, rows in zip(CONTROLS, pool.map(partial(run, data_dir=data_dir), CONTROLS)):
            rows = [{column: f"{value:.5g}" for column, value in row.items()} for row in rows]
            for seed, row in zip(SEEDS, rows):
                writer.writerow({"control": label, "seed": seed} | row)
            print(table_row(label, rows), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
