# SPDX-License-Identifier: Apache-2.0
"""Several adapters on one base: each request is answered as by its adapter alone, in mixed batches too."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from modeling_pefomed import PeFoMedForConditionalGeneration, PeFoMedProcessor
from pefomed_recipes import cli
from pefomed_recipes.errors import ConfigError, PeFoMedError
from pefomed_recipes.inference.generate import Request, generate_answers, load_adapters, load_model
from pefomed_recipes.inference.switching import BASE, can_mix, check_names
from pefomed_recipes.models.bases import base_fingerprint, write_fingerprint
from pefomed_recipes.training.adapters import add_adapter

from ..modeling.tiny import ask, draw_image, encode

pytestmark = pytest.mark.integration

QUESTIONS = ("Is there a mass?", "Which organ is shown in the image, and what is wrong with it?")
FIRST, SECOND = draw_image(0), draw_image(1)
OPTIONS = {"max_new_tokens": 4}
MakeAdapter = Callable[..., Path]


@pytest.fixture(scope="module")
def make(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    """`make(name, method, seed)`: the folder of an adapter with random weights."""
    folders = tmp_path_factory.mktemp("several")

    def build(name: str, method: str = "lora", seed: int = 0, **changes: Any) -> Path:
        base = PeFoMedForConditionalGeneration.from_pretrained(base_folder)
        settings: dict[str, Any] = {"r": 4, "alpha": 8, "dropout": 0.0, **changes}
        adapted = add_adapter(base, method=method, **settings)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
        adapted.save_pretrained(folders / name)
        write_fingerprint(folders / name, adapted.base_fingerprint)
        PeFoMedProcessor.from_pretrained(base_folder).save_pretrained(folders / name)
        return folders / name

    return build


@pytest.fixture(scope="module")
def folders(make: MakeAdapter) -> dict[str, Path]:
    """Two LoRA adapters of other ranks and projectors."""
    return {"chest": make("chest", seed=1), "brain_v2": make("brain_v2", seed=2, r=2)}


@pytest.fixture(scope="module")
def both(folders: dict[str, Path]) -> tuple[PeftModel, PeFoMedProcessor]:
    """The base with both adapters."""
    return load_adapters(folders, dtype=torch.float32)


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path], base_folder: Path) -> dict[str, Any]:
    """Each adapter loaded by itself, and the base."""
    return {name: load_model(folder, dtype=torch.float32) for name, folder in {**folders, BASE: base_folder}.items()}


def requests_to(names: list[str | None], images: tuple[Any, ...] = ((FIRST,), (SECOND,))) -> list[Request]:
    return [
        Request(f"{question}/{image}/{name}", "vqa", QUESTIONS[question], images[image], name)
        for question in range(len(QUESTIONS))
        for image in range(len(images))
        for name in names
    ]


def answers_alone(alone: dict[str, Any], requests: list[Request], default: str) -> dict[str, str]:
    answers: dict[str, str] = {}
    for name, loaded in alone.items():
        own = [Request(r.id, r.task, r.instruction, r.images) for r in requests if (r.adapter or default) == name]
        answers |= dict(generate_answers(*loaded, own, rows_per_batch=1, **OPTIONS))
    return answers


@pytest.mark.parametrize("rows_per_batch", [5, 64])
@pytest.mark.parametrize("images", [((FIRST,), (SECOND,)), ((FIRST, SECOND), (SECOND, FIRST))], ids=["one", "two"])
def test_mixed_requests_are_answered_as_by_each_adapter_alone(
    both: Any, alone: dict[str, Any], rows_per_batch: int, images: tuple[Any, ...]
) -> None:
    requests = requests_to(["chest", BASE, "brain_v2", None], images)
    answers = dict(generate_answers(*both, requests, rows_per_batch=rows_per_batch, **OPTIONS))
    assert answers == answers_alone(alone, requests, default="chest")
    for question in range(len(QUESTIONS)):
        assert len({answers[f"{question}/0/{name}"] for name in ("chest", BASE, "brain_v2")}) == 3
        assert answers[f"{question}/0/None"] == answers[f"{question}/0/chest"]


def test_the_logits_of_a_mixed_batch_are_those_of_single_runs(both: Any, alone: dict[str, Any]) -> None:
    model, processor = both
    names = ["brain_v2", BASE, "chest", BASE]
    conversation = ask("Is there a mass?", FIRST)
    batch = encode(processor, *[conversation] * 4)
    single = encode(processor, conversation)
    with torch.no_grad():
        mixed = model(**batch, adapter_names=names).logits
        for row, name in enumerate(names):
            expected = alone[name][0](**single).logits[0]
            assert torch.allclose(mixed[row], expected, rtol=0, atol=1e-5), name
        assert (mixed[0] - mixed[1]).abs().max() > 1e-2


def test_the_base_beside_an_adapter_is_the_base_exactly_projector_included(both: Any, alone: dict[str, Any]) -> None:
    model, processor = both
    inputs = encode(processor, ask("Is there a mass?", FIRST))
    with torch.no_grad():
        adapted = model(**inputs).logits
        with model.disable_adapter():
            assert torch.equal(model(**inputs).logits, alone[BASE][0](**inputs).logits)
        assert torch.equal(model(**inputs).logits, adapted)


def test_adapters_of_another_method_are_switched_not_mixed(make: MakeAdapter, base_folder: Path) -> None:
    folders = {name: make(name, method="ia3", seed=seed) for seed, name in enumerate(("first_ia3", "second_ia3"), 5)}
    model, processor = load_adapters(folders, dtype=torch.float32)
    assert not can_mix(model)
    alone = {name: load_model(folder, dtype=torch.float32) for name, folder in {**folders, BASE: base_folder}.items()}
    requests = requests_to(["first_ia3", "second_ia3", BASE])
    answers = dict(generate_answers(model, processor, requests, **OPTIONS))
    assert answers == answers_alone(alone, requests, default="first_ia3")


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "llama_adapter", "dora"])
def test_one_adapter_of_any_method_is_compared_with_its_base(
    make: MakeAdapter, base_folder: Path, method: str
) -> None:
    folder = make(f"only_{method}", method=method, seed=8, virtual_tokens=3)
    loaded = load_adapters({"only": folder}, dtype=torch.float32)
    alone = {"only": load_model(folder, dtype=torch.float32), BASE: load_model(base_folder, dtype=torch.float32)}
    requests = requests_to(["only", BASE])
    answers = dict(generate_answers(*loaded, requests, **OPTIONS))
    assert answers == answers_alone(alone, requests, default="only")
    assert any(answers[f"{question}/0/only"] != answers[f"{question}/0/{BASE}"] for question in range(2))


@pytest.mark.parametrize("name", ["", "a", "q_proj", "lora", BASE, "v1.2", "proj"])
def test_names_that_peft_would_confuse_are_refused(alone: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match="adapter name"):
        check_names(["chest", name], alone[BASE][0])


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("lora", "ia3"), "one PEFT method; found: adapter_0 is LORA, adapter_1 is IA3"),
        (("lora", "pissa"), "adapter_1.*pissa changes the base"),
        (("olora",), "adapter_0.*olora changes the base"),
        (("p_tuning", "p_tuning"), "only one adapter of P_TUNING"),
    ],
)
def test_adapters_that_cannot_share_a_base_are_refused(
    make: MakeAdapter, methods: tuple[str, ...], message: str
) -> None:
    named = {f"adapter_{n}": make(f"{method}_{n}_refused", method=method) for n, method in enumerate(methods)}
    with pytest.raises(PeFoMedError, match=message):
        load_adapters(named)


def test_a_request_to_an_adapter_that_is_not_loaded_is_refused_with_those_that_are(both: Any, alone: Any) -> None:
    request = Request("r", "vqa", "why", (FIRST,), "brain_v3")
    with pytest.raises(PeFoMedError, match="'brain_v3'.*did you mean brain_v2.*loaded are chest, brain_v2, __base__"):
        list(generate_answers(*both, [request]))
    with pytest.raises(PeFoMedError, match="load the model with load_adapters"):
        list(generate_answers(*alone["chest"], [request]))


def test_an_adapter_of_another_base_cannot_join(
    folders: dict[str, Path], base_folder: Path, make: MakeAdapter
) -> None:
    stranger = make("stranger")
    other = PeFoMedForConditionalGeneration.from_pretrained(base_folder)
    with torch.no_grad():
        other.model.language_model.norm.weight.add_(0.5)
    write_fingerprint(stranger, base_fingerprint(other))
    with pytest.raises(PeFoMedError, match="stranger: this adapter does not fit"):
        load_adapters({"chest": folders["chest"], "stranger": stranger})


def test_ask_shows_the_answers_with_and_without_the_adapter(
    folders: dict[str, Path],
    alone: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pefomed_recipes.inference.loading.default_dtype", lambda: torch.float32)
    FIRST.save(tmp_path / "image.png")
    command = ["ask", str(tmp_path / "image.png"), "why", f"--model={folders['chest']}", "--compare-base"]
    monkeypatch.setattr(sys, "argv", ["pefomed", *command])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)
    request = Request("r", "vqa", "why", (FIRST,))
    expected = [next(generate_answers(*alone[name], [request]))[1] for name in ("chest", BASE)]
    assert capsys.readouterr().out == f"adapter: {expected[0]}\nbase: {expected[1]}\n"


def test_a_base_is_no_adapter(base_folder: Path) -> None:
    with pytest.raises(PeFoMedError, match="base model; ask it as __base__"):
        load_adapters({"first_one": base_folder})


@pytest.mark.parametrize("method", ["lora", "p_tuning"])
@pytest.mark.parametrize("change", ["multi_modal_projector", "linear"])
def test_a_base_with_other_weights_is_refused_at_inference(
    make: MakeAdapter, base_folder: Path, tmp_path: Path, method: str, change: str
) -> None:
    folder = make(f"moved_{method}_{change}", method=method)
    other = PeFoMedForConditionalGeneration.from_pretrained(base_folder)
    parts = {
        "multi_modal_projector": other.model.multi_modal_projector.weight,
        "linear": other.model.language_model.layers[1].self_attn.q_proj.weight,
    }
    with torch.no_grad():
        parts[change].add_(0.1)
    other.save_pretrained(tmp_path / "other")
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(tmp_path / "other")
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(PeFoMedError, match=f"does not fit the base model.*other.*{change}.*found .*, expected "):
        load_model(folder)
