"""Real data: found in the folder `NLMEFLOW_DATA_DIR`, else in the cache, else downloaded.

Files are the upstream ones, checked against their SHA-256 wherever they come from.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
import pyreadr

from nlmeflow.data.checks import table_of
from nlmeflow.data.files import check_columns
from nlmeflow.errors import DataError

VARIABLE = "NLMEFLOW_DATA_DIR"
LIGHT_RAISED = pd.Timestamp("2018-06-09")  # inferred from the data: the day of the sharp drop
WINDOW_END = pd.Timestamp("2018-06-14")
DECLINE_FROM = 76  # days after planting: the first of the four dates of the potato canopy's decline
FULL_COVER = 100.0  # per cent


@dataclass(frozen=True)
class Source:
    """An upstream file: where it lies under the data folder, its address, digest, licence and citation."""

    title: str
    path: str
    url: str
    sha256: str
    licence: str
    cite: str

    def __str__(self) -> str:
        return (
            f"{self.title}\nfile: {self.path}\nfrom: {self.url}\nSHA-256: {self.sha256}\n"
            f"licence: {self.licence}\ncite: {self.cite}"
        )


PHENOVATOR = Source(
    title="Photosystem II efficiency of 1,434 Arabidopsis plants of 196 genotypes, Phenovator platform, 2018",
    path="phenovator/PhenovatorDat1.rda",
    url="https://raw.githubusercontent.com/Biometris/statgenHTP/"
    "27e166f8ec8c07b499f95bc5aec99a2a1758bc28/data/PhenovatorDat1.rda",
    sha256="9eeb556863aa29841e433e7a175e2af88650bd3414fe2be7e98fb2305c80a731",
    licence="GPL (DESCRIPTION of the R package statgenHTP)",
    cite="Millet et al., statgenHTP (R package); platform: Flood et al. 2016, "
    "doi:10.1186/s13007-016-0113-y; trait: van Rooijen et al. 2017, doi:10.1038/s41467-017-01576-3; "
    "data provided to that package by R. Boesten and M. Aarts, Wageningen",
)
POTATO = Source(
    title="Canopy of 196 potato plots of 185 clones at 8 dates, from a drone, trial HARS_2020",
    path="potato/dt_potato.csv",
    url="https://raw.githubusercontent.com/AparicioJohan/flexFitR/"
    "830722dddf4b5eff7e941f2dbdb4f8529a070b6f/data-raw/dt_potato.csv",
    sha256="e66ea2c83c0392f48b4f9017e0d7cf6432813724cc1553b73aa6435c5bfd26e5",
    licence="MIT, copyright 2024 flexFitR authors",
    cite="Aparicio and Endelman, flexFitR (R package); potato breeding programme, University of "
    "Wisconsin-Madison",
)
SOURCES = {"phenovator": PHENOVATOR, "potato": POTATO}


def about(name: str) -> str:
    """Return what a data set is, where its file comes from, its digest, licence and citation.

    name : "phenovator" or "potato", as the functions that load them.

    Raises
    ------
    DataError : no data set of this name.

    """
    if name not in list(SOURCES):
        raise DataError(f"No data set {name!r}; there are {', '.join(SOURCES)}.")
    return str(SOURCES[name])


def fetch(source: Source) -> Path:
    """Return the path of a verified copy.

    Raises
    ------
    DataError : the file is absent and cannot be downloaded, or its content is not the expected one.

    """
    folder = os.environ.get(VARIABLE)
    given = Path(folder).expanduser() / source.path if folder else None
    if given is not None and given.is_file():
        digest = pooch.file_hash(str(given), alg="sha256")
        if digest != source.sha256:
            raise DataError(
                f"{given} is not the expected file: its SHA-256 is {digest}, it should be "
                f"{source.sha256}. Take a fresh copy from {source.url}."
            )
        return given
    name = Path(source.path).name
    pooch.get_logger().setLevel("WARNING")  # the files are small, and where they are kept is nobody's concern
    try:
        found = pooch.retrieve(
            source.url, f"sha256:{source.sha256}", fname=name, path=pooch.os_cache("nlmeflow")
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"The data file {name} is not here and could not be downloaded ({type(error).__name__}). "
            f"Download {source.url} on a machine with a network, put it at "
            f"<folder>/{source.path}, and set {VARIABLE}=<folder>."
        ) from error
    return Path(found)


def phenovator() -> pd.DataFrame:
    """Return photosystem II efficiency of 1,434 Arabidopsis plants of 196 genotypes.

    103,839 rows: `EffpsII` (0.14 to 0.82) at 73 times over 18 days from 31 May 2018, four a day.
    The light was raised on 9 June 2018 (inferred from the data). A plant is identified by `pos`.
    Licence GPL (R package statgenHTP); cite Millet et al. and Flood et al. 2016.

    Raises
    ------
    DataError : as in `fetch`.

    """
    frame: pd.DataFrame = next(iter(pyreadr.read_r(str(fetch(PHENOVATOR))).values()))
    frame["timepoints"] = pd.to_datetime(frame["timepoints"])
    return frame


def high_light(frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the high-light window of 9 to 13 June 2018, 28,186 rows of 1,432 plants.

    Columns: plant, genotype, `row`, the camera position (`Image_pos`; its digit is the camera row),
    `replicate`, the block of the experiment, `day` since the first measurement of 9 June, efficiency.

    Raises
    ------
    DataError : as in `fetch`.

    """
    frame = phenovator() if frame is None else table_of(frame)
    check_columns(frame, ["timepoints", "EffpsII", "pos", "Genotype", "Image_pos", "Replicate"])
    times = frame["timepoints"]
    inside = frame[(times >= LIGHT_RAISED) & (times < WINDOW_END) & frame["EffpsII"].notna()]
    first = inside["timepoints"].min()
    return pd.DataFrame(
        {
            "plant": inside["pos"].astype(str).to_numpy(),
            "genotype": inside["Genotype"].astype(str).to_numpy(),
            "row": inside["Image_pos"].astype(str).to_numpy(),
            "replicate": inside["Replicate"].astype(str).to_numpy(),
            "day": ((inside["timepoints"] - first).dt.total_seconds() / 86400).to_numpy(),
            "efficiency": inside["EffpsII"].to_numpy(),
        }
    )


def potato() -> pd.DataFrame:
    """Return what a drone saw of a potato trial: 196 plots of 185 clones at 8 dates.

    1,568 rows. `DAP` days after planting (29 to 108); `Plot`; `Gen` the clone; `Row` and `Range` the place in
    the field; `Canopy` cover (0 to 100 %); `GLI` green-leaf index, missing where nothing is covered; `GLI_2`
    another green-leaf index, near GLI times cover, so that we take it for the mean over plants and soil;
    `VineMaturity` a visual score of the plot (2 to 7, the later the higher), without images.
    Licence MIT (R package flexFitR); cite Aparicio and Endelman.

    Raises
    ------
    DataError : as in `fetch`.

    """
    return pd.read_csv(fetch(POTATO))


def canopy(frame: pd.DataFrame | None = None, first_day: float = 0) -> pd.DataFrame:
    """Return the potato canopy from a day on: columns plot, clone, day, green, cover, bound, maturity.

    `day` after planting; `green` the green-leaf index of the whole plot (`GLI_2`, no unit); `cover` in per
    cent, at most 100; `bound` is "right" where the cover is at 100 %, "left" where it is 0, empty elsewhere,
    for from_frame(..., censoring="bound"); `maturity` the visual score. From first_day=DECLINE_FROM on the
    canopy declines; each plot has 4 dates there.

    Raises
    ------
    DataError : as in `fetch`.

    """
    frame = potato() if frame is None else table_of(frame)
    check_columns(frame, ["Plot", "Gen", "DAP", "GLI_2", "Canopy", "VineMaturity"])
    late = frame[frame["DAP"] >= first_day]
    cover = late["Canopy"].clip(0, FULL_COVER).to_numpy()
    return pd.DataFrame(
        {
            "plot": late["Plot"].astype(str).to_numpy(),
            "clone": late["Gen"].astype(str).to_numpy(),
            "day": late["DAP"].astype(float).to_numpy(),
            "green": late["GLI_2"].to_numpy(),
            "cover": cover,
            "bound": np.where(cover >= FULL_COVER, "right", np.where(cover <= 0, "left", "")),
            "maturity": late["VineMaturity"].to_numpy(),
        }
    )
