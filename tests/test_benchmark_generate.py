"""The benchmark of generation: a plain rival, an equality check no wrong network passes, a line of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from tiny_training import ROOT

from tera_mind.model.config import ModelConfig
from tera_mind.model.fast import fast_network
from tera_mind.model.unet import GeneMorphUNet

CPU = torch.device("cpu")


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import generate  # type: ignore[import-not-found, unused-ignore]

    yield generate
    for name in ("generate", "train_step"):
        sys.modules.pop(name)


def test_it_prints_a_table_and_a_line_of_json(generate: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--tiny", "--device", "cpu"]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    result = json.loads(last)
    assert result["benchmark"] == "generate"
    rows = {row["way"]: row for row in result["rows"]}
    assert set(rows) == {"published", "32", "32, half empty", "bf16", "bf16, half empty"}
    for name, row in rows.items():
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        if name != "published":
            assert 0 < row["difference"] <= generate.TOLERANCE[name.split(",")[0]]
    assert result["ratio"] == rows["32"]["ratio"]
    assert any(torch.__version__ in line for line in table)


def test_another_network_does_not_pass_for_the_same(generate: ModuleType) -> None:
    """Even where only one small part of it differs, and with the tolerance of bf16."""
    torch.manual_seed(0)
    config = ModelConfig(**generate.SHAPES["tiny"], gene_sections=4)
    network = generate.ready(GeneMorphUNet(config))
    region = generate.Region(config, 2, CPU)
    reference = region.published(generate.plain_network(network).eval())
    generate.check("ours", region.fast(fast_network(network, CPU), 2), reference, "32")
    torch.nn.init.zeros_(network.decoder[0].attention.out.weight)
    with pytest.raises(SystemExit, match="differs from the published way"):
        generate.check("ours", region.fast(fast_network(network, CPU), 2), reference, "32")
    torch.nn.init.normal_(network.decoder[-1].block.conv_in.weight, std=0.05)
    with pytest.raises(SystemExit, match="differs from the published way"):
        generate.check("ours", region.fast(fast_network(network, CPU), 2), reference, "bf16")


def test_the_rival_does_what_was_published(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tiles of 16 patches: 25 encoded, 25 and 16 decoded each, in float32."""
    config = ModelConfig(**generate.SHAPES["tiny"], gene_sections=4)
    plain = generate.plain_network(generate.ready(GeneMorphUNet(config))).eval()
    seen: list[tuple[str, int]] = []
    for name in ("encode", "decode"):
        method = getattr(plain, name)

        def spy(first, embedding, *rest, name=name, method=method):  # type: ignore[no-untyped-def]
            seen.append((name, len(embedding)))
            return method(first, embedding, *rest)

        monkeypatch.setattr(plain, name, spy)
    state = generate.Region(config, 8, CPU).published(plain)
    assert seen == 4 * [("encode", 25), ("decode", 25), ("decode", 16)]
    assert state.dtype == torch.float32
