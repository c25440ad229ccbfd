# SPDX-License-Identifier: Apache-2.0
"""What publishing a folder would do, worked out without changing anything: files, findings, what is on the Hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from pefomed_recipes.errors import ConfigError, PeFoMedError

from .client import retrying
from .manifest import MANIFEST, FileEntry, Manifest, changed_files, list_files, read_manifest
from .scan import scan_folder

# What the Hub itself puts into a repository.
HUB_FILES = (".gitattributes",)
# Data under credentials, whose name in a record is enough.
CREDENTIALED_SOURCES = ("mimic_cxr", "mimic_diff_vqa", "ms_cxr")
SHOWN_FINDINGS = 20


@dataclass
class Wish:
    """What the user asks for; `pefomed publish --help` says what each is."""

    repo: str
    type: str = "model"
    tag: str | None = None
    public: bool = False
    gated: str | None = None
    forbidden: Path | None = None
    allow_credentialed: bool = False
    secrets: dict[str, str] = field(default_factory=dict)


@dataclass
class Local:
    """A folder that may be published: its files, and its manifest where there is one."""

    folder: Path
    files: dict[str, FileEntry]
    manifest: Manifest | None

    @property
    def credentialed(self) -> bool:
        """Whether the data forbid that what was made of them is public; so it is taken where the record is silent."""
        if self.manifest is None or self.manifest.kind == "base":
            return False
        sources = {
            name for run in self.manifest.runs for data in run.data.values() for name in data.get("sources", [])
        }
        is_silent = self.manifest.credentialed is not False or self.manifest.incomplete_history
        return is_silent or bool(sources & set(CREDENTIALED_SOURCES))


@dataclass
class Remote:
    """The head of a repository's main branch. `sha` is null where there is no repository."""

    sha: str | None = None
    private: bool = True
    files: dict[str, RepoFile] = field(default_factory=dict)


@dataclass
class Changes:
    """What separates a repository from the folder."""

    add: list[str]
    change: list[str]
    delete: list[str]

    def __bool__(self) -> bool:
        return bool(self.add or self.change or self.delete)


def check_wish(wish: Wish) -> None:
    """Check what is asked for by itself.

    Raises:
        ConfigError: an id is malformed, or two options contradict each other.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", wish.repo, re.ASCII):
        raise ConfigError(f"--repo {wish.repo}: expected user/name as on the Hub, so that it cannot land elsewhere")
    if wish.secrets and wish.type != "space":
        raise ConfigError("--secret is for a Space; add --type space")
    if wish.public and wish.allow_credentialed:
        raise ConfigError("--allow-credentialed keeps it private; leave out --public")
    if wish.gated and wish.type == "space":
        raise ConfigError("a Space cannot be gated; leave out --gated")
    if wish.tag is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", wish.tag):
        raise ConfigError(f"--tag {wish.tag!r}: expected letters, digits, dots and dashes, such as v1.0")
    if wish.forbidden and not wish.forbidden.is_file():
        raise ConfigError(f"--forbidden {wish.forbidden}: no such file")


def read_folder(folder: Path, wish: Wish) -> Local:
    """Return the folder's files after looking through them.

    Raises:
        PeFoMedError: there is something in it that must not be published, it is not what its manifest says, it was
            made for another repository, its card is malformed, or its data are credentialed and that was not allowed.
    """
    if not folder.is_dir():
        raise PeFoMedError(f"{folder}: no such folder")
    findings = scan_folder(folder, wish.type, wish.forbidden)
    findings += list(_wrong_card(folder, wish.type))
    manifest = None
    if wish.type == "model":
        manifest = read_manifest(folder)
        findings += [f"{name}: {how} against {MANIFEST}" for name, how in changed_files(folder, manifest).items()]
    if findings:
        more = f"\n  and {len(findings) - SHOWN_FINDINGS} more" if len(findings) > SHOWN_FINDINGS else ""
        listed = "".join(f"\n  {finding}" for finding in findings[:SHOWN_FINDINGS])
        raise PeFoMedError(f"{folder} cannot be published, found {len(findings)} problems:{listed}{more}")
    files = list_files(folder)
    if manifest is not None:
        if manifest.repo != wish.repo:
            raise PeFoMedError(
                f"{folder} was made for {manifest.repo}, which its card tells people to load, not for {wish.repo}; "
                f"export it again with --repo {wish.repo}"
            )
        content = (folder / MANIFEST).read_bytes()
        files[MANIFEST] = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    local = Local(folder, files, manifest)
    if local.credentialed and not wish.allow_credentialed:
        raise PeFoMedError(
            f"{folder}: it was trained on credentialed data, or its record does not say that it was not. Read the "
            "data's terms; --allow-credentialed publishes it privately, never with --public"
        )
    return local


def _wrong_card(folder: Path, type_: str) -> Iterator[str]:
    """Yield what is wrong with the README's metadata, before the Hub says it."""
    card = folder / "README.md"
    if not card.is_file():
        yield "README.md: there is none"
        return
    match = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", card.read_text(encoding="utf-8"), re.DOTALL)
    try:
        metadata = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        line = getattr(error, "problem_mark", None)
        yield f"README.md:{line.line + 2 if line else 1}: its metadata are no YAML"
        return
    if not isinstance(metadata, dict):
        yield "README.md:1: it starts with no metadata between lines of ---"
    elif type_ == "space" and "sdk" not in metadata:
        yield "README.md:1: its metadata name no sdk"
    elif type_ != "space" and "license" not in metadata:
        yield "README.md:1: its metadata name no license"


def read_remote(api: HfApi, wish: Wish) -> Remote:
    """Return what is at the head of the repository's main branch.

    Raises:
        PeFoMedError: the Hub cannot be asked.
    """

    def ask() -> Remote:
        try:
            info = api.repo_info(wish.repo, repo_type=wish.type)
        except RepositoryNotFoundError:
            return Remote()
        entries = api.list_repo_tree(wish.repo, recursive=True, revision=info.sha, repo_type=wish.type)
        return Remote(info.sha, bool(info.private), {row.path: row for row in entries if isinstance(row, RepoFile)})

    return retrying(f"read {wish.repo}", ask)


def compare(local: Local, remote: Remote, type_: str) -> Changes:
    """Return what a commit would do. Of a dataset only the folder's own files count: its data stay."""
    add = [name for name in local.files if name not in remote.files]
    change = [name for name in local.files if name in remote.files and not is_same(local, remote.files[name])]
    gone = [name for name in remote.files if name not in local.files and name not in HUB_FILES]
    return Changes(add, change, sorted(gone) if type_ != "dataset" else [])


def is_same(local: Local, there: RepoFile) -> bool:
    """Whether a file on the Hub has the content of the folder's: by sha256, or by git's hash for small files."""
    here = local.files[there.path]
    if there.lfs is not None:
        return there.lfs.sha256 == here.sha256
    if there.size != here.bytes:
        return False
    content = (local.folder / there.path).read_bytes()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def tag_target(api: HfApi, wish: Wish) -> str | None:
    """Return the commit that the wanted tag names already, if it is there."""

    def ask() -> str | None:
        refs = api.list_repo_refs(wish.repo, repo_type=wish.type)
        return next((ref.target_commit for ref in refs.tags if ref.name == wish.tag), None)

    return retrying(f"read the tags of {wish.repo}", ask)


def describe(local: Local, remote: Remote | None, changes: Changes, wish: Wish) -> Iterator[str]:
    """Yield the plan, line by line."""
    after = "public" if wish.public else f"gated ({wish.gated})" if wish.gated else ""
    if remote is None:
        state = "the Hub was not asked"
    elif remote.sha is None:
        state = "new, or not visible with this token; created private"
    else:
        state = f"{'private' if remote.private else 'public'}, at {remote.sha[:12]}"
    yield f"{wish.type} {wish.repo}: {state}" + (f", {after} in the end" if after else "")
    for name, entry in local.files.items():
        what = "add" if name in changes.add else "change" if name in changes.change else "keep"
        yield f"  {what:6}  {_readable(entry.bytes):>8}  {entry.sha256[:12]}  {name}"
    for name in changes.delete:
        yield f"  {'delete':6}  {'':>8}  {'':12}  {name}"
    total = sum(local.files[name].bytes for name in (*changes.add, *changes.change))
    yield f"{len(local.files)} files, {_readable(total)} to send; looked through, nothing found that must stay here"
    if wish.secrets:
        yield f"secrets of the Space, from the environment: {', '.join(wish.secrets)}"
    if wish.tag:
        yield f"tag {wish.tag}"


def _readable(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
