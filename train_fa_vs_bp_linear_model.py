"""Train matched linear networks by feedback alignment and backpropagation, on MNIST.

Three networks of 784 pixels, 20 hidden units and 10 outputs start from the same weights and see the
same mini-batches. They are linear, the simplest in which an error has to be sent back through
weights. The layer from the hidden units to the outputs is called the read-out. All that differs is
the message by which the error e at the outputs teaches the hidden layer:

    fa       B^T e: e sent back through a fixed random matrix B (feedback alignment)
    bp       W^T e: e sent back through the weights W of the read-out (backpropagation)
    shallow  none: the hidden layer stays as it was drawn, and only the read-out learns

A random message can teach because W comes to resemble B (README.md says why). The log has two
angles to see it by, that between the messages B^T e and W^T e, and that between the matrices. Both
start near 90 degrees, as between unrelated vectors, and fall. Until they do, FA's loss falls no
faster than that of shallow. With --freeze-read-out W cannot turn, and FA fails.
"""

import argparse
import json
import math
import socket
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
        name, classes, *tensors = self
        return DataSet(name, classes, *(tensor.to(device) for tensor in tensors))


# What is compared: the networks, and how they are matched.


def build_network(data: DataSet, hidden: int, upper: type[nn.Linear]) -> nn.Sequential:
    """Return a network pixels-hidden-classes.

    The hidden layer learns from what the read-out sends down to it. So the type of the read-out,
    `upper`, makes the rule: nn.Linear sends down BP's message, FALinear FA's. The hidden layer has
    none below to teach, and is always an nn.Linear. (If you add layers between the two, make them
    of the type `upper`, as they teach those below.)
    """
    pixels = data.train_images.shape[1]
    layers = {  # named, so that other code can say network.read_out
        "hidden": nn.Linear(pixels, hidden),
        "read_out": upper(hidden, data.classes),
    }
    return nn.Sequential(OrderedDict(layers))


def matched_networks(data: DataSet, options: argparse.Namespace, seed: int) -> nn.ModuleDict:
    """Return {rule: network}; all networks start from the same weights.

    Weights and biases are PyTorch's own initial ones, times init_scale. (With a small one they start
    near zero, as in Lillicrap et al.) FA's feedback B is drawn as the weight W of its read-out is,
    but independently. It is not scaled, as a small B would send small messages.
    """
    torch.manual_seed(seed)
    types = {"fa": FALinear, "bp": nn.Linear, "shallow": nn.Linear}
    networks = nn.ModuleDict()
    for rule, upper in types.items():
        networks[rule] = build_network(data, options.hidden, upper)
    # The weights of one network are scaled, and then given to all.
    fa = networks["fa"]
    with torch.no_grad():
        for parameter in fa.parameters():
            parameter.mul_(options.init_scale)
    for network in networks.values():  # FA's own as well, which changes nothing
        copy_weights(fa, network)
    networks["shallow"].requires_grad_(False)
    networks["shallow"].read_out.requires_grad_(True)
    if options.freeze_read_out:
        del networks["shallow"]  # nothing would learn in it
        for network in networks.values():
            network.read_out.requires_grad_(False)
    return networks


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Give a network the weights and biases of another; its buffers, such as B, stay its own.

    Raises RuntimeError if the two do not have the same, by name and shape.
    """
    # load_state_dict asks for each weight and each buffer of the target. So it gets the weights of
    # the source, and the buffers that the target has already. (With strict=False it would not ask
    # for buffers, but would not notice a missing weight, either.)
    weights = dict(source.named_parameters())
    own_buffers = dict(target.named_buffers())
    target.load_state_dict({**weights, **own_buffers})


def make_optimizer(networks: nn.ModuleDict, options: argparse.Namespace) -> torch.optim.Optimizer:
    """Return one optimizer for all networks.

    SGD treats each weight by itself, in momentum and weight decay, too, so that one serves all. A
    frozen weight has no gradient, and SGD passes it over, weight decay included.
    """
    return torch.optim.SGD(
        networks.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.momentum > 0,  # torch refuses Nesterov without momentum
        weight_decay=options.weight_decay,
        fused=True,  # the same in one pass over the weights, also on the CPU: faster
    )


# The training loop, and what it measures.


def train(
    networks: nn.ModuleDict, data: DataSet, options: argparse.Namespace, seed: int
) -> Iterator[dict[str, float]]:
    """Train all networks on the same mini-batches in the same order; yield the log's rows.

    Rows are yielded one by one, so that each can be logged at once, and a run that is killed keeps
    what it had. (As in any generator, nothing runs until the caller asks for the next row.)
    """
    optimizer = make_optimizer(networks, options)
    shuffle = torch.Generator().manual_seed(seed)
    losses_since_row = []
    for epoch in range(options.epochs):
        order = torch.randperm(len(data.train_images), generator=shuffle)
        # `batches` holds indices of images. As all images are on the device, to take those of a
        # mini-batch is one look-up. A DataLoader would fetch them one by one, which is slow.
        batches = order.to(options.device).split(options.batch_size)
        if epoch == 0:
            # Row 0 shows the start, before any update. Its losses are those of step 1.
            losses = batch_losses(networks, data, batches[0])
            yield make_row(0, 0, [losses.detach()], networks, data)
        for step, batch in enumerate(batches, start=1):
            losses = batch_losses(networks, data, batch)
            # No two networks share a weight, so the sum gives each just its own gradient.
            losses.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            losses_since_row.append(losses.detach())
            if row_is_due(epoch, step, len(batches), options.log_every):
                yield make_row(epoch, step, losses_since_row, networks, data)
                losses_since_row = []


def batch_losses(networks: nn.ModuleDict, data: DataSet, batch: Tensor) -> Tensor:
    """Return each network's mean cross-entropy over a mini-batch, shape (networks,)."""
    images, labels = data.train_images[batch], data.train_labels[batch]
    losses = [F.cross_entropy(network(images), labels) for network in networks.values()]
    return torch.stack(losses)


def row_is_due(epoch: int, step: int, last_step: int, log_every: int) -> bool:
    """Tell whether the log gets a row after this step of the epoch.

    A row is due every `log_every` steps, and at the end of each epoch. As alignment begins early,
    the first epoch has more: at steps 1, 2, 4, 8 and so on, until `log_every`.
    """
    if step % log_every == 0 or step == last_step:
        return True
    is_power_of_two = step.bit_count() == 1  # in binary: a one, and zeros
    return epoch == 0 and step < log_every and is_power_of_two


def make_row(
    epoch: int, step: int, losses: list[Tensor], networks: nn.ModuleDict, data: DataSet
) -> dict[str, float]:
    """Return a row of the log, {column: value}: epoch (from 0), step in it, losses, measures.

    `losses` is a list with one tensor, of shape (networks,), for each mini-batch since the last
    row. The row has each network's mean over these mini-batches.
    """
    row = {"epoch": epoch, "step": step}
    means = torch.stack(losses).mean(dim=0)
    for rule, mean in zip(networks.keys(), means, strict=True):
        row[f"{rule}_loss"] = float(mean)
    measures = {name: float(value) for name, value in measure(networks, data).items()}
    return dict(**row, **measures)  # Python refuses a name that is in both


@torch.no_grad()
def measure(networks: nn.ModuleDict, data: DataSet) -> dict[str, Tensor]:
    """Return {column: value}: each network's test error, and two angles at FA's read-out.

    A test error is the percentage of the test images that a network misclassifies. The angles are
    in degrees: `message_angle` between what the read-out sends down, B^T e, and W^T e, a mean over
    test images (as in Lillicrap et al. 2016, Figs. 1 and 2); `weight_angle` between B and W, each
    taken as one long vector.
    """
    networks.eval()  # for layers that you may add, such as dropout; no effect on linear ones
    columns = {}
    outputs = {rule: network(data.test_images) for rule, network in networks.items()}
    for rule in networks:
        wrong = outputs[rule].argmax(dim=1) != data.test_labels
        columns[f"{rule}_error"] = 100 * wrong.float().mean()
    W, B = networks["fa"].read_out.weight, networks["fa"].read_out.feedback
    # Each image has its own e, a row: the gradient of its cross-entropy with respect to its
    # outputs, which is softmax minus one-hot label. The message B^T e of all images reads e @ B, as
    # in FALinearFunction.backward.
    e = outputs["fa"].softmax(dim=1) - F.one_hot(data.test_labels, data.classes)
    # An e may be rounded to 0. Then there is no message, the angle is nan, and nanmean passes it by.
    columns["message_angle"] = angle(e @ B, e @ W).nanmean()
    columns["weight_angle"] = angle(B.flatten(), W.flatten())
    networks.train()
    return columns


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles in degrees, shape (...), between vectors (..., n); nan where one is 0."""
    # F.cosine_similarity is 0 where a vector is 0, which would be a false 90 degrees.
    cosine = (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    cosine = cosine.clamp(-1, 1)  # rounding may take it beyond; nan stays nan
    return cosine.acos().rad2deg()


# The data.


def load_data(choice: str, data_dir: Path) -> DataSet:
    """Return a data set.

    Choices:
        "synthetic": random patterns.
        "auto": SOURCE, read from disk, and downloaded if files are missing. If the download fails
            and no file is there, random patterns stand in. (If there is one, or a part of one, the
            failed download is an error: whoever has it expects the real data.)
        The name of SOURCE, such as "mnist": the same, but nothing stands in.

    Raises OSError where files are missing, or the system refuses to read or write them.
    """
    if choice == "synthetic":
        return random_patterns()
    if missing_files(data_dir):
        try:
            download(data_dir)
        except FailedDownload as problem:
            something_is_there = any(raw_folder(data_dir).glob("*"))
            if choice != "auto" or something_is_there:
                raise
            print(f"WARNING: {problem}", file=sys.stderr)
            print("WARNING: random patterns stand in", file=sys.stderr)
            return random_patterns()
    return read_data(data_dir)


def raw_folder(data_dir: Path) -> Path:
    """Return the folder in which torchvision keeps the data set's files."""
    return data_dir / SOURCE.__name__ / "raw"


def missing_files(data_dir: Path) -> list[str]:
    """Return the names of the data set's files that are not on disk."""
    # SOURCE.resources are pairs of a compressed file's name and its checksum.
    names = [compressed.removesuffix(".gz") for compressed, _checksum in SOURCE.resources]
    return [name for name in names if not (raw_folder(data_dir) / name).is_file()]


class FailedDownload(OSError):
    """No mirror has answered, or what came is cut or not the file."""


def download(data_dir: Path) -> None:
    """Download the data set's files, and unpack them; raise FailedDownload if that fails."""
    folder = raw_folder(data_dir)
    print(f"Downloading {SOURCE.__name__} to {folder} ...", flush=True)
    socket.setdefaulttimeout(10)  # seconds; a silent server would else hold the run forever
    # SOURCE(data_dir, download=True) would also read the files, and an error in reading would look
    # like a failed download. So the object is made without its __init__, and given by hand what its
    # `download` uses: `root`.
    source = SOURCE.__new__(SOURCE)
    source.root = data_dir
    # When a download fails, torchvision raises RuntimeError, but it lets three other errors through,
    # of connections that break. An error of the disk, such as PermissionError, is none of these.
    failures = RuntimeError, HTTPException, ConnectionError, TimeoutError
    try:
        source.download()
    except failures as failure:
        reason = " ".join(str(failure).split()) or type(failure).__name__  # in one line
        missing = ", ".join(missing_files(data_dir))
        raise FailedDownload(
            f"cannot download {SOURCE.__name__} ({reason}); missing in {folder}: {missing}"
        ) from failure


def read_data(data_dir: Path) -> DataSet:
    """Return the data set that lies on disk, normalised by its training images."""
    train_part, test_part = SOURCE(data_dir, train=True), SOURCE(data_dir, train=False)
    train_pixels = train_part.data.flatten(start_dim=1) / 255
    test_pixels = test_part.data.flatten(start_dim=1) / 255
    # For MNIST, 0.1307 and 0.3081, as is customary: rounded.
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


def check_data(data: DataSet) -> None:
    """Raise ValueError for wrong shapes, labels out of range, or pixels that are not finite.

    MNIST is right, but data of one's own may be wrong without an error elsewhere. (`main` does not
    catch this ValueError, so that its traceback is seen.)
    """
    pairs = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    for images, labels in pairs:
        if images.ndim != 2 or labels.shape != images.shape[:1]:
            shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"{data.name}: images and labels of shapes {shapes}")
        if labels.min() < 0 or labels.max() >= data.classes:
            raise ValueError(f"{data.name}: labels are not from 0 to {data.classes - 1}")
        if not images.sum().isfinite():  # one pixel that is not is enough; faster than to ask all
            raise ValueError(f"{data.name}: pixels are not finite")


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
        tensors += [images / images.std(), labels]  # the images' mean is about 0 already
    return DataSet("random patterns (not MNIST)", 10, *tensors)


# The run: log, terminal, options.


def compare(data: DataSet, options: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Train a matched set of networks for each seed; yield the rows of all.

    For the first seed, save W and B of FA's read-out, before and after the training.
    """
    for seed in options.seeds:
        networks = matched_networks(data, options, seed).to(options.device)
        read_out = networks["fa"].read_out
        # FA never changes B, but a rule of yours may.
        weight_at_start, feedback_at_start = as_array(read_out.weight), as_array(read_out.feedback)
        for row in train(networks, data, options, seed):
            yield dict(seed=seed, **row)
        if seed == options.seeds[0]:
            np.savez(
                options.out / "fa_read_out.npz",
                weight_at_start=weight_at_start,
                weight_at_end=as_array(read_out.weight),
                feedback_at_start=feedback_at_start,
                feedback_at_end=as_array(read_out.feedback),
            )


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a copy of a tensor as it is now."""
    return tensor.detach().cpu().numpy().copy()


def record(row: dict[str, float], log: TextIO) -> None:
    """Write a row to the log and to the terminal."""
    print(*texts(row, ".6g"), sep=",", file=log, flush=True)
    # "#" keeps zeros at the end: 0.5000. Each cell is at least as wide as the name above it.
    cells = [text.rjust(len(name)) for name, text in zip(row, texts(row, "#.4g"), strict=True)]
    print(*cells, sep="|", flush=True)


def texts(row: dict[str, float], float_format: str) -> list[str]:
    """Return a row's values as texts: whole numbers (seed, epoch, step) in full, others as told."""
    return [str(v) if isinstance(v, int) else format(v, float_format) for v in row.values()]


def print_summary(last_rows: list[dict[str, float]]) -> None:
    """Print each measure's mean and spread over the seeds."""
    print(f"\nLast rows, mean +- standard deviation over {len(last_rows)} seeds:")
    width = max(len(name) for name in last_rows[0])
    for name in last_rows[0]:
        if name in ("seed", "epoch", "step"):
            continue
        values = torch.tensor([row[name] for row in last_rows], dtype=torch.double)
        print(f"{name:{width}} {values.mean():#.4g} +- {values.std():.2g}")


def describe_network(network: nn.Module) -> str:
    """Return a network's layers in words, such as "Linear 784-20 (frozen), Linear 20-10".

    If the network is not a plain nn.Sequential, the name of its class comes first.
    """
    words = []
    if type(network) is not nn.Sequential:
        words.append(type(network).__name__)
    for layer in network.children():
        if isinstance(layer, nn.Linear):
            text = f"{type(layer).__name__} {layer.in_features}-{layer.out_features}"
        else:
            text = " ".join(str(layer).split())  # in one line
        parameters = dict(layer.named_parameters())
        frozen = [name for name in parameters if not parameters[name].requires_grad]
        if frozen and len(frozen) == len(parameters):
            text += " (frozen)"
        elif frozen:
            text += f" ({', '.join(frozen)} frozen)"
        words.append(text)
    return ", ".join(words)


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """Return an optimizer's settings in words, such as "SGD: lr 0.001, momentum 0.9"."""
    groups = []
    for group in optimizer.param_groups:
        settings = []
        for name, value in group.items():
            is_off = value is None or value is False  # 0 is not: "momentum 0" is said
            if name != "params" and not is_off:
                settings.append(f"{name} {value}")
        groups.append(", ".join(settings))
    return f"{type(optimizer).__name__}: {'; '.join(groups)}"


def write_config(data: DataSet, options: argparse.Namespace, arguments: list[str]) -> None:
    """Write config.json: the options, and in words what is trained on what.

    The words are read off the networks and the optimizer, not off the options: if you change the
    code, an option may no longer have any effect.
    """
    networks = matched_networks(data, options, options.seeds[0])  # to be described, not trained
    config = vars(options) | {
        "arguments": arguments,
        "trained_on": data.name,
        "networks": {rule: describe_network(network) for rule, network in networks.items()},
        "optimizer": describe_optimizer(make_optimizer(networks, options)),
        "torch": torch.__version__,
    }
    text = json.dumps(config, indent=2, default=str)  # str: of paths
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
    if not value >= 0:  # refuses nan as well
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
    add("--hidden", type=count, default=20, help="units; with 1000, shallow nearly reaches BP")
    add("--init-scale", type=amount, default=1.0, help="multiplies the initial weights, but not B")
    freeze_help = "never train W and b of the read-out, so that W cannot come to resemble B"
    add("--freeze-read-out", action="store_true", help=freeze_help)

    # Momentum, weight decay and mini-batch are those of L0SG/feedback-alignment-pytorch, on GitHub,
    # which this comparison follows. Its learning rate, 1e-4, is for 1,000 hidden units.
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=count, default=5, help="passes over the training images")
    add("--batch-size", type=count, default=32, help="images in a mini-batch")
    add("--lr", type=amount, default=1e-3, help="learning rate of SGD")
    add("--momentum", type=amount, default=0.9, help="Nesterov momentum; 0: none")
    add("--weight-decay", type=amount, default=1e-3, help="weight decay (L2); 0: none")
    add("--seeds", type=int, default=[0], nargs="+", help="one matched set of networks each")

    device = "cpu"
    if torch.accelerator.is_available():
        device = str(torch.accelerator.current_accelerator())
    new_folder = Path("runs", datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))
    choices = ["auto", SOURCE.__name__.lower(), "synthetic"]
    add = parser.add_argument_group("data, device and log").add_argument
    add("--dataset", default="auto", choices=choices, help="auto: synthetic as a last resort")
    add("--data-dir", type=path, default=Path("data"), help="where it is, or is downloaded to")
    add("--device", default=device, help="cpu, cuda, ...")
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
    try:  # Does the device work? On some, such as "meta", one can make numbers, but not read them.
        torch.zeros(1, device=options.device).item()
    except (RuntimeError, AssertionError) as problem:  # PyTorch has no such device
        first_line = str(problem).partition("\n")[0]
        parser.error(f"argument --device: {first_line}")
    torch.set_num_threads(options.threads)
    try:
        data = load_data(options.dataset, options.data_dir).to(options.device)
        check_data(data)
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
                if not last_rows:  # before the first row, the header
                    print(*row.keys(), sep=",", file=log)
                    print(*row.keys(), sep="|")
                record(row, log)
                last_rows[row["seed"]] = row
        except KeyboardInterrupt:
            print(f"\nInterrupted. All rows so far are in {log.name}.", file=sys.stderr)
            return 130  # as shells do after Ctrl-C
    if len(last_rows) > 1:
        print_summary(list(last_rows.values()))
    print(f"\nResults: {log.name}\nTo plot them, run plot_losses.py.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
