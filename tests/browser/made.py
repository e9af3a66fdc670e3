"""What the browser tests look at: a film and a notebook, made here, and the kit's notebooks at their smallest."""
import base64
import io
import re
from pathlib import Path

import nbformat
import numpy as np
from nbformat import v4


def film() -> str:
    """A data address of a small moving film."""
    import av
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(16):
            picture = np.full((64, 64, 3), 255, np.uint8)
            picture[20:40, 3 * i:3 * i + 12] = (200, 30, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return "data:video/mp4;base64," + base64.b64encode(buffer.getvalue()).decode()


def notebook(*sources: str) -> nbformat.NotebookNode:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=[v4.new_markdown_cell("# A test"), *map(v4.new_code_cell, sources)],
                           metadata={"kernelspec": kernel})


def smallest(path: Path, **parameters) -> nbformat.NotebookNode:
    """One of the kit's notebooks with these parameters; everything else as it is committed."""
    notebook = nbformat.read(path, as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for name, value in parameters.items():
        cell.source, changed = re.subn(rf"^({name}: \w+ = )[^#\n]+", lambda m: f"{m[1]}{value!r}  ", cell.source, flags=re.M)
        assert changed == 1, name
    return notebook
