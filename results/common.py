"""What the experiments beside this file share: networks, training, seeds in parallel, tables."""

import argparse
import csv
import functools
import multiprocessing
import os
import signal
import statistics
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from matplotlib import style
from torch import nn
from torchvision.datasets import MNIST

sys.path.insert(0, str(Path(__file__).parents[1]))

import train_fa_vs_bp_linear_model as script

EPOCH = 1875  # steps: 60,000 images in mini-batches of 32
TENTH = "--init-scale=0.1"


def set_up(data, seed, *options, rules=("fa", "bp"), relu=False):
    """Return matched networks of some rules, as the script makes them, and its arguments."""
    args = script.make_parser().parse_args(options)
    networks = script.matched_networks(data, args, seed)
    networks = nn.ModuleDict({rule: networks[rule] for rule in rules})
    for rule, network in networks.items():
        kinds = [type(layer) for layer in network]
        assert kinds == [nn.Linear, script.RULES[rule]], "experiments are about two linear layers"
    if relu:
        for rule, (hidden, readout) in networks.items():
            layers = OrderedDict(hidden=hidden, relu=nn.ReLU(), readout=readout)
            networks[rule] = nn.Sequential(layers)
    return networks, args


def train_for(networks, data, args, seed, steps, measure, every=None):
    """Train for so many steps; return {step: row} with what `measure(networks, data)` returns.

    There is a row each `every` steps (by default only at the last), and at the powers of two below.
    The optimizer is a new one, and the mini-batches are the seed's from the first on.
    """
    args.log_every, args.epochs = every or steps, steps  # more epochs than are needed
    assert steps % args.log_every == 0, "there would be no row to stop at"
    rows = {}
    optimizer = script.make_optimizer(networks, args)
    for row in script.train(networks, optimizer, data, args, seed, measure):
        rows[row["step"]] = row
        if row["step"] == steps:
            return rows


@functools.cache
def load(data_dir):
    """Return MNIST; never download it."""
    torch.set_num_threads(1)
    try:
        MNIST(data_dir), MNIST(data_dir, train=False)
    except RuntimeError:
        sys.exit(f"no MNIST in {data_dir}: python train_fa_vs_bp_linear_model.py gets it, to data")
    return script.load_data("mnist", data_dir)


def lines_of(task):
    """Return the CSV's lines of one table and seed."""
    table, function, data_dir, seed, *prepared = task
    lines = [
        {"table": table, "row": row, "column": column, "seed": seed, "value": f"{value:.5g}"}
        for row, columns in function(load(data_dir), seed, *prepared).items()
        for column, value in columns.items()
    ]
    print(f"{table}: seed {seed}", file=sys.stderr)
    return lines


def lines_from(pool, tasks):
    """Yield the lines of all tasks, as they end."""
    results = pool.imap_unordered(lines_of, tasks)
    while True:
        try:
            yield from results.next(timeout=1)  # a wait without end may miss a Ctrl-C
        except multiprocessing.TimeoutError:
            pass
        except StopIteration:
            return


def values_of(lines, **place):
    """Return the values of the lines that have, say, row="0"."""
    return [float(n["value"]) for n in lines if all(n[key] == place[key] for key in place)]


def mean_and_deviation(_row, _column, values):
    """Return "mean±sample standard deviation"; "" without values."""
    numbers = [statistics.fmean(values)] if values else []
    if len(values) > 1:
        numbers.append(statistics.stdev(values))
    return "±".join(f"{number:.{1 if abs(numbers[0]) >= 1 else 3}f}" for number in numbers)


def markdown(table, lines, cell):
    """Return a table in Markdown; in a cell stands cell(row, column, values over seeds).

    A column whose cells are None is left out: it is for the picture.
    """
    own = [line for line in lines if line["table"] == table]
    rows, columns = (list(dict.fromkeys(line[key] for line in own)) for key in ("row", "column"))
    # "128 steps" after "4 steps", and both before rows without a number
    rows.sort(key=lambda row: int(row.split()[0]) if row.split()[0].isdigit() else 10**9)
    columns = [column for column in columns if cell("", column, []) is not None]
    texts = [[table, *columns], ["---"] * (1 + len(columns))]
    for row in rows:
        cells = [cell(row, column, values_of(own, row=row, column=column)) for column in columns]
        texts.append([row, *cells])
    return "\n".join("|".join(text) for text in texts)


def save(file, lines, draw=None):
    """Write NAME.csv and, if draw(lines) returns a picture, NAME.png beside NAME.py."""
    with open(Path(file).with_suffix(".csv"), "w", newline="", encoding="utf-8") as csv_file:
        writer = csv.DictWriter(csv_file, lines[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    if draw:
        with style.context("default"):  # whatever the user's settings are
            draw(lines).savefig(Path(file).with_suffix(".png"), dpi=100)


def main(file, doc, tables, draw=None, prepare=None, arguments=None):
    """Run a script: tables is {name: (function, seeds, cell)}; draw(lines) returns its picture.

    function(data, seed) returns {row: {column: number}}; without a cell, it is for the picture
    alone. What prepare(data) returns, if it is given, is one more argument of each function.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("data_dir", type=os.path.expanduser, help="where MNIST is")
    most = max(seeds for _, seeds, _ in tables.values())
    note = "with fewer than the default, tables are printed and nothing is written"
    parser.add_argument("--seeds", type=script.in_range(int, 1, most), default=most, help=note)
    args = parser.parse_args(arguments)
    data = load(args.data_dir)  # an error now, not in each process
    handler = signal.getsignal(signal.SIGINT)
    try:
        prepared = [prepare(data)] if prepare else []
        tasks = [
            (name, function, args.data_dir, seed, *prepared)
            for name, (function, seeds, _) in tables.items()
            for seed in range(min(seeds, args.seeds))
        ]
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the processes leave it to this one
        with multiprocessing.Pool() as pool:  # left by an error or by Ctrl-C, it stops all at once
            signal.signal(signal.SIGINT, handler)
            lines = list(lines_from(pool, tasks))
    except KeyboardInterrupt:
        sys.exit("Stopped; nothing is written.")
    lines.sort(key=lambda line: (list(tables).index(line["table"]), line["seed"]))
    if args.seeds >= most:
        save(file, lines, draw)
    sys.stdout.reconfigure(errors="replace")  # a file's encoding may lack a character
    for name, (_, _, cell) in tables.items():
        if cell:
            print(f"\n{markdown(name, lines, cell)}")
