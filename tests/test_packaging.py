"""Each way to install gives a package that has its configs, tools and model index with it."""

import json
import os
import sys
from pathlib import Path

import pytest

from .conftest import outside
from .processes import run

CONFIG = 'detection/mask_rcnn_hcnet_t_1x.py'
# What a user's program sees, from a folder of its own.
PROGRAM = f'''
import json, sys
from importlib.metadata import version
from pathlib import Path
import mmhcnet
from mmengine.config import Config
from mmengine.hub import get_config
Path('mine.py').write_text("_base_ = 'mmhcnet::{CONFIG}'")
root = Path(mmhcnet.__file__).parent
print(json.dumps(dict(
    package=str(root), config=mmhcnet.config('{CONFIG}'), version=version('mmhcnet'),
    as_base=Config.fromfile('mine.py').model.backbone.type,
    got=get_config('mmhcnet::{CONFIG}').model.backbone.type,
    others=[name for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain') if name in sys.modules])))
'''


def carried(folder):
    """{relative path: content} of what belongs below mmhcnet/.mim."""
    paths = [
        folder / 'model-index.yml',
        *(folder / 'configs').rglob('*'),
        *(folder / 'tools').rglob('*'),
    ]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.is_file() and '__pycache__' not in path.parts
    }


def seen_by(python, folder):
    done = run([python, '-c', PROGRAM], cwd=folder, env=outside())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(python, folder, source):
    seen = seen_by(python, folder)
    package = Path(seen['package'])
    assert carried(package / '.mim') == carried(source)
    assert Path(seen['config']).read_bytes() == (source / 'configs' / CONFIG).read_bytes()
    assert seen['as_base'] == seen['got'] == 'mmhcnet.HcNet'
    assert seen['others'] == []
    return package, Path(seen['config'])


def test_wheel(installed, source, tmp_path):
    package, config = check(installed, tmp_path, source)
    assert installed.parents[1] in package.parents
    assert config == package.resolve() / '.mim' / 'configs' / CONFIG
    assert os.access(package / '.mim' / 'tools' / 'dist_train.sh', os.X_OK)
    assert (package / 'py.typed').is_file()


def test_wheel_from_the_sdist(source, new_environment, tmp_path):
    code = f"from setuptools import build_meta; build_meta.build_sdist('{tmp_path}')"
    run([sys.executable, '-c', code], cwd=source, check=True)
    (sdist,) = tmp_path.iterdir()
    package, _ = check(new_environment(sdist), tmp_path, source)
    assert source not in package.parents


def test_files_that_are_gone_do_not_come_from_an_earlier_build(source, new_environment):
    stale = source / 'build' / 'lib' / 'mmhcnet' / '.mim' / 'configs' / 'gone.py'
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.touch()
    python = new_environment(source)
    assert not list(python.parents[1].rglob('gone.py'))
    assert list(python.parents[1].rglob('hcnet_t_in1k.py'))


@pytest.mark.parametrize('mode', ['lenient', 'strict'])
def test_editable(source, new_environment, tmp_path, mode):
    python = new_environment('--config-settings', f'editable_mode={mode}', '-e', source)
    _, config = check(python, tmp_path, source)
    assert config == source / 'configs' / CONFIG
    # Nothing was copied: the next look sees what has been changed, without another install.
    text = config.read_text()
    config.write_text(text.replace('mmhcnet.HcNet', 'mmhcnet.VHeat'))
    try:
        assert seen_by(python, tmp_path)['as_base'] == 'mmhcnet.VHeat'
    finally:
        config.write_text(text)


def test_inherited_configs_are_unchanged(installed, tmp_path):
    """mmengine marks inherited parts with the package's name as scope, where nothing is found."""
    code = """
import mmhcnet
from pathlib import Path
from mmengine.config import Config
root = Path(mmhcnet.config('classification/hcnet_t_in1k.py')).parents[1]
names = [p.relative_to(root) for p in root.rglob('*.py') if '_base_' not in p.parts]
for name in names:
    Path('mine.py').write_text(f"_base_ = 'mmhcnet::{name}'")
    assert Config.fromfile('mine.py').to_dict() == Config.fromfile(root / name).to_dict(), name
print(len(names))"""
    done = run([installed, '-c', code], cwd=tmp_path, env=outside())
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 20
