"""A configuration that was written loads as the same; the schema has every field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metarl.config import EvaluationConfig, TrainConfig
from metarl.config_loader import dump, load, schema


@given(
    name=st.sampled_from(["3e-4", "2e8", "1:30", "null", "yes", "0x1", "a: b", "#", ""])
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"])),
    rate=st.floats(min_value=1.2e-38, max_value=3.4e38),
)
def test_any_text_and_number_survive_a_dump(name, rate, tmp_path_factory):
    config = load(TrainConfig).model_copy(update={"exp_name": name})
    optimizer = config.agent.optimizer.model_copy(update={"learning_rate": rate})
    agent = config.agent.model_copy(update={"optimizer": optimizer})
    config = config.model_copy(update={"agent": agent})
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(config))
    assert load(TrainConfig, [path]) == config


@pytest.mark.parametrize("model", [TrainConfig, EvaluationConfig])
def test_the_schema_describes_every_field(model):
    tree = json.loads(schema(model))
    assert list(tree["properties"]) == list(model.model_fields)
    assert tree["additionalProperties"] is False
