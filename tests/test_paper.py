"""paper/paper.md: every number in it is computed here from the stored tables; every reference is cited."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from nlmeflow.studies import rows

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
PAPER = (ROOT / "paper" / "paper.md").read_text()
BIBLIOGRAPHY = (ROOT / "paper" / "paper.bib").read_text()


def section(title):
    text = re.search(rf"^# {title}\n(.*?)^# ", PAPER, re.S | re.M)[1]
    return " ".join(text.split())


IMPACT = section("Research impact statement")


def divergences():
    """Means of KL over replicates: replicates, and populations, by design."""
    table = rows("core").query("law in ['flow', 'gaussian', 'mixture']")
    return table.pivot_table(index=["design", "scenario", "replicate"], columns="law", values="kl")


def ratio(table, other):
    """The geometric mean over populations of the flow's divergence over another law's, by design."""
    means = table.groupby(["design", "scenario"]).mean()
    return np.exp(np.log(means["flow"] / means[other]).groupby("design").mean())


def error(table, other, resamples=1000):
    """Its standard error, by the bootstrap over replicates."""
    random, found = np.random.default_rng(1), []
    flow, rival = (table[name].unstack().to_numpy() for name in ("flow", other))
    designs = table.index.get_level_values("design").unique()
    for _ in range(resamples):
        drawn = random.integers(flow.shape[1], size=flow.shape)
        means = [np.take_along_axis(kl, drawn, 1).mean(1) for kl in (flow, rival)]
        found.append(np.log(means[0] / means[1]).reshape(len(designs), -1).mean(1))
    return pd.Series(np.exp(found).std(0), index=designs)


def the_simulations():
    table = divergences()
    names = table.index.get_level_values("scenario").unique()
    (replicates,) = table.groupby(["design", "scenario"]).size().unique()
    (size,) = rows("core")["n"].unique()
    assert len(names) == 10
    yield (f"Ten simulated populations of {size} individuals were fitted in {replicates} replicates each.")
    mixture, sure = ratio(table, "mixture"), error(table, "mixture")
    yield (
        f"the truth is {mixture['R']:.2f} times (standard error {sure['R']:.2f}) that of a Gaussian mixture "
        f"in a design with many observations, and {mixture['S']:.2f} times ({sure['S']:.2f}) in a sparse one"
    )
    rest = ratio(table.drop(index=["L3", "L4"], level="scenario"), "mixture")
    yield (
        "without the skewed and the bent population these ratios are "
        f"{rest['R']:.2f} and {rest['S']:.2f}. Against"
    )
    assert (rest > mixture + 0.05).all(), "much of the gain comes from two populations"
    gaussian = ratio(table, "gaussian")
    yield (f"Gaussian law they are {gaussian['R']:.2f} and {gaussian['S']:.2f}, with all populations")


def the_ends_of_a_thousand_fits():
    ends = rows("reliability")["end"].value_counts()
    yield (
        f"Of {ends.sum():,} random data sets, sensible and not, {ends['converged']} fits converged, "
        f"{ends['refused']} were refused before anything was fitted, {ends['explained']} ended in an "
        f"explanation, and {ends['not converged']} said that they had not converged. Where this could be "
        "looked at, none converged below the likelihood of what was simulated."
    )
    assert len(ends) == 4


def the_genotypes():
    gain = pd.read_csv(DATA / "arabidopsis" / "sensitivity.csv").set_index("analysis")
    every, rest = gain.loc["as above"], gain.loc["without check2"]
    yield (f"For {every['genotypes']:.0f} genotypes of *Arabidopsis thaliana*")
    yield (
        f"the flow gains {every['gain of the flow']:.3f} nats per held-out genotype over the Gaussian "
        f"(standard error {every['standard error']:.3f}); without one outlying line the gain is "
        f"{rest['gain of the flow']:.3f} ({rest['standard error']:.3f}), so that the others cannot be "
        "told from a Gaussian."
    )
    assert abs(rest["gain of the flow"]) < 2 * rest["standard error"]
    assert every["gain of the flow"] < 2 * every["standard error"], "the evidence is weak"


def the_clones():
    count = pd.read_csv(DATA / "senescence" / "data.csv", index_col=0)["count"]
    flow = pd.read_csv(DATA / "senescence" / "held_out.csv").set_index("law").loc["flow"]
    maturity = pd.read_csv(DATA / "senescence" / "maturity.csv").set_index("half-loss from")["Spearman"]
    yield (f"In a trial of {count['clones']} potato clones seen by a drone")
    yield (
        f"gain per plot is {flow['gain (nats per plot)']:.3f} ({flow['standard error']:.3f}), and the fitted "
        "days of half-loss correlate with an independent score of maturity (Spearman "
        f"{maturity['mixed model, gaussian']:.2f}; the greenness of a single day, known afterwards, does so "
        f"better, {maturity['green index of day 100']:.2f})."
    )
    assert abs(flow["gain (nats per plot)"]) < 2 * flow["standard error"]


PARTS = (the_simulations, the_ends_of_a_thousand_fits, the_genotypes, the_clones)


@pytest.mark.parametrize("part", PARTS)
def test_the_numbers_are_those_of_the_stored_tables(part):
    for sentence in part():
        assert sentence in IMPACT


def test_no_other_number_of_results_is_in_the_paper():
    rest = IMPACT
    for sentence in (sentence for part in PARTS for sentence in part()):
        rest = rest.replace(sentence, "")
    for text in (
        rest,
        *map(section, ("Summary", "Statement of need", "Software design", "State of the field")),
    ):
        text = re.sub(r"@\w+|nlmixr2", "", text)
        assert not re.findall(r"\d", text), text


def test_every_reference_is_cited_and_has_a_doi():
    entries = dict(re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", BIBLIOGRAPHY, re.S | re.M))
    body = PAPER.split("---\n", 2)[2]
    assert set(re.findall(r"@(\w+)", body)) == set(entries)
    for name, entry in entries.items():
        assert re.search(r"^  doi = \{10\.\d{4,5}/\S+\}", entry, re.M), name


def test_the_paper_has_the_parts_and_the_length_that_the_journal_asks_for():
    titles = re.findall(r"^# (.+)$", PAPER, re.M)
    assert titles == [
        "Summary",
        "Statement of need",
        "State of the field",
        "Software design",
        "Research impact statement",
        "AI usage disclosure",
        "Acknowledgements",
        "References",
    ]
    assert 750 <= len(PAPER.split("---\n", 2)[2].split()) <= 1750
    about = yaml.safe_load(PAPER.split("---\n")[1])
    assert {author["affiliation"] for author in about["authors"]} <= {
        a["index"] for a in about["affiliations"]
    }
    assert (ROOT / "paper" / about["bibliography"]).is_file()
