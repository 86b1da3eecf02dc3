"""YAML in which every name of a mapping comes once: the usual reader keeps the last and says nothing of the others."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice, line {key.start_mark.line + 1}"
                )
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Plain data of a file. Raises `OSError`, `UnicodeDecodeError`, or `yaml.YAMLError`, for a name given twice too."""
    return yaml.load(path.read_text(encoding="utf-8"), _Strict)  # noqa: S506 - a safe loader
