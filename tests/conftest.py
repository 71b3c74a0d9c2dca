"""What the tests share: MNIST, read once, and the option that rewrites the stored tables."""

from __future__ import annotations

import pytest

from kit.data import ImageData
from kit.idx import load_mnist


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="rewrite the tables in tests/golden with today's")


@pytest.fixture(scope="session")
def mnist() -> tuple[ImageData, ImageData]:
    """(train, test), all of it: take slices, and change nothing in place."""
    return load_mnist()
