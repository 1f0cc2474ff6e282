"""The published models by their configs alone: parameters, and the page that lists them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import interlace
from interlace.checkpoint.folder import read_config
from interlace.checkpoint.load import match
from interlace.checkpoint.tensors import Entry
from interlace.cli.main import run

DOCS = Path(__file__).parents[2] / "docs"
spec = importlib.util.spec_from_file_location("make_families", DOCS / "make_families.py")
make_families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_families)
MODELS = make_families.models()
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: m["name"])


@every_model
def test_parameters_are_the_published_ones(model):
    total = interlace.sizes(make_families.config_of(model)).total
    assert total == pytest.approx(make_families.published(model), rel=1e-3)
    if "Nemotron-3" not in model["name"]:  # whose published count leaves out the routers' corrections
        assert total == make_families.published(model)


@pytest.mark.parametrize("model", [m for m in MODELS if m["published"] < 10e9], ids=lambda m: m["name"])
def test_every_parameter_has_a_released_name(model):
    """And every released name its place: the files' headers could be matched as they are."""

    config = make_families.config_of(model)
    family = make_families.FAMILY[model["config"]["model_type"]]
    shapes = {n: tuple(p.shape) for n, p in interlace.HybridLM(config, device="meta").named_parameters()}
    from interlace.checkpoint.load import published_shape

    entries = {
        name: Entry(DOCS, "BF16", published_shape(slots, shapes), 0, 0) for name, slots in family.slots(config).items()
    }
    assert len(match(family, config, entries)) == len(entries)


def test_the_page_is_current():
    assert (DOCS / "families.md").read_text() == make_families.page(), "python docs/make_families.py > docs/families.md"


def test_every_family_has_a_published_model():
    shown = {make_families.FAMILY[m["config"]["model_type"]].model_type for m in MODELS}
    assert shown == {f.model_type for f in make_families.FAMILIES} - {"interlace"}


@pytest.mark.parametrize("model", MODELS[::5], ids=lambda m: m["name"])
def test_inspect_needs_the_config_alone(model, tmp_path, capsys):
    import json

    (tmp_path / "config.json").write_text(json.dumps(model["config"]))
    read_config(tmp_path)
    assert run(["inspect", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"]["total"] == pytest.approx(make_families.published(model), rel=1e-3)
    assert "65536" in document["model"]["state_bytes"]
