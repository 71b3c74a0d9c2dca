"""Pack the four IDX files of MNIST into this folder; the same files give the same bytes.

python -m kit.mnist.pack FOLDER      # the folder that holds train-images-idx3-ubyte and the others, plain or .gz
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
    """Write NAME.gz to `target` for each of MNIST's files in `folder`; ValueError for a file that is not MNIST's."""
    for name, md5 in MD5.items():
        plain = folder / name
        content = plain.read_bytes() if plain.exists() else gzip.decompress((folder / f"{name}.gz").read_bytes())
        if (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
            raise ValueError(f"{plain} has the MD5 {found}, expected {md5}: it is not MNIST's file")
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as file:
            file.write(content)
        write_atomically(target / f"{name}.gz", packed.getvalue())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    pack(Path(sys.argv[1]))
