"""What the tests share: the project on the path, and a data set small enough for them."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import train_fa_vs_bp_linear_model as script

# Threads gain nothing on networks this small, and wait long for each other on a busy CPU.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """An empty folder to work in, where every data set has 300 + 100 images."""
    monkeypatch.setattr(script, "TRAIN_SIZE", 300)
    monkeypatch.setattr(script, "TEST_SIZE", 100)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def mnist_dir():
    """The folder of MNIST itself, for the tests that need it."""
    if "MNIST_DIR" not in os.environ:
        pytest.skip("MNIST_DIR does not name a folder that holds MNIST")
    return Path(os.environ["MNIST_DIR"]).resolve()
