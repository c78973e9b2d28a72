import re
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop

HERE = Path(__file__).resolve().parent
CARRIED = ('configs', 'demo', 'tools', 'model-index.yml')

# Not by an import: a build has no other package of ours on its path.
TABLE = runpy.run_path(str(HERE / 'mmhcnet' / 'stacks.py'))
EXTRAS = dict(
    demo=['numpy', 'pillow', 'scikit-learn', 'tqdm'],
    # peft asks for transformers, and mmpretrain cannot be imported beside version 5.
    deploy=['nncf==3.4.0', 'onnx', 'openvino==2026.4.1', 'peft==0.21.2', 'transformers<5'],
    dev=['pytest', 'pytest-xdist', 'scikit-learn', 'scipy'],
    # The newest mkdocstrings for Python 3.10 fails with a later pymdown-extensions.
    docs=[
        'mkdocs',
        'mkdocstrings-python',
        'pymdown-extensions<12; python_version < "3.11"',
    ],
    onnx=['onnx', 'onnxruntime'],
    # grad-cam asks for opencv-python; docs/visualization.md says how to do without.
    vis=['grad-cam', 'matplotlib', 'pillow'],
)
STACK_EXTRAS = {
    stack: ['=='.join(pin) for pin in pins.values()] + list(TABLE['UNASKED'][stack])
    for stack, pins in TABLE['STACKS'].items()
}


class BuildWithConfigs(build_py):
    """Put configs, demo, tools and the model index into the package as ``mmhcnet/.mim``.

    That is where mim and mmengine look for them.
    """

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):  # setuptools before 64 has no such mode
            link_carried()
            return
        # A file that the checkout has no longer must not come from an earlier build.
        shutil.rmtree(Path(self.build_lib) / 'mmhcnet' / '.mim', ignore_errors=True)
        for target, source in self._carried().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def _carried(self):
        """{file to build: file of the checkout}"""
        root = Path(self.build_lib) / 'mmhcnet' / '.mim'
        files = [
            path
            for name in CARRIED
            for path in [HERE / name, *(HERE / name).rglob('*')]
            if path.is_file() and '__pycache__' not in path.parts
        ]
        return {str(root / path.relative_to(HERE)): str(path) for path in files}

    # For an editable install in strict mode, which links file by file.

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + list(self._carried())

    def get_output_mapping(self):
        return {**super().get_output_mapping(), **self._carried()}


class DevelopWithConfigs(develop):
    """``python setup.py develop``, an editable install before PEP 660."""

    def run(self):
        super().run()
        link_carried()


def link_carried():
    """An editable install runs from the checkout: links there cannot go stale as copies would."""
    folder = HERE / 'mmhcnet' / '.mim'
    folder.mkdir(exist_ok=True)
    for name in CARRIED:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(Path('..', '..', name))


setup(
    name='mmhcnet',
    version=re.search(r"'(.+)'", (HERE / 'mmhcnet' / 'version.py').read_text())[1],
    description='Vision backbones built on the heat equation, for OpenMMLab',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='mmhcnet contributors',
    license='Apache-2.0',
    keywords='backbone, heat equation, HcNet, vHeat, OpenMMLab, image classification, '
    'object detection, semantic segmentation',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['mmhcnet', 'mmhcnet.*']),
    package_data=dict(mmhcnet=['py.typed']),
    python_requires='>=3.10,<3.14',
    # mmengine comes with the stack, from one of two distributions of the same import names:
    # naming one here would install its files over the other's.
    install_requires=['torch>=2.1'],
    extras_require=dict(STACK_EXTRAS, **EXTRAS),
    cmdclass=dict(build_py=BuildWithConfigs, develop=DevelopWithConfigs),
    zip_safe=False,
)
