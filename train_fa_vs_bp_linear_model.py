"""Train matched linear networks by feedback alignment and by backpropagation, on MNIST.

Networks of 784 pixels, 20 hidden units and 10 outputs y start from the same weights and see the
same mini-batches. Their last layer is called the readout. All that differs is the message by which
the error e = dL/dy teaches the hidden layer:

    fa       B^T e: e sent back through a fixed random matrix B (feedback alignment)
    bp       W^T e: e sent back through the weights W of the readout (backpropagation)
    shallow  none: the hidden layer stays as it was drawn, and only the readout learns
"""

import argparse
import json
import math
import os
import shlex
import shutil
import socket
import subprocess
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

import fa_linear
from fa_linear import FALinear

# The class of the readout decides what it sends down, and so how the hidden layer learns. (A class
# that learns in its `forward` should do so only if self.training: `measure` calls it, too.)
RULES = {"fa": FALinear, "bp": nn.Linear, "shallow": nn.Linear}

# Takes outputs and labels, and returns the mean over the examples. e is its gradient, also where
# angles are measured: so change the loss here, and not in the loop.
loss_function = F.cross_entropy


class DataSet(NamedTuple):
    """Images, float32 (n, pixels), and labels, int64 (n,), from 0 to classes - 1.

    To change them, make another by `data._replace(name=..., ...)`, as all seeds get this one. The
    name is in the title; what stands in test_images is what "test error" means. Draw what is random
    from a torch.Generator of its own, as `minibatches` does: what the global one gives depends on
    which rules are compared.
    """

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
    torch.manual_seed(seed)
    drawn = make_network(data, args.hidden, nn.Linear).named_parameters()
    start = {name: args.init_scale * weight.detach() for name, weight in drawn}
    networks = nn.ModuleDict()
    for rule, layer in RULES.items():
        if rule == "shallow" and args.freeze_readout:
            continue  # nothing would learn in it
        torch.manual_seed(seed)  # each time: a rule of yours that has a B starts with the same
        network = make_network(data, args.hidden, layer)
        missing, unexpected = network.load_state_dict(start, strict=False)
        buffers = dict(network.named_buffers())  # such as B, which stays as it was drawn
        unmatched = set(missing + unexpected) - set(buffers)
        assert not unmatched, f"not in all networks: {unmatched}"
        networks[rule] = network
    if "shallow" in networks:
        networks["shallow"].requires_grad_(False)
        networks["shallow"].readout.requires_grad_(True)
    if args.freeze_readout:
        for network in networks.values():
            network.readout.requires_grad_(False)
    return networks.to(args.device, data.train_images.dtype)


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


def train(networks, optimizer, data, args, seed, measure):
    """Train all networks on the same mini-batches; yield the log's rows, {column: value}.

    The row of step s shows the networks after s updates. Its losses are means over the mini-batches
    since the row before, each taken before the networks learn from it. (So the last mini-batch of
    all is not learned from.) The rest is what `measure(networks, data)` returns, called between
    backward and update: it sees the gradients.
    """
    given = {weight for group in optimizer.param_groups for weight in group["params"]}
    learning = {weight for weight in networks.parameters() if weight.requires_grad}
    assert learning <= given, "there are weights that no optimizer trains"
    assert len(data.train_images) == len(data.train_labels) > 0, "no training images, or no labels"
    assert len(data.test_images) == len(data.test_labels) > 0, "no test images, or no labels"
    last_step = args.epochs * steps_in_epoch(data, args)
    losses_since_row = []
    for step, batch in enumerate(minibatches(data, args, seed)):
        images, labels = data.train_images[batch], data.train_labels[batch]
        losses = [loss_function(network(images), labels) for network in networks.values()]
        losses = torch.stack(losses)
        optimizer.zero_grad()
        # No two networks share a weight: each gets its own gradient. (So clip each by itself, as
        # the norm over all would couple them. A penalty belongs into this sum: above, it would be
        # logged.)
        losses.sum().backward()
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
    """Return {column: value}: test errors and, where the readout has a B, two angles.

    RULE_error is the percentage of the test images that a network misclassifies. The angles are in
    degrees: RULE_message_angle between B^T e and W^T e, a mean over the test images (as in
    Lillicrap et al. 2016); RULE_weight_angle between B and W as two long vectors.
    """
    networks.eval()  # for layers that you may add, such as dropout
    with torch.no_grad():
        outputs = {rule: network(data.test_images) for rule, network in networks.items()}
    networks.train()
    columns = {}
    for rule, y in outputs.items():
        wrong = y.argmax(dim=1) != data.test_labels
        columns[f"{rule}_error"] = 100 * wrong.float().mean().item()
    for rule, readout in readouts_with_feedback(networks).items():
        W, B = readout.weight.detach(), readout.feedback.detach()
        e = error_signal(outputs[rule], data.test_labels)
        # nanmean: an e that is rounded to 0 has no angle.
        columns[f"{rule}_message_angle"] = angle(e @ B, e @ W).nanmean().item()
        columns[f"{rule}_weight_angle"] = angle(B.flatten(), W.flatten()).item()
    return columns


def readouts_with_feedback(networks):
    """Return {rule: readout} of the networks whose readout has a B."""
    readouts = {rule: getattr(network, "readout", None) for rule, network in networks.items()}
    return {rule: readout for rule, readout in readouts.items() if hasattr(readout, "feedback")}


def error_signal(y, labels):
    """Return each example's e, the gradient of its own loss with respect to its outputs y."""
    y = y.detach().requires_grad_()
    loss = len(y) * loss_function(y, labels)  # the sum: no e is divided by len(y)
    return torch.autograd.grad(loss, y)[0]


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
    source = DATASETS["mnist" if name == "auto" else name]
    socket.setdefaulttimeout(10)  # seconds; a silent server would hold the run forever
    try:
        train, test = (source(folder, train=part, download=True) for part in (True, False))
    except (RuntimeError, HTTPException, ConnectionError, TimeoutError) as failure:
        if name != "auto" or any(Path(folder).glob("MNIST/raw/*")):
            raise
        print(f"WARNING: {failure}\nWARNING: random patterns stand in for MNIST", file=sys.stderr)
        return random_patterns(device)
    assert len(train.targets.unique()) == len(train.classes), "there are classes without images"
    train_images, test_images = (part.data.flatten(start_dim=1) / 255 for part in (train, test))
    mean, deviation = train_images.mean(), train_images.std()
    train_images, test_images = (train_images - mean) / deviation, (test_images - mean) / deviation
    tensors = train_images, train.targets, test_images, test.targets
    return DataSet(type(train).__name__, len(train.classes), *(t.to(device) for t in tensors))


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


def in_range(kind, least=-sys.float_info.max, most=sys.float_info.max):
    """Return a function that reads a number of a kind (int, float) for argparse."""

    def number(text):
        value = kind(text)
        if not least <= value <= most:  # so nan and infinity are none
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least:g} to {most:g}")
        return value

    return number


def make_parser():
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    count, rate = in_range(int, least=1), in_range(float, least=0)
    seed = in_range(int, -(2**63), 2**63 - 1)  # what PyTorch and the plot can take
    path = os.path.expanduser  # in --out=~/x no shell does it
    add("--hidden", type=count, default=20, help="units; with 1000, shallow nearly reaches BP")
    add("--init-scale", type=in_range(float), default=1.0, help="multiplies weights, but not B")
    add("--freeze-readout", action="store_true", help="train the hidden layer alone")
    # Momentum, weight decay and mini-batch are those of L0SG/feedback-alignment-pytorch, on GitHub,
    # which this comparison follows. Its learning rate, 1e-4, is for 1,000 hidden units.
    add("--epochs", type=count, default=5, help="passes over the training images")
    add("--batch-size", type=count, default=32, help="images in a mini-batch")
    add("--lr", type=rate, default=1e-3, help="learning rate of SGD")
    add("--momentum", type=rate, default=0.9, help="Nesterov momentum; 0: none")
    add("--weight-decay", type=rate, default=1e-3, help="weight decay (L2); 0: none")
    add("--seeds", type=seed, default=[0], nargs="+", help="one matched set of networks each")
    names = ["auto", *DATASETS, "synthetic"]
    add("--dataset", default="auto", choices=names, help="auto: mnist or, failing that, synthetic")
    add("--data-dir", type=path, default="data", help="where it is, or is downloaded to")
    add("--device", default="cpu", help="cpu, cuda, ...")
    add("--threads", type=count, default=1, help="CPU threads; 1 is fastest with 20 hidden units")
    add("--log-every", type=count, default=125, help="steps between rows")
    new_folder = Path("runs", datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))
    add("--out", type=path, default=new_folder, help="new folder for what a run writes")
    return parser


def run_seed(seed, data, args):
    """Train the networks of one seed, write the files of the run's folder; return the last row."""
    networks = matched_networks(data, args, seed)
    optimizer = make_optimizer(networks, args)
    rows = train(networks, optimizer, data, args, seed, measure)
    row = next(rows)  # of step 0; what fails by now leaves no folder
    if seed == args.seeds[0]:
        start_folder(networks, optimizer, data, args)
    log(row, args.out / "losses.csv")
    for row in rows:
        log(row, args.out / "losses.csv")
    if seed == args.seeds[0]:
        save_readouts(networks, args.out, "end")
    return row


def start_folder(networks, optimizer, data, args):
    """Make the run's folder; write into it what is run: settings, code, W and B."""
    config = describe(networks, optimizer, data, args)
    (args.out / "code").mkdir(parents=True)
    for file in __file__, fa_linear.__file__:
        shutil.copy(file, args.out / "code")
    (args.out / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
    save_readouts(networks, args.out, "start")
    print(f"{config['title']}. Steps in an epoch: {config['steps_in_epoch']}.")
    print("Losses: means since the row before. Errors: % of test images. Angles: degrees.")


def describe(networks, optimizer, data, args):
    """Return what config.json holds; of what is trained, PyTorch's own descriptions."""
    default = make_parser().get_default
    changed = [
        f"{name} {value}"
        for name, value in vars(args).items()
        if isinstance(value, int | float) and value != default(name)
        if name not in ("threads", "log_every")  # which change no figure
    ]
    return {
        "title": ", ".join([data.name, f"{len(data.train_images)} training images", *changed]),
        "steps_in_epoch": steps_in_epoch(data, args),
        "options": vars(args),
        "loss": getattr(loss_function, "__name__", str(loss_function)),
        "networks": {rule: str(network).splitlines() for rule, network in networks.items()},
        "learning": [name for name, weight in networks.named_parameters() if weight.requires_grad],
        "optimizer": str(optimizer).splitlines(),
        "dtype": str(data.train_images.dtype),
        "torch": torch.__version__,
    }


def save_readouts(networks, folder, when):
    """Save W and B, of each network that has a B."""
    for rule, readout in readouts_with_feedback(networks).items():
        W, B = readout.weight.detach().cpu(), readout.feedback.detach().cpu()
        np.savez(folder / f"{rule}_readout_{when}.npz", W=W, B=B)


def log(row, path):
    """Append a row to the log, and print it; before the first row, the names of the columns."""
    cells = [str(v) if isinstance(v, int) else f"{float(v):#.5g}" for v in row.values()]
    lines = [cells] if path.exists() else [row.keys(), cells]
    with open(path, "a", encoding="utf-8") as file:
        for line in lines:
            print(*line, sep=",", file=file)
            texts = [cell.rjust(max(len(name), 7)) for name, cell in zip(row, line, strict=True)]
            print(*texts, flush=True)


@np.errstate(invalid="ignore")  # an infinite loss is said below
def summarise(last_rows):
    """Print the last rows' means over seeds, if they are of the same step; say what diverged."""
    if len({row["step"] for row in last_rows}) > 1:
        print("\nSeeds ended at different steps: there are no means.")
    elif len(last_rows) > 1:
        print(f"\nLast rows, mean +- standard deviation over {len(last_rows)} seeds:")
        for name in list(last_rows[0])[2:]:  # not seed and step
            values = [row[name] for row in last_rows]
            print(f"{name:17} {np.mean(values):.4g} +- {np.std(values, ddof=1):.2g}")
    for row in last_rows:
        for name in row:
            if name.endswith("_loss") and not math.isfinite(row[name]):
                print(f"WARNING: in seed {row['seed']}, {name} ends at {row[name]}: it diverged")


def main(arguments=None):
    """Run the comparison that the arguments ask for."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    args.out = Path(args.out)
    if os.path.lexists(args.out):
        parser.error(f"argument --out: {args.out} is there already")
    args.seeds = list(dict.fromkeys(args.seeds))  # each once
    torch.set_num_threads(args.threads)
    command = [sys.executable, str(Path(__file__).with_name("plot_losses.py")), str(args.out)]
    command = subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)
    losses = args.out / "losses.csv"
    how_to_plot = f"\nTo plot {losses}:\n{command}"
    try:
        data = load_data(args.dataset, args.data_dir, args.device)
        summarise([run_seed(seed, data, args) for seed in args.seeds])
    except KeyboardInterrupt:
        sys.exit(f"\nStopped. {how_to_plot if losses.exists() else ''}")
    print(how_to_plot)


if __name__ == "__main__":
    main()
