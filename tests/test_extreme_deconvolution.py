"""nlmeflow.laws.mixture: on lines with known sigma, against extreme deconvolution, written here.

Bovy, Hogg, Roweis, Annals of Applied Statistics 2011: the individual least-squares estimates w_i of a linear
model with known sigma are sufficient, w_i ~ sum_k a_k N(m_k, V_k + S), S = sigma^2 (X'X)^-1, and EM is in
closed form. It climbs the likelihood that the mixture law climbs by particles.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import nlmeflow as nf

TIMES = np.array([0.0, 1.0, 2.0, 3.0])
SIGMA = 0.6
N = 250


@pytest.fixture(scope="module")
def lines():
    """Return least-squares estimates (N, 2) of lines in two groups, their error covariance, and the data."""
    random = np.random.default_rng(7)
    group = random.random(N) < 0.4
    phi = np.where(group[:, None], [0.0, 1.5], [1.0, -0.5]) + random.standard_normal((N, 2)) * [0.5, 0.3]
    design = np.stack([np.ones_like(TIMES), TIMES], 1)
    response = phi @ design.T + SIGMA * random.standard_normal((N, len(TIMES)))
    estimates = np.linalg.lstsq(design, response.T)[0].T
    frame = pd.DataFrame(
        {
            "line": np.repeat(np.arange(N), len(TIMES)),
            "time": np.tile(TIMES, N),
            "response": response.ravel(),
        }
    )
    data = nf.LongitudinalData.from_frame(frame, individual="line", time="time", response="response")
    return estimates, SIGMA**2 * np.linalg.inv(design.T @ design), data


def log_joint(w, error, weights, means, covariances):
    """Return log a_k N(w_i; m_k, V_k + S), (N, K)."""
    parts = zip(weights, means, covariances, strict=True)
    return np.stack([np.log(a) + multivariate_normal.logpdf(w, m, v + error) for a, m, v in parts], 1)


def extreme_deconvolution(w, error, weights, means, covariances, iterations=3000):
    """Return weights, means and covariances after EM."""
    for _ in range(iterations):
        log_parts = log_joint(w, error, weights, means, covariances)
        share = np.exp(log_parts - logsumexp(log_parts, axis=1, keepdims=True))
        new_means, new_covariances = [], []
        for k, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
            gain = covariance @ np.linalg.inv(covariance + error)
            expected = mean + (w - mean) @ gain.T
            rest = covariance - gain @ covariance
            q = share[:, k] / share[:, k].sum()
            centre = q @ expected
            away = expected - centre
            new_means.append(centre)
            new_covariances.append(rest + (q[:, None] * away).T @ away)
        weights, means, covariances = share.mean(0), new_means, new_covariances
    return weights, np.array(means), np.array(covariances)


@pytest.mark.slow
def test_a_mixture_on_lines_with_known_sigma_is_that_of_extreme_deconvolution(lines):
    w, error, data = lines
    model = nf.Model(nf.curves.linear(), nf.Additive(sigma=SIGMA))
    fit = model.fit(data, nf.Mixture(2, floor=0.01, shrinkage=0.0), seed=1, progress=False)
    weights, means, factors = (part.numpy() for part in fit.law.components)
    ours = (weights, means, factors @ factors.transpose(0, 2, 1))
    first = (np.array([0.4, 0.6]), np.array([[0.0, 1.5], [1.0, -0.5]]), np.array([np.diag([0.25, 0.09])] * 2))
    theirs = extreme_deconvolution(w, error, *first)

    def total(law):
        return float(logsumexp(log_joint(w, error, *law), axis=1).sum())

    assert 0 <= total(theirs) - total(ours) < 0.3  # nats, of 250 lines
    order = np.argsort(means[:, 0])
    assert weights[order] == pytest.approx(theirs[0], abs=0.02)
    assert means[order] == pytest.approx(theirs[1], abs=0.05)
    assert ours[2][order] == pytest.approx(theirs[2], abs=0.03)
    found = fit.log_likelihood()
    assert found.value == pytest.approx(exact(ours, data), abs=2 * found.error)


def exact(law, data):
    """Return the exact log-likelihood of the responses under a mixture of Gaussians."""
    design = np.stack([np.ones_like(TIMES), TIMES], 1)
    noise = SIGMA**2 * np.eye(len(TIMES))
    parts = zip(*law, strict=True)
    y = data.response.numpy()
    at = [
        np.log(a) + multivariate_normal.logpdf(y, design @ m, design @ v @ design.T + noise)
        for a, m, v in parts
    ]
    return float(logsumexp(np.stack(at, 1), axis=1).sum())
