"""One name a gene: case, Ensembl ids, controls of every vendor, a user's patterns."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tera_mind.errors import FormatError, InputError
from tera_mind.ingest.features import NO_GENE, no_gene_reason
from tera_mind.ingest.harmonise import GeneNames, ensembl_id, harmonise, harmonised, read_symbols
from tera_mind.ingest.source import EXPANDED_ROWS, SectionSource, TranscriptBatch, expanded

GAD1, VIP = "ENSMUSG00000070880", "ENSMUSG00000019772"


@dataclass(frozen=True)
class Stream:
    batches: tuple[TranscriptBatch, ...]

    def __call__(self) -> Iterator[TranscriptBatch]:
        return iter(self.batches)


def source(*batches, panel=None, symbols=None, name="s") -> SectionSource:
    made = []
    for names in batches:
        own = sorted(set(names))
        rows = np.arange(len(names), dtype=float)
        made.append(TranscriptBatch(rows, rows + 0.5, np.array([own.index(n) for n in names], np.int32), own))
    return SectionSource(name, 0.0, (), Stream(tuple(made)), panel, symbols=symbols or {})


def names_of(section: SectionSource) -> list[str]:
    return [batch.names[code] for batch in section.batches() for code in batch.gene]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("NegControlProbe_00042", "negative control"), ("NegControlCodeword_0501", "negative control"),
        ("antisense_PROKR2", "negative control"), ("Intergenic_Region_1034", "negative control"),
        ("UnassignedCodeword_0003", "unassigned codeword"), ("DeprecatedCodeword_0321", "unassigned codeword"),
        ("BLANK_0180", "blank codeword"), ("Blank-12", "blank codeword"), ("Negative17", "negative control"),
        ("NegPrb3", "negative control"), ("FalseCode44", "blank codeword"), ("SystemControl77", "system control"),
        ("ERCC-00130", "spike-in control"), ("", "no gene name"), ("  ", "no gene name"), ("nan", "no gene name"),
        ("Negr1", None), ("Ercc1", None), ("Blnk", None), ("Nanog", None), ("Nan", "no gene name"), ("Sys1", None),
        ("Gad1", None), ("Null1", None), ("H2-K1", None),
    ],
)  # fmt: skip
def test_controls_of_every_vendor_and_the_genes_that_sound_alike(name, reason):
    assert no_gene_reason(name) == reason
    assert all(rules for rules in NO_GENE.values())


def test_case_and_ensembl_ids_are_one_gene():
    names = GeneNames(symbols={GAD1: "Gad1"}, spelling=("VIP",))
    section = source(["GAD1", GAD1 + ".14", "vip"], ["Gad1", "Aqp4", "aqp4", VIP.lower()])
    section = pickle.loads(pickle.dumps(harmonised(section, names)))
    wanted = ["Gad1", "Gad1", "VIP", "Gad1", "Aqp4", "Aqp4", VIP]
    assert names_of(section) == wanted
    assert names_of(section) == wanted  # a new stream learns anew
    batch = next(iter(section.batches()))
    assert len(set(batch.names)) == len(batch.names) == 2


def test_declared_features_that_become_one_gene_are_refused():
    names = GeneNames(symbols={GAD1: "Gad1"})
    with pytest.raises(InputError, match=f"features gad1 and {GAD1} of section s both become gene Gad1"):
        harmonised(source(["gad1"], panel=("gad1", GAD1)), names)
    assert harmonised(source(["A"], panel=("A", "A", "b")), names).panel == ("A", "b")
    spelled = harmonised(source(["GAD1", "x"], panel=("Gad1", "X")), names)
    assert names_of(spelled) == ["Gad1", "X"]


def test_the_first_section_spells_for_all():
    one, two = source(["Gad1"], panel=("Gad1", "Vip"), name="one"), source(["GAD1", "vip"], name="two")
    three = source(["VIP", GAD1], panel=("VIP", GAD1), symbols={GAD1: "GAD1"}, name="three")
    sections = harmonise([one, two, three], GeneNames())
    assert [section.panel for section in sections] == [("Gad1", "Vip"), None, ("Vip", "Gad1")]
    assert [names_of(section) for section in sections] == [["Gad1"], ["Gad1", "Vip"], ["Vip", "Gad1"]]


def test_a_users_pattern_drops_and_counts():
    section = harmonised(
        source(["mt-Co1", "Gad1", "MT-ND1", "Mt1"], panel=("mt-Co1", "Gad1")), GeneNames(drop=("mt-.*",))
    )
    assert section.panel == ("Gad1",)
    assert names_of(section) == ["Gad1", "Mt1"]
    (batch,) = section.batches()
    assert batch.dropped == {"matches mt-.*": 2}
    np.testing.assert_array_equal(batch.x_um, [1.0, 3.0])
    with pytest.raises(InputError, match="no regular expression"):
        GeneNames(drop=("(",))


def test_tables_of_symbols(tmp_path):
    twin = ["ENSG00000000001", "ENSG00000000002"]
    lines = ["gene_id\tname\ttype", f"{GAD1}.5\tGad1\tx", f"{twin[0]}\tTWIN", f"{twin[1]}\ttwin", f"{VIP}\t"]
    (tmp_path / "features.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    assert read_symbols(tmp_path / "features.tsv.gz") == {GAD1: "Gad1"}  # neither twin can have the name
    (tmp_path / "s.csv").write_text(f"{GAD1},Gad1\n{GAD1},Gad2\n")
    with pytest.raises(FormatError, match="two symbols, Gad1 and Gad2"):
        read_symbols(tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text("a,b\n")
    with pytest.raises(FormatError, match="found none"):
        read_symbols(tmp_path / "s.csv")
    (tmp_path / "bad.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(FormatError, match="cannot be read"):
        read_symbols(tmp_path / "bad.gz")
    assert ensembl_id("ensg00000141510.18") == "ENSG00000141510"
    assert [ensembl_id(name) for name in ("ENSG1", "TP53", "ENST00000269305", "xENSG00000141510")] == [None] * 4


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), max_size=8), max_size=4),
    st.integers(1, 12),
)
@settings(max_examples=40, deadline=None)
def test_expanded_rows_are_the_counts(batches, most):
    made = []
    for number, rows in enumerate(batches):
        count, gene = (np.array([row[axis] for row in rows], kind) for axis, kind in ((0, np.int64), (1, np.int32)))
        place = np.arange(len(rows), dtype=float) + 100 * number
        made.append(TranscriptBatch(place, place + 0.25, gene, ["A", "B", "C"], {"x": number}, count=count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tera_mind.ingest.source.EXPANDED_ROWS", most)
        pieces = list(expanded(made))
    flat = [place for batch in made for place, n in zip(batch.x_um, batch.count, strict=True) for _ in range(n)]
    assert [place for piece in pieces for place in piece.x_um] == flat
    assert all(len(piece.x_um) <= max(most, 5) and piece.names == ["A", "B", "C"] for piece in pieces)
    assert sum(piece.dropped.get("x", 0) for piece in pieces) == sum(range(len(batches)))
    assert EXPANDED_ROWS > 5
