# SPDX-License-Identifier: Apache-2.0
"""Publishes a folder: private first, one commit on a known parent, compared with the Hub's hashes, tagged, then shown.

Each step can be done twice without harm, so that a run that was killed is simply started again. A commit is made only
on the parent that was read before; whether an unanswered one arrived is read from the Hub before another try.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from pefomed_recipes.errors import ConfigError, PeFoMedError

from .client import AGAIN, LOG_IN, hub_api, retrying, say, status_of
from .plan import (
    Changes,
    Local,
    Remote,
    Wish,
    check_wish,
    compare,
    describe,
    is_same,
    read_folder,
    read_remote,
    tag_target,
)


def publish_folder(folder: Path, wish: Wish, *, write: bool = False) -> str | None:
    """Print the plan and, with `write`, carry it out; return the commit that holds the folder then.

    Raises:
        ConfigError: options that contradict each other, or a secret's variable is not set.
        PeFoMedError: what must not be published was found, or the Hub refuses; one sentence each. What was not yet
            committed leaves no trace in the repository.
    """
    check_wish(wish)
    secrets = read_secrets(wish)
    local = read_folder(folder, wish)
    api = hub_api()
    if not write:
        show_plan(api, local, wish)
        return None
    check_token(api, wish)
    remote = read_remote(api, wish)
    check_remote(api, local, remote, wish)
    for line in describe(local, remote, compare(local, remote, wish.type), wish):
        print(line)
    check_card(api, local, wish)
    if remote.sha is None:
        remote = create(api, wish)
        check_remote(api, local, remote, wish)
    commit = commit_once(api, local, remote, wish)
    check_arrival(api, local, commit, wish)
    if wish.tag:
        set_tag(api, commit, wish)
    for name, value in secrets.items():
        retrying(f"set the secret {name}", lambda: api.add_space_secret(wish.repo, name, value))  # noqa: B023
        say(f"secret {name} is set")
    if wish.public or wish.gated:
        show_to_others(api, wish)
    prefix = "" if wish.type == "model" else f"{wish.type}s/"
    print(f"published: {constants.ENDPOINT}/{prefix}{wish.repo}/tree/{commit}")
    return commit


def show_plan(api: HfApi, local: Local, wish: Wish) -> None:
    """Print the plan. Only reads the Hub, and does without where it cannot be asked."""
    remote: Remote | None = None
    try:
        remote = read_remote(api, wish)
        check_token(api, wish)
    except PeFoMedError as error:
        say(f"{error}")
    if remote is not None:
        check_remote(api, local, remote, wish)
    for line in describe(local, remote, compare(local, remote or Remote(), wish.type), wish):
        print(line)
    print("dry run: nothing was written. --yes does it")


def read_secrets(wish: Wish) -> dict[str, str]:
    """Return the Space's secrets from the environment.

    Raises:
        ConfigError: a variable is not set, or it holds the very token that publishes.
    """
    missing = [variable for variable in wish.secrets.values() if not os.environ.get(variable)]
    if missing:
        raise ConfigError(f"--secret: the environment variable {missing[0]} is not set")
    secrets = {name: os.environ[variable] for name, variable in wish.secrets.items()}
    if get_token() in secrets.values():
        raise ConfigError("--secret: that is your own token, which can write; make one that only reads what it needs")
    return secrets


def check_token(api: HfApi, wish: Wish) -> None:
    """Check that there is a token and that it can write.

    Raises:
        PeFoMedError: it cannot.
    """
    if get_token() is None:
        raise PeFoMedError(f"cannot publish {wish.repo}: there is no token; {LOG_IN}")
    user = retrying("ask the Hub who you are", api.whoami)
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PeFoMedError(f"cannot publish {wish.repo}: the token can only read; {LOG_IN}")


def check_remote(api: HfApi, local: Local, remote: Remote, wish: Wish) -> None:
    """Check what is there already against what is wanted.

    Raises:
        PeFoMedError: a public repository for what must stay private, or the tag names something else.
    """
    if remote.sha is None:
        return
    if local.credentialed and not remote.private:
        raise PeFoMedError(
            f"{wish.repo} is public, and what was trained on credentialed data must not be; take another"
        )
    target = tag_target(api, wish) if wish.tag else None
    # a run that was killed behind its tag starts again: then nothing is left to commit
    if target is not None and (target != remote.sha or compare(local, remote, wish.type)):
        raise PeFoMedError(f"{wish.repo} has a tag {wish.tag}, at {target[:12]}; choose another --tag")


def check_card(api: HfApi, local: Local, wish: Wish) -> None:
    """Let the Hub look at the README's metadata before anything is created.

    Raises:
        PeFoMedError: it refuses them.
    """
    from huggingface_hub import RepoCard

    card = RepoCard.load(local.folder / "README.md", repo_type=wish.type, ignore_metadata_errors=True)

    def ask() -> None:
        try:
            card.validate(repo_type=wish.type)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise PeFoMedError(f"{local.folder}/README.md: the Hub refuses its metadata: {reason}") from None

    retrying("have the card checked", ask)


def create(api: HfApi, wish: Wish) -> Remote:
    """Create the repository, private, and return its first commit."""
    sdk = "gradio" if wish.type == "space" else None
    retrying(
        f"create {wish.repo}",
        lambda: api.create_repo(wish.repo, repo_type=wish.type, private=True, space_sdk=sdk, exist_ok=True),
    )
    remote = read_remote(api, wish)
    if remote.sha is None:
        raise PeFoMedError(f"{wish.repo} was created, but the Hub does not show it yet; {AGAIN}")
    say(f"created {wish.repo}, private")
    return remote


def commit_once(api: HfApi, local: Local, parent: Remote, wish: Wish) -> str:
    """Make the repository hold what the folder holds, by one commit or none, and return its commit.

    Raises:
        PeFoMedError: the branch has moved; nothing was written.
    """
    changes = compare(local, parent, wish.type)
    if not changes:
        say("the Hub has it already: no commit is needed")
        return str(parent.sha)
    operations = operations_of(local, changes)
    tried = False

    def attempt() -> str:
        nonlocal tried
        if tried and (done := arrived()):
            return done
        tried = True
        say(f"sending {len(changes.add) + len(changes.change)} files")
        try:
            return api.create_commit(
                wish.repo,
                operations,
                commit_message=f"Publish {wish.tag}" if wish.tag else "Publish with PeFoMed",
                repo_type=wish.type,
                parent_commit=parent.sha,
            ).oid
        except HfHubHTTPError as error:
            if status_of(error) == 412 and (done := arrived()):
                return done
            raise
        except ValueError as error:  # the card, once more; never the token
            raise PeFoMedError(f"cannot commit to {wish.repo}: {str(error).splitlines()[0]}") from None

    def arrived() -> str | None:
        now = read_remote(api, wish)
        if not compare(local, now, wish.type):
            return str(now.sha)
        if now.sha != parent.sha:
            raise PeFoMedError(
                f"cannot commit to {wish.repo}: main has moved from {str(parent.sha)[:12]} to {str(now.sha)[:12]} "
                "meanwhile, so nothing was written. Look at what was committed there, then run the same command again"
            )
        return None

    return retrying(f"commit to {wish.repo}", attempt)


def operations_of(local: Local, changes: Changes) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Return a commit's operations; contents are read from the disk as they are sent."""
    sent = [CommitOperationAdd(name, str(local.folder / name)) for name in (*changes.add, *changes.change)]
    return [*sent, *(CommitOperationDelete(name) for name in changes.delete)]


def check_arrival(api: HfApi, local: Local, commit: str, wish: Wish) -> None:
    """Compare every file's hash with the Hub's at this commit.

    Raises:
        PeFoMedError: one differs or is missing; the repository stays private and untagged.
    """

    def there() -> dict[str, bool]:
        rows = api.get_paths_info(wish.repo, list(local.files), revision=commit, repo_type=wish.type)
        return {row.path: hasattr(row, "blob_id") and is_same(local, row) for row in rows}  # type: ignore[arg-type]

    found = retrying(f"compare {wish.repo} with the folder", there)
    wrong = [name for name in local.files if not found.get(name)]
    if wrong:
        raise PeFoMedError(
            f"{wish.repo} at {commit[:12]} does not hold what was sent: {', '.join(wrong[:5])}. It was neither tagged "
            f"nor shown to others; {AGAIN}"
        )
    say(f"{len(found)} files at {commit[:12]} have the folder's hashes")


def set_tag(api: HfApi, commit: str, wish: Wish) -> None:
    """Tag the commit.

    Raises:
        PeFoMedError: the tag names another commit.
    """
    name = str(wish.tag)
    retrying(
        f"tag {wish.repo}",
        lambda: api.create_tag(wish.repo, tag=name, revision=commit, repo_type=wish.type, exist_ok=True),
    )
    target = tag_target(api, wish)
    if target != commit:
        raise PeFoMedError(f"{wish.repo} has a tag {wish.tag}, at {str(target)[:12]}; choose another --tag")
    say(f"tagged {wish.tag}")


def show_to_others(api: HfApi, wish: Wish) -> None:
    """Gate the repository, make it public, or both; the gate is there before anybody can look."""
    if wish.gated:
        gated: Literal["auto", "manual"] = "manual" if wish.gated == "manual" else "auto"
        retrying(f"gate {wish.repo}", lambda: api.update_repo_settings(wish.repo, repo_type=wish.type, gated=gated))
        say(f"gated: {gated}")
    if wish.public:
        retrying(
            f"make {wish.repo} public",
            lambda: api.update_repo_settings(wish.repo, repo_type=wish.type, private=False),
        )
        say("public")
