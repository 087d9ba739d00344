"""The folder `paper/`: vector figures and tables, and one file that a paper can include as it is or take apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .drawings import Drawing
from .render import escape_latex, to_latex
from .table import TextTable

HEAD = "% needs: \\usepackage{booktabs,graphicx}; set \\graphicspath{{paper/}} where this folder lies elsewhere\n"


def paper_files(drawings: Sequence[Drawing], tables: Mapping[str, TextTable]) -> dict[str, bytes]:
    """Paths and contents: each figure that was drawn as PDF, each table as .tex, and `all.tex` with their captions."""
    drawn = [drawing for drawing in drawings if not drawing.missing]
    figures = {f"paper/{d.name}.pdf": d.images["pdf"] for d in drawn}
    texts = {f"paper/{name}.tex": to_latex(table) for name, table in tables.items()}
    blocks = [*(_table(name, table) for name, table in tables.items()), *map(_figure, drawn)]
    texts["paper/all.tex"] = "\n".join([HEAD, *blocks])
    return {**figures, **{path: text.encode() for path, text in texts.items()}}


def _table(name: str, table: TextTable) -> str:
    body = rf"\resizebox{{\textwidth}}{{!}}{{\input{{{name}}}}}"
    return _float("table*", rf"\centering {body}", table.about, f"tab:{name}")


def _figure(drawing: Drawing) -> str:
    body = rf"\centering \includegraphics[width=\linewidth]{{{drawing.name}}}"
    return _float("figure", body, f"{drawing.title} {drawing.caption}", f"fig:{drawing.name}")


def _float(kind: str, body: str, caption: str, name: str) -> str:
    said = escape_latex(caption.replace("`", ""))
    return f"\\begin{{{kind}}}\n{body}\n\\caption{{{said}}}\n\\label{{{name}}}\n\\end{{{kind}}}\n"
