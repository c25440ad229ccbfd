# SPDX-License-Identifier: Apache-2.0
"""Publishing through the real client: one commit or none, whatever fails on the way; nothing leaks."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ..loopback_hub import LoopbackHub, Repository, loopback_hub
from ..loopback_hub.server import OTHER, READER, WRITER
from .loopback import REPO, Pefomed, environment_of, pefomed_of, seal, start, write_adapter

pytestmark = pytest.mark.integration

BOTH_MODES = pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])


def repository(hub: LoopbackHub) -> Repository:
    return hub.store.repositories["model", REPO]


def commits(hub: LoopbackHub) -> list[str]:
    """The titles of all commits but the Hub's own first."""
    return [commit["title"] for commit in repository(hub).commits[1:]]


def published(hub: LoopbackHub, folder: Path) -> bool:
    """Whether the head of main holds the folder's files and the Hub's own, byte by byte."""
    files = repository(hub).files
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if set(files) != names | {".gitattributes"}:
        return False
    return all(hub.store.object(files[name]["sha256"]).read_bytes() == (folder / name).read_bytes() for name in names)


@BOTH_MODES
def test_publishing_is_one_private_tagged_commit(hub: LoopbackHub, pefomed: Pefomed, adapter: Path, xet: bool) -> None:
    process = pefomed("publish", adapter, "--repo", REPO, "--tag", "v1.0", "--yes", xet=xet)
    assert process.returncode == 0, process.stderr
    assert commits(hub) == ["Publish v1.0"]
    assert published(hub, adapter)
    held = repository(hub)
    assert held.private
    assert held.tags == {"v1.0": held.branches["main"]}
    assert hub.leaks() == []
    assert process.stdout.splitlines()[-1].endswith(f"{REPO}/tree/{held.branches['main']}")
    assert any("xet-write-token" in line.path for line in hub.log) == xet


def test_a_dry_run_writes_nothing(hub: LoopbackHub, pefomed: Pefomed, adapter: Path) -> None:
    process = pefomed("publish", adapter, "--repo", REPO, "--tag", "v1", "--public")
    assert process.returncode == 0, process.stderr
    assert hub.writes() == []
    assert hub.log
    for name in ("adapter_model.safetensors", "README.md", "pefomed_manifest.json"):
        assert name in process.stdout
    assert "dry run: nothing was written" in process.stdout
    assert hub.store.repositories == {}


def test_a_dry_run_says_that_the_token_can_only_read(hub: LoopbackHub, pefomed: Pefomed, adapter: Path) -> None:
    process = pefomed("publish", adapter, "--repo", REPO, token=READER)
    assert process.returncode == 0
    assert "the token can only read" in process.stderr and "README.md" in process.stdout
    assert hub.writes() == []


def test_a_folder_made_for_another_repository_is_refused(hub: LoopbackHub, pefomed: Pefomed, adapter: Path) -> None:
    process = pefomed("publish", adapter, "--repo", "ada/other", "--yes")
    assert process.returncode == 1
    assert f"was made for {REPO}" in process.stderr and "export it again with --repo ada/other" in process.stderr
    assert hub.log == []


def test_a_dry_run_shows_what_a_second_version_changes(hub: LoopbackHub, pefomed: Pefomed, adapter: Path) -> None:
    (adapter / "results.json").write_text("{}")
    seal(adapter)
    assert pefomed("publish", adapter, "--repo", REPO, "--yes").returncode == 0
    (adapter / "results.json").unlink()
    (adapter / "README.md").write_text((adapter / "README.md").read_text() + "more\n")
    seal(adapter)
    hub.log.clear()
    process = pefomed("publish", adapter, "--repo", REPO)
    told = {line.split()[-1]: line.split()[0] for line in process.stdout.splitlines() if line.startswith("  ")}
    assert told == {
        "README.md": "change",
        "adapter_config.json": "keep",
        "adapter_model.safetensors": "keep",
        "pefomed_manifest.json": "change",
        "results.json": "delete",
    }
    assert hub.writes() == []
    assert pefomed("publish", adapter, "--repo", REPO, "--yes").returncode == 0
    assert published(hub, adapter)
    assert len(commits(hub)) == 2
    assert [line.path for line in hub.log if line.method == "PUT"] == []  # the weights were not sent again


PLACES = {
    "whoami": "whoami",
    "information": "GET .*/api/models/[^/]+/[^/]+$",
    "create": "POST .*/repos/create",
    "card": "POST .*/validate-yaml",
    "preupload": "POST .*/preupload/",
    "lfs-batch": "POST .*/objects/batch",
    "lfs-put": "PUT .*/upload/",
    "commit": "POST .*/commit/",
    "compare": "POST .*/paths-info/",
    "tag": "POST .*/tag/",
    "refs": "GET .*/refs",
    "settings": "PUT .*/settings",
}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind", ["503", pytest.param("429", marks=SLOW), pytest.param("drop", marks=SLOW), "lose_reply"]
)
@pytest.mark.parametrize("place", PLACES)
def test_a_passing_fault_leaves_one_commit(
    hub: LoopbackHub, pefomed: Pefomed, adapter: Path, place: str, kind: str
) -> None:
    hub.fault(PLACES[place], kind, times=2, headers={"Retry-After": "1"} if kind == "429" else {})
    process = pefomed("publish", adapter, "--repo", REPO, "--tag", "v1", "--gated", "manual", "--yes")
    assert process.returncode == 0, process.stderr
    assert any(line.fault == kind for line in hub.log)
    assert commits(hub) == ["Publish v1"]
    assert published(hub, adapter)
    assert repository(hub).gated == "manual"
    assert WRITER not in process.stdout + process.stderr


@pytest.mark.parametrize("kind", ["503", "drop"])
@pytest.mark.parametrize("place", ["xet-write-token", "POST .*/commit/"], ids=["token", "commit"])
def test_a_passing_fault_leaves_one_commit_with_xet(
    hub: LoopbackHub, pefomed: Pefomed, adapter: Path, place: str, kind: str
) -> None:
    hub.fault(place, kind, times=2)
    process = pefomed("publish", adapter, "--repo", REPO, "--yes", xet=True)
    assert process.returncode == 0, process.stderr
    assert commits(hub) == ["Publish with PeFoMed"]
    assert published(hub, adapter)


@pytest.mark.parametrize("place", ["create", "preupload", "lfs-put", "commit"])
def test_a_lasting_fault_leaves_no_half_repository_and_the_next_run_finishes(
    hub: LoopbackHub, pefomed: Pefomed, adapter: Path, place: str
) -> None:
    hub.fault(PLACES[place], "503", times=99)
    process = pefomed("publish", adapter, "--repo", REPO, "--tag", "v1", "--yes")
    assert process.returncode == 1
    assert len(errors := [line for line in process.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "503" in errors[0] and "run the same command again" in errors[0]
    if hub.store.repositories:
        assert commits(hub) == []
        assert repository(hub).private and not repository(hub).tags
    hub.faults.clear()
    assert pefomed("publish", adapter, "--repo", REPO, "--tag", "v1", "--yes").returncode == 0
    assert commits(hub) == ["Publish v1"]
    assert published(hub, adapter)


@pytest.mark.parametrize("place", ["create", "lfs-put", "commit", "tag", "settings"])
def test_a_killed_run_is_started_again_and_sends_nothing_twice(
    hub: LoopbackHub, pefomed: Pefomed, adapter: Path, tmp_path: Path, place: str
) -> None:
    hub.fault(PLACES[place], "hang")
    arguments = ("publish", adapter, "--repo", REPO, "--tag", "v1", "--public", "--yes")
    process = start(arguments, environment_of(hub, tmp_path), tmp_path)
    assert hub.reached.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    hub.log.clear()
    again = pefomed(*arguments)
    assert again.returncode == 0, again.stderr
    assert commits(hub) == ["Publish v1"]
    assert published(hub, adapter)
    assert repository(hub).tags and not repository(hub).private
    sent = [line for line in hub.log if line.method == "PUT" and "/upload/" in line.path]
    assert len(sent) == (place in ("create", "lfs-put"))


def test_a_server_that_was_restarted_goes_on(tmp_path: Path, adapter: Path) -> None:
    for _ in range(2):
        with loopback_hub(tmp_path / "hub") as hub:
            process = pefomed_of(hub, tmp_path)("publish", adapter, "--repo", REPO, "--tag", "v1", "--yes")
            assert process.returncode == 0, process.stderr
            assert commits(hub) == ["Publish v1"]


def test_two_at_once_make_one_commit(hub: LoopbackHub, pefomed: Pefomed, adapter: Path) -> None:
    both = [threading.Thread(target=pefomed, args=("publish", adapter, "--repo", REPO, "--yes")) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(commits(hub)) == 1
    assert published(hub, adapter)


def test_a_branch_that_moved_meanwhile_is_left_alone(hub: LoopbackHub, pefomed: Pefomed, adapter: Path) -> None:
    def beside() -> None:
        entry = hub.store.keep(b"by somebody else")
        hub.store.commit(repository(hub), "main", "their commit", {"theirs.md": entry}, [])

    hub.fault(PLACES["commit"], "", action=beside)
    process = pefomed("publish", adapter, "--repo", REPO, "--tag", "v1", "--public", "--yes")
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(f"error: cannot commit to {REPO}: main has moved from")
    assert commits(hub) == ["their commit"]
    assert repository(hub).private and not repository(hub).tags


def test_wrong_bytes_on_the_hub_are_noticed_before_the_tag(hub: LoopbackHub, pefomed: Pefomed, adapter: Path) -> None:
    def spoil() -> None:
        repository(hub).files["adapter_model.safetensors"]["sha256"] = "0" * 64

    hub.fault(PLACES["compare"], "", action=spoil)
    process = pefomed("publish", adapter, "--repo", REPO, "--tag", "v1", "--public", "--yes")
    assert process.returncode == 1
    assert "does not hold what was sent: adapter_model.safetensors" in process.stderr
    assert repository(hub).private and not repository(hub).tags


REFUSALS: dict[str, tuple[Callable[[LoopbackHub], None], dict[str, str], str, int]] = {
    "expired token": (lambda hub: None, {"token": "hf_" + "x" * 34}, "does not accept the token (401", 0),
    "read-only token": (lambda hub: None, {"token": READER}, "the token can only read", 0),
    "no token": (lambda hub: None, {"token": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, "there is no token", 0),
    "another's name": (lambda hub: None, {"token": OTHER}, "the token may not do this (403)", 0),
    "paid plan": (lambda hub: hub.fault(PLACES["create"], "402"), {}, "a paid plan (402)", 0),
    "forbidden commit": (lambda hub: hub.fault(PLACES["commit"], "403"), {}, "may not do this (403)", 0),
    "unknown place": (lambda hub: hub.fault(PLACES["preupload"], "404"), {}, "404", 0),
    "too many requests": (lambda hub: hub.fault(PLACES["commit"], "429", 99), {}, "no more requests for now (429)", 0),
    "offline": (lambda hub: None, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set", 0),
    "no network": (lambda hub: None, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "no connection to http://127.0.0.1:9", 0),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_sentence_without_the_token(
    hub: LoopbackHub, pefomed: Pefomed, adapter: Path, case: str
) -> None:
    prepare, settings, said, made = REFUSALS[case]
    prepare(hub)
    process = pefomed("publish", adapter, "--repo", REPO, "--yes", **settings)
    assert process.returncode == 1
    errors = [line for line in process.stderr.splitlines() if not line.startswith(("cannot ", "created ", "sending "))]
    assert len(errors) == 1, process.stderr
    assert errors[0].startswith("error: ") and said in errors[0]
    assert "Traceback" not in process.stderr
    assert settings.get("token") or WRITER not in process.stdout + process.stderr
    if hub.store.repositories:
        assert len(commits(hub)) == made


def test_a_token_that_the_server_repeats_is_not_shown(hub: LoopbackHub, pefomed: Pefomed, adapter: Path) -> None:
    hub.fault(PLACES["commit"], "403", headers={"X-Error-Message": f"no rights for {WRITER}"})
    process = pefomed("publish", adapter, "--repo", REPO, "--yes")
    assert process.returncode == 1
    assert "hf_***" in process.stderr
    assert WRITER not in process.stdout + process.stderr


def test_a_tag_is_not_moved(hub: LoopbackHub, pefomed: Pefomed, adapter: Path) -> None:
    assert pefomed("publish", adapter, "--repo", REPO, "--tag", "v1", "--yes").returncode == 0
    (adapter / "results.json").write_text("{}")
    seal(adapter)
    process = pefomed("publish", adapter, "--repo", REPO, "--tag", "v1", "--yes")
    assert process.returncode == 1
    assert "has a tag v1" in process.stderr and "choose another --tag" in process.stderr
    assert commits(hub) == ["Publish v1"]


def test_public_and_gated_come_last(hub: LoopbackHub, pefomed: Pefomed, adapter: Path) -> None:
    process = pefomed("publish", adapter, "--repo", REPO, "--tag", "v1", "--public", "--gated", "auto", "--yes")
    assert process.returncode == 0, process.stderr
    held = repository(hub)
    assert (held.private, held.gated) == (False, "auto")
    order = [
        place for line in hub.log for place in ("/commit/", "/paths-info/", "/tag/", "/settings") if place in line.path
    ]
    assert order == ["/commit/", "/paths-info/", "/tag/", "/settings", "/settings"]


def test_what_came_of_credentialed_data_stays_private(hub: LoopbackHub, pefomed: Pefomed, tmp_path: Path) -> None:
    for number, (said, sources) in enumerate(((True, ()), (None, ()), (False, ("mimic_cxr",)))):
        folder = write_adapter(tmp_path / f"credentialed{number}", credentialed=said, sources=sources)
        process = pefomed("publish", folder, "--repo", REPO, "--yes")
        assert process.returncode == 1
        assert "credentialed data" in process.stderr and "--allow-credentialed" in process.stderr
        assert hub.writes() == []
    process = pefomed("publish", folder, "--repo", REPO, "--yes", "--allow-credentialed", "--public")
    assert process.returncode == 2
    hub.store.create("model", REPO, private=False, sdk=None)
    process = pefomed("publish", folder, "--repo", REPO, "--yes", "--allow-credentialed")
    assert process.returncode == 1 and "is public" in process.stderr
    repository(hub).private = True
    assert pefomed("publish", folder, "--repo", REPO, "--yes", "--allow-credentialed").returncode == 0
    assert repository(hub).private


def test_a_card_that_the_hub_refuses_creates_nothing(hub: LoopbackHub, pefomed: Pefomed, adapter: Path) -> None:
    hub.fault(PLACES["card"], "400")
    process = pefomed("publish", adapter, "--repo", REPO, "--yes")
    assert process.returncode == 1
    assert "the Hub refuses its metadata" in process.stderr
    assert hub.store.repositories == {}


def test_a_data_set_card_leaves_the_data_alone(hub: LoopbackHub, pefomed: Pefomed, tmp_path: Path) -> None:
    held = hub.store.create("dataset", "ada/phantoms", private=True, sdk=None)
    hub.store.commit(held, "main", "data", {"train.parquet": hub.store.keep(b"rows")}, [])
    card = tmp_path / "card"
    card.mkdir()
    (card / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Phantoms\n")
    process = pefomed("publish", card, "--repo", "ada/phantoms", "--type", "dataset", "--yes")
    assert process.returncode == 0, process.stderr
    assert set(held.files) == {".gitattributes", "README.md", "train.parquet"}


def test_a_space_gets_its_files_and_its_secret_by_name(hub: LoopbackHub, pefomed: Pefomed, tmp_path: Path) -> None:
    folder, secret = tmp_path / "space", "hf_" + "s" * 34
    made = pefomed("space", folder, "--adapter", REPO, "--revision", "a" * 40, "--title", "Lungs")
    assert made.returncode == 0, made.stderr
    arguments = ("publish", folder, "--repo", "ada/page", "--type", "space", "--secret", "HF_TOKEN=READ_TOKEN")
    dry = pefomed(*arguments, READ_TOKEN=secret)
    assert dry.returncode == 0, dry.stderr
    assert hub.writes() == []
    process = pefomed(*arguments, "--yes", READ_TOKEN=secret)
    assert process.returncode == 0, process.stderr
    held = hub.store.repositories["space", "ada/page"]
    assert (held.sdk, held.private, held.secrets) == ("gradio", True, {"HF_TOKEN": secret})
    assert {"README.md", "app.py", "requirements.txt"} <= set(held.files)
    assert secret not in process.stdout + process.stderr + dry.stdout + dry.stderr
    assert pefomed(*arguments, "--yes").returncode == 2  # the variable is not set
    own = pefomed(*arguments, "--yes", READ_TOKEN=WRITER)
    assert own.returncode == 2 and "your own token" in own.stderr


def test_a_space_without_a_plan_is_explained(hub: LoopbackHub, pefomed: Pefomed, tmp_path: Path) -> None:
    hub.spaces_cost_money = True
    pefomed("space", tmp_path / "space", "--adapter", REPO, "--revision", "a" * 40)
    process = pefomed("publish", tmp_path / "space", "--repo", "ada/page", "--type", "space", "--yes")
    assert process.returncode == 1
    assert "a paid plan (402): A paid plan is needed" in process.stderr
    assert hub.store.repositories == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--repo", "lung-adapter"), "expected user/name"),
        (("--repo", REPO, "--tag", "a b"), "--tag"),
        (("--repo", REPO, "--secret", "A=B"), "--secret is for a Space"),
        (("--repo", REPO, "--type", "space", "--gated", "auto"), "cannot be gated"),
        (("--repo", REPO, "--forbidden", "missing.txt"), "no such file"),
    ],
)
def test_contradicting_options_are_refused(
    hub: LoopbackHub, pefomed: Pefomed, adapter: Path, options: tuple[str, ...], said: str
) -> None:
    process = pefomed("publish", adapter, *options, "--yes")
    assert process.returncode == 2
    assert said in process.stderr
    assert hub.log == []


def test_the_log_of_the_hub_is_kept_as_json_can_say(hub: LoopbackHub, pefomed: Pefomed, adapter: Path) -> None:
    pefomed("publish", adapter, "--repo", REPO, "--yes")
    state = json.loads((hub.store.root / "state.json").read_text())
    assert [row["id"] for row in state] == [REPO]
