"""Reads a page as a browser would, without a network."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image

VOID = {'meta', 'img', 'br'}


class Page(HTMLParser):
    """``pictures`` by alternative text, ``links``, ``ids``, ``text``; raises on what is unclosed
    and on anything that is not in the file."""

    def __init__(self, source):
        super().__init__()
        self.pictures, self.links, self.ids, self.text, self.open = {}, [], [], '', []
        self.viewport = None
        self.feed(source)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == 'img':
            kind, _, data = attrs['src'].partition(';base64,')
            assert kind.startswith('data:image/'), attrs['src'][:80]
            with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
                picture.load()
                assert kind == f'data:{picture.get_format_mimetype()}'
            assert attrs['alt'] and attrs['alt'] not in self.pictures
            self.pictures[attrs['alt']] = picture
        elif tag == 'a':
            self.links.append(attrs['href'])
        elif tag == 'meta' and attrs.get('name') == 'viewport':
            self.viewport = attrs['content']
        assert tag not in ('script', 'link', 'iframe')
        if 'id' in attrs:
            self.ids.append(attrs['id'])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if 'style' not in self.open:
            self.text += data


def read_page(path):
    """The page, after what holds for each: contents, a width for phones, nothing from outside."""
    source = path.read_text(encoding='utf-8')
    assert 'url(' not in source and '@import' not in source
    page = Page(source)
    assert 'width=device-width' in page.viewport
    assert page.links and page.links == [f'#{name}' for name in page.ids]
    return page
