# SPDX-License-Identifier: Apache-2.0
"""One YAML, one run: every key is known or refused with the nearest name, and the command line has the last word."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from trl import SFTConfig

from pefomed_recipes.errors import ConfigError
from pefomed_recipes.training.arguments import (
    RecipeArguments,
    StageConfig,
    configs_folder,
    find_config,
    parse_arguments,
    resolved,
)
from pefomed_recipes.training.schedule import rates

RunPython = Callable[..., CompletedProcess[str]]

PACKAGED = sorted(str(path.relative_to(configs_folder()).with_suffix("")) for path in configs_folder().rglob("*.yaml"))
# Source: the table "Training" and the rows "LoRA" and "max text" of the paper's released code.
LORA = {"lora_r": 64, "lora_alpha": 16, "lora_dropout": 0.05}
COMMON = {"weight_decay": 0.05, "seed": 42, "max_length": 1024, "gradient_checkpointing": True, "template": "paper"}
VQA = {"task": "vqa", "max_steps": 50 * 100, "warmup_steps": 100, "learning_rate": 1e-5, "instruction": "mixed"}
VQA |= {"test_instruction": "short_answer", **COMMON, **LORA}
REPORT = {"task": "report", "max_steps": 4 * 100, "warmup_steps": 100, "learning_rate": 3e-5, **COMMON, **LORA}
PAPER: dict[str, dict[str, Any]] = {
    "stage1/paper": {"task": "caption", "max_steps": 5 * 1000, "warmup_steps": 1000, "learning_rate": 1e-5}
    | {"mixture": {"clef_caption": 60, "roco": 60, "medicat": 20, "mimic_cxr": 60}, **COMMON, **LORA},
    "stage2/vqa_rad": VQA,
    "stage2/slake": VQA,
    "stage2/path_vqa": VQA,
    "stage2/iu_xray": REPORT,
}
STEPS_PER_EPOCH = {name: 1000 if name == "stage1/paper" else 100 for name in PAPER}
LOWEST_RATE = {name: 1e-5 if name == "stage2/iu_xray" else 1e-6 for name in PAPER}
FIRST_RATE = 1e-6


def parse(*arguments: str, **defaults: Any) -> dict[str, Any]:
    """Every setting that the arguments lead to, by key."""
    recipe, config = parse_arguments(arguments, defaults, "test")
    return {**vars(config), **vars(recipe)}


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[str], str]:
    """`config_file(text)` writes a config and returns the option that names it."""

    def write(text: str) -> str:
        path = tmp_path / "own.yaml"
        path.write_text(text, encoding="utf-8")
        return f"--config={path}"

    return write


def test_there_are_configs_for_both_stages_of_paper_and_quickstart() -> None:
    assert {*PAPER, "stage1/phantoms", "stage2/phantoms_vqa"} <= set(PACKAGED)


@pytest.mark.parametrize("name", PACKAGED)
def test_every_value_of_a_packaged_config_reaches_the_run(name: str) -> None:
    settings = parse(f"--config={name}")
    written = yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
    assert {key: settings[key] for key in written} == written


@pytest.mark.parametrize("name", PAPER)
def test_paper_configs_hold_the_papers_values(name: str) -> None:
    settings = parse(f"--config={name}")
    assert {key: settings[key] for key in PAPER[name]} == PAPER[name]
    # a process of the released code takes 100 samples a step in stage 1, and 1 in stage 2, where one is a row
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    assert batch == (100 if name == "stage1/paper" else 1)
    assert name == "stage1/paper" or settings["max_questions_per_image"] == 1


def rate_by_hand(name: str, step: int) -> float:
    """The released code's rate, from the numbers of its table: a straight line, then a cosine in steps of an epoch."""
    peak, lowest = PAPER[name]["learning_rate"], LOWEST_RATE[name]
    warmup, epoch, steps = PAPER[name]["warmup_steps"], STEPS_PER_EPOCH[name], PAPER[name]["max_steps"]
    if step < warmup:
        return FIRST_RATE + (peak - FIRST_RATE) / warmup * step
    share = (step // epoch) * epoch / steps
    return peak * math.cos(math.pi * share / 2) ** 2 + lowest * math.sin(math.pi * share / 2) ** 2


@pytest.mark.parametrize("name", PAPER)
def test_every_step_has_the_released_codes_learning_rate(name: str) -> None:
    _, config = parse_arguments([f"--config={name}"], {}, "test")
    steps, warmup, peak = config.max_steps, PAPER[name]["warmup_steps"], PAPER[name]["learning_rate"]
    found = rates(config, steps)
    assert found == pytest.approx([rate_by_hand(name, step) for step in range(steps)], rel=1e-9)
    # the points that matter, as numbers
    epochs = steps // STEPS_PER_EPOCH[name]
    assert found[0] == pytest.approx(1e-6)
    assert found[warmup // 2] == pytest.approx((peak + 1e-6) / 2)
    assert found[warmup - 1] < peak and found[warmup - 1] == pytest.approx(peak, rel=0.01)
    assert found[warmup] == pytest.approx({5: 9.140576e-6, 50: 9.991120e-6, 4: 2.707107e-5}[epochs], rel=1e-6)
    assert found[steps // 2] == pytest.approx({5: 6.890576e-6, 50: 5.5e-6, 4: 2e-5}[epochs], rel=1e-6)
    assert found[-1] == pytest.approx({5: 1.859424e-6, 50: 1.008880e-6, 4: 1.292893e-5}[epochs], rel=1e-6)


def test_other_schedules_are_transformers_own() -> None:
    _, config = parse_arguments(["--warmup_steps=10", "--learning_rate=0.5"], {}, "test")
    found = rates(config, 100)
    assert found[0] == 0 and max(found) == found[10] == pytest.approx(0.5)
    assert found[55] == pytest.approx((0.5 + 1e-6) / 2) and found[-1] < 1e-3


def test_a_released_schedule_without_one_of_its_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="must have exactly min_lr, steps_per_epoch, warmup_start_lr"):
        parse('--lr_scheduler_kwargs={"min_lr": 1e-6, "warmup_start_lr": 1e-6}')


@pytest.mark.parametrize("text", ["[1]", "{}", "many", '{"a": 0}', '{"a": -1}', '{"a": "x"}', '{"a": true, "b": 1}'])
@pytest.mark.parametrize("source", ["config", "option"])
def test_a_mixture_that_is_none_is_refused(config_file: Callable[[str], str], source: str, text: str) -> None:
    with pytest.raises(ConfigError, match="mixture must name folders and their weights"):
        parse(config_file(f"mixture: {text}\n") if source == "config" else f"--mixture={text}")


def test_the_defaults_without_a_config_are_the_papers() -> None:
    settings = {**vars(RecipeArguments()), **vars(StageConfig())}
    expected = PAPER["stage2/vqa_rad"] | {"lr_scheduler_kwargs": {"min_lr": 1e-6}}
    del expected["max_steps"], expected["gradient_checkpointing"], expected["template"]
    assert {key: settings[key] for key in expected} == expected
    assert settings["template"] is None  # the base's, which is the paper's


def test_nothing_is_reported_anywhere_by_default() -> None:
    assert StageConfig().report_to == []
    assert StageConfig().push_to_hub is False


def test_the_command_line_overrides_the_config_and_the_config_the_defaults(
    config_file: Callable[[str], str],
) -> None:
    config = config_file("learning_rate: 0.5\nlora_r: 8\ntask: report\n")
    settings = parse(config, "--lora_r=4", "--max_steps", "7", task="caption", output_dir="runs/x")
    assert (settings["learning_rate"], settings["lora_r"], settings["max_steps"]) == (0.5, 4, 7)
    assert (settings["task"], settings["output_dir"]) == ("report", "runs/x")


def test_options_may_be_spelt_with_dashes() -> None:
    assert parse("--lora-r=4", "--data-root=x")["lora_r"] == 4


def test_an_exponent_without_a_dot_is_a_number(config_file: Callable[[str], str]) -> None:
    # YAML 1.1 reads 1e-3 as text
    settings = parse(config_file("learning_rate: 1e-3\nlr_scheduler_kwargs: {min_lr: 1.0e-5}\n"))
    assert settings["learning_rate"] == 1e-3


def test_packaged_configs_have_short_names_with_and_without_their_ending() -> None:
    assert find_config("stage2/phantoms_vqa") == find_config("stage2/phantoms_vqa.yaml")
    assert find_config("stage2/phantoms_vqa").is_file()


def test_a_file_of_ones_own_is_found_by_its_path(config_file: Callable[[str], str]) -> None:
    assert parse(config_file("lora_r: 3\n"))["lora_r"] == 3


def test_an_unknown_config_is_refused_with_the_nearest_name_and_the_list() -> None:
    with pytest.raises(ConfigError, match=r"stage2/fantoms_vqa.*did you mean stage2/phantoms_vqa\?") as refused:
        parse("--config=stage2/fantoms_vqa")
    assert [name for name in PACKAGED if name not in str(refused.value)] == []


def test_all_unknown_keys_are_refused_at_once_each_with_the_nearest_name(config_file: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(config_file("lerning_rate: 1.0e-5\nlora_r: 4\nwarmup_step: 3\nxyzzy: 1\n"))
    text = str(refused.value)
    assert "lerning_rate (did you mean learning_rate?)" in text
    assert "warmup_step (did you mean warmup_steps?)" in text
    assert "xyzzy" in text
    assert "lora_r" not in text


def test_a_key_given_twice_is_refused(config_file: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match="given more than once: lora_r; leave one line"):
        parse(config_file("lora_r: 4\nseed: 1\nlora_r: 8\n"))


def test_all_unknown_options_are_refused_at_once_each_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as refused:
        parse("--lerning_rate=1e-5", "--warmup_step", "3", "--lora_r=4")
    assert "--lerning_rate" in str(refused.value)
    assert "did you mean --learning_rate?" in str(refused.value)
    assert "did you mean --warmup_steps?" in str(refused.value)


def test_options_are_never_guessed_from_their_beginning() -> None:
    with pytest.raises(ConfigError, match=r"--lora_drop"):
        parse("--lora_drop=0.5")


@pytest.mark.parametrize("text", ["- lora_r\n- 4\n", "lora_r\n", "3\n"], ids=["list", "text", "number"])
def test_a_config_that_is_no_mapping_is_refused(config_file: Callable[[str], str], text: str) -> None:
    with pytest.raises(ConfigError, match=r"own\.yaml: found \w+, expected `key: value` lines"):
        parse(config_file(text))


@pytest.mark.parametrize("content", [b"lora_r: [1\n", b"lora_r: \xff\xfe4\n"], ids=["yaml", "utf-8"])
def test_a_config_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"own\.yaml") as refused:
        parse(f"--config={path}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_r", "many"),
        ("lora_r", "1.5"),
        ("lora_r", "[64]"),
        ("learning_rate", "fast"),
        ("bf16", "perhaps"),
        ("max_steps", "[1, 2]"),
        ("task", "vqaa"),
        ("template", "longest"),
        ("instruction", "longest"),
        ("eval_strategy", "sometimes"),
    ],
)
@pytest.mark.parametrize("source", ["config", "option"])
def test_a_value_of_a_wrong_type_is_refused_with_its_key(
    config_file: Callable[[str], str], source: str, key: str, value: str
) -> None:
    with pytest.raises(ConfigError, match=key if key != "eval_strategy" else "sometimes") as refused:
        parse(config_file(f"{key}: {value}\n") if source == "config" else f"--{key}={value}")
    assert "\n" not in str(refused.value)


def test_the_best_adapter_is_only_promised_where_each_validated_one_is_saved() -> None:
    with pytest.raises(ConfigError, match="save_steps is 40 and eval_steps 20"):
        parse("--save_steps=40", "--eval_steps=20")
    assert parse("--save_steps=40", "--eval_steps=20", "--load_best_model_at_end=false")["save_steps"] == 40
    assert parse("--eval_strategy=epoch", "--save_strategy=epoch")["load_best_model_at_end"] is True


def test_the_trainers_own_upload_is_refused_with_a_pointer() -> None:
    with pytest.raises(ConfigError, match="push_to_hub uploads a pickle.*pefomed publish"):
        parse("--push_to_hub")


def test_early_stopping_needs_validation() -> None:
    with pytest.raises(ConfigError, match="early_stopping_patience"):
        parse("--early_stopping_patience=1", "--eval_strategy=no", "--load_best_model_at_end=false")


def test_an_option_without_its_value_is_refused() -> None:
    for arguments in (["--lora_r"], ["--config"]):
        with pytest.raises(ConfigError, match=arguments[0]):
            parse(*arguments)


@pytest.mark.parametrize("name", PACKAGED)
def test_the_record_leaves_out_only_what_is_at_trls_own_default(name: str) -> None:
    recipe, config = parse_arguments([f"--config={name}", "--seed=7"], {}, "test")
    settings = resolved(recipe, config)
    stock = {field.name: field.default for field in fields(SFTConfig)}
    written = yaml.safe_load(find_config(name).read_text(encoding="utf-8")) | {"seed": 7}
    assert {key: settings.get(key, stock.get(key)) for key in written} == written
    assert settings["seed"] == 7


@pytest.mark.integration
def test_launchers_refuse_bad_settings_in_one_line_with_exit_code_2(
    repo: Path, run_python: RunPython, config_file: Callable[[str], str], tmp_path: Path
) -> None:
    misspelt = config_file("lerning_rate: 1.0e-5\n")
    for arguments in (
        [repo / "recipes" / "stage2.py", misspelt, "--output_dir=out"],
        ["-m", "pefomed_recipes.cli", "stage1", "--lerning_rate=1e-5", "--output_dir=out"],
    ):
        process = run_python(*arguments)
        assert process.returncode == 2
        assert process.stdout == ""
        assert len(process.stderr.splitlines()) == 1, process.stderr
        assert process.stderr.startswith("error: ")
        assert "learning_rate" in process.stderr
    assert not (tmp_path / "out").exists()
