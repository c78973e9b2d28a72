"""HTML pages of one file, with their pictures inside, readable on a phone."""

import base64
import html
import io
import mimetypes
from pathlib import Path
from typing import NamedTuple

from PIL import Image

# A table that is wider than the screen scrolls by itself, below a shadow at the side where more is.
STYLE = '''
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1250px; margin: 0 auto; padding: 1em;
  color: #222; background: #fff; overflow-wrap: break-word }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2em; border-bottom: 1px solid #ccc }
nav ul { padding-left: 1.2em; columns: 16em } nav a { line-height: 2 }
img { max-width: 100%; height: auto; display: block }
figure { margin: 0 } figcaption { font-size: .9em; color: #555 }
.grid { display: grid; gap: 1em;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)) }
.small { display: grid; gap: .5em; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)) }
.wide { overflow-x: auto; margin: 1em 0; background:
  linear-gradient(90deg, #fff 30%, transparent) left / 3em 100% no-repeat local,
  linear-gradient(270deg, #fff 30%, transparent) right / 3em 100% no-repeat local,
  linear-gradient(90deg, #0003, transparent) left / 1em 100% no-repeat scroll,
  linear-gradient(270deg, #0003, transparent) right / 1em 100% no-repeat scroll }
table { border-collapse: collapse } td, th { padding: .3em .6em; border-bottom: 1px solid #ccc;
  text-align: right; overflow-wrap: normal }
td:first-child, th:first-child { text-align: left } code { background: #8882 }'''


class Section(NamedTuple):
    """A heading, plain text, and what is below it, HTML."""

    title: str
    body: str


def write_page(out: Path, title: str, intro: str, sections: list[Section]) -> Path:
    """Writes a page with a list of its contents; returns its path.

    Args:
        out (Path): File to write; its folder is made if it is missing.
        title (str): Plain text.
        intro (str): HTML, above the contents.
        sections (list[Section]): In order.
    """
    contents, body = [], []
    for i, section in enumerate(sections, 1):
        heading = html.escape(section.title)
        contents.append(f'<li><a href="#s{i}">{heading}</a></li>')
        body.append(f'<section id="s{i}"><h2>{heading}</h2>\n{section.body}</section>\n')
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head>\n'
        f'<body><h1>{html.escape(title)}</h1>\n{intro}\n'
        f'<nav aria-label="Contents"><ul>{"".join(contents)}</ul></nav>\n'
        f'{"".join(body)}</body></html>\n',
        encoding='utf-8',
    )
    return out


def paragraph(text: str) -> str:
    return f'<p>{html.escape(text)}</p>\n'


def bullets(texts: list[str]) -> str:
    return f'<ul>{"".join(f"<li>{html.escape(text)}</li>" for text in texts)}</ul>\n'


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table of plain texts, the first column to the left and the numbers to the right."""

    def line(cells, tag):
        return f'<tr>{"".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)}</tr>\n'

    return (
        f'<div class="wide" tabindex="0"><table>{line(header, "th")}'
        f'{"".join(line(row, "td") for row in rows)}</table></div>\n'
    )


def figure(picture: Path | Image.Image, alt: str, caption: str = '') -> str:
    """A picture inside the page: a file as it is, an image as JPEG."""
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.convert('RGB').save(buffer, 'JPEG', quality=85)
        kind, data = 'image/jpeg', buffer.getvalue()
    else:
        kind, data = mimetypes.guess_type(picture)[0], picture.read_bytes()
    return (
        f'<figure><img loading="lazy" src="data:{kind};base64,{base64.b64encode(data).decode()}" '
        f'alt="{html.escape(alt)}">'
        + (f'<figcaption>{html.escape(caption)}</figcaption>' if caption else '')
        + '</figure>\n'
    )


def grid(figures: list[str], kind: str = 'grid') -> str:
    """Figures side by side, as many as there is room for; ``kind='small'`` for narrow ones."""
    return f'<div class="{kind}">{"".join(figures)}</div>\n'
