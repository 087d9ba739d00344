"""The page in a real browser: what is seen at a desk and on a phone, and what the keyboard does."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from lacuna.analysis import report

SIZES = {"desk": (1280, 900, False), "phone": (390, 844, True)}
MOST_TABS = 60
BOXES = """[...document.querySelectorAll("h1, nav, #summary h2, #summary li, .measures, .filter input")]
  .map(e => [e.tagName, e.closest(".scroll") || e]).map(([name, e]) => [name, e.getBoundingClientRect()])
  .map(([name, b]) => [name, b.left, b.right, b.width, b.height])"""
FOCUSED = 'document.activeElement.matches("{0}")'
COLUMN = """[...document.activeElement.closest("table").tBodies[0].rows].filter(row => !row.hidden)
  .map(row => row.cells[document.activeElement.closest("th").cellIndex].firstChild.textContent)"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """A browser's page."""
    place = Path(__file__).with_name("chromium.py")
    spec = importlib.util.spec_from_file_location("chromium", place)
    chromium = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chromium)
    if not chromium.find():
        pytest.skip(f"no browser here: none of {', '.join(chromium.NAMES)} is on the PATH")
    with chromium.tab(chromium.find(), tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(broken, tmp_path_factory):
    """The page of a sweep with failures, with some of its figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "names", lambda _: ["accuracy_density", "energy", "needle_heatmap"])
        return report.write_report(broken, tmp_path_factory.mktemp("out"), "A title", "lacuna report")[0]


def tab_to(tab, selector):
    """Press Tab until an element has the focus, as somebody without a mouse does."""
    for _ in range(MOST_TABS):
        tab.press("Tab")
        if tab.run(FOCUSED.format(selector)):
            return
    raise AssertionError(f"{selector} is not reached by {MOST_TABS} times Tab")


def inked(photo):
    """The share of pixels that are not white."""
    return float((photo.min(axis=2) < 240).mean())


@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_the_screen(tab, page, size):
    """Broken: a phone must scroll the whole page sideways, or heading, summary or tables lie beside the screen."""
    width, height, mobile = SIZES[size]
    tab.show(page, width, height, mobile)
    assert tab.run("window.innerWidth") == width
    assert tab.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    boxes = tab.run(BOXES)
    assert {"H1", "NAV", "H2", "LI", "TABLE", "INPUT"} <= {name for name, *_ in boxes}
    for name, left, right, wide, high in boxes:
        assert left >= 0, name
        assert right <= width, name
        assert min(wide, high) > 10, name


@pytest.mark.parametrize("size", SIZES)
def test_what_is_on_the_screen(tab, page, size):
    """Broken: the screen is blank, or the page begins with a wall of ink; a figure is there in the code alone."""
    width, height, mobile = SIZES[size]
    tab.show(page, width, height, mobile)
    photo = tab.photo()
    assert photo.shape == (height, width, 3)
    assert 0.02 < inked(photo) < 0.4
    # text in every fifth of the screen, and nothing cut off at its right edge
    assert all(inked(part) > 0.003 for part in np.array_split(photo, 5))
    assert inked(photo[:, -4:]) == 0
    tab.run("document.querySelector('figure img').scrollIntoView({block: 'start'})")
    figure = tab.photo().astype(int)
    coloured = (figure.max(axis=2) - figure.min(axis=2)) > 60
    assert coloured.mean() > 0.001  # marks of methods have colours, text has none
    assert tab.run("[...document.images].every(image => image.naturalWidth > 100)")
    # letters of 6 points on paper are read from farther away on a screen
    scale = tab.run("document.images[0].clientWidth / document.images[0].naturalWidth")
    assert scale == pytest.approx(1.0 if mobile else 1.35, abs=0.02)


@pytest.mark.parametrize("size", SIZES)
def test_tables_are_sorted_by_the_keyboard(tab, page, size):
    """Broken: who has no mouse cannot sort, or does not see where the focus is."""
    tab.show(page, *SIZES[size])
    tab_to(tab, ".measures th:nth-child(4) button")
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    found = []
    for key, way in (("Enter", "ascending"), (" ", "descending")):
        tab.press(key)
        assert tab.run('document.activeElement.closest("th").getAttribute("aria-sort")') == way
        found.append([float(text.split("[")[0]) for text in tab.run(COLUMN) if text[0].isdigit()])
    assert len(found[0]) == 10
    assert found[0] == sorted(found[0])
    assert found[1] == sorted(found[1], reverse=True)


def test_tables_are_filtered_by_typing(tab, page):
    """Broken: words typed into the filter leave the rows as they are, or nobody hears how many are left."""
    tab.show(page, *SIZES["phone"])
    tab_to(tab, ".filter input")
    tab.ask("Input.insertText", text="LOKI 0.25")
    assert tab.run("[...document.querySelector('.measures').tBodies[0].rows].filter(row => !row.hidden).length") == 3
    assert tab.run("document.querySelector('.filter [role=status]').textContent") == "3 of 10"


def test_wide_tables_and_details_are_reached_by_the_keyboard(tab, page):
    """Broken: the right half of a table, or a method's description, is there only for who has a mouse."""
    tab.show(page, *SIZES["phone"])
    tab_to(tab, ".scroll")
    for _ in range(3):
        tab.press("ArrowRight")
    tab.wait("document.activeElement.scrollLeft > 0")
    assert tab.run("document.activeElement.className") == "scroll"
    tab.run("document.querySelector('#figures').scrollIntoView(); document.querySelector('summary').focus()")
    assert not tab.run("document.querySelector('details').open")
    tab.press("Enter")
    tab.wait("document.querySelector('details').open")


def test_the_page_is_whole_without_its_script(page):
    """Broken: rows are there only where scripts may run."""
    text = page.read_text(encoding="utf-8")
    assert re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL).count("<tr>") > 20
