"""A page made of a notebook opens from disk: clips play, formulas are drawn, nothing is asked of the network."""
import nbformat
import pytest
from made import film, notebook
from nbformat import v4

from animkit.pages import write_page


@pytest.mark.timeout(120)
def test_a_page_opens_from_disk(chromium, tmp_path, screenshots):
    nb = notebook("the_clip")
    nb.cells.insert(1, v4.new_markdown_cell("Noise is added: $$z_t = \\sqrt{\\bar\\alpha_t}\\, z_0 + \\sqrt{1 - \\bar\\alpha_t}\\, \\epsilon$$"))
    nb.cells[-1].outputs = [v4.new_output("display_data", {"text/html": f'<video controls muted loop src="{film()}"></video>'})]
    nbformat.write(nb, tmp_path / "n.ipynb")
    write_page(tmp_path / "n.ipynb", tmp_path / "n.html")
    context = chromium.new_context()
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda r: asked.append(r.url) if r.url.startswith(("http", "ws")) else None)
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto((tmp_path / "n.html").as_uri())
    played = page.evaluate("""async () => { const v = document.querySelector('video'); await v.play();
        const end = Date.now() + 10000;
        while (!(v.currentTime > 0 && v.videoWidth > 0) && Date.now() < end) await new Promise(r => setTimeout(r, 50));
        return v.currentTime > 0 && !v.error; }""")
    formula = page.locator("math").bounding_box()
    page.screenshot(path=str(screenshots / "page.png"))
    context.close()
    assert played and formula["width"] > 80 and formula["height"] > 15
    assert asked == [] and errors == []
