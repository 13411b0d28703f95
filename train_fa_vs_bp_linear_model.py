"""Train matched linear networks by feedback alignment and by backpropagation, on MNIST.

Networks of 784 pixels, 20 hidden units and 10 outputs y start from the same weights and see the same
mini-batches. Their last layer is called the readout. All that differs is the message by which the
error e = dL/dy teaches the hidden layer:

    fa       B^T e: e sent back through a fixed random matrix B (feedback alignment)
    bp       W^T e: e sent back through the weights W of the readout (backpropagation)
    shallow  none: the hidden layer stays as it was drawn, and only the readout learns

Watch the angles between B^T e and W^T e, and between B and W: they start near 90 degrees, as between
unrelated vectors, and as they fall, FA's loss does.
"""

import argparse
import json
import math
import shlex
import socket
import sys
from collections import OrderedDict
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import KMNIST, MNIST, FashionMNIST

from fa_linear import FALinear

# The class of the readout decides what it sends down, and so how the hidden layer learns. (A class
# that learns in its `forward` should do so only if self.training: `measure` calls it, too.)
RULES = {"fa": FALinear, "bp": nn.Linear, "shallow": nn.Linear}

# Takes outputs and labels, and returns the mean over the examples. e is its gradient.
loss_function = F.cross_entropy


class DataSet(NamedTuple):
    """Images, float32 (n, pixels), and labels, int64 (n,), from 0 to classes - 1."""

    name: str
    classes: int
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


# What is compared: the networks, and how they are matched.


def make_network(data, hidden, layer):
    """Return a network pixels-hidden-classes whose readout is of the class `layer`.

    If you add layers with weights between the two, make them of this class: they, too, send down.
    """
    pixels = data.train_images.shape[1]
    layers = OrderedDict(
        hidden=nn.Linear(pixels, hidden),
        readout=layer(hidden, data.classes),
    )
    return nn.Sequential(layers)


def matched_networks(data, args, seed):
    """Return a ModuleDict {rule: network}; all networks start from the same weights.

    These are PyTorch's own, times args.init_scale. B is drawn as W is, and not scaled.
    """
    networks = nn.ModuleDict()
    for rule, layer in RULES.items():
        torch.manual_seed(seed)  # each time: a rule of yours that has a B starts with the same
        networks[rule] = make_network(data, args.hidden, layer)
    weights = [args.init_scale * weight.detach() for weight in networks["fa"].parameters()]
    for network in networks.values():
        for own, weight in zip(network.parameters(), weights, strict=True):
            assert own.shape == weight.shape, "networks of different shapes cannot be matched"
            own.data.copy_(weight)
    networks["shallow"].requires_grad_(False)
    networks["shallow"].readout.requires_grad_(True)
    if args.freeze_readout:
        del networks["shallow"]  # nothing would learn in it
        for network in networks.values():
            network.readout.requires_grad_(False)
    return networks.to(args.device)


def make_optimizer(networks, args):
    """Return one optimizer for all networks. (SGD treats each weight by itself.)"""
    return torch.optim.SGD(
        networks.parameters(),
        lr=args.lr,
        momentum=args.momentum,
        nesterov=args.momentum > 0,  # PyTorch refuses Nesterov without momentum
        weight_decay=args.weight_decay,
        fused=True,  # the same in one pass over the weights: faster
    )


# The training loop, and what it measures.


def train(networks, optimizer, data, args, seed):
    """Train all networks on the same mini-batches; yield the log's rows, {column: value}.

    The row of step s shows the networks after s updates. Its losses are means over the mini-batches
    since the row before, each taken before the networks learn from it. (So the last mini-batch of
    all is not learned from.) Rows are made between backward and update: a measure sees the gradients.
    """
    given = {weight for group in optimizer.param_groups for weight in group["params"]}
    learning = {weight for weight in networks.parameters() if weight.requires_grad}
    assert learning <= given, "there are weights that no optimizer trains"
    assert len(data.train_images) == len(data.train_labels)
    last_step = args.epochs * steps_in_epoch(data, args)
    losses_since_row = []
    for step, batch in enumerate(minibatches(data, args, seed)):
        images, labels = data.train_images[batch], data.train_labels[batch]
        losses = [loss_function(network(images), labels) for network in networks.values()]
        losses = torch.stack(losses)
        optimizer.zero_grad()
        losses.sum().backward()  # no two networks share a weight: each gets its own gradient
        losses_since_row.append(losses.detach())
        is_early = step < args.log_every and step.bit_count() == 1  # at powers of two
        if is_early or step % args.log_every == 0 or step == last_step:
            means = torch.stack(losses_since_row).mean(dim=0).tolist()
            losses_of = {f"{rule}_loss": mean for rule, mean in zip(networks, means, strict=True)}
            yield dict(seed=seed, step=step, **losses_of, **measure(networks, data))
            losses_since_row = []
        if step == last_step:
            return
        optimizer.step()


def minibatches(data, args, seed):
    """Yield the indices of one mini-batch after the other, without end; shuffle in each epoch."""
    # With all images on the device, a mini-batch is one look-up. A DataLoader fetches them one by
    # one, which is slow.
    shuffle = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data.train_images), generator=shuffle)
        yield from order.to(args.device).split(args.batch_size)


def steps_in_epoch(data, args):
    """Return the number of mini-batches, and so of updates, in an epoch."""
    return math.ceil(len(data.train_images) / args.batch_size)


def measure(networks, data):
    """Return {column: value}: each network's test error, and two angles at FA's readout.

    A test error is the percentage of the test images that a network misclassifies. The angles are
    in degrees: `message_angle` between B^T e and W^T e, a mean over the test images (as in
    Lillicrap et al. 2016, Figs. 1 and 2); `weight_angle` between B and W as two long vectors.
    """
    networks.eval()  # for layers that you may add, such as dropout
    with torch.no_grad():
        outputs = {rule: network(data.test_images) for rule, network in networks.items()}
    networks.train()
    columns = {}
    for rule in networks:
        wrong = outputs[rule].argmax(dim=1) != data.test_labels
        columns[f"{rule}_error"] = 100 * wrong.float().mean().item()
    y = outputs["fa"].requires_grad_()
    loss = len(y) * loss_function(y, data.test_labels)  # the sum: no e is divided by len(y)
    (e,) = torch.autograd.grad(loss, y)
    W, B = networks["fa"].readout.weight.detach(), networks["fa"].readout.feedback
    # nanmean: an e that is rounded to 0 has no angle.
    columns["message_angle"] = angle(e @ B, e @ W).nanmean().item()
    columns["weight_angle"] = angle(B.flatten(), W.flatten()).item()
    return columns


def angle(a, b):
    """Return the angles in degrees, shape (...), between vectors (..., n); nan where one is 0."""
    # F.cosine_similarity is 0 where a vector is 0, which would be a false 90 degrees.
    cosine = (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    return cosine.clamp(-1, 1).acos().rad2deg()  # rounding may leave -1 to 1


DATASETS = {"mnist": MNIST, "fashionmnist": FashionMNIST, "kmnist": KMNIST}


def load_data(name, folder, device="cpu"):
    """Return a DataSet by name, normalised, on the device; download what is not in the folder.

    "auto" is MNIST or, where nothing of it is on disk and the download fails, random patterns.
    """
    if name == "synthetic":
        return random_patterns(device)
    source = MNIST if name == "auto" else DATASETS[name]
    socket.setdefaulttimeout(10)  # seconds; a silent server would hold the run forever
    try:
        train, test = (source(folder, train=part, download=True) for part in (True, False))
    except (RuntimeError, HTTPException, ConnectionError, TimeoutError) as failure:
        if name != "auto" or any(Path(folder).glob("MNIST/raw/*")):
            raise
        print(f"WARNING: {failure}\nWARNING: random patterns stand in for MNIST", file=sys.stderr)
        return random_patterns(device)
    train_images, test_images = (part.data.flatten(start_dim=1) / 255 for part in (train, test))
    mean, deviation = train_images.mean(), train_images.std()
    train_images, test_images = (train_images - mean) / deviation, (test_images - mean) / deviation
    tensors = train_images, train.targets, test_images, test.targets
    return DataSet(source.__name__, len(source.classes), *(t.to(device) for t in tensors))


def random_patterns(device="cpu", train_size=60_000, test_size=10_000):
    """Return a stand-in for MNIST, the same each time: ten smooth patterns under smooth noise."""
    generator = torch.Generator().manual_seed(0)

    def smooth(n):
        coarse = torch.randn(n, 1, 7, 7, generator=generator)
        return F.interpolate(coarse, size=(28, 28), mode="bicubic").flatten(start_dim=1)

    patterns = smooth(10)
    tensors = []
    for size in train_size, test_size:
        labels = torch.randint(10, (size,), generator=generator)
        images = patterns[labels] + 2.1 * smooth(size)  # 2.1 makes them about as hard as MNIST
        tensors += [images / images.std(), labels]  # the images' mean is about 0 already
    return DataSet("random patterns (not MNIST)", 10, *(t.to(device) for t in tensors))


def count(text):
    """Return a whole number from 1, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def make_parser():
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--hidden", type=count, default=20, help="units; with 1000, shallow nearly reaches BP")
    add("--init-scale", type=float, default=1.0, help="multiplies the initial weights, but not B")
    add("--freeze-readout", action="store_true", help="train the hidden layer alone")
    # Momentum, weight decay and mini-batch are those of L0SG/feedback-alignment-pytorch, on GitHub,
    # which this comparison follows. Its learning rate, 1e-4, is for 1,000 hidden units.
    add("--epochs", type=count, default=5, help="passes over the training images")
    add("--batch-size", type=count, default=32, help="images in a mini-batch")
    add("--lr", type=float, default=1e-3, help="learning rate of SGD")
    add("--momentum", type=float, default=0.9, help="Nesterov momentum; 0: none")
    add("--weight-decay", type=float, default=1e-3, help="weight decay (L2); 0: none")
    add("--seeds", type=int, default=[0], nargs="+", help="one matched set of networks each")
    names = ["auto", *DATASETS, "synthetic"]
    add("--dataset", default="auto", choices=names, help="auto: mnist or, failing that, synthetic")
    add("--data-dir", type=Path, default="data", help="where it is, or is downloaded to")
    add("--device", default="cpu", help="cpu, cuda, ...")
    add("--threads", type=count, default=1, help="CPU threads; 1 is fastest with 20 hidden units")
    add("--log-every", type=count, default=125, help="steps between rows")
    new_folder = Path("runs", datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))
    add("--out", type=Path, default=new_folder, help="new folder for what a run writes")
    return parser


def run_seed(seed, data, args):
    """Train the networks of one seed, write the files of the run's folder; return the last row."""
    networks = matched_networks(data, args, seed)
    optimizer = make_optimizer(networks, args)
    is_first = seed == args.seeds[0]
    if is_first:
        args.out.mkdir(parents=True)  # only now: what fails before leaves none
        config = describe(networks, optimizer, data, args)
        (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        print(f"{config['title']}. Steps in an epoch: {config['steps_in_epoch']}.")
        print("Losses: means since the row before. Errors: % of test images. Angles: degrees.")
        save_readout(networks["fa"].readout, args.out / "fa_readout_start.npz")
    for row in train(networks, optimizer, data, args, seed):
        log(row, args.out / "losses.csv")
    if is_first:
        save_readout(networks["fa"].readout, args.out / "fa_readout_end.npz")
    return row


def describe(networks, optimizer, data, args):
    """Return what config.json holds; of what is trained, PyTorch's own descriptions."""
    numbers = {name: value for name, value in vars(args).items() if isinstance(value, int | float)}
    default = make_parser().get_default
    changed = [f"{name} {value}" for name, value in numbers.items() if value != default(name)]
    return {
        "title": ", ".join([data.name, f"{len(data.train_images)} training images", *changed]),
        "steps_in_epoch": steps_in_epoch(data, args),
        "options": {name: str(value) for name, value in vars(args).items()},
        "networks": {rule: str(network).splitlines() for rule, network in networks.items()},
        "learning": [name for name, weight in networks.named_parameters() if weight.requires_grad],
        "optimizer": str(optimizer).splitlines(),
        "torch": torch.__version__,
    }


def save_readout(readout, path):
    """Save W and B."""
    np.savez(path, W=readout.weight.detach().cpu(), B=readout.feedback.cpu())


def log(row, path):
    """Append a row to the log, and print it; before the first row, the names of the columns."""
    cells = [str(v) if isinstance(v, int) else f"{float(v):#.5g}" for v in row.values()]
    lines = [cells] if path.exists() else [row.keys(), cells]
    with open(path, "a", encoding="utf-8") as file:
        for line in lines:
            print(*line, sep=",", file=file)
            texts = [cell.rjust(max(len(name), 7)) for name, cell in zip(row, line, strict=True)]
            print(*texts, flush=True)


def main(arguments=None):
    """Run the comparison that the arguments ask for."""
    args = make_parser().parse_args(arguments)
    args.seeds = list(dict.fromkeys(args.seeds))  # each once
    torch.set_num_threads(args.threads)
    data = load_data(args.dataset, args.data_dir, args.device)
    plot = Path(__file__).with_name("plot_losses.py")
    plot_command = shlex.join([sys.executable, str(plot), str(args.out)])
    last_rows = []
    try:
        for seed in args.seeds:
            last_rows.append(run_seed(seed, data, args))
    except KeyboardInterrupt:
        sys.exit(f"\nStopped. To plot the rows so far:\n{plot_command}")
    if len(last_rows) > 1:
        print(f"\nLast rows, mean +- standard deviation over {len(last_rows)} seeds:")
        for name in list(last_rows[0])[2:]:  # not seed and step
            values = [row[name] for row in last_rows]
            print(f"{name:13} {np.mean(values):.4g} +- {np.std(values, ddof=1):.2g}")
    print(f"\nTo plot {args.out / 'losses.csv'}:\n{plot_command}")


if __name__ == "__main__":
    main()
