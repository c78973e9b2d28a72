"""The files that describe the project agree with it."""

import re
from pathlib import Path

import yaml

import mmhcnet

ROOT = Path(__file__).resolve().parents[1]


def test_every_version_is_the_same():
    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    newest, date = re.search(
        r'^## (\S+) \((\S+)\)$', (ROOT / 'CHANGELOG.md').read_text(), re.M
    ).groups()
    assert newest == cff['version'] == mmhcnet.__version__
    assert date == str(cff['date-released'])


def test_workflow_runs_what_make_knows():
    workflow = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text())
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M))
    commands = [
        step['run'] for job in workflow['jobs'].values() for step in job['steps'] if 'run' in step
    ]
    asked = {match[1] for command in commands for match in re.finditer(r'make ([\w-]+)', command)}
    assert asked and asked <= targets
    matrix = workflow['jobs']['tests']['strategy']['matrix']
    for name in {*matrix['stack'], *(job['stack'] for job in matrix['include'])}:
        assert (ROOT / 'requirements' / f'lock-{name}.txt').is_file()


def test_bug_form_asks_for_the_doctor():
    form = yaml.safe_load((ROOT / '.github/ISSUE_TEMPLATE/bug.yml').read_text())
    labels = [
        field['attributes']['label'] for field in form['body'] if field['validations']['required']
    ]
    assert any('python -m mmhcnet.doctor' in label for label in labels)


def test_hooks_are_the_checks_of_make_lint():
    recipe = (ROOT / 'Makefile').read_text().partition('\nlint:')[2].partition('\n\n')[0]
    config = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())
    hooks = [hook['entry'].split()[0] for hook in config['repos'][0]['hooks']]
    pins = (ROOT / 'requirements/lint.txt').read_text()
    assert hooks
    for tool in {Path(entry).name for entry in hooks}:
        assert tool in recipe
        assert f'{tool}==' in pins
