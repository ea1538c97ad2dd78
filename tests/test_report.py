import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pytest

from landscape import compare
from landscape.report import write_report
from tests.test_compare import QUICK, _checkpoint, _problem


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    checkpoints = [_checkpoint("A"), _checkpoint("B & <C>", 2.0), _checkpoint("D", 0.5)]
    write_report(compare(checkpoints, _problem(), settings=QUICK), out)
    return out


FIGURES = {
    "eigenvalue_histogram",
    "spectral_density",
    "line_from_A_to_B & <C>",
    "line_from_A_to_D",
    "line_eigenvector",
    "band_random",
    "loss_surfaces",
    "plane_of_minima",
    "local_entropy",
}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images = 0

    def handle_starttag(self, tag, attrs):
        self.images += tag == "img"
        self.links += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]


def test_the_page_holds_all_its_pictures_and_asks_for_nothing(folder):
    text = (folder / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.links == []
    assert "url(" not in text
    assert "<script" not in text
    assert page.images == len(FIGURES)
    assert "B &amp; &lt;C&gt;" in text
    assert "B & <C>" not in text


def test_every_figure_is_a_png(folder):
    pngs = {p.stem: p.read_bytes() for p in (folder / "figures").iterdir()}
    assert set(pngs) == FIGURES
    assert all(data.startswith(b"\x89PNG") for data in pngs.values())
    assert plt.get_fignums() == []  # drawn off screen


def test_no_label_is_cut_off_at_the_edge(folder):
    for path in (folder / "figures").iterdir():
        pixels = plt.imread(path)[:, :, :3]
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (edge > 0.95).all(), path.name  # white


def test_every_number_is_in_strict_json(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((folder / "results.json").read_text(), parse_constant=refuse)
    assert content["names"] == ["A", "B & <C>", "D"]
    assert len(content["results"]["A/plane_random"]["loss"]) == 3
    assert "vectors" not in content["results"]["A/eigenpairs"]
    assert "directions" not in content["results"]["minima/frame"]
    for kind in ("line_eigenvector", "band_random", "plane_random"):
        assert content["results"][f"A/{kind}"]["origin"] == content["results"]["A/line_eigenvector"]["origin"] > 0
    row = content["measures"]["names"].index("train loss")
    assert content["measures"]["stderr"][row] == [0, 0, 0]
    row = content["measures"]["names"].index("most negative Ritz value")
    assert content["measures"]["stderr"][row] == [None, None, None]  # NaN


def test_the_tables_show_values_with_errors_and_differences(folder):
    text = re.sub(r"data:image/png;base64,[^\"]*", "", (folder / "report.html").read_text())
    assert "Hessian trace" in text
    assert "D − A" in text  # noqa: RUF001 - a minus sign
    assert re.search(r"\d ± \d", text)
    assert "Dinh et al. 2017" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to open the page with")
def test_a_browser_shows_every_picture_offline(folder, tmp_path):
    shot = tmp_path / "page.png"
    subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            f"--user-data-dir={tmp_path}/profile",
            "--window-size=1000,6000",
            f"--screenshot={shot}",
            f"file://{folder}/report.html",
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pixels = plt.imread(shot)[:, :, :3]
    # white down to the last picture would mean that pictures are missing: look for contours' colours
    colourful = (pixels.max(axis=2) - pixels.min(axis=2) > 0.3).any(axis=1)
    assert colourful.sum() > 1000  # rows of pixels; the surfaces alone are some 250


def test_one_checkpoint_alone_is_said_to_be_alone(tmp_path):
    write_report(compare([_checkpoint("A")], _problem(), settings=QUICK), tmp_path)
    assert "nothing to be flatter than" in (tmp_path / "report.html").read_text()


def test_several_checkpoints_are_never_said_to_be_alone(folder):
    assert "nothing to be flatter than" not in (folder / "report.html").read_text()
