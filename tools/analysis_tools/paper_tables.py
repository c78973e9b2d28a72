"""The tables of the HcNet and vHeat papers, published next to measured figures, as Markdown.

Every row is a config of this project, or one that mmpretrain, mmdet or mmseg carries; nothing is
computed but shapes, so all of it takes a few minutes on one CPU core.
"""

import argparse
import itertools
import logging
import warnings
from pathlib import Path
from typing import NamedTuple

from mmhcnet.cli.config import load_config, stock_config
from mmhcnet.cli.errors import one_line_errors
from mmhcnet.inference.complexity import MASKS, PROPOSALS, SHAPES, Complexity, count_complexity
from mmhcnet.models.backbones.hcnet import ARCHS

ROOT = Path(__file__).resolve().parents[2]
MISSING = 'not available'


class Row(NamedTuple):
    """A model: how it is measured, and what has been published about it.

    Parameters in millions, multiply-accumulates in 10^9; None where no figure could be found.
    """

    name: str
    config: str
    params: float | None = None
    macs: float | None = None
    score: str = MISSING
    options: dict[str, object] = {}
    folded: bool = False

    @property
    def arguments(self) -> str:
        """What get_flops.py takes to measure this row."""
        words = [self.config] + ['--folded'] * self.folded
        if self.options:
            words.append('--cfg-options')
            words += [f'{key}={value}'.replace(' ', '') for key, value in self.options.items()]
        return ' '.join(words)


class Measured(NamedTuple):
    row: Row
    backbone: Complexity
    model: Complexity


def hcnet(pattern: str, published: list[tuple], stencils: bool = False) -> list[Row]:
    rows = []
    for size, figures in zip('tsb', published):
        row = Row(f'HcNet-{size.upper()}', 'configs/' + pattern.format(size), *figures)
        rows.append(row)
        if stencils:
            rows.append(
                row._replace(
                    name=f'{row.name}, isotropic stencil',
                    options={'model.backbone.stencil': 'isotropic'},
                )
            )
    return rows


# The widths of Swin-B and ConvNeXt-B, for which mmdet carries no Mask R-CNN config.
WIDE = {'model.neck.in_channels': [128, 256, 512, 1024]}
SWIN_B = {
    'model.backbone.embed_dims': 128,
    'model.backbone.depths': [2, 2, 18, 2],
    'model.backbone.num_heads': [4, 8, 16, 32],
    **WIDE,
}
CONVNEXT_DET = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'

CLASSIFIERS = hcnet(
    'classification/hcnet_{}_in1k.py', [(28, 4.1, '83.0'), (51, 8.6), (85, 14.2)], stencils=True
) + [
    Row('ResNet-50', 'mmpretrain::resnet/resnet50_8xb32_in1k.py', 25.6, 4.1),
    Row('ResNet-101', 'mmpretrain::resnet/resnet101_8xb32_in1k.py', 44.5, 7.8),
    Row('Swin-T', 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', 28, 4.5, '81.2'),
    Row('Swin-S', 'mmpretrain::swin_transformer/swin-small_16xb64_in1k.py', 50, 8.7, '83.2'),
    Row('Swin-B', 'mmpretrain::swin_transformer/swin-base_16xb64_in1k.py', 88, 15.4, '83.5'),
    Row('ConvNeXt-T', 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py', 29, 4.5, '82.1'),
    Row('ConvNeXt-S', 'mmpretrain::convnext/convnext-small_32xb128_in1k.py', 50, 8.7, '83.1'),
    Row('ConvNeXt-B', 'mmpretrain::convnext/convnext-base_32xb128_in1k.py', 89, 15.4, '83.8'),
]
DETECTORS = hcnet('detection/mask_rcnn_hcnet_{}_1x.py', [(35,), (), ()]) + [
    Row('ResNet-50', 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 44, 260),
    Row('ResNet-101', 'mmdet::mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py', 63, 336),
    Row(
        'Swin-T',
        'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        48,
        267,
        '43.7 / 39.8, 3x 46.0 / 41.6',
    ),
    Row(
        'Swin-S',
        'mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py',
        69,
        359,
        '3x 48.5 / 43.3',
    ),
    Row(
        'Swin-B',
        'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        107,
        496,
        '46.9 / 42.3',
        SWIN_B,
    ),
    Row('ConvNeXt-T', CONVNEXT_DET, 48, 262, '3x 46.2 / 41.7'),
    Row(
        'ConvNeXt-S',
        CONVNEXT_DET,
        70,
        348,
        '45.4 / 41.8, 3x 47.9 / 42.9',
        {'model.backbone.arch': 'small'},
    ),
    Row('ConvNeXt-B', CONVNEXT_DET, options={'model.backbone.arch': 'base', **WIDE}),
]
SEGMENTORS = hcnet('segmentation/upernet_hcnet_{}_160k_ade20k.py', [(), (), ()]) + [
    Row('ResNet-50', 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py', 67, 953, '42.1'),
    Row('ResNet-101', 'mmseg::upernet/upernet_r101_4xb4-160k_ade20k-512x512.py', 85, 1030, '42.9'),
    Row(
        'Swin-T',
        'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        60,
        945,
        '44.5',
    ),
    Row(
        'Swin-S',
        'mmseg::swin/swin-small-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        81,
        1038,
        '47.6',
    ),
    Row(
        'Swin-B',
        'mmseg::swin/swin-base-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        121,
        1188,
        '48.1',
    ),
    Row(
        'ConvNeXt-T',
        'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
        60,
        939,
        '46.0',
    ),
    Row(
        'ConvNeXt-S',
        'mmseg::convnext/convnext-small_upernet_8xb2-amp-160k_ade20k-512x512.py',
        82,
        1027,
        '48.7',
    ),
    Row(
        'ConvNeXt-B',
        'mmseg::convnext/convnext-base_upernet_8xb2-amp-160k_ade20k-512x512.py',
        122,
        1170,
        '49.1',
    ),
]
VHEAT_CLASSIFIERS = [
    Row(
        f'vHeat-{size.upper()}{", folded" * folded}',
        f'configs/classification/vheat_{size}_in1k.py',
        *figures,
        folded=folded,
    )
    for size, figures in (
        ('t', (29, 4.6, '82.2')),
        ('s', (50, 8.5, '83.6')),
        ('b', (87, 14.9, '83.9')),
    )
    for folded in (False, True)
]
VHEAT_DETECTORS = [
    Row(f'vHeat-{size.upper()}', f'configs/detection/mask_rcnn_vheat_{size}_1x.py', *figures)
    for size, figures in (
        ('t', (53, 286, '45.1 / 41.2, 3x 47.3 / 42.5')),
        ('s', (74, 377, '46.8 / 42.3, 3x 48.8 / 43.7')),
        ('b', (115, 526, '47.7 / 43.0')),
    )
]
VHEAT_SEGMENTORS = [
    Row(
        f'vHeat-{size.upper()}',
        f'configs/segmentation/upernet_vheat_{size}_160k_ade20k.py',
        *figures,
    )
    for size, figures in (
        ('t', (62, 948, '47.0')),
        ('s', (82, 1028, '49.0')),
        ('b', (129, 1219, '49.6')),
    )
]
ABLATIONS = 'configs/classification/ablations/hcnet_{}_{}_in1k.py'
CONDUCTIVITIES = [
    Row(
        f'HcNet-{size.upper()}, {text}',
        ABLATIONS.format(size, part) if part else f'configs/classification/hcnet_{size}_in1k.py',
    )
    for size in 'tb'
    for part, text in (
        ('k0.1', 'k = 0.1'),
        ('k1.0', 'k = 1.0'),
        ('k3.0', 'k = 3.0'),
        ('k-learnable', 'k learnable'),
        (None, 'k input-dependent'),
    )
]
FILTERS = [
    Row(
        f'HcNet-{size.upper()}, {text}',
        ABLATIONS.format(size, part) if part else f'configs/classification/hcnet_{size}_in1k.py',
    )
    for size in 'tb'
    for part, text in (('no-filter', 'without filter'), (None, 'with filter'))
]


def measure(*tables: list[Row]) -> list[list[Measured]]:
    """The rows of each table, measured; those with the same arguments are counted once."""
    counted = {}
    for row in itertools.chain(*tables):
        if row.arguments not in counted:
            config = row.config if '::' in row.config else str(ROOT / row.config)
            cfg = load_config(stock_config(config), row.options, work_dir=None)
            shape = SHAPES[cfg.default_scope]
            counted[row.arguments] = count_complexity(cfg, shape, folded=row.folded)
    return [[Measured(row, *counted[row.arguments]) for row in rows] for rows in tables]


def beside(value: float, published: float | None, unit: str) -> str:
    """Three cells: measured, published, the difference in per cent of the published one."""
    if published is None:
        return f'{value:.2f} {unit} | {MISSING} | '
    return f'{value:.2f} {unit} | {published:g} {unit} | {100 * (value / published - 1):+.1f} %'


def table(rows: list[Measured], score: str) -> str:
    lines = [
        f'| model | parameters | published | difference | MACs | published | difference | '
        f'{score}, not reproduced here | arguments of get_flops.py |',
        '| --- ' * 9 + '|',
    ]
    for row, _, model in rows:
        lines.append(
            f'| {row.name} | {beside(model.params / 1e6, row.params, "M")} | '
            f'{beside(model.macs / 1e9, row.macs, "G")} | {row.score} | '
            f'`{row.arguments}` |'
        )
    return '\n'.join(lines)


def find(rows: list[Measured], name: str) -> Measured:
    return next(m for m in rows if m.row.name == name)


def table_1() -> str:
    lines = ['| model | widths | depths |', '| --- | --- | --- |']
    for name, arch in ARCHS.items():
        lines.append(
            f'| HcNet-{name[0].upper()} | {", ".join(map(str, arch["embed_dims"]))} | '
            f'{", ".join(map(str, arch["depths"]))} |'
        )
    return '\n'.join(lines)


def why_s_and_b(rows: list[Measured]) -> str:
    """Which change of depth would take S and B from table 1 to table 2."""
    text = []
    for size in 'SB':
        row, _, model = find(rows, f'HcNet-{size}, isotropic stencil')
        dims = ARCHS[dict(S='small', B='base')[size]]['embed_dims']
        # A block: C² (k), 4C² + 4C and 4C² + C (1x1s), 36C (filter), 2C (norm). Its convolutions
        # run at every pixel, 14² in stage 3 and 7² in stage 4; k is computed once.
        (p3, m3), (p4, m4) = [
            (9 * c**2 + 43 * c, pixels * (8 * c**2 + 36 * c) + c**2)
            for c, pixels in zip(dims[2:], (14**2, 7**2))
        ]
        params = row.params * 1e6 - model.params
        macs = row.macs * 1e9 - model.macs
        det = p3 * m4 - p4 * m3
        x, y = (params * m4 - macs * p4) / det, (macs * p3 - params * m3) / det
        near = (
            model.params + round(x) * p3 + round(y) * p4,
            model.macs + round(x) * m3 + round(y) * m4,
        )
        text.append(
            f'{size}: table 2 has {params / 1e6:+.1f} M parameters and {macs / 1e9:+.2f} G MACs '
            f'against what table 1 gives. A block of stage 3 holds {p3 / 1e6:.2f} M and costs '
            f'{m3 / 1e9:.3f} G, one of stage 4 {p4 / 1e6:.2f} M and {m4 / 1e9:.3f} G. In these two '
            f'stages, which hold most of the model, it takes {x:+.1f} and {y:+.1f} blocks to close '
            f'both gaps; the nearest whole numbers, {round(x):+d} and {round(y):+d}, give '
            f'{near[0] / 1e6:.1f} M and {near[1] / 1e9:.2f} G. So no depths of these '
            'stages give table 2 at the widths of table 1.'
        )
    return '\n'.join(f'- {line}' for line in text)


def why_35m(rows: list[Measured], classifiers: list[Measured]) -> str:
    ours, swin = find(rows, 'HcNet-T'), find(rows, 'Swin-T')
    heads = [(m.model.params - m.backbone.params) / 1e6 for m in (ours, swin)]
    backbone = ours.backbone.params / 1e6
    whole = find(classifiers, 'HcNet-T').model.params / 1e6
    return (
        f'The paper gives Mask R-CNN with HcNet-T {ours.row.params:g} M parameters. FPN, RPN and '
        f'the two heads hold {heads[1]:.1f} M of Swin-T\'s {swin.model.params / 1e6:.1f} M (48 M '
        f'published), and {heads[0]:.1f} M of ours: they depend on the backbone by its four widths '
        f'only. {ours.row.params:g} M would leave {ours.row.params - heads[0]:.1f} M for a '
        f'backbone that has {backbone:.1f} M here, and {whole:.1f} M with its ImageNet head in '
        'table 2, where the paper agrees with us. So 35 M is not the count of this detector.'
    )


def about_vheat(rows: list[Measured], detectors: list[Measured], segmentors: list[Measured]) -> str:
    lines = []
    for size, m in zip('TSB', rows[::2]):
        folded = find(rows, f'{m.row.name}, folded')
        lines.append(
            f'{size}: {m.model.macs / 1e9:.2f} G, folded {folded.model.macs / 1e9:.2f} G, '
            f'published {m.row.macs:g} G'
        )
    text = [
        'MACs: the authors\' README agrees with the folded form, in which k is computed from '
        '`freq_embed` once and not for every image (' + '; '.join(lines) + ').',
        'Parameters: the README\'s lie between ours with and without what folding takes away. '
        'Which parts were left out is not said.',
    ]
    lines = []
    for size, dim, m in zip('TSB', (96, 96, 128), detectors):
        # 56² C + 28² 2C + 14² 4C + 7² 8C at 224², and in proportion to the area at 512².
        at_224 = sum((56 // 2**i) ** 2 * dim * 2**i for i in range(4)) / 1e6
        at_512 = sum((128 // 2**i) ** 2 * dim * 2**i for i in range(4)) / 1e6
        lines.append(
            f'{size}: {m.model.params / 1e6:.2f} - {at_224:.2f} + {at_512:.2f} = '
            f'{m.model.params / 1e6 - at_224 + at_512:.1f} M, published '
            f'{m.row.params:g} M'
        )
    text.append(
        'Mask R-CNN: the authors store `freq_embed` for 512×512, we for 224×224, resized '
        'as needed (' + '; '.join(lines) + ').'
    )
    lines = [
        f'{m.row.name[-1]} {100 * (m.model.macs / m.row.macs / 1e9 - 1):+.1f} %' for m in segmentors
    ]
    text.append(
        'UperNet: ' + ', '.join(lines) + ' MACs. The same backbones in Mask R-CNN agree, '
        'and UperNet\'s head agrees for Swin and ConvNeXt; the difference for T and S is '
        'not explained.'
    )
    return '\n'.join(f'- {line}' for line in text)


def about_ablations(rows: list[Measured], filters: list[Measured]) -> str:
    one = find(filters, 'HcNet-T, without filter'), find(filters, 'HcNet-T, with filter')
    fixed, gate = find(rows, 'HcNet-T, k = 1.0'), find(rows, 'HcNet-T, k input-dependent')
    return (
        'The input-dependent k costs one C×C matrix per block '
        f'({(gate.model.params - fixed.model.params) / 1e6:.2f} M parameters in T). Without the '
        'filter the hidden layer is widened to as many parameters, to within one hidden channel a '
        f'block ({(one[0].model.params - one[1].model.params) / 1e3:+.1f} k in T). With Σw = 1, '
        'k = 3.0 lies beyond the stability limit k·Σw ≤ 1 of the explicit scheme '
        '([physics](physics.md)); k = 0.1 and 1.0 do not.'
    )


def document() -> str:
    classifiers, detectors, segmentors, vheat, vheat_det, vheat_seg, conductivities, filters = (
        measure(
            CLASSIFIERS,
            DETECTORS,
            SEGMENTORS,
            VHEAT_CLASSIFIERS,
            VHEAT_DETECTORS,
            VHEAT_SEGMENTORS,
            CONDUCTIVITIES,
            FILTERS,
        )
    )
    return f'''# The papers' tables, published and measured

Written by `python tools/analysis_tools/paper_tables.py --out docs/paper_tables.md`; do not edit.
Each row is measured by `python tools/analysis_tools/get_flops.py` with the arguments in its last
column; `package::path` is a config that the installed mmpretrain, mmdet or mmseg carries.

Parameters are those of the whole model. MACs are the multiply-accumulates of convolutions and
matrix products for one image (papers call them FLOPs): 224×224 for classifiers, 800×1280 for Mask
R-CNN with {PROPOSALS} boxes in the box head and {MASKS} in the mask head, 512×2048 for UperNet
without the auxiliary head, which is not used at test time.

Accuracies are the authors'; **none was reproduced here**. "{MISSING}" is a figure for which no
source could be read while this page was made; none is filled in from anywhere else. Published
figures are from: HcNet's paper (abstract, tables 1 and 2, the 35 M of table 3); vHeat's paper and
README; Swin's READMEs (for Swin-B in Mask R-CNN VMamba's README, whose 354 G for Swin-S are less
than the 359 G of Swin's authors); ConvNeXt's paper and READMEs; torchvision's model table for
ResNet; LocalMamba's paper for ResNet and ConvNeXt-S in Mask R-CNN and for ResNet in UperNet.

## HcNet, table 1: architectures

{table_1()}

This is what is implemented here.

## HcNet, table 2: ImageNet-1K, 224×224

{table(classifiers, 'top-1 %')}

The peers agree with their papers to the rounding of the published figures, so the counter is right.
HcNet-T agrees as well. HcNet-S and B do not:

{why_s_and_b(classifiers)}

## HcNet, table 3: Mask R-CNN on COCO, 800×1280

{table(detectors, 'box / mask AP, 1x')}

{why_35m(detectors, classifiers)}

## HcNet, table 4: UperNet on ADE20K, 512×2048

{table(segmentors, 'mIoU, single scale')}

## HcNet, table 5: conductivity

{table(conductivities, 'top-1 %')}

## HcNet, table 6: filter in the refinement layer

{table(filters, 'top-1 %')}

{about_ablations(conductivities, filters)}

## vHeat: ImageNet-1K, 224×224

{table(vheat, 'top-1 %')}

## vHeat: Mask R-CNN on COCO, 800×1280

{table(vheat_det, 'box / mask AP, 1x')}

## vHeat: UperNet on ADE20K, 512×2048

{table(vheat_seg, 'mIoU, single scale')}

{about_vheat(vheat, vheat_det, vheat_seg)}
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', help='also write it to this file')
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    with one_line_errors():
        text = document()
    print(text)
    if args.out:
        Path(args.out).write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
