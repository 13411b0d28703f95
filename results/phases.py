"""Write, copy, use: does each do what it is said to do, and is each needed?

    python results/phases.py DATA_DIR              writes phases.csv beside this file

6 minutes on two cores. One layer of FA's networks learns at a time: the hidden layer writes, for 64
steps; the readout copies, for 2,000; the hidden layer uses the W that now stands still, for eight
epochs. W and V, but not B, start a tenth as large as usual, save in "usual start". "Other images":
training labels are permuted during writing. In the table "writing", four epochs use what was copied.

Columns: ‖ΔV‖ is how much was written; the angle of W and B, and the least eigenvalue (real part) of
W B^T and of its symmetric part, of the W and B that are used; then test errors in percent.
"""

import copy
import functools

import torch
from common import EPOCH, main, mean_and_deviation, script, set_up, train_for
from eigenvalues import eigenvalues
from torch import nn

from fa_linear import FALinear

WRITE, COPY = 64, 2000  # steps


def learn(layer, names, networks, data, args, seed, steps, **measuring):
    """Let one layer of some networks learn; return the rows of what is measured, {step: row}."""
    networks.requires_grad_(False)
    some = nn.ModuleDict({name: networks[name] for name in names})
    for network in some.values():
        getattr(network, layer).requires_grad_(True)
    return train_for(some, data, args, seed, steps, **measuring)


def use(networks, start, data, args, seed, epochs=8):
    """Let the hidden layers use what was copied; yield each network's name and columns."""
    written = {}
    for name in networks:
        change = networks[name].hidden.weight - start[name].hidden.weight
        written[name] = change.norm().item()
    end = epochs * EPOCH
    measuring = {"measure": script.measure, "every": EPOCH}
    rows = learn("hidden", networks, networks, data, args, seed, end, **measuring)
    for name, network in networks.items():
        columns = {"‖ΔV‖": written[name]}
        columns["angle"] = rows[0][f"{name}_weight_angle"]
        whole, symmetric = eigenvalues(network.readout)
        columns["least eigenvalue"] = whole[0]
        columns["symmetric part"] = symmetric[0]
        columns["before use"] = rows[0][f"{name}_error"]  # step 0: nothing has been used yet
        columns["use, 1 epoch"] = rows[EPOCH][f"{name}_error"]
        columns[f"{epochs} epochs"] = rows[end][f"{name}_error"]
        yield name, columns


def permuted(data, seed):
    """Return the data with the training labels permuted: errors are of other images' labels."""
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
    return data._replace(train_labels=data.train_labels[order])


def phases(data, seed, hidden=20, relu=False):
    """Do one thing differently at a time, all in networks that start alike."""
    networks = nn.ModuleDict()
    for name, scale in (
        ("write, copy, use", 0.1),
        ("use another B", 0.1),
        ("write errors of other images", 0.1),
        ("write nothing", 0.1),
        ("write nothing, usual start", 1),
        ("copy nothing", 0.1),
    ):
        options = f"--hidden={hidden}", f"--init-scale={scale}"
        # One network, which learns by FA, as the training script makes it; and its arguments.
        made, args = set_up(data, seed, *options, rules=["fa"], relu=relu)
        networks[name] = made["fa"]
    start = copy.deepcopy(networks)
    writers = ["write, copy, use", "use another B", "copy nothing"]
    learn("hidden", writers, networks, data, args, seed, WRITE)
    others = ["write errors of other images"]
    learn("hidden", others, networks, permuted(data, seed), args, seed, WRITE)
    copiers = [name for name in networks if name != "copy nothing"]
    learn("readout", copiers, networks, data, args, seed, COPY)
    # Another B, not W: that one has the numbers that B was drawn from.
    networks["use another B"].readout.feedback = FALinear(hidden, data.classes).feedback
    return use(networks, start, data, args, seed)


def writing(data, seed):
    """Write for more or fewer steps; tell runs with a negative eigenvalue from the others."""
    networks = nn.ModuleDict()
    for steps in "4", "8", "12", "16", "24", "32", "128":
        made, args = set_up(data, seed, "--init-scale=0.1", rules=["fa"])
        networks[steps] = made["fa"]
    start = copy.deepcopy(networks)
    for steps in networks:
        learn("hidden", [steps], networks, data, args, seed, int(steps))
    learn("readout", networks, networks, data, args, seed, COPY)
    for steps, columns in use(networks, start, data, args, seed, epochs=4):
        sign = "negative" if columns["least eigenvalue"] < 0 else "positive"
        yield f"{steps} steps, {sign}", {"runs": 1} | columns


def span(_row, column, values):
    """Return "least…largest"; the number of runs."""
    if column == "runs":
        return f"{sum(values):.0f}"
    digits = 3 if max(map(abs, values)) < 1 else 1
    return f"{min(values):.{digits}f}…{max(values):.{digits}f}"


with_relu = functools.partial(phases, hidden=50, relu=True)
# table: (function of data and seed, number of seeds, what stands in a cell)
TABLES = {
    "phases": (phases, 5, mean_and_deviation),
    "phases, ReLU": (with_relu, 3, mean_and_deviation),
    "writing": (writing, 6, span),
}

if __name__ == "__main__":
    main(__file__, __doc__, TABLES)
