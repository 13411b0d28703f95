"""Plot what a run of train_fa_vs_bp_linear_model.py logged.

A panel each for training losses, test errors and FA's two angles. Lines are means over the seeds,
bands ± one sample standard deviation. The steps' axis is logarithmic: alignment happens early.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

PANELS = {  # title and label of the vertical axis; the log's columns are named LINE_PANEL
    "loss": ("Training loss", "cross-entropy (nats)"),
    "error": ("Test error", "misclassified (%)"),
    "angle": ("FA's alignment", "angle (degrees)"),
}
# Colour-blind readers can tell these apart (Okabe and Ito 2008). Wide lines show below thin ones.
LINES = {
    "fa": {"label": "FA (feedback alignment)", "color": "#56B4E9", "linewidth": 4},
    "bp": {"label": "BP (backpropagation)", "color": "#D55E00", "linestyle": "--"},
    "shallow": {"label": "shallow (hidden layer frozen)", "color": "black", "linestyle": ":"},
    "message": {"label": "messages: Bᵀe and Wᵀe", "color": "#CC79A7", "linewidth": 4},
    "weight": {"label": "matrices: B and W", "color": "#009E73", "linestyle": "--"},
}


def find_log(run: Path) -> Path:
    """Return the CSV that `run` is or holds, or of the runs in the folder `run` the newest."""
    logs = [run] if run.is_file() else [*run.glob("losses.csv"), *run.glob("*/losses.csv")]
    if not logs:
        raise ValueError("no run here; train one, or name its folder")
    return max(logs, key=lambda log: (log.stat().st_mtime_ns, log))


def read_log(path: Path) -> np.ndarray:
    """Return the log, shape (seeds, rows), by column; say what is left out of a stopped run's."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        print(f"{path}: left out the last line, which is cut: {lines.pop()}", file=sys.stderr)
    columns = "".join(lines[:1]).strip().split(",")
    if len(lines) < 2 or not {"seed", "epoch", "step", "fa_loss"} <= set(columns):
        raise ValueError(f"no log with a row to plot; its columns are {columns}")
    table = np.loadtxt(lines[1:], [(name, float) for name in columns], delimiter=",", ndmin=1)
    table.sort(order=["seed", "epoch", "step"])
    seeds, rows = np.unique(table["seed"], return_counts=True)
    for seed in seeds[rows < rows.max()]:
        print(f"{path}: left out seed {seed:.0f}, which has fewer rows", file=sys.stderr)
        table = table[table["seed"] != seed]
    table = table.reshape(-1, rows.max())  # (seeds, rows)
    at = table[["epoch", "step"]]
    if (at != at[0]).any() or len(np.unique(at)) < rows.max():
        raise ValueError("the seeds have rows at different steps, or a row stands twice")
    for seed in table["seed"][~np.isfinite(table.tolist()).all(axis=(1, 2)), 0]:
        print(f"{path}: the means end where seed {seed:.0f} overflows", file=sys.stderr)
    return table


def plot(log: np.ndarray, config: dict) -> Figure:
    """Return the figure, with a panel each for losses, errors and angles."""
    steps = log["epoch"][0] * config["steps_per_epoch"] + log["step"][0]
    # A row's test error is that after its step, its loss the mean of those that the mini-batches
    # since the row before had, each before its own update: that is drawn in their middle.
    middles = (np.append(0, steps[:-1]) + np.maximum(steps, 1) - 1) / 2
    figure = Figure(figsize=(8, 10), layout="constrained")
    axes = figure.subplots(len(PANELS), sharex=True)
    for (panel, (title, ylabel)), ax in zip(PANELS.items(), axes, strict=True):
        for name in [name for name in LINES if f"{name}_{panel}" in log.dtype.names]:
            values, at = log[f"{name}_{panel}"], middles if panel == "loss" else steps
            mean, spread = values.mean(axis=0), values.std(axis=0, ddof=len(values) > 1)
            (line,) = ax.plot(at, mean, **LINES[name])
            ax.fill_between(at, mean - spread, mean + spread, fc=line.get_color(), alpha=0.3)
        if panel == "angle":
            ax.axhline(90, color="black", linewidth=1, label="unrelated")
            ax.set(yticks=range(0, 181, 30), ylim=(0, max(110, ax.get_ylim()[1])))
        else:
            ax.set_yscale("log", subs=[2, 3, 5])
            ax.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")  # not 3 x 10^-1
        ax.set(title=title, ylabel=ylabel)
        ax.grid(alpha=0.3, which="both")
        ax.legend()
    axes[-1].set_xscale("symlog", linthresh=1, linscale=0.5)  # linear from 0 to 1: a log has no 0
    axes[-1].xaxis.set_major_formatter("{x:.0f}")
    axes[-1].set_xlim(0, steps[-1] or 1)
    axes[-1].set_xlabel(f"step (an epoch has {config['steps_per_epoch']})")
    options = "lr", "momentum", "weight_decay", "batch_size", "init_scale", "freeze_read_out"
    title = f"Linear network 784-{config['hidden']}-10 on {config['dataset_used']}\n"
    title += ", ".join(f"{name} {config[name]}" for name in options)
    title += f"\nmean ± standard deviation, seeds: {len(log)}"
    figure.suptitle(title, fontsize="medium")
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Plot the run that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, nargs="?", default="runs", help="default: the newest run")
    parser.add_argument("--out", type=Path, help="default: losses.png beside the CSV")
    options = parser.parse_args(arguments)
    path = options.run
    try:
        path = find_log(path)
        config = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
        figure = plot(read_log(path), config)
        out = options.out or path.with_name("losses.png")
        figure.savefig(out, format=out.suffix[1:] or "png", dpi=100)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        parser.error(f"{path}: {error!r}")
    print(f"Plotted {path} to {out}")


if __name__ == "__main__":
    main()
