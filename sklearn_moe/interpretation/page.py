"""Parts of an HTML page that needs no network."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from io import BytesIO

STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { border: 1px solid #bbb;
padding: 2px 8px; text-align: left; vertical-align: top } th { background: #eee }
pre { background: #f6f6f6; padding: 8px; overflow-x: auto; font-size: 12px }
img { max-width: 100%; display: block; margin: 1em 0 }
@media print { body { font-size: 10pt; max-width: none; margin: 0 }
pre { white-space: pre-wrap; font-size: 7.5pt } tr, img { break-inside: avoid }
h2 { break-after: avoid } }
"""

GLOSSARY = {
    "mixture of experts": "A model that divides the samples among several smaller models.",
    "expert": "One of these models. It predicts the class of a sample.",
    "gate": "The part that says how much each expert counts for a sample, its weight. It chooses "
    "the expert that counts most.",
    "own samples": "The samples for which the gate chooses an expert.",
    "rule": "What the samples of an expert have in common, in words. The gate does not follow "
    "rules; they only describe it.",
    "odds": "p / (1 - p) for a probability p. A coefficient is what one more unit of a column "
    "adds to the logarithm of the odds.",
    "log loss": "Mean of -log(p) for the probability p that the mixture gave the true class. Low "
    "is good; 0 is perfect.",
    "Brier score": "Mean squared difference of the probabilities and what happened. Low is good.",
    "calibrated": "Of all samples with a predicted probability of 70%, 70% are of the class.",
    "BIC": "A measure of fit that also counts the parameters. Low is good.",
    "bit": "A sample that loses one bit gets half of the probability for its true class.",
}


def paragraph(*sentences):
    """Return a paragraph of sentences, which are escaped."""
    return f"<p>{escape(' '.join(sentences))}</p>\n"


def bullets(items):
    """Return a list; all items are escaped."""
    return "<ul>" + "".join(f"<li>{escape(each)}</li>" for each in items) + "</ul>\n"


def table(head, rows):
    """Return a table; all cells are escaped."""
    lines = ["<tr>" + "".join(f"<th>{escape(str(cell))}</th>" for cell in head) + "</tr>"]
    lines += [
        "<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in rows
    ]
    return "<table>\n" + "\n".join(lines) + "\n</table>\n"


def preformatted(value):
    """Return what an object prints, as it is."""
    return f"<pre>{escape(str(value))}</pre>\n"


def picture(draw, size, alt):
    """Return the picture that ``draw(figure)`` makes on a figure of this size in inches.

    ``alt`` says what there is to see, for those who do not see it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    data = b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">\n'


def as_page(title, date, sections):
    """Return the page, with a table of contents."""
    contents, body = "", ""
    for number, (name, text) in enumerate(sections.items(), 1):
        contents += f'<li><a href="#s{number}">{escape(name)}</a></li>'
        body += f'<h2 id="s{number}">{number}. {escape(name)}</h2>\n{text}\n'
    when = "" if date is None else f"<p>{escape(date)}</p>"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>{when}\n"
        f"<ol>{contents}</ol>\n{body}</body></html>\n"
    )
