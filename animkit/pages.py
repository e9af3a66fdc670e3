"""A notebook that was run, as one HTML page that needs no network: clips, pictures and formulas are inside it."""
from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path

from .errors import AnimkitError
from .files import write_atomically
from .notebooks import needs

WIDGET = "application/vnd.jupyter.widget-view+json"
ICONS = re.compile(r"\s*--jp-icon-[\w-]+:\s*url\([^)]*\);")  # JupyterLab's buttons, which no page has: 86 kB per page
# nbconvert's own page without the scripts that it takes from other hosts (require, MathJax, mermaid, widgets).
TEMPLATE = """{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_css -%}{{ super() }}
<style>.jp-RenderedMarkdown pre { font-family: var(--jp-code-font-family); font-size: var(--jp-code-font-size); }</style>
{%- endblock -%}"""


def write_page(notebook: str | os.PathLike, page: str | os.PathLike) -> Path:
    """Write an executed notebook as one page. Raises AnimkitError if the page would load anything from the network.

    Formulas become MathML, which browsers draw themselves. Widgets live only in JupyterLab and are left out: notebooks
    have a static picture beside each.
    """
    nbformat = needs("nbformat")
    notebook, page = Path(notebook), Path(page)
    try:
        nb = nbformat.read(notebook, as_version=4)
    except (OSError, ValueError) as error:
        raise AnimkitError(f"{notebook} is not a notebook that can be read: {error}") from error
    without_widgets(nb)
    headings = (re.search(r"^# (.+)$", cell.source, re.M) for cell in nb.cells if cell.cell_type == "markdown")
    nb.metadata["title"] = next((found.group(1).strip() for found in headings if found), notebook.stem)
    html, _ = _exporter().from_notebook_node(nb, {"metadata": {"path": str(notebook.resolve().parent)}})
    head, end, body = html.partition("</head>")
    html = ICONS.sub("", head) + end + body
    if loads := network_loads(html):
        raise AnimkitError(f"the page of {notebook.name} would load {', '.join(loads[:5])} from the network; "
                           "put it into the notebook instead")
    return write_atomically(page, lambda file: Path(file).write_text(html, encoding="utf-8"))


def without_widgets(nb) -> None:
    """Remove what needs a running kernel from an executed notebook, also progress bars, which are saved as they began."""
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if WIDGET not in out.get("data", {})]


def _exporter():
    needs("nbconvert")
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return mathml(body, display=True)

        def inline_math(self, body: str) -> str:
            return mathml(body)

        def latex_environment(self, name: str, body: str) -> str:
            return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", display=True)

        def _html_embed_images(self, html: str) -> str:    # would close a <details> whose inside is Markdown
            return super()._html_embed_images(html) if "<img" in html else html

    class Page(HTMLExporter):
        def markdown2html(self, context, source: str) -> str:       # nbconvert finds the context by this name
            cell, path = context.get("cell", {}), context.get("resources", {}).get("metadata", {}).get("path", "")
            renderer = Renderer(escape=False, embed_images=True, path=path, attachments=cell.get("attachments", {}))
            return MarkdownWithMath(renderer=renderer).render(source)

        markdown2html.__dict__.update(HTMLExporter.markdown2html.__dict__)      # jinja's mark: pass the context

    exporter = Page(template_name="lab", embed_images=True)
    exporter.raw_template = TEMPLATE
    return exporter


def mathml(tex: str, display: bool = False) -> str:
    """A formula in TeX as MathML; what cannot be read stays as it was written."""
    import html
    convert = needs("latex2mathml.converter").convert
    try:
        return convert(tex.strip(), display="block" if display else "inline")
    except Exception:           # the converter has no common error; a page with one raw formula is better than no page
        return f"<code>{html.escape(tex)}</code>"


def network_loads(html: str) -> list[str]:
    """Every address that a browser would fetch by itself on opening the page; links to click are not among them."""
    finder = _Loads()
    finder.feed(html)
    return finder.found


class _Loads(HTMLParser):
    """Collects remote src, poster, stylesheet, import and url(...) addresses."""

    REMOTE = re.compile(r"^\s*(?:https?:)?//", re.I)
    CSS = re.compile(r"""(?:url\(\s*|@import\s+)["']?\s*((?:https?:)?//[^"')\s]+)""", re.I)
    SCRIPT = re.compile(r"""(?:\bimport\b[^;'"]*|\bfrom\s*|\bimport\(|\bsrc\s*=\s*|\bfetch\(|\brequire\w*\([^)]*)"""
                        r"""["'`]((?:https?:)?//[^"'`\s]+)""", re.I)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag if tag in ("script", "style") else ""
        for name, value in attrs:
            value = value or ""
            if name in ("src", "poster", "srcset", "data", "background") or (name == "href" and tag in ("link", "use")):
                if self.REMOTE.match(value):
                    self.found.append(value)
            elif name == "style":
                self.found += self.CSS.findall(value)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found += (self.CSS if self.inside == "style" else self.SCRIPT).findall(data)
