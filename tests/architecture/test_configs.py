# SPDX-License-Identifier: Apache-2.0
"""Every YAML file of the recipes can be read, and says each key once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml


class StrictLoader(yaml.SafeLoader):
    """As `SafeLoader`, which would let the last of two equal keys win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"keys given twice: {sorted(map(str, twice))}", node.start_mark
            )
        return super().construct_mapping(node, deep)


def test_every_yaml_file_is_a_mapping_with_distinct_keys(repo: Path) -> None:
    files = [
        path
        for folder in ("configs", "accelerate_configs", "experiments")
        for path in (repo / "recipes" / folder).rglob("*.y*ml")
    ]
    assert any(path.parent.name == "stage1" for path in files)
    assert any(path.parent.name == "stage2" for path in files)
    read = {str(path): yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader) for path in files}
    assert [path for path, content in read.items() if not isinstance(content, dict) or not content] == []
    assert [str(path) for path in files if path.suffix != ".yaml"] == []


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="learning_rate"):
        yaml.load("a:\n  learning_rate: 1\n  learning_rate: 2\n", Loader=StrictLoader)
