import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
CARRIED = ('configs', 'tools')


class BuildWithConfigs(build_py):
    """Put configs and tools into the package as ``mmhcnet/.mim``, where mim looks for them."""

    def run(self):
        super().run()
        # An editable install runs from the checkout, where they lie beside the package.
        if self.editable_mode:
            return
        for folder in CARRIED:
            target = Path(self.build_lib) / 'mmhcnet' / '.mim' / folder
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / folder, target, ignore=shutil.ignore_patterns('__pycache__'))


setup(
    name='mmhcnet',
    version=re.search(r"'(.+)'", (HERE / 'mmhcnet' / 'version.py').read_text())[1],
    description='Vision backbones built on the heat equation, for OpenMMLab',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmhcnet', 'mmhcnet.*']),
    python_requires='>=3.10,<3.13',
    # mmengine comes with the stack, from one of two distributions of the same import names:
    # naming one here would install its files over the other's.
    install_requires=['torch>=2.1'],
    extras_require=dict(
        onedl=[
            'onedl-mmengine==0.10.12',
            'onedl-mmcv==2.3.6',
            'onedl-mmdetection==3.5.1',
            'onedl-mmsegmentation==1.4.2',
            'onedl-mmpretrain==1.3.6',
        ],
        openmmlab=[
            'mmengine==0.10.7',
            'mmcv==2.1.0',
            'mmdet==3.3.0',
            'mmsegmentation==1.2.2',
            'mmpretrain==1.2.0',
        ],
        demo=['numpy', 'pillow', 'scikit-learn', 'tqdm'],
    ),
    cmdclass=dict(build_py=BuildWithConfigs),
    zip_safe=False)
