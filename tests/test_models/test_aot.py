"""AOTInductor: both backbones as a shared library, which a C++ program can serve."""

import shutil

import pytest
import torch

from mmhcnet import create_model

ARCH = dict(embed_dims=[8, 16], depths=[1, 1])


@pytest.mark.aot
@pytest.mark.parametrize('family', ['hcnet', 'vheat'])
def test_compiled_ahead_of_time(family, tmp_path):
    if not hasattr(torch._inductor, 'aoti_compile_and_package'):
        pytest.skip('needs torch 2.6')
    if shutil.which('g++') is None:
        pytest.skip('needs g++')
    more = {} if family == 'hcnet' else dict(post_norm=False, layer_scale=None)
    model = create_model(family, arch=dict(ARCH, **more), num_classes=10).eval()
    if family == 'vheat':
        model.backbone.switch_to_deploy(32)
    batch = torch.export.Dim('batch', min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / 'model.pt2')
        )
        run = torch._inductor.aoti_load_package(path)
        for size in (1, 5):
            x = torch.randn(size, 3, 32, 32)
            torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-5)
