"""Plot what a run of train_fa_vs_bp_linear_model.py logged.

Lines are means over the seeds, bands one sample standard deviation. Below, a dot for each connection
from a hidden unit to an output: its weight in FA's W against that in B, for the first seed.
"""

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

if __name__ == "__main__" and "IPython" not in sys.modules:
    # What a notebook sets may name a backend that this environment lacks; none is needed here.
    os.environ.pop("MPLBACKEND", None)

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

# Colours for colour-blind readers, too (Okabe and Ito 2008). Wide lines may lie under others.
RULE_STYLES = {
    "fa": {"label": "FA (feedback alignment)", "color": "#56B4E9", "linewidth": 4},
    "bp": {"label": "BP (backpropagation)", "color": "#D55E00", "linestyle": "--"},
    "shallow": {"label": "shallow (only the readout learns)", "color": "black", "linestyle": ":"},
}
ANGLE_STYLES = {
    "message": {"label": "messages: Bᵀe and Wᵀe", "color": "#CC79A7", "linewidth": 4},
    "weight": {"label": "matrices: B and W", "color": "#009E73", "linestyle": "--"},
}


def read_log(path):
    """Return the log as a structured array, (seeds, rows); say what of a stopped run is left out."""
    text, _, cut_line = path.read_text(encoding="utf-8").rpartition("\n")
    if cut_line:
        print(f"left out, as it is cut: {cut_line}")
    lines = text.splitlines()
    rows = np.genfromtxt(lines, delimiter=",", names=True, dtype=None, deletechars="", ndmin=1)
    counts = Counter(rows["seed"].tolist())
    longest = max(counts.values())
    for seed in counts:
        if counts[seed] < longest:
            print(f"left out, as it has fewer rows: seed {seed}")
    return np.stack([rows[rows["seed"] == seed] for seed in counts if counts[seed] == longest])


def plot(log, config, folder):
    """Return the figure; with W against B, if the folder has them."""
    mosaic = [["loss", "loss", "error", "error"], ["angle", "angle", "start", "end"]]
    readouts = [folder / f"fa_readout_{when}.npz" for when in ("start", "end")]
    if not all(path.exists() for path in readouts):  # the run was stopped in its first seed
        mosaic, readouts = [["loss", "error"], ["angle", "."]], []
    figure = Figure(figsize=(10, 7.5), layout="constrained")  # no pyplot: nothing global
    seeds = f"{len(log)} seeds: mean ± standard deviation" if len(log) > 1 else "one seed"
    figure.suptitle(f"{config['title']}; {seeds}", parse_math=False, wrap=True)
    panels = figure.subplot_mosaic(mosaic)
    steps = log["step"][0]
    # A row's loss is a mean over the steps since the row before, and is drawn in their middle.
    middles = (np.append(0, steps[:-1] + 1) + steps) / 2
    draw(panels["loss"], log, "loss", RULE_STYLES, middles)
    draw(panels["error"], log, "error", RULE_STYLES, steps)
    draw(panels["angle"], log, "angle", ANGLE_STYLES, steps)
    panels["angle"].axhline(90, color="black", linewidth=1, label="unrelated")
    finish(panels, steps, config["steps_in_epoch"])
    for path in readouts:
        when = path.stem.removeprefix("fa_readout_")
        draw_entries(panels[when], np.load(path), when)
    if readouts:
        panels["end"].sharey(panels["start"])
        panels["start"].set_ylabel("same entry of W")
    return figure


def draw(panel, log, quantity, styles, steps):
    """Draw each column NAME_QUANTITY; names without a style in the colours of the cycle."""
    for column in log.dtype.names:
        name, _, ending = column.rpartition("_")
        if ending == quantity:
            mean = log[column].mean(axis=0)
            (line,) = panel.plot(steps, mean, **styles.get(name, {"label": name}))
            if len(log) > 1:
                spread = log[column].std(axis=0, ddof=1)
                color = line.get_color()
                panel.fill_between(
                    steps, mean - spread, mean + spread, color=color, alpha=0.3, lw=0
                )


def finish(panels, steps, steps_in_epoch):
    """Give the panels their scales, labels and legends."""
    for name in "loss", "error":
        panels[name].set_yscale("log")
        panels[name].yaxis.set_major_locator(LogLocator(subs=[1, 2, 3, 5]))
        panels[name].yaxis.set_major_formatter("{x:g}")
        panels[name].minorticks_off()
    panels["angle"].set_yticks(range(0, 181, 30))
    panels["angle"].set_ylim(0, max(105, panels["angle"].dataLim.ymax + 5))
    panels["loss"].set_ylabel("training loss")
    panels["error"].set_ylabel("test error (%)")
    panels["angle"].set_ylabel("angle at FA's readout (degrees)")
    for name in "loss", "error", "angle":
        panels[name].set_xscale("symlog", linthresh=1, linscale=0.3)  # a logarithm has no 0
        panels[name].xaxis.set_major_formatter("{x:.0f}")
        panels[name].set_xlim(0, max(steps[-1], 1))
        panels[name].set_xlabel(f"step (an epoch has {steps_in_epoch})")
        panels[name].grid(alpha=0.3)
    panels["loss"].legend()
    panels["angle"].legend()


def draw_entries(panel, arrays, when):
    """Draw W against B, entry by entry."""
    W, B = arrays["W"], arrays["B"]
    panel.scatter(B, W, s=2000 / B.size, color="#009E73")
    cosine = (W * B).sum() / np.linalg.norm(W) / np.linalg.norm(B)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))  # rounding may leave -1 to 1
    panel.set_title(f"W against B, {when}: {angle:.0f}°", fontsize="medium")
    panel.set_xlabel("entry of B")
    panel.set_box_aspect(1)
    panel.grid(alpha=0.3)


def say_what_is_missing(log):
    """Print the columns that are not drawn, or not everywhere."""
    for name in log.dtype.names[2:]:
        if name.rpartition("_")[2] not in ("loss", "error", "angle"):
            print(f"no panel for {name}")
        elif not np.isfinite(log[name]).all():
            print(f"{name} is not finite in places, and not drawn there")


def main(arguments=None):
    """Plot the run that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, nargs="?", default="runs", help="default: the newest")
    parser.add_argument("--out", type=Path, help="default: losses.png in the run's folder")
    args = parser.parse_args(arguments)
    logs = [args.run] if args.run.is_file() else list(args.run.rglob("losses.csv"))
    if not logs:
        parser.error(f"no losses.csv in {args.run}")
    newest = max(logs, key=lambda path: path.stat().st_mtime)
    log = read_log(newest)
    say_what_is_missing(log)
    config = json.loads(newest.with_name("config.json").read_text())
    out = args.out or newest.with_name("losses.png")
    with matplotlib.style.context("default"):  # whatever the user's settings are
        plot(log, config, newest.parent).savefig(out, dpi=100)
    print(f"Plotted {newest} to {out}")


if __name__ == "__main__":
    main()
