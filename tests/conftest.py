"""What the tests share: MNIST, read once, and the option that rewrites the stored tables."""

from __future__ import annotations

import os
import signal

# Tests run in several processes, and start more of their own: with more threads each, they would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from kit.data import ImageData
from kit.idx import load_mnist

# A shell starts what it runs in the background with Ctrl-C ignored; the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="rewrite the tables in tests/golden with today's")


@pytest.fixture(scope="session")
def mnist() -> tuple[ImageData, ImageData]:
    """(train, test), all of it: take slices, and change nothing in place."""
    return load_mnist()
