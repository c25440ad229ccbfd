# SPDX-License-Identifier: Apache-2.0
"""Several adapters on one base: which names they may bear, which answer together, and switching between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig, PeftModel

from modeling_pefomed import PeFoMedForConditionalGeneration

from ..errors import ConfigError, PeFoMedError, did_you_mean
from ..models.adapter_models import CHANGE_THE_BASE, own_class

# PEFT's name for no adapter at all.
BASE = "__base__"
# What PEFT puts around an adapter's name in the names of weights.
PEFT_NAMES = (
    "base_model",
    "base_layer",
    "original_module",
    "modules_to_save",
    "lora_magnitude_vector",
    "prompt_encoder",
)


def check_names(names: Sequence[str], base: PeFoMedForConditionalGeneration) -> None:
    """Check the names of adapters before they are put on a base.

    Raises:
        ConfigError: a name is empty, reserved, holds a dot, or is a part of a weight's name: PEFT looks adapters up in
            the names of weights and would take one for the other.
    """
    weights = [*PEFT_NAMES, *(name for name, _ in base.named_parameters())]
    for name in names:
        if not name or name == BASE or "." in name:
            raise ConfigError(f"adapter name {name!r}: choose a word without dots, other than {BASE}")
        holding = next((weight for weight in weights if name in weight), None)
        if holding is not None:
            raise ConfigError(
                f"adapter name {name!r} is a part of the weight's name {holding}; choose a longer one, such as "
                f"{name + '_adapter'!r}"
            )


def check_methods(configs: dict[str, PeftConfig]) -> None:
    """Check that adapters can share one base.

    Raises:
        PeFoMedError: several methods at once, a method that keeps one adapter only, or one that changes the base.
    """
    methods = {name: str(config.peft_type.value) for name, config in configs.items()}
    if len(set(methods.values())) > 1:
        named = ", ".join(f"{name} is {method}" for name, method in methods.items())
        raise PeFoMedError(f"Adapters of one base must be of one PEFT method; found: {named}. Load them one by one.")
    for name, config in configs.items():
        start = getattr(config, "init_lora_weights", True)
        if start in CHANGE_THE_BASE:
            raise PeFoMedError(
                f"adapter {name!r}: {start} changes the base's own weights, so that neither another adapter nor the "
                "base can be asked beside it. Load it alone."
            )
        if len(configs) > 1 and own_class(config) is not None:
            raise PeFoMedError(f"adapter {name!r}: a base holds only one adapter of {methods[name]}. Load it alone.")


def can_mix(model: Any) -> bool:
    """Whether rows of one batch may be answered by different adapters: PEFT can do so with LoRA, except for DoRA."""
    configs = model.peft_config.values() if isinstance(model, PeftModel) else ()
    return all(config.peft_type == "LORA" and not config.use_dora for config in configs)


def check_loaded(model: Any, names: Sequence[str | None]) -> None:
    """Check the names of adapters that requests ask for; `None` asks the model as it is.

    Raises:
        PeFoMedError: there is no adapter of that name.
    """
    loaded = [*model.peft_config, BASE] if isinstance(model, PeftModel) else []
    for name in names:
        if name is not None and name not in loaded:
            known = f"loaded are {', '.join(loaded)}" if loaded else "load the model with load_adapters"
            raise PeFoMedError(f"There is no adapter {name!r}{did_you_mean(name, loaded)}; {known}.")


@contextmanager
def switched(model: Any, names: Sequence[str | None]) -> Iterator[bool]:
    """While it lasts, the model answers with the adapter of this name; yields whether the names are several, which
    must then be given to each call as `adapter_names`.

    Raises:
        PeFoMedError: there is no adapter of that name.
    """
    check_loaded(model, names)
    first = names[0]
    if set(names) == {None}:
        yield False
    elif len(set(names)) > 1:
        yield True
    elif first == BASE:
        with model.disable_adapter():
            yield False
    else:
        before = model.active_adapter
        model.set_adapter(first)
        try:
            yield False
        finally:
            model.set_adapter(before)
