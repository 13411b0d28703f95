"""Does FA keep up with BP where there is more to learn? Add a tanh, a layer, or both.

    python results/deeper.py DATA_DIR              writes deeper.csv beside this file

4 1/2 minutes on two cores. Five epochs in mini-batches of 64. The first two tables are for choosing
learning rates: networks learn at each rate (seed 0) from all but the last 10,000 training images,
and have these errors on them, in percent. Then three seeds learn from all images, at the best
rates, which stand in BEST; the third table has their test errors.
"""

import functools

import torch
from common import main, mean_and_deviation, script, train_for
from torch import nn

EPOCHS = 5
RATES = 1e-3, 3e-3, 1e-2, 3e-2, 1e-1
BEST = {  # the rates of FA and BP
    "784-256-10, tanh": (3e-2, 3e-2),
    "784-256-64-10, tanh": (3e-2, 1e-2),
    "784-256-64-10, linear": (1e-2, 3e-3),
}


def make_networks(name, seed):
    """Return FA's and BP's network; both start from the same weights."""
    units, kind = name.split(", ")
    pixels, first, *others = [int(number) for number in units.split("-")]
    between = {"tanh": nn.Tanh, "linear": nn.Identity}[kind]
    networks = nn.ModuleDict()
    torch.manual_seed(seed)
    for rule in "bp", "fa":
        layer = script.RULES[rule]
        layers = [nn.Linear(pixels, first)]  # it has no layer below to teach
        for inputs, outputs in zip([first, *others], others):
            layers += [between(), layer(inputs, outputs)]
        networks[rule] = nn.Sequential(*layers)
    networks["fa"].load_state_dict(networks["bp"].state_dict(), strict=False)  # BP has no B
    return networks


def train(name, rule, data, seed, rate):
    """Train one network at a rate; return its error on the data's test images."""
    args = script.make_parser().parse_args([f"--lr={rate}", "--batch-size=64"])
    networks = nn.ModuleDict({rule: make_networks(name, seed)[rule]})
    train_for(networks, data, args, seed, EPOCHS * script.steps_in_epoch(data, args))
    return script.measure(networks, data)[f"{rule}_error"]


def try_rates(data, seed, rule):
    """Give the errors on the last 10,000 training images, by rate."""
    images, labels = data.train_images, data.train_labels
    held_out = data._replace(train_images=images[:-10_000], train_labels=labels[:-10_000])
    held_out = held_out._replace(test_images=images[-10_000:], test_labels=labels[-10_000:])
    for name in BEST:
        yield name, {rate: train(name, rule, held_out, seed, rate) for rate in RATES}


def at_best_rates(data, seed):
    """Give the test errors of FA's and BP's networks, at their rates."""
    for name, (fa_rate, bp_rate) in BEST.items():
        fa = train(name, "fa", data, seed, fa_rate)
        bp = train(name, "bp", data, seed, bp_rate)
        yield name, {"FA": fa, "BP": bp}


TABLES = {
    "FA by rate": (functools.partial(try_rates, rule="fa"), 1, mean_and_deviation),
    "BP by rate": (functools.partial(try_rates, rule="bp"), 1, mean_and_deviation),
    "at the best rates": (at_best_rates, 3, mean_and_deviation),
}

if __name__ == "__main__":
    main(__file__, __doc__, TABLES)
