"""Pack the four IDX files of MNIST into this folder; the same files give the same bytes.

python -m kit.mnist.pack FOLDER      # the folder with train-images-idx3-ubyte and the others, plain or .gz
"""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
from pathlib import Path

from kit.idx import MD5, MNIST
from kit.runtime import write_atomically


def pack(folder: Path, target: Path = MNIST) -> None:
    """Write NAME.gz to `target` for each of MNIST's files in `folder`.

    Raises ValueError, before anything is written, if a file is not MNIST's.
    """
    contents = {name: _content(folder / name, md5) for name, md5 in MD5.items()}
    for name, content in contents.items():
        write_atomically(target / f"{name}.gz", compress(content))


def compress(content: bytes) -> bytes:
    """Compress `content` with gzip, without a name or a time in its header."""
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as file:
        file.write(content)
    return packed.getvalue()


def _content(plain: Path, md5: str) -> bytes:
    content = plain.read_bytes() if plain.exists() else gzip.decompress(Path(f"{plain}.gz").read_bytes())
    if (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise ValueError(f"{plain} has the MD5 {found}, expected {md5}: it is not MNIST's file")
    return content


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    pack(Path(sys.argv[1]))
