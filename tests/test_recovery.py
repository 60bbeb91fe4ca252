"""The stored fits of the figure 'How many plants?': densities, and every sentence of the page about them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
STORED = json.loads((ROOT / "data" / "interactive" / "recovery.json").read_text())
PAGE = " ".join((ROOT / "book" / "how_many_plants.md").read_text().split())
LAWS = ("Gaussian", "mixture", "flow")


def wrong(gap, plants, sigmas, laws):
    """The percentages of the population that some estimates put in the wrong place, over both samples."""
    truth = np.array(STORED["truth"][str(gap)])
    found = [
        np.array(STORED["estimates"][f"{gap}/{n}/{sigma}/{sample}"][law])
        for n in plants
        for sigma in sigmas
        for sample in STORED["samples"]
        for law in laws
    ]
    return [round(50 * STORED["grid"][2] * STORED["unit"] * np.abs(one - truth).sum()) for one in found]


def between(values):
    return f"{min(values)} to {max(values)} %"


def test_every_density_integrates_to_one():
    cell = STORED["grid"][2] * STORED["unit"]
    laws = [heights for laws in STORED["estimates"].values() for heights in laws.values()]
    for heights in [*STORED["truth"].values(), *laws]:
        assert cell * sum(heights) == pytest.approx(1, abs=0.005)
    assert len(laws) == 3 * 3 * 3 * 2 * 3


def test_the_file_is_small_and_says_how_it_was_made():
    assert (ROOT / "data" / "interactive" / "recovery.json").stat().st_size < 100_000
    about = json.loads((ROOT / "data" / "interactive" / "recovery.about.json").read_text())
    assert about["command"] == "python tools/interactive.py"
    assert {"nlmeflow", "torch"} <= set(about["versions"])


def test_the_stored_truth_is_two_gaussian_groups():
    first, last, step = STORED["grid"]
    day = np.arange(first, last + step / 2, step)
    for gap in STORED["gaps"]:
        groups = ((0.6, 50 - gap / 2), (0.4, 50 + gap / 2))
        density = sum(w * np.exp(-((day - m) ** 2) / 8) / np.sqrt(8 * np.pi) for w, m in groups)
        assert np.abs(np.array(STORED["truth"][str(gap)]) * STORED["unit"] - density).max() < 1e-3


def test_ten_days_apart_the_gaussian_is_wrong_and_thirty_plants_show_it():
    everywhere = wrong(10, (30, 100, 300), (0.04, 0.12, 0.24), ("Gaussian",))
    good = (0.04, 0.12)
    few, many = (wrong(10, (n,), good, ("mixture", "flow")) for n in (30, 300))
    assert f"the Gaussian puts {between(everywhere)} of the population in the wrong place" in PAGE
    assert (
        f"put at most {max(few)} % in the wrong place with 30 plants, and at most {max(many)} % with 300"
        in PAGE
    )
    assert 2 * max(few) <= min(everywhere)


def test_five_days_apart_three_hundred_plants_and_good_readings_are_needed():
    small = [value for n in (30, 100) for value in wrong(5, (n,), (0.04,), LAWS)]
    assert f"the three laws put {between(small)} in the wrong place with 30 or 100 plants" in PAGE
    law, gaussian = wrong(5, (300,), (0.04,), ("mixture", "flow")), wrong(5, (300,), (0.04,), ("Gaussian",))
    assert f"with 300, mixture and flow {between(law)} and the Gaussian {between(gaussian)}" in PAGE
    assert f"With poor readings, σ = 0.24, all three put {between(wrong(5, (300,), (0.24,), LAWS))}" in PAGE
    poor = zip(*(wrong(5, (300,), (0.24,), (law,)) for law in LAWS), strict=True)
    assert max(max(one) - min(one) for one in poor) <= 2
    assert 2 * max(law) <= min(gaussian)
    for n in (30, 100):
        gaussian = wrong(5, (n,), (0.04,), ("Gaussian",))
        assert max(np.abs(np.subtract(wrong(5, (n,), (0.04,), (law,)), gaussian)).max() for law in LAWS) <= 3


def test_one_group_costs_little_with_many_plants_and_few_plants_mislead():
    gaussian = np.array(wrong(0, (300,), (0.04, 0.12, 0.24), ("Gaussian",)))
    worse = max((np.array(wrong(0, (300,), (0.04, 0.12, 0.24), (law,))) - gaussian).max() for law in LAWS)
    assert f"mixture and flow are at most {worse} points worse than the Gaussian" in PAGE
    highest = [max(v for gap in (0, 5, 10) for v in wrong(gap, (30,), (0.12, 0.24), (law,))) for law in LAWS]
    for law in LAWS[:2]:  # alike: half a day holds most of a group
        laws = [
            STORED["estimates"][f"{gap}/30/{s}/{k}"][law]
            for gap in (0, 5, 10)
            for s in (0.12, 0.24)
            for k in (1, 2)
        ]
        assert max(max(heights) for heights in laws) * STORED["unit"] > 0.5
    assert (
        "the Gaussian puts up to {} %, the mixture up to {} % and the flow up to {} %".format(*highest)
        in PAGE
    )


def hills(heights):
    """The days of the peaks that are at least a tenth of the highest."""
    first, _, step = STORED["grid"]
    rising = np.diff(np.array(heights)) > 0
    peaks = [k + 1 for k in range(len(rising) - 1) if rising[k] and not rising[k + 1]]
    return [first + step * k for k in peaks if heights[k] > 0.1 * max(heights)]


def test_what_shows_groups_has_a_maximum_at_each_and_thirty_plants_may_invent_them():
    estimates = STORED["estimates"]
    for sigma in (0.04, 0.12):
        for sample in STORED["samples"]:
            for law in ("mixture", "flow"):
                assert hills(estimates[f"10/30/{sigma}/{sample}"][law]) == pytest.approx([45, 55], abs=1.5)
    assert "mixture and flow have a maximum at each" in PAGE
    for sample in STORED["samples"]:
        found = estimates[f"5/300/0.04/{sample}"]
        assert [len(hills(found[law])) for law in LAWS] == [1, 2, 1]
    assert "the mixture has two maxima, and the flow one and a shoulder" in PAGE
    of_hundred = [estimates[f"5/100/0.04/{sample}"] for sample in STORED["samples"]]
    both = [len(hills(found["mixture"])) == len(hills(found["flow"])) == 2 for found in of_hundred]
    assert (len(both), sum(both)) == (2, 1)
    sample = STORED["samples"][both.index(True)]
    truth = np.array(STORED["truth"]["5"])
    apart = {law: np.abs(np.array(estimates[f"5/100/0.04/{sample}"][law]) - truth).sum() for law in LAWS}
    assert apart["Gaussian"] < min(apart["mixture"], apart["flow"])
    assert "With a hundred plants both have two in one of two samples, and are no nearer" in PAGE
    first, _, step = STORED["grid"]
    assert hills(STORED["truth"]["5"]) == [47.5, 52.0]
    early, valley, late = (STORED["truth"]["5"][round((day - first) / step)] for day in (47.5, 51, 52))
    assert early > 1.4 * late
    assert valley > 0.99 * late  # hardly one
    found = estimates["0/30/0.04/2"]
    assert [len(hills(found[law])) for law in LAWS] == [1, 2, 2]
    good, fair = ([wrong(0, (30,), (sigma,), (law,))[1] for law in LAWS] for sigma in (0.04, 0.12))
    words = (
        "the mixture puts {1} % and the flow {2} % in the wrong place, in two hills, and the Gaussian {0} %"
    )
    assert words.format(*good) in PAGE
    assert "with σ = 0.12 it is {1} %, {2} % and {0} %".format(*fair) in PAGE


def test_the_still_picture_shows_what_its_alternative_text_says():
    """It is drawn for what the sliders show first: ten days, 100 plants, sigma 0.04, the first sample."""
    script = (ROOT / "book" / "interactive" / "recovery.js").read_text()
    for first in (
        "stored.plants, 1,",
        "stored.sigmas, 0,",
        "stored.gaps, stored.gaps.length - 1,",
        "stored.samples, 0,",
    ):
        assert first in script
    assert "two hills, ten days apart, is the truth" in PAGE
    assert hills(STORED["truth"]["10"]) == [45, 55]
    estimates = STORED["estimates"]["10/100/0.04/1"]
    for law in ("mixture", "flow"):
        assert hills(estimates[law]) == pytest.approx([45, 55], abs=1.5)
    (day,) = hills(estimates["Gaussian"])
    assert 45 < day < 55


def test_what_the_gaussian_tends_to_is_as_wrong_as_the_solution_says():
    first, last, step = STORED["grid"]
    day = np.arange(first, last + step / 2, step)
    shares = []
    for gap, mean, variance in ((10, 49, 28), (5, 49.5, 10)):
        truth = np.array(STORED["truth"][str(gap)]) * STORED["unit"]
        assert step * (day * truth).sum() == pytest.approx(mean, abs=0.02)
        assert step * ((day - mean) ** 2 * truth).sum() == pytest.approx(variance, rel=0.01)
        limit = np.exp(-((day - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        shares.append(round(50 * step * np.abs(limit - truth).sum()))
    assert (
        "The first of these Gaussians puts {} % in the wrong place, the second {} %".format(*shares) in PAGE
    )
    assert f"a standard deviation of {28**0.5:.1f} days" in PAGE
    assert f"a standard deviation of {10**0.5:.1f} days" in PAGE
    far, near, near_many = (
        wrong(*one, (0.04,), ("Gaussian",)) for one in ((10, (30,)), (5, (30,)), (5, (300,)))
    )
    assert f"with 30 plants and σ = 0.04 it is {far[0]} % in both samples" in PAGE
    assert far[0] == far[1] <= shares[0] + 1
    assert "from 30 plants ({} and {} %)".format(*near) in PAGE
    assert "to 300 ({} and {} %)".format(*near_many) in PAGE
    assert max(near_many) <= shares[1] + 1
    each = [wrong(10, (n,), (0.04, 0.12, 0.24), ("Gaussian",)) for n in (30, 100, 300)]
    assert {min(one) for one in each} == {shares[0]}
    assert f"It is {shares[0]} % or more with each number" in PAGE


def test_the_programs_of_the_solutions_print_what_the_solutions_say(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "book" / "how_many_plants.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(programs) == 2
    exec("\n".join(programs), {})
    printed = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    plans = [wrong(gap, (n,), (s,), LAWS[1:]) for gap in STORED["gaps"] for n, s in ((30, 0.04), (300, 0.12))]
    assert printed[:6] == [between(one) for one in plans]
    words = (
        "mixture and flow put {} in the wrong place where there is one group, {} where there are two five "
        "days apart, and {} at ten days; with 300 plants read once {}, {} and {}."
    )
    assert words.format(*printed[:6:2], *printed[1:6:2]) in PAGE
    for few, many in zip(plans[::2], plans[1::2], strict=True):
        assert max(many) < max(few)
        assert sum(many) < sum(few)
    rule = printed[6:]
    assert f"there is one group the rule sees two in {rule[0]} samples, both of 30 plants" in PAGE
    assert f"Ten days apart it sees two in {rule[4]}, five days apart in {rule[2]}." in PAGE
    assert f"it sees two in {rule[1]}, {rule[5]} and {rule[3]}, in this order" in PAGE
    assert f"at $p$ = {100 * (1 - 0.05 ** (1 / 12)):.0f} %" in PAGE
    about = json.loads((ROOT / "data" / "interactive" / "recovery.about.json").read_text())
    assert 25 < 10 * about["CPU seconds"] / 60 < 35
    assert "ten times as many take about half an hour" in PAGE


def test_thirty_plants_hide_groups_five_days_apart_and_poor_readings_hide_them_from_all():
    estimates = STORED["estimates"]
    for sample in STORED["samples"]:
        hidden = [estimates[f"5/30/{sigma}/{sample}"] for sigma in STORED["sigmas"]]
        hidden.append(estimates[f"5/300/0.24/{sample}"])
        assert {len(hills(found[law])) for found in hidden for law in LAWS} == {1}
    assert "in no sample of thirty plants has any law two maxima" in PAGE
    assert "groups five days apart are not seen with 300 plants" in PAGE
    one_group = [len(hills(estimates[f"0/30/0.04/{sample}"]["mixture"])) for sample in STORED["samples"]]
    assert sorted(one_group) == [1, 2]
    assert "Of the two samples with 30 plants and σ = 0.04 one does" in PAGE
