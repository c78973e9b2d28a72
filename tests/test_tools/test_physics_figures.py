"""The pictures of docs/physics.md can be made again, and the page quotes what the tool prints."""

from PIL import Image

from .conftest import ROOT


def test_the_page_quotes_what_is_measured(tool, tmp_path):
    done = tool('visualization/physics_figures.py', '--out', tmp_path)
    page = (ROOT / 'docs' / 'physics.md').read_text(encoding='utf-8')
    assert len(done.stdout.splitlines()) > 10
    assert done.stdout.strip() in page
    made = {path.name for path in tmp_path.iterdir()}
    for name in made:
        assert f'](physics/{name})' in page
        with Image.open(tmp_path / name) as new, Image.open(ROOT / 'docs/physics' / name) as old:
            assert max(abs(a - b) for a, b in zip(new.size, old.size)) < 30
    assert made == {path.name for path in (ROOT / 'docs' / 'physics').iterdir()}
