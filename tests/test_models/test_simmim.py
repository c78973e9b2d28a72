"""Masked image modelling with mmpretrain's SimMIM: a step of pre-training, then fine-tuning."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmhcnet.checkpoints.fitting import use_pretrained
from mmhcnet.cli.config import load_config
from mmhcnet.cli.errors import import_task

from ..conftest import ROOT


@pytest.mark.parametrize('family, name', [('HcNet', 'hcnet'), ('VHeat', 'vheat')])
def test_pretraining_and_fine_tuning(family, name, tmp_path):
    import_task('mmpretrain')
    init_default_scope('mmpretrain')
    from mmpretrain.datasets.transforms import SimMIMMaskGenerator
    from mmpretrain.structures import DataSample

    cfg = load_config(str(ROOT / f'configs/classification/{name}_digits.py'), None, None)
    backbone = dict(cfg.model.backbone, mask_token=True, out_indices=(3,))
    model = MODELS.build(
        dict(
            type='SimMIM',
            backbone=backbone,
            neck=dict(type='SimMIMLinearDecoder', in_channels=128, encoder_stride=32),
            head=dict(
                type='SimMIMHead',
                patch_size=4,
                loss=dict(type='PixelReconstructionLoss', criterion='L1', channel=3),
            ),
            data_preprocessor=dict(
                type='SelfSupDataPreprocessor', mean=[127.5] * 3, std=[60.0] * 3
            ),
        )
    )
    model.init_weights()
    masks = SimMIMMaskGenerator(input_size=64, mask_patch_size=32, model_patch_size=4)
    samples = []
    for _ in range(2):
        sample = DataSample()
        sample.set_field(torch.tensor(masks.transform({})['mask']), 'mask')
        samples.append(sample)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    data = dict(inputs=torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), data_samples=samples)
    before = {key: value.clone() for key, value in model.backbone.named_parameters()}
    losses = [model.train_step(data, optim_wrapper)['loss'].item() for _ in range(3)]
    assert losses[2] < losses[0]
    for key, value in model.backbone.named_parameters():
        assert not torch.equal(value, before[key]), key
    assert len(model.extract_feat(torch.randn(1, 3, 64, 64))) == 1

    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'pretrained.pth')
    use_pretrained(cfg, str(tmp_path / 'pretrained.pth'))
    classifier = MODELS.build(cfg.model)
    classifier.init_weights()
    for key, value in classifier.backbone.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[key]), key
