"""Let B spell a word: does W come to spell it, too?

    python results/word.py DATA_DIR                writes word.csv and word.png beside this file
    python results/word.py DATA_DIR B W            two words of yours: writes B-W.png where you are

20 seconds. There are 400 hidden units, laid out as 20 x 20 pixels, so that a row of B or W is a
picture: a letter for each digit. W starts as another word, as large as B; V starts a tenth as large
as usual, so that it holds little else. Then FA and BP train for one epoch (seed 0). Each word has
ten different letters, as a B with equal rows would not do. The third row of the picture is what has
been written: what the hidden units of a digit's test images have gained in 64 steps, less the mean
of that over the ten digits.
"""

import argparse
import functools
import signal
import string
import sys
from pathlib import Path

import numpy as np
import torch
from common import EPOCH, load, set_up, train_for
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.nn import functional as F

SIZE = 20
WORDS = "DUPLICATES", "BACKGROUND"  # of B, and of W at the start


@functools.cache
def letter(text):
    """Return a letter as a row of SIZE x SIZE numbers with a mean of 0."""
    figure = Figure(figsize=(1, 1), dpi=SIZE)
    place = {"ha": "center", "va": "baseline", "fontsize": 83, "weight": "bold"}  # fills the frame
    figure.text(0.5, 0.08, text, **place)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    ink = 255 - torch.tensor(np.array(canvas.buffer_rgba()))[:, :, 0].flatten().float()
    return ink - ink.mean()


def spell(word, like):
    """Return a matrix with a letter in each row, its entries as large as another's."""
    rows = torch.stack([letter(text) for text in word])
    return rows * like.std() / rows.std()


def read(matrix):
    """Return the word that is nearest to a matrix, and its rows' cosines: the mean and the least."""
    alphabet = torch.stack([letter(text) for text in string.ascii_uppercase])
    cosines, nearest = (F.normalize(matrix) @ F.normalize(alphabet).T).max(dim=1)
    word = "".join(string.ascii_uppercase[i] for i in nearest)
    return word, f"{cosines.mean():.2f}", f"{cosines.min():.2f}"


def train(data, word, start, steps):
    """Return B, W at the start, what hidden units have gained, W after FA and after BP."""
    networks, args = set_up(data, 0, f"--hidden={SIZE**2}", "--init-scale=0.1")
    B = networks["fa"].readout.feedback = spell(word, networks["fa"].readout.feedback)
    for network in networks.values():
        network.readout.weight.data = spell(start, B)

    def means(networks, data):
        """Return the mean of FA's hidden units for each digit, less the mean of the ten."""
        with torch.no_grad():
            h = networks["fa"].hidden(data.test_images)
        of_digits = torch.stack([h[data.test_labels == digit].mean(dim=0) for digit in range(10)])
        return {"means": of_digits - of_digits.mean(dim=0)}

    rows = train_for(networks, data, args, 0, steps, means)  # one at 64, a power of two
    return {
        "B": B,
        "start": spell(start, B),
        "gained": rows[64]["means"] - rows[0]["means"],
        "FA": networks["fa"].readout.weight.detach(),
        "BP": networks["bp"].readout.weight.detach(),
    }


def draw(matrices):
    """Return the picture: a row for each matrix, a column for each digit."""
    labels = ["B, fixed", "W at the start", "gained by hidden\nunits in 64 steps"]
    labels += ["W after an\nepoch of FA", "W after an\nepoch of BP"]
    figure = Figure(figsize=(10, 5), layout="constrained")
    panels = figure.subplots(5, 10)
    for row, label, matrix in zip(panels, labels, matrices.values(), strict=True):
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for panel, numbers in zip(row, matrix, strict=True):
            most = 0.9 * numbers.abs().max().item()  # grey is 0
            panel.imshow(numbers.view(SIZE, SIZE).numpy(), cmap="gray", vmin=-most, vmax=most)
            panel.set(xticks=[], yticks=[])
    for digit, panel in enumerate(panels[0]):
        panel.set_title(digit)
    return figure


def ten_letters(text):
    """Return a word in capitals, for argparse."""
    word = text.upper()
    if len(word) != 10 or len(set(word)) != 10 or not set(word) <= {*string.ascii_uppercase}:
        raise argparse.ArgumentTypeError(f"{text} has not ten different letters from A to Z")
    return word


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data_dir", help="where MNIST is")
    parser.add_argument("B", type=ten_letters, nargs="?", default=WORDS[0], help="what B spells")
    parser.add_argument("W", type=ten_letters, nargs="?", default=WORDS[1], help="W's start")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, lambda *_: sys.exit("Stopped; nothing is written."))
    data = load(args.data_dir)
    print("Training for an epoch: 20 seconds.", file=sys.stderr)
    matrices = train(data, args.B, args.W, EPOCH)
    rows = [(row, *read(matrices[row])) for row in ("start", "FA", "BP")]
    picture = Path(f"{args.B}-{args.W}.png")
    if (args.B, args.W) == WORDS:
        picture = Path(__file__).with_suffix(".png")
        lines = ["table,row,reads,mean cosine,least", *(",".join(["W", *row]) for row in rows)]
        picture.with_suffix(".csv").write_text("\n".join([*lines, ""]), newline="\n")
    draw(matrices).savefig(picture, dpi=100)
    print(f"Written: {picture}\n\nW|reads|mean cosine|least\n---|---|---|---")
    print("\n".join("|".join(row) for row in rows))


if __name__ == "__main__":
    main()
