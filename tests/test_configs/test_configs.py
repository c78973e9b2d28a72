"""Every config under configs/: it loads, says what the recipe says, builds, trains and predicts."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope

import mmhcnet
from mmhcnet.cli.config import load_config
from mmhcnet.datasets.digits import write_digits
from mmhcnet.models.backbones.hcnet import ARCHS as HCNET_ARCHS
from mmhcnet.models.backbones.vheat import ARCHS as VHEAT_ARCHS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
LEAVES = sorted(
    p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob('*.py') if '_base_' not in p.parts
)
PAPER = [name for name in LEAVES if 'digits' not in name]
OURS = [name for name in LEAVES if 'hcnet' in name or 'vheat' in name]
# A 3x recipe has the model of its 1x recipe.
DIFFERENT = [name for name in LEAVES if '_3x' not in name]
# An ablation differs from its base in one setting of the backbone; T's are run, B's only built.
RUN = [name for name in DIFFERENT if 'ablations/hcnet_b' not in name]
WITH_DATA = [name for name in LEAVES if 'ablations' not in name]
SIZES = dict(t='tiny', s='small', b='base')
FAMILIES = dict(hcnet=HCNET_ARCHS, vheat=VHEAT_ARCHS)


def named(folder, pattern):
    return [
        (f'{folder}/{pattern.format(family, size)}', family, size)
        for family in FAMILIES
        for size in SIZES
    ]


def with_one_block_a_stage(cfg, embed_dims=None):
    """Make the backbone of a config small; the channels stay unless given."""
    backbone = cfg.model.backbone
    if backbone.type == 'ResNet':
        return
    arch = backbone.arch
    if not isinstance(arch, dict):
        arch = FAMILIES[backbone.type.split('.')[1].lower()][arch]
    backbone.arch = dict(arch, depths=[1, 1, 1, 1], embed_dims=embed_dims or arch['embed_dims'])


def narrow(cfg):
    """Make the model of a config small: one block a stage, and few channels everywhere."""
    dims, model = [16, 24, 32, 48], cfg.model
    with_one_block_a_stage(cfg, dims)
    if cfg.default_scope == 'mmpretrain':
        model.head.in_channels = dims[-1]
    elif cfg.default_scope == 'mmdet':
        if model.backbone.type != 'ResNet':
            model.neck.in_channels = dims
        model.roi_head.bbox_head.fc_out_channels = model.roi_head.mask_head.conv_out_channels = 32
    else:
        model.decode_head.in_channels, model.auxiliary_head.in_channels = dims, dims[2]
        model.decode_head.channels = model.auxiliary_head.channels = 32


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits'
    write_digits(folder, images=(20, 10), scenes=(4, 2))
    return folder


def load(name):
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    return cfg


def point_to(cfg, digits):
    """Let the data loaders of a config read the digits, which have the same layouts."""
    folder = dict(mmpretrain='classification', mmdet='detection', mmseg='segmentation')
    for split in ('train', 'val'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.data_root = str(digits / folder[cfg.default_scope])
        if cfg.default_scope == 'mmpretrain':
            dataset.update(type='CustomDataset', data_prefix=split)
            dataset.pop('split', None)
        elif cfg.default_scope == 'mmdet':
            dataset.metainfo = dict(classes=tuple('0123456789'))
        else:
            dataset.img_suffix = '.png'


def test_there_are_configs_for_all_three_tasks():
    expected = {'detection/mask_rcnn_r50_hco_1x.py'}
    for f in FAMILIES:
        expected |= {f'classification/{f}_{s}_in1k.py' for s in SIZES}
        expected |= {f'detection/mask_rcnn_{f}_{s}_{x}.py' for s in SIZES for x in ('1x', '3x')}
        expected |= {f'segmentation/upernet_{f}_{s}_160k_ade20k.py' for s in SIZES}
        expected |= {
            f'classification/{f}_digits.py',
            f'detection/mask_rcnn_{f}_digits.py',
            f'segmentation/upernet_{f}_digits.py',
        }
    assert expected <= set(LEAVES)


@pytest.mark.parametrize('name', LEAVES)
def test_found_by_mmhcnet_config(name):
    assert Path(mmhcnet.config(name)) == CONFIGS / name


def test_unknown_config_lists_those_there_are():
    with pytest.raises(FileNotFoundError, match='detection/mask_rcnn_hcnet_t_1x.py'):
        mmhcnet.config('detection/mask_rcnn_hcnet_t_2x.py')


@pytest.mark.parametrize('name', DIFFERENT)
def test_channels_fit(name):
    """Of backbone, neck and heads, all of them as they are."""
    cfg = load(name)
    with torch.device('meta'):
        model = MODELS.build(cfg.model).eval()
        image = torch.zeros(2, 3, 64, 64)
        channels = [out.shape[1] for out in model.backbone(image)]
        maps = model.extract_feat(image)
        if cfg.default_scope == 'mmdet':
            rois = torch.zeros(3, cfg.model.neck.out_channels, 7, 7)
            boxes, _ = model.roi_head.bbox_head(rois)
            masks = model.roi_head.mask_head(rois)
            rpn, _ = model.rpn_head(maps)
    if cfg.default_scope == 'mmpretrain':
        assert [cfg.model.head.in_channels] == channels
        assert model.head(maps).shape == (2, cfg.model.head.num_classes)
    elif cfg.default_scope == 'mmdet':
        assert cfg.model.neck.in_channels == channels
        classes = cfg.model.roi_head.bbox_head.num_classes
        assert len(rpn) == len(cfg.model.rpn_head.anchor_generator.strides)
        assert boxes.shape == (3, classes + 1)
        agnostic = cfg.model.roi_head.mask_head.get('class_agnostic', False)
        assert masks.shape[:2] == (3, 1 if agnostic else classes)
    else:
        assert cfg.model.decode_head.in_channels == channels
        assert cfg.model.auxiliary_head.in_channels == channels[2]
        for head in (model.decode_head, model.auxiliary_head):
            assert head(maps).shape[:2] == (2, cfg.model.decode_head.num_classes)


@pytest.mark.parametrize('name, family, size', named('classification', '{}_{}_in1k.py'))
def test_imagenet_recipe(name, family, size):
    cfg = load(name)
    backbone, optimizer = cfg.model.backbone, cfg.optim_wrapper.optimizer
    assert backbone.arch == SIZES[size]
    assert (
        backbone.drop_path_rate
        == dict(hcnet=dict(t=0.2, s=0.3, b=0.5), vheat=dict(t=0.1, s=0.3, b=0.5))[family][size]
    )
    batch, decay = dict(hcnet=(256, 0.05), vheat=(1024, 0.08))[family]
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-3, decay)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == batch
    assert [h.type for h in cfg.get('custom_hooks') or []] == (
        ['EMAHook'] if family == 'vheat' else []
    )
    if family == 'vheat':
        assert optimizer.lr == pytest.approx(5e-4 * batch / 512)
    assert cfg.optim_wrapper.clip_grad.max_norm == 5.0
    assert cfg.train_cfg.max_epochs == 300
    warmup, cosine = cfg.param_scheduler
    assert (warmup.type, warmup.begin, warmup.end) == ('LinearLR', 0, 20)
    assert (cosine.type, cosine.begin, cosine.end) == ('CosineAnnealingLR', 20, 300)
    steps = {t['type']: t for t in cfg.train_dataloader.dataset.pipeline}
    assert steps['RandomResizedCrop']['scale'] == 224
    assert steps['RandomResizedCrop']['interpolation'] == 'bicubic'
    rand_augment = steps['RandAugment']
    assert rand_augment['policies'] == 'timm_increasing'
    assert (rand_augment['magnitude_level'], rand_augment['magnitude_std']) == (9, 0.5)
    assert steps['RandomErasing']['erase_prob'] == 0.25
    assert [(a.type, a.alpha) for a in cfg.model.train_cfg.augments] == [
        ('Mixup', 0.8),
        ('CutMix', 1.0),
    ]
    assert cfg.model.head.loss.label_smooth_val == 0.1
    steps = {t['type']: t for t in cfg.val_dataloader.dataset.pipeline}
    assert (steps['ResizeEdge']['scale'], steps['ResizeEdge']['edge']) == (256, 'short')
    assert steps['ResizeEdge']['interpolation'] == 'bicubic'
    assert steps['CenterCrop']['crop_size'] == 224


@pytest.mark.parametrize('size', 'tb')
@pytest.mark.parametrize(
    'setting, change',
    [
        ('k0.1', dict(k=0.1)),
        ('k1.0', dict(k=1.0)),
        ('k3.0', dict(k=3.0)),
        ('k-learnable', dict(k='learnable')),
        ('no-filter', dict(with_filter=False)),
    ],
)
def test_ablations_of_tables_5_and_6_change_one_thing(size, setting, change):
    plain = load(f'classification/hcnet_{size}_in1k.py')
    ablation = load(f'classification/ablations/hcnet_{size}_{setting}_in1k.py')
    if setting == 'no-filter':
        with torch.device('meta'):
            counts = [
                sum(p.numel() for p in MODELS.build(cfg.model.backbone).parameters())
                for cfg in (plain, ablation)
            ]
        assert counts[1] == pytest.approx(counts[0], rel=1e-3)
    plain.model.backbone.update(change)
    assert ablation.to_dict() == plain.to_dict()


@pytest.mark.parametrize('length, epochs, milestones', [('1x', 12, [8, 11]), ('3x', 36, [27, 33])])
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('size', SIZES)
def test_coco_recipe(size, family, length, epochs, milestones):
    cfg = load(f'detection/mask_rcnn_{family}_{size}_{length}.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert cfg.model.backbone.arch == SIZES[size]
    if family == 'vheat':
        assert cfg.model.backbone.drop_path_rate == dict(t=0.3, s=0.4, b=0.5)[size]
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    warmup, steps = cfg.param_scheduler
    assert (warmup.by_epoch, warmup.end) == (False, 1000)
    assert (steps.milestones, steps.gamma, steps.end) == (milestones, 0.1, epochs)
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    pipeline = cfg.train_dataloader.dataset.pipeline
    if length == '1x':
        assert [t.scale for t in pipeline if t.type == 'Resize'] == [(1333, 800)]
    else:
        shorter = load(f'detection/mask_rcnn_{family}_{size}_1x.py')
        assert cfg.model == shorter.model and cfg.optim_wrapper == shorter.optim_wrapper
        plain, cropped = [t for t in pipeline if t.type == 'RandomChoice'][0].transforms
        assert [s[0] for s in plain[0].scales] == list(range(480, 801, 32))
        assert [t.type for t in cropped] == [
            'RandomChoiceResize',
            'RandomCrop',
            'RandomChoiceResize',
        ]


@pytest.mark.parametrize(
    'name, family, size', named('segmentation', 'upernet_{}_{}_160k_ade20k.py')
)
def test_ade20k_recipe(name, family, size):
    cfg = load(name)
    optimizer = cfg.optim_wrapper.optimizer
    rates = dict(hcnet=dict(t=0.3, s=0.3, b=0.3), vheat=dict(t=0.3, s=0.4, b=0.5))[family]
    assert (cfg.model.backbone.arch, cfg.model.backbone.drop_path_rate) == (
        SIZES[size],
        rates[size],
    )
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    warmup, poly = cfg.param_scheduler
    assert (warmup.end, poly.type, poly.begin, poly.end) == (1500, 'PolyLR', 1500, 160000)
    assert cfg.train_cfg.max_iters == 160000
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    crop = [t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomCrop'][0]
    assert crop.crop_size == cfg.model.data_preprocessor.size == (512, 512)
    head = cfg.model.auxiliary_head
    assert (head.type, head.in_index, head.loss_decode.loss_weight) == ('FCNHead', 2, 0.4)
    scales, flips = cfg.tta_pipeline[1].transforms[:2]
    assert [t.scale_factor for t in scales] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert [t.prob for t in flips] == [0.0, 1.0]


@pytest.mark.parametrize('name', OURS)
@pytest.mark.parametrize('k', ['of the paper', 'learnable'])
def test_what_weight_decay_applies_to(name, k):
    cfg = load(name)
    with_one_block_a_stage(cfg, [8, 12, 16, 20])
    if k == 'learnable':
        cfg.model.backbone.k = k
    backbone = MODELS.build(cfg.model.backbone)
    wrapper = build_optim_wrapper(backbone, cfg.optim_wrapper)
    decay = {
        id(p): group['weight_decay'] for group in wrapper.param_groups for p in group['params']
    }
    seen = set()
    for module_name, module in backbone.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            full = f'{module_name}.{leaf}'
            free = (
                isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm))
                or full.endswith(('conduction.w', 'conduction.k', 'gamma1', 'gamma2'))
                or 'freq_embed' in full
            )
            if leaf == 'bias' and cfg.default_scope == 'mmpretrain' and name in PAPER:
                free = True
            seen.add(leaf)
            assert (decay[id(parameter)] == 0) == free, full
    own = {'w'}
    if isinstance(backbone, mmhcnet.VHeat):
        own = {'0', '1', '2', '3'} if k == 'of the paper' else set()
        if cfg.model.backbone.arch['layer_scale']:
            own |= {'gamma1', 'gamma2'}
    learnable = cfg.model.backbone.get('k') == 'learnable'
    assert seen == {'weight', 'bias'} | own | ({'k'} if learnable else set())


def test_no_weight_decay_on_the_embedding_of_a_plug_in():
    cfg = load('detection/mask_rcnn_r50_hco_1x.py')
    backbone = MODELS.build(cfg.model.backbone)
    wrapper = build_optim_wrapper(backbone, cfg.optim_wrapper)
    decay = {
        id(p): group['weight_decay'] for group in wrapper.param_groups for p in group['params']
    }
    own = {n: p for n, p in backbone.named_parameters() if 'heat_conduction_operator' in n}
    assert len([n for n in own if 'freq_embed' in n]) == 9
    for name, parameter in own.items():
        free = 'freq_embed' in name or 'gamma' in name or 'conduction.norm' in name
        assert (decay[id(parameter)] == 0) == free, name


@pytest.mark.parametrize('name', WITH_DATA)
def test_pipelines_read_the_data(name, digits):
    cfg = load(name)
    point_to(cfg, digits)
    for split in ('train', 'val'):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        assert len(dataset) > 0
        sample = dataset[0]
        assert sample['inputs'].dtype == torch.uint8
        if name in PAPER and cfg.default_scope == 'mmpretrain':
            assert sample['inputs'].shape == (3, 224, 224)
        elif name in PAPER and cfg.default_scope == 'mmseg' and split == 'train':
            # An image that was resized to less is padded by the model's preprocessor.
            assert max(sample['inputs'].shape[1:]) <= 512
            assert sample['data_samples'].gt_sem_seg.data.shape[1:] == sample['inputs'].shape[1:]
        elif cfg.default_scope == 'mmdet':
            truth = sample['data_samples'].gt_instances
            assert len(truth.masks) == len(truth.bboxes) == len(truth.labels)


@pytest.mark.parametrize('name', RUN)
def test_trains_one_step_and_predicts(name, digits):
    cfg = load(name)
    narrow(cfg)
    if 'data_preprocessor' in cfg and 'data_preprocessor' not in cfg.model:
        cfg.model.data_preprocessor = dict(type='ClsDataPreprocessor', **cfg.data_preprocessor)
    # The digits' own pipelines: small images, to which every model must be able to reduce.
    small = load(
        {
            'mmpretrain': 'classification/hcnet_digits.py',
            'mmdet': 'detection/mask_rcnn_hcnet_digits.py',
            'mmseg': 'segmentation/upernet_hcnet_digits.py',
        }[cfg.default_scope]
    )
    point_to(small, digits)
    # Scenes of a quarter of their pixels, and few boxes.
    if cfg.default_scope != 'mmpretrain':
        for split in ('train', 'val'):
            pipeline = small[f'{split}_dataloader'].dataset.pipeline
            pipeline.insert(-1, dict(type='Resize', scale=(64, 64)))
    if cfg.default_scope == 'mmdet':
        cfg.model.train_cfg.rcnn.sampler.num = 16
        cfg.model.train_cfg.rpn_proposal.max_per_img = 50
        cfg.model.test_cfg.rpn.max_per_img = 50
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 64)
        for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
            head.norm_cfg = dict(type='BN')
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    collate = default_collate if cfg.default_scope == 'mmpretrain' else pseudo_collate
    train = DATASETS.build(small.train_dataloader.dataset)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    # The rate before any warm-up would throw a fresh model off.
    before = {n: p.detach().clone() for n, p in model.backbone.named_parameters()}
    log = model.train_step(collate([train[0], train[1]]), wrapper)
    assert all(value.isfinite().all() for value in log.values())
    assert any(not torch.equal(before[n], p) for n, p in model.backbone.named_parameters())
    model.eval()
    val = DATASETS.build(small.val_dataloader.dataset)
    with torch.no_grad():
        results = model.test_step(collate([val[0], val[1]]))
    assert len(results) == 2
    for result in results:
        if cfg.default_scope == 'mmpretrain':
            assert result.pred_score.shape == (cfg.model.head.num_classes,)
        elif cfg.default_scope == 'mmdet':
            found = result.pred_instances
            assert found.masks.shape == (len(found.bboxes), 128, 128)
        else:
            assert result.pred_sem_seg.data.shape == (1, 128, 128)


@pytest.mark.parametrize('name', LEAVES)
def test_as_the_tools_load_it(name):
    cfg = load_config(str(CONFIGS / name), None, None)
    assert cfg.param_scheduler == Config.fromfile(CONFIGS / name).param_scheduler
    assert cfg.work_dir == f'work_dirs/{Path(name).stem}'


@pytest.mark.parametrize('name', [name for name in LEAVES if name.startswith('segmentation')])
def test_tools_of_mmseg_find_the_normalisation(name):
    """visualization_cam.py reads it at the top of the config."""
    cfg = load(name)
    assert cfg.data_preprocessor == cfg.model.data_preprocessor
