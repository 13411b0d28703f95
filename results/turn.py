"""How far does copying turn W toward B? Compute it before training, and train.

    python results/turn.py DATA_DIR                writes turn.csv and turn.png beside this file

1 minute on two cores. W and V start a tenth as large as usual, B does not. W learns from
h0 + s (h - h0) in place of h, where h0 is what the hidden layer computed before training: so s, the
dose, is 1 as usual, 0 to cut the copying, -1 to reverse it. Outputs and messages are as usual.
The second table is the law: while both layers learn, in small steps of plain SGD, the inner product
of W and B grows by half of what |V|^2 grows. (V has the bias as one more column.)
"""

import copy

import torch
from common import EPOCH, main, mean_and_deviation, script, set_up, train_for
from matplotlib.figure import Figure
from torch import nn

STEPS = range(0, 97, 16)


class Dosed(nn.Module):
    """A network whose readout learns from h0 + dose (h - h0)."""

    def __init__(self, network, dose):
        super().__init__()
        self.hidden, self.readout = network
        self.hidden_at_start = copy.deepcopy(self.hidden).requires_grad_(False)
        self.dose = dose

    def forward(self, images):
        h, h0 = self.hidden(images), self.hidden_at_start(images)
        more = nn.functional.linear((self.dose - 1) * (h - h0).detach(), self.readout.weight)
        zero = more - more.detach()  # but its gradient is what W is to learn more
        return self.readout(h) + zero


def compute(network, data, args, dose):
    """Return {step: angle of W and B}, as if errors stayed what they are at the start.

    Then M, the mean of e u^T over the training images, stays what it is. The hidden layer gains
    -a B^T M; W gains -a M V^T from h0, and dose k M M^T B from what was written. For plain SGD, a
    is lr t, and k is lr^2 t (t - 1) / 2; with momentum and weight decay, what the optimizer makes
    of two numbers whose gradients are -1 and -a. (That the W and V of the start decay is left out.)
    """
    hidden, readout = network
    W = readout.weight.detach()
    B = readout.feedback
    V = torch.cat([hidden.weight, hidden.bias[:, None]], dim=1).detach()
    e = script.error_signal(network(data.train_images), data.train_labels)
    u = nn.functional.pad(data.train_images, (0, 1), value=1)  # the bias is V's last column
    M = e.T @ u / len(u)
    from_h0 = M @ V.T
    from_written = dose * M @ M.T @ B
    a = nn.Parameter(torch.zeros(()))
    k = nn.Parameter(torch.zeros(()))
    optimizer = script.make_optimizer(nn.ParameterList([a, k]), args)
    angles = {}
    for step in range(STEPS.stop):
        later_W = W - a * from_h0 + k * from_written
        if step in STEPS:
            angles[step] = script.angle(later_W.flatten(), B.flatten()).item()
        a.grad = torch.tensor(-1.0)
        k.grad = -a.detach()
        optimizer.step()
    return angles


def measure(networks, _data):
    """Return the angle of W and B, and the two sides of the law."""
    network = networks["fa"]
    W = network.readout.weight.detach().flatten()
    B = network.readout.feedback.flatten()
    row = {"angle": script.angle(W, B).item()}
    row["inner product"] = (W @ B).item()
    row["½‖V‖²"] = sum(each.square().sum().item() for each in network.hidden.parameters()) / 2
    return row


def turn(data, seed):
    """Give the angle at some steps, by dose."""
    for dose in -2, -1, -0.5, 0, 0.5, 1, 2:
        networks, args = set_up(data, seed, "--init-scale=0.1", rules=["fa"])
        yield f"{dose}, computed", compute(networks["fa"], data, args, dose)
        networks["fa"] = Dosed(networks["fa"], dose)
        rows = train_for(networks, data, args, seed, STEPS[-1], measure, STEPS.step)
        yield f"{dose}, measured", {step: rows[step]["angle"] for step in STEPS}


def law(data, seed):
    """Give the growth, in two epochs, of the inner product of W and B and of half of |V|^2."""
    tenth, plain = "--init-scale=0.1", ["--momentum=0", "--weight-decay=0"]
    for way, options in ("plain SGD", plain), ("default", []):
        for kind in "linear", "ReLU":
            relu = kind == "ReLU"
            networks, args = set_up(data, seed, tenth, *options, rules=["fa"], relu=relu)
            start, *_, end = train_for(networks, data, args, seed, 2 * EPOCH, measure).values()
            grown = {side: end[side] - start[side] for side in ("inner product", "½‖V‖²")}
            grown["ratio, %"] = 100 * grown["inner product"] / grown["½‖V‖²"]
            yield f"{way}, {kind}", grown


def draw(gathered):
    """Return the picture: the angle of W and B, as measured, and dashed as computed."""
    rows = gathered["dose"]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    panel = figure.subplots()
    for dose, label, color in (
        (-1, "W copies with the opposite sign", "#E69F00"),
        (0, "W cannot copy", "gray"),
        (1, "W copies, as usual", "#009E73"),
    ):
        computed = torch.tensor([*rows[f"{dose}, computed"].values()])
        measured = torch.tensor([*rows[f"{dose}, measured"].values()])
        mean = measured.mean(dim=1)
        spread = measured.std(dim=1)
        panel.errorbar(STEPS, mean, spread, color=color, linewidth=4, elinewidth=1, label=label)
        panel.plot(STEPS, computed.mean(dim=1), "k--", zorder=3)
    panel.lines[-1].set_label("computed before training")
    panel.set(xlabel="step", ylabel="angle between W and B (degrees)")
    panel.set(xticks=STEPS, yticks=range(30, 151, 30), ylim=(30, 165))
    panel.grid(alpha=0.3)
    panel.legend(loc="upper left", fontsize="small")
    return figure


TABLES = {"dose": (turn, 5, mean_and_deviation), "law": (law, 5, mean_and_deviation)}

if __name__ == "__main__":
    main(__file__, __doc__, TABLES, draw)
