"""The page in a real browser."""

import re
import shutil
import subprocess

import pytest

from lacuna.analysis import report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# what a person would do; the answers go into the title, which the browser prints with the page
ACTS = """
<script>
const table = document.querySelector("table.measures"), button = table.tHead.rows[0].cells[3].querySelector("button");
const column = () => [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[3].firstChild.textContent);
button.focus();
const focused = document.activeElement === button;
button.click();
const up = column();
button.click();
const down = column();
const input = document.querySelector(".filter input");
input.value = "LOKI 0.25";
input.dispatchEvent(new Event("input"));
document.title = JSON.stringify({
  focused, up, down, shown: column().length, said: document.querySelector(".filter span").textContent,
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
});
</script></body>
"""


@pytest.fixture(scope="module")
def browser():
    """A browser of the Chromium family."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if not found:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is on the PATH")
    return found


@pytest.fixture(scope="module")
def page(broken, tmp_path_factory):
    """The page of a sweep with failures."""
    return report.write_report(broken, tmp_path_factory.mktemp("out"), "A title", "lacuna report")[0]


def ask(browser, path, width, profile):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", f"--user-data-dir={profile}"]
    command = [browser, *flags, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode or "<title>" not in done.stdout:
        pytest.skip(f"the browser does not start here: {done.stderr.strip()[-200:]}")
    return done.stdout


@pytest.mark.parametrize("width", [1200, 500])
def test_tables_are_sorted_and_filtered(browser, page, tmp_path, width):
    """Broken: a click on a heading, or a word in the filter, does nothing; or a phone must scroll the whole page."""
    import json
    from html import unescape

    acting = tmp_path / "acting.html"
    acting.write_text(page.read_text(encoding="utf-8").replace("</body>", ACTS), encoding="utf-8")
    got = json.loads(unescape(re.search(r"<title>(.*?)</title>", ask(browser, acting, width, tmp_path / "p"))[1]))
    numbers = [[float(t.split("[")[0]) for t in got[way] if t[0].isdigit()] for way in ("up", "down")]
    assert got["focused"]
    assert len(numbers[0]) == 10
    assert numbers[0] == sorted(numbers[0])
    assert numbers[1] == sorted(numbers[1], reverse=True)
    assert got["shown"] == 3
    assert got["said"] == "3 of 10"
    assert got["wide"] <= 0


def test_the_page_is_whole_without_its_script(page):
    """Broken: rows are there only where scripts may run."""
    text = page.read_text(encoding="utf-8")
    assert re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL).count("<tr>") > 20
