"""``dg scaffold defs synth_assets.SyntheticDataset NAME``: a dataset folder to start from."""

from __future__ import annotations

from typing import Any

from dagster.components.component_scaffolding import scaffold_component
from dagster.components.scaffold.scaffold import Scaffolder, ScaffoldRequest

ATTRIBUTES: dict[str, Any] = {
    "description": "What one row is, and who needs the dataset",
    "task": {
        "kind": "classification",
        "text": "text",
        "label": "label",
        "labels": {"first_label": "what it means", "second_label": "what it means"},
    },
    "source": {"kind": "files", "path": "human.csv"},
    "partition": {"holdout": 0.3, "validation": 0.1},
    "seeds": {"per_label": 12},
    "generate": {
        "prompt": "prompt.md.j2",
        "model": "your-model",
        "style": "chat",
        "target": {"balance": "to_largest"},
    },
}

PROMPT = """\
Write {{ rows }} new texts that belong to the class "{{ label }}".
{% if label_description %}
It means: {{ label_description }}.
{% endif %}
Each is different in wording and content from the examples and from the others.

Examples written by people:
{% for example in examples %}
- {{ example }}
{% endfor %}
"""


class SyntheticDatasetScaffolder(Scaffolder[Any]):
    def scaffold(self, request: ScaffoldRequest[Any]) -> None:
        scaffold_component(request=request, yaml_attributes=ATTRIBUTES)
        (request.target_path / "prompt.md.j2").write_text(PROMPT, encoding="utf-8")
