# SPDX-License-Identifier: Apache-2.0
"""Many requests to an unreliable endpoint: nothing is lost, nothing is paid for twice, no key is shown."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from pefomed_recipes import chat_api
from pefomed_recipes.chat_api import ChatRequest, Endpoint, ask_all, estimate
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.ledger import Ledger, Reply

from .stub_chat import StubChat, stub_chat

SECRET = "sk-a-secret-key"
FAULTS = ("", "429 0.02", "500", "503", "slow 1.5", "torn", "garbage", "429", "408")


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
    def fault(body, attempt: int) -> str:
        kind = FAULTS[zlib.crc32(said(body).encode()) % len(FAULTS)]
        return kind if attempt <= (1 if "slow" in kind else 2) else ""

    asked = requests(300)
    with stub_chat(said, fault) as server:
        there = endpoint(server, concurrency=32)
        assert ask_all(asked, there, Ledger(tmp_path / "ledger.jsonl")) == {}
        served = len(server.bodies)
        ledger = Ledger(tmp_path / "ledger.jsonl")
        assert ask_all(asked, there, ledger) == {}
        assert len(server.bodies) == served  # a rerun asks nothing
    replies = [ledger[request.key("judge")] for request in asked]
    assert [reply.text for reply in replies] == [request.messages[0]["content"] for request in asked]
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 300
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
        assert failures == {asked[2].key("judge"): "status 500"}
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


def test_samples_of_one_request_and_other_models_are_requests_of_their_own() -> None:
    one = requests(1)[0]
    keys = {
        one.key("judge"),
        replace(one, sample=1).key("judge"),
        replace(one, temperature=1.0).key("judge"),
        one.key("b"),
    }
    assert len(keys) == 4 and one.key("judge") == requests(1)[0].key("judge")


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
