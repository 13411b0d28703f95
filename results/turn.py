"""Is it copying that turns W toward B, and how far? Compute the turn before training, and train.

    python results/turn.py DATA_DIR                writes turn.csv and turn.png beside this file

1 minute on two cores. W and V start a tenth as large as usual, B does not. W learns from
h0 + s (h - h0) in place of h, where h0 is what the hidden layer computed before training: so s, the
dose, is 1 as usual, 0 to cut the copying, -1 to reverse it. Outputs and messages are as usual.

The second table is the law: while both layers learn, in small steps, the inner product of W and B
grows by half of what |V|^2 grows.
"""

import copy

import numpy as np
import torch
from common import EPOCH, TENTH, main, mean_and_deviation, script, set_up, train_for, values_of
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from fa_linear import FALinear

DOSES = -2, -1, -0.5, 0, 0.5, 1, 2


class Dosed(nn.Module):
    """A network whose readout learns from h0 + dose (h - h0)."""

    def __init__(self, network, dose):
        super().__init__()
        self.hidden, self.readout = network
        self.hidden_at_start = copy.deepcopy(self.hidden).requires_grad_(False)
        self.dose = dose

    def forward(self, images):
        h, h0 = self.hidden(images), self.hidden_at_start(images)
        more = F.linear((self.dose - 1) * (h - h0).detach(), self.readout.weight)
        zero = more - more.detach()  # but its gradient is that of `more`
        return self.readout(h) + zero


def extended(hidden):
    """Return V with the bias as one more column."""
    return torch.cat([hidden.weight, hidden.bias[:, None]], dim=1).detach()


def compute(network, data, args, steps, dose):
    """Return the angle of W and B at each step, as if errors stayed what they are at the start.

    Then M, the mean of e u^T over the training images, stays what it is. The hidden layer gains
    -a B^T M; W gains -a M V^T from h0, and dose k M M^T B from what was written. For plain SGD, a
    is lr t, and k is lr^2 t (t - 1) / 2; with momentum and weight decay, what the optimizer makes
    of two numbers whose gradients are -1 and -a. (That W and V themselves decay is left out.)
    """
    assert [type(layer) for layer in network] == [nn.Linear, FALinear], "two linear layers only"
    hidden, readout = network
    W, B, V = readout.weight.detach(), readout.feedback, extended(hidden)
    e = script.error_signal(network(data.train_images), data.train_labels)
    u = F.pad(data.train_images, (0, 1), value=1.0)  # a 1 for the bias
    M = e.T @ u / len(u)
    numbers = nn.ParameterDict({"a": torch.zeros(()), "k": torch.zeros(())})
    optimizer = script.make_optimizer(numbers, args)
    angles = []
    for _step in range(steps + 1):
        a, k = numbers["a"].detach().clone(), numbers["k"].detach().clone()
        later_W = W - a * M @ V.T + dose * k * M @ M.T @ B
        angles.append(script.angle(later_W.flatten(), B.flatten()).item())
        numbers["a"].grad, numbers["k"].grad = torch.tensor(-1.0), -a
        optimizer.step()
    return angles


def angle_at_readout(networks, _data):
    W, B = networks["fa"].readout.weight.detach(), networks["fa"].readout.feedback
    return {"angle": script.angle(W.flatten(), B.flatten()).item()}


def turn(data, seed):
    """Give the angle every four steps until step 96, by dose."""
    rows = {}
    for dose in DOSES:
        networks, args = set_up(data, seed, TENTH, rules=["fa"])
        computed = compute(networks["fa"], data, args, 96, dose)
        networks["fa"] = Dosed(networks["fa"], dose)
        measured = train_for(networks, data, args, seed, 96, angle_at_readout, every=4)
        columns = rows[f"s = {dose:g}"] = {}
        for step in range(0, 97, 4):
            columns[f"{step}: computed"] = computed[step]
            columns[f"{step}: measured"] = measured[step]["angle"]
    return rows


def at_some_steps(row, column, values):
    """Return the cell, or None for a step that is in the picture alone."""
    is_shown = column.split(":")[0] in ("16", "32", "48", "64", "96")
    return mean_and_deviation(row, column, values) if is_shown else None


def law(data, seed):
    """Give the growth, in two epochs, of the inner product of W and B and of half of |V|^2."""
    rows = {}
    for name, *options in ("plain SGD", "--momentum=0", "--weight-decay=0"), ("default",):
        for between, hidden in ("linear", 20), ("ReLU", 50):
            all_options = [TENTH, f"--hidden={hidden}", *options]
            networks, args = set_up(data, seed, *all_options, rules=["fa"], relu=between == "ReLU")
            both = train_for(networks, data, args, seed, 2 * EPOCH, both_sides)
            product, half = (both[2 * EPOCH][key] - both[0][key] for key in ("product", "half"))
            columns = {"inner product": product, "½‖V‖²": half}
            rows[f"{name}, {between}"] = columns | {"ratio, %": 100 * product / half}
    return rows


def both_sides(networks, _data):
    """Return the two sides of the law."""
    readout, V = networks["fa"].readout, extended(networks["fa"].hidden)
    product = (readout.weight.detach() * readout.feedback).sum().item()
    return {"product": product, "half": V.square().sum().item() / 2}


def draw(lines):
    """Return the picture: the angle of W and B, as measured, and dashed as computed."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    panel = figure.subplots()
    steps = range(0, 97, 4)

    def angles(dose, kind):
        row, columns = f"s = {dose}", [f"{step}: {kind}" for step in steps]
        return np.array([values_of(lines, row=row, column=column) for column in columns])

    for dose, label, color in (
        (-1, "W copies with the opposite sign", "#E69F00"),
        (0, "W cannot copy", "gray"),
        (1, "W copies, as usual", "#009E73"),
    ):
        measured = angles(dose, "measured")
        mean, spread = measured.mean(axis=1), measured.std(axis=1, ddof=1)
        panel.plot(steps, mean, color=color, linewidth=4, label=label)
        panel.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.2, lw=0)
        panel.plot(steps, angles(dose, "computed").mean(axis=1), color="black", linestyle="--")
    panel.lines[-1].set_label("computed before training")
    panel.set(xlabel="step", ylabel="angle between W and B (degrees)", yticks=range(30, 151, 30))
    panel.set_ylim(30, 165)
    panel.grid(alpha=0.3)
    panel.legend(loc="upper left", fontsize="small")
    return figure


TABLES = {"turn": (turn, 5, at_some_steps), "law": (law, 5, mean_and_deviation)}

if __name__ == "__main__":
    main(__file__, __doc__, TABLES, draw)
