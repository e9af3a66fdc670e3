"""The quickstart in a real JupyterLab: run by the menu, then saved and opened again as a stranger's notebook."""
import nbformat
import pytest

from animkit.demo import QUICKSTART


@pytest.mark.skipif(not QUICKSTART.is_file(), reason="notebooks/00_quickstart.ipynb is not written yet")
@pytest.mark.timeout(600)
def test_quickstart_runs_and_every_clip_plays(lab, screenshots):
    page = lab.open_notebook(lab.add(QUICKSTART))
    page.run_all()
    page.wait_done(400)
    assert page.errors() == []
    assert page.undrawn_widgets() == 0 and page.broken_pictures() == 0 and page.outside == []
    assert page.clips() >= 1
    assert [i for i in range(page.clips()) if not page.clip_plays(i)] == []
    page.screenshot(screenshots / "00_quickstart.png")
    page.save()

    stranger = nbformat.read(lab.folder / QUICKSTART.name, as_version=4)
    stranger.metadata.pop("widgets", None)
    stranger.cells.append(nbformat.v4.new_markdown_cell("changed elsewhere"))
    for cell in stranger.cells:
        cell.metadata.pop("trusted", None)
        for out in cell.get("outputs", []):                     # so that its signature no longer fits
            if "text/html" in out.get("data", {}):
                out.data["text/html"] += "\n"
    lab.add(stranger, "stranger.ipynb")
    again = lab.open_notebook("stranger.ipynb")
    trusted = again.page.evaluate(f"() => [...{again.MODEL}.content.model.cells].map(c => c.type === 'code' && c.trusted)")
    assert not any(trusted)
    assert again.clips() >= 1 and again.broken_pictures() == 0
    assert [i for i in range(again.clips()) if not again.clip_plays(i)] == []
    again.screenshot(screenshots / "00_quickstart-untrusted.png")
