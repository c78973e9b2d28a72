"""The models by name, from every OpenMMLab scope, and what importing mmhcnet costs."""
import subprocess
import sys

import pytest

SMALL = 'embed_dims=[8, 12, 16, 20], depths=[1, 1, 1, 1]'
MODELS = {'HcNet': f'arch=dict({SMALL})',
          'VHeat': f'arch=dict({SMALL}, post_norm=False, layer_scale=None)',
          'HeatConductionLayer': 'in_channels=8', 'HeatConductionOperator': 'in_channels=8'}


@pytest.mark.parametrize('package', ['mmpretrain', 'mmdet', 'mmseg', 'mmengine'])
def test_found_by_dotted_name_without_an_import(package):
    # A process of its own: here mmhcnet is imported already.
    code = f'from {package}.registry import MODELS\n' + ''.join(
        f"print(type(MODELS.build(dict(type='mmhcnet.{name}', {args}))).__name__)\n"
        for name, args in MODELS.items())
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.split()[-len(MODELS):] == list(MODELS), done.stderr


def test_importing_needs_torch_and_mmengine_only():
    code = ("import sys\n"
            "for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm', 'sklearn', 'scipy'):\n"
            "    sys.modules[name] = None\n"
            "import mmhcnet, mmhcnet.registry\n"
            "print(mmhcnet.HcNet.__name__, mmhcnet.VHeat.__name__)")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.split()[-2:] == ['HcNet', 'VHeat'], done.stderr
