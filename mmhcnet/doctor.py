"""What is wrong in this environment, and the command that fixes it: python -m mmhcnet.doctor

One line for each finding; the exit code is 0 if there is none, and 1 otherwise. It imports nothing
but Python's own modules and a table: the others are tried in a process of their own, where a crash
is a finding too.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import Distribution, distributions
from typing import NamedTuple

from mmhcnet.stacks import BUILD_TOOLS, STACKS, TORCH

# Every distribution that writes the folder mmcv.
MMCVS = ('onedl-mmcv', 'mmcv', 'mmcv-full', 'mmcv-lite')

TRIED = (
    'torch',
    'torchvision',
    'cv2',
    'pkg_resources',
    'distutils',
    'mmengine',
    'mmcv',
    'mmcv.ops',
    'mmdet.models',
    'mmdet.datasets',
    'mmseg.models',
    'mmpretrain.models',
    'mmhcnet.models',
)

# What pip calls a module that a package needs, where the names differ.
DISTRIBUTIONS = {
    'PIL': 'pillow',
    'cv2': 'opencv-python-headless',
    'distutils': 'setuptools',  # Python had it until 3.11, and mmengine's Runner imports it
    'imgaug': 'imaug==0.4.3',  # imgaug itself does not run on numpy 2
    'skimage': 'scikit-image',
    'sklearn': 'scikit-learn',
    'yaml': 'pyyaml',
}

# Imports what it is told to, and writes a line for each: the name, and the error if there is one.
_TRY = '''
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        error = None
    except BaseException as e:
        error = f'{type(e).__name__}: {e}'
    print('\\n@doctor' + json.dumps([name, error]), flush=True)
'''

ADVICE = (
    '"python -m mmhcnet.doctor" names what is wrong in this environment and the command that '
    'fixes it.'
)


@contextmanager
def advised_imports() -> Iterator[None]:
    """End the program with one line that points here where an import fails."""
    try:
        yield
    except (ImportError, OSError) as error:
        sys.exit(f'Error: {error}. {ADVICE}')


class Facts(NamedTuple):
    """What is known of an environment."""

    versions: dict[str, str]  # of each distribution, by its normalised name
    failures: dict[str, str]  # the error of each import that fails
    for_numpy_2: Sequence[str] = ()  # 'name version' of each distribution that asks for numpy 2


class Finding(NamedTuple):
    """What is wrong, and the command that fixes it."""

    problem: str
    cure: str


# Collecting facts


def installed_versions() -> dict[str, str]:
    """{normalised name of a distribution: its version}"""
    return {name: distribution.version for name, distribution in _installed().items()}


def _installed() -> dict[str, Distribution]:
    """{normalised name: distribution}; of two copies the one that is imported."""
    found = {}
    for distribution in distributions():
        name = distribution.metadata['Name']
        if name:
            found.setdefault(re.sub(r'[-_.]+', '-', name).lower(), distribution)
    return found


def asking_for_numpy_2() -> list[str]:
    """'name version' of each distribution whose own requirements rule numpy 1 out."""

    def asks(requirement: str) -> bool:
        wanted, _, condition = requirement.partition(';')
        since = re.search(r'python_version >= "3\.(\d+)"', condition)
        holds = not condition or since and sys.version_info >= (3, int(since[1]))
        return bool(holds and re.match(r'numpy\s*(?![\w-]).*>=?\s*2', wanted))

    return sorted(
        f'{name} {distribution.version}'
        for name, distribution in _installed().items()
        if any(map(asks, distribution.requires or ()))
    )


def failing_imports(names: Sequence[str]) -> dict[str, str]:
    """{name: error} of the modules among ``names`` that cannot be imported."""
    failures = {}
    left = list(names)
    while left:
        done = subprocess.run([sys.executable, '-c', _TRY, *left], capture_output=True, text=True)
        results = [
            json.loads(line[len('@doctor') :])
            for line in done.stdout.splitlines()
            if line.startswith('@doctor')
        ]
        failures.update((name, error) for name, error in results if error)
        left = left[len(results) :]
        if left:
            failures[left.pop(0)] = f'the process ended with code {done.returncode}'
    return failures


# Checks


def _number(version: str) -> list[int]:
    """'2.10.0+cpu' -> [2, 10, 0]"""
    return [int(part) for part in re.findall(r'\d+', version.partition('+')[0])[:3]]


def _stack(versions: dict[str, str]) -> str:
    """The stack of which most packages are installed."""
    return max(
        STACKS, key=lambda stack: sum(name in versions for name, _ in STACKS[stack].values())
    )


def _compile_mmcv(stack: str) -> str:
    mmcv = '=='.join(STACKS[stack]['mmcv'])
    return (
        f'pip install {BUILD_TOOLS[stack]} && MMCV_WITH_OPS=1 pip install '
        f'--no-build-isolation --no-cache-dir --force-reinstall --no-deps {mmcv}'
    )


def _install(stack: str) -> str:
    pins = ' '.join('=='.join(pin) for pin in STACKS[stack].values())
    return (
        f'pip install {BUILD_TOOLS[stack]} && MMCV_WITH_OPS=1 pip install '
        f'--no-build-isolation {pins}'
    )


def check_mixture(facts: Facts) -> Iterator[Finding]:
    found = {
        stack: [name for name, _ in STACKS[stack].values() if name in facts.versions]
        for stack in STACKS
    }
    mmcvs = [name for name in MMCVS if name in facts.versions]
    stack = _stack(facts.versions)
    if all(found.values()):
        names = sorted({*mmcvs, *sum(found.values(), [])})
        yield Finding(
            f'packages of both stacks are installed ({", ".join(names)}), and they '
            'overwrite or refuse one another',
            f'pip uninstall -y {" ".join(names)} && {_install(stack)}',
        )
    elif len(mmcvs) > 1:
        yield Finding(
            f'{" and ".join(mmcvs)} are installed, and write the same folder',
            f'pip uninstall -y {" ".join(mmcvs)} && {_compile_mmcv(stack)}',
        )


def check_numpy(facts: Facts) -> Iterator[Finding]:
    numpy, torch = facts.versions.get('numpy'), facts.versions.get('torch')
    if numpy and torch and _number(numpy) >= [2] and _number(torch) < [2, 3]:
        yield Finding(
            f'numpy {numpy} with torch {torch}, which is built against numpy 1',
            'pip install "numpy<2" "opencv-python-headless<4.11"',
        )
    elif numpy and _number(numpy) < [2] and facts.for_numpy_2:
        # An earlier torch does not run on numpy 2, and there the others have to give way.
        names = ' '.join(name.split()[0] for name in facts.for_numpy_2)
        yield Finding(
            f'numpy {numpy} is installed, and numpy 2 is what these ask for: '
            f'{", ".join(facts.for_numpy_2)}',
            f'pip install "numpy<2" {names}'
            if torch and _number(torch) < [2, 3]
            # Up to what the opencv of the stack takes.
            else 'pip install "numpy>=2,<2.3"',
        )


def check_torch(facts: Facts) -> Iterator[Finding]:
    if any("No module named 'torch'" in error for error in facts.failures.values()):
        stack = _stack(facts.versions)
        yield Finding(
            "torch is not installed, and mmcv's operators are compiled against it: it comes first",
            'pip install ' + ' '.join('=='.join(pin) for pin in TORCH[stack].items()),
        )


def _torchvision_for(torch: str) -> str:
    """0.15 belongs to torch 2.0, 0.16 to torch 2.1, and so on."""
    _, minor, patch = _number(torch)
    return f'torchvision==0.{minor + 15}.{patch}'


def check_torchvision(facts: Facts) -> Iterator[Finding]:
    torch, vision = facts.versions.get('torch'), facts.versions.get('torchvision')
    if not torch or not vision:
        return
    if _number(torch)[0] != 2:
        return
    fitting = _torchvision_for(torch)
    fits = _number(vision)[:2] == _number(fitting)[:2]
    if not fits or 'torchvision::' in facts.failures.get('torchvision', ''):
        pair = f'torch=={torch.partition("+")[0]} {fitting}'
        yield Finding(
            f'torchvision {vision} does not fit torch {torch}: '
            + (
                'they are builds for different devices' if fits else 'they belong to other releases'
            ),
            f'pip install --force-reinstall --no-deps {pair}',
        )


def check_opencv(facts: Facts) -> Iterator[Finding]:
    # libGL.so.1 on servers, and then libgthread-2.0.so.0.
    match = re.search(r'(lib(?:GL|gthread)\S*):', facts.failures.get('cv2', ''))
    if match:
        version = facts.versions.get('opencv-python') or facts.versions.get('opencv-contrib-python')
        pin = f'opencv-python-headless=={version}' if version else 'opencv-python-headless'
        yield Finding(
            f'cv2 needs {match[1]}, which this machine lacks; the headless cv2 does not',
            'pip uninstall -y opencv-python opencv-contrib-python && '
            f'pip install --force-reinstall --no-deps {pin}',
        )


def check_operators(facts: Facts) -> Iterator[Finding]:
    error = facts.failures.get('mmcv.ops', '')
    stack = _stack(facts.versions)
    if "No module named 'mmcv._ext'" in error:
        lite = 'pip uninstall -y mmcv-lite && ' if 'mmcv-lite' in facts.versions else ''
        yield Finding('mmcv was installed without its operators', lite + _compile_mmcv(stack))
    elif re.search(r'undefined symbol|libc10|libtorch|libcudart', error):
        torch = facts.versions.get('torch', '')
        yield Finding(
            f"mmcv's operators were built for another torch than {torch}", _compile_mmcv(stack)
        )


def check_versions(facts: Facts) -> Iterator[Finding]:
    """The packages' own checks: their messages name a range, here is a version that is tried."""
    for error in facts.failures.values():
        match = re.search(r'(MMCV|MMEngine)==(\S+) is used but incompatible', error)
        if match:
            name = match[1].lower()
            stack = _stack(facts.versions)
            yield Finding(
                f'{name} {match[2]} is not one that the packages next to it work with',
                _compile_mmcv(stack)
                if name == 'mmcv'
                else f'pip install {"==".join(STACKS[stack][name])}',
            )


def check_transformers(facts: Facts) -> Iterator[Finding]:
    transformers = facts.versions.get('transformers', '0')
    # mmpretrain puts None in place of a class that it does not find there, and inherits from it.
    if _number(transformers) >= [5] and any(
        'NoneType takes no arguments' in error for error in facts.failures.values()
    ):
        yield Finding(
            f'transformers {transformers} lacks what mmpretrain imports from it',
            'pip install "transformers<5"',
        )


def check_missing(facts: Facts) -> Iterator[Finding]:
    stack = STACKS[_stack(facts.versions)]
    missing = {
        match[1]
        for error in facts.failures.values()
        if (match := re.search(r"No module named '([^'.]+)'", error))
    }
    if stack is STACKS['onedl']:
        missing.discard('pkg_resources')  # only the other stack's mmengine imports it
    missing.discard('torch')  # check_torch tells of it
    if missing >= set(stack):
        yield Finding('no OpenMMLab packages are installed', _install('onedl'))
        missing -= set(stack)
    for name in sorted(missing):
        if name == 'mmcv':
            cure = _compile_mmcv(_stack(facts.versions))
        elif name == 'pkg_resources':
            cure = 'pip install "setuptools<70"'
        elif name == 'torchvision' and 'torch' in facts.versions:
            cure = f'pip install {_torchvision_for(facts.versions["torch"])}'
        else:
            pin = '=='.join(stack.get(name, (DISTRIBUTIONS.get(name, name),)))
            cure = f'pip install {pin}'
        yield Finding(f'{name} is not installed', cure)


CHECKS = (
    check_torch,
    check_mixture,
    check_numpy,
    check_torchvision,
    check_opencv,
    check_operators,
    check_versions,
    check_transformers,
    check_missing,
)


def examine(facts: Facts) -> list[Finding]:
    """All findings, each once; a failing import that no check explains is one by itself."""
    findings = [finding for check in CHECKS for finding in check(facts)]
    if not findings:
        for name, error in facts.failures.items():
            if name != 'pkg_resources':
                findings.append(
                    Finding(
                        f'import {name} fails: {" ".join(error.split())}',
                        f'no command that fixes it is known here; python -c "import {name}" shows '
                        'the full error',
                    )
                )
    return list(dict.fromkeys(findings))


def main() -> int:
    facts = Facts(installed_versions(), failing_imports(TRIED), asking_for_numpy_2())
    findings = examine(facts)
    for problem, cure in findings:
        print(f'{problem}: {cure}')
    if not findings:
        names = [
            'torch',
            'torchvision',
            *(name for name, _ in STACKS[_stack(facts.versions)].values()),
        ]
        print(
            'nothing is wrong: '
            + ', '.join(
                f'{name} {facts.versions[name]}' for name in names if name in facts.versions
            )
        )
    return bool(findings)


if __name__ == '__main__':
    sys.exit(main())
