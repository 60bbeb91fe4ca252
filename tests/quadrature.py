"""Independent references: adaptive Gauss-Hermite and brute-force quadrature."""

import itertools

import numpy as np
import torch
from scipy.optimize import minimize

from nlmeflow.estimation.laplace import modes


def hermite(dim, nodes):
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    z = torch.tensor(np.array(list(itertools.product(x, repeat=dim))))
    log_w = torch.tensor([sum(np.log(c)) for c in itertools.product(w, repeat=dim)])
    return z, log_w + 0.5 * z.square().sum(1)


def adaptive(problem, law, beta, sigma, nodes=15):
    """log p(y_i) of each individual under a Gaussian law, nodes placed at the conditional modes."""
    start = law.mean.expand(len(problem), -1).clone()
    laplace = modes(problem, law, beta, sigma, start, steps=50)
    z, log_w = hermite(problem.dim, nodes)
    phi = laplace.mode[:, None] + z @ laplace.factor.mT
    value = problem.log_likelihood(phi, beta, sigma) + law.log_prob(phi) + log_w
    return value.logsumexp(1) + torch.linalg.slogdet(laplace.factor)[1]


def brute_force(problem, law, beta, sigma, points, reach=6.0):
    """log p(y_i) by the midpoint rule on a box of `reach` standard deviations of the law."""
    drawn = law.sample(20_000, 0)
    centre, scale = drawn.mean(0), drawn.std(0)
    axis = (torch.arange(points, dtype=torch.float64) + 0.5) / points * 2 - 1
    mesh = torch.cartesian_prod(*[axis] * problem.dim).reshape(-1, problem.dim)
    phi = centre + reach * scale * mesh
    cell = torch.log(2 * reach * scale / points).sum()
    log_law = law.log_prob(phi)
    values = []
    for i in range(len(problem)):
        one = problem.subset(torch.tensor([i]))
        log_likelihood = one.log_likelihood(phi[None], beta, sigma)[0]
        values.append((log_likelihood + log_law).logsumexp(0) + cell)
    return torch.stack(values)


def exact_maximum(problem, centre, factor, first, nodes=15):
    """Maximise the likelihood of a diagonal Gaussian law by fixed Gauss-Hermite nodes and BFGS.

    first : (means, sds, sigma); returns the same and the log-likelihood.
    """
    z, log_w = hermite(problem.dim, nodes)
    phi = centre[:, None] + z @ factor.mT
    summary = problem.summary(phi, phi.new_zeros(0))
    volume = log_w + torch.linalg.slogdet(factor)[1][:, None]
    dim = problem.dim

    def loss(vector):
        v = torch.tensor(vector, requires_grad=True)
        mean, log_sd, log_sigma = v[:dim], v[dim : 2 * dim], v[2 * dim :]
        log_law = -0.5 * ((phi - mean) / log_sd.exp()).square() - log_sd - 0.5 * np.log(2 * np.pi)
        value = problem.residual.log_likelihood(summary, log_sigma.exp()) + log_law.sum(-1) + volume
        total = -value.logsumexp(1).sum()
        total.backward()
        return float(total.detach()), v.grad.numpy()

    mean, sd, sigma = first
    start = np.r_[mean.numpy(), np.log(sd.numpy()), np.log(sigma.numpy())]
    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-6})
    return found.x[:dim], np.exp(found.x[dim : 2 * dim]), np.exp(found.x[2 * dim :]), -found.fun
