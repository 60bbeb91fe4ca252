"""nlmeflow.reports.plots, nlmeflow.laws.marginals: densities of closed form, labels with units."""

import itertools

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import nlmeflow as nf
from nlmeflow.laws import GaussianLaw, MixtureLaw


def law(dim):
    random = torch.Generator().manual_seed(dim)
    factors = torch.eye(dim).double() * 0.6 + 0.2 * torch.rand(2, dim, dim, generator=random).double().tril()
    means = torch.stack([torch.zeros(dim), torch.ones(dim)]).double()
    return MixtureLaw(torch.tensor([0.3, 0.7]).double(), means, factors, factors[0] * 0.05)


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_marginal_densities_agree_with_the_closed_form(dim):
    full = law(dim)
    covariance = full.factors @ full.factors.mT
    grid = np.linspace(-2, 3, 41)
    for axis in range(dim):
        found = nf.marginals.marginal_density(full, [axis], [grid])
        parts = [
            GaussianLaw(full.means[k, axis : axis + 1], covariance[k, axis, axis].sqrt().reshape(1, 1))
            for k in range(2)
        ]
        points = torch.from_numpy(grid)[:, None]
        expected = sum(w * p.log_prob(points).exp() for w, p in zip(full.weights, parts, strict=True))
        assert np.abs(found - expected.numpy()).max() < 1e-12


SIGHT = {  # Machado, Oliveira, Fernandes, IEEE Trans. Vis. Comput. Graph. 15 (2009), severity 1, linear RGB
    "all cones": np.eye(3),
    "no red cones": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "no green cones": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9690]],
}


def lightness_and_hue(colour, sight):
    """CIE L*a*b* (D65) of a colour as an eye with these cones sees it."""
    red_green_blue = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(
        red_green_blue <= 0.04045, red_green_blue / 12.92, ((red_green_blue + 0.055) / 1.055) ** 2.4
    )
    seen = np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ seen / [0.9505, 1, 1.089], 1e-6))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_that_stand_side_by_side_differ_for_every_eye(sight):
    for palette in (
        [nf.plots.PALETTE[law] for law in ("gaussian", "mixture", "flow", "truth")],
        nf.notebook.COLOURS[:4],
    ):
        for one, other in itertools.combinations(palette, 2):
            distance = lightness_and_hue(one, sight) - lightness_and_hue(other, sight)
            assert np.linalg.norm(distance) > 15, (one, other)


class HiddenGaussian(GaussianLaw):
    """A Gaussian that does not say what it is, so that its marginal densities are integrals."""

    components = averaged = None


class HiddenMixture(MixtureLaw):
    components = averaged = None


def test_marginal_densities_of_other_laws_are_those_of_their_draws():
    """A rule over the whole width missed what is narrow in the coordinates left out."""
    grid = np.linspace(-4, 4, 161)
    expected = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    for dim, correlation in itertools.product((2, 3), (0.0, 0.9, 0.999, 0.99999)):
        covariance = torch.full((dim, dim), correlation).double().fill_diagonal_(1.0)
        hidden = HiddenGaussian(torch.zeros(dim).double(), torch.linalg.cholesky(covariance))
        found = nf.marginals.marginal_density(hidden, [0], [grid])
        assert np.abs(found - expected).max() < 1e-4
    ends = torch.tensor([[-60.0, -60, -60], [60, 60, 60]]).double()
    weights, unit = torch.tensor([0.3, 0.7]).double(), torch.eye(3).double()
    apart = HiddenMixture(weights, ends, unit.expand(2, 3, 3), 0.1 * unit)
    wide = np.linspace(-70, 70, 1401)
    assert np.trapezoid(nf.marginals.marginal_density(apart, [0], [wide]), wide) == pytest.approx(1, abs=0.01)
    four = HiddenGaussian(torch.zeros(4).double(), torch.eye(4).double())
    uneven = np.array([-3, -2, -1.5, -1, -0.5, 0, 0.2, 0.4, 0.8, 1.2, 2, 3])
    found = nf.marginals.marginal_density(four, [0], [uneven])
    assert found[5] == pytest.approx(0.4, abs=0.04)
    with pytest.raises(nf.ModelError, match="at least two"):
        nf.marginals.marginal_density(four, [0], [uneven[:1]])


def test_contour_levels_enclose_what_they_say():
    x = np.linspace(-6, 6, 400)
    density = np.exp(-0.5 * (x[:, None] ** 2 + x**2))
    for height, mass in zip(nf.plots.levels(density), nf.plots.MASSES, strict=True):
        assert height == pytest.approx(1 - mass, abs=0.01)  # of a bivariate normal, relative to its top


def test_figures_have_labels_with_units(gaussian_fit, mixture_fit):
    figure, axes = plt.subplots(2, 2)
    ax = nf.plots.population(mixture_fit, ax=axes[0, 0])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("tau (days)", "log s (s in days)")
    ax = nf.plots.marginals(
        {"mixture": mixture_fit.law, "gaussian": gaussian_fit.law}, mixture_fit, "tau", axes[0, 1]
    )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("tau (days)", "density (1/days)")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mixture", "gaussian"]
    ax = nf.plots.trajectories(gaussian_fit, ["p3", "p5"], ax=axes[1, 0])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("day", "greenness")
    assert len(ax.lines) == 4
    ax = nf.plots.convergence(gaussian_fit, ax=axes[1, 1])
    assert "nats" in ax.get_ylabel()
    plt.close(figure)


def test_individuals_drawn_twice_have_one_curve_each(gaussian_fit):
    twice = gaussian_fit.on(gaussian_fit.data.subset([1, 1, 2]))
    axes = nf.plots.trajectories(twice, ax=plt.figure().gca())
    assert axes.get_legend_handles_labels()[1] == [str(label) for label in twice.data.labels[1:]]
    plt.close(axes.figure)


@pytest.mark.parametrize(("number", "shape"), [(1, (1, 1)), (3, (2, 2)), (4, (2, 2))])
def test_laws_side_by_side_are_two_in_a_row_with_labels_where_nothing_is_drawn_below(number, shape):
    laws = {f"law {k}": law(2) for k in range(number)}
    figure = nf.plots.side_by_side(laws, ("a (days)", "b"), titles={"law 0": "first"})
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert len(panels) == number
    assert figure.axes[0].get_gridspec().get_geometry() == shape
    assert figure.get_size_inches()[0] <= 7
    assert panels[0].get_title() == "first"
    labelled = [panel.get_xlabel() == "a (days)" for panel in panels]
    assert labelled == [k + shape[1] >= number for k in range(number)]
    assert [panel.get_ylabel() == "b" for panel in panels] == [k % 2 == 0 for k in range(number)]
    plt.close(figure)


def test_names_with_dollars_are_shown_as_they_are():
    frame = pd.DataFrame({"i": [0, 0, 1, 1], "$t$ $": [1.0, 2, 1, 2], "a$ }$": [4.0, 3, 4, 2]})
    ax = nf.plots.observations(nf.LongitudinalData.from_frame(frame, "i", "$t$ $", "a$ }$"))
    ax.figure.canvas.draw()
    assert ax.get_ylabel().replace("\\", "") == "a$ }$"
