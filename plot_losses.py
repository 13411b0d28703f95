"""Plot what a run of train_fa_vs_bp_linear_model.py logged.

A panel each for training loss, test error, and the angle between the error as FA sends it to
the hidden layer and as BP would. Lines are means over the seeds, bands ± one sample standard
deviation.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

# Colours that colour-blind readers can tell apart (Okabe and Ito 2008). FA and BP often lie on
# each other: the wide solid line stays visible under the thin dashed one.
STYLES = {
    "fa": {"label": "FA (feedback alignment)", "color": "#56B4E9", "linewidth": 4},
    "bp": {"label": "BP (backpropagation)", "color": "#D55E00", "linestyle": "--"},
    "shallow": {"label": "shallow (hidden layer frozen)", "color": "black", "linestyle": ":"},
}
PANELS = {  # title and label of the vertical axis
    "loss": ("Training loss", "cross-entropy (nats)"),
    "error": ("Test error", "wrong answers (%)"),
    "angle": ("Angle between the error as FA sends it back and as BP would", "angle (degrees)"),
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
    beside complete ones: else the band would mix three seeds here with two there.

    Raises:
        OSError, ValueError: the file cannot be read, or is no log with a row to plot.
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
    return dict(zip(columns, table.T.reshape(len(columns), -1, rows.max())))


def describe(config: dict, seeds: int) -> str:
    """Return the title: the network, the data set, and the options as they are typed."""
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "1 seed"
    if not config:
        return f"Data set and settings unknown: no config.json beside the log; {spread}"
    names = ["lr", "momentum", "weight_decay", "batch_size", "init_scale"]
    options = " ".join(f"--{name.replace('_', '-')} {config[name]:g}" for name in names)
    network = f"Linear network 784-{config['hidden']}-10 on {config['dataset_used']}"
    return f"{network}, {spread}\n{options}"


def plot(log: dict[str, np.ndarray], config: dict) -> plt.Figure:
    """Return the figure: one panel each for loss, error and angle, as far as logged."""
    steps_per_epoch = config.get("steps_per_epoch", max(1, log["step"].max()))
    epochs = log["epoch"][0] + log["step"][0] / steps_per_epoch
    panels = [panel for panel in PANELS if any(name.endswith(panel) for name in log)]
    size = (8, 1 + 3 * len(panels))
    figure, axes = plt.subplots(len(panels), sharex=True, figsize=size, layout="constrained")
    for panel, ax in zip(panels, np.atleast_1d(axes)):
        ax.set(title=PANELS[panel][0], ylabel=PANELS[panel][1])
        if panel == "angle":
            ax.axhline(90, color="black", linewidth=1)
            ax.text(0.99, 91, "90°: unrelated", ha="right", transform=ax.get_yaxis_transform())
            ax.set_yticks(range(0, 181, 30))
            ax.set_ylim(0, np.nanmax(log["fa_angle"], initial=110))
        else:
            ax.set_yscale("log", subs=[2, 3, 5])
            ax.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")  # 0.3, not 3 x 10^-1
        for rule in [rule for rule in STYLES if f"{rule}_{panel}" in log]:
            values, color = log[f"{rule}_{panel}"], STYLES[rule]["color"]
            mean, spread = values.mean(axis=0), values.std(axis=0, ddof=len(values) > 1)
            ax.plot(epochs, mean, **STYLES[rule])
            ax.fill_between(epochs, mean - spread, mean + spread, color=color, alpha=0.3, lw=0)
        ax.grid(alpha=0.3, which="both")
    figure.axes[0].legend()
    figure.axes[-1].set(xlabel="epoch (passes over the training images)", xlim=(0, epochs[-1] or 1))
    figure.suptitle(describe(config, len(log["seed"])), fontsize="medium")
    return figure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default="runs", help="default: the newest run")
    parser.add_argument("--out", type=Path, help="default: losses.png beside the CSV")
    parser.add_argument("--show", action="store_true", help="also open a window")
    options = parser.parse_args(arguments)
    if not options.show:
        matplotlib.use("agg")  # needs no display
    try:
        log_path = options.run = find_log(options.run)
        config_path = log_path.with_name("config.json")
        config = json.loads(config_path.read_text()) if config_path.is_file() else {}
        out = options.out or log_path.with_name("losses.png")
        plot(read_log(log_path), config).savefig(out, format=out.suffix[1:] or "png", dpi=100)
    except (OSError, ValueError) as error:  # ValueError: no log, or no such picture format
        print(f"{parser.prog}: error: {options.run}: {error}", file=sys.stderr)
        return 2
    print(f"Plotted {log_path} to {out}")
    if options.show:
        plt.show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
