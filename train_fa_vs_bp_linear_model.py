"""Train matched linear networks by feedback alignment and backpropagation, on MNIST.

Three networks of 784 pixels, 20 hidden units and 10 outputs, without non-linearity, start from the
same weights and see the same mini-batches. All that differs is the message by which the error e at
the outputs teaches the hidden layer:

    fa       B^T e: e sent back through a fixed random matrix B (feedback alignment)
    bp       W^T e: e sent back through the weights W of the read-out (backpropagation)
    shallow  none: the hidden layer stays as it was drawn, and only the read-out learns

A random message can teach because W comes to resemble B. The log has two angles to see it by, that
between the messages B^T e and W^T e, and that between the matrices. Both start near 90 degrees and
fall; then FA's loss follows. With --freeze-read-out W cannot turn, and FA fails.
"""

import argparse
import json
import math
import socket
import statistics
import sys
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import MNIST

from fa_linear import FALinear

SOURCE = MNIST  # torchvision's FashionMNIST and KMNIST fit as well


class DataSet(NamedTuple):
    """Images, float32 (n, pixels) and normalised, and labels, int64 (n,), from 0 to classes - 1."""

    name: str
    classes: int
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: str) -> "DataSet":
        """Return the data set with its tensors on that device."""
        return DataSet(self.name, self.classes, *(tensor.to(device) for tensor in self[2:]))


# What is compared: the networks, and how they are matched.


def build_network(data: DataSet, hidden: int, upper: type[nn.Linear]) -> nn.Sequential:
    """Return a network pixels-hidden-classes.

    `upper` is the class of every linear layer above the first. It decides by which rule the layers
    below it learn, as that is what it sends down: the first layer sends nothing, and is always an
    nn.Linear.
    """
    pixels = data.train_images.shape[1]
    layers = {
        "hidden": nn.Linear(pixels, hidden),
        "read_out": upper(hidden, data.classes),
    }
    return nn.Sequential(OrderedDict(layers))


def matched_networks(data: DataSet, options: argparse.Namespace, seed: int) -> nn.ModuleDict:
    """Return {rule: network}; all networks start from the same weights.

    Weights and biases are PyTorch's own initial ones, times init_scale. FA's feedback B is drawn
    as the weight W of its read-out is, but independently, and is not scaled.
    """
    torch.manual_seed(seed)
    uppers = {"fa": FALinear, "bp": nn.Linear, "shallow": nn.Linear}
    networks = nn.ModuleDict()
    for rule, upper in uppers.items():
        networks[rule] = build_network(data, options.hidden, upper)
    start = dict(networks["fa"].named_parameters())
    for parameter in start.values():
        parameter.data.mul_(options.init_scale)
    for network in networks.values():
        # Buffers, such as B, are a network's own. Strict: it is an error if the rest does not fit.
        network.load_state_dict(start | dict(network.named_buffers()))
    networks["shallow"].requires_grad_(False)
    networks["shallow"].read_out.requires_grad_(True)
    if options.freeze_read_out:
        del networks["shallow"]  # nothing would learn in it
        for network in networks.values():
            network.read_out.requires_grad_(False)
    return networks


def make_optimizer(networks: nn.ModuleDict, options: argparse.Namespace) -> torch.optim.Optimizer:
    """Return one optimizer for all networks. What it does with a weight depends on no other one."""
    return torch.optim.SGD(
        networks.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.momentum > 0,  # torch refuses Nesterov without momentum
        weight_decay=options.weight_decay,
        fused=True,  # decay, momentum and step in one pass over the weights
    )


# The training loop, and what it measures.


def train(
    networks: nn.ModuleDict, data: DataSet, options: argparse.Namespace, seed: int
) -> Iterator[dict[str, float]]:
    """Train all networks on the same mini-batches in the same order; yield the log's rows.

    A generator, so that each row can be logged as soon as it is there, and a run that is killed
    keeps what it had.
    """
    optimizer = make_optimizer(networks, options)
    shuffle = torch.Generator().manual_seed(seed)
    losses_since_row = []
    for epoch in range(options.epochs):
        order = torch.randperm(len(data.train_images), generator=shuffle)
        # Indices of images. With all images on the device, taking those of a mini-batch is one
        # look-up; a DataLoader would fetch them one by one, and take most of the time.
        batches = order.to(options.device).split(options.batch_size)
        if epoch == 0:
            first_losses = batch_losses(networks, data, batches[0]).detach()
            yield make_row(0, 0, [first_losses], networks, data)
        for step, batch in enumerate(batches, start=1):
            losses = batch_losses(networks, data, batch)
            # No two networks share a weight, so the sum gives each just its own gradient.
            losses.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            losses_since_row.append(losses.detach())
            if row_is_due(epoch, step, len(batches), options.log_every):
                yield make_row(epoch, step, losses_since_row, networks, data)
                losses_since_row.clear()


def batch_losses(networks: nn.ModuleDict, data: DataSet, batch: Tensor) -> Tensor:
    """Return each network's mean cross-entropy over a mini-batch, shape (networks,)."""
    images, labels = data.train_images[batch], data.train_labels[batch]
    losses = [F.cross_entropy(network(images), labels) for network in networks.values()]
    return torch.stack(losses)


def row_is_due(epoch: int, step: int, last_step: int, log_every: int) -> bool:
    """Tell whether the log gets a row after this step of the epoch.

    It does every `log_every` steps and at each epoch's last. In the first epoch, as alignment
    begins early, it does at powers of two below `log_every`, too.
    """
    if step % log_every == 0 or step == last_step:
        return True
    is_power_of_two = step.bit_count() == 1  # in binary: a one, and zeros
    return epoch == 0 and step < log_every and is_power_of_two


def make_row(
    epoch: int, step: int, losses: list[Tensor], networks: nn.ModuleDict, data: DataSet
) -> dict[str, float]:
    """Return a row of the log, {column: value}: epoch (from 0), step in it, losses, measures.

    A training loss is a mean over the mini-batches since the row before, each taken before its own
    update; at step 0 it is that of the first mini-batch. `losses` has a tensor (networks,) of each.
    """
    means = torch.stack(losses).mean(dim=0)
    columns = {f"{rule}_loss": loss for rule, loss in zip(networks, means, strict=True)}
    columns |= measure(networks, data)
    return {"epoch": epoch, "step": step} | {name: float(v) for name, v in columns.items()}


@torch.no_grad()
def measure(networks: nn.ModuleDict, data: DataSet) -> dict[str, Tensor]:
    """Return {column: value}: each network's test error, and FA's two angles.

    A test error is the percentage of the test images that a network misclassifies. The angles are
    in degrees: `message_angle` between B^T e and W^T e, both in FA's network, a mean over test
    images (as in Lillicrap et al. 2016, Figs. 1 and 2); `weight_angle` between B and W, each taken
    as one long vector.
    """
    columns = {}
    outputs = {rule: network(data.test_images) for rule, network in networks.items()}
    for rule in networks:
        wrong = outputs[rule].argmax(dim=1) != data.test_labels
        columns[f"{rule}_error"] = 100 * wrong.float().mean()
    W, B = networks["fa"].read_out.weight, networks["fa"].read_out.feedback
    # e is the gradient of the cross-entropy with respect to the outputs, one image a row.
    e = outputs["fa"].softmax(dim=1) - F.one_hot(data.test_labels, data.classes)
    # Where e is 0 there is no message, so no angle: the mean leaves it out.
    columns["message_angle"] = angle(e @ B, e @ W).nanmean()
    columns["weight_angle"] = angle(B.flatten(), W.flatten())
    return columns


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles in degrees, shape (...), between vectors (..., n); nan where one is 0."""
    # F.cosine_similarity would say 0 of a vector that is 0: a false 90 degrees.
    cosine = (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    return cosine.clamp(-1, 1).acos().rad2deg()  # rounding may leave [-1, 1]


# The data.


def load_data(choice: str, data_dir: Path) -> DataSet:
    """Return what SOURCE names, or random patterns: for "synthetic", and offline for "auto".

    Patterns stand in only where no file of the data set is on disk, and it cannot be downloaded.
    Raises OSError where files are missing, or there, but not to be read.
    """
    if choice == "synthetic":
        return random_patterns()
    folder = data_dir / SOURCE.__name__ / "raw"
    if missing_files(folder):
        print(f"Downloading {SOURCE.__name__} to {folder} ...", flush=True)
        try:
            download(data_dir)
        # torchvision raises RuntimeError where no mirror answers, or a file is not as it should be.
        except (RuntimeError, HTTPException, ConnectionError, TimeoutError) as failure:
            missing = missing_files(folder)
            if not missing:
                raise
            reason = " ".join(str(failure).split()) or type(failure).__name__
            problem = f"cannot download {SOURCE.__name__} ({reason}); "
            problem += f"missing in {folder}: {', '.join(missing)}"
            if choice != "auto" or any(folder.glob("*")):
                raise OSError(problem) from failure
            print(f"WARNING: {problem}", file=sys.stderr)
            print("WARNING: random patterns stand in", file=sys.stderr)
            return random_patterns()
    return read_data(data_dir)


def missing_files(folder: Path) -> list[str]:
    """Return the names of the data set's files that are not in its folder."""
    names = [compressed.removesuffix(".gz") for compressed, _checksum in SOURCE.resources]
    return [name for name in names if not (folder / name).is_file()]


def download(data_dir: Path) -> None:
    """Download the files that are missing, and unpack them."""
    socket.setdefaulttimeout(10)  # seconds; a silent server would else hold the run forever
    SOURCE(data_dir, download=True)


def read_data(data_dir: Path) -> DataSet:
    """Return the data set that lies on disk, normalised by its training images."""
    train_part, test_part = SOURCE(data_dir, train=True), SOURCE(data_dir, train=False)
    for part in train_part, test_part:
        if len(part.data) != len(part.targets):
            raise ValueError(f"{len(part.data)} images, but {len(part.targets)} labels")
    train_pixels = train_part.data.flatten(start_dim=1) / 255
    test_pixels = test_part.data.flatten(start_dim=1) / 255
    # Rounded, they are what is customary for MNIST: 0.1307 and 0.3081.
    mean = round(train_pixels.mean().item(), 4)
    deviation = round(train_pixels.std().item(), 4)
    return DataSet(
        name=SOURCE.__name__,
        classes=len(SOURCE.classes),
        train_images=(train_pixels - mean) / deviation,
        train_labels=train_part.targets,
        test_images=(test_pixels - mean) / deviation,
        test_labels=test_part.targets,
    )


def random_patterns(train_size: int = 60_000, test_size: int = 10_000) -> DataSet:
    """Return a stand-in for MNIST, the same each time: ten smooth patterns under smooth noise."""
    generator = torch.Generator().manual_seed(0)

    def smooth(n: int) -> Tensor:
        coarse = torch.randn(n, 1, 7, 7, generator=generator)
        fine = F.interpolate(coarse, size=(28, 28), mode="bicubic")
        return fine.flatten(start_dim=1)

    patterns = smooth(10)
    tensors = []
    for size in train_size, test_size:
        labels = torch.randint(10, (size,), generator=generator)
        images = patterns[labels] + 2.1 * smooth(size)  # 2.1 makes them about as hard as MNIST
        tensors += [images / images.std(), labels]
    return DataSet("random patterns (not MNIST)", 10, *tensors)


# The run: log, terminal, options.


def compare(data: DataSet, options: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Train a matched set of networks for each seed; yield the rows of all.

    When the first is trained, FA's B and W, W also as it started, go to `fa_read_out.npz`.
    """
    for seed in options.seeds:
        networks = matched_networks(data, options, seed).to(options.device)
        read_out = networks["fa"].read_out
        arrays = {"weight_at_start": as_array(read_out.weight)}
        for row in train(networks, data, options, seed):
            yield {"seed": seed} | row
        if seed == options.seeds[0]:
            arrays["weight_at_end"] = as_array(read_out.weight)
            arrays["feedback"] = as_array(read_out.feedback)
            np.savez(options.out / "fa_read_out.npz", **arrays)


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a copy of a tensor as it is now."""
    return tensor.detach().cpu().numpy().copy()


def record(row: dict[str, float], log: TextIO) -> None:
    """Write a row to the log and to the terminal."""
    print(*texts(row, ".6g"), sep=",", file=log, flush=True)
    cells = [text.rjust(len(name)) for name, text in zip(row, texts(row, "#.4g"), strict=True)]
    print(*cells, sep="|", flush=True)


def texts(row: dict[str, float], float_format: str) -> list[str]:
    """Return a row's values as texts, whole numbers with all their digits."""
    return [str(v) if isinstance(v, int) else format(v, float_format) for v in row.values()]


def print_summary(last_rows: list[dict[str, float]]) -> None:
    """Print each measure's mean and spread over the seeds."""
    print(f"\nLast rows, mean +- standard deviation over {len(last_rows)} seeds:")
    for name in last_rows[0]:
        if name in ("seed", "epoch", "step"):
            continue
        values = [row[name] for row in last_rows]
        print(f"{name:13} {statistics.fmean(values):#.4g} +- {statistics.stdev(values):.2g}")


def describe_network(network: nn.Module) -> str:
    """Return in words what the layers say of themselves: "Linear 784-20, FALinear 20-10"."""
    words = []
    for layer in network.children():
        text = " ".join(str(layer).split())
        if isinstance(layer, nn.Linear):
            text = f"{type(layer).__name__} {layer.in_features}-{layer.out_features}"
        parameters = list(layer.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            text += " (frozen)"
        words.append(text)
    return ", ".join(words)


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """Return in words what an optimizer says of itself: "SGD: lr 0.001, momentum 0.9"."""
    groups = []
    for group in optimizer.param_groups:
        settings = {name: value for name, value in group.items() if name != "params"}
        # 0, False and None turn a setting off.
        groups.append(", ".join(f"{name} {value}" for name, value in settings.items() if value))
    return f"{type(optimizer).__name__}: {'; '.join(groups)}"


def write_config(data: DataSet, options: argparse.Namespace, arguments: list[str]) -> None:
    """Write config.json: what was asked for, and what is trained, on what."""
    networks = matched_networks(data, options, options.seeds[0])
    config = vars(options) | {
        "arguments": arguments,
        "trained_on": data.name,
        "networks": {rule: describe_network(network) for rule, network in networks.items()},
        "optimizer": describe_optimizer(make_optimizer(networks, options)),
        "torch": torch.__version__,
    }
    text = json.dumps(config, indent=2, default=str)
    (options.out / "config.json").write_text(text + "\n", encoding="utf-8")


def count(text: str) -> int:
    """Return a whole number from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def amount(text: str) -> float:
    """Return a number from 0, for argparse."""
    value = float(text)
    if not value >= 0:  # as nan is not
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def path(text: str) -> Path:
    """Return a path, in which ~ is the home directory, for argparse."""
    return Path(text).expanduser()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options, each with its default."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument_group("networks").add_argument
    add("--hidden", type=count, default=20, help="hidden units; with 1000, shallow does as well")
    add("--init-scale", type=amount, default=1.0, help="multiplies the initial weights, but not B")
    frozen = "never train W and b of the read-out, so that W cannot come to resemble B"
    add("--freeze-read-out", action="store_true", help=frozen)

    # Momentum, weight decay and mini-batch are those of L0SG/feedback-alignment-pytorch.
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=count, default=5, help="passes over the training images")
    add("--batch-size", type=count, default=32, help="images in a mini-batch")
    add("--lr", type=amount, default=1e-3, help="learning rate of SGD")
    add("--momentum", type=amount, default=0.9, help="Nesterov momentum; 0: none")
    add("--weight-decay", type=amount, default=1e-3, help="weight decay (L2); 0: none")
    add("--seeds", type=int, default=[0], nargs="+", help="one matched set of networks each")

    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    )
    new_folder = datetime.now().strftime("runs/%Y-%m-%d_%H-%M-%S-%f")
    choices = ["auto", SOURCE.__name__.lower(), "synthetic"]
    add = parser.add_argument_group("data, device and log").add_argument
    add("--dataset", default="auto", choices=choices, help="auto: synthetic only if offline")
    add("--data-dir", type=path, default="data", help="where it is, or is downloaded to")
    add("--device", default=str(accelerator), help="cpu, cuda, ...")
    add("--threads", type=count, default=1, help="of the CPU; with 20 hidden units 1 is best")
    add("--log-every", type=count, default=125, help="steps between rows; 125: 15 rows an epoch")
    add("--out", type=path, default=new_folder, help="new folder for what a run writes")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison that the arguments ask for; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    options = parser.parse_args(arguments)
    options.seeds = list(dict.fromkeys(options.seeds))  # each once
    if options.out.exists():  # no run writes into another's
        parser.error(f"argument --out: {options.out} is there already")
    try:
        torch.zeros(1, device=options.device).item()
    except (RuntimeError, AssertionError) as problem:  # no such device
        parser.error(f"argument --device: {str(problem).partition(chr(10))[0]}")
    torch.set_num_threads(options.threads)
    try:
        data = load_data(options.dataset, options.data_dir).to(options.device)
        options.out.mkdir(parents=True)
    except OSError as problem:
        parser.error(str(problem))
    write_config(data, options, arguments)
    steps = math.ceil(len(data.train_images) / options.batch_size)
    print(f"Data: {data.name}. Device: {options.device}. An epoch has {steps} steps.")
    print("Losses: means since the row before. Errors: % of the test images. Angles: degrees.\n")
    last_rows = {}
    with open(options.out / "losses.csv", "w", encoding="utf-8") as log:
        try:
            for row in compare(data, options):
                if not last_rows:
                    print(*row, sep=",", file=log)
                    print(*row, sep="|")
                record(row, log)
                last_rows[row["seed"]] = row
        except KeyboardInterrupt:
            print(f"\nInterrupted. All rows so far are in {log.name}.", file=sys.stderr)
            return 130
    if len(last_rows) > 1:
        print_summary(list(last_rows.values()))
    print(f"\nResults: {log.name}\nTo plot them, run plot_losses.py.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
