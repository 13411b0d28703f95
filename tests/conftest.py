"""What the tests share: the project on the path, and a data set small enough for them."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("", "results")]
torch.set_num_threads(1)  # more gain nothing on networks this small

import train_fa_vs_bp_linear_model as script


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def small():
    """300 + 100 random patterns: an epoch has ten mini-batches of 32, the last one of 12."""
    return script.random_patterns(train_size=300, test_size=100)


@pytest.fixture(scope="session")
def mnist():
    """MNIST from MNIST_DIR or, if it lies there, from where the script puts it."""
    folder = os.environ.get("MNIST_DIR") or Path(script.__file__).with_name("data")
    if not Path(folder, "MNIST/raw/train-images-idx3-ubyte").exists():
        pytest.skip(f"no MNIST in {folder}")
    return script.load_data("mnist", folder)
