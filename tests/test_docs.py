"""The commands of README and docs are run here, or marked with what runs them or what they need.

A block of commands has a comment above it: ``run``, ``tested: FILE`` or ``needs: WHAT``.
"""

import functools
import os
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from mmhcnet.datasets.digits import write_digits

from .conftest import load_script
from .forked import run_forked
from .processes import run

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
FENCE = re.compile(r'(?:<!-- (?P<mark>[^\n]*) -->\n)?```bash\n(?P<text>.*?)```', re.DOTALL)
# What a reader puts something of their own in place of.
OWN = re.compile(r'\b[A-Z_]{2,}\b')


class Block(NamedTuple):
    page: str
    mark: str
    text: str

    def commands(self):
        lines = re.sub(r'\\\n\s*', ' ', self.text).splitlines()
        return [line for line in (re.sub(r'(^|\s)#.*', '', line).strip() for line in lines) if line]


BLOCKS = [
    Block(str(page.relative_to(ROOT)), match['mark'] or '', match['text'])
    for page in PAGES
    for match in FENCE.finditer(page.read_text())
]
COMMANDS = [(block, command) for block in BLOCKS for command in block.commands()]


def test_blocks_are_found():
    assert len(BLOCKS) == sum(page.read_text().count('```bash') for page in PAGES) > 20


@pytest.mark.parametrize('block', BLOCKS, ids=lambda block: f'{block.page}:{block.text[:30]!r}')
def test_every_block_is_marked(block):
    assert re.match(r'run$|tested: |needs: ', block.mark), block
    for path in re.findall(r'tests/\S+\.py', block.mark):
        assert (ROOT / path).is_file(), path
    if block.mark.startswith('tested'):
        assert 'tests/' in block.mark


@functools.cache
def usage(script):
    done = run_forked(ROOT / script, ['--help'], ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def script_of(command):
    """The Python script that takes a command's options."""
    match = re.search(r'(?:tools|demo)/\S+\.(?:py|sh)', command)
    if not match:
        return None
    launched = re.search(r'(?:dist|slurm)_(train|test)\.sh', match[0])
    return f'tools/{launched[1]}.py' if launched else match[0]


@pytest.mark.parametrize('page', sorted({block.page for block in BLOCKS}))
def test_files_and_options_exist(page):
    for block, command in COMMANDS:
        if block.page != page:
            continue
        for path in re.findall(r'(?<![\w/$])(?:tools|configs|tests|demo)/[\w./-]+', command):
            assert (ROOT / path).exists(), f'{path} of: {command}'
        script = script_of(command)
        for option in re.findall(r'(?<=\s)--[a-z][\w-]*', command) if script else ():
            assert option in usage(script), f'{option} of: {command}'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder like a clone; what a command writes stays in it."""
    folder = tmp_path_factory.mktemp('clone')
    for name in (
        'configs',
        'demo',
        'docs',
        'mmhcnet',
        'tests',
        'tools',
        'mkdocs.yml',
        'setup.py',
        'pyproject.toml',
        'README.md',
    ):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run_command(command, folder):
    """As in a shell; returns the exit code and what was said of errors."""
    words = shlex.split(command)
    if words[0] == 'python' and words[1].startswith('tools/'):
        done = run_forked(folder / words[1], words[2:], folder)
    else:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
        done = run(['bash', '-euc', command], cwd=folder, env={**os.environ, 'PATH': path})
    return done.returncode, done.stderr[-3000:]


def make_small_digits(command, folder, monkeypatch):
    """The command that makes the data set, of fewer images: all take half a minute to write."""
    script = load_script(folder / 'tools/dataset_converters/make_digits.py')
    small = functools.partial(write_digits, images=(64, 20), scenes=(16, 4))
    with monkeypatch.context() as patched:
        patched.setattr(script, 'write_digits', small)
        patched.setattr(sys, 'argv', shlex.split(command)[1:])
        patched.chdir(folder)
        script.main()


@pytest.mark.slow
def test_commands_run(folder, monkeypatch):
    # One after the other, as a reader meets them: the first page makes the data.
    blocks = [block for block in BLOCKS if block.mark == 'run']
    assert blocks
    for block in sorted(blocks, key=lambda block: block.page != 'docs/index.md'):
        assert not OWN.search(re.sub(r'"[^"]*"', '', block.text)), block.text
        for command in block.commands():
            if script_of(command) == 'tools/dataset_converters/make_digits.py':
                make_small_digits(command, folder, monkeypatch)
            else:
                code, errors = run_command(command, folder)
                assert code == 0, f'{block.page}:\n{command}\n{errors}'


def test_site_builds(tmp_path):
    pytest.importorskip('mkdocstrings', reason='the site needs it: pip install ".[docs]"')
    done = run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', tmp_path / 'site'],
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    for page in (ROOT / 'docs').rglob('*.md'):
        name = page.relative_to(ROOT / 'docs').with_suffix('')
        name = name.parent if name.name == 'index' else name
        assert (tmp_path / 'site' / name / 'index.html').is_file(), page
    # The reference is there, with what the docstrings say and no markup of another tool.
    text = (tmp_path / 'site/api/ops/index.html').read_text()
    assert 'id="mmhcnet.ops.stencil.heat_step"' in text and 'One explicit step' in text
    for page in (tmp_path / 'site/api').rglob('index.html'):
        assert not re.search(r':(func|class|meth|mod):', page.read_text()), page


def test_readme_is_short():
    lines = (ROOT / 'README.md').read_text().splitlines()
    assert len(lines) <= 140
    for path in re.findall(r'\]\(([\w/.]+\.\w+)', '\n'.join(lines)):
        assert (ROOT / path).is_file(), path
    assert (ROOT / 'docs/overview.png').stat().st_size < 300_000


def test_results_page_is_of_its_files(tmp_path, monkeypatch, capsys):
    script = load_script(ROOT / 'tools/analysis_tools/results_page.py')
    out = tmp_path / 'results.md'
    monkeypatch.setattr(sys, 'argv', ['results_page.py', '--out', str(out)])
    script.main()
    assert out.read_text() == (ROOT / 'docs/results.md').read_text()
    for path in (ROOT / 'docs/results').glob('*.csv'):
        assert script.TITLES[path.stem] in out.read_text()

    (tmp_path / 'cut.csv').write_text('model,ms\nhcnet_t\n')
    monkeypatch.setattr(sys, 'argv', ['results_page.py', '--results', str(tmp_path)])
    with pytest.raises(SystemExit):
        script.main()
    assert (
        'cut.csv is no table of a benchmark: write it again with --csv' in capsys.readouterr().err
    )
