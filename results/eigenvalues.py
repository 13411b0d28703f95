"""From when can every error shrink? Follow the eigenvalues of W B^T in the default run.

    python results/eigenvalues.py DATA_DIR         writes eigenvalues.csv and eigenvalues.png

2 minutes on two cores. In the run, both layers learn, by cross-entropy. What its eigenvalues say is
exact for another case: let only the hidden layer learn, by a squared loss in small steps. Then an
error along an eigenvector of W B^T shrinks if the eigenvalue (its real part) is positive, and grows
if it is negative. All nine are taken, as errors that sum to zero have nine directions; their mean
is their sum (the inner product of W and B on such errors) divided by nine. If those of the
symmetric part of W B^T, too, are positive, then no error grows at any step.
"""

import math
import statistics

import torch
from common import main, mean_and_deviation, set_up, train_for, values_of
from matplotlib.figure import Figure

END, EVERY = 9375, 25  # steps: five epochs
SHOWN = 0, 125, 250, 500, 1875, 9375
FROM = "none is negative from step"


def eigenvalues(product):
    """Return the eigenvalues of a product such as W B^T, on errors that sum to zero.

    Those of cross-entropy do: a softmax and a label both sum to one.
    """
    basis = torch.linalg.svd(torch.ones(1, len(product))).Vh[1:]  # of all that sums to zero
    return torch.linalg.eigvals(basis @ product @ basis.T)


def least_eigenvalues(readout):
    """Return the least real part of the eigenvalues of W B^T, and of its symmetric part."""
    product = readout.weight.detach() @ readout.feedback.T
    return [eigenvalues(each).real.min().item() for each in (product, (product + product.T) / 2)]


def measure(networks, _data):
    readout = networks["fa"].readout
    product = readout.weight.detach() @ readout.feedback.T
    real_parts = eigenvalues(product).real.sort().values.tolist()
    return {"least": least_eigenvalues(readout), "all": real_parts}


def default_run(data, seed):
    """Return {step: row} with what is measured."""
    networks, args = set_up(data, seed, rules=["fa"])
    return train_for(networks, data, args, seed, END, measure, EVERY)


def follow(data, seed):
    """Give the least eigenvalues at some steps, and from which step they are positive."""
    measured = default_run(data, seed)
    rows = {str(step): {} for step in SHOWN} | {FROM: {}}
    for i, matrix in enumerate(["W Bᵀ", "its symmetric part"]):
        for step in SHOWN:
            rows[str(step)][f"least of {matrix}"] = measured[step]["least"][i]
        negative = [step for step, row in measured.items() if row["least"][i] < 0]
        later = [step for step in measured if step > max(negative, default=-1)]
        rows[FROM][f"least of {matrix}"] = later[0] if later else math.inf
    return rows


def all_of(data, seed):
    """Give all eigenvalues of W B^T along the run, for the picture."""
    measured = default_run(data, seed)
    steps = [step for step in measured if step < 500 or step % 125 == 0]
    return {str(s): {f"{i}": each for i, each in enumerate(measured[s]["all"])} for s in steps}


def cell(row, column, values):
    """Return mean, deviation and the number of negative seeds; or the median step, and range."""
    if row == FROM:
        return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
    negative = sum(value < 0 for value in values)
    return f"{mean_and_deviation(row, column, values)}, negative in {negative}"


def draw(lines):
    """Return the picture: the eigenvalues of W B^T in seed 0, and their mean."""
    own = [line for line in lines if line["table"] == "all, seed 0"]
    steps = list(dict.fromkeys(line["row"] for line in own))
    values = [values_of(own, row=step) for step in steps]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    panel = figure.subplots()
    numbers = [int(step) for step in steps]
    curves = panel.plot(numbers, values, color="#56B4E9")  # sorted: ranks, where they cross
    curves[0].set_label("nine (errors sum to 0); pairs share a line")
    panel.plot(numbers, [statistics.fmean(v) for v in values], color="black", label="their mean")
    panel.axhline(0, color="black", linewidth=1)
    panel.set_xscale("symlog", linthresh=1, linscale=0.3)  # a logarithm has no 0
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.set(
        xlim=(0, END), xlabel="step (an epoch has 1875)", ylabel="eigenvalues of W Bᵀ (real parts)"
    )
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    return figure


TABLES = {"least": (follow, 20, cell), "all, seed 0": (all_of, 1, None)}

if __name__ == "__main__":
    main(__file__, __doc__, TABLES, draw)
