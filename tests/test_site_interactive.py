"""The interactive figures of the site, in a browser: their mathematics, sliders, keyboard, phones."""

import json
import math
import re
from pathlib import Path

import pytest
from stills import PAGES, still

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "build" / "quick-site" / "book").is_dir():
    pytest.skip("no site: make build/quick-site/index.html", allow_module_level=True)
both = pytest.mark.parametrize("name", PAGES)


def figure(name):
    return f"figure[data-interactive={name}]"


def picture(browser, name):
    return browser.ask(f"document.querySelector('{figure(name)} .pictures').innerHTML")


@both
def test_every_slider_moves_the_picture_and_is_reached_by_keyboard(name, browser, site):
    browser.open(f"{site}/book/{PAGES[name]}.html")
    sliders = browser.ask(
        f"[...document.querySelectorAll('{figure(name)} input[type=range]')].map((e) => e.id)"
    )
    assert len(sliders) >= 4
    for slider in sliders:
        element = f"document.getElementById('{slider}')"
        before, words = picture(browser, name), browser.ask(f"{element}.ariaValueText")
        assert browser.offers(f"#{slider}")
        browser.press("ArrowLeft" if browser.ask(f"{element}.value === {element}.max") else "ArrowRight")
        assert picture(browser, name) != before, slider
        assert browser.ask(f"{element}.ariaValueText") != words


@both
def test_a_figure_says_what_it_is_and_has_a_still_picture_without_scripts(name, browser, site):
    browser.open(f"{site}/book/{PAGES[name]}.html", width=390)
    inside = figure(name)
    assert browser.ask(
        f"[...document.querySelectorAll('{inside} input')].every((e) => e.labels.length === 1)"
    )
    assert browser.ask(f"[...document.querySelectorAll('{inside} .pictures svg')].every((e) => e.ariaLabel)")
    assert browser.ask(f"document.querySelector('{inside} .reading').ariaLive") == "polite"
    assert browser.ask(
        f"[...document.querySelectorAll('{inside} input[type=range]')]"
        ".every((e) => e.getBoundingClientRect().height >= 24 && e.getBoundingClientRect().width >= 200)"
    )
    letters = browser.ask(f"""Math.min(...[...document.querySelectorAll("{inside} svg text")]
        .map((e) => [e.getScreenCTM(), parseFloat(getComputedStyle(e).fontSize)])
        .map(([on, size]) => size * Math.hypot(on.a, on.b)))""")
    assert letters >= 9  # pixels
    still = browser.ask(f"document.querySelector('{inside} noscript').textContent")
    assert f'src="../_static/interactive/{name}.svg"' in still


@both
def test_the_still_picture_is_the_figure_as_it_opens(name, browser, site):
    browser.open(f"{site}/book/{PAGES[name]}.html")
    stored = (ROOT / "build" / "quick-site" / "_static" / "interactive" / f"{name}.svg").read_text()
    paths = re.findall(r' d="([^"]+)"', still(browser, name))
    assert len(paths) > 3
    assert re.findall(r' d="([^"]+)"', stored) == paths, "python tests/stills.py"


@pytest.mark.parametrize("preset", ["Start", "No change", "Funnel", "Two layers"])
def test_the_coupling_is_a_change_of_variables(preset, browser, site):
    browser.open(f"{site}/book/flows.html")
    checked = browser.ask(f"""(() => {{
      const {{ forward, inverse, density, PRESETS }} = window.interactive.coupling, worst = {{}};
      for (const swap of [false, true]) {{
        const k = {{ ...PRESETS[{preset!r}], swap }}, h = 1e-5;
        for (const u of [[0.3, -0.8], [1.4, 0.9], [-2, 0.1]]) {{
          const {{ z, steps, logdet }} = forward(u, k), back = inverse(z, k);
          const at = (a, b) => forward([a, b], k).z;
          const d1 = [0, 1].map((i) => (at(u[0] + h, u[1])[i] - at(u[0] - h, u[1])[i]) / (2 * h));
          const d2 = [0, 1].map((i) => (at(u[0], u[1] + h)[i] - at(u[0], u[1] - h)[i]) / (2 * h));
          const numerical = Math.log(Math.abs(d1[0] * d2[1] - d1[1] * d2[0]));
          const note = (name, error) => {{ worst[name] = Math.max(worst[name] ?? 0, Math.abs(error)); }};
          note("way back", Math.hypot(back.u[0] - u[0], back.u[1] - u[1]));
          note("Jacobian", numerical - logdet);
          note("sum of s", steps.reduce((sum, s) => sum + s, 0) - logdet);
          note("way back, determinant", back.logdet + logdet);
        }}
        let mass = 0;
        for (let x = -16; x < 16; x += 0.1)
          for (let y = -16; y < 16; y += 0.1) mass += 0.01 * density([x, y], k);
        worst.mass = Math.max(worst.mass ?? 0, Math.abs(mass - 1));
      }}
      return worst;
    }})()""")
    assert set(checked) == {"way back", "Jacobian", "sum of s", "way back, determinant", "mass"}
    assert checked.pop("mass") < 1e-3
    assert max(checked.values()) < 1e-6


def test_the_coupling_writes_the_log_determinant_of_what_it_draws(browser, site):
    browser.open(f"{site}/book/flows.html")
    browser.ask(
        "[...document.querySelectorAll('.presets button')].find((e) => e.textContent === 'Funnel').click()"
    )
    expected = -0.2 + 0.8 * math.tanh(1)  # c + d tanh(u1)
    assert float(browser.ask("document.querySelector('[data-logdet]').dataset.logdet")) == pytest.approx(
        expected
    )
    assert f"factor {math.exp(expected):.2f}" in browser.ask("document.querySelector('.reading').textContent")
    contours = browser.ask(
        """[...document.querySelectorAll("figure.interactive .contour")].map((e) => e.getAttribute("d"))"""
    )
    assert len(contours) == 8
    assert contours[:4] != contours[4:]


def test_the_recovered_densities_are_those_stored(browser, site):
    stored = json.loads((ROOT / "data" / "interactive" / "recovery.json").read_text())
    browser.open(f"{site}/book/how_many_plants.html")
    step, unit = stored["grid"][2], stored["unit"]
    truth, flow = stored["truth"]["10"], stored["estimates"]["10/100/0.04/1"]["flow"]
    wrong = 0.5 * step * unit * sum(abs(a - b) for a, b in zip(truth, flow, strict=True))
    assert f"flow {100 * wrong:.0f} %" in browser.ask("document.querySelector('.reading').textContent")
    drawn = "document.querySelectorAll('.pictures .law').length"
    assert browser.ask(drawn) == 3
    browser.ask("document.getElementById('box-flow').click()")
    assert browser.ask(drawn) == 2


@both
def test_without_scripts_the_still_picture_is_there_and_equations_are_set(name, browser, site):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.go(f"{site}/book/{PAGES[name]}.html")
        assert browser.ask(f"document.querySelector('{figure(name)} noscript img').naturalWidth > 0")
        assert browser.ask("document.querySelectorAll('article mjx-container').length") > 3
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
