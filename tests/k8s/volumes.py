"""Volumes as kubelet makes them."""

import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

_numbers = itertools.count(1)


class Projected:
    """The content of a ConfigMap, a Secret or a CSI driver's certificates.

    Files are links to `..data/NAME`, and `..data` is a link to a folder with the time in its name. An update makes
    another folder and swaps the one link.
    """

    def __init__(self, folder: Path, files: Mapping[str, str | bytes], group: int | None = None) -> None:
        self.folder = folder
        self._group = group
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        self.update(files)

    def update(self, files: Mapping[str, str | bytes]) -> None:
        """Swaps the content, with the system calls of kubelet's AtomicWriter in their order."""
        old = os.readlink(self.folder / "..data") if os.path.lexists(self.folder / "..data") else None
        new = self.folder / f"..2026_01_01_00_00_00.{next(_numbers)}"
        new.mkdir()
        new.chmod(0o755)
        for name, content in files.items():
            path = new / name
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            path.chmod(0o644 if self._group is None else 0o640)
            if self._group is not None:
                os.chown(path, 0, self._group)
        (self.folder / "..data_tmp").symlink_to(new.name)
        os.rename(self.folder / "..data_tmp", self.folder / "..data")
        for name in files:
            if not os.path.lexists(self.folder / name):
                (self.folder / name).symlink_to(f"..data/{name}")
        for path in self.folder.iterdir():
            if not path.name.startswith("..") and path.name not in files:
                path.unlink()
        if old is not None:
            shutil.rmtree(self.folder / old)
