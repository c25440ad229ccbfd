# SPDX-License-Identifier: Apache-2.0
"""Many requests to an unreliable endpoint: nothing is lost, nothing is paid for twice, no key is shown."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pefomed_recipes import chat_api
from pefomed_recipes.chat_api import ChatRequest, Endpoint, ask_all, estimate
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.ledger import Ledger, Reply

from .stub_chat import StubChat, stub_chat

SECRET = "sk-a-secret-key"
FAULTS = ("", "429 0.02", "500", "503", "slow 2", "torn", "garbage", "429", "408")


def said(body) -> str:
    return body["messages"][0]["content"]


def requests(count: int) -> list[ChatRequest]:
    return [ChatRequest([{"role": "user", "content": f"question {n}"}], max_tokens=8) for n in range(count)]


def endpoint(server: StubChat, **settings) -> Endpoint:
    return Endpoint(**{"url": server.url, "model": "judge", "timeout_seconds": 1.0, **settings})


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_api, "FIRST_WAIT_SECONDS", 0.01)


def test_thirty_two_at_once_against_every_fault_lose_and_double_nothing(tmp_path: Path) -> None:
    together = threading.Barrier(32, timeout=30)
    kinds: set[str] = set()

    def fault(body, attempt: int) -> str:
        if said(body) in {f"question {n}" for n in range(32)} and attempt == 1:
            together.wait()  # goes on only with 32 requests in flight
        kinds.add(FAULTS[zlib.crc32(said(body).encode()) % len(FAULTS)])
        kind = FAULTS[zlib.crc32(said(body).encode()) % len(FAULTS)]
        return kind if attempt <= (1 if "slow" in kind else 2) else ""

    asked = requests(300)
    with stub_chat(said, fault) as server:
        there = endpoint(server, concurrency=32, timeout_seconds=1.4)
        assert ask_all(asked, there, Ledger(tmp_path / "ledger.jsonl")) == {}
        served = len(server.bodies)
        ledger = Ledger(tmp_path / "ledger.jsonl")
        assert ask_all(asked, there, ledger) == {}
        assert len(server.bodies) == served  # a rerun asks nothing
    replies = [ledger[request.key(there)] for request in asked]
    assert [reply.text for reply in replies] == [request.messages[0]["content"] for request in asked]
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 300
    assert kinds == set(FAULTS) and not together.broken and server.most_at_once >= 32
    assert {reply.attempts for reply in replies} == {1, 2, 3}
    assert {(reply.model, reply.input_tokens, reply.output_tokens) for reply in replies} == {("judge-2026-11", 50, 5)}


def test_as_many_are_asked_at_once_as_may_be(tmp_path: Path) -> None:
    with stub_chat(said, lambda body, attempt: "slow 0.3") as server:
        there = endpoint(server, concurrency=4, timeout_seconds=30.0)
        assert ask_all(requests(8), there, Ledger(tmp_path / "ledger.jsonl")) == {}
        assert server.most_at_once == 4


def test_an_endpoint_that_answers_nothing_is_given_up(tmp_path: Path) -> None:
    with stub_chat(said, lambda body, attempt: "400") as server:
        with pytest.raises(PeFoMedError, match="answered none of 8 requests; the last time: status 400"):
            ask_all(requests(100), endpoint(server), Ledger(tmp_path / "ledger.jsonl"))
        assert len(server.bodies) < 20


def test_no_proxy_carries_what_stays_in_the_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stub_chat(said) as proxy, stub_chat(said) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert ask_all(requests(2), endpoint(server), Ledger(tmp_path / "ledger.jsonl")) == {}
        assert len(server.bodies) == 2 and not proxy.bodies


def test_what_never_passes_is_named_and_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    asked = requests(4)
    with stub_chat(said, lambda body, attempt: "500" if said(body) == "question 2" else "") as server:
        failures = ask_all(asked, endpoint(server, attempts=3), ledger)
        assert failures == {asked[2].key(endpoint(server)): "status 500"}
        assert len(server.bodies) == 3 + 3
        server.fault = lambda body, attempt: ""
        assert ask_all(asked, endpoint(server), ledger) == {}
        assert len(server.bodies) == 3 + 3 + 1


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_request_that_the_server_rejects_is_not_repeated(tmp_path: Path, status: str) -> None:
    with stub_chat(said, lambda body, attempt: status) as server:
        failures = ask_all(requests(2), endpoint(server), Ledger(tmp_path / "ledger.jsonl"))
        assert set(failures.values()) == {f"status {status}"} and len(server.bodies) == 2


@pytest.mark.parametrize(
    ("status", "words"), [("401", "refuses the key"), ("404", "--url"), ("402", "paid"), ("302", "not followed")]
)
def test_what_can_never_pass_ends_the_run_with_one_sentence_without_the_key(
    tmp_path: Path, status: str, words: str
) -> None:
    with stub_chat(said, lambda body, attempt: status) as server:
        with pytest.raises(PeFoMedError, match=words) as refused:
            ask_all(requests(50), endpoint(server, api_key=SECRET), Ledger(tmp_path / "ledger.jsonl"))
        assert len(server.bodies) <= 8
    assert SECRET not in str(refused.value) and "\n" not in str(refused.value)


def test_no_server_is_a_failed_connection(tmp_path: Path) -> None:
    nobody = Endpoint("http://127.0.0.1:9/v1", "judge", attempts=2)
    assert set(ask_all(requests(2), nobody, Ledger(tmp_path / "l.jsonl")).values()) == {
        "connection failed (ConnectError)"
    }


def test_the_key_of_the_hub_is_never_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_hub")
    with stub_chat(said) as server:
        ask_all(requests(1), endpoint(server), Ledger(tmp_path / "one.jsonl"))
        ask_all(requests(1), endpoint(server, api_key=SECRET), Ledger(tmp_path / "two.jsonl"))
        without, with_key = (json.dumps(headers) for headers in server.headers)
    assert "hf_of_the_hub" not in without + with_key and f"Bearer {SECRET}" in with_key
    assert SECRET not in repr(endpoint(server, api_key=SECRET))


def test_a_pace_per_minute_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[float] = []
    with stub_chat(said, lambda body, attempt: starts.append(chat_api.time.monotonic()) or "") as server:
        ask_all(requests(6), endpoint(server, per_minute=1200), Ledger(tmp_path / "ledger.jsonl"))
    assert starts[-1] - starts[0] >= 5 * 60 / 1200 - 0.02


def test_the_cost_is_known_before_and_limits_the_run(tmp_path: Path) -> None:
    asked, ledger = requests(40), Ledger(tmp_path / "ledger.jsonl")
    with stub_chat(said) as server:
        dear = endpoint(server, concurrency=1, input_price=1e4, output_price=1e4)  # .03 a token of question, .08 out
        expected = estimate([*asked, asked[0]], dear, ledger)
        assert (expected.new, expected.kept) == (40, 0) and expected.cost == pytest.approx(40 * (3 + 8) / 100)
        with pytest.raises(PeFoMedError, match="nothing was asked: 40 requests"):
            ask_all(asked, dear, ledger, max_cost=4)
        assert not server.bodies
        with pytest.raises(PeFoMedError, match="stopped after 10 replies, which are kept"):  # 55 tokens each, not 11
            ask_all(asked, dear, ledger, max_cost=5)
        assert len(Ledger(ledger.path)) == 10
        with pytest.raises(PeFoMedError, match="stopped after 20 replies"):
            ask_all(asked, replace(dear, input_price=1e3, output_price=1e3), ledger, max_cost=1.2)


def test_a_limit_without_prices_limits_nothing_and_is_refused(tmp_path: Path) -> None:
    with stub_chat(said) as server, pytest.raises(ConfigError, match="without prices"):
        ask_all(requests(1), endpoint(server), Ledger(tmp_path / "ledger.jsonl"), max_cost=5)


def test_samples_of_one_request_and_other_models_and_endpoints_are_requests_of_their_own() -> None:
    one, there = requests(1)[0], Endpoint("https://one.example/v1", "judge")
    keys = {
        one.key(there),
        replace(one, sample=1).key(there),
        replace(one, temperature=1.0).key(there),
        one.key(replace(there, model="b")),
        one.key(replace(there, url="https://two.example/v1")),
    }
    assert len(keys) == 5 and one.key(there) == requests(1)[0].key(replace(there, url="https://one.example/v1/"))


@pytest.mark.parametrize(
    "url",
    ["https://me:sk-a-secret-key@host/v1", "me:sk-a-secret-key@host/v1", "https://host/v1?key=sk-a-secret-key"],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="--key-variable") as refused:
        Endpoint(url, "judge")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("url", ["host", "file:///etc/passwd", "http://host:port/v1", "http:///v1"])
def test_what_is_no_address_is_refused_in_one_sentence(url: str) -> None:
    with pytest.raises(ConfigError, match="expected an address such as"):
        Endpoint(url, "judge")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("2.5", 2.5), ("-3", 0), ("nan", 0), ("inf", 0), ("soon", 0), ("", 0), ("Wed, 21 Oct 2015 07:28:00", 0)],
)
def test_any_retry_after_is_understood_or_passed_over(value: str, seconds: float) -> None:
    assert chat_api._retry_after({"retry-after": value}) == seconds


def test_a_retry_after_without_a_zone_is_in_utc() -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    assert 50 < chat_api._retry_after({"retry-after": f"{later:%a, %d %b %Y %H:%M:%S} -0000"}) <= 60


def test_two_runs_at_once_pay_for_each_reply_once(tmp_path: Path) -> None:
    asked, path = requests(12), tmp_path / "ledger.jsonl"
    with stub_chat(said, lambda body, attempt: "slow 0.05") as server:
        there = endpoint(server, concurrency=4)
        ledgers = [Ledger(path), Ledger(path)]
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda ledger: ask_all(asked, there, ledger), ledgers)) == [{}, {}]
        assert len(server.bodies) == 12
    assert all(len(ledger) == 12 for ledger in ledgers) and len(path.read_text().splitlines()) == 12
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.jsonl"]


def test_a_killed_run_keeps_its_replies_and_the_next_one_asks_for_the_rest(tmp_path: Path) -> None:
    path, asked = tmp_path / "ledger.jsonl", requests(20)
    with stub_chat(said, lambda body, attempt: "slow 0.05") as server:
        program = (
            "import sys; from pefomed_recipes.chat_api import *; "
            "asked = [ChatRequest([{'role': 'user', 'content': f'question {n}'}], max_tokens=8) for n in range(20)]; "
            "ask_all(asked, Endpoint(sys.argv[1], 'judge', concurrency=2), Ledger(sys.argv[2]))"
        )
        run = subprocess.Popen([sys.executable, "-c", program, server.url, str(path)])
        while sum(server.answered.values()) < 6:
            assert run.poll() is None
            time.sleep(0.01)
        run.kill()
        run.wait()
        kept = len(Ledger(path))
        served = len(server.bodies)
        assert 4 <= kept < 20
        assert ask_all(asked, endpoint(server, concurrency=2), Ledger(path)) == {}
        assert len(server.bodies) - served == 20 - kept
    assert len(Ledger(path)) == 20


def test_a_ledger_that_cannot_be_written_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with stub_chat(said) as server:
        with pytest.raises(ConfigError, match="cannot be written"):
            ask_all(requests(1), endpoint(server), Ledger(tmp_path / "file" / "ledger.jsonl"))
        with pytest.raises(PeFoMedError, match="cannot be read"):
            Ledger(tmp_path / "folder")
        assert not server.bodies


def test_half_a_character_in_a_reply_is_kept_as_a_question_mark(tmp_path: Path) -> None:
    ledger, [asked] = Ledger(tmp_path / "ledger.jsonl"), requests(1)
    with stub_chat(lambda body: "fine \ud800") as server:
        assert ask_all([asked], endpoint(server), ledger) == {}
        assert Ledger(ledger.path)[asked.key(endpoint(server))].text == "fine ?"


def test_a_torn_last_line_costs_one_reply_and_any_other_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).add(Reply("a", "1"))
    Ledger(path).add(Reply("b", "1"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    ledger = Ledger(path)
    assert "a" in ledger and "b" not in ledger
    ledger.add(Reply("c", "1"))
    assert set(Ledger(path).replies) == {"a", "c"}
    path.write_bytes(b"not json\n" + whole)
    with pytest.raises(PeFoMedError, match=r"ledger.jsonl, line 1: found no reply of a model"):
        Ledger(path)
