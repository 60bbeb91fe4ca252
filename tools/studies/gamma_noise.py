"""A published yardstick: gamma laws seen once each through Gaussian noise.

    python -m nlmeflow.studies run tools/studies/gamma_noise.yml [--out data/studies/gamma_noise]

x = phi + e, phi ~ Gamma(k, 1), e ~ N(10, 1), one observation of each individual, the law of e known: the
example of NFdeconvolve (arXiv:2501.08288), a spline flow trained by the likelihood of x. Here it is a
mixed-effects model with a constant curve and known sigma. Rows, one a law: KL divergence of the estimate from
the gamma law, by integration over 20,000 quantiles of it.
"""

import numpy as np
import pandas as pd
import torch
from scipy import stats

import nlmeflow as nf
from nlmeflow.errors import EstimationError
from nlmeflow.laws import Law, Specification
from nlmeflow.running import estimating
from nlmeflow.studies.run import Row

RIVALS = (nf.Gaussian(), nf.Transformed(), nf.SNP(), nf.Mixture(), nf.DirichletProcess(), nf.SmoothNPMLE())
LAWS: dict[str, Specification] = {law.name: law for law in RIVALS}
LAWS |= {"spline": nf.Flow(kind="spline"), "flow": nf.Flow()}
QUANTILES = 20_000
NOISE_MEAN, NOISE_SD = 10.0, 1.0
PUBLISHED = pd.DataFrame(
    {"NFdeconvolve": [0.047, 0.020, 0.0059], "its Dirichlet-process rival": [0.149, 0.050, 0.017]},
    index=pd.Index([100, 316, 1000], name="n"),
)


def measure(k: int, n: int, replicate: int) -> list[Row]:
    """Fit every law to one data set; return a row for each."""
    random = np.random.default_rng([k, replicate])
    x = random.gamma(k, size=n) + random.normal(NOISE_MEAN, NOISE_SD, n)
    frame = pd.DataFrame({"id": np.arange(n), "time": 0.0, "x": x - NOISE_MEAN})
    data = nf.LongitudinalData.from_frame(frame, individual="id", time="time", response="x")
    curve = nf.Curve(lambda t, psi: psi["phi"] + 0 * t, [nf.Parameter("phi", "identity")])
    model = nf.Model(curve, nf.Additive(sigma=NOISE_SD))
    task = model.task(data, replicate)
    rows: list[Row] = []
    for name, law in LAWS.items():
        try:
            fit = model.fit_task(task, law, progress=False)
        except EstimationError as error:
            rows.append({"law": name, "ended": str(error)})
        else:
            rows.append({"law": name, "kl": divergence(k, fit.law)})
    return rows


def divergence(k: int, law: Law) -> float:
    """Return KL(Gamma(k, 1), law) in nats."""
    gamma = stats.gamma(k)
    phi = gamma.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES)
    with estimating():
        found = law.log_prob(torch.from_numpy(phi)[:, None]).numpy()
    return float((gamma.logpdf(phi) - found).mean())


def report(rows: pd.DataFrame) -> None:
    """Print medians over shapes and replicates, and the published ones."""
    medians = rows.groupby(["n", "law"])["kl"].median().unstack("law")
    print("KL from the gamma law, median over shapes k and replicates")
    print(medians.join(PUBLISHED).T.round(4).to_string())
