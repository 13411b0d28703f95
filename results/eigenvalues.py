"""From when can every error shrink? Follow the eigenvalues of W B^T in the default run.

    python results/eigenvalues.py DATA_DIR         writes eigenvalues.csv and eigenvalues.png

75 seconds on two cores. In the run both layers learn, by cross-entropy. Its errors sum to zero, so
W B^T is taken on such errors alone: there it has nine eigenvalues. What they say is exact in a
simpler case: let only the hidden layer learn, by a squared loss in small steps. Then an error along
an eigenvector shrinks if the eigenvalue (its real part) is positive, and grows if it is negative;
and if those of the symmetric part, too, are positive, then no step makes an error larger.
"""

import math
import statistics

import torch
from common import main, mean_and_deviation, set_up, train_for
from matplotlib.figure import Figure

END, EVERY = 5625, 25  # steps: three epochs
SHOWN = 0, 125, 250, 500, 1875, 5625
FROM = "none is negative from step"


def eigenvalues(readout):
    """Return the real parts of the eigenvalues of W B^T, and of its symmetric part; both sorted.

    They are for errors that sum to zero, as those of cross-entropy do: a softmax and a label both
    sum to one.
    """
    basis = torch.linalg.svd(torch.ones(1, readout.out_features)).Vh[1:]  # of all that sums to 0
    product = basis @ readout.weight.detach() @ readout.feedback.T @ basis.T
    real_parts = torch.linalg.eigvals(product).real.sort().values
    return real_parts.tolist(), torch.linalg.eigvalsh((product + product.T) / 2).tolist()


def measure(networks, _data):
    return {"eigenvalues": eigenvalues(networks["fa"].readout)}


def default_run(data, seed):
    """Return {step: row} with what is measured."""
    networks, args = set_up(data, seed, rules=["fa"])
    return train_for(networks, data, args, seed, END, measure, EVERY)


def follow(data, seed):
    """Give the least eigenvalues at some steps, and from which step they are positive."""
    measured = default_run(data, seed)
    matrices = "least of W Bᵀ", "least of its symmetric part"
    for step in SHOWN:
        whole, symmetric = measured[step]["eigenvalues"]
        yield step, dict(zip(matrices, (whole[0], symmetric[0]), strict=True))
    since = {}
    for i, matrix in enumerate(matrices):
        negative = [step for step, row in measured.items() if row["eigenvalues"][i][0] < 0]
        later = [step for step in measured if step > max(negative, default=-1)]
        since[matrix] = later[0] if later else math.inf
    yield FROM, since


def all_of(data, seed):
    """Give all eigenvalues of W B^T along the run, for the picture."""
    for step, row in default_run(data, seed).items():
        if step < 500 or step % 125 == 0:
            yield step, dict(enumerate(row["eigenvalues"][0]))


def cell(row, column, values):
    """Return mean, deviation and the number of negative seeds; or the median step, and range."""
    if row == FROM:
        return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
    negative = sum(value < 0 for value in values)
    return f"{mean_and_deviation(row, column, values)}, negative in {negative}"


def draw(gathered):
    """Return the picture: the eigenvalues of W B^T in seed 0, and their mean."""
    rows = gathered["all, seed 0"]
    steps = [int(step) for step in rows]
    curves = [[value for (value,) in columns.values()] for columns in rows.values()]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    panel = figure.subplots()
    panel.plot(steps, curves, color="#56B4E9")  # sorted: ranks, where they cross
    panel.lines[0].set_label("nine (errors sum to 0); complex pairs share a line")
    panel.plot(steps, [statistics.fmean(c) for c in curves], color="black", label="their mean")
    panel.axhline(0, color="black", linewidth=1)
    panel.set_xscale("symlog", linthresh=1, linscale=0.3)  # a logarithm has no 0
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.set(xlim=(0, END), xlabel="step (an epoch has 1875)")
    panel.set_ylabel("eigenvalues of W Bᵀ (real parts)")
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    return figure


TABLES = {"least": (follow, 20, cell), "all, seed 0": (all_of, 1, None)}

if __name__ == "__main__":
    main(__file__, __doc__, TABLES, draw)
