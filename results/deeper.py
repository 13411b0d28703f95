"""Does FA keep up with BP where there is more to learn? Add a tanh, a layer, or both.

    python results/deeper.py DATA_DIR              writes deeper.csv beside this file

5 minutes on two cores. Five epochs in mini-batches of 64. For each network and rule the learning
rate is chosen on the last 10,000 training images, from networks that learned (seed 0) from the
others. Then three seeds learn from all, at that rate; the table has their test errors in percent.
"""

import sys

import torch
from common import main, mean_and_deviation, script, train_for
from torch import nn

from fa_linear import FALinear

EPOCHS = 5
RATES = 1e-3, 3e-3, 1e-2, 3e-2, 1e-1
NETWORKS = {  # the units of each layer, and what is between two
    "784-256-10, tanh": ((784, 256, 10), nn.Tanh),
    "784-256-64-10, tanh": ((784, 256, 64, 10), nn.Tanh),
    "784-256-64-10, linear": ((784, 256, 64, 10), nn.Identity),
}


def make_networks(name, seed):
    """Return FA's and BP's network; both start from the same weights."""
    (pixels, first, *others), between = NETWORKS[name]
    networks = nn.ModuleDict()
    for rule, layer in ("bp", nn.Linear), ("fa", FALinear):
        torch.manual_seed(seed)
        layers = [nn.Linear(pixels, first)]  # it has no layer below to teach
        for inputs, outputs in zip([first, *others], others):
            layers += [between(), layer(inputs, outputs)]
        networks[rule] = nn.Sequential(*layers)
    networks["fa"].load_state_dict(networks["bp"].state_dict(), strict=False)  # BP has no B
    return networks


def train(networks, data, seed, rate):
    """Train at a rate; return {column: value}, with the test errors."""
    args = script.make_parser().parse_args([f"--lr={rate}", "--batch-size=64"])
    steps = EPOCHS * script.steps_in_epoch(data, args)
    return train_for(networks, data, args, seed, steps, script.measure)[steps]


def choose_rates(data):
    """Return {network: {rule: rate}}, the best on the last 10,000 training images."""
    held_out = data._replace(
        train_images=data.train_images[:-10_000],
        train_labels=data.train_labels[:-10_000],
        test_images=data.train_images[-10_000:],
        test_labels=data.train_labels[-10_000:],
    )
    best = {}
    for name in NETWORKS:
        print(f"rates of {name}", file=sys.stderr)
        rows = {rate: train(make_networks(name, 0), held_out, 0, rate) for rate in RATES}
        errors = {rule: [rows[rate][f"{rule}_error"] for rate in RATES] for rule in ("fa", "bp")}
        best[name] = {rule: RATES[each.index(min(each))] for rule, each in errors.items()}
    return best


def deeper(data, seed, rates):
    """Give the test error of each network and rule, at its rate."""
    rows = {}
    for name in NETWORKS:
        columns = rows[name] = {}
        for rule, rate in rates[name].items():
            networks = make_networks(name, seed)
            row = train(nn.ModuleDict({rule: networks[rule]}), data, seed, rate)
            columns[f"{rule.upper()}, rate"] = rate
            columns[rule.upper()] = row[f"{rule}_error"]
    return rows


def cell(row, column, values):
    """Return a rate as it is."""
    is_rate = values and column.endswith("rate")
    return f"{values[0]:g}" if is_rate else mean_and_deviation(row, column, values)


TABLES = {"deeper": (deeper, 3, cell)}

if __name__ == "__main__":
    main(__file__, __doc__, TABLES, prepare=choose_rates)
