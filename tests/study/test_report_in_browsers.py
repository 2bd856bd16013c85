"""The report in Chromium, where there is one: drawn without a word, readable in both schemes and on a narrow screen."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from made_study import rendered_from_one_seed

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


class _Titles(HTMLParser):
    """Counts the drawings of a page that a browser has worked on."""

    drawn = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.drawn += tag == "svg" and ("class", "marks") in attrs


def browse(url: str, folder: Path, *options: str) -> tuple[str, str]:
    """The document after its scripts ran, and what the browser had to say; no host can be found from it."""
    arguments = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-component-update",
        "--disable-background-networking",
        "--disable-sync",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=8000",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        "--v=0",
        *options,
        "--dump-dom",
        url,
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_chromium_draws_every_figure_without_a_word(made: tuple, tmp_path: Path, scheme: int) -> None:
    path = made[3]
    document, console = browse(
        f"file://{path}", tmp_path, "--window-size=1400,1000", f"--blink-settings=preferredColorScheme={scheme}"
    )
    assert console == ""
    reader = _Titles()
    reader.feed(document)
    assert reader.drawn == path.read_text(encoding="utf-8").count("data-chart=") == 13


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_chromium_has_no_word_on_figures_without_intervals(made: tuple, tmp_path: Path) -> None:
    """Vega warns of the infinite extent of a layer in which nothing is."""
    path = rendered_from_one_seed(made, tmp_path)
    document, console = browse(f"file://{path}", tmp_path, "--window-size=1400,1000")
    assert console == "" and document.count('class="marks"') == 8


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_chromium_at_400_pixels_scrolls_tables_not_the_page(made: tuple, tmp_path: Path) -> None:
    probe = """<!doctype html><iframe id=f width=400 height=900 src="file://PATH"></iframe><p id=out></p><script>
    f.onload = () => setTimeout(() => { const d = f.contentDocument; const e = d.scrollingElement;
      const wide = [...d.querySelectorAll("main *:not(.scroll *):not(svg *)")]
        .filter(n => n.getBoundingClientRect().right > 401);
      out.textContent = JSON.stringify({page: e.scrollWidth, inside: d.querySelectorAll(".scroll").length,
        scrolling: [...d.querySelectorAll(".scroll")].filter(n => n.scrollWidth > n.clientWidth).length,
        wide: wide.map(n => n.tagName + "." + n.className).slice(0, 5)}) }, 3000);
    </script>"""
    outer = tmp_path / "outer.html"
    outer.write_text(probe.replace("PATH", str(made[3])), encoding="utf-8")
    document, console = browse(f"file://{outer}", tmp_path, "--disable-web-security", "--window-size=800,1000")
    assert console == ""
    seen = json.loads(html.unescape(re.search(r'<p id="out">(.*?)</p>', document)[1]))
    assert seen["page"] <= 400 and seen["wide"] == [] and seen["scrolling"] > 3


PROBE = """<!doctype html><iframe id=f width=1200 height=900 src="file://PATH"></iframe><p id=out></p><script>
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
  f.onload = () => setTimeout(() => {
    const d = f.contentDocument, w = f.contentWindow, faint = {}, unseen = [];
    d.querySelectorAll("details").forEach(n => n.open = true);
    const ground = n => { for (; n; n = n.parentElement) { const c = w.getComputedStyle(n).backgroundColor;
      if (c !== "rgba(0, 0, 0, 0)") return c; } return "rgb(255, 255, 255)"; };
    const texts = d.createTreeWalker(d.body, NodeFilter.SHOW_TEXT); let seen = 0;
    while (texts.nextNode()) { const n = texts.currentNode.parentElement;
      if (!texts.currentNode.data.trim() || n.closest("script,svg,.vega-embed details")) continue;
      const [a, b] = [light(w.getComputedStyle(n).color), light(ground(n))].sort((x, y) => y - x); seen++;
      if ((a + 0.05) / (b + 0.05) < 4.5) faint[n.tagName + "." + n.className] = ((a + 0.05) / (b + 0.05)).toFixed(2); }
    const stops = [...d.querySelectorAll("a[href],button,summary,[tabindex='0']")].filter(n => n.offsetParent);
    for (const n of stops) { n.focus({focusVisible: true}); const s = w.getComputedStyle(n);
      if (d.activeElement !== n || s.outlineStyle === "none" || parseFloat(s.outlineWidth) < 2)
        unseen.push(n.tagName + "." + n.className); }
    out.textContent = JSON.stringify({seen, faint, stops: stops.length, unseen: [...new Set(unseen)],
      trap: d.querySelectorAll("[tabindex]:not([tabindex='0']):not([tabindex='-1'])").length,
      dark: w.matchMedia("(prefers-color-scheme: dark)").matches}) }, 3000);
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_chromium_finds_all_text_readable_and_every_stop_of_the_keyboard_visible(
    made: tuple, tmp_path: Path, scheme: int
) -> None:
    outer = tmp_path / "outer.html"
    outer.write_text(PROBE.replace("PATH", str(made[3])), encoding="utf-8")
    options = ("--disable-web-security", "--window-size=1400,1000", f"--blink-settings=preferredColorScheme={scheme}")
    document, console = browse(f"file://{outer}", tmp_path, *options)
    assert console == ""
    seen = json.loads(html.unescape(re.search(r'<p id="out">(.*?)</p>', document)[1]))
    assert seen["dark"] is (scheme == 0) and seen["seen"] > 500 and seen["stops"] > 30
    assert seen["faint"] == {} and seen["unseen"] == [] and seen["trap"] == 0
