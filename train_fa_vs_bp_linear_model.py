"""Train matched linear networks by feedback alignment and backpropagation, on MNIST.

Three networks 784-20-10 without non-linearity start from the same weights and see the same
mini-batches. All that differs is how the hidden layer learns:

    fa       by the error sent back through a fixed random matrix B (feedback alignment)
    bp       by the error sent back through the transposed forward weights W (backpropagation)
    shallow  not at all: it is frozen, and only the read-out learns (the control)

Even a read-out trained to the end on 20 random features errs on 32 % of the test images, so a
network that errs far less has taught its hidden layer. How FA can, the angle shows: W turns
toward B.
"""

import argparse
import csv
import json
import math
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import MNIST
from torchvision.transforms.functional import center_crop

from fa_linear import FALinear

RULES = ["fa", "bp", "shallow"]
PIXELS, CLASSES = 28 * 28, 10
TRAIN_SIZE, TEST_SIZE = 60_000, 10_000  # MNIST's; the stand-in has as many
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081  # of MNIST's training images, scaled to [0, 1]
ANGLE_IMAGES = 1000  # for the mean angle: within a degree of all 10,000, at a tenth of the time


def make_network(rule: str, hidden: int) -> nn.Sequential:
    """Return a linear network 784-hidden-10 whose hidden layer learns by `rule`."""
    read_out = FALinear if rule == "fa" else nn.Linear
    network = nn.Sequential(nn.Linear(PIXELS, hidden), read_out(hidden, CLASSES))
    network[0].requires_grad_(rule != "shallow")
    return network


def matched_networks(rules: list[str], hidden: int, init_scale: float, seed: int) -> nn.ModuleDict:
    """Return {rule: network}, all with the same initial forward weights and biases.

    Weights are U(-s, s) with s = init_scale * sqrt(6 / fan_in), Kaiming-uniform times
    init_scale; biases are zero. The feedback keeps the full scale that `FALinear` gives it:
    from small weights, W is soon dominated by what it learned through B.
    """
    torch.manual_seed(seed)
    # Drawn whichever rules train, so that a seed means the same start for each of them.
    start = make_network("fa", hidden)
    for layer in start:
        bound = init_scale * math.sqrt(6 / layer.in_features)
        nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.zeros_(layer.bias)
    networks = nn.ModuleDict({rule: make_network(rule, hidden) for rule in rules})
    for network in networks.values():
        # Not strict: `start` has a feedback matrix, which only FA has a place for.
        network.load_state_dict(start.state_dict(), strict=False)
    return networks


def train(
    networks: nn.ModuleDict, digits: "Digits", options: argparse.Namespace, seed: int
) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Train all networks on the same mini-batches in the same order; yield the log's rows.

    A row is epoch (from 0), step within the epoch, and what `measure` returns for the mean
    losses over the mini-batches since the row before. The first row is that of step 0, before
    the first update, with the losses on the first mini-batch. The next come every
    `options.log_every` steps and at each epoch's last.
    """
    optimizer = torch.optim.SGD(
        networks.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.momentum > 0,  # torch refuses Nesterov without momentum
        weight_decay=options.weight_decay,
        fused=True,  # one pass over the weights instead of six
    )
    shuffle = torch.Generator().manual_seed(seed)
    for epoch in range(options.epochs):
        order = torch.randperm(len(digits.train_images), generator=shuffle)
        mini_batches = order.to(options.device).split(options.batch_size)
        losses = []  # since the row before: for each step a tensor (networks,)
        for step, mini_batch in enumerate(mini_batches, start=1):
            images, labels = digits.train_images[mini_batch], digits.train_labels[mini_batch]
            outputs = [network(images) for network in networks.values()]
            loss = torch.stack([F.cross_entropy(output, labels) for output in outputs])
            if epoch == 0 and step == 1:
                yield 0, 0, measure(networks, loss, digits)
            # No two networks share a weight, so the sum gives each just its own gradient.
            loss.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            if step % options.log_every == 0 or step == len(mini_batches):
                yield epoch, step, measure(networks, torch.stack(losses).mean(dim=0), digits)
                losses.clear()


@torch.no_grad()
def measure(networks: nn.ModuleDict, losses: Tensor, digits: "Digits") -> dict[str, float]:
    """Return each network's loss and test error (in per cent), and FA's alignment angle.

    The losses are given, shape (networks,). What overflowed is nan.
    """
    measures = {f"{rule}_loss": loss for rule, loss in zip(networks, losses)}
    for rule, network in networks.items():
        outputs = F.linear(digits.test_images, *collapse(network))
        wrong = 100 * (outputs.argmax(dim=1) != digits.test_labels).float().mean()
        # The argmax of nan is an index like any other, and would count as an answer.
        measures[f"{rule}_error"] = torch.where(outputs.isfinite().all(), wrong, torch.nan)
        if rule == "fa":
            target = F.one_hot(digits.test_labels[:ANGLE_IMAGES], CLASSES)
            error = outputs[:ANGLE_IMAGES].softmax(dim=1) - target  # dL/dy of the cross-entropy
            measures["angle"] = alignment_angle(error, network[1].weight, network[1].feedback)
    values = torch.stack(list(measures.values()))
    values = values.where(values.isfinite(), torch.nan)
    return dict(zip(measures, values.tolist()))  # waits for the device, once


def collapse(network: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Return the one linear map that a linear network amounts to.

    x -> W (W0 x + b0) + b = (W W0) x + (W b0 + b), as weight (10, 784) and bias (10,): the
    test images then cost the same, however wide the hidden layer.
    """
    hidden, read_out = network
    return read_out.weight @ hidden.weight, read_out.weight @ hidden.bias + read_out.bias


def alignment_angle(error: Tensor, weight: Tensor, feedback: Tensor) -> Tensor:
    """Return the mean angle between FA's and BP's teaching signal, a scalar in degrees.

    The signals are what the hidden layer gets, B^T e under FA and W^T e under BP: 0 degrees
    for BP itself, about 90 for unrelated matrices (Lillicrap et al. 2016, Figs. 1 and 2). An
    example whose signal is zero has no angle and is left out; nan if none has one.

    Shapes: error (n, 10), one example a row; weight and feedback (10, hidden).
    """
    fa, bp = error @ feedback, error @ weight
    cosine = (fa * bp).sum(dim=1) / (fa.norm(dim=1) * bp.norm(dim=1))
    return cosine.clamp(-1, 1).acos().rad2deg().nanmean()  # rounding may leave [-1, 1]


class Digits(NamedTuple):
    """A data set on the device: images float32 (n, 784), normalised; labels int64 (n,)."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(dataset: str, data_dir: Path, device: torch.device) -> Digits:
    """Return MNIST, or the stand-in where `dataset` asks for or allows it.

    Raises:
        ArgumentError: MNIST is required and cannot be had, or `data_dir` cannot be used.
    """
    name, parts = "synthetic digits (not MNIST)", None
    if dataset != "synthetic":
        print(f"Looking for MNIST in {data_dir}, else downloading it ...", flush=True)
        try:
            name, parts = "MNIST", [load_mnist(data_dir, train) for train in (True, False)]
        except Exception as error:  # torchvision raises nearly anything on a damaged file
            reason = " ".join(str(error).split()) or type(error).__name__
            problem = f"no MNIST in {data_dir} ({reason}); if damaged, delete {data_dir / 'MNIST'}"
            unusable = isinstance(error, (FileExistsError, NotADirectoryError, PermissionError))
            if dataset == "mnist" or unusable:
                raise argparse.ArgumentError(None, f"argument --data-dir: {problem}") from error
            print(f"WARNING: {problem}", file=sys.stderr)
            print("WARNING: typeset digits stand in; no figure below is MNIST's", file=sys.stderr)
    tensors = []
    for images, labels in parts or [synthetic_digits(train) for train in (True, False)]:
        # Normalised once and kept on the device, where a mini-batch is then a look-up.
        images = images.to(device).flatten(start_dim=1).float().div_(255)
        tensors += [images.sub_(PIXEL_MEAN).div_(PIXEL_STD), labels.to(device)]
    return Digits(name, *tensors)


def load_mnist(data_dir: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Return MNIST's images uint8 (n, 28, 28) and labels (n,), downloaded if need be."""
    socket.setdefaulttimeout(10)  # seconds; a silent server would else hold the run forever
    mnist = MNIST(data_dir, train=train, download=True)
    size = TRAIN_SIZE if train else TEST_SIZE
    complete = mnist.data.shape == (size, 28, 28) and mnist.targets.shape == (size,)
    if not complete or mnist.targets.max() >= CLASSES:
        raise ValueError(f"not {size} images of 28 x 28 with labels from 0 to 9")
    return mnist.data, mnist.targets


def synthetic_digits(train: bool) -> tuple[Tensor, Tensor]:
    """Return a stand-in for what `load_mnist` returns that needs no file and no network.

    Digits typeset in 20 fonts that Matplotlib ships, each image under an affine map of its own:
    the same every time. With this much noise, networks err about as often as on MNIST.
    """
    glyphs = typeset_digits()
    random = torch.Generator().manual_seed(int(train))
    size = TRAIN_SIZE if train else TEST_SIZE
    labels = torch.randint(CLASSES, (size,), generator=random)
    fonts = torch.randint(len(glyphs), (size,), generator=random)
    maps = torch.eye(2, 3) + 0.09 * torch.randn(size, 2, 3, generator=random)
    images = torch.empty(size, 1, 28, 28, dtype=torch.uint8)
    for some in torch.arange(size).split(2000):  # bounds the memory
        grid = F.affine_grid(maps[some], images[some].shape, align_corners=False)
        drawn = F.grid_sample(glyphs[fonts[some], labels[some]], grid, align_corners=False)
        images[some] = drawn.round().byte()
    return images, labels


def typeset_digits() -> Tensor:
    """Return the ten digits in 20 fonts: grey levels, (20, 10, 1, 28, 28)."""
    # Not at the top of the file: training on MNIST needs no Matplotlib.
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    names = ["STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"]
    names += ["cmr10", "cmb10", "cmss10", "cmtt10"]  # Computer Modern
    for family, slant in ("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"):
        names += [f"DejaVu{family}{style}" for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")]
    glyphs = torch.zeros(len(names), CLASSES, 1, 28, 28)
    for row, name in zip(glyphs, names):
        font = FT2Font(str(Path(get_data_path(), "fonts", "ttf", f"{name}.ttf")))
        font.set_size(24, 72)  # pixels at 72 dots per inch: digits 18 to 20 high
        for digit in range(CLASSES):
            font.set_text(str(digit))
            font.draw_glyphs_to_bitmap()
            row[digit, 0] = center_crop(torch.from_numpy(font.get_image().copy()), [28, 28])
    return glyphs


def run(options: argparse.Namespace, digits: Digits, log: TextIO) -> None:
    """Train a matched set of networks for each seed; log and print each row when it comes."""
    steps_per_epoch = math.ceil(len(digits.train_images) / options.batch_size)
    config = vars(options) | {"dataset_used": digits.name, "steps_per_epoch": steps_per_epoch}
    config["torch"] = torch.__version__
    (options.out / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")

    columns = ["seed", "epoch", "step"]
    columns += [f"{rule}_{name}" for name in ("loss", "error") for rule in options.rules]
    columns += ["angle"] if "fa" in options.rules else []
    writer = csv.writer(log, lineterminator="\n")
    writer.writerow(columns)
    headings = [*columns, "time left"]
    print(f"Data: {digits.name}. Device: {options.device}. loss: the mean since the row before;")
    print("error: % of the test images; angle: from FA's to BP's teaching signal, in degrees\n")
    print("|".join(headings))
    print("|".join("-" * len(heading) for heading in headings))

    started, last_rows = time.monotonic(), []
    for seeds_done, seed in enumerate(options.seeds):
        networks = matched_networks(options.rules, options.hidden, options.init_scale, seed)
        for epoch, step, measures in train(networks.to(options.device), digits, options, seed):
            position, values = [seed, epoch, step], [measures[name] for name in columns[3:]]
            writer.writerow([*position, *(f"{value:.6g}" for value in values)])
            cells = [*map(str, position), *(f"{value:#.4g}" for value in values)]
            epochs_done = seeds_done * options.epochs + epoch + step / steps_per_epoch
            if epochs_done > 0:
                times_left = len(options.seeds) * options.epochs / epochs_done - 1
                seconds_left = (time.monotonic() - started) * times_left
                cells.append(str(timedelta(seconds=round(seconds_left))))
            print("|".join(c.rjust(len(h)) for c, h in zip(cells, headings)), flush=True)
        last_rows.append(values)
        if any(map(math.isnan, values)):
            print("WARNING: nan: the loss overflowed; try a smaller --lr", file=sys.stderr)
    if len(last_rows) > 1:
        print(f"\nLast rows, mean ± standard deviation over {len(last_rows)} seeds:")
        for column, values in zip(columns[3:], torch.tensor(last_rows).T):
            print(f"{column:13} {values.mean():#.4g} ± {values.std():.2g}")


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str):
        """Exit with status 2 and one line, without the usage that argparse prints."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(low: float, high: float):
    """Return an argparse type: a number from low to high, whole if they are."""

    def parse(text: str) -> float:
        value = type(low)(text)
        if not low <= value <= high:  # as nan is not
            raise argparse.ArgumentTypeError(f"{text!r} is not from {low} to {high}")
        return value

    parse.__name__ = type(low).__name__  # for argparse's own message where text is no number
    return parse


def working_device(text: str) -> torch.device:
    """Return the device of that name if it can be used here; an argparse type."""
    try:
        torch.zeros(1, device=text).item()
        return torch.device(text)
    except Exception as error:  # each device fails in its own way
        reason = str(error).splitlines()[0].rstrip(".")
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here ({reason})") from error


def make_parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = OneLineParser(description=__doc__.splitlines()[0], formatter_class=formatter)
    accelerator = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
    new_folder = datetime.now().strftime("runs/%Y-%m-%d_%H-%M-%S-%f")
    datasets = ["auto", "mnist", "synthetic"]
    add = parser.add_argument
    add("--rules", nargs="+", choices=RULES, default=RULES, help="which networks train")
    add("--epochs", type=number(1, 10_000), default=5, help="passes over the training images")
    add("--batch-size", type=number(1, TRAIN_SIZE), default=32, help="images in a mini-batch")
    add("--hidden", type=number(1, 100_000), default=20, help="hidden units")
    add("--lr", type=number(1e-9, 1e6), default=1e-3, help="learning rate of SGD")
    add("--momentum", type=number(0.0, 0.9999), default=0.9, help="Nesterov momentum; 0 for none")
    add("--weight-decay", type=number(0.0, 1.0), default=1e-3, help="weight decay (L2)")
    add("--init-scale", type=number(1e-6, 1e2), default=0.1, help="weights, x Kaiming-uniform")
    add("--log-every", type=number(1, TRAIN_SIZE), default=125, help="steps between two rows")
    add("--seeds", nargs="+", type=number(0, 2**32 - 1), default=[0], help="one matched set each")
    add("--dataset", choices=datasets, default="auto", help="auto: mnist, or else synthetic")
    add("--data-dir", type=Path, default="data", help="where MNIST is, or is downloaded to")
    add("--device", type=working_device, default=str(accelerator or "cpu"), help="cpu, cuda, ...")
    add("--out", type=Path, default=new_folder, help="folder for losses.csv and config.json")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison that the arguments ask for; return the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    options.rules = [rule for rule in RULES if rule in options.rules]
    options.seeds = list(dict.fromkeys(options.seeds))  # each once
    log_path, kept = options.out / "losses.csv", ""  # nothing kept until the log is open
    try:
        digits = load_digits(options.dataset, options.data_dir, options.device)
        options.out.mkdir(parents=True, exist_ok=True)
        # Line buffering hands each row to the system whole: a run that is killed keeps it.
        with open(log_path, "x", buffering=1, newline="") as log:
            kept = f" All rows so far are in {log_path}."
            run(options, digits, log)
    except argparse.ArgumentError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"\nInterrupted.{kept}", file=sys.stderr)
        return 130
    except OSError as error:
        if not kept:
            parser.error(f"argument --out: {error}")
        print(f"\nStopped: {error}.{kept}", file=sys.stderr)  # a full disk, say
        return 1
    plot = [sys.executable, str(Path(__file__).with_name("plot_losses.py")), str(options.out)]
    print(f"\nResults: {log_path}\nPlot:    {shlex.join(plot)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
