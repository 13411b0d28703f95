"""Plot what a run of train_fa_vs_bp_linear_model.py logged.

Lines are means over the seeds, bands one sample standard deviation. Below, a dot for each
connection from a hidden unit to an output: its weight in W against that in B.
"""

import argparse
import json
import os
import sys
from pathlib import Path

if __name__ == "__main__" and "IPython" not in sys.modules:
    # What a notebook sets may name a backend that this environment lacks; none is needed here.
    os.environ.pop("MPLBACKEND", None)

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

# What is drawn, by how a column's name ends after the rule's: the panel and, where a rule has
# several curves in it, what the legend says of each, and its line. The first ending that fits
# counts.
ENDINGS = {
    "_loss": ("loss", None, None),
    "_error": ("error", None, None),
    "_message_angle": ("angle", "messages Bᵀe and Wᵀe", "-"),
    "_weight_angle": ("angle", "matrices B and W", "--"),
    "_angle": ("angle", None, None),
}
# The panels' labels and scales.
PANELS = {
    "loss": ("training loss", "log"),
    "error": ("test error (%)", "log"),
    "angle": ("angle at the readout (degrees)", "linear"),
}
# Colours for colour-blind readers, too (Okabe and Ito 2008). Wide lines may lie under others.
RULE_STYLES = {
    "fa": {"label": "FA (feedback alignment)", "color": "#56B4E9", "linewidth": 4},
    "bp": {"label": "BP (backpropagation)", "color": "#D55E00", "linestyle": "--"},
    "shallow": {"label": "shallow (only the readout learns)", "color": "black", "linestyle": ":"},
}
OTHER_COLORS = ["#009E73", "#CC79A7", "#E69F00", "#0072B2"]


def read_log(path):
    """Return the log's rows, a structured array (rows,); say what of a stopped run is left out."""
    text, _, cut_line = path.read_text(encoding="utf-8").rpartition("\n")
    if cut_line:
        print(f"left out, as it is cut: {cut_line}")
    lines = text.splitlines()
    if len(lines) < 2:
        sys.exit(f"{path} has no rows")
    options = {"names": True, "deletechars": "", "replace_space": " ", "dtype": None, "ndmin": 1}
    return np.genfromtxt(lines, delimiter=",", **options)


def by_seed(rows):
    """Return the rows as (seeds, rows of each); leave out seeds with other steps, and say so."""
    seeds = [rows[rows["seed"] == seed] for seed in dict.fromkeys(rows["seed"].tolist())]
    longest = max(seeds, key=len)
    for own in seeds:
        if not np.array_equal(own["step"], longest["step"]):
            print(f"left out, as its steps are others: seed {own['seed'][0]}")
    return np.stack([own for own in seeds if np.array_equal(own["step"], longest["step"])])


def curves_of(log):
    """Return [(column, panel, style)] of what is drawn; say what is not, or not everywhere."""
    curves, colors = [], {}
    for column in log.dtype.names[2:]:  # not seed and step
        ending = next((ending for ending in ENDINGS if column.endswith(ending)), None)
        if ending is None:
            print(f"no panel for {column}")
            continue
        if not np.isfinite(log[column]).all():
            print(f"{column} is not finite in places, and not drawn there")
        panel, more, linestyle = ENDINGS[ending]
        rule = column.removesuffix(ending)
        style = RULE_STYLES.get(rule)
        if style is None:
            color = colors.setdefault(rule, OTHER_COLORS[len(colors) % len(OTHER_COLORS)])
            style = {"label": rule, "color": color}
        if more:
            name = short_name(rule)
            style = {"label": f"{name}: {more}", "color": style["color"], "linestyle": linestyle}
        curves.append((column, panel, style))
    return curves


def short_name(rule):
    """Return "FA" for "fa"; the names of other rules as they are."""
    return RULE_STYLES.get(rule, {"label": rule})["label"].partition(" (")[0]


def plot(rows, config, folder):
    """Return the figure; with W against B, if the folder has them for a seed that is drawn."""
    log = by_seed(rows)
    curves = curves_of(log)
    names = [name for name in PANELS if name in [panel for _, panel, _ in curves]]
    first = rows["seed"][0]  # whose W and B are saved
    readouts = saved_readouts(folder, log) if first in log["seed"] else []
    cells = [name for name in names for _half in range(2)] + ["start", "end"] * bool(readouts)
    cells += ["."] * (-len(cells) % 4)
    mosaic = np.reshape(cells, (-1, 4)).tolist()
    # Without pyplot, so that nothing global is changed.
    figure = Figure(figsize=(10, 3.75 * len(mosaic)), layout="constrained")
    figure.suptitle(f"{config['title']}; {seeds_text(rows, log)}", parse_math=False, wrap=True)
    panels = figure.subplot_mosaic(mosaic)
    explained = set()
    for name in names:
        draw(panels[name], name, log, [curve for curve in curves if curve[1] == name])
        panels[name].set_xlabel(f"step (an epoch has {config['steps_in_epoch']})")
        _, labels = panels[name].get_legend_handles_labels()
        if not explained.issuperset(labels):
            panels[name].legend()
        explained.update(labels)
    for path in readouts:
        rule, when = path.stem.split("_readout_")
        title = f"W against B, {short_name(rule)}, seed {first}\n{when}"
        draw_entries(panels[when], np.load(path), title)
    if readouts:
        panels["end"].sharey(panels["start"])
        panels["start"].set_ylabel("same entry of W")
    return figure


def seeds_text(rows, log):
    """Say how many seeds are drawn, and of how many."""
    drawn, total = len(log), len(np.unique(rows["seed"]))
    text = f"{total} seeds" if total > 1 else "1 seed"
    text = f"{drawn} of {text} (the longest)" if drawn < total else text
    return f"{text}: mean ± standard deviation" if drawn > 1 else text


def saved_readouts(folder, log):
    """Return the paths of W and B at start and end, of the first rule that has both."""
    for column in log.dtype.names:
        rule = column.removesuffix("_loss")
        paths = [folder / f"{rule}_readout_{when}.npz" for when in ("start", "end")]
        if all(path.exists() for path in paths):
            return paths
    return []  # no rule has a B, or the run was stopped in its first seed


def draw(panel, name, log, curves):
    """Draw the curves of a panel; give it its scales and labels."""
    steps = places = log["step"][0]
    if name == "loss":  # a mean over the steps since the row before is drawn in their middle
        places = (np.append(0, steps[:-1] + 1) + steps) / 2
    for column, _, style in curves:
        with np.errstate(all="ignore"):  # what is not finite was said
            mean = log[column].mean(axis=0)
            spread = log[column].std(axis=0, ddof=1) if len(log) > 1 else 0 * mean
        panel.plot(places, mean, **style)
        panel.fill_between(
            places, mean - spread, mean + spread, color=style["color"], alpha=0.3, lw=0
        )
    label, scale = PANELS[name]
    panel.set_ylabel(label)
    values = np.concatenate([log[column].ravel() for column, *_ in curves])
    if scale == "log" and min(values[np.isfinite(values)], default=0) > 0:
        set_log_scale(panel)
    if name == "angle":
        panel.axhline(90, color="black", linewidth=1, label="unrelated")
        panel.set_yticks(range(0, 181, 30))
        panel.set_ylim(0, max(105, panel.dataLim.ymax + 5))
    panel.set_xscale("symlog", linthresh=1, linscale=0.3)  # a logarithm has no 0
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.set_xlim(0, max(steps[-1], 1))
    panel.grid(alpha=0.3)


def set_log_scale(panel):
    """Set a logarithmic scale with a few ticks, whatever its range."""
    panel.set_yscale("log")
    low, high = np.log10(panel.get_ylim())
    panel.yaxis.set_major_locator(LogLocator(subs=[1, 2, 3, 5] if high - low < 3 else [1]))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()


def draw_entries(panel, arrays, title):
    """Draw W against B, entry by entry; add their angle, if they have one, to the title."""
    W, B = arrays["W"].astype(float), arrays["B"].astype(float)
    panel.scatter(B, W, s=2000 / B.size, color="0.3")
    lengths = np.linalg.norm(W) * np.linalg.norm(B)
    angle = "no angle"
    if 0 < lengths < np.inf:
        cosine = np.clip((W * B).sum() / lengths, -1, 1)  # rounding may leave -1 to 1
        angle = f"{np.degrees(np.arccos(cosine)):.0f}°"
    panel.set_title(f"{title}: {angle}", fontsize="medium")
    panel.set_xlabel("entry of B")
    panel.set_box_aspect(1)
    panel.grid(alpha=0.3)


def main(arguments=None):
    """Plot the run that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.path.expanduser  # in --out=~/x no shell does it
    parser.add_argument("run", type=path, nargs="?", default="runs", help="default: the newest")
    parser.add_argument("--out", type=path, help="default: losses.png in the run's folder")
    args = parser.parse_args(arguments)
    run = Path(args.run)
    logs = [run] if run.is_file() else list(run.rglob("losses.csv"))
    if not logs:
        parser.error(f"no losses.csv in {run}")
    newest = max(logs, key=lambda path: path.stat().st_mtime)
    out = Path(args.out or newest.parent)
    if out.is_dir():
        out /= "losses.png"
    if not out.suffix:
        out = out.with_name(f"{out.name}.png")
    rows = read_log(newest)
    config = json.loads(newest.with_name("config.json").read_text())
    with matplotlib.style.context("default"):  # whatever the user's settings are
        plot(rows, config, newest.parent).savefig(out, dpi=100)
    print(f"Plotted {newest} to {out}")


if __name__ == "__main__":
    main()
