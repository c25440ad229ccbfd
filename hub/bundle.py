# SPDX-License-Identifier: Apache-2.0
"""Writes one archive for a house without network: wheels, base, adapter and processor, and how to install them.

Models lie in it as in a cache of the Hub's own library, so that every command and every line of code that names a Hub
id works there as it does elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from huggingface_hub import snapshot_download

from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.staging import whole_file

from .client import explained, say
from .manifest import Manifest
from .verify import CONFIG, check_files, check_weights_of_base, fetch

TOP = "pefomed-bundle"
# Under which a folder lies in the cache that has no commit on a Hub.
NO_COMMIT = "0" * 40
INSTALL = """# PeFoMed without network

Needs Python {python} on the same kind of machine. In this folder:

```sh
sha256sum --check --quiet SHA256SUMS
python{python} -m venv .venv
.venv/bin/pip install --no-index --find-links wheels pefomed
export HF_HUB_CACHE="$PWD/hub" HF_HUB_OFFLINE=1
.venv/bin/pefomed verify {name}
.venv/bin/pefomed ask IMAGE "QUESTION" --model {name}
```

It holds {held}. Their licences go with them. A research prototype, not a medical device.
"""


@dataclass
class Contents:
    """What goes into the archive: files by their place in it, and short texts."""

    files: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def add_model(self, repo: str, commit: str, folder: Path) -> None:
        """Lay a folder into the archive's cache as the head of a repository."""
        place = f"hub/models--{repo.replace('/', '--')}"
        self.texts[f"{place}/refs/main"] = commit
        if not (folder / CONFIG).exists():
            self.texts[f"{place}/.no_exist/{commit}/{CONFIG}"] = ""
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and not name.startswith(".cache/"):
                self.files[f"{place}/snapshots/{commit}/{name}"] = path

    def hashes(self) -> Iterator[str]:
        """Yield a line for each file as `sha256sum` reads it."""
        for name, text in self.texts.items():
            yield f"{hashlib.sha256(text.encode()).hexdigest()}  {name}"
        for name, path in self.files.items():
            with path.open("rb") as file:
                yield f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}"


def write_bundle(
    source: str, out: Path, *, revision: str | None = None, base: Path | None = None, wheels: Path | None = None
) -> None:
    """Write the archive; it appears when it is whole.

    Args:
        source: what `pefomed export` wrote: a folder or a Hub id.
        revision: of a Hub id.
        base: the base as a folder, whose weights are checked first; by default the Hub's at the manifest's commit.
        wheels: a folder of wheels; by default pip fetches those of the installed versions.

    Raises:
        ConfigError: `out` is no .tar, or `wheels` holds no wheel of pefomed.
        PeFoMedError: the source is not what its manifest says, the base is another one or cannot be had, or pip fails.
    """
    if out.suffix != ".tar":
        raise ConfigError(f"--out {out}: expected a name that ends in .tar")
    if wheels is not None and not list(wheels.glob("pefomed-*.whl")):
        raise ConfigError(f"--wheels {wheels}: no wheel of pefomed there")
    folder, told = fetch(source, revision)
    manifest = check_files(source, folder)
    contents = Contents()
    is_local = Path(source).is_dir()
    name = manifest.repo if is_local else source
    contents.add_model(name, NO_COMMIT if is_local else folder.name, folder)
    held = [name]
    if manifest.kind == "adapter":
        held.append(add_base(contents, folder, manifest, base))
    elif base is not None:
        raise PeFoMedError(f"{source}: a {manifest.kind} model stands alone; leave out --base")
    with tempfile.TemporaryDirectory() as work:
        found = wheels or fetch_wheels(Path(work))
        contents.files |= {f"wheels/{path.name}": path for path in sorted(found.glob("*.whl"))}
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        contents.texts["INSTALL.md"] = INSTALL.format(python=python, name=name, held=" and ".join(held))
        contents.texts["SHA256SUMS"] = "\n".join(contents.hashes()) + "\n"
        write_archive(out, contents)


def add_base(contents: Contents, folder: Path, manifest: Manifest, base: Path | None) -> str:
    """Put the adapter's base into the archive and return its Hub id."""
    assert manifest.base is not None
    if base is not None:
        say(check_weights_of_base(folder, str(base)))
        contents.add_model(manifest.base.id, manifest.base.revision or NO_COMMIT, base)
    else:
        with explained(f"fetch the base {manifest.base.id}"):
            found = Path(snapshot_download(manifest.base.id, revision=manifest.base.revision))
        contents.add_model(manifest.base.id, found.name, found)
    return manifest.base.id


def fetch_wheels(folder: Path) -> Path:
    """Have pip put the wheels of this package and of all that it needs into a folder, at the installed versions.

    A CPU build of torch stays one: its version bears the mark `+cpu`, which pip must find again.

    Raises:
        PeFoMedError: pip fails.
    """
    say("fetching wheels")
    installed = {found.name: found.version for found in metadata.distributions()}
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in sorted(installed.items())))
    # else setuptools builds inside the clone, and what an earlier build left there would travel
    (folder / "build.cfg").write_text(f"[build]\nbuild_base={folder / 'build'}\n")
    wheels = folder / "wheels"
    command = ["wheel", "--wheel-dir", str(wheels), "--constraint", str(constraints), _own_source()]
    process = subprocess.run(
        [sys.executable, "-m", "pip", *command],
        env=os.environ | {"DIST_EXTRA_CONFIG": str(folder / "build.cfg")},
        stdout=sys.stderr,
        check=False,
    )
    if process.returncode:
        raise PeFoMedError(
            "pip cannot fetch the wheels, as it says above. For torch, name the index that it came from, in "
            "PIP_EXTRA_INDEX_URL; or give a folder of wheels: --wheels DIR"
        )
    return wheels


def _own_source() -> str:
    """Return what pip makes our own wheel of: the clone from which this is installed, or the published version."""
    distribution = metadata.distribution("pefomed")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}").get("url", "")
    if origin.startswith("file:"):
        return url2pathname(urlsplit(origin).path)
    return f"pefomed=={distribution.version}"


def write_archive(out: Path, contents: Contents) -> None:
    """Write the archive, reading each file as it goes in; nobody's name or clock is kept."""
    with whole_file(out) as staged, tarfile.open(staged, "w") as archive:
        for name, text in contents.texts.items():
            entry = tarfile.TarInfo(f"{TOP}/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
        for name, path in contents.files.items():
            entry = tarfile.TarInfo(f"{TOP}/{name}")
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(entry, file)
