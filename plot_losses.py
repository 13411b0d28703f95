"""Plot what a run of train_fa_vs_bp_linear_model.py logged.

Three panels over the epochs: training loss, test error, and the angle between FA's and
BP's teaching signal. A line is the mean over the seeds, the band around it ± one sample
standard deviation.

Usage: python plot_losses.py [RUN_FOLDER or CSV] [--out PNG] [--show]
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

# Colours that colour-blind readers can tell apart (Okabe and Ito 2008). FA and BP often
# lie on each other: the wide solid line stays visible under the thin dashed one.
STYLES = {
    "fa": {"label": "FA (feedback alignment)", "color": "#56B4E9", "linewidth": 4},
    "bp": {"label": "BP (backpropagation)", "color": "#D55E00", "linestyle": "--"},
    "shallow": {
        "label": "shallow (hidden layer frozen)",
        "color": "black",
        "linestyle": ":",
    },
}


class LogError(Exception):
    """The log cannot be plotted; the message says which file and why."""


def find_log(path: Path | None) -> Path:
    """Return the CSV that `path` is or holds; without a path that of the newest run."""
    if path is None:
        logs = list(Path("runs").glob("*/losses.csv"))
        if not logs:
            raise LogError("no run in runs/ yet; train one, or name its folder")
        return max(logs, key=lambda log: (log.stat().st_mtime_ns, log))
    log = path / "losses.csv" if path.is_dir() else path
    if not log.is_file():
        raise LogError(f"{log} does not exist; name the folder or the CSV of a run")
    return log


def read_log(path: Path) -> dict[str, np.ndarray]:
    """Return {column: its values, a row each}.

    A last line without an end was cut when its run was killed, and is left out.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise LogError(f"{path} cannot be read as text: {error}") from error
    if len(lines) > 1 and not lines[-1].endswith("\n"):
        print(f"{path}: left out the last line, which is cut", file=sys.stderr)
        lines.pop()
    header, *rows = csv.reader(lines) if lines else [[]]
    missing = [name for name in ("seed", "epoch", "step") if name not in header]
    if missing or not any(f"{rule}_loss" in header for rule in STYLES):
        wanted = ", ".join(missing or ["fa_loss, bp_loss or shallow_loss"])
        raise LogError(f"{path} is no log of a run: it has no column {wanted}")
    if not rows:
        raise LogError(f"{path} has no row to plot yet")
    for number, row in enumerate(rows, start=2):
        try:
            if len(row) != len(header):
                raise ValueError(f"{len(row)} values for {len(header)} columns")
            row[:] = map(float, row)
        except ValueError as error:
            raise LogError(f"{path}, line {number}: {error}") from error
    return dict(zip(header, np.array(rows).T))


def read_config(log_path: Path) -> dict:
    """Return the options of the run; empty if no config.json lies beside its log."""
    try:
        config = json.loads(log_path.with_name("config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def describe(config: dict, seeds: int) -> str:
    """Return the title: the data set and the settings."""
    spread = "1 seed"
    if seeds > 1:
        spread = f"mean ± standard deviation over {seeds} seeds"
    try:
        return (
            f"Linear network 784-{config['hidden']}-10 on {config['dataset_used']}, "
            f"{spread}\nSGD, learning rate {config['lr']:g}, "
            f"Nesterov momentum {config['momentum']:g}, "
            f"weight decay {config['weight_decay']:g}, batch {config['batch_size']}, "
            f"initial weights × {config['init_scale']:g}"
        )
    except (KeyError, TypeError, ValueError):
        return f"Data set and settings unknown: no config.json beside the log; {spread}"


def plot(log: dict[str, np.ndarray], config: dict) -> plt.Figure:
    """Return the figure: one panel each for loss, error and angle, as far as logged."""
    steps_per_epoch = config.get("steps_per_epoch", log["step"].max())
    epochs = log["epoch"] + log["step"] / steps_per_epoch
    points = np.unique(epochs)

    def draw(axes: plt.Axes, column: str, style: dict) -> None:
        seeds = [log[column][epochs == point] for point in points]
        mean = np.array([np.mean(values) for values in seeds])
        spread = np.array([np.std(values, ddof=len(values) > 1) for values in seeds])
        axes.plot(points, mean, **style)
        low, high = mean - spread, mean + spread
        axes.fill_between(
            points, low, high, color=style["color"], alpha=0.3, linewidth=0
        )

    panels = ["loss", "error", "angle"]
    panels = [p for p in panels if any(name.endswith(p) for name in log)]
    figure, grid = plt.subplots(
        len(panels),
        sharex=True,
        squeeze=False,
        figsize=(8, 1 + 3 * len(panels)),
        layout="constrained",
    )
    axes = dict(zip(panels, grid[:, 0]))
    for panel in ("loss", "error"):
        for rule, style in STYLES.items():
            if f"{rule}_{panel}" in log:
                draw(axes[panel], f"{rule}_{panel}", style)
    axes["loss"].set(
        title="Training loss: do the networks learn alike?",
        ylabel="cross-entropy (nats)",
    )
    if any((line.get_ydata() > 0).any() for line in axes["loss"].lines):
        axes["loss"].set_yscale("log")  # which fails if every loss is nan
        axes["loss"].yaxis.set(
            major_locator=LogLocator(subs=(1, 2, 3, 5)),
            major_formatter="{x:g}",  # 0.3 instead of 3 x 10^-1
            minor_formatter=NullFormatter(),
        )
    axes["loss"].legend()
    if "error" in axes:
        axes["error"].set(
            title="Test error: does teaching the hidden layer pay?",
            ylabel="wrong answers (%)",
            ylim=(0, None),
        )
    if "angle" in axes:
        draw(axes["angle"], "angle", STYLES["fa"] | {"label": None})
        axes["angle"].axhline(90, color="black", linewidth=1)
        axes["angle"].annotate(
            "90°: unrelated, the hidden layer learns nothing useful",
            (points[-1], 90),
            (0, 4),
            textcoords="offset points",
            ha="right",
        )
        axes["angle"].set(
            title="Angle between FA's and BP's teaching signal: does FA align? (BP: 0°)",
            ylabel="angle (degrees)",
            ylim=(0, 110),
            yticks=range(0, 91, 30),
        )
    grid[-1, 0].set(xlabel="epoch (passes over the training images)", xlim=(0, None))
    for panel in axes.values():
        panel.grid(alpha=0.3, which="both")
    figure.suptitle(describe(config, len(np.unique(log["seed"]))), fontsize="medium")
    return figure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run",
        type=Path,
        nargs="?",
        help="folder or CSV of a run (default: the newest run in runs/)",
    )
    parser.add_argument(
        "--out", type=Path, help="picture to write (default: losses.png beside the CSV)"
    )
    parser.add_argument("--show", action="store_true", help="also open a window")
    options = parser.parse_args(arguments)
    if not options.show:
        matplotlib.use("agg")  # needs no display

    try:
        log_path = find_log(options.run)
        figure = plot(read_log(log_path), read_config(log_path))
    except LogError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    out = options.out or log_path.with_name("losses.png")
    try:
        figure.savefig(out, format=out.suffix[1:] or "png", dpi=100)
    except (OSError, ValueError) as error:  # ValueError: no such picture format
        print(f"{parser.prog}: error: cannot write {out}: {error}", file=sys.stderr)
        return 2
    print(f"Plotted {log_path} to {out}")
    if options.show:
        plt.show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
