"""Plot what a run of train_fa_vs_bp_linear_model.py logged.

A panel each for training loss, test error, and the angle between the message that FA sends to
the hidden layer and the one that BP would send. Lines are means over the seeds, bands ± one
sample standard deviation. The axis of the steps is logarithmic, as alignment happens early.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

# Colours that colour-blind readers can tell apart (Okabe and Ito 2008). FA and BP often lie on
# each other: the wide solid line stays visible under the thin dashed one.
STYLES = {
    "fa": {"label": "FA (feedback alignment)", "color": "#56B4E9", "linewidth": 4},
    "bp": {"label": "BP (backpropagation)", "color": "#D55E00", "linestyle": "--"},
    "shallow": {"label": "shallow (hidden layer frozen)", "color": "black", "linestyle": ":"},
}
PANELS = {  # title and label of the vertical axis
    "loss": ("Training loss", "cross-entropy (nats)"),
    "error": ("Test error", "misclassified (%)"),
    "angle": ("Angle between FA's message to the hidden layer and BP's", "angle (degrees)"),
}


def find_log(run: Path) -> Path:
    """Return the CSV that `run` is or holds, or of the runs in the folder `run` the newest."""
    logs = [run] if run.is_file() else [*run.glob("losses.csv"), *run.glob("*/losses.csv")]
    if not logs:
        raise ValueError("no run here; train one, or name its folder")
    return max(logs, key=lambda log: (log.stat().st_mtime_ns, log))


def read_log(path: Path) -> dict[str, np.ndarray]:
    """Return {column: its values, shape (seeds, rows)}; the angle is FA's: `fa_angle`.

    Of a run that was stopped, a line without an end is left out, and so is an unfinished seed
    beside complete ones: else the band would mix three seeds here with two there. ValueError if
    the file is no log with a row to plot.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        print(f"{path}: left out the last line, which is cut: {lines.pop()}", file=sys.stderr)
    columns = lines[0].strip().replace("angle", "fa_angle").split(",") if lines else []
    if columns[:3] != ["seed", "epoch", "step"] or not any("_loss" in name for name in columns):
        raise ValueError(f"no log of a run: its columns are {columns}")
    if len(lines) == 1:
        raise ValueError("no row to plot yet")
    table = np.loadtxt(lines[1:], delimiter=",", ndmin=2)
    if table.shape[1] != len(columns):
        raise ValueError(f"{table.shape[1]} values a row for {len(columns)} columns")
    seeds, rows = np.unique(table[:, 0], return_counts=True)
    for seed in seeds[rows < rows.max()]:
        print(f"{path}: left out seed {seed:.0f}, which is unfinished", file=sys.stderr)
        table = table[table[:, 0] != seed]
    return dict(zip(columns, table.T.reshape(len(columns), -1, rows.max()), strict=True))


def read_config(path: Path) -> tuple[int | None, str]:
    """Return the steps in an epoch, and the title; ValueError if that is not a run's config."""
    if not path.is_file():
        return None, "Data set and settings unknown: no config.json beside the log"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        names = ["lr", "momentum", "weight_decay", "batch_size", "init_scale"]
        options = " ".join(f"--{name.replace('_', '-')} {config[name]:g}" for name in names)
        network = f"Linear network 784-{config['hidden']}-10 on {config['dataset_used']}"
        network += ", all read-outs frozen" if config.get("freeze_read_out") else ""
        return int(config["steps_per_epoch"]), f"{network}\n{options}"
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not the settings of a run: {error!r}") from error


def plot(log: dict[str, np.ndarray], steps_per_epoch: int | None, title: str) -> Figure:
    """Return the figure: one panel each for loss, error and angle, as far as logged."""
    steps = log["epoch"][0] * (steps_per_epoch or log["step"].max()) + log["step"][0]
    # A row's test error is that after its step, its loss the mean of those that the mini-batches
    # since the row before had, each before its own update: that is drawn in their middle.
    middles = (np.append(0, steps[:-1]) + np.maximum(steps, 1) - 1) / 2
    panels = [panel for panel in PANELS if any(name.endswith(panel) for name in log)]
    figure = Figure(figsize=(8, 1 + 3 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False).flat
    for panel, ax in zip(panels, axes, strict=True):
        ax.set(title=PANELS[panel][0], ylabel=PANELS[panel][1])
        if panel != "angle":
            ax.set_yscale("log", subs=[2, 3, 5])
        for rule in [rule for rule in STYLES if f"{rule}_{panel}" in log]:
            values, color = log[f"{rule}_{panel}"], STYLES[rule]["color"]
            mean, spread = values.mean(axis=0), values.std(axis=0, ddof=len(values) > 1)
            at = middles if panel == "loss" else steps
            ax.plot(at, mean, **STYLES[rule])
            ax.fill_between(at, mean - spread, mean + spread, color=color, alpha=0.3, lw=0)
        if panel == "angle":
            ax.axhline(90, color="black", linewidth=1)
            ax.text(1.01, 90, "unrelated", va="center", transform=ax.get_yaxis_transform())
            ax.set_yticks(range(0, 181, 30))
            ax.set_ylim(0, np.nanmax(log["fa_angle"], initial=110))
        else:
            low, high = ax.get_ylim()
            between = "{x:g}" if high < 100 * low else ""  # decades: there is room for no more
            ax.yaxis.set(major_formatter="{x:g}", minor_formatter=between)  # 0.3, not 3 x 10^-1
        ax.grid(alpha=0.3, which="both")
    figure.axes[0].legend()
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)  # linear from 0 to 1, as a log has no 0
    ax.xaxis.set_major_formatter("{x:.0f}")
    epoch = f" (an epoch has {steps_per_epoch})" if steps_per_epoch else ""
    ax.set(xlabel=f"step{epoch}", xlim=(0, steps[-1] or 1))
    seeds = len(log["seed"])
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "1 seed"
    figure.suptitle(f"{title}\n{spread}", fontsize="medium")
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Plot the run that the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default="runs", help="default: the newest run")
    parser.add_argument("--out", type=Path, help="default: losses.png beside the CSV")
    options = parser.parse_args(arguments)
    place = options.run  # that an error is about
    try:
        place = log_path = find_log(options.run)
        log = read_log(log_path)
        place = log_path.with_name("config.json")
        figure = plot(log, *read_config(place))
        place = out = options.out or log_path.with_name("losses.png")
        figure.savefig(out, format=out.suffix[1:] or "png", dpi=100)
    except (OSError, ValueError) as error:  # ValueError: no log, or no such picture format
        print(f"{parser.prog}: error: {place}: {error}", file=sys.stderr)
        return 2
    print(f"Plotted {log_path} to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
