"""What `make demo` runs, and what it says in the end; nothing is trained."""

import json
import sys
from pathlib import Path

import pytest

from mmhcnet.visualization.demo import TASKS

from ..conftest import load_script
from .conftest import ROOT


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """Runs the tool with stand-ins for its runs and its page; the commands that it would run."""
    module, commands = load_script(ROOT / 'tools' / 'demo.py'), []

    def run(name, log, threads, script, config, *args):
        commands.append((name, script.name, config, [str(arg) for arg in args]))
        folder = log.parent
        if script.name == 'train.py':
            (folder / 'last_checkpoint').write_text(str(folder / 'last.pth'))
        else:
            measured = folder / 'test' / 'now' / 'now.json'
            measured.parent.mkdir(parents=True)
            (task,) = (task for task in TASKS if task.name == folder.name)
            measured.write_text(json.dumps(dict.fromkeys(task.metrics, 0.25)))

    def write_page(work_dir, data, configs, results, seconds):
        return work_dir / 'index.html'

    monkeypatch.setattr(module, 'run', run)
    monkeypatch.setattr(module, 'write_demo_page', write_page)
    monkeypatch.setattr(module.subprocess, 'run', lambda command, check: None)

    def main(*args):
        monkeypatch.setattr(sys, 'argv', ['demo.py', '--work-dir', str(tmp_path), *args])
        module.main()
        return commands

    return main


def test_six_runs_from_two_classifiers(demo, tmp_path, capsys):
    commands = demo()
    trained = {name: args for name, script, _, args in commands if script == 'train.py'}
    assert set(trained) == {f'{f} {task.name}' for f in ('HcNet', 'vHeat') for task in TASKS}
    for name, args in trained.items():
        family, task = name.split()
        start = str(tmp_path / family.lower() / 'classification' / 'last.pth')
        assert (start in args) == ('--pretrained' in args) == (task != 'classification')
    names = [name for name, *_ in commands]
    assert all('classification' in name for name in names[:4])
    assert all(Path(config).is_file() for _, _, config, _ in commands)
    out = capsys.readouterr().out
    assert 'segmentation    mIoU (%)' in out and '0.250' in out
    assert out.splitlines()[-1].endswith(str(tmp_path / 'index.html'))


def test_one_family(demo):
    assert {name.split()[0] for name, *_ in demo('--families', 'vheat')} == {'vHeat'}
