"""What every test shares."""

import os
from pathlib import Path

import pytest
import torch

os.environ["GRADWATCH_ON_ERROR"] = "raise"  # an error of gradwatch's own fails a test instead of being contained
torch.set_num_threads(1)  # small tensors: threads cost more than they give, and several test runs may share a machine


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real data sets; tests that need it are skipped where it is not given."""
    folder = os.environ.get("GRADWATCH_DATA_DIR")
    if not folder:
        pytest.skip("real data: set GRADWATCH_DATA_DIR to a folder that holds fashion-mnist/")
    return Path(folder)
