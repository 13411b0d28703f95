"""What the experiments beside this file share: networks, training, seeds in parallel, tables."""

import argparse
import csv
import functools
import signal
import statistics
import sys
from multiprocessing import Pool
from pathlib import Path

from torch import nn, set_num_threads

sys.path.insert(0, f"{Path(__file__).parents[1]}")
import train_fa_vs_bp_linear_model as script

EPOCH = 1875  # steps: 60,000 images in mini-batches of 32


def set_up(data, seed, *options, rules=("fa", "bp"), relu=False):
    """Return matched networks of some rules, as the script makes them, and its arguments."""
    args = script.make_parser().parse_args(options)
    networks = script.matched_networks(data, args, seed)
    for rule, layers in networks.items():
        assert [*map(type, layers)] == [nn.Linear, script.RULES[rule]], "not two linear layers"
        if relu:
            layers.hidden.register_forward_hook(lambda _layer, _images, h: h.relu())
    return nn.ModuleDict({rule: networks[rule] for rule in rules}), args


def train_for(networks, data, args, seed, steps, measure=lambda *_: {}, every=None):
    """Train for `steps`, anew from the seed's first mini-batch; return rows as {step: row}."""
    args.log_every, args.epochs = every or steps, steps  # more epochs than are needed
    assert steps % args.log_every == 0, "there would be no row to stop at"
    optimizer = script.make_optimizer(networks, args)
    rows = {}  # one at 0, at the powers of two below `every`, and at each `every`
    for row in script.train(networks, optimizer, data, args, seed, measure):
        rows[row["step"]] = row
        if row["step"] == steps:
            return rows


@functools.cache
def load(data_dir):
    """Return MNIST. (From now on the process uses one thread.)"""
    set_num_threads(1)
    if len(list(Path(data_dir).glob("MNIST/raw/*-ubyte"))) < 4:  # load_data would download it
        sys.exit(f"no MNIST in {data_dir}: python train_fa_vs_bp_linear_model.py gets it, to data")
    return script.load_data("mnist", data_dir)


def lines_of(task):
    """Return the CSV's lines of one table, whose function yields row, {column: number}."""
    table, function, data_dir, seed = task
    lines = []
    for row, columns in function(load(data_dir), seed):
        for column, value in columns.items():
            lines.append((table, f"{row}", f"{column}", seed, f"{value:.5g}"))
    print(f"{table}: seed {seed}", file=sys.stderr)
    return lines


def gather(lines):
    """Return {table: {row: {column: values over seeds}}}."""
    tables = {}
    for table, row, column, _seed, value in lines:
        tables.setdefault(table, {}).setdefault(row, {}).setdefault(column, []).append(float(value))
    return tables


def mean_and_deviation(_row, _column, values):
    """Return "mean±sample standard deviation"; of one value, itself."""
    numbers = [f(values) for f in (statistics.fmean, statistics.stdev)[: len(values)]]
    return "±".join(f"{number:.{1 if abs(numbers[0]) >= 1 else 3}f}" for number in numbers)


def markdown(table, rows, cell):
    """Return a table in Markdown, with cell(row, column, values over seeds) where there are any."""
    columns = list(dict.fromkeys(column for values in rows.values() for column in values))
    texts = [[table, *columns], ["---"] * (1 + len(columns))]
    for row, values in rows.items():
        texts.append([row, *(cell(row, c, values[c]) if c in values else "" for c in columns)])
    return "\n".join("|".join(text) for text in texts)


def main(file, doc, tables, draw=None):
    """Run a script; tables is {name: (function, seeds, cell)}, and draw(gathered) its picture."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("data_dir", help="where MNIST is")
    parser.add_argument("--seeds", type=script.in_range(int, 1), help="so many; writes nothing")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, lambda *_: sys.exit("Stopped; nothing is written."))
    load(args.data_dir)  # an error now, not in each process
    tasks = []
    for name, (function, seeds, _) in tables.items():
        tasks += [(name, function, args.data_dir, seed) for seed in range(seeds)[: args.seeds]]
    with Pool(None, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:  # left, it ends all
        lines = [line for part in pool.imap_unordered(lines_of, tasks) for line in part]
    lines.sort(key=lambda line: (list(tables).index(line[0]), line[3]))  # by table and seed
    gathered = gather(lines)
    if not args.seeds:
        with open(Path(file).with_suffix(".csv"), "w", newline="", encoding="utf-8") as csv_file:
            writer = csv.writer(csv_file, lineterminator="\n")
            writer.writerows([("table", "row", "column", "seed", "value"), *lines])
        if draw:
            draw(gathered).savefig(Path(file).with_suffix(".png"), dpi=100)
    sys.stdout.reconfigure(errors="replace")  # a file's encoding may lack a character
    for name, (_, _, cell) in tables.items():
        if cell:
            print(f"\n{markdown(name, gathered[name], cell)}")
