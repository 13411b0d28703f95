"""Plot what a run of train_fa_vs_bp_linear_model.py logged.

Panels for the training losses, the test errors and FA's angles: lines are means over the seeds,
bands ± one sample standard deviation. The steps' axis is logarithmic, since alignment happens
early. Below them, for the first seed: the entries of W against those of B, at the start and at the
end, a dot for each connection from a hidden unit to an output.
"""

import argparse
import csv
import json
import os
import sys
import textwrap
from pathlib import Path
from zipfile import BadZipFile

# A notebook sets MPLBACKEND to a backend of its own, which may not be installed where this script
# runs. Matplotlib looks at it when it is imported, and would fail. To write a file, "agg" is enough.
os.environ["MPLBACKEND"] = "agg"

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colour-blind readers can tell these apart (Okabe and Ito 2008). Lines that may lie under others
# are wide, so that they show.
RULES = {
    "fa": {"label": "FA (feedback alignment)", "color": "#56B4E9", "linewidth": 4},
    "bp": {"label": "BP (backpropagation)", "color": "#D55E00", "linestyle": "--"},
    "shallow": {"label": "shallow (hidden layer frozen)", "color": "black", "linestyle": ":"},
}
ANGLES = {
    "message": {"label": "messages: Bᵀe and Wᵀe", "color": "#CC79A7", "linewidth": 4},
    "weight": {"label": "matrices: B and W", "color": "#009E73", "linestyle": "--"},
}
OTHER_COLORS = ["#E69F00", "#0072B2", "#999999", "#F0E442"]  # for rules and angles that you add
# In fa_read_out.npz: B and W of FA's read-out.
ARRAYS = "feedback_at_start", "feedback_at_end", "weight_at_start", "weight_at_end"
Log = dict[str, np.ndarray]  # {column: values, shape (seeds, rows)}


class UnreadableRun(Exception):
    """A file of a run is not as the training script writes it; the message names the file."""


def find_log(run: Path) -> Path:
    """Return `run` if it is a file, else the newest losses.csv in it or in one of its folders."""
    if run.is_file():
        return run
    paths = [*run.glob("losses.csv"), *run.glob("*/losses.csv")]
    if not paths:
        raise UnreadableRun(f"{run}: no run here; train one, or name its folder")
    return max(paths, key=lambda path: path.stat().st_mtime_ns)


def read_log(path: Path) -> Log:
    """Return the log's columns; say what is left out of a run that was stopped."""
    # A run that was stopped may have left a part of a line, after the last newline.
    try:
        text, _newline, cut_line = path.read_text(encoding="utf-8").rpartition("\n")
    except UnicodeDecodeError as problem:
        raise UnreadableRun(f"{path}: {problem}") from problem
    if cut_line:
        print(f"{path}: left out the last line, which is cut: {cut_line}", file=sys.stderr)
    rows = list(csv.DictReader(text.splitlines()))
    if not rows:
        raise UnreadableRun(f"{path}: no row to plot yet")
    for name in "seed", "epoch", "step":
        if name not in rows[0]:
            raise UnreadableRun(f"{path}: no column {name!r}")
    rows_of = {}  # {seed: rows}
    for line, row in enumerate(rows, start=2):
        try:
            numbers = {name: float(value) for name, value in row.items()}
        except (TypeError, ValueError) as problem:  # too short or too long, or no number
            raise UnreadableRun(f"{path}: line {line} is no row of a log") from problem
        rows_of.setdefault(numbers["seed"], []).append(numbers)
    longest = max(len(of_seed) for of_seed in rows_of.values())
    for seed, of_seed in list(rows_of.items()):
        if len(of_seed) < longest:
            print(f"{path}: left out seed {seed:.0f}, which has fewer rows", file=sys.stderr)
            del rows_of[seed]
    log = {}
    for name in rows[0]:
        log[name] = np.array([[row[name] for row in of_seed] for of_seed in rows_of.values()])
    for name in "epoch", "step":  # each seed's against the first one's
        if (log[name] != log[name][0]).any():
            raise UnreadableRun(f"{path}: the seeds have rows at different steps")
    return log


def read_config(path: Path) -> dict:
    """Return what config.json says was trained."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise UnreadableRun(f"{path}: {problem}") from problem
    for name in "trained_on", "networks", "optimizer", "arguments":
        if name not in config:
            raise UnreadableRun(f"{path}: no {name!r} in it")
    return config


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Return FA's B (feedback) and W (weight), or None where the run has not written them."""
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in ARRAYS}
    except (KeyError, ValueError, EOFError, BadZipFile) as problem:
        raise UnreadableRun(f"{path}: {problem}") from problem


def plot(log: Log, config: dict, read_out: dict[str, np.ndarray] | None) -> Figure:
    """Return the figure: a panel for each quantity; where `read_out` is given, W against B."""
    # Two columns; a panel that is named twice goes over both.
    mosaic = [["loss", "loss"], ["error", "error"], ["angle", "angle"]]
    if read_out:
        mosaic.append(["start", "end"])
    # No pyplot: its figures are for windows on a screen.
    figure = Figure(figsize=(8, 3.2 * len(mosaic)), layout="constrained")
    # Dollar signs in it, as in a path, are no formula: parse_math is off.
    figure.suptitle(title(config, seeds=len(log["seed"])), fontsize="small", parse_math=False)
    panels = figure.subplot_mosaic(mosaic)
    steps = steps_of(log)

    panel = panels["loss"]
    panel.set_title("Training loss")
    panel.set_ylabel("cross-entropy (nats)")
    # A row's loss is a mean over the steps since the row before, and is drawn in between.
    draw_lines(panel, log, "loss", RULES, at=middles(steps))
    make_logarithmic(panel)
    finish_panel(panel, steps)

    panel = panels["error"]
    panel.set_title("Test error")
    panel.set_ylabel("misclassified (%)")
    draw_lines(panel, log, "error", RULES, at=steps)
    make_logarithmic(panel)
    finish_panel(panel, steps)

    panel = panels["angle"]
    panel.set_title("FA's alignment at the read-out")
    panel.set_ylabel("angle (degrees)")
    draw_lines(panel, log, "angle", ANGLES, at=steps)
    panel.axhline(90, color="black", linewidth=1, label="unrelated")
    panel.set_yticks(range(0, 181, 30))
    largest = panel.dataLim.ymax  # of all that is drawn
    panel.set_ylim(0, max(110, largest + 5))
    finish_panel(panel, steps)
    panel.set_xlabel(f"step (epochs: {log['epoch'].max() + 1:.0f})")

    if read_out:
        panels["end"].sharey(panels["start"])
        for when in "start", "end":
            feedback, weight = read_out[f"feedback_at_{when}"], read_out[f"weight_at_{when}"]
            draw_entries(panels[when], feedback, weight, when)
    return figure


def steps_of(log: Log) -> np.ndarray:
    """Return each row's step, counted from the start of the training."""
    epoch, step = log["epoch"][0], log["step"][0]
    # The last step of an epoch has a row. (If a run was stopped in epoch 0, all its rows have epoch
    # 0, and the number of steps in an epoch does not matter.)
    steps_in_epoch = step[epoch == 0].max()
    return epoch * steps_in_epoch + step


def middles(steps: np.ndarray) -> np.ndarray:
    """Return where to draw the losses of rows at these steps.

    A row's loss is a mean over the mini-batches since the last row. Each of their losses was
    computed after some number of updates, and their mean is drawn at the mean of these numbers. For
    rows at 4 and 8, for example: the losses of the steps 5, 6, 7 and 8 were computed after 4, 5, 6
    and 7 updates, so row 8 is drawn at 5.5. Rows 0 and 1 have the loss of step 1, which was computed
    before any update: both are drawn at 0.
    """
    before_first_loss = np.append(0, steps[:-1])  # the number of updates
    before_last_loss = np.maximum(steps - 1, 0)  # for row 0 as for row 1
    return (before_first_loss + before_last_loss) / 2


def draw_lines(panel: Axes, log: Log, quantity: str, styles: dict, at: np.ndarray) -> None:
    """Draw the mean and the spread over the seeds of each column NAME_QUANTITY."""
    panel.set_prop_cycle(color=OTHER_COLORS)  # for lines without a colour of their own
    for column, values in log.items():
        name, _, ending = column.rpartition("_")
        if ending != quantity:
            continue
        style = styles.get(name, {"label": name})  # a rule of yours is drawn under its name
        mean = values.mean(axis=0)
        # The gid is a mark, by which `say_what_is_not_drawn` finds the columns that are drawn.
        (line,) = panel.plot(at, mean, gid=column, **style)
        if len(values) > 1:
            spread = values.std(axis=0, ddof=1)
            color = line.get_color()
            panel.fill_between(at, mean - spread, mean + spread, color=color, alpha=0.3, lw=0)


def make_logarithmic(panel: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers at its ticks."""
    panel.set_yscale("log", subs=[2, 3, 5])  # minor ticks at 2, 3, 5, 20, 30, 50 ...
    panel.yaxis.set_major_formatter("{x:g}")
    low, high = panel.get_ylim()
    few_decades = high < 300 * low  # over more, the labels of minor ticks would overlap
    panel.yaxis.set_minor_formatter("{x:g}" if few_decades else "")


def finish_panel(panel: Axes, steps: np.ndarray) -> None:
    """Give a panel its legend, its grid, and a logarithmic axis of steps, alike in all panels."""
    panel.legend()
    panel.grid(alpha=0.3, which="both")
    # Linear from 0 to 1, about half as long as a decade, since a logarithm has no 0.
    panel.set_xscale("symlog", linthresh=1, linscale=0.5)
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.set_xlim(0, max(steps[-1], 1))  # 1, if there is only step 0


def draw_entries(panel: Axes, feedback: np.ndarray, weight: np.ndarray, when: str) -> None:
    """Draw W against B, entry by entry."""
    size = 12 if feedback.size < 1000 else 1  # points^2: ten thousand dots need small ones
    panel.scatter(feedback, weight, s=size, color="#009E73")
    panel.set_title(f"W against B at the {when}: {angle(feedback, weight):.0f}°")
    panel.set_xlabel("entry of B, first seed")
    panel.set_ylabel("the same entry of W")
    panel.set_box_aspect(1)
    panel.grid(alpha=0.3)


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """Return the angle in degrees between two matrices, as the log's weight_angle."""
    cosine = (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))
    return np.degrees(np.arccos(cosine.clip(-1, 1)))  # rounding may leave [-1, 1]


def title(config: dict, seeds: int) -> str:
    """Return what was trained on what, in the words of config.json."""
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    lines = [f"{config['trained_on']}, {spread}"]
    for rule, network in config["networks"].items():
        lines.append(f"{rule}: {network}")
    lines.append(config["optimizer"])
    lines.append(f"options: {' '.join(config['arguments']) or 'none'}")
    return "\n".join(textwrap.fill(line, 110) for line in lines)


def say_what_is_not_drawn(log: Log, figure: Figure, path: Path) -> None:
    """Print the columns that no panel shows, and those with values that none can show."""
    lines = {line.get_gid(): line for panel in figure.axes for line in panel.lines}
    for name in log:
        if name in ("seed", "epoch", "step"):
            continue
        problem = None
        if name not in lines:
            problem = f"no panel shows {name}"
        elif not np.isfinite(lines[name].get_ydata()).all():
            problem = f"{name} is inf or nan in places, and no mean is drawn there"
        elif lines[name].axes.get_yscale() == "log" and not lines[name].get_ydata().all():
            problem = f"{name} falls to 0, which a logarithmic axis cannot show"
        if problem:
            print(f"{path}: {problem}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Plot the run that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "run", type=Path, nargs="?", default=Path("runs"), help="default: the newest run"
    )
    parser.add_argument("--out", type=Path, help="default: losses.png beside the CSV")
    options = parser.parse_args(arguments)
    try:
        path = find_log(options.run.expanduser())
        log = read_log(path)
        config = read_config(path.with_name("config.json"))
        read_out = read_arrays(path.with_name("fa_read_out.npz"))
    except (OSError, UnreadableRun) as problem:
        parser.error(str(problem))
    figure = plot(log, config, read_out)
    say_what_is_not_drawn(log, figure, path)
    out = path.with_name("losses.png") if options.out is None else options.out.expanduser()
    file_format = out.suffix[1:].lower() or "png"
    if file_format not in figure.canvas.get_supported_filetypes():
        parser.error(f"{out}: no picture can be saved as {file_format}")
    try:
        figure.savefig(out, format=file_format, dpi=100)
    except OSError as problem:
        parser.error(str(problem))
    print(f"Plotted {path} to {out}")


if __name__ == "__main__":
    main()
