import numpy as np
from PIL import Image

from mmhcnet.visualization.page import (
    Section,
    bullets,
    figure,
    grid,
    paragraph,
    table,
    write_page,
)

from ..pages import read_page


def test_page(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / 'exact.png')
    (tmp_path / 'new').mkdir()
    out = write_page(
        tmp_path / 'new' / 'folder' / 'index.html',
        'a <b> & c',
        paragraph('x < y'),
        [
            Section('first & best', table(['<h>', 'n'], [['a<b', '1']]) + bullets(['<p>'])),
            Section(
                'second',
                grid(
                    [
                        figure(tmp_path / 'exact.png', 'a "file"'),
                        figure(Image.new('RGBA', (8, 6)), 'an image', '1 < 2'),
                    ]
                ),
            ),
        ],
    )
    page = read_page(out)
    for text in ('a <b> & c', 'x < y', 'first & best', '<h>', 'a<b', '<p>', '1 < 2'):
        assert text in page.text
    assert len(page.links) == 2
    # A file goes in as it is.
    np.testing.assert_array_equal(np.asarray(page.pictures['a "file"']), pixels)
    assert page.pictures['an image'].size == (8, 6)
