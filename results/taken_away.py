"""Take one thing away from feedback alignment, and train: is it needed?

    python results/taken_away.py DATA_DIR          writes taken_away.csv beside this file

5 minutes on two cores. FA and BP are test errors in percent, W and B their angle at the end. In the
third table, B is drawn anew before every so many mini-batches, or messages are noise, of the size
that they would have had. All networks of a table learn in one loop, from the same mini-batches.
"""

import itertools

import torch
from common import EPOCH, main, mean_and_deviation, script, set_up, train_for
from torch import nn
from turn import Dosed

from fa_linear import FALinear

WHAT = {  # and the networks that are trained: BP has no B, and softmax regression none to teach
    "nothing": ("fa", "bp"),
    "learning of the hidden layer (shallow)": ("fa", "bp"),
    "learning of W": ("fa", "bp"),
    "copying": ("fa", "bp"),
    "luck at the start: W starts at −B": ("fa",),
    "the start: all weights from zero": ("fa", "bp"),
    "the hidden layer: softmax regression": ("bp",),
}


def without(what, network):
    """Return a network from which something is taken away."""
    hidden, readout = network
    if what.startswith("learning of the hidden layer"):
        hidden.requires_grad_(False)
    elif what == "learning of W":
        readout.weight.requires_grad_(False)
    elif what == "copying":
        return Dosed(network, 0)  # W learns from the hidden units as they were at the start
    elif what.endswith("W starts at −B"):
        readout.weight.data = -readout.feedback
    elif what.endswith("all weights from zero"):
        for weight in network.parameters():
            weight.data.zero_()
    elif what.endswith("softmax regression"):
        return nn.Linear(hidden.in_features, readout.out_features)
    else:
        assert what == "nothing"
    return network


def take_away(data, seed, *options, epochs=5):
    """Take one thing away at a time, and train FA and BP."""
    networks = nn.ModuleDict()
    for what, rules in WHAT.items():
        made, args = set_up(data, seed, *options, rules=rules)
        for rule, network in made.items():
            networks[f"{what}: {rule}"] = without(what, network)
    train_for(networks, data, args, seed, epochs * EPOCH)
    row = script.measure(networks, data)
    for what, rules in WHAT.items():
        columns = {rule.upper(): row[f"{what}: {rule}_error"] for rule in rules}
        if "fa" in rules:
            columns["W and B"] = row[f"{what}: fa_weight_angle"]
        yield what, columns


def take_away_from_1000(data, seed):
    """The same, with 1,000 hidden units, for one epoch."""
    return take_away(data, seed, "--hidden=1000", epochs=1)


def redraw_B(readout, steps):
    """Draw B anew at the first step, and then every so many."""
    uses = itertools.count()

    def hook(readout, _inputs):
        if readout.training and next(uses) % steps == 0:
            readout.feedback = FALinear(readout.in_features, readout.out_features).feedback

    readout.register_forward_pre_hook(hook)


def send_noise(readout):
    """Replace each image's message by normal noise of the same norm."""

    def noise(message):
        drawn = torch.randn_like(message)
        return drawn * message.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)

    def hook(_readout, inputs):
        if inputs[0].requires_grad:  # it does not while errors are measured
            inputs[0].register_hook(noise)

    readout.register_forward_pre_hook(hook)


def change_messages(data, seed):
    """Redraw B every so many steps, or send noise."""
    networks = nn.ModuleDict()
    for name in "1", "10", "100", "375", "1875", "noise":
        made, args = set_up(data, seed, rules=["fa"])
        readout = made["fa"].readout
        send_noise(readout) if name == "noise" else redraw_B(readout, int(name))
        networks[name] = made["fa"]
    train_for(networks, data, args, seed, 5 * EPOCH)
    row = script.measure(networks, data)
    for name in networks:
        yield name, {"FA": row[f"{name}_error"]}


TABLES = {
    "taken away": (take_away, 3, mean_and_deviation),
    "taken away, 1000 units": (take_away_from_1000, 3, mean_and_deviation),
    "steps with the same B": (change_messages, 3, mean_and_deviation),
}

if __name__ == "__main__":
    main(__file__, __doc__, TABLES)
