"""Write, copy, use: does each do what it is said to do, and is each needed?

    python results/phases.py DATA_DIR              writes phases.csv beside this file

10 minutes on two cores. One layer of FA's network learns at a time: the hidden layer writes, for 64
steps; the readout copies, for 2,000; the hidden layer uses the W that now stands still, for one and
for eight epochs. W and V, but not B, start a tenth as large as usual, save in "usual start".

Columns: ‖ΔV‖ is how much was written. The angle of W and B, and the least eigenvalue (real part) of
W B^T and of its symmetric part, are those of the W and B that are used. Then test errors in
percent.
"""

import torch
from common import EPOCH, TENTH, main, mean_and_deviation, script, set_up, train_for
from eigenvalues import least_eigenvalues

from fa_linear import FALinear

WRITE, COPY, USE = 64, 2000, 8 * EPOCH  # steps


def learn_alone(layer, networks, data, args, seed, steps, every=None):
    """Let one layer learn; return {step: row} with the test error."""
    networks.requires_grad_(False)
    getattr(networks["fa"], layer).requires_grad_(True)
    return train_for(networks, data, args, seed, steps, error, every)


def error(networks, data):
    """Return the test error of FA's network, as a row."""
    with torch.no_grad():
        wrong = networks["fa"](data.test_images).argmax(dim=1) != data.test_labels
    return {"error": 100 * wrong.float().mean().item()}


def permuted(data, seed):
    """Return the data with the training labels permuted."""
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
    return data._replace(train_labels=data.train_labels[order])


def run(networks, args, data, seed, write_from=None, steps=WRITE, copies=True, another_B=False):
    """Let a network write from data (if given) for so many steps, copy, use; return a row."""
    readout, V = networks["fa"].readout, networks["fa"].hidden.weight
    start = V.detach().clone()
    if write_from:
        learn_alone("hidden", networks, write_from, args, seed, steps)
    columns = {"‖ΔV‖": (V - start).norm().item()}
    if copies:
        learn_alone("readout", networks, data, args, seed, COPY)
    if another_B:
        # Its B, not its W: that one has the numbers that B was drawn from.
        readout.feedback = FALinear(readout.in_features, readout.out_features).feedback
    W = readout.weight.detach().flatten()
    columns["angle"] = script.angle(W, readout.feedback.flatten()).item()
    columns["least eigenvalue"], columns["symmetric part"] = least_eigenvalues(readout)
    columns["before use"] = error(networks, data)["error"]
    errors = learn_alone("hidden", networks, data, args, seed, USE, every=EPOCH)
    return columns | {"use, 1 epoch": errors[EPOCH]["error"], "8 epochs": errors[USE]["error"]}


def phases(data, seed):
    """Do one thing differently at a time, in a linear network and in one with a ReLU."""
    rows = {}
    others = permuted(data, seed)
    for name, hidden, relu in ("linear", 20, False), ("ReLU", 50, True):
        for label, scale, changes in (
            ("write, copy, use", TENTH, {"write_from": data}),
            ("use another B", TENTH, {"write_from": data, "another_B": True}),
            ("write errors of other images", TENTH, {"write_from": others}),
            ("write nothing", TENTH, {}),
            ("write nothing, usual start", "--init-scale=1", {}),
            ("copy nothing", TENTH, {"write_from": data, "copies": False}),
        ):
            options = f"--hidden={hidden}", scale
            networks, args = set_up(data, seed, *options, rules=["fa"], relu=relu)
            rows[f"{name}: {label}"] = run(networks, args, data, seed, **changes)
    return rows


def writing(data, seed):
    """Write for more or fewer steps; tell runs with a negative eigenvalue from the others."""
    rows = {}
    for steps in 4, 8, 12, 16, 24, 32, 128:
        networks, args = set_up(data, seed, TENTH, rules=["fa"])
        columns = run(networks, args, data, seed, write_from=data, steps=steps)
        sign = "negative" if columns["least eigenvalue"] < 0 else "positive"
        rows[f"{steps} steps, {sign}"] = {"runs": 1} | columns
    return rows


def span(_row, column, values):
    """Return "least to largest"; the number of runs."""
    if column == "runs" or not values:
        return f"{len(values) or ''}"
    digits = 3 if max(map(abs, values)) < 1 else 1
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


# name: (function, seeds, what stands in a cell)
TABLES = {"phases": (phases, 5, mean_and_deviation), "writing": (writing, 6, span)}

if __name__ == "__main__":
    main(__file__, __doc__, TABLES)
