"""A page made of a notebook opens from disk: clips play, formulas are drawn, nothing is asked of the network."""
from contextlib import contextmanager

import nbformat
import pytest
from made import film, notebook
from nbformat import v4

from animkit import cli
from animkit.pages import write_page
from animkit.reproduce import CLAIMS

PLAYS = """async () => { const films = [...document.querySelectorAll('video')], played = [];
    for (const v of films) { v.scrollIntoView(); await v.play();
        const end = Date.now() + 10000;
        while (!(v.currentTime > 0 && v.videoWidth > 0) && Date.now() < end) await new Promise(r => setTimeout(r, 50));
        played.push(v.currentTime > 0 && !v.error); v.pause(); }
    return played; }"""


@contextmanager
def opened(chromium, path):
    """A page opened from disk; at the end nothing may have been asked of the network, and no error told."""
    context = chromium.new_context()
    page, asked, errors = context.new_page(), [], []
    page.on("request", lambda r: asked.append(r.url) if r.url.startswith(("http", "ws")) else None)
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(path.as_uri())
    try:
        yield page
    finally:
        context.close()
    assert asked == [] and errors == []


@pytest.mark.timeout(120)
def test_a_page_opens_from_disk(chromium, tmp_path, screenshots):
    nb = notebook("the_clip")
    nb.cells.insert(1, v4.new_markdown_cell("Noise is added: $$z_t = \\sqrt{\\bar\\alpha_t}\\, z_0 + \\sqrt{1 - \\bar\\alpha_t}\\, \\epsilon$$"))
    nb.cells[-1].outputs = [v4.new_output("display_data", {"text/html": f'<video controls muted loop src="{film()}"></video>'})]
    nbformat.write(nb, tmp_path / "n.ipynb")
    write_page(tmp_path / "n.ipynb", tmp_path / "n.html")
    with opened(chromium, tmp_path / "n.html") as page:
        played = page.evaluate(PLAYS)
        formula = page.locator("math").bounding_box()
        page.screenshot(path=str(screenshots / "page.png"))
    assert played == [True] and formula["width"] > 80 and formula["height"] > 15


@pytest.mark.timeout(300)
def test_the_site_opens_from_disk_and_every_clip_of_a_lesson_plays(chromium, tmp_path, screenshots):
    words = ["--only", "00_quickstart", "-p", "frames", "4", "-p", "steps", "2"]
    assert cli.main(["site", "--out", str(tmp_path / "site"), *words]) == 0
    with opened(chromium, tmp_path / "site" / "index.html") as page:
        page.screenshot(path=str(screenshots / "site.png"))
        page.get_by_role("link").first.click()
        page.wait_for_load_state()
        played, address = page.evaluate(PLAYS), page.url
        page.screenshot(path=str(screenshots / "site-lesson.png"))
    assert address.endswith("00_quickstart.html") and len(played) >= 2 and all(played)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_site_opens_from_disk_and_every_clip_plays(chromium, repo, tmp_path):
    given = {"steps": 2, "frames": 6, "training_steps": 3, "train_steps": 2, "clips": 4, "batch": 1, "seeds": 2, "kinds": 1}
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    assert cli.main(["site", "--out", str(tmp_path / "site"), *words]) == 0
    pages = sorted(p for p in (tmp_path / "site").glob("*.html") if p.name != "index.html")
    assert {p.stem for p in pages} >= {p.stem for p in (repo / "notebooks").glob("*.ipynb")} | {"report"}
    for path in pages:
        with opened(chromium, path) as page:
            assert all(page.evaluate(PLAYS)), path.name


@pytest.mark.timeout(300)
def test_the_committed_report_opens_from_disk_and_its_clips_play(chromium, repo, screenshots):
    """`opened` sees that nothing is asked of the network."""
    with opened(chromium, repo / "reproduce" / "laptop" / "report.html") as page:
        played = page.evaluate(PLAYS)
        page.screenshot(path=str(screenshots / "report.png"), full_page=True)
    assert len(played) == len(CLAIMS) and all(played)
